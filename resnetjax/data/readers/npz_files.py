"""Examples in `.npz` files."""

import math
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnetjax.data.readers.arrays import ArrayDataset, checked_labels
from resnetjax.data.readers.example import Dataset, Example, checked_index
from resnetjax.data.readers.splits import WORDS
from resnetjax.errors import CorruptFile, UnsupportedFile

LAYOUTS = (
    "x_train, y_train (Keras), train_images, train_labels, train_jpeg, train_offsets, train_labels"
    " (files end to end) or the like for another split, or images, labels"
)


# What zipfile and NumPy raise on a damaged file.
_DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError, ValueError, EOFError)


class Split(NamedTuple):
    """The members of an `.npz` that make a split; `offsets` if its images are files end to end."""

    images: str
    labels: str
    offsets: str | None = None


class _EncodedDataset:
    """Images that are files, end to end in one array."""

    def __init__(
        self, content: np.ndarray, offsets: np.ndarray, labels: np.ndarray, name: str
    ) -> None:
        fits = (
            (content.dtype, content.ndim, offsets.ndim) == (np.uint8, 1, 1)
            and offsets.dtype.kind in "iu"
            and len(offsets) > 0
            and (offsets[0], offsets[-1]) == (0, len(content))
            and bool(np.all(offsets[1:] >= offsets[:-1]))
        )
        if not fits:
            raise CorruptFile(f"{name}: the offsets do not rise from 0 to the end of the images")
        self._content, self._offsets, self._name = content, offsets, name
        self.labels = checked_labels(labels, count=len(offsets) - 1, name=name)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        start, stop = (int(offset) for offset in self._offsets[index : index + 2])
        image = self._content[start:stop].tobytes()
        return Example(image, int(self.labels[index]), f"{self._name}:{index}")


class NpzDataset:
    """A split of an `.npz` file, in memory; pickled, it is its path, and is read again.

    Args:
        path: The file.
        split: The members that it consists of.

    Raises:
        CorruptFile: The file is cut off or damaged.
        UnsupportedFile: An array has another dtype or shape than is read.
    """

    def __init__(self, path: Path, split: Split) -> None:
        self._path, self._split = path, split
        self._start()
        self._length = len(self._arrays())
        self.class_names: tuple[str, ...] = ()
        if "classes" in _member_names(path):
            (classes,) = _read_members(path, ["classes"])
            self.class_names = tuple(map(str, classes.tolist()))

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._loaded: ArrayDataset | _EncodedDataset | None = None

    def _arrays(self) -> "ArrayDataset | _EncodedDataset":
        with self._lock:
            if self._loaded is None:
                names = [name for name in self._split if name is not None]
                images, labels, *offsets = _read_members(self._path, names)
                name = self._path.name
                self._loaded = (
                    _EncodedDataset(images, offsets[0], labels, name)
                    if offsets
                    else ArrayDataset(images, labels, name=name)
                )
            return self._loaded

    @property
    def labels(self) -> np.ndarray:
        """Of the examples, in their order."""
        return self._arrays().labels

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self._arrays()[checked_index(index, len(self))]

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in self.__dict__.items() if name not in ("_lock", "_loaded")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def npz_splits(path: Path) -> Mapping[str, Callable[[], Dataset]]:
    """The splits of an `.npz` file, "" for one without a name: what opens each.

    Raises:
        CorruptFile: The file is no zip archive, or is cut off.
        UnsupportedFile: It has no members of these names.
    """
    names = _member_names(path)
    choices = {"": Split("images", "labels")}
    for word in sorted(WORDS):
        choices[f"{word} "] = Split(f"x_{word}", f"y_{word}")
        choices[f"{word}  "] = Split(f"{word}_images", f"{word}_labels")
        choices[word] = Split(f"{word}_jpeg", f"{word}_labels", f"{word}_offsets")
    found = {
        word.strip(): split
        for word, split in choices.items()
        if all(member in names for member in split if member is not None)
    }
    if not found:
        raise UnsupportedFile(f"{path}: looked for {LAYOUTS}; found {', '.join(names) or 'none'}")
    return {word: (lambda split=split: NpzDataset(path, split)) for word, split in found.items()}


def _member_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CorruptFile(f"{path} is not a whole npz file: {error}") from error


def _read_members(path: Path, names: list[str]) -> list[np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [_read_member(archive, f"{name}.npy", path.stat().st_size) for name in names]
    except _DAMAGE as error:
        raise CorruptFile(f"{path} is not a whole npz file: {error}") from error


def _read_member(archive: zipfile.ZipFile, name: str, file_size: int) -> np.ndarray:
    """An array, of which memory is taken only if its header and the archive agree on its size."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{name} is of version {version}")
        shape, _, dtype = read_header(file)
        size = math.prod(shape) * dtype.itemsize
        info = archive.getinfo(name)
        # Deflate makes at most 1,032 bytes of one (zlib.net/zlib_tech.html).
        if dtype.hasobject or file.tell() + size != info.file_size:
            raise ValueError(f"{name} says {dtype}{list(shape)}, but has {info.file_size} bytes")
        if info.file_size > 1032 * min(info.compress_size, file_size):
            raise ValueError(f"{name} says that it has {info.file_size} bytes, which cannot be")
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
