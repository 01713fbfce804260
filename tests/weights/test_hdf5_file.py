import io
import struct
import zlib

import h5py
import numpy as np
import pytest

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import hdf5_file, hdf5_structure
from tests.weights.bounds import within

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)
NOISE = np.random.default_rng(0).normal(size=(37, 53)).astype(np.float32)


def hdf5(fill, **options) -> bytes:
    """An HDF5 file with what `fill` puts into it."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as file:
        fill(file)
    return buffer.getvalue()


def members(content: bytes) -> dict[str, np.ndarray]:
    root = hdf5_file.parse(memoryview(content))
    return {name: root.dataset(name).read() for name in root.names}


def assert_read_as_by_h5py(content: bytes) -> None:
    found = members(content)
    with h5py.File(io.BytesIO(content)) as file:
        assert set(found) == set(file)
        for name, array in found.items():
            expected = file[name][()]
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
            assert array.tobytes() == expected.tobytes()
            assert not array.flags.writeable


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "|i1", "<u2", "<i4", ">i8"])
def test_numbers_of_every_kind_are_read(dtype):
    assert_read_as_by_h5py(hdf5(lambda file: file.update(x=SIX.astype(dtype))))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1, 1, 1, 1)])
def test_shapes_at_the_edge_are_read(shape):
    assert_read_as_by_h5py(hdf5(lambda file: file.update(x=np.zeros(shape, np.float32))))


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (8, 9)},
        {"chunks": (8, 9), "compression": "gzip"},
        {"chunks": (8, 9), "shuffle": True},
        {"chunks": (40, 60), "maxshape": (None, None), "compression": "gzip", "shuffle": True},
        {"chunks": (1, 1)},
    ],
    ids=["plain", "gzip", "shuffle", "larger-than-the-array", "deep-tree"],
)
def test_chunks_are_put_together(options):
    content = hdf5(lambda file: file.create_dataset("x", data=NOISE, **options))
    assert_read_as_by_h5py(content)


def test_an_array_within_its_header_is_read():
    def fill(file):
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(SIX.shape)
        dataset = h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, compact)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, SIX)

    assert_read_as_by_h5py(hdf5(fill))


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"track_order": True}])
def test_groups_and_attributes_of_every_format_are_read(options):
    def fill(file):
        for i in range(30):  # more than eight are kept in heaps by the newer formats
            file[f"x{i}"] = np.arange(i + 1)
            file.attrs[f"a{i}"] = f"text {i}"

    content = hdf5(fill, **options)
    assert_read_as_by_h5py(content)
    root = hdf5_file.parse(memoryview(content))
    assert [root.text(f"a{i}") for i in range(30)] == [f"text {i}" for i in range(30)]


def test_a_bfloat16_array_is_read_as_keras_3_marks_it():
    bits = np.array([0x3F80, 0xC000], np.uint16)

    def fill(file):
        file["x"] = bits.view("V2")
        file["x"].attrs["dtype"] = "bfloat16"

    array = members(hdf5(fill))["x"]
    assert array.dtype.name == "bfloat16"
    assert array.tolist() == [1, -2]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("é", ["é"]),
        (b"conv1", ["conv1"]),
        (np.array([b"a", b"longer"]), ["a", "longer"]),
        (["a", "longer", ""], ["a", "longer", ""]),
        ([], []),
        (h5py.Empty("S1"), []),
    ],
    ids=["text", "bytes", "fixed", "variable", "none", "empty"],
)
def test_texts_in_attributes_are_read(value, expected):
    root = hdf5_file.parse(memoryview(hdf5(lambda file: file.attrs.update(x=value))))
    assert root.texts("x") == expected
    assert root.texts("y") is None


def test_a_split_list_of_texts_is_joined():
    parts = {f"names{i}": [f"{i}a", f"{i}b"] for i in range(12)}
    root = hdf5_file.parse(memoryview(hdf5(lambda file: file.attrs.update(parts))))
    assert root.texts("names") == [f"{i}{x}" for i in range(12) for x in "ab"]


def test_an_array_that_is_not_compressed_is_a_view():
    content = memoryview(hdf5(lambda file: file.update(x=NOISE)))
    array = hdf5_file.parse(content)["x"].read()
    assert np.shares_memory(array, np.frombuffer(content, np.uint8))


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (lambda file: file.update(x=np.array([b"text"])), "plain numbers"),
        (lambda file: file.update(x=np.zeros(2, "f4,i2")), "plain numbers"),
        (lambda file: file.update(x=np.zeros(2, bool)), "plain numbers"),
        (lambda file: file.create_dataset("x", data=SIX, fletcher32=True), "filter 3"),
        (lambda file: file.create_dataset("x", data=SIX, compression="lzf"), "filter 32000"),
        (lambda file: [file.update(t=np.dtype("f4")), file.create_dataset("x", (2,), file["t"])],
         "shares"),
    ],
    ids=["texts", "records", "booleans", "fletcher32", "lzf", "named-datatype"],
)  # fmt: skip
def test_what_keras_does_not_write_is_named(fill, words):
    with pytest.raises(UnsupportedFile, match=words):
        hdf5_file.parse(memoryview(hdf5(fill)))["x"].read()


@pytest.mark.parametrize("kept", [0, 8, 20, 100, 600, -1])
def test_a_truncated_file_is_refused(kept):
    content = hdf5(lambda file: file.update(x=SIX))
    assert hdf5_file.detect(memoryview(content)[:8])
    with pytest.raises(CorruptFile, match="truncated"):
        members(content[:kept])


def references(file):
    file["y"] = SIX
    file.create_dataset("x", data=[file["y"].ref], dtype=h5py.ref_dtype)


def region_references(file):
    file["y"] = SIX
    file.create_dataset("x", data=[file["y"].regionref[:1]], dtype=h5py.regionref_dtype)


@pytest.mark.parametrize("fill", [references, region_references])
def test_references_are_no_numbers(fill):
    content = hdf5(fill)
    with h5py.File(io.BytesIO(content)) as file:
        assert file["x"][0]
    with pytest.raises(UnsafeWeights):
        hdf5_file.parse(memoryview(content))["x"].read()


def test_a_circle_of_links_is_refused():
    def fill(file):
        group = file.create_group("a")
        group["b"] = group

    content = hdf5(fill)
    with h5py.File(io.BytesIO(content)) as file:
        assert "b" in file["a/b/b/b/b/b"]
    with pytest.raises(UnsafeWeights, match="circle"):
        hdf5_file.parse(memoryview(content)).group("a").group("b")


def test_an_array_linked_twice_is_refused():
    def fill(file):
        file["a"] = SIX
        file["b"] = file["a"]

    with pytest.raises(UnsafeWeights, match="twice"):
        members(hdf5(fill))


def test_a_chunk_that_inflates_beyond_its_size_is_refused():
    def fill(file):
        dataset = file.create_dataset("x", data=NOISE, chunks=NOISE.shape, compression="gzip")
        dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**22)))

    with pytest.raises(CorruptFile, match="does not have its"):
        members(hdf5(fill))


def test_a_huge_attribute_is_refused():
    content = hdf5(lambda file: file.attrs.update(x="x" * 40_000_000), libver="latest")
    with h5py.File(io.BytesIO(content)) as file:
        assert len(file.attrs["x"]) == 40_000_000
    with within(seconds=1), pytest.raises(UnsafeWeights):
        hdf5_file.parse(memoryview(content)).text("x")


@pytest.mark.parametrize("rows", [65, 2**16 - 1])
@pytest.mark.parametrize("kept", ["links", "attributes"])
def test_a_heap_of_more_than_64_rows_is_refused_within_a_second(kept, rows):
    def fill(file):
        for i in range(30):  # more than eight are kept in a heap
            if kept == "links":
                file[f"x{i}"] = SIX
            else:
                file.attrs[f"x{i}"] = "text"

    content = bytearray(hdf5(fill, libver="latest"))
    hdf5_file.parse(memoryview(content)).text("x0")
    assert content.count(b"FRHP") == 1
    place = content.index(b"FRHP") + 140  # specification, III.G: the rows of the root block
    assert struct.unpack_from("<H", content, place)[0] <= 1
    content[place : place + 2] = struct.pack("<H", rows)
    with within(seconds=1), pytest.raises(UnsafeWeights, match=f"heap of {rows} rows"):
        hdf5_file.parse(memoryview(content)).text("x0")


@pytest.mark.parametrize("mistake", [NameError, AttributeError, AssertionError])
def test_a_mistake_of_our_own_is_not_taken_for_a_corrupt_file(mistake):
    with pytest.raises(mistake), hdf5_structure.strictly():
        raise mistake


def test_what_pyfive_asserts_of_a_file_is_a_corrupt_file():
    from pyfive.misc_low_level import SymbolTable

    with pytest.raises(CorruptFile, match="AssertionError"), hdf5_structure.strictly():
        SymbolTable(io.BytesIO(bytes(100)), 0)
