import ml_dtypes
import numpy as np
import pytest

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import npz_file
from resnetjax.weights.mapped import map_file
from tests.weights.bounds import within
from tests.weights.npz_bytes import SIX, archive, npy, npz, one


def parse(content: bytes):
    return npz_file.parse(memoryview(content))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_saves_is_read_bit_for_bit(save):
    rng = np.random.default_rng(0)
    arrays = {
        str(np.dtype(code)): rng.integers(0, 2, (3, 1, 5)).astype(code) for code in "?bhiqBHIQefdFD"
    }
    arrays |= {"fortran": np.asfortranarray(SIX), "empty": SIX[:0], "flat": SIX.ravel()}
    read, metadata = parse(npz(save=save, **arrays))
    assert metadata == {}
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert not read[name].flags.writeable
        np.testing.assert_array_equal(read[name], array)


def test_two_void_bytes_are_bfloat16():
    array = SIX.astype(ml_dtypes.bfloat16)
    read = parse(npz(w=array)).arrays["w"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_header_is_read(version):
    np.testing.assert_array_equal(parse(one(npy(version=version))).arrays["w"], SIX)


def test_lengths_of_python_2_are_read():
    np.testing.assert_array_equal(parse(one(npy(shape="(2L, 3L)"))).arrays["w"], SIX)


def test_names_of_big_transfer_are_kept():
    name = "resnet/block1/unit01/a/standardized_conv2d/kernel"
    assert list(parse(npz(**{name: SIX})).arrays) == [name]


def test_numbers_and_texts_are_metadata():
    found = parse(npz(w=SIX, step=7, rate=np.float32(0.5), name="Größe 🦆", empty="", half=HALF))
    assert list(found.arrays) == ["w"]
    assert found.metadata == {"step": 7, "rate": 0.5, "name": "Größe 🦆", "empty": "", "half": 0.5}


HALF = np.asarray(0.5, ml_dtypes.bfloat16)


def test_stored_arrays_are_views_of_the_file():
    content = one(npy("'|u1'", shape="(24,)"))
    array = parse(content).arrays["w"]
    assert np.shares_memory(array, np.frombuffer(content, np.uint8))


def test_a_real_file_is_read(shared_weights):
    path = shared_weights / "slim_v1_tiny" / "io.npz"
    data = map_file(path)
    assert npz_file.detect(data)
    found = npz_file.parse(data)
    with np.load(path) as expected:
        assert sorted(found.arrays) == sorted(expected)
        for name, array in found.arrays.items():
            np.testing.assert_array_equal(array, expected[name])


def test_only_archives_of_arrays_are_detected():
    content = npz(w=SIX)
    assert npz_file.detect(memoryview(content))
    assert npz_file.detect(memoryview(content[:-10]))
    for other in (b"", b"PK\3\4", npy(), archive(**{"archive/data.pkl": b"."}), bytes(100)):
        assert not npz_file.detect(memoryview(other))


MALICIOUS = {
    "name-that-leaves-its-folder": (archive(**{"../w.npy": npy()}), UnsafeWeights, "leaves"),
    "no-array-beside": (archive(**{"w.npy": npy(), "data.pkl": b"."}), UnsupportedFile, "data.pkl"),
    "no-array-header": (one(b"hello, this is text"), CorruptFile, "numpy's format"),
    "empty-member": (one(b""), CorruptFile, "numpy's format"),
    "version-4": (one(npy(version=4)), UnsupportedFile, "version 4.0"),
    "header-longer-than-the-member": (one(npy(size=2000)), CorruptFile, "header of 2,000"),
    "header-of-gigabytes": (one(npy(version=2, size=2**31)), CorruptFile, "header of 2,147"),
    "header-too-long": (one(npy(descr="'" + "x" * 10_000 + "'")), CorruptFile, "header of"),
    "header-in-part": (one(npy(size=40)), CorruptFile, "header that numpy"),
    "header-of-code": (one(npy(shape="(2, 3) * 9")), CorruptFile, "header that numpy"),
    "shape-negative": (one(npy(shape="(-2, -3)")), CorruptFile, "header that numpy"),
    "shape-of-nothing": (one(npy(shape="(2,, 3)")), CorruptFile, "shape"),
    "shape-of-a-long-number": (one(npy(shape=f"({'9' * 5000},)")), CorruptFile, "shape"),
    "shape-of-many-dimensions": (one(npy(shape=f"({'1, ' * 65})")), CorruptFile, "shape"),
    "shape-that-overflows": (one(npy(shape=f"({2**62}, 4)")), CorruptFile, "not those"),
    "shape-empty-and-huge": (
        one(npy(shape=f"(0, {2**62}, {2**62})", body=b"")),
        CorruptFile,
        "does not fit",
    ),
    "shape-empty-and-huge-in-fortran": (
        one(npy(shape=f"({2**62}, {2**62}, 0)", fortran=True, body=b"")),
        CorruptFile,
        "no natural numbers",
    ),
    "body-too-short": (one(npy(body=bytes(20))), CorruptFile, "20 bytes"),
    "body-too-long": (one(npy(body=bytes(28))), CorruptFile, "28 bytes"),
    "records": (one(npy("[('a', '<f4')]")), UnsupportedFile, "dtype"),
    "subarrays": (one(npy("('<f4', (2, 3))")), UnsupportedFile, "dtype"),
    "dates": (one(npy("'<M8[ns]'")), UnsupportedFile, "dtype"),
    "texts": (one(npy("'<U1'")), UnsupportedFile, "dtype '<U1'"),
    "floats-of-16-bytes": (one(npy("'<f16'")), UnsupportedFile, "dtype"),
    "integers-of-3-bytes": (one(npy("'<i3'")), UnsupportedFile, "dtype"),
    "big-endian": (one(npy("'>f4'")), UnsupportedFile, "big-endian"),
    "text-of-no-characters": (one(npy("'<U6'", shape="()", body=b"\xff" * 24)), CorruptFile, "no"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_file_is_refused_within_a_second(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, error, words = MALICIOUS[name]
    with within(memory=3 * len(content) + 2**20), pytest.raises(error, match=words):
        parse(content)
    assert not list(tmp_path.iterdir())
