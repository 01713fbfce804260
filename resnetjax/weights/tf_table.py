"""The entries of a table (SSTable) of TensorFlow's: a checkpoint's index, or one of version 1.

The format is that of tensorflow/core/lib/io/table_format.txt, which is LevelDB's. Blocks carry a
CRC-32C, which is verified.
"""

from collections.abc import Iterator

from resnetjax.errors import CorruptFile, UnsupportedFile
from resnetjax.weights.crc32c import verify
from resnetjax.weights.protobuf import read_varint

MAX_ENTRIES = 20_000
MAX_NAME = 1000

_MAGIC = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_FOOTER_SIZE = 48


def detect(data: memoryview) -> bool:
    """Returns whether the bytes end like a table of TensorFlow's, such as the index of a bundle."""
    return data[-len(_MAGIC) :] == _MAGIC


def read_table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the entries of a table in the order of their keys.

    Raises:
        CorruptFile: It is truncated or damaged, or its keys are not in order.
        UnsupportedFile: It is compressed.
    """
    if not detect(data) or len(data) < _FOOTER_SIZE:
        raise CorruptFile("the table is truncated, or none")
    footer = data[-_FOOTER_SIZE:]
    _, _, position = _block(data, footer)  # of metadata, which TensorFlow leaves empty
    blocks, _, _ = _block(data, footer[position:])
    previous, end, count = b"", 0, 0
    for number, (_, handle) in enumerate(_items(blocks)):
        if number == MAX_ENTRIES:
            raise CorruptFile(f"the table has more than {MAX_ENTRIES:,} blocks")
        start, _ = read_varint(handle, 0)
        if start < end:
            raise CorruptFile("the blocks of the table overlap, or are not in order")
        block, end, _ = _block(data, handle)
        for key, value in _items(block):
            if key <= previous and count:
                raise CorruptFile("the keys of the table are not in order")
            if (count := count + 1) > MAX_ENTRIES:
                raise CorruptFile(f"the table has more than {MAX_ENTRIES:,} entries")
            yield key, value
            previous = key


def _block(data: memoryview, handle: memoryview) -> tuple[memoryview, int, int]:
    """Returns a block, where it ends in the data, and where its handle ends."""
    start, position = read_varint(handle, 0)
    size, position = read_varint(handle, position)
    end = start + size + 5  # how it is compressed in one byte, and the checksum
    if end > len(data):
        raise CorruptFile("a block of the table lies outside it")
    checksum = int.from_bytes(data[end - 4 : end], "little")
    verify(data[start : end - 4], checksum, what="a block of the table")
    if data[end - 5]:
        raise UnsupportedFile(
            "the table is compressed, which TensorFlow does not do to checkpoints"
        )
    return data[start : end - 5], end, position


def _items(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the keys and values of a block; a key repeats the beginning of the one before."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    key, position = b"", 0
    while position < end:
        shared, position = read_varint(block, position)
        rest, position = read_varint(block, position)
        size, position = read_varint(block, position)
        value = position + rest
        if shared > len(key) or shared + rest > MAX_NAME or value + size > end:
            raise CorruptFile("an entry reaches beyond its block, or its key is too long")
        key = key[:shared] + bytes(block[position:value])
        position = value + size
        yield key, block[value:position]
    if end < 0:
        raise CorruptFile("a block of the table is too short")
