"""Safetensors files as numpy arrays over the mapped file.

The format (github huggingface/safetensors, README): eight bytes with the length of a JSON header,
the header, the arrays. Read here rather than by the library, whose numpy loader copies every array
and knows neither bfloat16 nor float8.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from resnetjax.errors import CorruptFile, UnsupportedFile
from resnetjax.weights import bounded_json
from resnetjax.weights.mapped import Viewer, dtype_named

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


class Safetensors(NamedTuple):
    """The arrays by name, and the texts under `__metadata__`."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def detect(data: memoryview) -> bool:
    """Returns whether the bytes begin like a safetensors file, whole or not."""
    return data[8:9] == b"{" and 0 in data[:8]  # which a text never has


def parse(data: memoryview) -> Safetensors:
    """Returns what the bytes of a safetensors file hold, as read-only views.

    Raises:
        CorruptFile: The header is no header, or the arrays do not fill the file without gaps.
        UnsupportedFile: An array is of a dtype that numpy and ml_dtypes lack.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise CorruptFile(
            f"the file is truncated: it has {len(data):,} bytes, its header {start:,}"
        )
    header = bounded_json.loads(data[8:start], what="the safetensors header")
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(text) is not str for text in metadata.values()):
        raise CorruptFile("the safetensors header has metadata that is not text")
    buffer, viewer = data[start:], Viewer(file_size=len(data))
    arrays, spans = {}, []
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    needed = start + max((end for *_, end in entries.values()), default=0)
    if needed > len(data):
        raise CorruptFile(
            f"the file is truncated: it has {len(data):,} bytes, its arrays end at {needed:,}"
        )
    for name, (dtype, shape, begin, end) in entries.items():
        # The size is checked against the shape before a view is made, the view against the bytes.
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise CorruptFile(
                f"array {name!r:.80} has {end - begin:,} bytes, not those of its shape"
            )
        arrays[name] = viewer.view(buffer[begin:end], dtype, shape=shape)
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise CorruptFile(f"the safetensors arrays overlap or leave a gap at byte {position:,}")
        position = end
    if position != len(buffer):
        raise CorruptFile(f"the safetensors arrays have {position:,} of {len(buffer):,} bytes")
    return Safetensors(arrays, metadata)


def _entry(name: str, entry: Any) -> tuple[np.dtype, list[int], int, int]:
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptFile(f"array {name!r:.80} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list:
        raise CorruptFile(f"array {name!r:.80} is described by values of the wrong type")
    if dtype not in _DTYPES:
        raise UnsupportedFile(f"array {name!r:.80} is of dtype {dtype!r:.20}, which is not read")
    numbers = [*shape, *offsets]
    if len(offsets) != 2 or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
        raise CorruptFile(f"array {name!r:.80} has a shape or offsets that are no natural numbers")
    if len(shape) > 64 or offsets[0] > offsets[1]:
        raise CorruptFile(
            f"array {name!r:.80} has {len(shape)} dimensions or ends before it begins"
        )
    return dtype_named(_DTYPES[dtype]), shape, *offsets
