"""The messages of the object headers of an HDF5 file, and what they say.

They are read here rather than by pyfive, because they decide what may be read at all: pyfive
follows soft links, overlooks external storage, and takes sizes on trust. Their kinds and layouts
are those of the HDF5 File Format Specification, version 3.0, IV.A.
"""

import math
import struct
from typing import NamedTuple

import numpy as np

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights.hdf5_structure import MAX_NAME, File, heap_objects, padded
from resnetjax.weights.mapped import MAX_DIMENSIONS, dtype_named

DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL, LAYOUT = 1, 2, 3, 6, 7, 8
FILTERS, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE, ATTRIBUTE_INFO = 11, 12, 16, 17, 21

# Bit offset, precision; place and size of exponent and mantissa; exponent bias.
_FLOATS = {
    (0, 16, 10, 5, 0, 10, 15): "float16",
    (0, 16, 7, 8, 0, 7, 127): "bfloat16",
    (0, 32, 23, 8, 0, 23, 127): "float32",
    (0, 64, 52, 11, 0, 52, 1023): "float64",
}


class Message(NamedTuple):
    """A message: its kind, one of the constants here, and its bytes."""

    kind: int
    body: memoryview


def read_messages(file: File, address: int) -> list[Message]:
    """Returns the messages of an object header (specification, IV.A.1).

    Raises:
        CorruptFile: There is no object at the address, or it ends outside the file.
        UnsafeWeights: It has been read before.
        UnsupportedFile: Its messages are kept elsewhere.
    """
    if address in file.opened:
        raise UnsafeWeights("the HDF5 file links to one object twice, maybe in a circle")
    file.opened.add(address)
    if bytes(file.part(address, 4)) == b"OHDR":
        flags = file.part(address + 5, 1)[0]
        start = address + 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(file.part(start, width), "little")
        blocks, prefix = [(start + width, size)], struct.Struct("<BHB")
        skip, frame = 2 if flags & 4 else 0, 4  # signature in front, checksum behind
    else:
        version, _, _, _, size = struct.unpack("<BBHII", file.part(address, 12))
        if version != 1:
            raise CorruptFile(f"the HDF5 file has no object at byte {address:,}")
        blocks, prefix = [(address + 16, size)], struct.Struct("<HHB")
        skip, frame = 3, 0
    messages = []
    for start, size in blocks:  # which grow on the way
        content, position = file.part(start, size), 0
        while position + prefix.size + skip <= len(content):
            kind, length, flags = prefix.unpack_from(content, position)
            position += prefix.size + skip
            body = content[position : position + length]
            position += length
            if position > len(content):
                raise CorruptFile("a message of the HDF5 file ends outside its header")
            file.spend(0)
            if kind == CONTINUATION:
                begin, extent = struct.unpack_from("<QQ", body)
                blocks.append((begin + frame, extent - 2 * frame))
            elif flags & 2 and kind in (DATASPACE, DATATYPE, LAYOUT, FILTERS, ATTRIBUTE):
                raise UnsupportedFile("the HDF5 file shares messages between objects")
            else:
                messages.append(Message(kind, body))
    return messages


def parse_link(body: memoryview) -> tuple[str, int | None]:
    """Returns the name of a link and its address, None if it is a soft or an external one."""
    flags, position = body[1], 2
    kind = body[position] if flags & 8 else 0
    position += bool(flags & 8) + (8 if flags & 4 else 0) + bool(flags & 16)
    width = 1 << (flags & 3)
    length = int.from_bytes(body[position : position + width], "little")
    position += width
    if body[0] != 1 or length > MAX_NAME:
        raise CorruptFile("the HDF5 file has a link that is none")
    name = bytes(body[position : position + length]).decode()
    hard = struct.unpack_from("<Q", body, position + length)[0] if kind == 0 else None
    return name, hard


def parse_attribute(body: memoryview) -> tuple[str, tuple[memoryview, ...]]:
    """Returns the name of an attribute, and the bytes of its datatype, shape and value."""
    version, flags, *sizes = struct.unpack_from("<BB3H", body)
    if version not in (1, 2, 3):
        raise CorruptFile(f"the HDF5 file has an attribute of version {version}")
    if version > 1 and flags & 3:
        raise UnsupportedFile("the HDF5 file shares datatypes between attributes")
    position, parts = 9 if version == 3 else 8, []
    for size in sizes:
        parts.append(body[position : position + size])
        position += padded(size) if version == 1 else size
    name = bytes(parts[0]).rstrip(b"\0").decode()
    if len(name) > MAX_NAME:
        raise CorruptFile(f"the HDF5 file has an attribute's name of {len(name):,} characters")
    return name, (parts[1], parts[2], body[position:])


def parse_texts(
    file: File, name: str, datatype: memoryview, dataspace: memoryview, value: memoryview
) -> list[str]:
    """Returns the texts of an attribute.

    Args:
        file: The file, whose heaps hold texts of variable length.
        name: Of the attribute, for messages.
        datatype: This and the rest: what `parse_attribute` returns.
        dataspace: See `datatype`.
        value: See `datatype`.

    Raises:
        CorruptFile: They are no texts, or not there.
    """
    count = math.prod(parse_shape(dataspace))
    if count == 0:  # of any type: Keras writes an empty list as one of numbers
        return []
    kind, flags, (size,) = datatype[0] & 15, datatype[1], struct.unpack_from("<I", datatype, 4)
    if kind == 9 and flags & 15 == 1:
        size = 16
    elif kind != 3:
        raise CorruptFile(f"attribute {name!r:.80} of the HDF5 file is not text")
    if size == 0 or count * size > len(value):
        raise CorruptFile(
            f"attribute {name!r:.80} of the HDF5 file does not hold its {count} texts"
        )
    texts = []
    for start in range(0, count * size, size):
        content = value[start : start + size]
        file.spend(0)
        if kind == 9:
            length, heap, index = struct.unpack("<IQI", content)
            content = heap_objects(file, heap)[index][:length] if length else content[:0]
            file.spend(len(content))
        texts.append(bytes(content).rstrip(b"\0").decode())
    return texts


def parse_shape(body: memoryview) -> tuple[int, ...]:
    """Returns the shape that a dataspace is."""
    version, rank = body[:2]
    if version not in (1, 2) or rank > MAX_DIMENSIONS:
        raise CorruptFile(f"the HDF5 file has a shape of {rank} dimensions")
    if version == 2 and body[3] == 2:  # a null dataspace: h5py's Empty
        return (0,)
    return struct.unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)


def parse_number_dtype(body: memoryview) -> np.dtype | None:
    """Returns the dtype that a datatype is, None unless it is one of plain numbers."""
    kind, flags, (size,) = body[0] & 15, body[1], struct.unpack_from("<I", body, 4)
    order = ">" if flags & 1 else "<"
    if kind == 0 and size in (1, 2, 4, 8):
        return np.dtype(f"{order}{'i' if flags & 8 else 'u'}{size}")
    if kind == 1:
        name = _FLOATS.get(struct.unpack_from("<HHBBBBI", body, 8))
        if name is not None and dtype_named(name).itemsize == size and not flags & 64:
            return dtype_named(name).newbyteorder(order)
    return None
