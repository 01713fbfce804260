"""Hostile safetensors, numpy archives, Flax messages, TensorFlow checkpoints; hostile indices."""

import io
import json
import os
import struct
import zipfile

import numpy as np

from tests.weights.attack import SECRET, Attack
from tests.weights.bundle_bytes import entry, header, index
from tests.weights.malicious_torch import zeros
from tests.weights.npz_bytes import npy, npz, one
from tests.weights.safetensors_bytes import entry as described
from tests.weights.safetensors_bytes import header as text_of
from tests.weights.safetensors_bytes import safetensors
from tests.weights.table_bytes import block, field, masked, shape_of, table, varint


class Command:
    """What a pickle of it runs."""

    def __reduce__(self):
        return os.system, ("touch canary",)


def attack(kind, make, victim, harm="exhausts", error="CorruptFile", **options) -> Attack:
    return Attack(kind, make, error, victim, harm, **options)


def unsafe(kind, make, victim, harm="exhausts", **options) -> Attack:
    return Attack(kind, make, "UnsafeWeights", victim, harm, **options)


def index_of(shard: str) -> bytes:
    return json.dumps({"weight_map": {"a": shard}}).encode()


def overlapping() -> bytes:
    """60 arrays that are all the same 4 MB."""
    entries = {f"a{i}": described("U8", (2**22,), (0, 2**22)) for i in range(60)}
    return safetensors(text_of(**entries), bytes(2**22))


SAFETENSORS = {
    "safetensors: header of a terabyte": attack(
        "declared size", lambda: safetensors(text_of(a=described()), size=2**40), "safetensors"
    ),
    "safetensors: header of brackets": attack(
        "nesting", lambda: safetensors(b'{"a":' + b"[" * 100_000), "safetensors"
    ),
    "safetensors: shape of terabytes": attack(
        "declared size", lambda: safetensors(text_of(a=described(shape=(2**40,)))), "safetensors"
    ),
    "safetensors: offsets before the data": attack(
        "offsets",
        lambda: safetensors(
            text_of(a=described(shape=(7,), offsets=(-28, 0)), __metadata__={"k": SECRET})
        ),
        "safetensors",
        "leaks",
    ),
    "safetensors: offsets into a gap": attack(
        "offsets",
        lambda: safetensors(
            text_of(a=described(offsets=(24, 48))), bytes(24) + SECRET.encode() + b".."
        ),
        "safetensors",
        "leaks",
    ),
    "safetensors: arrays that overlap": unsafe("offsets", overlapping, "safetensors"),
    "index: leaves its folder": unsafe(
        "path traversal", lambda: index_of("../secret"), "shards", "leaks"
    ),
    "index: absolute": unsafe(
        "path traversal", lambda: index_of("/proc/self/cwd/secret"), "shards", "leaks"
    ),
    "index: of itself": attack(
        "cycle", lambda: index_of("weights.any"), "shards", error="UnsupportedFile"
    ),
    "index: of brackets": attack("nesting", lambda: b'{"weight_map":' + b"[" * 100_000, "shards"),
}  # fmt: skip


def objects(*, records=False) -> bytes:
    array = np.array([Command()], dtype=object)
    return npz(w=array.astype([("a", object)]) if records else array)


def npz_bomb() -> bytes:
    """256 MB of zeros behind a header."""
    head = npy("'|u1'", shape=f"({2**28},)", body=b"")
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("w.npy", stored_block(head) + zeros(2**28))
    content = bytearray(buffer.getvalue())
    for start, method in ((content.index(b"w.npy") - 30, 8), (content.rindex(b"w.npy") - 46, 10)):
        struct.pack_into("<H", content, start + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", content, start + method + 14, len(head) + 2**28)
    return bytes(content)


def stored_block(content: bytes) -> bytes:
    """The content as a block of deflate, not compressed."""
    return b"\0" + struct.pack("<HH", len(content), len(content) ^ 0xFFFF) + content


EVALUATED = "__import__('os').system('touch canary')"
NUMPY = {
    "npz: pickled objects": unsafe("object dtype", objects, "npz", "runs", file="w.npz"),
    "npz: pickled objects in records": unsafe(
        "object dtype", lambda: objects(records=True), "npz", "runs", file="w.npz"
    ),
    "npz: bomb": unsafe("zip bomb", npz_bomb, "npz", file="w.npz"),
    "npz: shape of terabytes": attack(
        "declared size", lambda: one(npy("'|u1'", shape=f"({10**13},)")), "npz", file="w.npz"
    ),
    "npz: shape of terabytes in a text": attack(
        "declared size", lambda: one(npy(f"'<U{2**28}'", shape="()")), "npz", file="w.npz"
    ),
    "npz: header that is code": attack(
        "eval", lambda: one(npy(shape=EVALUATED)), "npz_by_eval", "runs", file="w.npz"
    ),
}


def nested_lists(count: int) -> bytes:
    """Lists in lists, each of which claims as many values as there are bytes."""
    lists = (b"\xdd" + struct.pack(">I", count)) * 500
    return (b"\x81\xa1a" + lists).ljust(count, b"\0")


FLAX = {
    "msgpack: lists that claim more": unsafe(
        "declared size", lambda: nested_lists(200_000), "msgpack_walked", slow=True
    ),
    "msgpack: maps of great depth": unsafe(
        "nesting", lambda: b"\x81\xa1a" * 100_000 + b"\0", "msgpack_walked"
    ),
    "msgpack: lists of great depth": unsafe(
        "nesting", lambda: b"\x81\xa1a" + b"\x91" * 100_000 + b"\0", "msgpack_walked"
    ),
    "msgpack: list of four billion": attack(
        "declared size", lambda: b"\x81\xa1a\xdd\xff\xff\xff\xff", "msgpack_walked"
    ),
    "msgpack: bytes of two gigabytes": attack(
        "declared size", lambda: b"\x81\xa1a\xc6\x7f\xff\xff\xff", "msgpack_walked"
    ),
    "msgpack: array of two gigabytes": attack(
        "declared size",
        lambda: b"\x81\xa1a\xc9" + struct.pack(">IB", 2**31, 1) + b"\x93",
        "msgpack_walked",
    ),
    "msgpack: empty maps without end": unsafe(
        "amplification",
        lambda: b"\x81\xa1a\xdd" + struct.pack(">I", 3_200_000) + b"\x80" * 3_200_000,
        "flax",
        slow=True,
    ),
}  # fmt: skip


def bundle(name="net", data=bytes(24), **entries: bytes) -> dict[str, bytes]:
    """The files of a checkpoint."""
    return {f"{name}.index": index(entries), f"{name}.data-00000-of-00001": data}


def of_table(content: bytes) -> dict[str, bytes]:
    return {"net.index": content, "net.data-00000-of-00001": bytes(24)}


def growing_keys() -> bytes:
    """120 keys, of which each is the one before and a byte."""
    value = entry(b"", shape=(0,))
    content = varint(0) + varint(0) + varint(len(header())) + header()
    for i in range(120):
        shared, more = (0, b"a" * 2**21) if i == 0 else (2**21 + i - 1, b"a")
        content += varint(shared) + varint(len(more)) + varint(len(value)) + more + value
    content += b"\0\0\0\0\1\0\0\0\0"  # the restarts, no compression
    return table(content + masked(content))


def endless_number() -> bytes:
    return table(block([(b"", header()), (b"w", b"\x08" + b"\xff" * 2**20 + b"\1")]))


BUNDLES = {
    "bundle: block of a terabyte": attack(
        "block size",
        lambda: of_table(table(handles=[(b"a", varint(0) + varint(2**40))])),
        "bundle",
    ),
    "bundle: tensor of terabytes": attack(
        "declared size",
        lambda: bundle(w=entry(b"", shape=(2**40,), size=2**42)),
        "bundle",
    ),
    "bundle: number without end": attack(
        "varint overflow", lambda: of_table(endless_number()), "bundle", slow=True
    ),
    "bundle: keys that grow": attack(
        "prefix bomb", lambda: of_table(growing_keys()), "bundle", slow=True
    ),
    "bundle: tensor that is not its checksum's": attack(
        "CRC", lambda: bundle(w=entry(), data=SECRET.encode() + b".."), "bundle", "leaks"
    ),
    "bundle: tensors that overlap": attack(
        "overlap",
        lambda: bundle(
            data=bytes(2**20),
            **{
                f"w{i:03}": field(1, 1) + field(2, shape_of(2**18)) + field(5, 2**20)
                for i in range(300)
            },
        ),
        "bundle",
    ),
    "bundle: named outside of its folder": attack(
        "path traversal",
        lambda: {".": b"", "checkpoint": b'model_checkpoint_path: "../secret"\n'},
        "bundle_folder",
        "leaks",
        error="UnsupportedFile",
    ),
    "config.json: of brackets": attack(
        "nesting",
        lambda: {".": b"", "config.json": b'{"a":' + b"[" * 100_000},
        "config_json",
        reader="describe",
    ),
    "config.json: empty lists without end": attack(
        "amplification",
        lambda: {".": b"", "config.json": b'{"a":[' + b"[],[]," * 2_500_000 + b"[]]}"},
        "config_json",
        reader="describe",
        slow=True,
    ),
}
MALICIOUS = SAFETENSORS | NUMPY | FLAX | BUNDLES
