"""CIFAR-10 and CIFAR-100 in their authors' binary version (cs.toronto.edu/~kriz/cifar.html)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnetjax.data import labels
from resnetjax.data.readers.example import Dataset, Example, checked_index
from resnetjax.data.readers.open_files import ByteFile, OpenFiles
from resnetjax.errors import CorruptFile, UnsupportedFile

EDGE_PX = 32
_PIXELS = 3 * EDGE_PX * EDGE_PX  # a plane of reds, one of greens, one of blues


class Layout(NamedTuple):
    """Where a version keeps what.

    Attributes:
        folder: What its archive unpacks to.
        train: Its files of records.
        test: Likewise.
        label_bytes: Before the pixels of a record; the last of them is the class.
        classes: The name of its labels.
        pickled: What the archive of its Python version unpacks to.
        pickles: Files that tell that version.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int
    classes: str
    pickled: str
    pickles: frozenset[str]


_LAYOUTS = (
    Layout(
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        label_bytes=1,
        classes="cifar10",
        pickled="cifar-10-batches-py",
        pickles=frozenset(("batches.meta", "data_batch_1", "test_batch")),
    ),
    Layout(
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        label_bytes=2,  # the coarse one first
        classes="cifar100",
        pickled="cifar-100-python",
        pickles=frozenset(("meta", "train", "test")),
    ),
)


class CifarFiles:
    """Records of some bytes of labels and 3,072 of pixels, read at random from their files.

    Raises:
        CorruptFile: A file is missing or cut off, or a label is of no class.
    """

    def __init__(self, paths: Sequence[Path], layout: Layout) -> None:
        self.class_names = labels.get(layout.classes).names
        self._label_bytes = layout.label_bytes
        self._size = layout.label_bytes + _PIXELS
        of_files = [self._labels_of(path) for path in paths]
        self._ends = np.cumsum([len(of_file) for of_file in of_files])
        self.labels = np.concatenate(of_files)
        self._files = OpenFiles(paths, ByteFile)

    def _labels_of(self, path: Path) -> np.ndarray:
        if not path.is_file():
            raise CorruptFile(f"{path} is missing")
        size = path.stat().st_size
        if not size or size % self._size:
            raise CorruptFile(
                f"{path} has {size:,} bytes, where a multiple of {self._size:,} is expected: the "
                "size of a record"
            )
        records = np.memmap(path, np.uint8, mode="r").reshape(-1, self._size)
        found = records[:, self._label_bytes - 1].astype(np.int32)
        if found.max() >= len(self.class_names):
            raise CorruptFile(
                f"{path}: a label is {found.max()}, of {len(self.class_names)} classes"
            )
        return found

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        number = int(np.searchsorted(self._ends, index, side="right"))
        record = index - (int(self._ends[number - 1]) if number else 0)
        pixels = self._files[number].read(record * self._size + self._label_bytes, _PIXELS)
        planes = np.frombuffer(pixels, np.uint8).reshape(3, EDGE_PX, EDGE_PX)
        name = f"{self._files.paths[number].name}:{record}"
        return Example(planes.transpose(1, 2, 0), int(self.labels[index]), name)


def cifar_splits(
    root: Path, files: Iterable[Path], folders: Iterable[str]
) -> Mapping[str, Callable[[], Dataset]] | None:
    """What opens "train" and "test" of a folder, or of the only one of these names in it.

    Returns:
        None where there is none.

    Raises:
        UnsupportedFile: There are several, or only the Python version, which is pickled.
    """
    names = {path.name for path in files}
    found = [
        (root if layout.train[0] in names else root / layout.folder, layout)
        for layout in _LAYOUTS
        if names.issuperset((layout.train[0], layout.test[0])) or layout.folder in folders
    ]
    if len(found) > 1:
        listed = ", ".join(str(folder) for folder, _ in found)
        raise UnsupportedFile(f"{root} has several data sets: open one of {listed}")
    for layout in () if found else _LAYOUTS:
        if layout.pickled in folders or names >= layout.pickles:
            raise UnsupportedFile(
                f"{root} has {layout.pickled}, whose pickles could run any code and are not read: "
                f"unpack the binary version, {layout.folder}, from cs.toronto.edu/~kriz/cifar.html"
            )
    if not found:
        return None
    ((folder, layout),) = found
    return {
        split: (lambda paths=paths: CifarFiles([folder / name for name in paths], layout))
        for split, paths in (("train", layout.train), ("test", layout.test))
    }
