import io
import struct
import zipfile

import numpy as np
import pytest

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile
from resnetjax.weights import torch_file
from tests.weights.bounds import within
from tests.weights.torch_bytes import (
    SIX,
    integer,
    legacy_bytes,
    mapping,
    module,
    named,
    sequence,
    storage,
    tar_bytes,
    tar_of,
    tensor,
    text,
    zip_bytes,
)

EXPECTED = np.arange(6, dtype=np.float32).reshape(2, 3)
N = b"N"


@pytest.fixture
def read(tmp_path):
    def read_bytes(content: bytes):
        path = tmp_path / "weights.any"
        path.write_bytes(content)
        return torch_file.read(path)

    return read_bytes


@pytest.mark.parametrize(
    "content",
    [
        zip_bytes(mapping(w=tensor())),
        zip_bytes(mapping(w=tensor()), compression=zipfile.ZIP_DEFLATED),
        legacy_bytes(mapping(w=tensor(view=N))),
        tar_bytes(mapping(w=integer(2) + b"Q")),
        tar_bytes(mapping(w=text("2") + b"Q")),
    ],
    ids=["zip", "zip-deflated", "legacy", "tar", "tar-text-ids"],
)
def test_f09_every_container_gives_the_array(read, content):
    array = read(content)["w"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, EXPECTED)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"shape": (3, 2), "strides": (1, 3)}, EXPECTED.T),
        ({"shape": (2,), "strides": (1,), "offset": 4}, [4, 5]),
        ({"shape": (2,), "strides": (3,), "offset": 2}, [2, 5]),
        ({"shape": (), "strides": (), "offset": 5}, 5),
        ({"shape": (4, 2), "strides": (0, 1)}, [[0, 1]] * 4),
        ({"shape": (0, 7), "strides": (7, 1)}, np.zeros((0, 7))),
        ({"shape": (0,), "strides": (1,), "offset": 6}, []),
    ],
    ids=["transposed", "offset", "column", "no-dimensions", "expanded", "empty", "empty-at-end"],
)
def test_shape_strides_and_offset_pick_the_elements(read, fields, expected):
    np.testing.assert_array_equal(read(zip_bytes(tensor(**fields))), expected)


def test_tensors_of_one_storage_share_its_bytes(read):
    head = tensor(shape=(3,), strides=(1,))
    first, second = read(zip_bytes(sequence(tensor(), head)))
    assert np.shares_memory(first, second)


def test_a_legacy_storage_may_be_a_view_of_another(read):
    view = sequence(text("view"), integer(2), integer(3))
    part = tensor(shape=(3,), strides=(1,), view=view)
    np.testing.assert_array_equal(read(legacy_bytes(part)), [2, 3, 4])


def test_a_tar_storage_may_be_a_view_of_another(read):
    view = b"](" + sequence(*map(integer, (9, 1, 2, 3))) + b"e"
    np.testing.assert_array_equal(read(tar_bytes(integer(9) + b"Q", views=view)), [2, 3, 4])


def test_a_storage_alone_is_a_flat_array(read):
    np.testing.assert_array_equal(read(zip_bytes(storage())), np.arange(6))


def test_parameters_are_arrays(read):
    arguments = sequence(tensor(), b"\x88", named("collections", "OrderedDict") + b")R")
    parameter = named("torch._utils", "_rebuild_parameter") + arguments + b"R"
    np.testing.assert_array_equal(read(zip_bytes(parameter)), EXPECTED)


CONV = {"stride": sequence(integer(2), integer(2)), "bias": b"N", "_private": b"K\x01"}


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_module_saved_whole_is_its_state_dict_and_what_its_parts_say(read, container):
    weight = tensor(view=N) if container == "legacy" else tensor()
    lost = named("builtins", "set") + b"](" + text("mask") + b"e\x85R"
    conv = module(
        "torch.nn.modules.conv.Conv2d",
        mapping(weight=weight, bias=b"N"),
        **CONV,
    )
    norm = module("mine.Norm", buffers=mapping(mean=weight, mask=weight),
                  _non_persistent_buffers_set=lost, eps=b"G" + struct.pack(">d", 1e-3))  # fmt: skip
    net = module("mine.Net", modules=mapping(conv=conv, norm=norm, gone=N))
    if container == "legacy":  # with the source of the class, as torch wrote it before 1.6
        cls = sequence(text("module"), named("mine", "Net"), text("net.py"), text("class Net"))
        net = cls + b"Q" + net.partition(b"\n")[2].partition(b"\n")[2]
    found = read((zip_bytes if container == "zip" else legacy_bytes)(mapping(model=net)))["model"]
    assert list(found) == ["conv.weight", "norm.mean"]
    np.testing.assert_array_equal(found["conv.weight"], EXPECTED)
    assert found.parts == {
        "": {"class": "mine.Net", "parts": 3},
        "conv": {"class": "torch.nn.modules.conv.Conv2d", "parts": 0, "stride": (2, 2)},
        "norm": {"class": "mine.Norm", "parts": 0, "eps": 1e-3},
    }


def test_an_object_of_another_class_is_the_name_of_its_class(read):
    schedule = named("mine", "Schedule") + b")\x81" + mapping(rate=integer(3)) + b"b"
    assert read(zip_bytes(mapping(schedule=schedule, kind=named("mine", "Net")))) == {
        "schedule": "mine.Schedule",
        "kind": "mine.Net",
    }


def doubling_modules(depth: int) -> bytes:
    """Modules that have the one before twice."""
    net = module("mine.Part")
    for i in range(depth):
        net = module("mine.Net", modules=mapping(a=net + b"q%c" % i, b=b"h%c" % i))
    return net


def heavy_modules(count: int, **attributes: bytes) -> bytes:
    """A module with so many names for one part of these attributes."""
    part = module("mine.Part", **attributes) + b"q\x00"
    items = b"".join(text(str(i)) + (b"h\x00" if i else part) for i in range(count))
    return module("mine.Net", modules=b"}(" + items + b"u")


MODULES = {
    "of many attributes": (
        heavy_modules(1000, **{f"a{i}": b"K\x01" for i in range(1001)}), UnsafeWeights
    ),
    "of many buffers": (
        heavy_modules(15_000, buffers=mapping(**{f"a{i}": b"N" for i in range(2000)})),
        UnsafeWeights,
    ),
    "of many parts": (heavy_modules(50_000), UnsafeWeights),
    "doubled often": (doubling_modules(40), UnsafeWeights),
    "of great depth": (doubling_modules(70), UnsafeWeights),
    "of itself": (
        named("mine", "Net") + b")\x81q\x00"
        + mapping(_parameters=b"}", _buffers=b"}", _modules=mapping(a=b"h\x00")) + b"b",
        UnsafeWeights,
    ),
    "of long names": (
        module("mine.Net", modules=mapping(**{"x" * 2000: module("mine.Part")})), UnsafeWeights
    ),
    "of parts without names": (
        module("mine.Net", modules=b"}" + integer(1) + module("mine.Part") + b"s"), CorruptFile
    ),
    "of a list": (module("mine.Net", modules=b"]"), CorruptFile),
    "without parameters": (
        named("mine", "Net") + b")\x81" + mapping(_modules=b"}") + b"b", CorruptFile
    ),
    "whose buffers are lost in a list": (
        module("mine.Net", _non_persistent_buffers_set=b"]"), None
    ),
}  # fmt: skip


def test_long_values_are_told_by_their_kind(read):
    many = b"(" + b"K\x01" * 9 + b"t"
    net = module("mine.Net", stride=many, name=text("x" * 201), rates=b"](K\x01K\x02e", gone=N)
    assert read(zip_bytes(mapping(net=net, w=tensor())))["net"].parts == {
        "": {
            "class": "mine.Net",
            "parts": 0,
            "stride": "a tuple",
            "name": "a str",
            "rates": (1, 2),
        }
    }


@pytest.mark.parametrize("name", MODULES)
def test_a_hostile_module_is_refused_within_two_seconds(read, name):
    pickled, error = MODULES[name]
    with within(seconds=2):
        if error is None:
            assert read(zip_bytes(pickled)) == {}
        else:
            with pytest.raises(error):
                read(zip_bytes(pickled))


def test_arrays_of_a_zip_file_are_views_of_the_mapped_file(tmp_path):
    size = 2**24
    path = tmp_path / "large.pth"
    pickled = tensor(size=size, shape=(size,), strides=(1,))
    path.write_bytes(zip_bytes(pickled, {"0": bytes(4 * size)}))
    with within(memory=8 * 2**20):
        array = torch_file.read(path)
    assert not array.flags.writeable


@pytest.mark.parametrize("depth", [20, 60])
def test_moderate_nesting_is_read(read, depth):
    value = read(zip_bytes(b")" + b"\x85" * depth))
    for _ in range(depth):
        (value,) = value
    assert value == ()


def zip_with(change) -> bytes:
    """A zip file after `change` edited its bytes."""
    content = bytearray(zip_bytes(mapping(w=tensor())))
    change(content)
    return bytes(content)


def directory(content: bytearray, member: int) -> int:
    """Returns where a member's entry in the central directory begins."""
    position = -1
    for _ in range(member + 1):
        position = content.index(b"PK\1\2", position + 1)
    return position


def overlap(content: bytearray) -> None:
    # The header of data/0 in the directory now points at that of byteorder; names are equalised.
    first, second = directory(content, 1), directory(content, 2)
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    content[second + 46 : second + 63] = content[first + 46 : first + 63]


def quoted_overlap() -> bytes:
    """Two members of different names whose bytes are the same: data/1 lies inside data/0."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data/1", SIX)
    local = inner.getvalue()[: 30 + len("archive/data/1") + len(SIX)]
    content = bytearray(zip_bytes(tensor(), {"0": local, "1": SIX}))
    entry = directory(content, 3)
    struct.pack_into("<I", content, entry + 42, content.index(local))
    return bytes(content)


def bomb(*, declared: int, actual: int) -> bytes:
    content = bytearray(
        zip_bytes(mapping(w=tensor()), {"0": bytes(actual)}, compression=zipfile.ZIP_DEFLATED)
    )
    struct.pack_into("<I", content, directory(content, 2) + 24, declared)
    return bytes(content)


MALICIOUS = {
    "module-in-a-persistent-id": (
        zip_bytes(sequence(text("module"), N, N, N, N) + b"Q"),
        "unsafe",
    ),
    "storage-smaller-than-its-record": (
        zip_bytes(tensor(size=3, shape=(3,), strides=(1,))),
        "corrupt",
    ),
    "storage-of-a-wider-dtype-CVE-2026-24747": (zip_bytes(tensor(dtype="float64")), "corrupt"),
    "storage-of-two-sizes-in-legacy": (
        legacy_bytes(sequence(tensor(view=N), tensor(view=N, dtype="float64"))),
        "corrupt",
    ),
    "storage-of-negative-size": (zip_bytes(tensor(size=-6)), "corrupt"),
    "storage-of-huge-size": (zip_bytes(tensor(size=2**62)), "corrupt"),
    "storage-size-a-text": (
        zip_bytes(tensor().replace(integer(6), text("6"), 1)),
        "corrupt",
    ),
    "legacy-record-of-negative-size": (
        legacy_bytes(tensor(view=N), {"0": (-6, SIX)}),
        "corrupt",
    ),
    "legacy-record-of-huge-size": (legacy_bytes(tensor(view=N), {"0": (2**62, SIX)}), "corrupt"),
    "legacy-declares-terabytes": (
        legacy_bytes(tensor(view=N, size=2**40), {"0": (2**40, SIX)}),
        "corrupt",
    ),
    "legacy-key-twice": (legacy_bytes(tensor(view=N), keys=["0", "0"]), "corrupt"),
    "legacy-key-unknown": (legacy_bytes(tensor(view=N), keys=["1"]), "corrupt"),
    "legacy-view-out-of-bounds": (
        legacy_bytes(tensor(view=sequence(text("v"), integer(4), integer(6)))),
        "corrupt",
    ),
    "legacy-view-negative": (
        legacy_bytes(tensor(view=sequence(text("v"), integer(-4), integer(6)))),
        "corrupt",
    ),
    "offset-that-overflows": (zip_bytes(tensor(offset=2**62)), "corrupt"),
    "strides-negative": (zip_bytes(tensor(strides=(-3, 1), offset=3)), "corrupt"),
    "strides-that-overflow": (zip_bytes(tensor(strides=(2**62, 2**62))), "corrupt"),
    "strides-of-another-length": (zip_bytes(tensor(strides=(1,))), "corrupt"),
    "shape-negative": (zip_bytes(tensor(shape=(-2, -3))), "corrupt"),
    "shape-that-overflows": (
        zip_bytes(tensor(shape=(2**62, 4), strides=(0, 0))),
        "unsafe-or-corrupt",
    ),
    "shape-empty-and-huge": (
        zip_bytes(tensor(shape=(0, 2**62, 2**62), strides=(1, 1, 1))),
        "corrupt",
    ),
    "shape-of-many-dimensions": (zip_bytes(tensor(shape=(1,) * 65, strides=(1,) * 65)), "corrupt"),
    "tensor-of-a-tensor": (
        zip_bytes(tensor().replace(storage(), tensor())),
        "corrupt",
    ),
    "tar-shape-out-of-bounds": (tar_bytes(integer(2) + b"Q", shape=(3, 3)), "corrupt"),
    "tar-shape-negative": (tar_bytes(integer(2) + b"Q", shape=(-2, 3)), "corrupt"),
    "tar-storage-of-huge-size": (tar_bytes(integer(2) + b"Q", size=2**61), "corrupt"),
    "tar-of-unknown-id": (tar_bytes(integer(7) + b"Q"), "corrupt"),
    "tar-with-other-files": (tar_of([("canary", b"x")]), "unsupported"),
    "tar-name-outside": (tar_of([("../../canary", b"x")]), "unsafe"),
    "tar-name-from-the-root": (tar_of([("/tmp/canary", b"x")]), "unsafe"),
    "bare-memo-bomb": (b"\x80\x02Nr\xff\xff\xff\x7f.", "unsafe"),
    "bare-call": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.", "unsafe"),
    "bare-call-in-text": (b"cposix\nsystem\n(S'id'\ntR.", "unsafe"),
    "bare-and-harmless": (b"\x80\x04}.", "unsupported"),
    "tar-member-twice": (tar_of([("pickle", b"x"), ("pickle", b"x")]), "unsafe"),
    "tar-member-missing": (tar_of([("pickle", b"x")]), "corrupt"),
    "zip-name-with-backslash": (
        zip_bytes(tensor(), extra=[("archive\\..\\canary", "x")]),
        "unsafe",
    ),
    "zip-name-with-drive": (zip_bytes(tensor(), extra=[("C:/canary", "x")]), "unsafe"),
    "zip-name-in-two-cases": (zip_bytes(tensor(), extra=[("archive/DATA.PKL", "x")]), "unsafe"),
    "zip-with-two-pickles": (zip_bytes(tensor(), extra=[("other/data.pkl", "x")]), "unsupported"),
    "zip-overlap-of-two-members": (quoted_overlap(), "unsafe"),
    "zip-one-member-twice": (zip_with(overlap), "unsafe-or-corrupt"),
    "zip-bomb-that-falls-short": (bomb(declared=2**21, actual=2**20), "corrupt"),
    "zip-encrypted": (
        zip_with(lambda c: c.__setitem__(directory(c, 0) + 8, 1)),
        "unsupported",
    ),
    "zip-compressed-otherwise": (
        zip_bytes(tensor(), compression=zipfile.ZIP_BZIP2),
        "unsupported",
    ),
    "zip-with-bytes-behind": (zip_bytes(tensor()) + b"PK", "corrupt"),
    "zip-with-bytes-in-front": (b"PK\3\4" + zip_bytes(tensor()), "corrupt"),
    "zip-torchscript": (zip_bytes(tensor(), extra=[("archive/constants.pkl", "x")]), "unsupported"),
    "deep-shape": (
        zip_bytes(tensor().replace(sequence(integer(2), integer(3)), b")" + b"\x85" * 100_000)),
        "corrupt",
    ),
    "deep-storage-key": (
        zip_bytes(tensor().replace(text("0"), b")" + b"\x85" * 100_000, 1)),
        "corrupt",
    ),
}
ERRORS = {
    "unsafe": UnsafeWeights,
    "corrupt": CorruptFile,
    "unsupported": UnsupportedFile,
    "unsafe-or-corrupt": (UnsafeWeights, CorruptFile),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_file_is_refused_within_a_second(read, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, error = MALICIOUS[name]
    with within(seconds=1), pytest.raises(ERRORS[error]):
        read(content)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.any"]


def test_a_link_in_a_tar_file_is_refused(read):
    content = bytearray(tar_of([("storages", b"")]))
    header = content.index(b"storages", 1024)
    content[header + 156] = ord("2")
    content[header + 157 : header + 168] = b"/etc/passwd"
    with pytest.raises(UnsafeWeights, match="link"):
        read(bytes(content))


def test_a_big_endian_file_is_refused(read):
    content = zip_bytes(tensor()).replace(b"little", b"big\0\0\0")
    with pytest.raises(UnsupportedFile, match="big-endian"):
        read(content)


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet32-d509ac18.th"])
def test_a_real_legacy_file_is_read(shared_weights, name):
    path = shared_weights / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    saved = torch_file.read(path)
    assert set(saved) == {"best_prec1", "state_dict"}
    assert saved["state_dict"]["module.conv1.weight"].shape == (16, 3, 3, 3)
