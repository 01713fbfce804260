import argparse
import collections
import pickle
import struct

import numpy as np
import pytest

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import torch_pickle
from resnetjax.weights.torch_names import Described, Name
from tests.weights.bounds import within

PLAIN = {
    "epoch": 3,
    "large": 2**100,
    "negative": -(2**40),
    "accuracy": 91.75,
    "flags": [True, False, None],
    "name": "résnet",
    "bytes": b"\x00\xff",
    "nested": {"betas": (0.9, 0.999), "one": (1,), "empty": ((), [], {})},
    1: {"momentum": 0.5},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_pickle_reads_it(protocol):
    content = pickle.dumps(PLAIN, protocol=protocol)
    assert torch_pickle.load(content).value == pickle.loads(content)
    assert torch_pickle.load(content).end == len(content)


@pytest.mark.parametrize("protocol", [2, 4])
def test_training_metadata_is_read_as_plain_data(protocol):
    saved = {
        "args": argparse.Namespace(lr=0.1, arch="resnet50"),
        "ordered": collections.OrderedDict(a=1, b=[2]),
        "milestones": collections.Counter([30, 60, 60]),
        "best": np.float64(91.5),
        "count": np.int64(-7),
        "big_endian": np.dtype(">f4").type(1.5),
        "flag": np.True_,
    }
    value = torch_pickle.load(pickle.dumps(saved, protocol=protocol)).value
    assert value == {
        "args": {"lr": 0.1, "arch": "resnet50"},
        "ordered": {"a": 1, "b": [2]},
        "milestones": {30: 1, 60: 2},
        "best": 91.5,
        "count": -7,
        "big_endian": 1.5,
        "flag": True,
    }


def test_the_attributes_of_an_ordered_dict_are_dropped():
    state_dict = collections.OrderedDict(weight=1)
    state_dict._metadata = {"": {"version": 1}}
    assert torch_pickle.load(pickle.dumps(state_dict, protocol=2)).value == {"weight": 1}


def test_a_text_of_python_2_that_is_no_text_stays_bytes():
    assert torch_pickle.load(b"\x80\x02(U\x02abU\x02\xff\xfet.").value == ("ab", b"\xff\xfe")


def test_sharing_and_cycles_are_kept_as_they_are():
    value = torch_pickle.load(b"\x80\x02]q\x00(h\x00h\x00e.").value
    assert value[0] is value
    assert value[1] is value


def text(x: str) -> bytes:
    return b"X" + struct.pack("<I", len(x)) + x.encode()


DICT = b"ccollections\nOrderedDict\n"
REFUSED = {
    "newobj-of-a-class": (b"cbuiltins\nobject\n)\x81", UnsafeWeights),
    "newobj-of-an-allowed-name": (DICT + b")\x81", UnsafeWeights),
    "newobj-of-namespace-with-arguments": (b"cargparse\nNamespace\n(K\x01t\x81", UnsafeWeights),
    "newobj-ex": (DICT + b")}\x92", UnsafeWeights),
    "build-of-a-dict": (b"}}b", UnsafeWeights),
    "build-of-a-name": (b"ctorch\nfloat32\n}b", UnsafeWeights),
    "append-to-a-name": (b"ctorch\nfloat32\nNa", UnsafeWeights),
    "set-item-of-a-list": (b"]NNs", UnsafeWeights),
    "call-of-a-text": (text("os.system") + b")R", UnsafeWeights),
    "name-of-many-characters": (
        b"\x8c\x04mine\x8d" + struct.pack("<Q", 600) + b"N" * 600 + b"\x93",
        UnsafeWeights,
    ),
    "unknown-function": (b"cmine\nnet\n", UnsafeWeights),
    "function-of-torch": (b"ctorch.hub\nload\n", UnsafeWeights),
    "class-of-python": (b"csubprocess\nPopen\n)\x81", UnsafeWeights),
    "newobj-with-arguments": (b"cmine\nNet\n(K\x01t\x81", UnsafeWeights),
    "newobj-of-a-text": (text("mine.Net") + b")\x81", UnsafeWeights),
    "newobj-of-a-storage": (b"(" + text("storage") + b"cmine\nNet\nNNtQ)\x81", UnsafeWeights),
    "newobj-of-a-module-in-a-module": (b"(" + text("module") + b")NNtQ)\x81", UnsafeWeights),
    "build-of-an-object-by-a-list": (b"cmine\nNet\n)\x81]b", UnsafeWeights),
    "set-item-of-an-object": (b"cmine\nNet\n)\x81NNs", UnsafeWeights),
    "add-to-a-list": (b"](K\x01\x90", UnsafeWeights),
    "deep-element": (b"\x8f()" + b"\x85" * 100_000 + b"\x90", UnsupportedFile),
    "call-of-a-dtype": (b"ctorch\nfloat32\n)R", UnsafeWeights),
    "text-persistent-id": (b"Pos.system\n", UnsafeWeights),
    "unknown-opcode": (b"\xff", UnsafeWeights),
    "recall-of-nothing": (b"h\x07", CorruptFile),
    "text-of-gigabytes": (b"X\xff\xff\xff\xff", CorruptFile),
    "integer-of-gigabytes": (b"\x8b\xff\xff\xff\x7f", CorruptFile),
    "integer-of-a-megabyte": (b"\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20, CorruptFile),
    "protocol-of-the-future": (b"\x80\x09", UnsupportedFile),
    "million-operations": (b"N0" * 600_000, CorruptFile),
    "more-than-16-mib": (b"C\xff" + b"x" * 255 + b"0" + b"B" + b"\0\0\0\2", CorruptFile),
    "quadratic-copies": (
        b"]("
        + b"K\x01" * 9000
        + b"eq\x00"
        + b"c__builtin__\nset\nq\x01"
        + b"h\x01h\x00\x85R" * 9000,
        CorruptFile,
    ),
    "quadratic-text": (
        text("x" * 2**20) + b"q\x00" + text("latin1") + b"q\x01" + b"c_codecs\nencode\nq\x02"
        b"h\x02h\x00h\x01\x86R" * 3,
        CorruptFile,
    ),
    "deep-key": (b"})" + b"\x85" * 100_000 + b"Ns", UnsupportedFile),
    "colliding-keys": (
        b"}\x8a\x09" + (2**61 - 1 << 10).to_bytes(9, "little") + b"Ns",
        UnsupportedFile,
    ),
    "deep-device": (b"ctorch\ndevice\n)" + b"\x85" * 100_000 + b"\x85R", CorruptFile),
    "deep-counter": (
        b"ccollections\nCounter\n](]()" + b"\x85" * 100_000 + b"Neee\x85R",
        CorruptFile,
    ),
    "structured-numpy-scalar": (b"cnumpy\ndtype\n(" + text("O8") + b"tR", UnsupportedFile),
    "short-numpy-scalar": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n("
        + text("f8")
        + b"tR"
        + text("abc")
        + b"tR",
        CorruptFile,
    ),
    "empty-stack": (b"R", CorruptFile),
    "no-mark": (b"t", CorruptFile),
    "key-without-value": (b"}(Nu", CorruptFile),
    "two-objects": (b"NN", CorruptFile),
    "left-over-mark": (b"(N", CorruptFile),
    "name-without-end": (b"c" + b"a" * 1000, CorruptFile),
    "text-that-is-not-utf8": (b"X\x01\x00\x00\x00\xff", CorruptFile),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_malicious_or_broken_pickle_is_refused_within_a_second(name):
    opcodes, error = REFUSED[name]
    with within(seconds=1), pytest.raises(error):
        torch_pickle.load(b"\x80\x04" + opcodes + b".")


def test_a_truncated_pickle_is_corrupt():
    content = pickle.dumps(PLAIN, protocol=2)
    for end in range(len(content) - 1):
        with pytest.raises(CorruptFile):
            torch_pickle.load(content[:end])


def test_an_object_of_an_unknown_class_is_what_is_said_of_it():
    called = torch_pickle.load(b"\x80\x02cmine.nets\nNet\n(K\x01tR.")
    assert called.value == Described(Name("mine.nets.Net"), {})
    found = torch_pickle.load(b"\x80\x02cmine.nets\nNet\n)\x81}" + text("a") + b"K\x01sb.")
    assert found.value == Described(Name("mine.nets.Net"), {"a": 1})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("torch._utils\n_rebuild_qtensor", "quantised"),
        ("torch._utils\n_rebuild_sparse_tensor", "sparse"),
        ("torch._utils\n_rebuild_meta_tensor_no_storage", "meta"),
        ("torch\nQInt8Storage", "QInt8Storage"),
        ("torch\ncomplex32", "complex32"),
    ],
)
def test_a_kind_of_tensor_that_is_not_read_is_named(name, kind):
    with pytest.raises(UnsupportedFile, match=kind):
        torch_pickle.load(f"\x80\x02c{name}\n.".encode("latin-1"))
