"""Weight files of any format as named arrays; the content decides, never the file's extension."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from resnetjax.errors import CorruptFile, ResNetJAXError, UnsafeWeights, UnsupportedFile
from resnetjax.weights import (
    bounded_json,
    keras_file,
    msgpack_file,
    npz_file,
    safetensors_file,
    tf_bundle,
    tf_table,
    tf_version1,
    torch_containers,
    torch_file,
    torch_pickle,
)
from resnetjax.weights.mapped import map_file

MAX_SHARDS = 1000
MAX_NAME = 1000

# Where training programs keep the weights, as timm's load_state_dict looks for them; any other
# place will do where it is the only one.
_AVERAGES = ("state_dict_ema", "model_ema")
_STATE_DICTS = (*_AVERAGES, "state_dict", "model")
# Of DataParallel, of torch.compile, and of the attribute that holds the net, in any order.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
_COUNTERS = ("num_batches_tracked", "n_averaged")  # of batch norm and of AveragedModel

# A preset of KerasHub's keeps what is not the backbone in a file of its own.
KERASHUB_BACKBONE, KERASHUB_HEAD = "model.weights.h5", "task.weights.h5"
_COLLECTIONS = ("params/", "batch_stats/")  # of Flax; no name is in both
_OPTIMIZER = "opt_state/"  # beside them in a state of `flax.training`

# How formats that are not read begin.
_FOREIGN = {
    rb"\x93NUMPY": "a single numpy array (.npy)",
    rb"GGUF": "a GGUF file",
    rb"\x1f\x8b|\xfd7zXZ|\x28\xb5\x2f\xfd|BZh": "compressed: decompress it first",
    rb"version https://git-lfs": "a git-lfs pointer: fetch the file itself with `git lfs pull`",
    rb"(?i)\s*<(!doctype|html|\?xml)": "a web page: was the download redirected?",
    rb"\s*[{\[]": "JSON, but no index of shards",
    rb"\Z": "empty",
}


@dataclass(frozen=True)
class WeightFile:
    """The arrays of a file or of a sharded set.

    Attributes:
        arrays: By the name that the file gives them, wrappers' prefixes and counters taken off;
            read-only, and paged in from the mapped file as they are used.
        format: `safetensors`, `torch-zip`, `torch-legacy`, `torch-tar`, `keras-h5`,
            `keras-weights-h5`, `keras-zip`, `hdf5`, `tf-bundle`, `tf-version1`, `npz` or
            `flax-msgpack`.
        metadata: What the file holds beside the weights and without arrays, such as `epoch`; `ema`
            names the entry that a moving average was preferred from.
        parts: Of a torch module that was saved whole, what it and the modules in it are, by their
            paths, as `torch_file.Module` says; else nothing.
        wrappers: The classes of the modules that this one is in.
        paths: Of the files that were read; an index comes before its shards.
        contents: The mapped files.
    """

    arrays: dict[str, np.ndarray]
    format: str
    metadata: dict[str, Any]
    paths: tuple[Path, ...]
    contents: tuple[memoryview, ...] = field(repr=False)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    wrappers: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Digest of the file as it was read; of an index and its shards, that of their digests."""
        digests = [hashlib.sha256(content) for content in self.contents]
        if len(digests) == 1:
            return digests[0].hexdigest()
        joined = "".join(digest.hexdigest() for digest in digests)
        return hashlib.sha256(joined.encode()).hexdigest()


def read(path: str | os.PathLike[str]) -> WeightFile:
    """Returns the weights in a file, or in the files that an index lists.

    Args:
        path: A file; an index of shards (`*.index.json`); or what `tf_bundle.prefix_of` takes for a
            TensorFlow checkpoint, a folder too.

    Raises:
        UnsupportedFile: The file is of no format above, or holds no named arrays.
        UnsafeWeights: It asks to run code, to open files elsewhere, or for more than its size can
            justify.
        CorruptFile: It is truncated or contradicts itself; or a shard is missing or incomplete.
        OSError: There is no such file, or it cannot be read.
    """
    path = Path(path)
    with _naming(path):
        if (prefix := tf_bundle.prefix_of(path)) is not None:
            return _read_bundle(prefix)
        data = map_file(path)
        index = _index(data)
        file = _read_one(path, data) if index is None else _read_shards(path, data, index)
        if path.name == KERASHUB_BACKBONE and (head := path.with_name(KERASHUB_HEAD)).is_file():
            file = _with_head(file, _read_one(head, map_file(head)))
        arrays, prefix = _clean(file.arrays)
        parts = {
            path[len(prefix) :]: part
            for path, part in file.parts.items()
            if f"{path}.".startswith(prefix)
        }
        outer = tuple(x["class"] for path, x in file.parts.items() if _is_around(path, prefix))
        return replace(file, arrays=arrays, parts=parts, wrappers=outer)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ResNetJAXError as error:
        raise type(error)(f"{path}: {error}") from error


def _read_one(path: Path, data: memoryview) -> WeightFile:
    if safetensors_file.detect(data):
        arrays, metadata = safetensors_file.parse(data)
        return WeightFile(arrays, "safetensors", dict(metadata), (path,), (data,))
    if keras_file.detect(data):
        arrays, metadata = keras_file.parse(data)
        return WeightFile(arrays, metadata["container"], metadata, (path,), (data,))
    if npz_file.detect(data):
        arrays, metadata = npz_file.parse(data)
        return WeightFile(arrays, "npz", metadata, (path,), (data,))
    if msgpack_file.detect(data):
        arrays, metadata = msgpack_file.parse(data)
        return WeightFile(_merged(arrays), "flax-msgpack", metadata, (path,), (data,))
    if (kind := torch_containers.detect(data)) is not None:
        arrays, metadata, parts = _state_dict(torch_file.parse(data, kind))
        return WeightFile(arrays, kind, metadata, (path,), (data,), parts)
    if tf_table.detect(data):
        arrays, metadata = tf_version1.parse(data)
        return WeightFile(arrays, "tf-version1", metadata, (path,), (data,))
    if torch_pickle.detect(data):
        torch_pickle.load(data)  # says so if it is unsafe
        raise UnsupportedFile("no known weights: it is a bare pickle, as torch.save writes none")
    begin = bytes(data[:64])
    found = (text for magic, text in _FOREIGN.items() if re.match(magic, begin))
    raise UnsupportedFile(f"no known weights: it is {next(found, f'unknown, {begin[:16]!r}')}")


def _with_head(file: WeightFile, head: WeightFile) -> WeightFile:
    if twice := file.arrays.keys() & head.arrays.keys():
        raise CorruptFile(f"{KERASHUB_HEAD} has {min(twice)} as {KERASHUB_BACKBONE} does")
    return replace(
        file,
        arrays=file.arrays | head.arrays,
        paths=file.paths + head.paths,
        contents=file.contents + head.contents,
    )


def _read_bundle(prefix: Path) -> WeightFile:
    paths = [tf_bundle.index_path(prefix)]
    contents = [map_file(paths[0])]

    def shard(number: int, count: int) -> memoryview:
        paths.append(tf_bundle.shard_path(prefix, number, count))
        if not paths[-1].is_file():
            raise CorruptFile(f"a shard is missing: {paths[-1].name}")
        contents.append(map_file(paths[-1]))
        return contents[-1]

    arrays, metadata = tf_bundle.parse(contents[0], shard)
    return WeightFile(arrays, "tf-bundle", metadata, tuple(paths), tuple(contents))


def _merged(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of Flax's collections beside each other, without an optimiser's."""
    names = {name: name for name in arrays if not name.startswith(_OPTIMIZER)}
    for prefix in _COLLECTIONS:
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    if len(set(names.values())) < len(names):
        raise CorruptFile(f"{' and '.join(_COLLECTIONS)} have an array of the same name")
    return {short: arrays[name] for name, short in names.items()}


def _index(data: memoryview) -> dict[str, Any] | None:
    # The length that a safetensors file begins with can look like " {".
    if safetensors_file.detect(data) or not bytes(data[:64]).lstrip().startswith(b"{"):
        return None
    index = bounded_json.loads(data, what="the index of shards")
    return index if type(index.get("weight_map")) is dict else None


def _read_shards(path: Path, data: memoryview, index: dict[str, Any]) -> WeightFile:
    listed: dict[str, set[str]] = {}
    for name, shard in index["weight_map"].items():
        if type(shard) is not str:
            raise CorruptFile(f"the index names no file for {name!r:.80}")
        if not re.fullmatch(r"[^/\\:\0]+", shard) or shard in (".", ".."):
            raise UnsafeWeights(f"the index asks for a file outside its folder: {shard!r:.80}")
        listed.setdefault(shard, set()).add(name)
    if len(listed) > MAX_SHARDS:
        raise CorruptFile(f"the index lists {len(listed):,} shards, more than {MAX_SHARDS:,}")
    if missing := [shard for shard in listed if not (path.parent / shard).is_file()]:
        raise CorruptFile(f"shards are missing: {', '.join(missing)}")
    metadata = index.get("metadata")
    merged = dict(metadata) if type(metadata) is dict else {}
    files, problems, counts = [], [], Counter[str]()
    for shard, names in listed.items():
        with _naming(Path(shard)):
            files.append(_read_one(path.parent / shard, map_file(path.parent / shard)))
        found = files[-1].arrays.keys()
        merged |= files[-1].metadata
        counts.update(found)
        problems += [f"{name} is not in {shard}" for name in sorted(names - found)]
        problems += [f"{name} is in {shard}, unlisted" for name in sorted(found - names)]
    problems += [f"{name} is in {count} shards" for name, count in counts.items() if count > 1]
    if len({file.format for file in files}) != 1:
        problems.append("the shards are not all of one format")
    if problems:
        raise CorruptFile("the shards contradict the index: " + "; ".join(problems))
    arrays = {name: array for file in files for name, array in file.arrays.items()}
    paths = (path, *(path.parent / shard for shard in listed))
    contents = (data, *(content for file in files for content in file.contents))
    return WeightFile(arrays, files[0].format, merged, paths, contents)


def _state_dict(saved: Any) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """Returns the state dict's arrays in what torch.save saved, the plain rest, the parts."""
    if not isinstance(saved, dict):
        raise UnsupportedFile(f"the file holds a {type(saved).__name__}, not a state dict")
    wrappers = [key for key in _STATE_DICTS if _has_arrays(saved.get(key))]
    if not wrappers and not _has_arrays(saved):
        wrappers = [key for key, value in saved.items() if _has_arrays(value)]
        if len(wrappers) > 1:
            named = ", ".join(f"{key!r:.40}" for key in wrappers[:20])
            raise UnsupportedFile(f"the file holds several nets, save one of them: {named}")
    wrapper = wrappers[0] if wrappers else None
    chosen = saved if wrapper is None else saved[wrapper]
    if not _has_arrays(chosen):
        keys = ", ".join(f"{key!r:.40}" for key in list(saved)[:20])
        raise UnsupportedFile(f"the file holds no named arrays; at its top level it has: {keys}")
    arrays = {name: value for name, value in chosen.items() if isinstance(value, np.ndarray)}
    if any(type(name) is not str for name in arrays):
        raise UnsupportedFile("the file holds arrays whose names are not text")
    rest = {**saved, **chosen} if chosen is not saved else saved
    metadata = {
        str(key): _numbers(value)
        for key, value in rest.items()
        if key not in arrays and not _has_data(value)
    }
    parts = chosen.parts if isinstance(chosen, torch_file.Module) else {}
    return arrays, metadata | ({"ema": wrapper} if wrapper in _AVERAGES else {}), parts


def _has_arrays(value: Any) -> bool:
    """Returns whether it is a state dict: numbers, such as an accuracy, are beside one."""
    return isinstance(value, dict) and any(
        isinstance(item, np.ndarray) and item.ndim for item in value.values()
    )


def _has_data(value: Any) -> bool:
    """Returns whether it holds arrays of more than one number, as an optimiser's state does."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    items = (
        value.values() if isinstance(value, dict) else value if type(value) in (list, tuple) else ()
    )
    return any(_has_data(item) for item in items)


def _numbers(value: Any) -> Any:
    """Returns the same with arrays of one number as that number: trackers keep accuracies so."""
    if isinstance(value, np.ndarray):
        return value.item()
    if type(value) is dict:
        return {key: _numbers(item) for key, item in value.items()}
    return type(value)(map(_numbers, value)) if type(value) in (list, tuple) else value


def _clean(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays without wrappers' prefixes and counters, and the prefixes."""
    if long := next((name for name in arrays if len(name) > MAX_NAME), None):
        raise CorruptFile(f"an array's name has {len(long):,} characters, more than {MAX_NAME:,}")
    names = {name: name for name in arrays if name.rpartition(".")[2] not in _COUNTERS}
    stripped = ""
    while prefix := next((prefix for prefix in _PREFIXES if _all_begin(names, prefix)), None):
        names = {name.removeprefix(prefix): original for name, original in names.items()}
        stripped += prefix
    return {name: arrays[original] for name, original in names.items()}, stripped


def _is_around(path: str, prefix: str) -> bool:
    """Whether a module is one of those in which the one of this prefix is."""
    within = f"{path}." if path else ""
    return within != prefix and prefix.startswith(within)


def _all_begin(names: Iterable[str], prefix: str) -> bool:
    names = list(names)
    return bool(names) and all(name.startswith(prefix) and name != prefix for name in names)


def write(contents: Mapping[Path, bytes], *, remove: Iterable[Path] = ()) -> None:
    """Writes files beside their places, then renames them: a failed write leaves what was there.

    Args:
        contents: By the files' paths.
        remove: Files that go once all is written, before anything is renamed.

    Raises:
        OSError: A file cannot be written.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            try:
                with temporary[path].open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:  # which names the temporary file
                raise type(error)(error.errno, error.strerror, os.fspath(path)) from None
        for path in remove:
            path.unlink(missing_ok=True)
        for path in contents:
            temporary[path].replace(path)
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)
