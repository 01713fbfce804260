"""The chunks of an HDF5 dataset: where they lie, and what they went through.

The tree is read here rather than by pyfive, which takes 600 bytes for every chunk of it.
"""

import struct
import zlib

import numpy as np

from resnetjax.errors import CorruptFile, UnsupportedFile
from resnetjax.weights.hdf5_structure import File, padded

_DEFLATE, _SHUFFLE = 1, 2


def find_chunks(
    file: File, address: int, rank: int, *, most: int, level: int | None = None
) -> dict[tuple[int, ...], tuple[int, int, int]]:
    """Returns address, size and filter mask of the chunks by the index of their first element.

    Args:
        file: The file, which pays for the walk.
        address: Where the tree (specification, III.A.1) begins.
        rank: Of the dataset, and one more for the bytes of an element.
        most: How many chunks it may have.
        level: What depth the tree must have, for the parts of a tree.

    Raises:
        CorruptFile: There is no such tree, or it has more chunks.
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
            chunks |= find_chunks(file, place, rank, most=most, level=depth - 1)
        if len(chunks) > most:
            raise CorruptFile(f"the HDF5 file has a tree of more than {most:,} chunks")
    return chunks


def parse_filters(bodies: list[memoryview]) -> list[int]:
    """Returns the identifiers of the filters that chunks went through, in that order.

    Raises:
        UnsupportedFile: One is neither gzip nor shuffling.
    """
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
        position += 2 + padded(length) + 4 * (values + (values % 2 if named else 0))
        codes.append(code)
    return codes


def undo_filters(
    content: memoryview | bytes, filters: list[int], size: int, itemsize: int
) -> memoryview | bytes:
    """Returns the bytes of a chunk as they were before its filters.

    Args:
        content: The bytes that are stored.
        filters: The identifiers of the filters, in the order in which they were applied.
        size: What the chunk has to have in bytes.
        itemsize: What an element has in bytes.

    Raises:
        CorruptFile: It does not have that size.
    """
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
