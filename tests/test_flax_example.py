"""Flax's own ImageNet example, which is on no package index, written again: ours computes the same.

Names, paddings and numbers are those of flax `examples/imagenet/models.py`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import resnetjax as rj
from resnetjax.errors import AssumptionWarning
from resnetjax.presets import get
from tests.disturbed import disturb, spread_error, varied_images

# Of the spread max|f(x_i) - mean f|; both sides compute in float32.
TOLERANCE = 1e-4
# Images whose every map has even or odd edges: SAME pads those by (0, 1), PyTorch by (1, 1); these
# both pad alike.
EVEN, ODD = (64, 32), (65, 33)


class ResNetBlock(nn.Module):
    """The example's basic block; Flax makes the names of modules from those of their classes."""

    filters: int
    stride: int
    conv: Any
    norm: Any
    kernels = (3, 3)
    strided = 0
    expansion = 1

    @nn.compact
    def __call__(self, x):
        y = x
        for i, kernel in enumerate(self.kernels):
            last = i == len(self.kernels) - 1
            features = self.filters * (self.expansion if last else 1)
            stride = self.stride if i == self.strided else 1
            y = self.norm()(self.conv(features, (kernel, kernel), (stride, stride))(y))
            y = y if last else nn.relu(y)
        if x.shape != y.shape:
            project = self.conv(y.shape[-1], (1, 1), (self.stride, self.stride), name="conv_proj")
            x = self.norm(name="norm_proj")(project(x))
        return nn.relu(x + y)


class BottleneckResNetBlock(ResNetBlock):
    kernels = (1, 3, 1)
    strided = 1
    expansion = 4


class Example(nn.Module):
    block: type[ResNetBlock]
    depths: tuple[int, ...]
    classes: int
    filters: int = 64

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=True, momentum=0.9, epsilon=1e-5)
        stem = conv(self.filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")
        x = nn.relu(norm(name="bn_init")(stem(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                x = self.block(self.filters * 2**stage, stride, conv, norm)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


def trained(model: Example) -> dict[str, Any]:
    """Variables whose statistics hide nothing: an eighth have variances of epsilon's size."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(disturb, shapes)


BASIC, BOTTLENECK = ("flax_resnet18", ResNetBlock), ("flax_resnet50", BottleneckResNetBlock)
_TWO = {"widths": (8, 16), "strides": (1, 2), "dilations": (1, 1), "stem_width": 8}
CASES = {
    "basic": (*BASIC, {**_TWO, "depths": (2, 1)}),
    "bottleneck": (*BOTTLENECK, {**_TWO, "depths": (1, 2)}),
    "flax_resnet18": (*BASIC, {}),
    "flax_resnet50": (*BOTTLENECK, {}),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(x, marks=[pytest.mark.slow] if x.startswith("flax") else []) for x in CASES],
)
def test_what_the_example_trained_is_read_computed_and_written_back(case, tmp_path):
    name, block, sizes = CASES[case]
    config = get(name).replace(**sizes)
    model = Example(block, config.depths, config.num_classes, config.widths[0])
    variables = trained(model)
    state = {"step": 7, "opt_state": {"0": {"trace": variables["params"]}}, **variables}
    (tmp_path / "checkpoint_7").write_bytes(serialization.msgpack_serialize(state))
    with pytest.warns(AssumptionWarning):  # block numbers run through: no end of a stage is told
        pre = rj.load(tmp_path / "checkpoint_7", config=config if sizes else None)
    assert (pre.source.dialect, pre.source.arch) == ("flax_example", None if sizes else name)
    padded = rj.ResNet(pre.config.replace(padding="torch", stem_pool_padding="torch"))
    for size in (EVEN, ODD):
        images = varied_images(3, *size)
        expected = np.asarray(jax.jit(model.apply)(variables, images))
        found = jax.jit(pre.model.apply)(pre.variables, images)
        assert spread_error(found, expected) < TOLERANCE
        if size == EVEN:
            wrong = jax.jit(padded.apply)(pre.variables, images)
            assert spread_error(wrong, expected) > 10 * TOLERANCE
    rj.save(pre, tmp_path / "back.msgpack", dialect="flax_example")
    back = serialization.msgpack_restore((tmp_path / "back.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, back, variables)
