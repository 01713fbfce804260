"""`tf.train.Example` from and to bytes: the only message of Protocol Buffers that is needed.

The messages are tensorflow/core/example/example.proto and feature.proto; their encoding is
protobuf.dev/programming-guides/encoding. `Example` has in field 1 `Features`, which has in field 1
entries of a map: the key in field 1, in field 2 `Feature`, which has one of BytesList (1),
FloatList (2) and Int64List (3), each of which has its values in field 1.
"""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from resnetjax.errors import CorruptFile

Values: TypeAlias = list[bytes] | list[int]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types


def parse(record: bytes) -> dict[str, Values]:
    """The features of an example that have bytes or whole numbers; those with floats are left out.

    Raises:
        CorruptFile: The bytes are not an example.

    Example:
        >>> parse(serialize({"label": [7], "image": [b"..."]}))
        {'label': [7], 'image': [b'...']}
    """
    try:
        found: dict[str, Values] = {}
        for features in _messages(memoryview(record)):
            for entry in _messages(features):
                key, feature = b"", memoryview(b"")
                for number, value in _fields(entry):
                    if number == 1 and isinstance(value, memoryview):
                        key = bytes(value)
                    elif number == 2 and isinstance(value, memoryview):
                        feature = value
                values = _values(feature)
                if values is not None:
                    found[key.decode()] = values
        return found
    except (IndexError, UnicodeDecodeError) as error:
        raise CorruptFile(
            "not a tf.train.Example: it ends too early or has a broken key"
        ) from error


def serialize(features: Mapping[str, Values]) -> bytes:
    """An example of these features."""
    entries = []
    for key, values in features.items():
        if values and isinstance(values[0], int):
            packed = b"".join(_encode_varint(int(value) & (1 << 64) - 1) for value in values)
            feature = _encode(3, _encode(1, packed))
        else:
            feature = _encode(1, b"".join(_encode(1, bytes(value)) for value in values))
        entries.append(_encode(1, _encode(1, key.encode()) + _encode(2, feature)))
    return _encode(1, b"".join(entries))


def _values(feature: memoryview) -> Values | None:
    for kind, content in _fields(feature):
        if not isinstance(content, memoryview):
            raise CorruptFile("not a tf.train.Example: a feature is not a list")
        if kind == 1:
            return [bytes(value) for value in _messages(content)]
        if kind == 3:
            numbers: list[int] = []
            for number, value in _fields(content):
                if number == 1:  # packed, or one field for each
                    numbers += [value] if isinstance(value, int) else _varints(value)
            return [n - (1 << 64) if n >> 63 else n for n in numbers]
    return None


def _messages(buffer: memoryview) -> Iterator[memoryview]:
    for number, value in _fields(buffer):
        if number == 1:
            if not isinstance(value, memoryview):
                raise CorruptFile("not a tf.train.Example: field 1 is a number")
            yield value


def _fields(buffer: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    position = 0
    while position < len(buffer):
        tag, position = _varint(buffer, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(buffer, position)
            yield tag >> 3, value
            continue
        if kind == _LENGTH:
            size, position = _varint(buffer, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise CorruptFile(f"not a tf.train.Example: wire type {kind}")
        if size > len(buffer) - position:
            raise CorruptFile("not a tf.train.Example: a field reaches beyond the end")
        yield tag >> 3, buffer[position : position + size]
        position += size


def _varints(buffer: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(buffer):
        value, position = _varint(buffer, position)
        values.append(value)
    return values


def _varint(buffer: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise CorruptFile("not a tf.train.Example: a number of more than 64 bits")


def _encode(number: int, content: bytes) -> bytes:
    return _encode_varint(number << 3 | _LENGTH) + _encode_varint(len(content)) + content


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
