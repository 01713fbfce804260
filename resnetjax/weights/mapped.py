"""Arrays that are views of a file mapped into memory."""

import math
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile

MAX_DIMENSIONS = 64  # numpy's own limit


def map_file(path: str | os.PathLike[str]) -> memoryview:
    """Returns the bytes of a regular file, read-only, paged in as they are used.

    As with every mapped file, whoever truncates it while it is in use ends the process (SIGBUS):
    replace weight files by renaming.

    Raises:
        UnsupportedFile: The path is a directory, a pipe or a device.
        OSError: There is no such file, or it cannot be read.
    """
    # Asked before opening, which blocks on a pipe.
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "special file"
        raise UnsupportedFile(f"a {kind} is not a file of weights")
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # which mmap refuses
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def dtype_named(name: str) -> np.dtype:
    """Returns the dtype of a name such as `float32` (numpy's) or `bfloat16` (ml_dtypes')."""
    return np.dtype(getattr(ml_dtypes, name, name))


class Viewer:
    """Makes arrays of bytes, within a budget that the size of the file justifies.

    Example:
        >>> Viewer(file_size=8).view(bytes(8), np.dtype("int16"), shape=(2, 2)).tolist()
        [[0, 0], [0, 0]]
    """

    def __init__(self, *, file_size: int) -> None:
        # Tensors may share or repeat bytes (expand), but a small file must not claim a huge model.
        self.budget = 3 * file_size + 64 * 2**20

    def view(
        self,
        data: memoryview | bytes,
        dtype: np.dtype,
        *,
        shape: Sequence[Any],
        strides: Sequence[Any] | None = None,
        offset: Any = 0,
    ) -> np.ndarray:
        """Returns a read-only array over `data`; a copy only where the elements are not aligned.

        Args:
            data: The bytes that the array may look at.
            dtype: Of its elements.
            shape: Its shape, as the file gives it: any objects.
            strides: The same for the strides, in elements; None for contiguous ones.
            offset: The same for the index of the first element.

        Raises:
            CorruptFile: An element lies outside `data`, or the numbers are no numbers.
            UnsafeWeights: All arrays together would take memory far beyond the file's size.
        """
        numbers = [offset, *shape, *(strides or ())]
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            # Not shown: they may be containers nested without end.
            raise CorruptFile("a tensor has a shape, strides or offset that are no natural numbers")
        if strides is None:
            strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            raise CorruptFile(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
        size = math.prod(shape)
        last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        end = (offset + last + 1 if size else offset) * dtype.itemsize
        if end > len(data) or math.prod(length or 1 for length in shape) >= 2**48:
            raise CorruptFile(
                f"a tensor of shape {tuple(shape)}, strides {tuple(strides)} and offset {offset} "
                f"does not fit its storage of {len(data):,} bytes"
            )
        self.budget -= size * dtype.itemsize
        if self.budget < 0:
            raise UnsafeWeights("the tensors repeat the bytes of the file many times over")
        if size == 0:
            array = np.empty(tuple(shape), dtype)
        else:
            array = np.ndarray(
                tuple(shape),
                dtype,
                buffer=data,
                offset=offset * dtype.itemsize,
                strides=[stride * dtype.itemsize for stride in strides],
            )
        if not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        return array
