"""The three containers of torch.save: where the pickles are, and the bytes of every storage.

After `torch/serialization.py`: zip (since torch 1.6) has a pickle and a member per storage; legacy
is a row of pickles followed by the storages; tar (torch 0.1) has a member each for storages,
tensors and the pickle. All three use the same interpreter (CVE-2025-32434: tar went past torch's
safe one), and no size that a pickle declares is believed unchecked (CVE-2026-24747).
"""

import re
import struct
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import torch_pickle
from resnetjax.weights.mapped import dtype_named
from resnetjax.weights.torch_names import STORAGES, Name, Persistent, Tensor
from resnetjax.weights.zip_archive import ZipArchive

Kind = Literal["torch-zip", "torch-legacy", "torch-tar"]

_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # LONG1 0x1950a86a20f9469cfc6c, STOP
_PROTOCOL_VERSION = 1001
_TAR_BLOCK = 512
_TAR_MEMBERS = {"sys_info", "pickle", "storages", "tensors"}


class Storage(NamedTuple):
    """The bytes that tensors are views of, and the dtype of their elements."""

    content: memoryview
    dtype: str

    def part(self, offset: Any, size: Any) -> "Storage":
        """Returns `size` elements from `offset` on, both as the file gives them."""
        if type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
            raise CorruptFile("a view of a storage has bounds that are not numbers")
        itemsize = dtype_named(self.dtype).itemsize
        if (offset + size) * itemsize > len(self.content):
            raise CorruptFile("a view of a storage reaches beyond it")
        return Storage(self.content[offset * itemsize : (offset + size) * itemsize], self.dtype)


class Container(NamedTuple):
    """The pickled object, and a function from the persistent ids in it to what they stand for."""

    value: Any
    resolve: Callable[[Any], Storage | Tensor]


def detect(data: memoryview) -> Kind | None:
    """Returns the container that the bytes begin, if any."""
    if data[:4] == b"PK\3\4":
        return "torch-zip"
    # From protocol 4 on, a frame opcode comes before the number.
    if data[:1] == b"\x80" and _MAGIC in bytes(data[:32]):
        return "torch-legacy"
    return "torch-tar" if data[257:262] == b"ustar" else None


def open_container(data: memoryview, kind: Kind) -> Container:
    """Reads the pickles and finds the storages.

    Raises:
        UnsafeWeights, UnsupportedFile, CorruptFile: As `torch_file.read` says.
    """
    openers = {"torch-zip": _open_zip, "torch-legacy": _open_legacy, "torch-tar": _open_tar}
    return openers[kind](data)


class _StorageId(NamedTuple):
    """A persistent id: "storage", class, key, location, size; in legacy files also a view."""

    dtype: str
    key: str
    size: int
    view: tuple[Any, Any] | None

    @property
    def byte_size(self) -> int:
        return self.size * dtype_named(self.dtype).itemsize


def _storage_id(identity: Any, *, fields: int) -> _StorageId:
    # Nothing of it goes into a message before its type is known: it may be nested without end.
    if type(identity) is not tuple or len(identity) != fields or identity[0] != "storage":
        raise UnsafeWeights("the pickle refers to something other than a storage")
    _, cls, key, _, size, *views = identity
    if type(cls) is not Name or cls.text not in STORAGES:
        raise CorruptFile("a storage has no storage class")
    if type(key) is not str or type(size) is not int or size < 0:
        raise CorruptFile("a storage has no name or no size")
    view = None
    if views and views[0] is not None:
        if type(views[0]) is not tuple or len(views[0]) != 3:
            raise CorruptFile(f"storage {key!r:.40} is a view without bounds")
        view = views[0][1:]
    return _StorageId(STORAGES[cls.text], key, size, view)


def _open_zip(data: memoryview) -> Container:
    archive = ZipArchive(data)
    pickles = [name for name in archive.members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UnsupportedFile(
            f"the zip archive holds {len(pickles)} files named data.pkl, where torch.save writes "
            f"one; it begins with {list(archive.members)[:3]!r:.200}"
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.members:
        raise UnsupportedFile(
            "the file is a TorchScript program: load it with torch.jit.load and save "
            "`model.state_dict()` instead"
        )
    if f"{folder}byteorder" in archive.members and archive.read(f"{folder}byteorder") != b"little":
        raise UnsupportedFile("the file was written on a big-endian machine, which is not read")
    contents: dict[str, memoryview] = {}

    def resolve(identity: Any) -> Storage:
        storage = _storage_id(identity, fields=5)
        if storage.key not in contents:
            contents[storage.key] = archive.read(f"{folder}data/{storage.key}")
        content = contents[storage.key]
        if storage.byte_size != len(content):
            raise CorruptFile(
                f"storage {storage.key!r:.40} is declared with {storage.byte_size:,} bytes and has "
                f"{len(content):,}"
            )
        return Storage(content, storage.dtype)

    return Container(torch_pickle.load(archive.read(pickles[0])).value, resolve)


class _Stream:
    """Pickles, numbers and storages, one behind the other."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self.data) - self.position:
            raise CorruptFile(f"the file declares {size:,} bytes where fewer are left")
        self.position += size
        return self.data[self.position - size : self.position]

    def pickle(self) -> torch_pickle.Pickle:
        loaded = torch_pickle.load(self.data, start=self.position)
        self.position = loaded.end
        return loaded

    def count(self) -> int:
        count = self.pickle().value
        if type(count) is not int or not 0 <= count <= len(self.data) - self.position:
            raise CorruptFile("the file declares more parts than it can hold")
        return count

    def numbers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}q", self.take(8 * count))

    def storage(self, dtype: str) -> Storage:
        (size,) = self.numbers(1)
        return Storage(self.take(size * dtype_named(dtype).itemsize), dtype)


def _open_legacy(data: memoryview) -> Container:
    stream = _Stream(data)
    stream.pickle()  # the magic number, which `detect` compared
    if stream.pickle().value != _PROTOCOL_VERSION:
        raise UnsupportedFile(f"the file is not of torch's protocol version {_PROTOCOL_VERSION}")
    stream.pickle()  # the writer's machine; storages are little-endian whatever it says
    value, identities, _ = stream.pickle()
    declared: dict[str, _StorageId] = {}
    for identity in identities:
        if type(identity) is tuple and identity[:1] == ("module",):
            continue  # a class and its source
        storage = _storage_id(identity, fields=6)
        # The first one's dtype is the unit in which the storage's size is written.
        if declared.setdefault(storage.key, storage).byte_size != storage.byte_size:
            raise CorruptFile(f"storage {storage.key!r:.40} is declared with two sizes")
    keys = stream.pickle().value
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise CorruptFile("the file has no list of its storages")
    if sorted(keys) != sorted(declared):
        raise CorruptFile("the file's list of storages differs from those that its tensors use")
    contents: dict[str, memoryview] = {}
    for key in keys:
        contents[key] = stream.storage(declared[key].dtype).content
        if len(contents[key]) != declared[key].byte_size:
            raise CorruptFile(
                f"storage {key!r:.40} does not have the size that it is declared with"
            )

    def resolve(identity: Any) -> Storage:
        storage = _storage_id(identity, fields=6)
        whole = Storage(contents[storage.key], storage.dtype)
        return whole if storage.view is None else whole.part(*storage.view)

    return Container(value, resolve)


def _open_tar(data: memoryview) -> Container:
    members = _tar_members(data)
    objects: dict[str, Storage | Tensor] = {}

    def resolve(identity: Any) -> Storage | Tensor:
        if type(identity) not in (int, str):
            raise UnsafeWeights("the pickle refers to something other than a storage or a tensor")
        if str(identity) not in objects:
            raise CorruptFile(f"the file refers to {identity!r:.40}, which it does not hold")
        return objects[str(identity)]

    stream = _Stream(members["storages"])
    for _ in range(stream.count()):
        key, _, cls = _fields(stream.pickle().value, 3)
        if type(cls) is not Name or cls.text not in STORAGES:
            raise CorruptFile("a storage has no storage class")
        objects[str(key)] = stream.storage(STORAGES[cls.text])
    views = stream.pickle().value
    for view in views if type(views) is list else [views]:
        key, root, offset, size = _fields(view, 4)
        storage = resolve(root)
        if not isinstance(storage, Storage):
            raise CorruptFile("a view of a storage has no storage")
        objects[str(key)] = storage.part(offset, size)

    stream = _Stream(members["tensors"])
    for _ in range(stream.count()):
        key, storage, _ = _fields(stream.pickle().value, 3)
        (dimensions,) = struct.unpack("<i4x", stream.take(8))
        shape, strides = stream.numbers(dimensions), stream.numbers(dimensions)
        (offset,) = stream.numbers(1)
        objects[str(key)] = Tensor(Persistent(storage), offset, shape, strides)
    return Container(torch_pickle.load(members["pickle"]).value, resolve)


def _fields(value: Any, count: int) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) != count or type(value[0]) not in (int, str):
        raise CorruptFile("the file describes a storage or tensor in an unknown form")
    return value


def _tar_members(data: memoryview) -> dict[str, memoryview]:
    members, position = {}, 0
    while any(data[position : position + _TAR_BLOCK]):
        header = bytes(data[position : position + _TAR_BLOCK])
        position += _TAR_BLOCK
        name = header[:100].rstrip(b"\0").decode("latin-1").removeprefix("./")
        try:
            size = int(header[124:136].strip(b"\0 "), 8)
        except ValueError:
            raise CorruptFile(f"member {name!r} of the tar archive has no size") from None
        if position + size > len(data) or size < 0:
            raise CorruptFile(f"member {name!r} of the tar archive is truncated")
        kind = header[156:157]
        if kind in (b"0", b"\0"):
            if name.startswith("/") or ".." in re.split(r"[/\\]", name):
                raise UnsafeWeights(f"the tar archive holds a file outside it: {name!r}")
            if name not in _TAR_MEMBERS:
                raise UnsupportedFile(
                    f"the tar archive holds {name!r}: torch.save did not write it"
                )
            if name in members:
                raise UnsafeWeights(f"the tar archive holds {name!r} twice")
            members[name] = data[position : position + size]
        elif kind != b"x":  # attributes such as the time with fractions, before each member
            raise UnsafeWeights(f"member {name!r} of the tar archive is a link or a device")
        position += -(-size // _TAR_BLOCK) * _TAR_BLOCK
    if missing := sorted(_TAR_MEMBERS - members.keys()):
        raise CorruptFile(f"the tar archive lacks {', '.join(missing)}")
    return members
