"""Files written by torch.save, of any version, as plain Python containers of numpy arrays."""

import os
from typing import Any

import numpy as np

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import torch_pickle
from resnetjax.weights.mapped import Viewer, dtype_named, map_file
from resnetjax.weights.torch_containers import Container, Kind, Storage, detect, open_container
from resnetjax.weights.torch_names import (
    DTYPES,
    Described,
    Name,
    NumpyType,
    Persistent,
    Tensor,
)

MAX_DEPTH = 64
MAX_OBJECTS = 500_000
MAX_MODULES = 20_000  # a net of 1001 layers has about 3,000
MAX_PATH = 1000
MAX_ATTRIBUTES = 1000  # of a module; torch's own have 30
MAX_TEXT = 200


class Module(dict[str, np.ndarray]):
    """The state dict of a module that was saved whole, and the modules that it is of.

    Attributes:
        parts: The attributes of every module by its path, "" for the whole, and as `class` the name
            of its class, and as `parts` their number: numbers and short texts, or tuples of a few,
            else the kind of value. `_hooks` says that functions run around it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, dict[str, Any]] = {}


def read(path: str | os.PathLike[str]) -> Any:
    """Returns the object that was saved, with read-only arrays in place of tensors.

    The arrays of a zip file are views of the mapped file: reading costs neither time nor memory
    until they are used, and no checksum is computed. Parameters and storages become arrays too;
    OrderedDict, Counter and argparse.Namespace become dict, torch.Size tuple, numpy scalars Python
    numbers; dtypes and devices become text, as do objects of other classes, which are not made:
    their class's name. A module that was saved whole becomes a `Module`.

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
        self.modules: dict[int, tuple[Any, ...]] = {}
        self.objects = 0

    def enter(self, depth: int) -> None:
        # Containers may share parts or hold themselves: followed naively, they may have no end.
        self.objects += 1
        if depth > MAX_DEPTH or self.objects > MAX_OBJECTS:
            raise UnsafeWeights(
                f"the file nests over {MAX_DEPTH} deep, or unfolds to over {MAX_OBJECTS:,} objects"
            )

    def build(self, value: Any, depth: int = 0) -> Any:
        self.enter(depth)
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
            case Described():
                return self.described(value, depth)
            case NumpyType():
                return value.dtype.name
        return value

    def described(self, value: Described, depth: int) -> Any:
        if "_modules" not in value.attributes:
            return value.cls.text
        module = Module()
        self.module(value, "", depth, module)
        return module

    def module(self, value: Described, prefix: str, depth: int, found: Module) -> None:
        """Adds a module's arrays and parts, and those of the modules in it, by their paths."""
        self.enter(depth)
        if len(prefix) > MAX_PATH or len(found.parts) >= MAX_MODULES:
            raise UnsafeWeights(
                f"the file holds a module of over {MAX_MODULES:,} parts, or one whose path is over "
                f"{MAX_PATH:,} long"
            )
        if id(value) not in self.modules:  # which others may share
            self.modules[id(value)] = _parts_of(value)
        part, tensors, modules, lost = self.modules[id(value)]
        self.objects += len(tensors) + len(modules) + len(lost)
        found.parts[prefix.removesuffix(".")] = part
        for name, tensor in tensors.items():
            if name not in lost and isinstance(tensor, Tensor | Persistent):
                found[f"{prefix}{name}"] = self.build(tensor, depth + 1)
        for name, inner in modules.items():
            if isinstance(inner, Described):
                self.module(inner, f"{prefix}{name}.", depth + 1, found)

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


def _parts_of(value: Described) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], set[Any]]:
    """What is said of a module, its arrays, its modules, and the arrays that no state dict has."""
    # Where torch.nn.Module keeps them (torch/nn/modules/module.py: `state_dict`).
    attributes = value.attributes
    if len(attributes) > MAX_ATTRIBUTES:
        raise UnsafeWeights(f"the file holds a module of over {MAX_ATTRIBUTES:,} attributes")
    public = {x: y for x, y in attributes.items() if type(x) is str and not x.startswith("_")}
    part = {name: _plain(x) for name, x in public.items()}
    part = {name: x for name, x in part.items() if x is not None}
    if attributes.get("_forward_hooks") or attributes.get("_forward_pre_hooks"):
        part["_hooks"] = True
    tensors = _members(value, "_parameters") | _members(value, "_buffers")
    lost = attributes.get("_non_persistent_buffers_set")
    modules = _members(value, "_modules")
    part |= {"class": value.cls.text, "parts": len(modules)}
    return part, tensors, modules, lost if isinstance(lost, set) else set()


def _members(value: Described, kind: str) -> dict[str, Any]:
    found = value.attributes.get(kind)
    if not isinstance(found, dict) or any(type(name) is not str or "." in name for name in found):
        raise CorruptFile(f"a {value.cls.text:.200} has {kind} that are not named")
    return found


def _plain(value: Any) -> Any:
    """A number or a text, or a few of them; of anything else the kind, and of nothing nothing."""
    if type(value) in (list, tuple) and len(value) <= 8:
        items = tuple(_plain(item) for item in value if type(item) in (int, float, str, bool))
        return items if len(items) == len(value) else f"a {type(value).__name__}"
    if type(value) in (int, float, bool) or (type(value) is str and len(value) <= MAX_TEXT):
        return value
    return None if value is None else f"a {type(value).__name__}"


def _dtype(name: Any) -> str:
    if type(name) is not Name or (dtype := name.text.removeprefix("torch.")) not in DTYPES:
        raise CorruptFile("a tensor has a dtype that is not a dtype")
    return dtype
