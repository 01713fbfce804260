"""The names that a torch checkpoint may hold, and the plain data that each stands for.

A pickle calls functions by name. Here no name is ever imported: it is compared with the tables
below, whose constructors are our own and build data from data. These names are those of
`torch/_weights_only_unpickler.py`, less the ones that create objects. Of every other only what is
named as a class passes, as a text: an object of it is what the pickle says of it, no more.
"""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile

DTYPES = {
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64"),
    *("bool", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
}
"""Dtypes by torch's name, which is also their name in numpy or ml_dtypes."""

_KINDS = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "Bool": "bool",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
}
_PACKAGES = ("torch", "torch.cuda")
MAX_NAME = 500

STORAGES = {
    f"{package}.{kind}Storage": dtype for package in _PACKAGES for kind, dtype in _KINDS.items()
}
STORAGES |= {"torch.storage.UntypedStorage": "uint8", "torch.storage._UntypedStorage": "uint8"}
"""Storage classes, and the dtype of what they hold."""

# Never called: dtypes occur as metadata, storage classes in ids, tensor classes in tar files.
_INERT = {f"torch.{dtype}" for dtype in DTYPES} | STORAGES.keys()
_INERT |= {f"{package}.{kind}Tensor" for package in _PACKAGES for kind in _KINDS}

_UNREAD = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a wrapper class",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of an accelerator",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of an accelerator",
    "torch._tensor._rebuild_from_type_v2": "a tensor with attributes of its own",
}


@dataclass(frozen=True, slots=True)
class Name:
    """A class, function or dtype by its dotted name; never the thing itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Persistent:
    """A reference to what lies outside the pickle: a storage, or in tar files a tensor."""

    id: Any


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage, as described, unchecked; offset and strides count elements."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any
    dtype: Any = None  # the storage's own


class OrderedMapping(dict):
    """A dict that was an OrderedDict; its attributes (a state dict's `_metadata`) are dropped."""

    __slots__ = ()


class Namespace(dict):
    """A dict that was an argparse.Namespace, in which training scripts keep their arguments."""

    __slots__ = ()


@dataclass(slots=True)
class Described:
    """An object of a class that is unknown here, such as a module: the attributes it was given."""

    cls: Name
    attributes: dict[Any, Any]


@dataclass(slots=True)
class NumpyType:
    """A numpy dtype of numbers, whose byte order arrives later, as its pickled state."""

    dtype: np.dtype

    def set_state(self, state: Any) -> None:
        """Takes (version, byte order, subarray, names, fields, ...); numbers have the first two."""
        if type(state) is not tuple or len(state) < 5 or any(x is not None for x in state[2:5]):
            raise UnsupportedFile("the pickle holds a structured numpy dtype")
        if type(state[1]) is not str or state[1] not in "<>=|":
            raise CorruptFile("the pickle holds a numpy dtype of unknown byte order")
        self.dtype = np.dtype(state[1] + self.dtype.str[1:])


def checked_key(x: Any) -> Any:
    """Returns a dict key or set element, provided that it is cheap to hash and to compare."""
    # Not tuples: hashing a deep one overflows the C stack. Not long integers: many share one hash.
    if type(x) in (str, bytes, bool) or (type(x) is int and -(2**63) <= x < 2**64):
        return x
    raise UnsupportedFile(f"the pickle uses a {type(x).__name__} as a key")


def lookup(module: str, name: str) -> Name:
    """Returns the name that a pickle asks for, provided that it is in the tables or a class's.

    Raises:
        UnsupportedFile: It is a kind of tensor without a numpy array.
        UnsafeWeights: It is anything else.
    """
    text = (
        f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2 wrote the latter
    )
    if text in TABLED:
        return Name(text)
    if text in _UNREAD:
        raise UnsupportedFile(f"the file holds {_UNREAD[text]} ({text}), which is not read")
    if module == "torch" and re.fullmatch(r"\w+(Storage|Tensor)|[a-z]+\d\w*", name):
        raise UnsupportedFile(f"the file holds {text}, which has no numpy dtype")
    package = module.partition(".")[0]
    if len(text) > MAX_NAME:
        raise UnsafeWeights(f"the file asks for a name of {len(text):,} characters")
    if module.startswith(("torch.nn.", "torch._C._nn", "torch.optim.swa_utils")) or (
        # Python's own do things when they are made; torch's are tensors of kinds that are not read.
        package not in {"torch", *sys.stdlib_module_names} and name.lstrip("_")[:1].isupper()
    ):
        return Name(text)
    message = f"the file asks for {text!r:.200}, which is no part of a state dict"
    if package not in sys.stdlib_module_names:
        message += ": save `model.state_dict()` instead"
    raise UnsafeWeights(message)


def _ordered(items: Iterable[Any] = ()) -> OrderedMapping:
    return OrderedMapping((checked_key(key), value) for key, value in items)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    return Tensor(storage, offset, shape, strides)


def _tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, bits: Any = None
) -> Tensor:
    if bits:
        raise UnsupportedFile("the file holds a tensor with its conjugate or negative bit set")
    return Tensor(storage, offset, shape, strides)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    bits: Any = None,
) -> Tensor:
    if bits:
        raise UnsupportedFile("the file holds a tensor with its conjugate or negative bit set")
    return Tensor(storage, offset, shape, strides, dtype)


def _device(kind: str, index: int | None = None) -> str:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise TypeError("torch.device takes a text and an integer")
    return kind if index is None else f"{kind}:{index}"


def _encode(text: str, encoding: str) -> bytes:
    # How protocol 2, which has no opcode for bytes, writes them.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("pickle writes bytes as latin1")
    return text.encode("latin-1")


def _numpy_type(code: str, *_: Any) -> NumpyType:
    if not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
        raise UnsupportedFile(f"the pickle holds a numpy scalar of dtype {code!r:.20}")
    return NumpyType(np.dtype(code))


def _numpy_scalar(kind: NumpyType, content: bytes | str) -> int | float | complex | bool:
    # Python 2 wrote bytes as text; where they happen to be UTF-8 they were decoded on the way here.
    content = content.encode() if isinstance(content, str) else content
    if len(content) != kind.dtype.itemsize:
        raise ValueError("the bytes are not one number")
    return np.frombuffer(content, kind.dtype)[0].item()


CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": lambda counts: _ordered(counts.items()),
    "builtins.set": lambda items: {checked_key(item) for item in items},
    "argparse.Namespace": lambda: Namespace(),
    "_codecs.encode": _encode,
    "torch.Size": lambda sizes: tuple(sizes),
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda tensor, grad, hooks: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, grad, hooks, state: tensor,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
"""What a call in a pickle builds, in no more steps than its arguments have elements."""

TABLED = CONSTRUCTORS.keys() | _INERT
"""Every name that is known."""
