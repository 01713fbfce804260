import base64
import contextlib
import hashlib
import struct
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from resnetjax.errors import CorruptFile, ResNetJAXError, UnsupportedFile
from resnetjax.weights import tf_bundle, tf_table
from resnetjax.weights.crc32c import crc32c
from resnetjax.weights.mapped import map_file
from tests.weights.bounds import within
from tests.weights.bundle_bytes import BYTES, SIX, entry, header, index
from tests.weights.mutations import changed
from tests.weights.table_bytes import DTYPES, block, field, masked, shape_of, table, varint

# Written by TensorFlow 2.15: tf.train.Checkpoint(model=..., step=7, note=b"hello", half=...) of a
# Keras model with a convolution, a norm and a legacy SGD with momentum.
TF2_INDEX = (
    "eNpjYGDjYJRi4mBkkOGPd/ZwdfYO8Pf0C3F08nGN93fycnUOiXcPcgzw4GAXYlD4wqixhd80zNNOjEGePyMxJ01f"
    "zzEkJMjTKTTENVg/zDHIE6wvzNEn1JWDT4hFiImDWYPN1EXuVxeDjWxufkpqjn5OYmVqUXx5ZklGfHlqZnpGSbGu"
    "gX52alEeUA6PaYxCAiDToJgRiJkUFDQ8TFnEzXyVneT8A0I8fT2jXIPig338Q/QhVuUXlGTmZlalFgH5ual5JaW5"
    "pNowhxFoxRwtySRJRUFD/aTUkkT8JrCAdRVocJhqMs9gV3QSooq7IKa+YYQaK60gmJ6Ym0uUUzKAel48dotUoqpT"
    "nsCdoiaYm1+WmZcen5uamEeM1gqoTiVlobLEoszEvORUYrQ1MEI9wqbFh3BzSmpyYiV+7QwKExg1WEyXVQtaCcjz"
    "ZZYAdeFRzwlU3wHznIAGX05qYlEeyHtFiSWphCyaArKIzUJdXkCZj7jQZFCYAdLz9/Xx+wzyvHn5+O0A5UA2DS7T"
    "Nw8OaDKo8xYnlqXGJ+eX5hHhJwmglxhL7zkyyvGWpBYQUi0AVL37+nxBBiDYzszAwARiNLf/OQmiGUHEgU8LNzAw"
    "MpcwrOCAi9WrRvCv5eDYxcHPQBCE/27oVil1vw0AzI0kYw=="
)
TF2_DATA = (
    "eNqtU89PE0EU3sUtTKctLa9gyF7wZkKiS/WgEQ0spjFNICVQGjXEddtO6eL+aLZLEU8ciQeNB28euHrxb/Dk/+DN"
    "/0Tfbn+w7VSGECb9Nn1vvvnemzfvSdLpmrSe+P3r2/MWs21vRuotWYov5EjSOv4Qp4hzxE/EH4SkS1IOcQexglhH"
    "bCPeItqIU8SZ3tOIdMbWRP9as9mcwL2Z9SP7Vzr/TtcoITIoLdNu0iSZgoTjNZiNzluguF7A8J8CSidgbZojCUh3"
    "zC4z6t6RGzB/eYrI9Bk8orNVfaekb2wWjaq+uVfsyalL4Ve7r1cqO6WNvUpxVxulRcddmiLTMGObJ8y/t0IXyQzM"
    "R4ZxbAUt45hZB62ggzsp3OnTCkgjE2kFpJEB7QHNkCQkvXZgOdaHfro6rHLpkqrpW2bNZupSeGVRygKJsFYiiS14"
    "wUmMlFa9G7dEclPLEs1RSihMv2O+y+zIW8K3S4Fivrc6+LRpSByYjmOiMwNKjQUmzZJZSDle13IPDIeZLs2TLGT7"
    "jm54IbfOIqlDPJUDxcJcUGoOEg1WN0/oHAHI2Mz03fCEb2K7pEkeiOM5zA2OHHUWUxpai/Nop2P2AtqZmH07ilWD"
    "fb42dc/tFrTe5dSnUY9qk9qkT7lKwd7ASy5OsuYWtKhM6up/g/QZohj7UOXbJNQPa68+uUQ+JIjUD6HBqWdD9dh7"
    "qvolQWI8USwfbC5WPhZr0CpqURxvwL3OhET9p2q9IMOx1qwrTEgZSpxcr4nVlXG9yC0SNOAVJzg6CurjceGRbVGA"
    "PSjz7TMcrIfj2oMdkexXGT7JnPBCfL6GWiq7wqCVtyulrdLr4o6xu1muaNfN64sMH/m8YDiPF0k1xIN5Qzl9luGM"
    "z2luMMMXKdWFw3wzGf0Dgk5Weg=="
)


def parse(content: bytes, *shards: bytes):
    shards = shards or (BYTES,)
    return tf_bundle.parse(memoryview(content), lambda number, _: memoryview(shards[number]))


def read(path: Path):
    prefix = tf_bundle.prefix_of(path)
    assert prefix is not None

    def shard(number: int, count: int) -> memoryview:
        return map_file(tf_bundle.shard_path(prefix, number, count))

    return tf_bundle.parse(map_file(tf_bundle.index_path(prefix)), shard)


def tf2() -> tuple[bytes, bytes]:
    index, data = (zlib.decompress(base64.b64decode(text)) for text in (TF2_INDEX, TF2_DATA))
    return index, data


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_has_the_published_values(content, expected):
    assert crc32c(memoryview(content)) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1000, 2**18 - 1, 2**18, 2**18 + 1, 2**19 + 7])
def test_crc32c_equals_googles_at_every_length(size):
    google_crc32c = pytest.importorskip("google_crc32c")
    content = np.random.default_rng(size).bytes(size)
    assert crc32c(memoryview(content)) == google_crc32c.value(content)


@pytest.mark.parametrize(
    ("name", "tensors", "digest"),  # of what tf.train.load_checkpoint of TensorFlow 2.15 reads
    [
        ("slim_v1_tiny", 147, "de31d82ffa6baee2f2a476a2fdfa83efe59dca9be044c98d1a2610770d919154"),
        ("slim_v2_tiny", 144, "ff6a2c364235a20c50d0912660b53b888a0ca0814dafb1145facc4ffcd21d922"),
    ],
)
def test_every_tensor_of_a_real_bundle_is_what_tensorflow_reads(
    shared_weights, name, tensors, digest
):
    bundle = read(shared_weights / name)
    assert len(bundle.arrays) == tensors
    assert bundle.metadata == {}
    found = hashlib.sha256()
    for key, array in sorted(bundle.arrays.items()):
        found.update(f"{key} {array.dtype.name} {array.shape}".encode() + array.tobytes())
        assert not array.flags.writeable
    assert found.hexdigest() == digest


def test_a_checkpoint_of_objects_is_read_by_the_names_of_variables():
    bundle = parse(*tf2())
    assert list(bundle.arrays) == [
        "half",
        "conv1/kernel",
        *("bn1/beta", "bn1/gamma", "bn1/moving_mean", "bn1/moving_variance"),
    ]
    np.testing.assert_array_equal(bundle.arrays["conv1/kernel"].ravel(), np.arange(18))
    np.testing.assert_array_equal(bundle.arrays["bn1/moving_variance"], [1, 1])
    np.testing.assert_array_equal(bundle.arrays["half"], np.arange(3, dtype=ml_dtypes.bfloat16))
    assert bundle.metadata == {
        "model/optimizer/decay": 0.0,
        "model/optimizer/iter": 0,
        "model/optimizer/learning_rate": 0.5,
        "model/optimizer/momentum": pytest.approx(0.9),
        "note": "hello",
        "save_counter": 1,
        "step": 7,
    }


def graph(**names: str) -> bytes:
    """A graph of objects whose variables, by their paths, have these names."""
    attributes = [
        field(1, b"VARIABLE_VALUE") + field(2, name.encode()) + field(3, key(path).encode())
        for path, name in names.items()
    ]
    cycle = field(1, field(1, 0) + field(2, b"itself"))
    return b"".join(field(1, cycle + field(2, attribute)) for attribute in attributes)


def key(path: str) -> str:
    return f"{path}/.ATTRIBUTES/VARIABLE_VALUE"


def objects(graph: bytes, *paths: str) -> tuple[bytes, bytes]:
    """The index and shard of a checkpoint of objects."""
    size = varint(len(graph))
    lengths = struct.pack("<I", len(graph))
    text = size + masked(lengths) + graph
    summed = lengths + text[len(size) :]
    entries = {
        "_CHECKPOINTABLE_OBJECT_GRAPH": entry(summed, dtype=7, shape=(), size=len(text)),
        **{key(path): entry(offset=len(text) + 24 * i) for i, path in enumerate(paths)},
    }
    return index(entries), text + BYTES * len(paths)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"a": "conv/kernel", "b": "conv/bias"}, ["conv/kernel", "conv/bias"]),
        ({"a": "kernel", "b": "kernel"}, ["a", "b"]),
        ({"a": "", "b": "conv/bias"}, ["a", "conv/bias"]),
        ({"other": "x"}, ["a", "b"]),
    ],
    ids=["unique", "twice", "unnamed", "not-in-the-graph"],
)
def test_paths_are_the_names_where_variables_have_no_unique_ones(names, expected):
    assert list(parse(*objects(graph(**names), "a", "b")).arrays) == expected


def test_every_dtype_is_read_bit_for_bit():
    rng = np.random.default_rng(0)
    arrays, entries, data = {}, {}, b""
    for name, number in sorted(DTYPES.items()):
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        arrays[name] = rng.integers(0, 2, (3, 5)).astype(dtype)
        content = arrays[name].tobytes()
        entries[name] = entry(content, dtype=number, shape=(3, 5), offset=len(data))
        data += content
    bundle = parse(index(entries), data)
    for name, array in arrays.items():
        assert bundle.arrays[name].dtype == array.dtype
        assert bundle.arrays[name].tobytes() == array.tobytes()


def test_tensors_lie_in_the_shards_that_the_index_says():
    entries = {"a": entry(shard=2, offset=8), "b": entry(shard=0), "c": entry(shard=2, offset=32)}
    asked = []

    def shards(number, count):
        asked.append((number, count))
        return memoryview(bytes(8 * (number == 2)) + BYTES * 2)

    bundle = tf_bundle.parse(memoryview(index(entries, header(3))), shards)
    assert asked == [(0, 3), (2, 3)]
    for name in "abc":
        np.testing.assert_array_equal(bundle.arrays[name], SIX)


def test_several_blocks_empty_tensors_and_scalars_are_read():
    one = block([(b"", header()), (b"conv/bias", entry(b"", shape=(0, 3)))])
    two = block(
        [(b"conv/weights", entry()), (b"step", entry(b"\7\0", dtype=5, shape=(), offset=24))]
    )
    bundle = parse(table(one, two), BYTES + b"\7\0")
    assert {name: array.shape for name, array in bundle.arrays.items()} == {
        "conv/bias": (0, 3),
        "conv/weights": (2, 3),
    }
    assert bundle.metadata == {"step": 7}


def test_texts_of_several_elements_are_left_out():
    entries = {"labels": entry(b"\1\1....ab", dtype=7, shape=(2,)), "w": entry(offset=8)}
    bundle = parse(index(entries), b"\1\1....ab" + BYTES)
    assert list(bundle.arrays) == ["w"]
    assert bundle.metadata == {}


NOTHING = entry(b"", shape=(0,))
MALFORMED = {
    "empty": (b"", "truncated"),
    "footer-only-in-part": (index()[-20:], "truncated"),
    "cut-in-front": (index()[1:], "checksum"),
    "footer-points-outside": (bytes(40).replace(b"\0", b"\x7f") + index()[-8:], "outside"),
    "footer-of-endless-numbers": (b"\xff" * 40 + index()[-8:], "number is truncated"),
    "block-outside": (table(handles=[(b"a", varint(2**60) + varint(9))]), "outside"),
    "block-of-negative-size": (table(handles=[(b"a", varint(0) + varint(-9))]), "outside"),
    "block-twice": (table(block([]), handles=[(b"a", b"\0\x08"), (b"b", b"\0\x08")]), "overlap"),
    "block-without-restarts": (table(block([], restarts=b"")), "too short"),
    "block-of-endless-restarts": (index(restarts=b"\xff\xff\xff\xff"), "too short"),
    "keys-not-in-order": (index({"b": NOTHING, "a": entry()}), "not in order"),
    "key-twice": (
        table(block([(b"", header()), (b"a", NOTHING)]), block([(b"a", NOTHING)])),
        "not in order",
    ),
    "key-too-long": (index({"a" * 1001: entry()}), "too long"),
    "key-not-utf8": (table(block([(b"", header()), (b"\xff", entry())])), "UTF-8"),
    "entries-without-end": (
        index(dict.fromkeys((f"{i:05}" for i in range(20_001)), NOTHING)),
        "more than 20,000 entries",
    ),
    "no-entries": (table(block([])), "0 shards"),
    "no-header": (table(block([(b"w", entry())])), "no header"),
    "header-a-text": (index(head=b"\x0a"), "truncated"),
    "shards-none": (index(head=header(0)), "0 shards"),
    "shards-2**31": (index(head=header(2**31)), "2,147,483,648 shards"),
    "shards-negative": (index(head=header(-1)), "shards"),
    "shard-of-none": (index({"w": entry(shard=1)}), "shard 1 of 1"),
    "shard-negative": (index({"w": entry(shard=-1)}), "of 1"),
    "offset-outside": (index({"w": entry(offset=1)}), "ends at byte 25"),
    "offset-negative": (index({"w": entry(offset=-1)}), "ends at byte"),
    "offset-2**62": (index({"w": entry(offset=2**62)}), "ends at byte"),
    "size-of-another-shape": (index({"w": entry(size=20)}), "not those of its shape"),
    "size-2**62": (index({"w": entry(shape=(2**60,), size=2**62)}), "ends at byte"),
    "shape-negative": (index({"w": entry(shape=(-2, -3))}), "not those of its shape"),
    "shape-empty-and-huge": (
        index({"w": entry(b"", shape=(0, 2**62, 2**62))}),
        "does not fit",
    ),
    "shape-unknown": (index({"w": entry(shape=field(3, 1))}), "no shape"),
    "shape-of-many-dimensions": (index({"w": entry(shape=(1,) * 65)}), "too many dimensions"),
    "shape-twice": (index({"w": entry(more=field(2, shape_of(2, 3)))}), "field 2 occurs twice"),
    "tensors-overlap": (index({"v": entry(), "w": entry()}), "overlaps"),
    "tensor-damaged": (index({"w": entry(bytes(24))}), "'w' is damaged"),
    "message-truncated": (index({"w": entry()[:-1]}), "truncated"),
    "message-of-groups": (index({"w": b"\x0b" * 1000}), "wire type 3"),
    "message-in-itself": (index({"w": b"\x12\x7e" * 64}), "truncated"),
    "dtype-a-text": (index({"w": field(1, b"float")}), "not a number"),
    "text-of-another-size": (index({"w": entry(dtype=7, shape=())}), "bytes"),
    "text-damaged": (
        index({"w": entry(b"", dtype=7, shape=(), size=5)}),
        "text 'w' is damaged",
    ),
}
UNSUPPORTED = {
    "compressed": (index(compression=1), "compressed"),
    "big-endian": (index(head=header(endianness=1)), "big-endian"),
    "newer": (index(head=header(needed=2)), "version 2"),
    "index-too-large": (bytes(5 * 2**20) + index()[-48:], "index of 5,242,928 bytes"),
    "version-1": (table(block([(b"", field(1, field(1, b"meta")))])), "version 1"),
    "partitioned": (
        table(block([(b"", header()), (b"\0w\0\1\1\1\x80\x81", entry()), (b"w", entry())])),
        "partitioned",
    ),
    "dtype-resource": (index({"w": entry(dtype=20)}), "dtype 20"),
    "dtype-none": (index({"w": b""}), "dtype 0"),
}


@pytest.mark.parametrize("name", [*MALFORMED, *UNSUPPORTED])
def test_a_malformed_bundle_is_refused_within_a_second(name):
    content, words = (MALFORMED | UNSUPPORTED)[name]
    shard = b"\0" * 24 if name == "text-damaged" else BYTES
    with (
        within(seconds=1),
        pytest.raises(CorruptFile if name in MALFORMED else UnsupportedFile, match=words),
    ):
        parse(content, shard)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x0a" + varint(2**40), "truncated"),
        (field(1, 7), "is a number"),
        (field(1, field(2, 7)), "is a number"),
        (field(1, field(2, field(3, b"a") * 2)), "twice"),
        (b"\x0a\x7f" * 1000, "truncated"),
    ],
    ids=["endless", "node-a-number", "attribute-a-number", "key-twice", "deep"],
)
def test_a_malformed_graph_is_refused(content, words):
    with pytest.raises(CorruptFile, match=words):
        parse(*objects(content, "a"))


def test_a_graph_that_is_too_large_is_refused():
    with pytest.raises(UnsupportedFile, match="graph of objects has 2,097,153 bytes"):
        parse(*objects(bytes(2**21 + 1), "a"))


def test_a_graph_of_many_empty_nodes_takes_seconds_at_most():
    content = objects(field(1, b"") * 2**19, "a")
    with within(seconds=3):
        assert list(parse(*content).arrays) == ["a"]


def test_every_single_bit_that_flips_is_found_or_harmless():
    parts = [bytearray(part) for part in tf2()]
    expected = parse(*map(bytes, parts))
    rng = np.random.default_rng(0)
    places = [(number, bit) for number, part in enumerate(parts) for bit in range(8 * len(part))]
    found = 0
    for number, bit in rng.permutation(places)[:600]:
        parts[number][bit // 8] ^= 1 << bit % 8
        try:
            bundle = parse(*map(bytes, parts))
        except ResNetJAXError:
            found += 1
        else:
            assert bundle.metadata == expected.metadata
            assert bundle.arrays.keys() == expected.arrays.keys()
            for name, array in bundle.arrays.items():
                assert array.tobytes() == expected.arrays[name].tobytes()
        parts[number][bit // 8] ^= 1 << bit % 8
    assert found > 500  # what is not: optimisers' padding and the unused part of the footer


def test_a_mutated_graph_is_read_or_refused_by_a_named_error():
    names = {"a": "conv/kernel", "b": "conv/bias"}
    rng = np.random.default_rng(1)
    for _ in range(200):
        with contextlib.suppress(ResNetJAXError):
            parse(*objects(changed(graph(**names), rng), "a", "b"))


@pytest.fixture
def folder(tmp_path):
    """A folder with the bundle `model.ckpt-3` of one shard."""
    (tmp_path / "model.ckpt-3.index").write_bytes(index())
    (tmp_path / "model.ckpt-3.data-00000-of-00001").write_bytes(BYTES)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["", "model.ckpt-3", "model.ckpt-3.index", "model.ckpt-3.data-00000-of-00001"],
    ids=["folder", "prefix", "index", "shard"],
)
def test_a_path_means_a_bundle(folder, name):
    assert tf_bundle.prefix_of(folder / name) == folder / "model.ckpt-3"
    np.testing.assert_array_equal(read(folder / name).arrays["w"], SIX)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('model_checkpoint_path: "model.ckpt-3"\nall_model_checkpoint_paths: "x"', "model.ckpt-3"),
        ('model_checkpoint_path: "/home/someone/train/model.ckpt-3"', "model.ckpt-3"),
        ('model_checkpoint_path: "../../etc/passwd"', None),
        ('model_checkpoint_path: "/home/.."', None),
        ('model_checkpoint_path: "gone"', None),
        ("\0\xff", None),
    ],
    ids=["name", "absolute", "elsewhere", "parent", "gone", "binary"],
)
def test_a_checkpoint_file_names_the_latest_bundle_of_its_folder(folder, text, expected):
    (folder / "model.ckpt-1.index").write_bytes(index())
    (folder / "checkpoint").write_text(text, encoding="latin-1")
    assert tf_bundle.prefix_of(folder) == (expected and folder / expected)


def test_f09_a_saved_model_means_its_variables(tmp_path):
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "variables.index").write_bytes(index())
    assert tf_bundle.prefix_of(tmp_path) == tmp_path / "variables" / "variables"


def test_other_paths_mean_no_bundle(folder):
    assert tf_bundle.prefix_of(folder / "model.ckpt") is None
    (folder / "model.ckpt-3").write_bytes(b"a checkpoint of version 1")
    assert tf_bundle.prefix_of(folder / "model.ckpt-3") is None
    (folder / "other.index").write_bytes(b"")
    assert tf_bundle.prefix_of(folder) is None
    assert tf_bundle.prefix_of(Path("/")) is None
    assert tf_bundle.prefix_of(Path("..")) is None


def test_only_tables_are_detected():
    assert tf_table.detect(memoryview(index()))
    for content in (b"", b"\x47\xdb", index()[:-1], bytes(100)):
        assert not tf_table.detect(memoryview(content))
