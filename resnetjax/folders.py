"""Directories that hold a net: where its weights are, and what a `config.json` says of them."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resnetjax.errors import ConfigError, ResNetJAXError, UnsupportedFile
from resnetjax.layouts import kerashub, native, timm, transformers
from resnetjax.layouts.description import EVERYTHING, Description, Wanted
from resnetjax.weights import bounded_json, tf_bundle
from resnetjax.weights.files import KERASHUB_HEAD

WEIGHT_FILES = (  # in the order in which they are looked for
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "model.weights.h5",
)
# A directory's only file of these may have any name.
_SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".msgpack", ".h5", ".keras", ".npz")
RUN_MODELS = ("best", "latest")  # of a training run, in the order in which they are looked for


def find_weights(folder: Path) -> Path:
    """The weight file of a directory.

    Raises:
        UnsupportedFile: There is none under any of the usual names, and not one alone of another.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    if (prefix := tf_bundle.prefix_of(folder)) is not None:
        return tf_bundle.index_path(prefix)
    others = sorted(path for path in folder.glob("*") if path.suffix in _SUFFIXES)
    if len(others) == 1:
        return others[0]
    if others:
        listed = ", ".join(path.name for path in others[:5])
        raise UnsupportedFile(f"{folder}: several files of weights, name one of them: {listed}")
    expected = ", ".join(WEIGHT_FILES)
    raise UnsupportedFile(
        f"{folder}: no weights found: expected {expected}, or a TensorFlow checkpoint"
    )


def find_model(path: Path) -> Path:
    """The model to load at a path: of a training run its best, or its latest; else the path.

    A TensorFlow checkpoint may be given by its prefix, at which there is no file.
    """
    if not path.exists() and (prefix := tf_bundle.prefix_of(path)) is not None:
        return tf_bundle.index_path(prefix)
    if path.is_dir() and not model_files(path):
        for name in RUN_MODELS:
            if (path / name / "config.json").is_file():
                return path / name
    return path


def model_files(folder: Path) -> tuple[str, ...]:
    """The files for which a directory is taken for a model itself, and not for a run that has one.

    A `config.json` alone is enough: what lies beside it is the model, or nothing is.
    """
    return tuple(name for name in ("config.json", *WEIGHT_FILES) if (folder / name).is_file())


def describe(path: Path, wanted: Wanted = EVERYTHING) -> Description | None:
    """What a directory says of its weights.

    The directory is given as itself, or as its weight file under a usual name. None where there is
    no `config.json`; one that lies beside a file of another name is not about it.

    Raises:
        UnsupportedFile: The `config.json` is of another kind of model, or of no known layout.
        ConfigError: It describes a net that cannot be.
        CorruptFile: It is not JSON.
    """
    if path.is_file() and path.name not in WEIGHT_FILES:
        return None
    folder = path if path.is_dir() else path.parent
    path = folder / "config.json"
    if not path.is_file():
        return None
    values = bounded_json.read(path)
    for key, parse in _PARSERS.items():
        if key in values:
            with _naming(str(path)):
                return parse(values, folder, wanted)
    if not wanted.net:
        return None
    raise UnsupportedFile(
        f"{path}: expected the config.json of Transformers, timm, KerasHub or resnetjax"
    )


def describe_metadata(metadata: Mapping[str, Any], path: Path) -> Description | None:
    """What a native `.safetensors` file says of itself; None where it says nothing.

    Raises:
        ConfigError: It describes a net that cannot be.
        CorruptFile: It is not JSON.
    """
    if native.NAME not in metadata:
        return None
    what = f"{path}: its metadata"
    with _naming(what):
        values = bounded_json.loads(str(metadata[native.NAME]).encode(), what=what)
        return native.parse(values, path, EVERYTHING)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Says where a value that is not allowed was found, also one of another type than expected."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    except ResNetJAXError:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"{what}: malformed: {error!r}") from error


def compose(described: Description) -> dict[str, bytes]:
    """The files that say this beside the weights, in the description's layout, by their names.

    Raises:
        ConfigError: That layout cannot say it; the message names the fields.
    """
    files = _COMPOSERS[described.layout](described)
    return {name: f"{json.dumps(values, indent=1)}\n".encode() for name, values in files.items()}


def leftovers(folder: Path, written: Iterable[str]) -> list[Path]:
    """What another model's description left in a directory that a model is to be written into.

    Args:
        folder: Any directory.
        written: The names of the files that are written there.

    Raises:
        ConfigError: It holds other weights, which would be taken for a part of the model; or it is
            a training run, whose models would no longer be found.
    """
    if run := next((x for x in RUN_MODELS if (folder / x / "config.json").is_file()), None):
        raise ConfigError(f"{folder} is a training run, whose model is in {run}: save elsewhere")
    weights = re.compile("|".join(map(re.escape, (*WEIGHT_FILES, KERASHUB_HEAD))) + f"|{_SHARD}")
    kept = set(written)
    others = [path for path in sorted(folder.iterdir()) if path.name not in kept and path.is_file()]
    if held := [path.name for path in others if weights.fullmatch(path.name)]:
        raise ConfigError(
            f"{folder} holds the weights of another model ({', '.join(held[:5])}): save elsewhere, "
            "or remove them"
        )
    return [path for path in others if path.name in _NEIGHBOURS]


_NEIGHBOURS = (
    transformers.PROCESSOR,
    "processor_config.json",
    kerashub.TASK,
    kerashub.TASK_PREPROCESSOR,
    kerashub.IMAGE_CONVERTER,
)
_SHARD = r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)"

# By the key that a layout's `config.json` alone has.
_PARSERS: dict[str, Callable[[Mapping[str, Any], Path, Wanted], Description]] = {
    "format": native.parse,
    "model_type": transformers.parse,
    "architecture": timm.parse,
    "registered_name": kerashub.parse,
}
_COMPOSERS: dict[str, Callable[[Description], dict[str, dict[str, Any]]]] = {
    native.NAME: native.compose,
    "transformers": transformers.compose,
    "timm": timm.compose,
    "kerashub": kerashub.compose,
}
