"""The bytes of an HDF5 file, and what points into them: superblock, heaps and trees.

The format is the HDF5 File Format Specification, version 3.0. pyfive walks the trees and heaps that
find a group's members; every byte and step of its, and ours, is paid from a limited effort.
"""

import struct
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from resnetjax.errors import CorruptFile, ResNetJAXError, UnsafeWeights, UnsupportedFile
from resnetjax.weights.mapped import Viewer

MAX_STEPS = 500_000  # a ResNet-152 of Keras takes 24,000; each may take microseconds
MAX_STRUCTURE = 32 * 2**20  # bytes read that are no array; the same net takes 1.6 MB
MAX_NAME = 1000

# What parsing trips over in a corrupt file, as pyfive checks little: found by 20,000 mutations.
# Nothing else is caught, so that a mistake of our own shows as what it is.
_HOSTILE = (ArithmeticError, LookupError, ValueError, struct.error, zlib.error)

NOWHERE = 2**64 - 1  # the address of what was not written


@contextmanager
def strictly() -> Iterator[None]:
    """Turns what corrupt bytes make parsing trip over into our errors.

    Raises:
        CorruptFile: Parsing failed.
        UnsupportedFile: pyfive does not read it.
    """
    try:
        yield
    except ResNetJAXError:
        raise
    except NotImplementedError as error:
        raise UnsupportedFile(f"the HDF5 file has what is not read: {error!s:.100}") from error
    except (*_HOSTILE, AssertionError) as error:
        if isinstance(error, AssertionError) and not _from_pyfive(error):
            raise
        name = type(error).__name__
        raise CorruptFile(
            f"the HDF5 file is truncated or broken ({name}: {error!s:.100})"
        ) from error


def _from_pyfive(error: Exception) -> bool:
    """Whether pyfive raised it, which asserts what it expects of a file."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == "pyfive"


class File:
    """The bytes, with the effort that reading them may take; what pyfive takes for an open file."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.viewer = Viewer(file_size=len(data))
        self.heaps: dict[int, dict[int, memoryview]] = {}
        self.opened: set[int] = set()
        self._position = self._steps = self._bytes = 0

    def spend(self, size: int) -> None:
        """Pays for a step, and for bytes of the structure.

        Raises:
            UnsafeWeights: There has been too much of either.
        """
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
        """Sets where `read` goes on."""
        self._position = offset

    def read(self, size: int) -> bytes:
        """Returns the next bytes of the structure, fewer at the end of the file."""
        content = self.data[self._position : self._position + size]
        self.spend(len(content))
        self._position += len(content)
        return bytes(content)


def root_address(data: memoryview) -> int:
    """Returns the address of the root group, which the superblock has (specification, II.A).

    Raises:
        CorruptFile: The file is shorter than the superblock says.
        UnsupportedFile: The superblock is of another version, or has other addresses.
    """
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


def symbol_links(file: File, tree: int, heap: int) -> list[tuple[str, int | None]]:
    """Returns names and addresses of a group's members in the old format, as `parse_link` does."""
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


def dense_messages(
    file: File, heap_address: int, tree_address: int, *, kind: int
) -> list[memoryview]:
    """Returns the messages of a group (tree of kind 5) or attributes (8) kept in a fractal heap."""
    from pyfive.btree import BTreeV2AttrNames, BTreeV2GroupNames  # here: see symbol_links
    from pyfive.misc_low_level import FractalHeap

    if NOWHERE in (heap_address, tree_address):
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


def heap_objects(file: File, address: int) -> dict[int, memoryview]:
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
            position += 16 + padded(length)
        file.heaps[address] = objects
    return file.heaps[address]


def padded(size: int) -> int:
    """Returns the size with the padding to a multiple of eight bytes."""
    return -(-size // 8) * 8
