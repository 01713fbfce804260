"""Writes TensorFlow's tables and checkpoints of version 1 without it, and without its care."""

import struct

import numpy as np

from resnetjax.weights.crc32c import crc32c

DTYPES = {  # tensorflow/core/framework/types.proto
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "bfloat16": 14,
    "uint16": 17,
    "complex128": 18,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked(content: bytes) -> bytes:
    value = crc32c(memoryview(content))
    rotated = value >> 15 | value << 17 & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def shape_of(*lengths: int) -> bytes:
    return b"".join(field(2, field(1, length)) for length in lengths)


def block(items, *, compression=0, restarts=b"\0\0\0\0\1\0\0\0") -> bytes:
    """A block with its trailer; keys are shortened by what they share with the one before."""
    content, previous = b"", b""
    for key, value in items:
        shared = max(i for i in range(len(key) + 1) if previous.startswith(key[:i]))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value))
        content += key[shared:] + value
        previous = key
    content += restarts + bytes([compression])
    return content + masked(content)


def handle(offset: int, content: bytes) -> bytes:
    return varint(offset) + varint(len(content) - 5)


def table(*blocks: bytes, handles=None) -> bytes:
    """A table of these blocks."""
    content, found = b"", []
    for number, part in enumerate(blocks):
        found.append((b"\xff%04d" % number, handle(len(content), part)))
        content += part
    top = block(found if handles is None else handles)
    footer = handle(len(content) + len(top), empty := block([])) + handle(len(content), top)
    return content + top + empty + footer.ljust(40, b"\0") + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"


def version1(tensors=None, *, meta=b"", more=()) -> bytes:
    """A checkpoint of version 1 of these tensors, (announcement, content) by name."""
    announced = field(1, b"".join(field(1, part) for part, _ in (tensors or {}).values()) + meta)
    entries = [(b"", announced)]
    entries += [(b"\0" + name.encode() + b"\0\1", x) for name, (_, x) in (tensors or {}).items()]
    return table(*(block([item]) for item in [*entries, *more]))


def tensor(name: str, array: np.ndarray) -> tuple[bytes, bytes]:
    """What a checkpoint of version 1 announces of a tensor, and its elements."""
    number = 5 if array.dtype == np.float32 else 10
    content = array.tobytes() if number == 5 else b"".join(map(varint, array.ravel().tolist()))
    return announcement(name, shape=array.shape, dtype=DTYPES[array.dtype.name]), elements(
        name, field(number, content), rank=array.ndim
    )


def announcement(name: str, *, shape=(2, 3), dtype=1, slices=None) -> bytes:
    slices = field(4, field(1, b"") * len(shape)) if slices is None else slices
    return field(1, name.encode()) + field(2, shape_of(*shape)) + field(3, dtype) + slices


def elements(name: str, content: bytes, *, rank=2, extents=None) -> bytes:
    extents = field(1, b"") * rank if extents is None else extents
    return field(2, field(1, name.encode()) + field(2, extents) + field(3, content))
