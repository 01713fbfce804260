"""Examples in Parquet files, as Hugging Face's hub has them."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnetjax.data.readers.example import Dataset, Example, checked_index
from resnetjax.data.readers.open_files import OpenFiles
from resnetjax.data.readers.splits import group
from resnetjax.errors import CorruptFile, MissingExtra, UnsupportedFile

_ROW_GROUPS_KEPT = 4
_IMAGE_COLUMNS = ("image", "img", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


class ParquetDataset:
    """The rows of some Parquet files: an image (bytes, or a struct with `bytes`) and a label.

    A row cannot be read without its whole row group (100 to 1,000 images on the hub), of which the
    last four are kept, and one thread reads at a time. In random order that is slow: prepare the
    data for it (`resnetjax.data.prepare`).

    Args:
        paths: Files of one schema.

    Raises:
        CorruptFile: A file is cut off, or its footer is damaged.
        MissingExtra: pyarrow is not installed.
        UnsupportedFile: No column is the image, or none the label.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = OpenFiles(paths, _open)
        self._groups: list[tuple[int, int]] = []  # file, and row group in it
        self._file_starts: list[int] = []
        counts: list[int] = []
        for number, path in enumerate(paths):
            file = self._files[number]
            columns = _columns(path, file.schema_arrow)
            if number == 0:
                self._image, self._label, self.class_names = columns
            elif columns != (self._image, self._label, self.class_names):
                raise UnsupportedFile(f"{path} has other columns or classes than {paths[0]}")
            self._file_starts.append(sum(counts))
            for row_group in range(file.metadata.num_row_groups):
                self._groups.append((number, row_group))
                counts.append(file.metadata.row_group(row_group).num_rows)
        self._starts = np.cumsum([0, *counts])
        if not len(self):
            raise UnsupportedFile(f"{paths[0]} has no rows")
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, tuple[Any, Any]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        position = int(np.searchsorted(self._starts, index, side="right")) - 1
        number, row = self._groups[position][0], index - int(self._starts[position])
        path = self._files.paths[number]
        name = f"{path.name}:{index - self._file_starts[number]}"
        images, labels = self._row_group(position, name)
        image, label = images[row].as_py(), labels[row].as_py()
        if isinstance(image, dict):
            name = f"{path.name}:{image['path']}" if image.get("path") else name
            image = image.get("bytes")
        if not isinstance(image, bytes) or not isinstance(label, int) or label < 0:
            raise CorruptFile(f"{name} has no image or no label")
        return Example(image=image, label=label, name=name)

    def _row_group(self, position: int, name: str) -> tuple[Any, Any]:
        import pyarrow

        number, row_group = self._groups[position]
        with self._lock:
            if position in self._kept:
                self._kept.move_to_end(position)
                return self._kept[position]
            try:
                # Without its threads, which do not survive a fork.
                table = self._files[number].read_row_group(
                    row_group, columns=[self._image, self._label], use_threads=False
                )
            except (pyarrow.ArrowException, OSError) as error:
                raise CorruptFile(f"{name}: {error}") from error
            self._kept[position] = table[self._image], table[self._label]
            if len(self._kept) > _ROW_GROUPS_KEPT:
                self._kept.popitem(last=False)
            return self._kept[position]

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in self.__dict__.items() if name not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def parquet_splits(paths: Sequence[Path]) -> Mapping[str, Callable[[], Dataset]]:
    """The splits of some files, told by their names: what opens each.

    Raises:
        CorruptFile: Some of a numbered sequence are missing.
    """

    def opener(files: Sequence[Path]) -> Callable[[], Dataset]:
        return lambda: ParquetDataset(files)

    return {name: opener(files) for name, files in group(paths).items()}


def _open(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra('reading parquet needs pyarrow: pip install "resnetjax[data]"'
                           ) from error  # fmt: skip
    try:
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise CorruptFile(f"{path} is not a whole parquet file: {error}") from error


def _columns(path: Path, schema: Any) -> tuple[str, str, tuple[str, ...]]:
    """The columns of images and labels, and the names of the classes."""
    features = _features(path, schema)
    kinds = {n: f.get("_type") for n, f in features.items() if isinstance(f, dict)}
    image = _pick(schema.names, _IMAGE_COLUMNS, [n for n in kinds if kinds[n] == "Image"])
    label = _pick(schema.names, _LABEL_COLUMNS, [n for n in kinds if kinds[n] == "ClassLabel"])
    if image is None or label is None:
        kind = "an image" if image is None else "a label"
        raise UnsupportedFile(
            f"{path}: no column is {kind}: looked for {', '.join(_IMAGE_COLUMNS)} and "
            f"{', '.join(_LABEL_COLUMNS)}, found {', '.join(schema.names)}"
        )
    names = features.get(label, {}).get("names") or ()
    return image, label, tuple(map(str, names))


def _pick(names: Sequence[str], known: Sequence[str], typed: Sequence[str]) -> str | None:
    """The column of a known name, or else the only one of the right type."""
    found = next((name for name in known if name in names), None)
    return typed[0] if found is None and len(typed) == 1 and typed[0] in names else found


def _features(path: Path, schema: Any) -> dict[str, Any]:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(f"{path}: its metadata 'huggingface' is damaged: {error!r}") from error
    return features if isinstance(features, dict) else {}
