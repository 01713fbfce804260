"""The fields of messages of Protocol Buffers, without their schema.

The encoding is that of protobuf.dev/programming-guides/encoding. A message within a message is
bytes, to be read in turn.
"""

from collections.abc import Iterator
from typing import TypeAlias

from resnetjax.errors import CorruptFile

MAX_FIELDS = 1000  # of a message in which none repeats; TensorFlow's have at most 20

Field: TypeAlias = int | memoryview


def read_fields(message: memoryview) -> Iterator[tuple[int, Field]]:
    r"""Yields numbers and values of the fields of a message, in its order.

    Raises:
        CorruptFile: The message is truncated, or has groups.

    Example:
        >>> list(read_fields(memoryview(b"\x08\x96\x01")))
        [(1, 150)]
    """
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = read_varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = read_varint(message, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise CorruptFile(f"a message has a field of wire type {kind}")
        value = message[position : position + size]
        if len(value) != size:
            raise CorruptFile("a message is truncated")
        yield tag >> 3, value if kind == 2 else int.from_bytes(value, "little")
        position += size


def unique_fields(message: memoryview) -> dict[int, Field]:
    """Returns the fields of a message by number, none of which may repeat."""
    fields: dict[int, Field] = {}
    for number, value in read_fields(message):
        if number in fields:
            raise CorruptFile(f"field {number} occurs twice in a message")
        if len(fields) == MAX_FIELDS:
            raise CorruptFile(f"a message has more than {MAX_FIELDS:,} fields")
        fields[number] = value
    return fields


def number_in(fields: dict[int, Field], number: int) -> int:
    """Returns the number that a field is, 0 where there is no such field."""
    if isinstance(value := fields.get(number, 0), memoryview):
        raise CorruptFile(f"field {number} of a message is not a number")
    return value


def message_in(fields: dict[int, Field], number: int) -> memoryview:
    """Returns the message or text that a field is, an empty one where there is no such field."""
    if isinstance(value := fields.get(number, memoryview(b"")), int):
        raise CorruptFile(f"field {number} of a message is a number")
    return value


def messages_in(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yields the messages in a field that may repeat."""
    for number, value in read_fields(message):
        if number == wanted:
            if isinstance(value, int):
                raise CorruptFile(f"field {number} of a message is a number")
            yield value


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns the number of variable length at a position, and where it ends."""
    value = 0
    for shift, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position + shift + 1
    raise CorruptFile("a number is truncated, or has more than 64 bits")
