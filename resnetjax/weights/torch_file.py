"""Files written by torch.save, of any version, as plain Python containers of numpy arrays."""

import os
from typing import Any

import numpy as np

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import torch_pickle
from resnetjax.weights.mapped import Viewer, dtype_named, map_file
from resnetjax.weights.torch_containers import Container, Kind, Storage, detect, open_container
from resnetjax.weights.torch_names import DTYPES, Name, NumpyType, Persistent, Tensor

MAX_DEPTH = 64
MAX_OBJECTS = 500_000


def read(path: str | os.PathLike[str]) -> Any:
    """Returns the object that was saved, with read-only arrays in place of tensors.

    The arrays of a zip file are views of the mapped file: reading costs neither time nor memory
    until they are used, and no checksum is computed. Parameters and storages become arrays too;
    OrderedDict, Counter and argparse.Namespace become dict, torch.Size tuple, numpy scalars Python
    numbers; dtypes and devices become text.

    Raises:
        UnsafeWeights: The file asks to run code, or for more than its size can justify.
        UnsupportedFile: torch.save did not write it, or it holds sparse, quantised or meta tensors.
        CorruptFile: It is truncated or contradicts itself.
        OSError: There is no such file, or it cannot be read.
    """
    data = map_file(path)
    if (kind := detect(data)) is None:
        if torch_pickle.detect(data):
            torch_pickle.load(data)  # says so if it is unsafe
        raise UnsupportedFile(f"torch.save did not write {os.fspath(path)}")
    return parse(data, kind)


def parse(data: memoryview, kind: Kind) -> Any:
    """Returns the object in the bytes of a file; raises as `read` does."""
    container = open_container(data, kind)
    return _Builder(container, file_size=len(data)).build(container.value)


class _Builder:
    """Turns what a pickle describes into arrays and plain containers, within bounds."""

    def __init__(self, container: Container, *, file_size: int) -> None:
        self.resolve = container.resolve
        self.viewer = Viewer(file_size=file_size)
        self.arrays: dict[int, np.ndarray] = {}
        self.objects = 0

    def build(self, value: Any, depth: int = 0) -> Any:
        self.objects += 1
        # Containers may share parts or hold themselves: followed naively, they may have no end.
        if depth > MAX_DEPTH or self.objects > MAX_OBJECTS:
            raise UnsafeWeights(
                f"the file nests over {MAX_DEPTH} deep, or unfolds to over {MAX_OBJECTS:,} objects"
            )
        match value:
            case dict():
                return {key: self.build(item, depth + 1) for key, item in value.items()}
            case Tensor():
                return self.tensor(value)
            case Persistent():
                return self.stored(value)
            case list():
                return [self.build(item, depth + 1) for item in value]
            case tuple():
                return tuple([self.build(item, depth + 1) for item in value])
            case Name():
                return value.text
            case NumpyType():
                return value.dtype.name
        return value

    def tensor(self, tensor: Tensor) -> np.ndarray:
        if id(tensor) not in self.arrays:
            self.arrays[id(tensor)] = self.view(tensor)
        return self.arrays[id(tensor)]

    def view(self, tensor: Tensor) -> np.ndarray:
        if type(tensor.storage) is not Persistent:
            raise CorruptFile("a tensor has no storage")
        if type(tensor.shape) is not tuple or type(tensor.strides) is not tuple:
            raise CorruptFile("a tensor has no shape or no strides")
        storage = self.resolve(tensor.storage.id)
        if not isinstance(storage, Storage):
            raise CorruptFile("a tensor has another tensor for its storage")
        return self.viewer.view(
            storage.content,
            dtype_named(storage.dtype if tensor.dtype is None else _dtype(tensor.dtype)),
            shape=tensor.shape,
            strides=tensor.strides,
            offset=tensor.offset,
        )

    def stored(self, reference: Persistent) -> np.ndarray:
        found = self.resolve(reference.id)
        if isinstance(found, Tensor):
            return self.tensor(found)
        dtype = dtype_named(found.dtype)
        return self.viewer.view(found.content, dtype, shape=(len(found.content) // dtype.itemsize,))


def _dtype(name: Any) -> str:
    if type(name) is not Name or (dtype := name.text.removeprefix("torch.")) not in DTYPES:
        raise CorruptFile("a tensor has a dtype that is not a dtype")
    return dtype
