"""TensorFlow checkpoints of version 1 as numpy arrays: one file, as published by slim.

The file is a table (`tf_table`) of the messages in core/util/saved_tensor_slice.proto, written by
core/util/tensor_slice_writer.cc: under the empty key what tensors there are, then the elements of
each, spelled as in core/framework/tensor.proto. Blocks carry a CRC-32C, which is verified.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from resnetjax.errors import CorruptFile, UnsupportedFile
from resnetjax.weights.mapped import MAX_DIMENSIONS, Viewer
from resnetjax.weights.protobuf import (
    Field,
    message_in,
    messages_in,
    number_in,
    read_fields,
    read_varint,
    unique_fields,
)
from resnetjax.weights.tf_table import MAX_ENTRIES, read_table
from resnetjax.weights.tf_types import DTYPES, STRING, parse_shape

MAX_META_BYTES = 4 * 2**20  # a ResNet-152 takes 0.1 MiB
MAX_NUMBERS = 100_000  # whole numbers, which are decoded one by one; nets have their step

_VERSION = 1
# Fields of TensorProto. Floats are stored as they are, whole numbers each in a variable length.
_FLOATS = {"float32": 5, "float64": 6}
_WHOLE = {**dict.fromkeys(("int32", "uint8", "int16", "int8"), 7), "int64": 10, "bool": 11}


class _Tensor(NamedTuple):
    """What a tensor is; no dtype of texts, which are left out."""

    dtype: str | None
    shape: list[int]


def parse(data: memoryview) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tensors by name, read-only, and by name the numbers beside them.

    Tensors of text are left out. Floats are views of the file where they happen to be aligned.

    Raises:
        CorruptFile: A checksum is wrong, or the tensors are not those that it says it has.
        UnsupportedFile: It has partitioned variables, dtypes that version 1 seldom has or very many
            whole numbers; or it is the index of a checkpoint of version 2.
    """
    table = read_table(data)
    tensors = _tensors(*next(table, (b"", memoryview(b""))))
    viewer = Viewer(file_size=len(data))
    arrays, metadata, found = {}, {}, set()
    for _, value in table:
        fields = unique_fields(message_in(unique_fields(value), 2))
        name = _text(message_in(fields, 1))
        if name not in tensors or name in found:
            raise CorruptFile(
                f"the elements of tensor {name!r:.80} are there twice, or unannounced"
            )
        found.add(name)
        _check_whole(message_in(fields, 2), name)
        if (dtype := tensors[name].dtype) is None:
            continue
        elements = unique_fields(message_in(fields, 3))
        shape = tensors[name].shape
        if dtype in _FLOATS:
            content = message_in(elements, _FLOATS[dtype])
            if len(content) != math.prod(shape) * np.dtype(dtype).itemsize:
                raise CorruptFile(
                    f"tensor {name!r:.80} has {len(content):,} bytes, too few or many"
                )
            array = viewer.view(content, np.dtype(dtype), shape=shape)
        else:
            count = math.prod(shape)
            numbers = _whole_numbers(message_in(elements, _WHOLE[dtype]), dtype, count)
            if numbers is None:
                raise CorruptFile(f"tensor {name!r:.80} has other elements than it can have")
            array = viewer.view(numbers.tobytes(), numbers.dtype, shape=shape)
        if shape:
            arrays[name] = array
        else:
            metadata[name] = array.item()
    if missing := tensors.keys() - found:
        raise CorruptFile(f"the elements of tensor {min(missing)!r:.80} are missing")
    return arrays, metadata


def _tensors(key: bytes, header: memoryview) -> dict[str, _Tensor]:
    """Returns what tensors there are from the first entry of the table."""
    if key:
        raise CorruptFile("the checkpoint does not say what tensors it has")
    meta = unique_fields(header).get(1, 0)
    if isinstance(meta, int):  # the number of shards
        raise UnsupportedFile("the index of a TensorFlow checkpoint, whose name ends in .index")
    if len(meta) > MAX_META_BYTES:
        raise CorruptFile(f"the checkpoint says in {len(meta):,} bytes what tensors it has")
    for version in messages_in(meta, 2):
        if (needed := number_in(unique_fields(version), 2)) > _VERSION:
            raise UnsupportedFile(
                f"the checkpoint needs a reader of version {needed}, not {_VERSION}"
            )
    tensors: dict[str, _Tensor] = {}
    count = 0
    for message in messages_in(meta, 1):
        name, tensor = _tensor(message)
        if name in tensors or len(tensors) == MAX_ENTRIES:
            raise CorruptFile(f"tensor {name!r:.80} is announced twice, or one of very many")
        tensors[name] = tensor
        count += math.prod(tensor.shape) if tensor.dtype in _WHOLE else 0
    if count > MAX_NUMBERS:
        raise UnsupportedFile(
            f"the checkpoint has {count:,} whole numbers, more than {MAX_NUMBERS:,}"
        )
    return tensors


def _tensor(message: memoryview) -> tuple[str, _Tensor]:
    """Returns a tensor's name, and what it is, from a `SavedSliceMeta`."""
    fields: dict[int, Field] = {}
    slices = []
    for number, value in read_fields(message):
        if number == 4 and not isinstance(value, int):
            slices.append(value)
        fields[number] = value
    name = _text(message_in(fields, 1))
    if len(slices) != 1:
        raise _partitioned(name)
    _check_whole(slices[0], name)
    shape = parse_shape(message_in(fields, 2), what=f"tensor {name!r:.80}")
    number = number_in(fields, 3)
    dtype = None if number == STRING else DTYPES.get(number, f"number {number}")
    if dtype is not None and dtype not in {**_FLOATS, **_WHOLE}:
        raise UnsupportedFile(f"tensor {name!r:.80} is of dtype {dtype}, which is not read")
    return name, _Tensor(dtype, shape)


def _check_whole(message: memoryview, name: str) -> None:
    """Makes sure that a slice is the whole of its tensor: no dimension has a start or a length.

    Raises:
        UnsupportedFile: It is a part.
        CorruptFile: It has more dimensions than numpy allows.
    """
    for count, (number, extent) in enumerate(read_fields(message)):
        if count == MAX_DIMENSIONS:
            raise CorruptFile(f"tensor {name!r:.80} has too many dimensions")
        if number != 1 or isinstance(extent, int) or len(extent):
            raise _partitioned(name)


def _partitioned(name: str) -> UnsupportedFile:
    return UnsupportedFile(
        f"the variable {name!r:.80} is partitioned: save it without a partitioner"
    )


def _whole_numbers(content: memoryview, dtype: str, count: int) -> np.ndarray | None:
    """Returns numbers of variable length; None where they are not as many, or beyond the dtype."""
    values, position = [], 0
    while position < len(content) and len(values) <= count:
        value, position = read_varint(content, position)
        values.append(value % 2**64)
    wide = np.array(values, np.uint64).view(np.int64)
    narrow = wide.astype(dtype)
    return None if len(values) != count or (narrow != wide).any() else narrow


def _text(content: memoryview) -> str:
    try:
        return bytes(content).decode()
    except UnicodeDecodeError:
        raise CorruptFile(f"the name {bytes(content)!r:.80} is not UTF-8") from None
