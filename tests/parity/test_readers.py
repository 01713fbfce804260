"""Every tensor that torch.save writes is read as torch.load reads it, bit for bit."""

import argparse
import collections
import time

import numpy as np
import pytest
import torch

from resnetjax.errors import UnsupportedFile
from resnetjax.weights import files, torch_file
from resnetjax.weights.torch_names import DTYPES
from tests.weights.torch_bytes import integer, mapping, tar_bytes

pytestmark = pytest.mark.parity

CONTAINERS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
PROTOCOLS = {f"protocol-{protocol}": {"pickle_protocol": protocol} for protocol in (3, 4, 5)}


@pytest.fixture(params=[*CONTAINERS, *PROTOCOLS])
def round_trip(request, tmp_path):
    """Saves by torch; returns what torch and what we read."""

    def save_and_read(saved):
        path = tmp_path / "saved.pth"
        torch.save(saved, path, **{**CONTAINERS, **PROTOCOLS}[request.param])
        try:
            theirs = torch.load(path, weights_only=False)
        except AttributeError:
            # torch 2.13 writes dtypes without a storage class to legacy files and cannot load them.
            theirs = saved
        return theirs, torch_file.read(path)

    return save_and_read


def assert_same(theirs, ours):
    """Compares containers by their items, and tensors with arrays by their bytes."""
    match theirs:
        case torch.Tensor():
            assert isinstance(ours, np.ndarray)
            assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
            assert ours.shape == tuple(theirs.shape)
            flat = theirs.detach().contiguous().reshape(-1)
            # numpy has no way to see the elements of some dtypes; their bytes it has.
            assert ours.tobytes() == (
                flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
            )
        case dict():
            assert list(ours) == list(theirs)
            for key in theirs:
                assert_same(theirs[key], ours[key])
        case list() | tuple():
            assert len(ours) == len(theirs)
            for their_item, our_item in zip(theirs, ours, strict=True):
                assert_same(their_item, our_item)
        case _:
            assert ours == theirs


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_is_bit_equal(round_trip, dtype):
    content = torch.randint(0, 256, (3, 4, 16), dtype=torch.uint8)
    if dtype == "bool":
        content %= 2
    assert_same(*round_trip({"x": content.view(getattr(torch, dtype))}))


def test_views_of_every_kind_are_bit_equal(round_trip):
    base = torch.randn(4, 5, 6)
    views = {
        "whole": base,
        "transposed": base.transpose(0, 2),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "slice": base[1:3, ::2, 1:],
        "diagonal": torch.randn(5, 5).diagonal(),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "element": base[1, 2, 3],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0),
        "empty_axis": torch.empty(2, 0, 3),
        "empty_slice": base[4:],
    }
    assert_same(*round_trip(views))


def test_tensors_that_share_a_storage_share_their_bytes(tmp_path):
    base = torch.randn(10)
    torch.save({"a": base, "b": base[3:], "c": base}, tmp_path / "shared.pth")
    ours = torch_file.read(tmp_path / "shared.pth")
    assert np.shares_memory(ours["a"], ours["b"])
    assert_same({"a": base, "b": base[3:], "c": base}, ours)


def test_a_training_checkpoint_is_read_whole(round_trip):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60, 60])
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    scheduler.step()
    saved = {
        "state_dict": model.state_dict(),
        "parameters": list(model.parameters()),
        "requires_grad": torch.ones(2, requires_grad=True),
        "ordered": collections.OrderedDict(x=torch.ones(1)),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "best": np.float64(91.5),
        "size": torch.Size([1, 2]),
        "bytes": b"\xff\x00",
        "epoch": 3,
    }
    assert_same(*round_trip(saved))


def test_arguments_devices_and_dtypes_become_plain_data(round_trip):
    arguments = argparse.Namespace(lr=0.1, device=torch.device("cuda:0"), dtype=torch.bfloat16)
    _, ours = round_trip({"args": arguments, "cpu": torch.device("cpu")})
    expected = {"lr": 0.1, "device": "cuda:0", "dtype": "torch.bfloat16"}
    assert ours == {"args": expected, "cpu": "cpu"}


def test_a_tar_file_that_torch_loads_is_bit_equal(tmp_path):
    path = tmp_path / "old.tar"
    views = b"](" + b"(" + b"".join(map(integer, (9, 1, 2, 3))) + b"te"
    pickled = mapping(tensor=integer(2) + b"Q")
    path.write_bytes(tar_bytes(pickled, shape=(2, 2), strides=(1, 2), offset=1, views=views))
    theirs = torch.load(path, weights_only=False)
    np.testing.assert_array_equal(theirs["tensor"], [[1, 3], [2, 4]])
    assert_same(theirs, torch_file.read(path))


@pytest.mark.parametrize(
    "kind",
    ["Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double"],
)
def test_a_tar_file_of_every_dtype_is_bit_equal(kind, tmp_path):
    path = tmp_path / "old.tar"
    width = getattr(torch, f"{kind}Tensor")(0).element_size()
    content = np.random.default_rng(0).integers(0, 2, 6 * width, np.uint8).tobytes()
    path.write_bytes(tar_bytes(mapping(w=integer(2) + b"Q"), content=content, kind=kind))
    assert_same(torch.load(path, weights_only=False), torch_file.read(path))


def sparse():
    return torch.eye(3).to_sparse()


def compressed_sparse():
    return torch.eye(3).to_sparse_csr()


def quantised():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def meta():
    return torch.empty(3, device="meta")


def conjugate():
    return torch.ones(3, dtype=torch.complex64).conj()


@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*", "ignore:.*quantize_per_tensor.*")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (sparse, "sparse"),
        (compressed_sparse, "sparse"),
        (quantised, "quantised"),
        (meta, "meta"),
        (conjugate, "conjugate"),
    ],
)
def test_a_tensor_without_an_array_is_named(tmp_path, make, kind):
    torch.save({"x": make()}, tmp_path / "saved.pth")
    with pytest.raises(UnsupportedFile, match=kind):
        torch_file.read(tmp_path / "saved.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(UnsupportedFile, match="TorchScript"):
        torch_file.read(tmp_path / "program.pt")


def test_an_average_kept_by_torch_is_preferred(tmp_path):
    model = torch.nn.Linear(2, 3)
    average = torch.optim.swa_utils.AveragedModel(model)
    saved = {"model": model.state_dict(), "model_ema": average.state_dict(), "epoch": 1}
    torch.save(saved, tmp_path / "saved.pth")
    file = files.read(tmp_path / "saved.pth")
    assert file.metadata == {"epoch": 1, "ema": "model_ema"}
    assert sorted(file.arrays) == ["bias", "weight"]


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet32-d509ac18.th"])
def test_real_legacy_files_are_bit_equal(shared_weights, name):
    if not (shared_weights / name).exists():
        pytest.skip(f"{shared_weights / name} is absent")
    theirs = torch.load(shared_weights / name, map_location="cpu", weights_only=True)
    assert_same(theirs, torch_file.read(shared_weights / name))


def test_resnet50_is_bit_equal_and_read_in_milliseconds(tmp_path):
    from torchvision.models import resnet50

    state_dict = resnet50().state_dict()
    path = tmp_path / "resnet50.pth"
    torch.save(state_dict, path)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        ours = torch_file.read(path)
        times.append(time.perf_counter() - started)
    assert_same(state_dict, ours)
    assert len(ours) == 320
    assert min(times) < 0.1  # ten times what it takes on an idle machine


def test_safetensors_are_bit_equal(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensors = {"a": torch.randn(2, 3).bfloat16(), "b": torch.randn(4), "c": torch.ones(2).bool()}
    tensors["d"] = torch.randn(5).to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "saved.safetensors")
    ours = files.read(tmp_path / "saved.safetensors").arrays
    assert_same(dict(sorted(tensors.items())), dict(sorted(ours.items())))
