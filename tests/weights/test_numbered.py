"""Layers that are only numbered are told apart by their order and shapes."""

import numpy as np
import pytest

from resnetjax.config import ResNetConfig
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES
from resnetjax.weights.arrays import load_arrays, save_arrays
from resnetjax.weights.detect import detect
from resnetjax.weights.dialects import get

DIALECTS = ("keras_numbered", "keras_numbered_first")
BASE = {"padding": "same", "norm_eps": 1e-3, "norm_decay": 0.99}


def net(**fields) -> ResNetConfig:
    values = {
        "depths": (2, 1, 3), "widths": (8, 16, 32), "strides": (1, 2, 2), "dilations": (1, 1, 1),
        "stem": "conv3", "stem_pool": "none", "stem_width": 8, "num_classes": 5,
    }  # fmt: skip
    return ResNetConfig(**{**values, **BASE, **fields})


NETS = {
    "basic": net(block="basic"),
    "bare shortcuts with biases": net(block="basic", shortcut_norm=False, conv_bias="all"),
    "bottleneck": net(),
    "for ImageNet": net(stem="conv7", stem_pool="max", in_channels=1),
    "projecting everywhere": net(block="basic", projections=(True, True, True)),
}


def drawn(config: ResNetConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        path: rng.standard_normal(leaf.shape, np.float32)
        for path, leaf in leaves(plan(config)).items()
    }


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", NETS)
def test_a_net_is_found_again_by_order_and_shapes(name, dialect):
    ours = drawn(NETS[name])
    theirs = save_arrays(get(dialect), ours, NETS[name])
    found = detect(theirs, source="x")
    assert found.config == NETS[name]
    assert found.dialect.name == dialect
    loaded, skipped = load_arrays(found.dialect, theirs, found.config, source="x")
    assert not skipped
    assert all(loaded[path] is theirs_of or (loaded[path] == theirs_of).all()
               for path, theirs_of in ours.items())  # fmt: skip


def test_f09_projections_are_numbered_after_or_before_their_blocks():
    config = NETS["basic"]
    after = save_arrays(get("keras_numbered"), drawn(config), config)
    before = save_arrays(get("keras_numbered_first"), drawn(config), config)
    assert after["conv2d_7/kernel"].shape == (1, 1, 8, 16)
    assert before["conv2d_5/kernel"].shape == (1, 1, 8, 16)
    assert after["batch_normalization_7/gamma"].shape == (16,)


@pytest.mark.parametrize("arch", ["keras_resnet50", "keras_resnet50v2", "kerascv_resnet18"])
def test_a_net_that_is_told_is_aligned_where_only_an_order_is_known(arch):
    config = ARCHITECTURES[arch]
    arrays = {
        path: np.broadcast_to(np.float32(0), leaf.shape)
        for path, leaf in leaves(plan(config)).items()
    }
    # In a Keras model the projection comes before a block's last convolution.
    theirs = save_arrays(get("keras_order"), arrays, config)
    found = detect(theirs, source="x", known=config)
    assert found.dialect.name == "keras_order"
    load_arrays(found.dialect, theirs, found.config, source="x")


@pytest.mark.parametrize("start", [1, 9, 95])
def test_numbers_begin_anywhere_and_are_no_texts(start):
    config = NETS["bottleneck"]
    theirs = save_arrays(get("keras_numbered"), drawn(config), config)

    def later(name: str) -> str:
        layer, leaf = name.split("/")
        kind, _, number = layer.rpartition("_")
        kind, number = (kind, int(number)) if number.isdigit() else (layer, 0)
        return f"{kind}_{number + start}/{leaf}"

    # In alphabetical order, as HDF5 lists them: conv2d_10 before conv2d_9.
    shifted = {later(name): theirs[name] for name in sorted(theirs, key=later)}
    assert len(shifted) == len(theirs)
    found = detect(shifted, source="x")
    assert found.config == config
    loaded, _ = load_arrays(found.dialect, shifted, found.config, source="x")
    for path, array in drawn(config).items():
        np.testing.assert_array_equal(loaded[path], array, err_msg=path)


@pytest.mark.parametrize(
    "shapes",
    [
        [],
        [(3, 3, 3, 8)],
        [(3, 3, 3, 8), (3, 3, 8, 8), (3, 3, 8, 8), (5, 5, 8, 8), (3, 3, 8, 8)],
        [(3, 3, 3, 8), (3, 3, 16, 8), (3, 3, 8, 8)],
        [(3, 3, 3, 8), (1, 1, 8, 8), (1, 1, 8, 8), (1, 1, 8, 8)],
    ],
)
def test_other_orders_are_no_net_of_blocks(shapes):
    numbered = get("keras_numbered").numbered
    names = ["conv2d", *(f"conv2d_{number}" for number in range(1, len(shapes)))]
    arrays = {f"{name}/kernel": np.zeros(shape) for name, shape in zip(names, shapes, strict=False)}
    assert numbered
    assert numbered.fields({**arrays, "dense/kernel": np.zeros((8, 5))}) is None
