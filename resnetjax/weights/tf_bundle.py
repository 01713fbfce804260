"""TensorFlow checkpoints of version 2 ("tensor bundles") as numpy arrays over the mapped shards.

The index is a table (tensorflow/core/lib/io/table_format.txt) of the messages in
core/protobuf/tensor_bundle.proto, written by core/util/tensor_bundle/tensor_bundle.cc; the shards
hold the elements. Checkpoints of TF2 also hold the graph of their objects
(core/protobuf/trackable_object_graph.proto), which is where the names of variables are. Blocks and
tensors carry a CRC-32C, which is verified.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from resnetjax.errors import CorruptFile, UnsupportedFile
from resnetjax.weights.mapped import MAX_DIMENSIONS, Viewer, dtype_named

MAX_SHARDS = 1000
MAX_INDEX_BYTES = 4 * 2**20  # that of a ResNet-152 with the slots of Adam takes 0.13 MiB
MAX_GRAPH_BYTES = 2 * 2**20  # 0.6 MiB
MAX_ENTRIES = 20_000
MAX_NAME = 1000
MAX_TEXT = 4096  # longer ones are left out of the metadata

_MAGIC = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_FOOTER_SIZE = 48
_VERSION = 1
_VERSION_1 = (
    "a TensorFlow checkpoint of version 1, in one file: restore it and save it again, "
    "which TensorFlow does in version 2"
)
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# Where the optimisers of Keras keep what belongs to a variable: legacy ones, and those of TF 2.11.
_SLOTS = ("/.OPTIMIZER_SLOT/", "/_variables/")

_STRING = 7
_DTYPES = {  # tensorflow/core/framework/types.proto
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
}


class Bundle(NamedTuple):
    """The arrays by the names of variables, and by path the numbers and texts beside them."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


def prefix_of(path: Path) -> Path | None:
    """Returns the prefix of the bundle that a path means, if any; its index is `index_path` of it.

    Args:
        path: The index, a shard, the prefix itself as TensorFlow's functions take it, a folder
            whose `checkpoint` file names a bundle or that has exactly one, or a SavedModel.
    """
    if path.is_dir():
        indices = list(path.glob("*.index"))
        names = ["variables/variables", *_latest(path / "checkpoint")]
        names += [indices[0].stem] if len(indices) == 1 else []
        prefixes = [path / name for name in names]
    else:
        name = re.sub(r"\.(index|data-\d{5}-of-\d{5})\Z", "", path.name)
        # A file of the bare name is something else, such as a checkpoint of version 1.
        other = name == path.name and path.exists()
        prefixes = [path.with_name(name)] if name and not other else []
    return next((prefix for prefix in prefixes if index_path(prefix).is_file()), None)


def _latest(path: Path) -> list[str]:
    """Returns the name in a `checkpoint` file (python/training/checkpoint_state.proto)."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        found = re.search(rb'^model_checkpoint_path: "([^"\\\0]+)"', file.read(65536), re.MULTILINE)
    # Often an absolute path of the machine that wrote it, so only its end means something.
    name = found[1].decode(errors="replace").rpartition("/")[2] if found else ""
    return [name] if name.strip(".") else []


def index_path(prefix: Path) -> Path:
    """Returns where the index of a bundle is."""
    return prefix.with_name(f"{prefix.name}.index")


def shard_path(prefix: Path, number: int, count: int) -> Path:
    """Returns where a shard of a bundle is.

    Example:
        >>> shard_path(Path("model.ckpt"), 0, 2).name
        'model.ckpt.data-00000-of-00002'
    """
    return prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{count:05d}")


def detect(data: memoryview) -> bool:
    """Returns whether the bytes end like a table of TensorFlow's, such as the index of a bundle."""
    return data[-len(_MAGIC) :] == _MAGIC


def parse(index: memoryview, shards: Callable[[int, int], memoryview]) -> Bundle:
    """Returns the tensors of a bundle, as read-only views.

    Tensors go by the names of their variables where these are unique, else by their paths through
    the objects. Optimisers' slots and tensors of several texts are left out.

    Args:
        index: The bytes of the index.
        shards: Gives the bytes of a shard, by its number and the number of shards.

    Raises:
        CorruptFile: A checksum is wrong, or the tensors do not lie in the shards as they should.
        UnsupportedFile: It is a checkpoint of version 1, big-endian or compressed, or has
            partitioned variables or dtypes that numpy and ml_dtypes lack.
    """
    table = _table(index)
    count = _shard_count(*next(table, ("", memoryview(b""))))
    entries = {key: _entry(key, message) for key, message in table}
    contents = _contents(entries, shards, count)
    viewer = Viewer(file_size=sum(map(len, contents.values())))
    arrays, metadata, graph = {}, {}, memoryview(b"")
    for key, entry in entries.items():
        path = key.removesuffix(_VALUE)
        if entry.dtype == _STRING:
            if entry.shape:
                continue
            text = _text(contents[key], entry.checksum, what=f"text {key!r:.80}")
            if key == _GRAPH:
                graph = text
            elif len(text) <= MAX_TEXT:
                metadata[path] = str(text, "utf-8", "backslashreplace")
            continue
        _verify(contents[key], entry.checksum, what=f"tensor {key!r:.80}")
        if any(slot in key for slot in _SLOTS):
            continue
        array = viewer.view(contents[key], dtype_named(_DTYPES[entry.dtype]), shape=entry.shape)
        if entry.shape:
            arrays[key] = array
        else:
            metadata[path] = array.item()
    names = _names(list(arrays), graph)
    return Bundle(dict(zip(names, arrays.values(), strict=True)), metadata)


def _shard_count(key: str, header: memoryview) -> int:
    """Returns the number of shards from the first entry of the index."""
    if key:
        raise CorruptFile("the bundle has no header")
    fields = _unique(header)
    if isinstance(fields.get(1), memoryview):
        raise UnsupportedFile(_VERSION_1)
    if _number(fields, 2):
        raise UnsupportedFile("the bundle is big-endian")
    if (needed := _number(_unique(_message(fields, 3)), 2)) > _VERSION:
        raise UnsupportedFile(f"the bundle needs a reader of version {needed}, not {_VERSION}")
    if not 1 <= (count := _number(fields, 1)) <= MAX_SHARDS:
        raise CorruptFile(f"the bundle has {count:,} shards, not 1 to {MAX_SHARDS:,}")
    return count


class _Entry(NamedTuple):
    """What a tensor is, and where."""

    dtype: int
    shape: list[int]
    shard: int
    offset: int
    size: int
    checksum: int


def _entry(key: str, message: memoryview) -> _Entry:
    fields = _unique(message)
    shape = []
    for number, dimension in _fields(_message(fields, 2)):
        if number != 2 or isinstance(dimension, int) or len(shape) == MAX_DIMENSIONS:
            raise CorruptFile(f"tensor {key!r:.80} has no shape, or too many dimensions")
        shape.append(_number(_unique(dimension), 1))
    entry = _Entry(_number(fields, 1), shape, *(_number(fields, number) for number in range(3, 7)))
    if entry.dtype == _STRING:
        return entry
    if entry.dtype not in _DTYPES:
        raise UnsupportedFile(f"tensor {key!r:.80} is of dtype {entry.dtype}, which is not read")
    if entry.size != math.prod(shape) * dtype_named(_DTYPES[entry.dtype]).itemsize:
        raise CorruptFile(f"tensor {key!r:.80} has {entry.size:,} bytes, not those of its shape")
    return entry


def _contents(
    entries: dict[str, _Entry], shards: Callable[[int, int], memoryview], count: int
) -> dict[str, memoryview]:
    """Returns the bytes of every tensor, after checking that none overlaps another."""
    contents, opened, end = {}, {}, 0
    spans = sorted((entry.shard, entry.offset, entry.size, key) for key, entry in entries.items())
    for shard, offset, size, key in spans:
        if shard >= count:
            raise CorruptFile(f"tensor {key!r:.80} is in shard {shard:,} of {count:,}")
        if shard not in opened:
            opened[shard], end = shards(shard, count), 0
        if offset < end:
            raise CorruptFile(f"tensor {key!r:.80} overlaps another")
        end = offset + size
        if end > len(opened[shard]):
            raise CorruptFile(
                f"tensor {key!r:.80} ends at byte {end:,} of a shard of {len(opened[shard]):,}: "
                "the shard is truncated, or of another checkpoint"
            )
        contents[key] = opened[shard][offset:end]
    return contents


def _text(content: memoryview, checksum: int, *, what: str) -> memoryview:
    """Returns the text in a tensor of one: its size, the size's own checksum, and the bytes."""
    size, position = _varint(content, 0)
    if size >= 2**32 or position + 4 + size != len(content):
        raise CorruptFile(f"{what} has {len(content):,} bytes, not those that it declares")
    # The checksum is of the size as four bytes, not as the varint that is stored.
    _verify(memoryview(size.to_bytes(4, "little") + content[position:]), checksum, what=what)
    return content[position + 4 :]


def _names(keys: list[str], graph: memoryview) -> list[str]:
    """Returns the variables' names of tensors, or the paths where these are not unique."""
    if len(graph) > MAX_GRAPH_BYTES:
        raise UnsupportedFile(f"the graph of objects has {len(graph):,} bytes")
    variables = {}
    # The nodes are a list; their references to each other, which may be cyclic, are not followed.
    for node in _messages(graph, 1):
        for attribute in _messages(node, 2):
            fields = _unique(attribute)
            variables[bytes(_message(fields, 3))] = bytes(_message(fields, 2))
    paths = [key.removesuffix(_VALUE) for key in keys]
    names = [variables.get(key.encode(), b"").decode(errors="replace") for key in keys]
    names = [name or path for name, path in zip(names, paths, strict=True)]
    return next(unique for unique in (names, paths, keys) if len(set(unique)) == len(keys))


def _table(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yields the entries of a table in the order of their keys."""
    if not detect(data) or len(data) < _FOOTER_SIZE:
        raise CorruptFile("the index of the bundle is truncated, or no table")
    if len(data) > MAX_INDEX_BYTES:  # which one with the tensors in it has
        raise UnsupportedFile(f"a table of {len(data):,} bytes, so probably {_VERSION_1}")
    footer = data[-_FOOTER_SIZE:]
    _, _, position = _block(data, footer)  # of metadata, which TensorFlow leaves empty
    blocks, _, _ = _block(data, footer[position:])
    previous, end, count = b"", 0, 0
    for _, handle in _items(blocks):
        start, _ = _varint(handle, 0)
        if start < end:
            raise CorruptFile("the blocks of the table overlap, or are not in order")
        block, end, _ = _block(data, handle)
        for key, value in _items(block):
            if key <= previous and count:
                raise CorruptFile("the keys of the table are not in order")
            if key.startswith(b"\0"):  # core/util/saved_tensor_slice_util.cc: EncodeTensorNameSlice
                raise UnsupportedFile(
                    f"the variable in {key!r:.80} is partitioned: save it without a partitioner"
                )
            if (count := count + 1) > MAX_ENTRIES:
                raise CorruptFile(f"the table has more than {MAX_ENTRIES:,} entries")
            try:
                yield key.decode(), value
            except UnicodeDecodeError:
                raise CorruptFile(f"the key {key!r:.80} is not UTF-8") from None
            previous = key


def _block(data: memoryview, handle: memoryview) -> tuple[memoryview, int, int]:
    """Returns a block, where it ends in the data, and where its handle ends."""
    start, position = _varint(handle, 0)
    size, position = _varint(handle, position)
    end = start + size + 5  # how it is compressed in one byte, and the checksum
    if end > len(data):
        raise CorruptFile("a block of the table lies outside it")
    checksum = int.from_bytes(data[end - 4 : end], "little")
    _verify(data[start : end - 4], checksum, what="a block of the table")
    if data[end - 5]:
        raise UnsupportedFile("the table is compressed, which TensorFlow does not do to bundles")
    return data[start : end - 5], end, position


def _items(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the keys and values of a block; a key repeats the beginning of the one before."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    key, position = b"", 0
    while position < end:
        shared, position = _varint(block, position)
        rest, position = _varint(block, position)
        size, position = _varint(block, position)
        value = position + rest
        if shared > len(key) or shared + rest > MAX_NAME or value + size > end:
            raise CorruptFile("an entry reaches beyond its block, or its key is too long")
        key = key[:shared] + bytes(block[position:value])
        position = value + size
        yield key, block[value:position]
    if end < 0:
        raise CorruptFile("a block of the table is too short")


_Field: TypeAlias = int | memoryview


def _unique(message: memoryview) -> dict[int, _Field]:
    """Returns the fields of a message of Protocol Buffers by number, none of which may repeat."""
    fields: dict[int, _Field] = {}
    for number, value in _fields(message):
        if number in fields:
            raise CorruptFile(f"field {number} occurs twice in a message")
        fields[number] = value
    return fields


def _number(fields: dict[int, _Field], number: int) -> int:
    if isinstance(value := fields.get(number, 0), memoryview):
        raise CorruptFile(f"field {number} of a message is not a number")
    return value


def _message(fields: dict[int, _Field], number: int) -> memoryview:
    if isinstance(value := fields.get(number, memoryview(b"")), int):
        raise CorruptFile(f"field {number} of a message is a number")
    return value


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(message):
        if number == wanted:
            if isinstance(value, int):
                raise CorruptFile(f"field {number} of a message is a number")
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, _Field]]:
    """Yields the fields of a message (protobuf.dev/programming-guides/encoding)."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = _varint(message, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise CorruptFile(f"a message has a field of wire type {kind}")
        value = message[position : position + size]
        if len(value) != size:
            raise CorruptFile("a message is truncated")
        yield tag >> 3, value if kind == 2 else int.from_bytes(value, "little")
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position + shift + 1
    raise CorruptFile("a number is truncated, or has more than 64 bits")


def _verify(data: memoryview, checksum: int, *, what: str) -> None:
    value = crc32c(data)
    # tensorflow/core/lib/hash/crc32c.h: Mask
    if checksum != ((value >> 15 | value << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF:
        raise CorruptFile(f"{what} is damaged: its checksum is wrong")


_CRC_LEVELS = 16  # blocks of 2**16 words


def crc32c(data: memoryview) -> int:
    """Returns the CRC-32C of bytes.

    A CRC is linear: a word may be replaced by what it becomes further on, xored onto the word
    there. So the first half of a block is folded onto the second until one word is left, which
    numpy does at 0.5 GB/s.

    Example:
        >>> hex(crc32c(memoryview(b"123456789")))
        '0xe3069283'
    """
    checksum = 0xFFFFFFFF
    tables = _crc_tables()
    for start in range(0, len(data), 4 << _CRC_LEVELS):
        block = np.frombuffer(data[start : start + (4 << _CRC_LEVELS)], np.uint8)
        level = ((len(block) + 3) // 4 - 1).bit_length()
        padded = np.zeros(4 << level, np.uint8)
        # In front, where zeros change nothing.
        tail = padded[len(padded) - len(block) :]
        tail[:] = block
        tail[:4] ^= np.frombuffer(checksum.to_bytes(4, "little"), np.uint8)[: len(tail)]
        words = padded.view("<u4")
        for half in range(level - 1, -1, -1):
            words = _carried(words[: 1 << half], tables[half]) ^ words[1 << half :]
        checksum = int(_carried(words, tables[0])[0]) ^ checksum >> 8 * len(block)
    return checksum ^ 0xFFFFFFFF


def _carried(words: np.ndarray, table: np.ndarray) -> np.ndarray:
    halves = words.view("<u2").reshape(-1, 2)
    return table[0].take(halves[:, 0]) ^ table[1].take(halves[:, 1])


@functools.cache
def _crc_tables() -> list[np.ndarray]:
    """Returns for each level what the low and high half of a word become 2 ** level words on."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(32):  # Castagnoli's polynomial, bits reversed
        bits = bits >> 1 ^ np.where(bits & 1, np.uint32(0x82F63B78), np.uint32(0))
    tables = []
    for _ in range(_CRC_LEVELS):
        table = np.zeros((2, 1 << 16), np.uint32)
        for half in range(2):
            for bit in range(16):
                above = table[half, 1 << bit : 2 << bit]
                above[:] = table[half, : 1 << bit] ^ bits[16 * half + bit]
        tables.append(table)
        bits = _carried(bits, table)
    return tables
