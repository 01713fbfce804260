"""Examples in two arrays."""

import numpy as np
from jaxtyping import Integer, UInt8

from resnetjax.data.readers.example import Example, checked_index
from resnetjax.errors import CorruptFile, UnsupportedFile


class ArrayDataset:
    """Images and labels in two arrays.

    Args:
        images: One image after the other; grey ones may lack the axis of channels.
        labels: Their classes, from 0.
        name: What an error message calls the whole.
        class_names: Names of the classes, or nothing.

    Raises:
        UnsupportedFile: The arrays do not have these shapes and dtypes.
    """

    def __init__(
        self,
        images: UInt8[np.ndarray, "examples height width *channels"],
        labels: Integer[np.ndarray, "examples"],
        *,
        name: str,
        class_names: tuple[str, ...] = (),
    ) -> None:
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UnsupportedFile(
                f"{name}: the images are {images.dtype}{list(images.shape)}, where "
                f"uint8[examples, height, width], with or without channels, is read"
            )
        self._images = images[..., np.newaxis] if images.ndim == 3 else images
        self.labels = checked_labels(labels, count=len(images), name=name)
        self._name = name
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        return Example(self._images[index], int(self.labels[index]), f"{self._name}:{index}")


def checked_labels(labels: np.ndarray, *, count: int, name: str) -> Integer[np.ndarray, "examples"]:
    """The labels without an axis of length 1, which Keras's CIFAR-10 and MedMNIST have.

    Raises:
        UnsupportedFile: They are not as many whole numbers.
        CorruptFile: One is below 0.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UnsupportedFile(
            f"{name}: the labels are {labels.dtype}{list(labels.shape)}, where whole numbers of "
            f"shape [{count}] are read"
        )
    if count and labels.min() < 0:
        raise CorruptFile(f"{name}: a label is {labels.min()}")
    return labels
