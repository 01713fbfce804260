import base64
import time
import zlib

import numpy as np
import pytest

from resnetjax.errors import CorruptFile, ResNetJAXError, UnsupportedFile
from resnetjax.weights import tf_version1
from tests.weights.mutations import changed
from tests.weights.table_bytes import (
    announcement,
    block,
    elements,
    field,
    table,
    tensor,
    varint,
    version1,
)

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)
# Written by TensorFlow 2.15: tf.compat.v1.train.Saver(write_version=V1) of w = [[1, -2, 3],
# [4, 5, -6]], s = 1 and e = zeros((0, 3)), all float32.
REAL = (
    "eNqFTD0KwmAUS9pS2iel8IlQO4o/2CuI6OYRPEFPUKRjO7kIbuImOrv0AkLv4S1cXXytUNzMI5C8hABLWUhfmBrX"
    "wFieHXHkCPR8YWagFjIQ5sbT1PptqCYkQArSKouyML1mp81i0AkzECZoZ2I3cYByRX+Wd/VJM/utx0nUxABqYL1W"
    "rbwqa/XQHcX+Mj12pn7dKtAm7ux+p/NwXtF7MMRfbN/lYbzbPD+quh9C"
)


def parse(content: bytes):
    return tf_version1.parse(memoryview(content))


def encode(**arrays: np.ndarray) -> bytes:
    return version1({name: tensor(name, array) for name, array in arrays.items()})


def with_slices(slices: bytes) -> bytes:
    return version1({"w": (announcement("w", slices=slices), tensor("w", SIX)[1])})


def with_elements(content: bytes, **options) -> bytes:
    return version1({"w": (announcement("w"), elements("w", content, **options))})


def with_numbers(content: bytes, *, shape=(2, 3), dtype=9, number=10) -> bytes:
    parts = announcement("w", shape=shape, dtype=dtype), elements("w", field(number, content))
    return version1({"w": parts})


def test_what_tensorflow_wrote_is_read():
    arrays, metadata = parse(zlib.decompress(base64.b64decode(REAL)))
    assert {name: array.dtype for name, array in arrays.items()} == {"e": "f4", "w": "f4"}
    np.testing.assert_array_equal(arrays["w"], [[1, -2, 3], [4, 5, -6]])
    assert arrays["e"].shape == (0, 3)
    assert not arrays["w"].flags.writeable
    assert metadata == {"s": 1.0}


def test_whole_numbers_are_read_beside_the_weights():
    labels = np.array([-1, 2**62, -(2**63)], np.int64)
    arrays, metadata = parse(encode(global_step=np.array(7), labels=labels, w=SIX))
    assert metadata == {"global_step": 7}
    np.testing.assert_array_equal(arrays["labels"], labels)
    np.testing.assert_array_equal(arrays["w"], SIX)


@pytest.mark.parametrize(
    ("dtype", "number", "values"),
    [
        ("uint8", 4, [0, 255]),
        ("int16", 5, [-(2**15), 2**15 - 1]),
        ("int8", 6, [-128, 127]),
        ("bool", 10, [0, 1]),
    ],
)
def test_small_numbers_are_those_of_their_dtype(dtype, number, values):
    content = b"".join(map(varint, values))
    options = {"shape": (1, 2), "dtype": number, "number": 11 if dtype == "bool" else 7}
    (array,) = parse(with_numbers(content, **options))[0].values()
    assert array.dtype == dtype
    assert array.tolist() == [values]
    with pytest.raises(CorruptFile, match="other elements"):
        parse(with_numbers(varint(values[0]) + varint(values[1] + 1), **options))


def test_texts_are_left_out():
    content = elements("w", field(8, b"a") + field(8, b"b"), rank=1)
    with pytest.raises(CorruptFile, match="occurs twice"):
        parse(version1({"w": (announcement("w", shape=(2,)), content)}))
    text = {"w": (announcement("w", shape=(2,), dtype=7), content), "x": tensor("x", SIX)}
    assert list(parse(version1(text))[0]) == ["x"]


W, TWICE = tensor("w", SIX), [(b"\0x", tensor("w", SIX)[1])]
MALFORMED = {
    "empty": (b"", "truncated"),
    "cut-in-front": (encode(w=SIX)[1:], "checksum"),
    "nothing-announced-first": (table(block([(b"w", W[1])])), "what tensors"),
    "announced-twice": (version1({"w": W}, meta=field(1, W[0])), "announced twice"),
    "elements-twice": (version1({"w": W}, more=TWICE), "twice, or unannounced"),
    "elements-unannounced": (version1(more=TWICE), "twice, or unannounced"),
    "elements-missing": (version1(meta=field(1, W[0])), "'w' are missing"),
    "elements-too-few": (with_elements(field(5, bytes(20))), "20 bytes, too few"),
    "elements-of-another-field": (with_elements(field(6, bytes(24))), "0 bytes, too few"),
    "elements-a-number": (with_elements(field(5, 7)), "is a number"),
    "shape-huge": (
        version1({"w": (announcement("w", shape=(0, 2**62, 2**62)), elements("w", b"", rank=3))}),
        "does not fit",
    ),
    "shape-negative": (
        version1({"w": (announcement("w", shape=(-2, -3)), W[1])}), "too few",
    ),
    "shape-of-many-dimensions": (
        version1({"w": (announcement("w", shape=(1,) * 65), W[1])}), "too many dimensions",
    ),
    "numbers-too-many": (with_numbers(bytes(7)), "other elements"),
    "numbers-too-few": (with_numbers(bytes(5)), "other elements"),
    "numbers-endless": (with_numbers(b"\xff" * 60), "number is truncated"),
    "name-not-utf8": (version1(meta=field(1, field(1, b"\xff") + field(4, b""))), "UTF-8"),
    "fields-without-end": (
        version1(meta=field(2, b"".join(field(n, 0) for n in range(3, 2000)))),
        "more than 1,000 fields",
    ),
    "announcement-too-large": (version1(meta=bytes(2**22 + 1)), "4,194,305 bytes"),
    "blocks-without-end": (table(*[block([])] * 20_001), "more than 20,000 blocks"),
}  # fmt: skip
UNSUPPORTED = {
    "compressed": (table(block([(b"", field(1, W[0]))], compression=1)), "compressed"),
    "newer": (version1({"w": W}, meta=field(2, field(2, 2))), "version 2"),
    "two-slices": (with_slices(field(4, b"") * 2), "partitioned"),
    "no-slice": (with_slices(b""), "partitioned"),
    "slice-of-a-part": (with_slices(field(4, field(1, field(2, 1)))), "partitioned"),
    "elements-of-a-part": (
        with_elements(field(5, bytes(24)), extents=field(1, field(1, 1))),
        "partitioned",
    ),
    "dtype-complex": (version1({"w": (announcement("w", dtype=8), W[1])}), "complex64"),
    "dtype-none": (version1({"w": (announcement("w", dtype=0), W[1])}), "number 0"),
    "numbers-very-many": (with_numbers(bytes(9), shape=(2**30, 2**30)), "whole numbers"),
    "index-of-version-2": (table(block([(b"", field(1, 3))])), "index of a TensorFlow"),
}


@pytest.mark.parametrize("name", [*MALFORMED, *UNSUPPORTED])
def test_a_malformed_checkpoint_is_refused_within_a_second(name):
    content, words = (MALFORMED | UNSUPPORTED)[name]
    started = time.process_time()
    with pytest.raises(CorruptFile if name in MALFORMED else UnsupportedFile, match=words):
        parse(content)
    assert time.process_time() - started < 1


def test_a_message_mutated_under_a_right_checksum_is_read_or_refused_by_a_named_error():
    tensors = {"i": tensor("i", np.arange(3)), "w": W}
    messages = [field(1, b"".join(field(1, part) for part, _ in tensors.values()))]
    messages += [content for _, content in tensors.values()]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        place = rng.integers(3)
        parts = [changed(x, rng) if i == place else x for i, x in enumerate(messages)]
        items = zip((b"", b"\0i", b"\0w"), parts, strict=True)
        started = time.process_time()
        try:
            parse(table(*(block([item]) for item in items)))
        except ResNetJAXError:
            refused += 1
        assert time.process_time() - started < 1
    assert 300 < refused < 500  # elements may be any


def test_every_single_bit_that_flips_is_found_or_harmless():
    whole = bytearray(encode(step=np.array(3), w=SIX))
    found = 0
    for bit in np.random.default_rng(0).permutation(8 * len(whole))[:600]:
        whole[bit // 8] ^= 1 << bit % 8
        try:
            arrays, metadata = parse(bytes(whole))
        except ResNetJAXError:
            found += 1
        else:
            assert metadata == {"step": 3}
            assert {name: array.tobytes() for name, array in arrays.items()} == {"w": SIX.tobytes()}
        whole[bit // 8] ^= 1 << bit % 8
    assert found > 400  # what is not: the unused part of the footer


def test_a_damaged_block_is_refused_though_its_message_is_whole():
    whole = encode(w=SIX)
    place = whole.index(SIX.tobytes())
    with pytest.raises(CorruptFile, match="checksum"):
        parse(whole[: place + 8] + bytes(4) + whole[place + 12 :])
