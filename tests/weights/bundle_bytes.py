"""Writes TensorFlow checkpoints (V2 bundles) without TensorFlow: any field may be a lie."""

import numpy as np

from tests.weights.table_bytes import block, field, masked, shape_of, table, varint

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)
BYTES = SIX.tobytes()


def entry(content=BYTES, *, dtype=1, shape=(2, 3), shard=0, offset=0, size=None, more=b""):
    """The message about a tensor with this content."""
    numbers = {3: shard, 4: offset, 5: len(content) if size is None else size}
    head = field(1, dtype) + field(2, shape if isinstance(shape, bytes) else shape_of(*shape))
    middle = b"".join(field(number, value) for number, value in numbers.items())
    return head + middle + varint(6 << 3 | 5) + masked(content) + more


def header(shards=1, *, endianness=0, needed=0) -> bytes:
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1) + field(2, needed))


def index(entries: dict[str, bytes] | None = None, head=None, **options) -> bytes:
    named = {"": header() if head is None else head} | (entries or {"w": entry()})
    return table(block([(key.encode(), value) for key, value in named.items()], **options))
