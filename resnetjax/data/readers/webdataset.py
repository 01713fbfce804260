"""WebDataset's shards: tars in which an image and its label are neighbours of one name."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnetjax.data.readers.cache import Index, cached_index
from resnetjax.data.readers.example import Example, checked_index
from resnetjax.data.readers.open_files import ByteFile, OpenFiles
from resnetjax.data.readers.tar_files import TarMember, members
from resnetjax.errors import CorruptFile, UnsupportedFile

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABELS = ("cls", "json")  # in the order in which they are preferred
_MAX_LABEL = 1 << 20  # bytes

# webdataset/tariterators.py: base_plus_ext. The key ends at the first dot of the file's name.
_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)


def expand_braces(path: Path) -> list[Path]:
    """The paths that a pattern such as "train-{0000..0012}.tar" stands for.

    Example:
        >>> [path.name for path in expand_braces(Path("train-{08..10}.tar"))]
        ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    match = re.search(r"\{(\d+)\.\.(\d+)\}", str(path))
    if match is None:
        return [path]
    first, last = match[1], match[2]
    head, tail = str(path)[: match.start()], str(path)[match.end() :]
    numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [file for number in numbers for file in expand_braces(Path(f"{head}{number}{tail}"))]


class WebDataset:
    """The samples of some shards: `jpg`, `jpeg`, `png` or `webp` beside `cls` or `json`.

    `cls` is a number in ASCII, `json` an object with a number "label". A sample that lacks one of
    them is damaged, and the others are not.

    Args:
        paths: The shards.
        cache: The folder for the index; None for the usual one.

    Raises:
        CorruptFile: A shard is cut off or damaged.
        UnsupportedFile: No sample has both an image and a label.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, paths: Sequence[Path], *, cache: Path | None = None) -> None:
        self._files = OpenFiles(paths, ByteFile)
        self._index = cached_index("webdataset", paths, lambda: _build(paths), folder=cache)
        columns = self._index
        if not np.any((columns["image_size"] > 0) & (columns["label_size"] > 0)):
            raise UnsupportedFile(
                f"{paths[0]}: no name has both an image ({', '.join(_IMAGES)}) and a label "
                f"({', '.join(_LABELS)}), as WebDataset would have them"
            )

    def __len__(self) -> int:
        return len(self._index["shard"])

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        row = {name: column[index] for name, column in self._index.items()}
        path = self._files.paths[row["shard"]]
        name = f"{path.name}:{bytes(row['name']).decode('utf-8', 'surrogateescape')}"
        file = self._files[int(row["shard"])]
        if row["image_size"] < 0:
            raise CorruptFile(f"{name} has no image ({', '.join(_IMAGES)})")
        image = file.read(int(row["image_start"]), int(row["image_size"]))
        if not 0 <= row["label_size"] <= _MAX_LABEL:
            raise CorruptFile(f"{name} has no label ({', '.join(_LABELS)})")
        content = file.read(int(row["label_start"]), int(row["label_size"]))
        try:
            label = _parse_label(content, is_json=bool(row["is_json"]))
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{name} has the label {content!r:.80}: {error}") from error
        return Example(image=image, label=label, name=name)


def _parse_label(content: bytes, *, is_json: bool) -> int:
    value = content.decode("ascii").strip() if not is_json else json.loads(content)
    if is_json:
        value = value.get("label") if isinstance(value, dict) else None
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        raise ValueError("not a number from 0 on")
    return int(str(value))


def _build(paths: Sequence[Path]) -> Index:
    rows = []
    for number, path in enumerate(paths):
        key, sample = None, {}
        for member in members(ByteFile(path)):
            match = _KEY.fullmatch(member.name)
            if match is None:
                continue
            if match[1] != key:
                rows += _row(number, key, sample)
                key, sample = match[1], {}
            sample.setdefault(match[2].lower(), member)
        rows += _row(number, key, sample)
    names = ("shard", "image_start", "image_size", "label_start", "label_size", "is_json", "name")
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    dtypes = (np.int32, *[np.int64] * 4, np.bool_, np.bytes_)
    return {
        name: np.array(column, dtype)
        for name, column, dtype in zip(names, columns, dtypes, strict=True)
    }


def _row(number: int, key: str | None, sample: dict[str, TarMember]) -> list[tuple]:
    image, label = _pick(sample, _IMAGES), _pick(sample, _LABELS)
    if image is None and label is None:
        return []
    is_json = label is not None and label.name.lower().endswith("json")
    label = label or TarMember("", -1, -1)
    name = image.name if image else str(key)
    start, size = (image.start, image.size) if image else (-1, -1)
    encoded = name.encode("utf-8", "surrogateescape")
    return [(number, start, size, label.start, label.size, is_json, encoded)]


def _pick(sample: dict[str, TarMember], kinds: Sequence[str]) -> TarMember | None:
    """The first of these kinds: "jpg" before "png", and both before "mask.png"."""
    for kind in kinds:
        if kind in sample:
            return sample[kind]
    return next((m for name, m in sample.items() if name.rsplit(".", 1)[-1] in kinds), None)
