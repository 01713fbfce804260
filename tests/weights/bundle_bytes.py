"""Writes TensorFlow checkpoints (V2 bundles) without TensorFlow: any field may be a lie."""

import struct

import numpy as np

from resnetjax.weights.crc32c import crc32c

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)
BYTES = SIX.tobytes()
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


def entry(content=BYTES, *, dtype=1, shape=(2, 3), shard=0, offset=0, size=None, more=b""):
    """The message about a tensor with this content."""
    numbers = {3: shard, 4: offset, 5: len(content) if size is None else size}
    head = field(1, dtype) + field(2, shape if isinstance(shape, bytes) else shape_of(*shape))
    middle = b"".join(field(number, value) for number, value in numbers.items())
    return head + middle + varint(6 << 3 | 5) + masked(content) + more


def header(shards=1, *, endianness=0, needed=0) -> bytes:
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1) + field(2, needed))


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


def index(entries: dict[str, bytes] | None = None, head=None, **options) -> bytes:
    named = {"": header() if head is None else head} | (entries or {"w": entry()})
    return table(block([(key.encode(), value) for key, value in named.items()], **options))
