"""Damaged files of every format are read or refused by an error of ours, and nothing else."""

import argparse
import io
import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save

from tests.weights.bundle_bytes import BYTES, entry, index
from tests.weights.confined import Confinement
from tests.weights.npz_bytes import npz
from tests.weights.table_bytes import tensor as announced
from tests.weights.table_bytes import version1
from tests.weights.torch_bytes import (
    integer,
    legacy_bytes,
    mapping,
    module,
    tar_bytes,
    tensor,
    zip_bytes,
)

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)
MEMORY = 200 * 2**20  # beside three times the file
LAYERS = {
    "conv": {"kernel": SIX.reshape(1, 1, 2, 3), "bias": SIX[0]},
    "bn": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), SIX[0]),
}
CLASSES = {"conv": "Conv2D", "bn": "BatchNormalization"}
CONFIG = {
    "class_name": "Functional",
    "config": {"layers": [{"class_name": CLASSES[n], "config": {"name": n}} for n in LAYERS]},
}


def pickled() -> bytes:
    """A state dict with plain data of many kinds beside it; without PROTO and STOP."""
    saved = {"a": argparse.Namespace(x=[1, (2.5, "b")]), "c": np.float64(1), "d": {3: b"\xff"}}
    plain = pickle.dumps(saved, protocol=2)[2:-1]
    return mapping(state_dict=mapping(w=tensor()), args=plain, epoch=integer(3))


def whole() -> bytes:
    """A module in a module, likewise."""
    conv = module("torch.nn.modules.conv.Conv2d", mapping(weight=tensor(), bias=b"N"))
    return mapping(model=module("mine.Net", modules=mapping(conv=conv)), epoch=integer(3))


def legacy_h5() -> bytes:
    with h5py.File(buffer := io.BytesIO(), "w") as file:
        file.attrs["model_config"] = json.dumps(CONFIG)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in LAYERS]
        for layer, held in LAYERS.items():
            names = [f"{layer}/{name}:0" for name in held]
            group.create_group(layer).attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, held.values(), strict=True):
                group[layer][name] = array
    return buffer.getvalue()


def weights_h5() -> bytes:
    with h5py.File(buffer := io.BytesIO(), "w") as file:
        for group, held in zip(("conv2d", "batch_normalization"), LAYERS.values(), strict=True):
            variables = file.create_group(f"layers/{group}/vars")
            variables.attrs["name"] = group
            for i, array in enumerate(held.values()):
                options = {"chunks": array.shape, "compression": "gzip"} if i % 2 else {}
                variables.create_dataset(str(i), data=array, **options)
    return buffer.getvalue()


def keras(compression: int) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", compression) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.weights.h5", weights_h5())
    return buffer.getvalue()


def flax(monkeypatch) -> bytes:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 20)  # so that arrays are in parts
    params = {"params": {"stem": {"kernel": SIX}}, "batch_stats": {"stem": {"mean": SIX[0]}}}
    return serialization.to_bytes(params | {"step": 3, "name": "x", "rate": np.float32(0.1)})


def bundle() -> dict[str, bytes]:
    whole = index({"a": entry(), "b": entry(offset=24), "c": entry(offset=48)})
    return {"net.index": whole, "net.data-00000-of-00001": BYTES * 3}


ARRAYS = {"w": SIX, "b": np.asfortranarray(SIX), "step": 3, "name": "resnet"}
# By format: its sample, and the function of mutations.py.
FORMATS = {
    "torch-zip": (lambda: zip_bytes(pickled()), "any_file"),
    "torch-zip of a module": (lambda: zip_bytes(whole()), "any_file"),
    "torch-zip-deflated": (lambda: zip_bytes(pickled(), compression=8), "any_file"),
    "torch-legacy": (lambda: legacy_bytes(mapping(w=tensor(view=b"N"))), "any_file"),
    "torch-tar": (lambda: tar_bytes(mapping(w=integer(2) + b"Q")), "any_file"),
    "safetensors": (lambda: save({"a": SIX, "b": SIX.astype("i1")}, {"k": "v"}), "any_file"),
    "h5": (legacy_h5, "any_file"),
    "weights.h5": (weights_h5, "any_file"),
    "keras": (lambda: keras(zipfile.ZIP_STORED), "any_file"),
    "keras-deflated": (lambda: keras(zipfile.ZIP_DEFLATED), "any_file"),
    "tf-bundle": (bundle, "bundle"),
    "tf-version1": (lambda: version1({"w": announced("w", SIX)}), "any_file"),
    "npz": (lambda: npz(**ARRAYS), "numpy_archive"),
    "npz-compressed": (lambda: npz(save=np.savez_compressed, **ARRAYS), "numpy_archive"),
    "flax-msgpack": (flax, "any_file"),
}


@pytest.fixture(scope="module")
def confinement():
    with Confinement() as confinement:
        yield confinement


@pytest.mark.parametrize(
    "count",
    [500, pytest.param(10_000, marks=pytest.mark.faults)],
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_mutated_file_is_read_or_refused_by_a_named_error(
    name, count, confinement, tmp_path, monkeypatch
):
    make, mutate = FORMATS[name]
    made = make(monkeypatch) if make is flax else make()
    (tmp_path / "given").mkdir()
    for file, content in ({"weights.any": made} if isinstance(made, bytes) else made).items():
        (tmp_path / "given" / file).write_bytes(content)
    outcome = confinement.call(
        "tests.weights.mutations:survive",
        *("given", mutate, count, count),
        folder=tmp_path,
        memory=3 * sum(path.stat().st_size for path in (tmp_path / "given").iterdir()) + MEMORY,
        seconds=60.0,  # until the first: each has its own time
    )
    number = (tmp_path / "number").read_text()
    assert outcome.raised is None, f"{outcome.raised} at mutation {number}: {outcome.message}"
    read, refused = outcome.returned
    assert read + refused == count
    assert refused > count / 4  # what is left alone is the arrays' own bytes
