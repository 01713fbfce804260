"""Numpy's archives (`.npz`) as numpy arrays, views of the mapped file where they are stored.

A zip archive of `.npy` members (numpy/lib/_format_impl.py describes them). Read here rather than
by `numpy.load`, which copies every array, believes its header's size before it has the bytes, and
unpickles objects for who allows it.
"""

import io
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import zip_archive
from resnetjax.weights.mapped import MAX_DIMENSIONS, Viewer, dtype_named
from resnetjax.weights.zip_archive import ZipArchive

MAX_HEADER_BYTES = 10_000  # numpy's own limit
MAX_TEXT = 4096

_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{'descr': (?P<descr>.+?), 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[\dL, ]*)\), \} *\n?",
    re.DOTALL,
)
_OBJECT = re.compile(r"'[|<>=]?O")
_DESCR = re.compile(r"'(?P<order>[<>|=])(?P<kind>[biufcU])(?P<size>\d{1,9})'")
_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}


class Npz(NamedTuple):
    """The arrays by name, and by name the numbers and texts beside them."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


def detect(data: memoryview) -> bool:
    """Returns whether the bytes begin like an archive of `.npy` members, whole or not."""
    name_size = int.from_bytes(data[26:28], "little")
    return data[:4] == b"PK\3\4" and bytes(data[30 : 30 + name_size]).endswith(b".npy")


def parse(data: memoryview) -> Npz:
    """Returns what the bytes of an archive hold, as read-only arrays.

    Raises:
        CorruptFile: The archive is broken, or a member does not have the size that it declares.
        UnsafeWeights: It holds pickled objects, or as `ZipArchive` says.
        UnsupportedFile: It holds other files, or arrays of text, records or another byte order.
    """
    archive = ZipArchive(data)
    if others := [name for name in archive.members if not name.endswith(".npy")]:
        raise UnsupportedFile(f"the archive holds {others[0]!r:.80}, which is not an array")
    arrays, metadata, viewer = {}, {}, Viewer(file_size=len(data))
    for member in archive.members:
        name = member.removesuffix(".npy")
        value = _array(archive.read(member), viewer, what=f"array {name!r:.80}")
        if isinstance(value, np.ndarray) and value.ndim:
            arrays[name] = value
        else:
            metadata[name] = value if isinstance(value, str) else value.item()
    return Npz(arrays, metadata)


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an archive of these arrays, stored as they are."""
    members = {}
    for name, array in arrays.items():
        member = io.BytesIO()
        np.lib.format.write_array(member, array, allow_pickle=False)
        members[f"{name}.npy"] = member.getbuffer()
    return zip_archive.encode(members)


def _array(content: memoryview, viewer: Viewer, *, what: str) -> np.ndarray | str:
    header, body = _split(content, what=what)
    if (found := _HEADER.fullmatch(header)) is None:
        raise CorruptFile(f"{what} has a header that numpy does not write")
    shape = _shape(found["shape"], what=what)
    descr = _DESCR.fullmatch(found["descr"])
    # numpy has no name for bfloat16 and writes void; with two bytes nothing else is meant.
    if found["descr"] in ("'|V2'", "'<V2'"):
        dtype = dtype_named("bfloat16")
    elif _OBJECT.search(found["descr"]):
        raise UnsafeWeights(f"{what} holds pickled objects, which would run code when read")
    elif descr is not None and descr["kind"] == "U" and not shape:
        return _text(body, descr, what=what)
    elif descr is None or int(descr["size"]) not in _SIZES.get(descr["kind"], ()):
        raise UnsupportedFile(f"{what} is of dtype {found['descr']:.40}, which is not read")
    else:
        dtype = np.dtype(descr[0].strip("'"))
    if not dtype.isnative:
        raise UnsupportedFile(f"{what} is big-endian")
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise CorruptFile(f"{what} has {len(body):,} bytes, not those of its shape")
    if found["fortran"] == "False":
        return viewer.view(body, dtype, shape=shape)
    strides = [math.prod(shape[:axis]) for axis in range(len(shape))]
    return viewer.view(body, dtype, shape=shape, strides=strides)


def _split(content: memoryview, *, what: str) -> tuple[str, memoryview]:
    """Returns the header and the elements of a member."""
    if content[:6] != _MAGIC or len(content) < 12:
        raise CorruptFile(f"{what} is not in numpy's format, or truncated")
    if (version := bytes(content[6:8])) not in (b"\1\0", b"\2\0", b"\3\0"):
        raise UnsupportedFile(f"{what} is of version {version[0]}.{version[1]} of numpy's format")
    start = 10 if version == b"\1\0" else 12
    end = start + int.from_bytes(content[8:start], "little")
    if end - start > MAX_HEADER_BYTES or end > len(content):
        raise CorruptFile(f"{what} has a header of {end - start:,} bytes")
    return bytes(content[start:end]).decode("latin-1"), content[end:]


def _shape(text: str, *, what: str) -> list[int]:
    lengths = text.split(",")
    if not lengths[-1].strip():  # () and (3,)
        lengths.pop()
    lengths = [length.strip().removesuffix("L") for length in lengths]  # L: Python 2
    if len(lengths) > MAX_DIMENSIONS or not all(re.fullmatch(r"\d{1,19}", n) for n in lengths):
        raise CorruptFile(f"{what} has a shape that is none")
    return [int(length) for length in lengths]


def _text(body: memoryview, descr: re.Match[str], *, what: str) -> str:
    if len(body) != 4 * int(descr["size"]) or len(body) > 4 * MAX_TEXT:
        raise CorruptFile(f"{what} is a text of {len(body):,} bytes, not those that it declares")
    encoding = "utf-32-be" if descr["order"] == ">" else "utf-32-le"
    try:
        return str(body, encoding).rstrip("\0")
    except UnicodeDecodeError:
        raise CorruptFile(f"{what} is no text") from None
