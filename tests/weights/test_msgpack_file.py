import struct

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import msgpack_file
from tests.weights.bounds import within

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)


def parse(content: bytes):
    return msgpack_file.parse(memoryview(content))


def extension(*content, kind=1) -> msgpack.ExtType:
    return msgpack.ExtType(kind, msgpack.packb(content))


def pack(*, use_bin_type=True, **values) -> bytes:
    return msgpack.packb(values, use_bin_type=use_bin_type)


TREE = {
    "params": {
        "stem": {"kernel": SIX.reshape(1, 2, 1, 3), "bias": jnp.ones(3, jnp.bfloat16)},
        "head": {"kernel": np.asfortranarray(SIX), "bias": np.zeros((0, 4), np.float16)},
    },
    "batch_stats": {"stem": {"mean": np.arange(3, dtype=np.int8)}},
    "layers": [SIX + 1, SIX + 2],
    "nothing": {},
}


def test_what_flax_saves_is_read_bit_for_bit():
    found = parse(serialization.to_bytes(TREE))
    assert found.metadata == {}
    expected = {
        "batch_stats/stem/mean": TREE["batch_stats"]["stem"]["mean"],
        "layers/0": SIX + 1,
        "layers/1": SIX + 2,
        "params/head/bias": TREE["params"]["head"]["bias"],
        "params/head/kernel": SIX,
        "params/stem/bias": np.ones(3, ml_dtypes.bfloat16),
        "params/stem/kernel": SIX.reshape(1, 2, 1, 3),
    }
    assert sorted(found.arrays) == list(expected)
    for path, array in expected.items():
        read = found.arrays[path]
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()
        assert not read.flags.writeable


@pytest.mark.parametrize("dtype", [np.dtype(code) for code in "?bhiqBHIQefdFD"], ids=str)
def test_every_dtype_is_read(dtype):
    array = SIX.astype(dtype)
    read = parse(serialization.to_bytes({"w": array})).arrays["w"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


def test_numbers_and_texts_are_metadata():
    values = {
        "step": jnp.array(3),
        "scalar": np.float32(2.5),
        "half": jnp.bfloat16(1.5),
        "complex": 1 + 2j,
        "name": "Größe",
        "none": None,
        "true": True,
    }
    numbers = [0, -1, -100, 2**7, 2**15, 2**31, 2**63, -(2**15), -(2**31), -(2**63), 0.1]
    longer = {"x" * 40: "y" * 300}
    found = parse(serialization.to_bytes(values | {"numbers": numbers, "longer": longer}))
    assert found.arrays == {}
    assert found.metadata == {
        **values,
        **{f"numbers/{i}": number for i, number in enumerate(numbers)},
        f"longer/{'x' * 40}": "y" * 300,
    }


def test_arrays_that_flax_saves_in_parts_are_whole(monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    arrays = {"w": SIX, "half": np.arange(20).astype(ml_dtypes.bfloat16).reshape(4, 5)}
    content = serialization.to_bytes({"params": arrays})
    assert b"__msgpack_chunked_array__" in content
    found = parse(content).arrays
    for name, array in arrays.items():
        assert found[f"params/{name}"].dtype == array.dtype
        np.testing.assert_array_equal(found[f"params/{name}"], array)


def test_aligned_arrays_are_views_of_the_file():
    content = serialization.to_bytes({"w": np.arange(24, dtype=np.uint8)})
    array = parse(content).arrays["w"]
    assert np.shares_memory(array, np.frombuffer(content, np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}q\x00.",
        b"\x89HDF\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n",
        b"\x93NUMPY\1\0",
        b"PK\3\4",
        b"\x1f\x8b\x08",
        b"\x82\x01\xa1a",
        save({"w": np.zeros(3)}, {"k": "v" * (0xA388 - 64)}),
        "für".encode("utf-16"),
        b'{"a": 1}',
    ],
)
def test_other_formats_are_not_detected(content):
    assert not msgpack_file.detect(memoryview(content))


def test_maps_of_texts_are_detected():
    for size in (1, 15, 16, 2**16):
        content = serialization.to_bytes({f"stage{i}": {} for i in range(size)})
        assert msgpack_file.detect(memoryview(content))
    assert msgpack_file.detect(memoryview(serialization.to_bytes({"x" * 40: SIX})))


def chunked(**changes) -> bytes:
    parts = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}}
    flat = extension([6], "float32", SIX.tobytes())
    return pack(w=parts | {"chunks": {"0": flat}} | changes)


def raw(content: bytes, *, size: int | None = None) -> bytes:
    """A map with an extension type of this content, and of this declared size."""
    declared = len(content) if size is None else size
    return b"\x81\xa1w\xc9" + struct.pack(">IB", declared, 1) + content


BODY = SIX.tobytes()
MALICIOUS = {
    "empty": (b"", CorruptFile, "truncated"),
    "number": (b"\x07", UnsupportedFile, "one value"),
    "array-alone": (serialization.to_bytes(SIX), UnsupportedFile, "one value"),
    "bytes-behind": (pack(w=1) + b"\0", CorruptFile, "goes on"),
    "cut": (serialization.to_bytes(TREE)[:-1], CorruptFile, "truncated"),
    "kind-c1": (b"\x81\xa1a\xc1", CorruptFile, "of no kind"),
    "depth-of-extensions": (raw(b"\xd4\1" * 100_000), UnsafeWeights, "64 deep"),
    "map-of-4-billion": (b"\xdf\xff\xff\xff\xff", CorruptFile, "truncated"),
    "text-of-2-gigabytes": (b"\x81\xdb\x7f\xff\xff\xff", UnsafeWeights, "justify"),
    "values-without-end": (pack(a=[0] * 10**6), UnsafeWeights, "justify"),
    "text-without-end": (pack(a="a" * 5 * 10**6), UnsafeWeights, "justify"),
    "path-too-long": (pack(**{"a" * 600: {"b" * 600: 1}}), CorruptFile, "more than 1,000"),
    "key-twice": (b"\x82\xa1a\1\xa1a\2", CorruptFile, "'a' twice"),
    "path-twice": (pack(**{"a/b": 1, "a": {"b": 2}}), CorruptFile, "two values.*'a/b'"),
    "key-a-number": (b"\x81\1\2", UnsupportedFile, "not texts"),
    "key-a-list": (b"\x81\x91\1\2", UnsupportedFile, "not texts"),
    "text-not-utf8": (b"\x81\xa1\xff\2", CorruptFile, "UTF-8"),
    "bytes": (pack(a=b"abc"), UnsupportedFile, "'a' is bytes"),
    "timestamp": (pack(a=msgpack.Timestamp(1)), UnsupportedFile, "type 255"),
    "extension-of-another-size": (raw(b"\xc0" * 5), CorruptFile, "declared size"),
    "extension-a-number": (raw(b"\x07"), CorruptFile, "not built"),
    "array-of-two": (pack(w=extension([2, 3], "float32")), CorruptFile, "not built"),
    "array-of-text": (pack(w=extension([6], "int8", "abcdef")), CorruptFile, "not built"),
    "shape-a-number": (pack(w=extension(6, "float32", BODY)), CorruptFile, "not built"),
    "shape-of-texts": (pack(w=extension(["6"], "float32", BODY)), CorruptFile, "natural"),
    "shape-of-fractions": (pack(w=extension([6.0], "float32", BODY)), CorruptFile, "natural"),
    "shape-negative": (pack(w=extension([-2, -3], "float32", BODY)), CorruptFile, "natural"),
    "shape-huge": (pack(w=extension([2**50], "float32", BODY)), CorruptFile, "not fit"),
    "shape-that-overflows": (pack(w=extension([2**62, 4], "float32", BODY)), CorruptFile, "fit"),
    "shape-empty-and-huge": (
        pack(w=extension([0, 2**62, 2**62], "float32", b"")),
        CorruptFile,
        "not fit",
    ),
    "shape-too-small": (pack(w=extension([5], "float32", BODY)), CorruptFile, "24 bytes"),
    "shape-of-many-dimensions": (
        pack(w=extension([1] * 65 + [6], "float32", BODY)),
        CorruptFile,
        "66 dimensions",
    ),
    "dtype-object": (pack(w=extension([3], "object", BODY)), UnsupportedFile, "dtype 'object'"),
    "dtype-of-records": (pack(w=extension([3], "f4,f4", BODY)), UnsupportedFile, "dtype"),
    "complex-of-texts": (pack(w=extension("1", "2", kind=2)), CorruptFile, "not built"),
    "parts-of-nothing": (chunked(chunks={}), CorruptFile, "not parts"),
    "parts-not-numbered": (chunked(chunks={"1": 1}), CorruptFile, "not numbered"),
    "parts-without-shape": (chunked(shape=None), CorruptFile, "not numbered"),
    "parts-that-are-no-arrays": (chunked(chunks={"0": 1}), CorruptFile, "not parts"),
    "parts-of-another-size": (chunked(shape={"0": 7}), CorruptFile, "add up"),
    "parts-of-negative-shape": (chunked(shape={"0": -6}), CorruptFile, "not parts"),
    "parts-of-two-dtypes": (
        chunked(
            chunks={
                "0": extension([3], "float32", BODY[:12]),
                "1": extension([3], "int32", BODY[:12]),
            }
        ),
        CorruptFile,
        "not parts",
    ),
    "parts-at-the-top": (pack(__msgpack_chunked_array__=True), UnsupportedFile, "one value"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_file_is_refused_within_a_second(name):
    content, error, words = MALICIOUS[name]
    with within(memory=3 * len(content) + 20 * 2**20), pytest.raises(error, match=words):
        parse(content)


def test_flax_would_take_the_last_of_equal_keys():
    content, _, _ = MALICIOUS["key-twice"]
    assert serialization.msgpack_restore(content) == {"a": 2}
