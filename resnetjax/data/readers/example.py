"""What every data set gives: examples by number."""

import operator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from resnetjax.errors import BadImage


@dataclass(frozen=True)
class Example:
    """An image and what is known of it, not yet decoded.

    Attributes:
        image: The bytes of a file, as `preprocess.decode` takes it, or uint8[height, width, channels].
        label: The class, from 0; or float32[outputs], one value for each of the data set's columns.
        name: What an error message calls it: a path, or "train-00012.tar:n01440764_10026.JPEG".
    """

    image: bytes | np.ndarray
    label: int | np.ndarray
    name: str


class Dataset(Protocol):
    """Examples in a fixed order, read at random by any thread.

    Pickled, a data set carries its index but neither open files nor their content: each process
    opens what it reads.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of every class, in the order of the labels; empty where they are unknown."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """One example.

        Raises:
            IndexError: The index is below 0 or not below the length.
            BadImage: The file of this example cannot be read.
            CorruptFile: This example is damaged; the message names it.
        """
        ...


def checked_index(index: int, length: int) -> int:
    """The index as an `int`.

    Raises:
        IndexError: It is below 0 or not below the length.
    """
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"example {index} of {length}")
    return index


def image_bytes(path: str) -> bytes:
    """The content of an image's file.

    Raises:
        BadImage: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImage(f"{path}: {error.strerror}") from error
