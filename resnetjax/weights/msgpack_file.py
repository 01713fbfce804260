"""Flax's msgpack files as numpy arrays over the mapped file.

Written by `flax.serialization.to_bytes`: nested maps (github msgpack/msgpack, spec.md) whose leaves
are arrays in extension types. Read here rather than by the msgpack package, which copies every
array, believes the lengths of nested lists, and takes the last of equal keys.
"""

import math
import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights.mapped import Viewer, dtype_named

MAX_DEPTH = 64
MAX_NAME = 1000
MAX_PLAIN_BYTES = 4 * 2**20  # of all that is no array: its bytes, and 64 for every value

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # flax/serialization.py: _MsgpackExtType
_CHUNKED = "__msgpack_chunked_array__"
_VALUE_COST = 64
_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bfloat16", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
}
_START = re.compile(
    rb"(?s:[\x81-\x8f]|\xde..|\xdf....)"  # a map
    rb"(?:[\xa1-\xbf]|\xd9[^\0])"  # whose first key is text
    rb"[^\0-\x1f\x7f]"
)


class Msgpack(NamedTuple):
    """The arrays by their path, joined by `/`; and by path the numbers and texts beside them."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


def detect(data: memoryview) -> bool:
    """Returns whether the bytes begin like a map whose keys are texts, whole or not."""
    return _START.match(data[:64]) is not None


def parse(data: memoryview) -> Msgpack:
    """Returns what the bytes of a msgpack file hold, as read-only arrays.

    Raises:
        CorruptFile: It is truncated, or not as msgpack and Flax define it.
        UnsafeWeights: It is nested too deeply, or has more values or text than weights justify.
        UnsupportedFile: It is no map, or has types that Flax does not write.
    """
    decoder = _Decoder(data)
    tree = decoder.value()
    if decoder.position != len(data):
        raise CorruptFile(f"the msgpack file goes on behind its end at {decoder.position:,}")
    if type(tree) is not dict or _CHUNKED in tree:
        raise UnsupportedFile("the msgpack file holds one value, not a map of arrays")
    arrays, metadata = {}, {}
    for path, leaf in _leaves(tree, ""):
        if path in arrays or path in metadata:
            raise CorruptFile(f"two values of the msgpack file have the path {path!r:.80}")
        if isinstance(leaf, np.ndarray) and leaf.ndim:
            arrays[path] = leaf
        else:
            metadata[path] = leaf.item() if isinstance(leaf, np.ndarray) else leaf
    return Msgpack(arrays, metadata)


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    items = tree.items() if type(tree) is dict else enumerate(tree)
    for key, value in items:
        path = f"{prefix}{key}"
        if len(path) > MAX_NAME:
            raise CorruptFile(f"a path in the msgpack file has more than {MAX_NAME:,} characters")
        if type(value) is dict and _CHUNKED in value:
            yield path, _joined(value, path)
        elif type(value) in (dict, list):
            yield from _leaves(value, f"{path}/")
        else:
            if isinstance(value, memoryview):
                raise UnsupportedFile(f"the value of {path!r:.80} is bytes")
            yield path, value


def _joined(tree: dict[str, Any], path: str) -> np.ndarray:
    """Returns an array that was saved in parts because it is large (flax/serialization.py)."""
    shape, chunks = _indexed(tree.get("shape")), _indexed(tree.get("chunks"))
    flat = [chunk for chunk in chunks if isinstance(chunk, np.ndarray) and chunk.ndim == 1]
    dtypes = {chunk.dtype for chunk in flat}
    whole = all(type(length) is int and 0 <= length < 2**63 for length in shape)
    if not whole or len(flat) < len(chunks) or len(dtypes) != 1:
        raise CorruptFile(f"the parts of array {path!r:.80} are not parts of one array")
    if sum(map(len, flat)) != math.prod(shape):
        raise CorruptFile(f"the parts of array {path!r:.80} do not add up to its shape")
    array = np.concatenate(flat)
    return Viewer(file_size=array.nbytes).view(array.view(np.uint8).data, array.dtype, shape=shape)


def _indexed(tree: Any) -> list[Any]:
    """Returns the values of a map whose keys count up from zero."""
    if type(tree) is not dict or list(tree) != [str(i) for i in range(len(tree))]:
        raise CorruptFile("an array is saved in parts that are not numbered")
    return list(tree.values())


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {0xCA + place: struct.Struct(f">{code}") for place, code in enumerate("fdBHIQbhiq")}


class _Decoder:
    """Reads values from bytes, one after another."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0
        self.viewer = Viewer(file_size=len(data))
        self.budget = MAX_PLAIN_BYTES

    def value(self, depth: int = 0) -> Any:
        """Returns the value that is next: a view for bytes, an array for an extension type."""
        if depth > MAX_DEPTH:
            raise UnsafeWeights(f"the msgpack file is nested more than {MAX_DEPTH} deep")
        self._spend(_VALUE_COST)
        kind = self._natural(1)
        if kind <= 0x7F:
            return kind
        if kind <= 0x8F:
            return self._map(kind & 0x0F, depth)
        if kind <= 0x9F:
            return self._list(kind & 0x0F, depth)
        if kind <= 0xBF:
            return self._text(kind & 0x1F)
        if kind >= 0xE0:
            return kind - 0x100
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            return _NUMBERS[kind].unpack(self._take(_NUMBERS[kind].size))[0]
        match kind:
            case 0xC4 | 0xC5 | 0xC6:
                return self._take(self._natural(1 << kind - 0xC4))
            case 0xC7 | 0xC8 | 0xC9:
                return self._extension(self._natural(1 << kind - 0xC7), depth)
            case 0xD4 | 0xD5 | 0xD6 | 0xD7 | 0xD8:
                return self._extension(1 << kind - 0xD4, depth)
            case 0xD9 | 0xDA | 0xDB:
                return self._text(self._natural(1 << kind - 0xD9))
            case 0xDC | 0xDD:
                return self._list(self._natural(2 << kind - 0xDC), depth)
            case 0xDE | 0xDF:
                return self._map(self._natural(2 << kind - 0xDE), depth)
        raise CorruptFile(f"the msgpack file has a value of no kind at byte {self.position - 1:,}")

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        values = {}
        for _ in range(count):
            if type(key := self.value(depth + 1)) is not str:
                raise UnsupportedFile("the msgpack file has a map whose keys are not texts")
            if key in values:
                raise CorruptFile(f"the msgpack file has the key {key!r:.80} twice in a map")
            values[key] = self.value(depth + 1)
        return values

    def _list(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(count)]

    def _extension(self, size: int, depth: int) -> Any:
        kind, end = self._natural(1), self.position + size
        if kind not in (_ARRAY, _COMPLEX, _SCALAR):
            raise UnsupportedFile(f"the msgpack file has an extension type {kind}, unlike Flax")
        if end > len(self.data):
            raise CorruptFile(f"the msgpack file is truncated: it ends before byte {end:,}")
        content = self.value(depth + 1)
        if self.position != end:
            raise CorruptFile("an array of the msgpack file does not have its declared size")
        match content:
            case [list(shape), str(dtype), memoryview() as body] if kind != _COMPLEX:
                return self._array(shape, dtype, body)
            case [float(real), float(imaginary)] if kind == _COMPLEX:
                return complex(real, imaginary)
        raise CorruptFile("an array or number of the msgpack file is not built as Flax does")

    def _array(self, shape: list[Any], dtype: str, body: memoryview) -> np.ndarray:
        if dtype not in _DTYPES:
            raise UnsupportedFile(f"an array is of dtype {dtype!r:.20}, which is not read")
        array = self.viewer.view(body, dtype_named(dtype), shape=shape)
        if array.nbytes != len(body):
            raise CorruptFile(f"an array has {len(body):,} bytes, not those of its shape")
        return array

    def _text(self, size: int) -> str:
        self._spend(size)
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError:
            raise CorruptFile("the msgpack file has a text that is not UTF-8") from None

    def _natural(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, size: int) -> memoryview:
        taken = self.data[self.position : self.position + size]
        if len(taken) != size:
            raise CorruptFile(f"the msgpack file is truncated: it has {len(self.data):,} bytes")
        self.position += size
        return taken

    def _spend(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise UnsafeWeights("the msgpack file has more values and texts than weights justify")
