import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import files
from tests.weights.bounds import within
from tests.weights.safetensors_bytes import entry, header, safetensors
from tests.weights.table_bytes import block, field, table, version1
from tests.weights.table_bytes import tensor as tensor_of_version1
from tests.weights.torch_bytes import (
    integer,
    legacy_bytes,
    mapping,
    named,
    tar_bytes,
    tensor,
    text,
    zip_bytes,
)

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def read(tmp_path):
    def read_bytes(content: bytes, name="weights.any"):
        (tmp_path / name).write_bytes(content)
        return files.read(tmp_path / name)

    return read_bytes


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (save({"w": SIX}), "safetensors"),
        (zip_bytes(mapping(w=tensor())), "torch-zip"),
        (legacy_bytes(mapping(w=tensor(view=b"N"))), "torch-legacy"),
        (tar_bytes(mapping(w=integer(2) + b"Q")), "torch-tar"),
        (version1({"w": tensor_of_version1("w", SIX)}), "tf-version1"),
    ],
    ids=["safetensors", "zip", "legacy", "tar", "tf-version1"],
)
@pytest.mark.parametrize("extension", ["pth", "safetensors", "h5"])
def test_the_content_decides_the_format(read, content, expected, extension, tmp_path):
    file = read(content, f"weights.{extension}")
    assert file.format == expected
    assert file.metadata == {}
    assert file.paths == (tmp_path / f"weights.{extension}",)
    np.testing.assert_array_equal(file.arrays["w"], SIX)
    assert not file.arrays["w"].flags.writeable


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"<?xml version='1.0'?>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs"),
        (table(block([(b"", field(1, 2))])), "TensorFlow.*ends in .index"),
        (b"\x93NUMPY\x01\x00", "numpy"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"\x80\x04}.", "bare pickle"),
        (b'{"error": "not found"}', "JSON"),
        (b"hello", "unknown, b'hello"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_not_read_is_named(read, content, words):
    with pytest.raises(UnsupportedFile, match=rf"weights.any.*{words}"):
        read(content)


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        files.read(tmp_path / "absent")
    with pytest.raises(UnsupportedFile, match="directory"):
        files.read(tmp_path)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"model": "a", "state_dict": "b", "model_ema": "c", "state_dict_ema": "d"}, "d"),
        ({"model": "a", "state_dict": "b", "model_ema": "c"}, "c"),
        ({"model": "a", "state_dict": "b"}, "b"),
        ({"model": "a", "optimizer": "b"}, "a"),
        ({"model_state_dict": "a"}, "a"),
        ({"net": "a"}, "a"),
    ],
    ids=["state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net"],
)
def test_f09_a_moving_average_is_preferred_and_recorded(read, entries, expected):
    wrapped = {key: mapping(**{name: tensor()}) for key, name in entries.items()}
    file = read(zip_bytes(mapping(**wrapped, epoch=integer(3))))
    assert list(file.arrays) == [expected]
    average = next(
        (key for key in entries if key.endswith("_ema") and entries[key] == expected), None
    )
    assert file.metadata == {"epoch": 3} | ({"ema": average} if average else {})


def test_of_several_nets_in_a_file_none_is_guessed(read):
    nets = {name: mapping(w=tensor()) for name in ("generator", "critic")}
    with pytest.raises(UnsupportedFile, match=r"several nets.*'generator', 'critic'"):
        read(zip_bytes(mapping(**nets, epoch=integer(3))))


def test_metadata_holds_what_is_beside_the_weights(read):
    accuracy = tensor(shape=(), strides=(), offset=5)
    arguments = named("argparse", "Namespace") + b")\x81" + mapping(lr=integer(1)) + b"b"
    optimiser = mapping(state=mapping(momentum=tensor()))
    file = read(
        zip_bytes(
            mapping(
                arch=text("resnet50"),
                best=accuracy,
                args=arguments,
                optimizer=optimiser,
                model_ema=b"N",
                state_dict=mapping(w=tensor()),
            )
        )
    )
    assert list(file.arrays) == ["w"]
    assert file.metadata == {
        "arch": "resnet50",
        "best": 5.0,
        "args": {"lr": 1},
        "model_ema": None,
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a", "module.b"], ["a", "b"]),
        (["_orig_mod.module.a", "_orig_mod.module.b"], ["a", "b"]),
        (["module._orig_mod.module.a"], ["a"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["model.a", "model.b"], ["a", "b"]),
        (["module.net.a"], ["a"]),
        (["module.a", "n_averaged"], ["a"]),
        (["bn.weight", "bn.num_batches_tracked"], ["bn.weight"]),
        (["module."], ["module."]),
    ],
    ids=[
        "module",
        "both",
        "three",
        "not-all",
        "model",
        "module-net",
        "averaged",
        "counter",
        "nothing-behind",
    ],
)
def test_f09_wrappers_and_counters_come_off(read, names, expected):
    assert list(read(zip_bytes(mapping(**dict.fromkeys(names, tensor())))).arrays) == expected


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (mapping(epoch=integer(1), config=mapping()), "'epoch', 'config'"),
        (tensor(), "ndarray"),
        (b"]", "list"),
        (b"}" + integer(1) + tensor() + b"s", "not text"),
    ],
    ids=["no-arrays", "one-array", "list", "numbered"],
)
def test_a_file_without_named_arrays_says_what_it_has(read, pickled, words):
    with pytest.raises(UnsupportedFile, match=words):
        read(zip_bytes(pickled))


def test_safetensors_metadata_and_empty_arrays_are_read(read):
    file = read(
        safetensors(
            header(a=entry(), b=entry(shape=(0, 3), offsets=(24, 24)), __metadata__={"k": "v"})
        )
    )
    assert file.metadata == {"k": "v"}
    assert file.arrays["b"].shape == (0, 3)


MALICIOUS = {
    "header-longer-than-the-file": (safetensors(header(a=entry()), size=10**6), CorruptFile),
    "header-too-long": (safetensors(b"{" + b" " * 2**23 + b"}"), CorruptFile),
    "header-no-json": (safetensors(b"{nonsense"), CorruptFile),
    "header-with-long-number": (safetensors(b'{"a":' + b"9" * 10_000 + b"}"), CorruptFile),
    "header-with-nan": (safetensors(b'{"a": NaN}'), CorruptFile),
    "header-not-utf8": (safetensors(b'{"\xff": 1}'), CorruptFile),
    "name-twice": (
        safetensors(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2)),
        CorruptFile,
    ),
    "metadata-not-text": (safetensors(header(a=entry(), __metadata__={"k": [1]})), CorruptFile),
    "entry-a-list": (safetensors(header(a=[1])), CorruptFile),
    "entry-with-more": (safetensors(header(a=entry() | {"x": 1})), CorruptFile),
    "dtype-a-list": (safetensors(header(a=entry(dtype=["F32"]))), CorruptFile),
    "dtype-unknown": (safetensors(header(a=entry(dtype="F4"))), UnsupportedFile),
    "shape-negative": (safetensors(header(a=entry(shape=(-2, -3)))), CorruptFile),
    "shape-of-fractions": (safetensors(header(a=entry(shape=(2.0, 3)))), CorruptFile),
    "shape-that-overflows": (safetensors(header(a=entry(shape=(2**62, 4, 6)))), CorruptFile),
    "shape-of-many-dimensions": (
        safetensors(header(a=entry(shape=(1,) * 100 + (6,)))),
        CorruptFile,
    ),
    "shape-empty-and-huge": (
        safetensors(header(a=entry(shape=(0, 2**62, 2**62), offsets=(0, 0))), b""),
        CorruptFile,
    ),
    "offsets-outside": (safetensors(header(a=entry(offsets=(24, 48)))), CorruptFile),
    "offsets-reversed": (safetensors(header(a=entry(offsets=(24, 0)))), CorruptFile),
    "offsets-of-another-size": (safetensors(header(a=entry(offsets=(0, 20)))), CorruptFile),
    "arrays-overlap": (safetensors(header(a=entry(), b=entry())), CorruptFile),
    "bytes-behind": (safetensors(header(a=entry()), bytes(25)), CorruptFile),
    "index-name-twice": (b'{"weight_map": {"a": "x", "a": "y"}}', CorruptFile),
    "index-of-numbers": (b'{"weight_map": {"a": 1}}', CorruptFile),
    "index-empty": (b'{"weight_map": {}}', CorruptFile),
    "index-with-backslash": (b'{"weight_map": {"a": "..\\\\x"}}', UnsafeWeights),
    "index-parent": (b'{"weight_map": {"a": ".."}}', UnsafeWeights),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_file_is_refused_within_a_second(read, name):
    content, error = MALICIOUS[name]
    with within(seconds=1), pytest.raises(error):
        read(content)


@pytest.fixture
def shards(tmp_path):
    """Two shards, and a function that reads them by an index with this weight map."""
    (tmp_path / "1.safetensors").write_bytes(save({"a": SIX}))
    (tmp_path / "2.safetensors").write_bytes(save({"b": SIX + 1, "c": SIX + 2}))

    def read_by(**weight_map):
        index = {"metadata": {"total_size": 72}, "weight_map": weight_map}
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps(index))
        return files.read(path)

    return read_by


def test_shards_are_read_as_one_file(shards, tmp_path):
    file = shards(a="1.safetensors", b="2.safetensors", c="2.safetensors")
    assert list(file.arrays) == ["a", "b", "c"]
    np.testing.assert_array_equal(file.arrays["c"], SIX + 2)
    assert file.format == "safetensors"
    assert file.metadata == {"total_size": 72}
    names = ["model.safetensors.index.json", "1.safetensors", "2.safetensors"]
    assert file.paths == tuple(tmp_path / name for name in names)


def test_the_shards_of_torch_are_read_by_their_index_too(tmp_path):
    for shard, name in (("1.bin", "a"), ("2.bin", "b")):
        (tmp_path / shard).write_bytes(zip_bytes(mapping(**{name: tensor()})))
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "1.bin", "b": "2.bin"}}))
    file = files.read(path)
    assert (list(file.arrays), file.format) == (["a", "b"], "torch-zip")
    np.testing.assert_array_equal(file.arrays["b"], SIX)


def test_a_missing_shard_is_named(shards):
    with pytest.raises(CorruptFile, match=r"missing: 3\.safetensors, 4\.safetensors"):
        shards(a="1.safetensors", b="3.safetensors", c="4.safetensors")


def test_every_contradiction_between_index_and_shards_is_named(shards, tmp_path):
    (tmp_path / "1.safetensors").write_bytes(save({"a": SIX, "b": SIX}))
    with pytest.raises(CorruptFile) as caught:
        shards(a="1.safetensors", b="2.safetensors", x="2.safetensors")
    for problem in (
        "x is not in 2",
        "b is in 1.safetensors, unlisted",
        "c is in 2",
        "b is in 2 shards",
    ):
        assert problem in str(caught.value)


def test_a_broken_shard_is_named(shards, tmp_path):
    (tmp_path / "1.safetensors").write_bytes(save({"a": SIX})[:-1])
    with pytest.raises(CorruptFile, match=r"index\.json: 1\.safetensors"):
        shards(a="1.safetensors", b="2.safetensors", c="2.safetensors")


@pytest.mark.parametrize(
    ("name", "arrays", "accuracy"),
    [("resnet20-12fca82f.th", 97, 91.78), ("resnet32-d509ac18.th", 157, 92.78)],
)
def test_a_real_checkpoint_is_read(shared_weights, name, arrays, accuracy):
    if not (shared_weights / name).exists():
        pytest.skip(f"{shared_weights / name} is absent")
    file = files.read(shared_weights / name)
    assert file.format == "torch-legacy"
    assert len(file.arrays) == arrays
    assert file.arrays["linear.weight"].shape == (10, 64)
    assert file.metadata == {"best_prec1": pytest.approx(accuracy, abs=0.001)}


def test_a_safetensors_file_whose_length_looks_like_json_is_read(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header = header.ljust(0x7B20)  # little-endian: b" {"
    content = len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f"
    (tmp_path / "model.safetensors").write_bytes(content)
    read = files.read(tmp_path / "model.safetensors")
    assert read.arrays["x"].tolist() == [1.0]
    assert read.sha256() == hashlib.sha256(content).hexdigest()


def test_a_name_of_endless_prefixes_is_refused(tmp_path):
    name = "module." * 40_000 + "x"
    header = json.dumps({name: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with within(seconds=1), pytest.raises(CorruptFile, match="name has 280,001 characters"):
        files.read(path)
