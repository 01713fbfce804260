"""Groups, attributes and arrays of an HDF5 file, as far as Keras writes them.

An object is the messages of its header (`hdf5_messages`), which lead through heaps and trees
(`hdf5_structure`) to its members, or to its elements and their chunks (`hdf5_chunks`).
"""

import math
import struct

import numpy as np

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights.hdf5_chunks import find_chunks, parse_filters, undo_filters
from resnetjax.weights.hdf5_messages import (
    ATTRIBUTE,
    ATTRIBUTE_INFO,
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILTERS,
    LAYOUT,
    LINK,
    LINK_INFO,
    SYMBOL_TABLE,
    Message,
    parse_attribute,
    parse_link,
    parse_number_dtype,
    parse_shape,
    parse_texts,
    read_messages,
)
from resnetjax.weights.hdf5_structure import (
    NOWHERE,
    File,
    dense_messages,
    root_address,
    strictly,
    symbol_links,
)
from resnetjax.weights.mapped import Viewer, dtype_named

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_CHUNKS = 100_000
MAX_RATIO = 1000  # of what an array declares to what is stored of it


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
    with strictly():
        file = File(data)
        if inflated_from is not None:
            file.viewer = Viewer(file_size=inflated_from)
            file.viewer.budget -= len(data)
        return Group(file, root_address(data), "/")


class _Object:
    """What groups and datasets have in common: a name, messages, attributes."""

    def __init__(self, file: File, messages: list[Message], name: str) -> None:
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
        with strictly():
            attributes = self._parsed_attributes()
            if name in attributes:
                return parse_texts(self._file, name, *attributes[name])
            if f"{name}0" not in attributes:
                return None
            texts, part = [], 0
            while (key := f"{name}{part}") in attributes:
                texts += parse_texts(self._file, key, *attributes[key])
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
            bodies = self._bodies(ATTRIBUTE)
            for body in self._bodies(ATTRIBUTE_INFO):
                start = 4 if body[1] & 1 else 2
                bodies += dense_messages(
                    self._file, *struct.unpack_from("<QQ", body, start), kind=8
                )
            attributes = [parse_attribute(body) for body in bodies]
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
        self, file: File, address: int, name: str, *, messages: list[Message] | None = None
    ) -> None:
        super().__init__(file, read_messages(file, address) if messages is None else messages, name)
        links: list[tuple[str, int | None]] = []
        for body in self._bodies(SYMBOL_TABLE):
            links += symbol_links(file, *struct.unpack("<QQ", body))
        for body in self._bodies(LINK_INFO):
            start = 10 if body[1] & 1 else 2
            dense = dense_messages(file, *struct.unpack_from("<QQ", body, start), kind=5)
            links += [parse_link(content) for content in dense]
        links += [parse_link(body) for body in self._bodies(LINK)]
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
            with strictly():
                self._members[name] = self._open(name)
        return self._members[name]

    def _open(self, name: str) -> "Group | Dataset":
        path = f"{self.name.removesuffix('/')}/{name}"
        if name not in self._links:
            raise CorruptFile(f"the HDF5 file has no {path!r:.160}")
        address = self._links[name]
        if address is None:
            raise UnsafeWeights(f"{path!r:.160} of the HDF5 file is a soft or an external link")
        messages = read_messages(self._file, address)
        kinds = {message.kind for message in messages}
        if LAYOUT in kinds:
            return Dataset(self._file, messages, path)
        if kinds.isdisjoint({SYMBOL_TABLE, LINK_INFO, LINK}):
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

    def __init__(self, file: File, messages: list[Message], name: str) -> None:
        super().__init__(file, messages, name)
        self.shape = parse_shape(self._body(DATASPACE, "shape"))

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
        with strictly():
            return self._read()

    def _read(self) -> np.ndarray:
        if self._bodies(EXTERNAL):
            raise UnsafeWeights(f"{self.name!r:.160} keeps its data in another file")
        dtype = self._dtype()
        declared = math.prod(self.shape) * dtype.itemsize
        body = self._body(LAYOUT, "layout")
        version, layout = body[0], body[1] if body[0] >= 3 else body[2]
        if layout == 3:
            raise UnsafeWeights(f"{self.name!r:.160} is a view of other datasets, maybe elsewhere")
        if version not in (1, 2, 3) and not (version == 4 and layout < 2):
            raise UnsupportedFile(f"{self.name!r:.160} has a layout of version {version}")
        if layout == 2:
            return self._read_chunks(body, dtype, declared)
        if layout == 1:
            (address,) = struct.unpack_from("<Q", body, 2 if version >= 3 else 8)
            stored = 0 if address == NOWHERE else declared
            content = self._file.data[address : address + stored]
        else:
            start, width = (4, 2) if version >= 3 else (8 + 4 * body[1] + 4, 4)
            content = body[start : start + int.from_bytes(body[start - width : start], "little")]
        self._check_size(declared, len(content))
        return self._file.viewer.view(content, dtype, shape=self.shape)

    def _dtype(self) -> np.dtype:
        body = self._body(DATATYPE, "datatype")
        if (dtype := parse_number_dtype(body)) is not None:
            return dtype
        kind, (size,) = body[0] & 15, struct.unpack_from("<I", body, 4)
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
        chunks = find_chunks(self._file, address, rank, most=count) if address != NOWHERE else {}
        self._check_size(declared, sum(stored for _, stored, _ in chunks.values()))
        if len(chunks) != count:
            raise CorruptFile(f"{self.name!r:.160} has {len(chunks):,} of {count:,} chunks")
        filters = parse_filters(self._bodies(FILTERS))
        array = np.empty(self.shape, dtype)
        for corner, (place, stored, mask) in chunks.items():
            places = list(zip(corner, self.shape, chunk, strict=True))
            if any(begin % step or begin >= length for begin, length, step in places):
                raise CorruptFile(f"{self.name!r:.160} has a chunk at no place of a chunk")
            used = [code for bit, code in enumerate(filters) if not mask >> bit & 1]
            content = undo_filters(self._file.data[place : place + stored], used, size, itemsize)
            target = array[tuple(slice(begin, begin + step) for begin, _, step in places)]
            inside = tuple(slice(length) for length in target.shape)
            target[...] = np.frombuffer(content, dtype).reshape(chunk)[inside]
        array.flags.writeable = False
        return array
