"""TensorFlow checkpoints of version 2 ("tensor bundles") as numpy arrays over the mapped shards.

The index is a table (`tf_table`) of the messages in core/protobuf/tensor_bundle.proto, written by
core/util/tensor_bundle/tensor_bundle.cc; the shards hold the elements. Checkpoints of TF2 also hold
the graph of their objects (core/protobuf/trackable_object_graph.proto), which is where the names of
variables are. Tensors carry a CRC-32C, which is verified.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnetjax.errors import CorruptFile, UnsupportedFile
from resnetjax.weights.crc32c import verify
from resnetjax.weights.mapped import Viewer, dtype_named
from resnetjax.weights.protobuf import (
    message_in,
    messages_in,
    number_in,
    read_varint,
    unique_fields,
)
from resnetjax.weights.tf_table import read_table
from resnetjax.weights.tf_types import DTYPES, STRING, parse_shape

MAX_INDEX_BYTES = 4 * 2**20  # that of a ResNet-152 with the slots of Adam takes 0.13 MiB
MAX_SHARDS = 1000
MAX_GRAPH_BYTES = 2 * 2**20  # 0.6 MiB
MAX_TEXT = 4096  # longer ones are left out of the metadata

_VERSION = 1
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# Where the optimisers of Keras keep what belongs to a variable: legacy ones, and those of TF 2.11.
_SLOTS = ("/.OPTIMIZER_SLOT/", "/_variables/")


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
    if len(index) > MAX_INDEX_BYTES:
        raise UnsupportedFile(f"an index of {len(index):,} bytes")
    table = read_table(index)
    count = _shard_count(*next(table, (b"", memoryview(b""))))
    entries = dict(_entry(key, message) for key, message in table)
    contents = _contents(entries, shards, count)
    viewer = Viewer(file_size=sum(map(len, contents.values())))
    arrays, metadata, graph = {}, {}, memoryview(b"")
    for key, entry in entries.items():
        path = key.removesuffix(_VALUE)
        if entry.dtype == STRING:
            if entry.shape:
                continue
            text = _text(contents[key], entry.checksum, what=f"text {key!r:.80}")
            if key == _GRAPH:
                graph = text
            elif len(text) <= MAX_TEXT:
                metadata[path] = str(text, "utf-8", "backslashreplace")
            continue
        verify(contents[key], entry.checksum, what=f"tensor {key!r:.80}")
        if any(slot in key for slot in _SLOTS):
            continue
        array = viewer.view(contents[key], dtype_named(DTYPES[entry.dtype]), shape=entry.shape)
        if entry.shape:
            arrays[key] = array
        else:
            metadata[path] = array.item()
    names = _names(list(arrays), graph)
    return Bundle(dict(zip(names, arrays.values(), strict=True)), metadata)


def _shard_count(key: bytes, header: memoryview) -> int:
    """Returns the number of shards from the first entry of the index."""
    if key:
        raise CorruptFile("the bundle has no header")
    fields = unique_fields(header)
    if isinstance(fields.get(1), memoryview):
        raise UnsupportedFile("a checkpoint of version 1, whose name must not end in .index")
    if number_in(fields, 2):
        raise UnsupportedFile("the bundle is big-endian")
    if (needed := number_in(unique_fields(message_in(fields, 3)), 2)) > _VERSION:
        raise UnsupportedFile(f"the bundle needs a reader of version {needed}, not {_VERSION}")
    if not 1 <= (count := number_in(fields, 1)) <= MAX_SHARDS:
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


def _entry(name: bytes, message: memoryview) -> tuple[str, _Entry]:
    if name.startswith(b"\0"):  # core/util/saved_tensor_slice_util.cc: EncodeTensorNameSlice
        raise UnsupportedFile(
            f"the variable in {name!r:.80} is partitioned: save it without a partitioner"
        )
    try:
        key = name.decode()
    except UnicodeDecodeError:
        raise CorruptFile(f"the key {name!r:.80} is not UTF-8") from None
    fields = unique_fields(message)
    shape = parse_shape(message_in(fields, 2), what=f"tensor {key!r:.80}")
    entry = _Entry(
        number_in(fields, 1), shape, *(number_in(fields, number) for number in range(3, 7))
    )
    if entry.dtype == STRING:
        return key, entry
    if entry.dtype not in DTYPES:
        raise UnsupportedFile(f"tensor {key!r:.80} is of dtype {entry.dtype}, which is not read")
    if entry.size != math.prod(shape) * dtype_named(DTYPES[entry.dtype]).itemsize:
        raise CorruptFile(f"tensor {key!r:.80} has {entry.size:,} bytes, not those of its shape")
    return key, entry


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
    size, position = read_varint(content, 0)
    if size >= 2**32 or position + 4 + size != len(content):
        raise CorruptFile(f"{what} has {len(content):,} bytes, not those that it declares")
    # The checksum is of the size as four bytes, not as the varint that is stored.
    verify(memoryview(size.to_bytes(4, "little") + content[position:]), checksum, what=what)
    return content[position + 4 :]


def _names(keys: list[str], graph: memoryview) -> list[str]:
    """Returns the variables' names of tensors, or the paths where these are not unique."""
    if len(graph) > MAX_GRAPH_BYTES:
        raise UnsupportedFile(f"the graph of objects has {len(graph):,} bytes")
    variables = {}
    # The nodes are a list; their references to each other, which may be cyclic, are not followed.
    for node in messages_in(graph, 1):
        for attribute in messages_in(node, 2):
            fields = unique_fields(attribute)
            variables[bytes(message_in(fields, 3))] = bytes(message_in(fields, 2))
    paths = [key.removesuffix(_VALUE) for key in keys]
    names = [variables.get(key.encode(), b"").decode(errors="replace") for key in keys]
    names = [name or path for name, path in zip(names, paths, strict=True)]
    return next(unique for unique in (names, paths, keys) if len(set(unique)) == len(keys))
