"""Groups, attributes and arrays of an HDF5 file, as far as Keras writes them.

The format is the HDF5 File Format Specification, version 3.0. pyfive walks the trees and heaps that
find a group's members; the messages of object headers are read here, because they decide what may
be read at all: pyfive follows soft links, overlooks external storage, and takes sizes on trust.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from resnetjax.errors import CorruptFile, ResNetJAXError, UnsafeWeights, UnsupportedFile
from resnetjax.weights.mapped import MAX_DIMENSIONS, Viewer, dtype_named

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_STEPS = 500_000  # a ResNet-152 of Keras takes 24,000; each may take microseconds
MAX_STRUCTURE = 32 * 2**20  # bytes read that are no array; the same net takes 1.6 MB
MAX_CHUNKS = 100_000
MAX_RATIO = 1000  # of what an array declares to what is stored of it
MAX_NAME = 1000

_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL, _LAYOUT = 1, 2, 3, 6, 7, 8
_FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE, _ATTRIBUTE_INFO = 11, 12, 16, 17, 21
_NOWHERE = 2**64 - 1
_DEFLATE, _SHUFFLE = 1, 2
# Bit offset, precision; place and size of exponent and mantissa; exponent bias.
_FLOATS = {
    (0, 16, 10, 5, 0, 10, 15): "float16",
    (0, 16, 7, 8, 0, 7, 127): "bfloat16",
    (0, 32, 23, 8, 0, 23, 127): "float32",
    (0, 64, 52, 11, 0, 52, 1023): "float64",
}


def detect(data: memoryview) -> bool:
    """Returns whether the bytes begin like an HDF5 file, whole or not."""
    return data[:8] == SIGNATURE


def parse(data: memoryview, *, inflated_from: int | None = None) -> "Group":
    """Returns the root group of an HDF5 file.

    Args:
        data: The bytes of the file.
        inflated_from: The size of the file that they were inflated from, if they were; it is what
            has to justify the memory that they take.

    Raises:
        CorruptFile: It is truncated, or its parts contradict each other.
        UnsupportedFile: It holds what Keras does not write, such as shared datatypes.
    """
    with _strictly():
        file = _File(data)
        if inflated_from is not None:
            file.viewer = Viewer(file_size=inflated_from)
            file.viewer.budget -= len(data)
        return Group(file, _root(data), "/")


@contextmanager
def _strictly() -> Iterator[None]:
    try:
        yield
    except ResNetJAXError:
        raise
    except NotImplementedError as error:
        raise UnsupportedFile(f"the HDF5 file has what is not read: {error!s:.100}") from error
    # Broad on purpose: pyfive checks little, so that a corrupt file shows as whatever its parsing
    # happens to trip over (struct.error, KeyError, AssertionError, OverflowError, ...).
    except Exception as error:
        name = type(error).__name__
        raise CorruptFile(
            f"the HDF5 file is truncated or broken ({name}: {error!s:.100})"
        ) from error


class _File:
    """The bytes, with the effort that reading them may take; what pyfive takes for an open file."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.viewer = Viewer(file_size=len(data))
        self.heaps: dict[int, dict[int, memoryview]] = {}
        self.opened: set[int] = set()
        self._position = self._steps = self._bytes = 0

    def spend(self, size: int) -> None:
        self._steps += 1
        self._bytes += size
        if self._steps > MAX_STEPS or self._bytes > MAX_STRUCTURE:
            raise UnsafeWeights("the HDF5 file's structure is too large, or repeats itself")

    def part(self, start: int, size: int) -> memoryview:
        """Returns bytes of the structure; all of them, or none."""
        if size < 0 or start + size > len(self.data):
            raise CorruptFile(f"the HDF5 file is truncated: it refers to byte {start + size:,}")
        self.spend(size)
        return self.data[start : start + size]

    def seek(self, offset: int) -> None:
        self._position = offset

    def read(self, size: int) -> bytes:
        content = self.data[self._position : self._position + size]
        self.spend(len(content))
        self._position += len(content)
        return bytes(content)


def _root(data: memoryview) -> int:
    version = data[8]
    if version in (0, 1):
        start = 24 if version == 0 else 28
        sizes, (base, _, end, _) = data[13:15], struct.unpack_from("<4Q", data, start)
        (root,) = struct.unpack_from("<Q", data, start + 40)
    elif version in (2, 3):
        sizes, (base, _, end, root) = data[9:11], struct.unpack_from("<4Q", data, 12)
    else:
        raise UnsupportedFile(f"the HDF5 file has a superblock of version {version}")
    if bytes(sizes) != b"\x08\x08" or base != 0:
        raise UnsupportedFile("the HDF5 file has addresses that are not of 64 bits from its start")
    if end > len(data):
        raise CorruptFile(f"the file is truncated: it has {len(data):,} of its {end:,} bytes")
    return root


class _Message(NamedTuple):
    kind: int
    body: memoryview


def _messages(file: _File, address: int) -> list[_Message]:
    """Returns the messages of an object header (specification, IV.A.1)."""
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
            if kind == _CONTINUATION:
                begin, extent = struct.unpack_from("<QQ", body)
                blocks.append((begin + frame, extent - 2 * frame))
            elif flags & 2 and kind in (_DATASPACE, _DATATYPE, _LAYOUT, _FILTERS, _ATTRIBUTE):
                raise UnsupportedFile("the HDF5 file shares messages between objects")
            else:
                messages.append(_Message(kind, body))
    return messages


class _Object:
    """What groups and datasets have in common: a name, messages, attributes."""

    def __init__(self, file: _File, messages: list[_Message], name: str) -> None:
        self.name = name
        self._file = file
        self._messages = messages
        self._attributes: dict[str, tuple[memoryview, ...]] | None = None

    def _bodies(self, kind: int) -> list[memoryview]:
        return [message.body for message in self._messages if message.kind == kind]

    def texts(self, name: str) -> list[str] | None:
        """Returns the texts of an attribute, None where there is no such attribute.

        Of a list that Keras split for want of space (`name0`, `name1`, ...), all of them.
        """
        with _strictly():
            attributes = self._parsed_attributes()
            if name in attributes:
                return _texts(self._file, name, *attributes[name])
            if f"{name}0" not in attributes:
                return None
            texts, part = [], 0
            while (key := f"{name}{part}") in attributes:
                texts += _texts(self._file, key, *attributes[key])
                part += 1
            return texts

    def text(self, name: str) -> str | None:
        """Returns the one text of an attribute, None where there is no such attribute."""
        texts = self.texts(name)
        if texts is not None and len(texts) != 1:
            raise CorruptFile(f"attribute {name} of {self.name!r:.80} is not one text")
        return None if texts is None else texts[0]

    def _parsed_attributes(self) -> dict[str, tuple[memoryview, ...]]:
        if self._attributes is None:
            bodies = self._bodies(_ATTRIBUTE)
            for body in self._bodies(_ATTRIBUTE_INFO):
                start = 4 if body[1] & 1 else 2
                bodies += _dense(self._file, *struct.unpack_from("<QQ", body, start), kind=8)
            attributes = [_attribute(body) for body in bodies]
            self._attributes = dict(attributes)
            if len(self._attributes) != len(attributes):
                raise CorruptFile(f"{self.name!r:.80} has an attribute twice")
        return self._attributes


class Group(_Object):
    """A group: its members by name, opened as they are asked for.

    Raises:
        CorruptFile: There is no group at the address.
    """

    def __init__(
        self, file: _File, address: int, name: str, *, messages: list[_Message] | None = None
    ) -> None:
        super().__init__(file, _messages(file, address) if messages is None else messages, name)
        links: list[tuple[str, int | None]] = []
        for body in self._bodies(_SYMBOL_TABLE):
            links += _symbols(file, *struct.unpack("<QQ", body))
        for body in self._bodies(_LINK_INFO):
            start = 10 if body[1] & 1 else 2
            dense = _dense(file, *struct.unpack_from("<QQ", body, start), kind=5)
            links += [_link(content) for content in dense]
        links += [_link(body) for body in self._bodies(_LINK)]
        self._links = dict(links)
        if len(self._links) != len(links):
            raise CorruptFile(f"group {name!r:.80} has a member twice")
        self._members: dict[str, Group | Dataset] = {}

    @property
    def names(self) -> list[str]:
        """The names of all members, in the order of the file."""
        return list(self._links)

    def __contains__(self, name: str) -> bool:
        return name in self._links

    def __getitem__(self, name: str) -> "Group | Dataset":
        """Returns a member.

        Raises:
            CorruptFile: There is none of this name, or it is neither group nor dataset.
            UnsafeWeights: It is a soft or an external link, or an object already open elsewhere.
        """
        if name not in self._members:
            with _strictly():
                self._members[name] = self._open(name)
        return self._members[name]

    def _open(self, name: str) -> "Group | Dataset":
        path = f"{self.name.removesuffix('/')}/{name}"
        if name not in self._links:
            raise CorruptFile(f"the HDF5 file has no {path!r:.160}")
        address = self._links[name]
        if address is None:
            raise UnsafeWeights(f"{path!r:.160} of the HDF5 file is a soft or an external link")
        messages = _messages(self._file, address)
        kinds = {message.kind for message in messages}
        if _LAYOUT in kinds:
            return Dataset(self._file, messages, path)
        if kinds.isdisjoint({_SYMBOL_TABLE, _LINK_INFO, _LINK}):
            raise CorruptFile(f"{path!r:.160} of the HDF5 file is neither group nor dataset")
        return Group(self._file, address, path, messages=messages)

    def group(self, name: str) -> "Group":
        """Returns a member that must be a group."""
        member = self[name]
        if not isinstance(member, Group):
            raise CorruptFile(f"{member.name!r:.160} of the HDF5 file is not a group")
        return member

    def dataset(self, path: str) -> "Dataset":
        """Returns the dataset at a path such as `conv1/kernel:0`."""
        *groups, name = path.split("/")
        group = self
        for part in groups:
            group = group.group(part)
        member = group[name]
        if not isinstance(member, Dataset):
            raise CorruptFile(f"{member.name!r:.160} of the HDF5 file is not a dataset")
        return member


class Dataset(_Object):
    """An array that has not been read yet.

    Attributes:
        shape: Of the array.
    """

    def __init__(self, file: _File, messages: list[_Message], name: str) -> None:
        super().__init__(file, messages, name)
        self.shape = _shape(self._body(_DATASPACE, "shape"))

    def _body(self, kind: int, what: str) -> memoryview:
        bodies = self._bodies(kind)
        if len(bodies) != 1:
            raise CorruptFile(f"{self.name!r:.160} of the HDF5 file has {len(bodies)} {what}s")
        return bodies[0]

    def read(self) -> np.ndarray:
        """Returns the array, read-only: a view of the file, unless it is compressed.

        Raises:
            CorruptFile: Its bytes are not there, or not those of its shape.
            UnsafeWeights: They are in another file or dataset, are references, or fewer than a
                thousandth of what the array declares.
            UnsupportedFile: Its elements are no numbers, or it is stored in an unusual way.
        """
        with _strictly():
            return self._read()

    def _read(self) -> np.ndarray:
        if self._bodies(_EXTERNAL):
            raise UnsafeWeights(f"{self.name!r:.160} keeps its data in another file")
        dtype = self._dtype()
        declared = math.prod(self.shape) * dtype.itemsize
        body = self._body(_LAYOUT, "layout")
        version, layout = body[0], body[1] if body[0] >= 3 else body[2]
        if layout == 3:
            raise UnsafeWeights(f"{self.name!r:.160} is a view of other datasets, maybe elsewhere")
        if version not in (1, 2, 3) and not (version == 4 and layout < 2):
            raise UnsupportedFile(f"{self.name!r:.160} has a layout of version {version}")
        if layout == 2:
            return self._read_chunks(body, dtype, declared)
        if layout == 1:
            (address,) = struct.unpack_from("<Q", body, 2 if version >= 3 else 8)
            stored = 0 if address == _NOWHERE else declared
            content = self._file.data[address : address + stored]
        else:
            start, width = (4, 2) if version >= 3 else (8 + 4 * body[1] + 4, 4)
            content = body[start : start + int.from_bytes(body[start - width : start], "little")]
        self._check_size(declared, len(content))
        return self._file.viewer.view(content, dtype, shape=self.shape)

    def _dtype(self) -> np.dtype:
        body = self._body(_DATATYPE, "datatype")
        kind, flags, (size,) = body[0] & 15, body[1], struct.unpack_from("<I", body, 4)
        order = ">" if flags & 1 else "<"
        if kind == 0 and size in (1, 2, 4, 8):
            return np.dtype(f"{order}{'i' if flags & 8 else 'u'}{size}")
        if kind == 1:
            name = _FLOATS.get(struct.unpack_from("<HHBBBBI", body, 8))
            if name is not None and dtype_named(name).itemsize == size and not flags & 64:
                return dtype_named(name).newbyteorder(order)
        if kind == 5 and size == 2 and self.text("dtype") == "bfloat16":  # as Keras 3 marks it
            return dtype_named("bfloat16")
        if kind == 7:
            raise UnsafeWeights(f"{self.name!r:.160} of the HDF5 file holds references")
        raise UnsupportedFile(f"{self.name!r:.160} of the HDF5 file does not hold plain numbers")

    def _check_size(self, declared: int, stored: int) -> None:
        if declared > MAX_RATIO * stored:
            raise UnsafeWeights(f"{self.name!r:.160} makes {declared:,} bytes of {stored:,}")

    def _read_chunks(self, body: memoryview, dtype: np.dtype, declared: int) -> np.ndarray:
        if body[0] == 3:
            rank, address = struct.unpack_from("<BQ", body, 2)
            start = 11
        else:
            rank, (address,), start = body[1], struct.unpack_from("<Q", body, 8), 16
        *chunk, itemsize = struct.unpack_from(f"<{rank}I", body, start)
        if len(chunk) != len(self.shape) or itemsize != dtype.itemsize or 0 in chunk:
            raise CorruptFile(f"{self.name!r:.160} has chunks that do not fit its shape")
        if declared == 0:
            return self._file.viewer.view(b"", dtype, shape=self.shape)
        size, steps = math.prod(chunk) * itemsize, list(zip(self.shape, chunk, strict=True))
        count = math.prod(-(-length // step) for length, step in steps)
        # Chunks are whole at the edges too, and a copy or two of one is at work with the array.
        budget = self._file.viewer.budget - count * size
        if count > MAX_CHUNKS or budget < 2 * size:
            raise UnsafeWeights(f"{self.name!r:.160} inflates to many times the file's size")
        self._file.viewer.budget = budget
        chunks = _chunks(self._file, address, rank, most=count) if address != _NOWHERE else {}
        self._check_size(declared, sum(stored for _, stored, _ in chunks.values()))
        if len(chunks) != count:
            raise CorruptFile(f"{self.name!r:.160} has {len(chunks):,} of {count:,} chunks")
        filters = _filters(self._bodies(_FILTERS))
        array = np.empty(self.shape, dtype)
        for corner, (place, stored, mask) in chunks.items():
            places = list(zip(corner, self.shape, chunk, strict=True))
            if any(begin % step or begin >= length for begin, length, step in places):
                raise CorruptFile(f"{self.name!r:.160} has a chunk at no place of a chunk")
            used = [code for bit, code in enumerate(filters) if not mask >> bit & 1]
            content = _unfilter(self._file.data[place : place + stored], used, size, itemsize)
            target = array[tuple(slice(begin, begin + step) for begin, _, step in places)]
            inside = tuple(slice(length) for length in target.shape)
            target[...] = np.frombuffer(content, dtype).reshape(chunk)[inside]
        array.flags.writeable = False
        return array


def _symbols(file: _File, tree: int, heap: int) -> list[tuple[str, int | None]]:
    """Returns the members of a group in a file of the old format."""
    from pyfive.btree import BTreeV1Groups  # here: importing it takes longer than many a file
    from pyfive.misc_low_level import Heap, SymbolTable

    names, links = Heap(file, heap).data, []
    for address in BTreeV1Groups(file, tree).symbol_table_addresses():
        for entry in SymbolTable(file, address).entries:
            start = entry["link_name_offset"]
            end = names.index(b"\0", start, start + MAX_NAME + 1)
            file.spend(end - start)
            hard = entry["cache_type"] in (0, 1)
            address = entry["object_header_address"] if hard else None
            links.append((names[start:end].decode(), address))
    return links


def _link(body: memoryview) -> tuple[str, int | None]:
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


def _dense(file: _File, heap_address: int, tree_address: int, *, kind: int) -> list[memoryview]:
    """Returns the messages of a group (tree of kind 5) or attributes (8) kept in a fractal heap."""
    from pyfive.btree import BTreeV2AttrNames, BTreeV2GroupNames  # here: see _symbols
    from pyfive.misc_low_level import FractalHeap

    if _NOWHERE in (heap_address, tree_address):
        return []
    # pyfive would compute sizes of thousands of digits of them (specification, III.A.2, III.G).
    (depth,) = struct.unpack("<H", file.part(tree_address + 12, 2))
    (rows,) = struct.unpack("<H", file.part(heap_address + 140, 2))
    if depth > 8 or rows > 64:
        raise UnsafeWeights(f"the HDF5 file has a tree of depth {depth}, a heap of {rows} rows")
    heap = FractalHeap(file, heap_address)
    if len(heap.blocks) > 256:  # pyfive looks through all of them for every message
        raise UnsafeWeights(f"the HDF5 file has a heap of {len(heap.blocks):,} blocks")
    tree = (BTreeV2GroupNames if kind == 5 else BTreeV2AttrNames)(file, tree_address)
    messages = []
    for record in tree.iter_records():
        content = heap.get_data(record["heapid"])
        if content is None:
            raise CorruptFile("the HDF5 file has a heap that lacks an entry")
        file.spend(len(content))
        messages.append(memoryview(content))
    return messages


def _chunks(
    file: _File, address: int, rank: int, *, most: int, level: int | None = None
) -> dict[tuple[int, ...], tuple[int, int, int]]:
    """Returns address, size and filter mask of the chunks by the index of their first element.

    The tree (specification, III.A.1) is read here: pyfive takes 600 bytes for every chunk of it.
    """
    signature, kind, depth, count = struct.unpack("<4sBBH", file.part(address, 8))
    if signature != b"TREE" or kind != 1 or (level is not None and depth != level):
        raise CorruptFile(f"the HDF5 file has no tree of chunks at byte {address:,}")
    entry = struct.Struct(f"<II{rank}QQ")
    content = file.part(address + 24, count * entry.size)
    chunks: dict[tuple[int, ...], tuple[int, int, int]] = {}
    for stored, mask, *corner, place in entry.iter_unpack(content):
        file.spend(0)
        if depth == 0:
            chunks[tuple(corner[:-1])] = place, stored, mask
        else:
            chunks |= _chunks(file, place, rank, most=most, level=depth - 1)
        if len(chunks) > most:
            raise CorruptFile(f"the HDF5 file has a tree of more than {most:,} chunks")
    return chunks


def _filters(bodies: list[memoryview]) -> list[int]:
    """Returns the identifiers of the filters that chunks went through, in that order."""
    if not bodies:
        return []
    version, count = bodies[0][:2]
    position, codes = 8 if version == 1 else 2, []
    for _ in range(count):
        (code,) = struct.unpack_from("<H", bodies[0], position)
        if code not in (_DEFLATE, _SHUFFLE):
            raise UnsupportedFile(f"the HDF5 file is compressed by filter {code}, not by gzip")
        named = version == 1  # version 2 leaves out the names of the filters that HDF5 defines
        length = struct.unpack_from("<H", bodies[0], position + 2)[0] if named else 0
        position += 6 if named else 4
        (values,) = struct.unpack_from("<H", bodies[0], position)
        position += 2 + _padded(length) + 4 * (values + (values % 2 if named else 0))
        codes.append(code)
    return codes


def _unfilter(
    content: memoryview | bytes, filters: list[int], size: int, itemsize: int
) -> memoryview | bytes:
    for code in reversed(filters):
        if code == _DEFLATE:
            # One byte more than the chunk has would show a bomb, and holds it back.
            content = zlib.decompressobj().decompress(content, size + 1)
        if len(content) != size:
            break
        if code == _SHUFFLE:
            content = np.frombuffer(content, np.uint8).reshape(itemsize, -1).T.tobytes()
    if len(content) != size:
        raise CorruptFile(f"a chunk of the HDF5 file does not have its {size:,} bytes")
    return content


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _attribute(body: memoryview) -> tuple[str, tuple[memoryview, ...]]:
    """Returns the name of an attribute, and the bytes of its datatype, shape and value."""
    version, flags, *sizes = struct.unpack_from("<BB3H", body)
    if version not in (1, 2, 3):
        raise CorruptFile(f"the HDF5 file has an attribute of version {version}")
    if version > 1 and flags & 3:
        raise UnsupportedFile("the HDF5 file shares datatypes between attributes")
    position, parts = 9 if version == 3 else 8, []
    for size in sizes:
        parts.append(body[position : position + size])
        position += _padded(size) if version == 1 else size
    name = bytes(parts[0]).rstrip(b"\0").decode()
    if len(name) > MAX_NAME:
        raise CorruptFile(f"the HDF5 file has an attribute's name of {len(name):,} characters")
    return name, (parts[1], parts[2], body[position:])


def _shape(body: memoryview) -> tuple[int, ...]:
    version, rank = body[:2]
    if version not in (1, 2) or rank > MAX_DIMENSIONS:
        raise CorruptFile(f"the HDF5 file has a shape of {rank} dimensions")
    if version == 2 and body[3] == 2:  # a null dataspace: h5py's Empty
        return (0,)
    return struct.unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)


def _texts(
    file: _File, name: str, datatype: memoryview, dataspace: memoryview, value: memoryview
) -> list[str]:
    count = math.prod(_shape(dataspace))
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
            content = _heap(file, heap)[index][:length] if length else content[:0]
            file.spend(len(content))
        texts.append(bytes(content).rstrip(b"\0").decode())
    return texts


def _heap(file: _File, address: int) -> dict[int, memoryview]:
    """Returns the objects of a global heap collection by their index (specification, III.E)."""
    if address not in file.heaps:
        signature, _, size = struct.unpack("<4sIQ", file.part(address, 16))
        if signature != b"GCOL":
            raise CorruptFile(f"the HDF5 file has no heap at byte {address:,}")
        content, position, objects = file.part(address, size), 16, {}
        while position + 16 <= size:
            index, _, _, length = struct.unpack_from("<HHIQ", content, position)
            if index == 0:  # the rest is free
                break
            file.spend(0)
            objects[index] = content[position + 16 : position + 16 + length]
            position += 16 + _padded(length)
        file.heaps[address] = objects
    return file.heaps[address]
