"""Fresh weights: the distributions of torchvision, drawn in two ways that agree."""

import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnetjax.config import ResNetConfig
from resnetjax.measure import Leaf, leaves
from resnetjax.nn.init import initialize, initializer
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan

BIG = {
    # He 2015 over the outputs: the variance is 2 / (kernel area * outputs), groups or none.
    "conv": (Leaf("params", (3, 3, 32, 128), "conv"), math.sqrt(2 / (9 * 128))),
    # torch.nn.Linear: uniform within 1 / sqrt(inputs), so a deviation of 1 / sqrt(3 * inputs).
    "dense": (Leaf("params", (300, 100), "dense"), math.sqrt(1 / (3 * 300))),
    # torch.nn.Conv1d of one channel: uniform within 1 / sqrt(size).
    "channel_conv": (Leaf("params", (9001,), "channel_conv"), math.sqrt(1 / (3 * 9001))),
}


@pytest.mark.parametrize("kind", BIG)
def test_both_ways_of_drawing_have_the_deviation_of_torchs_layers(kind):
    leaf, deviation = BIG[kind]
    drawn = (
        initialize({"a": leaf}, 0)["a"],
        np.asarray(initializer(kind)(jax.random.key(0), leaf.shape)),
    )
    for array in drawn:
        assert array.shape == leaf.shape
        assert array.dtype == np.float32
        assert array.std() == pytest.approx(deviation, rel=0.05)
        assert abs(array.mean()) < 5 * deviation / math.sqrt(array.size)


@pytest.mark.parametrize("kind", ["dense", "channel_conv"])
def test_uniform_kinds_stay_within_one_over_the_root_of_the_inputs(kind):
    leaf, deviation = BIG[kind]
    bound = deviation * math.sqrt(3)
    for array in (
        initialize({"a": leaf}, 0)["a"],
        initializer(kind)(jax.random.key(0), leaf.shape),
    ):
        assert 0.98 * bound < np.abs(array).max() <= bound * (1 + 1e-6)


def test_convolutions_are_normal_beyond_three_deviations():
    leaf, deviation = BIG["conv"]
    for array in (
        initialize({"a": leaf}, 0)["a"],
        initializer("conv")(jax.random.key(0), leaf.shape),
    ):
        share = (np.abs(array) > 3 * deviation).mean()
        assert 0.001 < share < 0.005  # 0.0027


@pytest.mark.parametrize(("kind", "value"), [("scale", 1), ("bias", 0), ("mean", 0), ("var", 1)])
def test_norms_and_biases_start_as_the_identity(kind, value):
    leaf = Leaf("params", (5,), kind)
    expected = np.full(5, value, np.float32)
    np.testing.assert_array_equal(initialize({"a": leaf}, 0)["a"], expected)
    np.testing.assert_array_equal(initializer(kind)(jax.random.key(0), (5,)), expected)


@pytest.mark.parametrize(("kind", "shape"), [("scale", (5,)), ("conv", (3, 3, 4, 4))])
def test_zero_init_goes_before_the_kind(kind, shape):
    leaf = Leaf("params", shape, kind, zero_init=True)
    assert not initialize({"a": leaf}, 0)["a"].any()
    assert not np.any(initializer(kind, zero_init=True)(jax.random.key(0), shape))


def test_the_same_seed_gives_the_same_arrays_and_another_seed_others():
    found = [initialize({"a": BIG["conv"][0]}, seed)["a"] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_arrays_of_one_shape_at_different_paths_differ():
    leaf = BIG["conv"][0]
    found = initialize({"stage1_block1/conv2/kernel": leaf, "stage1_block2/conv2/kernel": leaf}, 0)
    correlation = np.corrcoef(*(array.ravel() for array in found.values()))[0, 1]
    assert abs(correlation) < 0.03  # five deviations of 37,000 draws


def test_an_array_does_not_depend_on_what_else_is_drawn():
    leaf, other = BIG["conv"][0], BIG["dense"][0]
    alone, beside = initialize({"a": leaf}, 0), initialize({"b": other, "a": leaf}, 0)
    np.testing.assert_array_equal(alone["a"], beside["a"])


NET = ResNetConfig(
    depths=(1, 1),
    widths=(32, 32),
    strides=(1, 2),
    dilations=(1, 1),
    stem="conv3",
    stem_width=32,
    stem_pool="none",
    attention="se",
    conv_bias="all",
    zero_init_residual=True,
    num_classes=10,
)


@pytest.mark.slow
def test_a_whole_net_starts_alike_by_module_and_by_plan():
    images = jnp.zeros((1, 8, 8, 3))
    key = jax.random.key(0, impl="rbg")  # which compiles fastest
    variables = jax.jit(ResNet(NET).init)(key, images)
    by_module = {}
    for tree in variables.values():
        by_module |= flax.traverse_util.flatten_dict(tree, sep="/")
    by_plan = initialize(leaves(plan(NET)), 0)
    assert by_module.keys() == by_plan.keys()
    for path, array in by_plan.items():
        assert array.shape == by_module[path].shape, path
        if array.size > 2000:
            assert array.std() == pytest.approx(float(by_module[path].std()), rel=0.1), path
        elif array.std() == 0:
            np.testing.assert_array_equal(array, by_module[path], err_msg=path)


def test_what_starts_at_zero_is_each_branches_last_norm_and_every_bias():
    found = initialize(leaves(plan(NET)), 0)
    zero = {path for path, array in found.items() if not array.any()}
    expected = {path for path in found if path.endswith(("/bias", "/mean"))}
    assert zero == expected | {"stage1_block1/norm3/scale", "stage2_block1/norm3/scale"}


def test_parameters_and_statistics_are_float32_even_where_jax_defaults_to_float64():
    with jax.enable_x64():
        images = jnp.zeros((1, 8, 8, 3), jnp.float64)
        variables = jax.eval_shape(ResNet(NET, dtype=jnp.float64).init, jax.random.key(0), images)
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
