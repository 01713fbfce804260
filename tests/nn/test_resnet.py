"""The module: its contract for batch norm, its features, its precision, and every kind of block."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.errors
import flax.traverse_util
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import resnetjax as rj
from resnetjax.config import ResNetConfig
from resnetjax.errors import BatchNormError, ConfigError
from resnetjax.measure import flops, leaves, parameter_count
from resnetjax.nn import functions
from resnetjax.nn.init import initialize
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan

BOTTLENECK = {"block": "bottleneck", "stem_width": 16}
V2 = {"order": "pre", "shortcut_norm": False}


def net(**fields) -> ResNetConfig:
    """Two stages of one basic block of 8 channels, for images of 8 pixels."""
    sizes = {"depths": (1, 1), "widths": (8, 8), "strides": (1, 2), "dilations": (1, 1)}
    stem = {"stem": "conv3", "stem_width": 8, "stem_pool": "none"}
    return ResNetConfig(**{"block": "basic", **sizes, **stem, "num_classes": 3, **fields})


def random_variables(config: ResNetConfig, seed: int = 0) -> dict:
    """Kernels as at the start of training; norms, statistics and biases of any size and sign."""
    rng = np.random.default_rng(seed)
    listed = leaves(plan(config))
    flat = initialize(listed, seed)
    for path, leaf in listed.items():
        if leaf.kind in ("scale", "var"):
            flat[path] = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if leaf.kind in ("bias", "mean"):
            flat[path] = rng.normal(0, 0.1, leaf.shape).astype(np.float32)
    trees = {}
    for path, leaf in listed.items():
        trees.setdefault(leaf.collection, {})[path] = jnp.asarray(flat[path])
    return {name: flax.traverse_util.unflatten_dict(tree, sep="/") for name, tree in trees.items()}


def random_images(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


IMAGES = random_images(4, 8, 8, 3)


def key_of(seed: int) -> jax.Array:
    """A key of the generator that compiles fastest."""
    return jax.random.key(seed, impl="rbg")


@functools.partial(jax.jit, static_argnums=0)
def evaluate(model: ResNet, variables, images):
    return model.apply(variables, images)


@functools.partial(jax.jit, static_argnums=0)
def train(model: ResNet, variables, images, key=None):
    """Logits and updated statistics."""
    rngs = None if key is None else {"dropout": key}
    logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
    return logits, updates.get("batch_stats", {})


def assert_same(found, expected) -> None:
    """Equal trees, to the last bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# The batch norm contract.


@pytest.mark.parametrize("mutable", [["batch_stats"], True])
def test_evaluation_never_touches_statistics_even_where_they_are_mutable(mutable):
    model, variables = ResNet(net()), random_variables(net())
    logits, updates = model.apply(variables, IMAGES, train=False, mutable=mutable)
    assert_same(updates["batch_stats"], variables["batch_stats"])
    np.testing.assert_array_equal(logits, model.apply(variables, IMAGES))


def test_evaluation_of_an_image_does_not_depend_on_its_neighbours():
    for fields in ({}, {**V2, "norm": "group", "norm_groups": 4}):
        model, variables = ResNet(net(**fields)), random_variables(net(**fields))
        batch = evaluate(model, variables, IMAGES)
        alone = evaluate(model, variables, IMAGES[1:2])
        # another batch size may order the sums of a convolution otherwise
        np.testing.assert_allclose(batch[1:2], alone, rtol=1e-4, atol=1e-5)


def test_training_moves_statistics_by_the_share_that_decay_leaves():
    config = net(norm_decay=0.75, in_channels=8)
    variables = random_variables(config)
    # A stem that passes its input on, so that the norm sees the images themselves.
    through = np.zeros((3, 3, 8, 8), np.float32)
    through[1, 1] = np.eye(8)
    variables["params"]["stem"]["conv1"]["kernel"] = jnp.asarray(through)
    images = random_images(4, 8, 8, 8) * 3 + 2
    _, moved = train(ResNet(config), variables, images)
    flat, before = (
        np.asarray(images, np.float64).reshape(-1, 8),
        variables["batch_stats"]["stem"]["norm1"],
    )
    for name, now in (("mean", flat.mean(0)), ("var", flat.var(0, ddof=0))):
        expected = 0.75 * np.asarray(before[name]) + 0.25 * now
        np.testing.assert_allclose(moved["stem"]["norm1"][name], expected, rtol=1e-5)


def test_training_normalises_by_the_batch_and_not_by_running_statistics():
    # With decay 0 the running statistics become the batch's: evaluating with them is the same.
    config = net(norm_decay=0.0)
    model, variables = ResNet(config), random_variables(config)
    logits, moved = train(model, variables, IMAGES)
    again = evaluate(model, {**variables, "batch_stats": moved}, IMAGES)
    np.testing.assert_allclose(logits, again, rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits, evaluate(model, variables, IMAGES), atol=1e-2)


def test_every_statistic_moves_in_training():
    for fields in ({}, V2):
        variables = random_variables(net(**fields))
        _, moved = train(ResNet(net(**fields)), variables, IMAGES)
        same = jax.tree.map(lambda a, b: bool((a == b).any()), moved, variables["batch_stats"])
        assert not any(jax.tree.leaves(same))


@pytest.mark.parametrize("mutable", [False, ["losses"], []])
def test_training_without_mutable_statistics_is_refused_with_the_call_to_make(mutable):
    with pytest.raises(BatchNormError, match=r'mutable=\["batch_stats"\]'):
        ResNet(net()).apply(random_variables(net()), IMAGES, train=True, mutable=mutable)


def test_a_group_norm_net_trains_without_anything_mutable():
    config = net(norm="group", norm_groups=4)
    variables = random_variables(config)
    assert "batch_stats" not in variables
    model = ResNet(config)
    trained = model.apply(variables, IMAGES, train=True)
    np.testing.assert_array_equal(trained, model.apply(variables, IMAGES))


def test_initialising_in_training_mode_leaves_statistics_at_their_start():
    init = jax.jit(functools.partial(ResNet(net()).init, train=True))
    variables = init(key_of(0), IMAGES)
    for path, array in flax.traverse_util.flatten_dict(variables["batch_stats"]).items():
        np.testing.assert_array_equal(array, np.full(array.shape, path[-1] == "var", np.float32))


# Frozen parts.


@pytest.mark.parametrize("frozen", [("stem",), ("stem", "stage1"), ("stage2",)])
def test_frozen_parts_keep_their_statistics_to_the_bit_while_others_move(frozen):
    variables = random_variables(net())
    _, moved = train(ResNet(net(), frozen=frozen), variables, IMAGES)
    for part, before in variables["batch_stats"].items():
        if part.partition("_")[0] in frozen:
            assert_same(moved[part], before)
        else:
            changed = jax.tree.map(lambda a, b: bool((a != b).all()), moved[part], before)
            assert all(jax.tree.leaves(changed)), part


FREEZING = {
    ("*norm1",): {"stem/norm1", "stage1_block1/norm1", "stage2_block1/norm1"},
    ("stage?_block1/norm*",): {f"stage{i}_block1/norm{j}" for i in (1, 2) for j in (1, 2)},
    ("up to stage1",): {"stem/norm1", "stage1_block1/norm1", "stage1_block1/norm2"},
    ("up to stage1_block1", "*/shortcut"): {
        "stem/norm1",
        "stage1_block1/norm1",
        "stage1_block1/norm2",
        "stage2_block1/shortcut/norm",
    },
    ("*/mean",): {
        "stem/norm1",
        *(f"stage{i}_block1/norm{j}" for i in (1, 2) for j in (1, 2)),
        "stage2_block1/shortcut/norm",
    },
    ("*/kernel", "head"): set(),
}


@pytest.mark.parametrize("frozen", FREEZING, ids=", ".join)
def test_patterns_freeze_the_norms_whose_statistics_they_match_and_no_others(frozen):
    variables = random_variables(net())
    _, moved = train(ResNet(net(), frozen=frozen), variables, IMAGES)
    before = flax.traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    after = flax.traverse_util.flatten_dict(moved, sep="/")
    still = {name for name, values in before.items() if (after[name] == values).all()}
    assert still == {f"{norm}/{which}" for norm in FREEZING[frozen] for which in ("mean", "var")}


@pytest.mark.slow
def test_a_frozen_net_inside_another_module_is_frozen_there_too():
    class Tagger(nn.Module):
        backbone: ResNet

        @nn.compact
        def __call__(self, images, *, train=False):
            return nn.Dense(2)(self.backbone(images, train=train))

    config = net(num_classes=0)
    tagger = Tagger(ResNet(config, frozen=("up to stage1", "stage2_block1/norm1")))
    variables = jax.jit(tagger.init)(jax.random.key(0), IMAGES)
    run = jax.jit(functools.partial(tagger.apply, train=True, mutable=["batch_stats"]))
    _, updates = run(variables, IMAGES)
    before, after = variables["batch_stats"]["backbone"], updates["batch_stats"]["backbone"]
    for part in ("stem", "stage1_block1"):
        assert_same(after[part], before[part])
    assert_same(after["stage2_block1"]["norm1"], before["stage2_block1"]["norm1"])
    assert (
        after["stage2_block1"]["norm2"]["mean"] != before["stage2_block1"]["norm2"]["mean"]
    ).all()


def test_frozen_parts_use_their_running_statistics():
    model = ResNet(net(), frozen=("stem", "stage1"))
    variables = random_variables(net())
    run = functools.partial(model.apply, stages=("stage1",), method="features")
    trained, _ = run(variables, IMAGES, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(trained["stage1"], run(variables, IMAGES)["stage1"])


def test_a_net_frozen_throughout_trains_as_it_evaluates_and_drops_nothing():
    config = net(**V2, drop_path_rate=0.5, block_dropout=0.5)
    frozen = ResNet(config, frozen=("stem", "stage1", "stage2", "norm"))
    variables = random_variables(config)
    logits, moved = train(frozen, variables, IMAGES)
    np.testing.assert_array_equal(logits, evaluate(ResNet(config), variables, IMAGES))
    assert_same(moved, variables["batch_stats"])


@pytest.mark.parametrize(
    "name", ["stage3", "layer1", "stem_conv", "norm", "up to norm", "*/gamma", "up to */norm1", ""]
)
def test_what_the_net_lacks_cannot_be_frozen_and_the_refusal_lists_its_modules(name):
    modules = "head, stage1_block1, stage2_block1, stem"
    with pytest.raises(ConfigError, match=rf"frozen=\['{re.escape(name)}'\].* has {modules}(\n|$)"):
        ResNet(net(), frozen=("stem", name)).apply(random_variables(net()), IMAGES)


# What goes in.


def test_images_of_other_channels_are_refused_with_the_shape_expected():
    images = jnp.zeros((1, 8, 8, 1))
    with pytest.raises(ConfigError, match=r"\(1, 8, 8, 1\) do not fit: expected \(batch, .*, 3\)"):
        ResNet(net()).apply(random_variables(net()), images)


def test_a_single_image_without_a_batch_is_refused(monkeypatch):
    # as a user meets it, whose shapes are not checked by annotation
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match=r"images of shape \(8, 8, 3\) do not fit"):
        ResNet(net()).apply(random_variables(net()), jnp.zeros((8, 8, 3)))


# Features.


def test_features_come_in_the_order_asked_for():
    found = ResNet(net()).apply(
        random_variables(net()), IMAGES, stages=("stage2", "stem"), method="features"
    )
    assert list(found) == ["stage2", "stem"]


def test_features_after_the_last_one_asked_for_need_no_parameters():
    variables = random_variables(net())
    for tree in variables.values():
        tree.pop("stage2_block1")
    del variables["params"]["head"]
    model = ResNet(net())
    found = model.apply(variables, IMAGES, stages=("stem", "stage1"), method="features")
    assert found["stage1"].shape == (4, 8, 8, 8)


def test_a_stem_asked_for_before_its_pool_computes_no_block():
    config = net(stem_pool="max")
    model, variables = ResNet(config), random_variables(config)
    run = functools.partial(model.apply, stages=("stem_conv",), method="features")
    convolutions = str(jax.make_jaxpr(run)(variables, IMAGES)).count("conv_general_dilated")
    assert convolutions == 1


def test_f11_the_stem_is_the_pooled_stem_conv():
    config = net(stem_pool="max")
    found = ResNet(config).apply(
        random_variables(config), IMAGES, stages=("stem_conv", "stem"), method="features"
    )
    (pool,) = plan(config).stem.pools
    np.testing.assert_array_equal(found["stem"], functions.pool(found["stem_conv"], pool))


def test_logits_are_the_head_of_the_mean_of_the_last_features():
    for fields, last in (({}, "stage2"), (V2, "norm")):
        config = net(**fields)
        model, variables = ResNet(config), random_variables(config)
        found = model.apply(variables, IMAGES, stages=(last,), method="features")[last]
        head = variables["params"]["head"]
        expected = np.asarray(found).mean((1, 2)) @ np.asarray(head["kernel"]) + np.asarray(
            head["bias"]
        )
        np.testing.assert_allclose(model.apply(variables, IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_a_head_may_have_layers_before_its_last():
    config = net(head_widths=(9, 5), activation="gelu", dropout=0.5)
    model, variables = ResNet(config), random_variables(config)
    x = model.apply(variables, IMAGES, stages=("pooled",), method="features")["pooled"]
    head = variables["params"]["head"]
    for layer in ("hidden1", "hidden2"):
        x = jax.nn.gelu(x @ head[layer]["kernel"] + head[layer]["bias"][None], approximate=False)
    expected = x @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(model.apply(variables, IMAGES), expected, rtol=1e-5, atol=1e-6)
    shapes = jax.tree.map(jnp.shape, head)
    assert shapes["hidden2"] == {"kernel": (9, 5), "bias": (5,)}
    initial = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]["head"]
    assert jax.tree.map(jnp.shape, initial) == shapes
    wide = config.replace(head_widths=())
    features = plan(config).features
    extra = features * 9 + 9 * 5 + 5 * config.num_classes - features * config.num_classes
    assert flops(plan(config)) - flops(plan(wide)) == 2 * extra
    assert parameter_count(plan(config)) - parameter_count(plan(wide)) == extra + 9 + 5
    assert plan(config.replace(num_classes=0)).head == ()


def test_dropout_comes_before_each_dense_layer_of_the_head():
    config = net(head_widths=(400,), dropout=0.5, num_classes=400)
    model, variables = ResNet(config, frozen=("stem", "stage*")), random_variables(config)
    head = {"hidden1": {"kernel": np.eye(plan(config).features, 400), "bias": np.ones(400)},
            "kernel": np.eye(400), "bias": np.zeros(400)}  # fmt: skip
    variables["params"]["head"] = jax.tree.map(jnp.float32, head)
    x = model.apply(variables, IMAGES, train=True, rngs={"dropout": jax.random.key(0)})
    pooled = np.asarray(model.apply(variables, IMAGES)) - 1
    # By either, by the second, by none: what is kept is doubled each time.
    choices = np.stack([0 * pooled, 0 * pooled + 2, 2 * (2 * pooled + 1)])
    distances = np.abs(choices - np.asarray(x))
    assert distances.min(0).max() < 1e-4
    features = plan(config).features
    shares = [(distance[:, :features] < 1e-4).mean() for distance in distances]
    assert all(0.1 < share < 0.7 for share in shares)
    assert abs((np.asarray(x)[:, features:] == 0).mean() - 0.5) < 0.1


def test_the_norm_of_v2_is_the_activated_norm_of_its_last_stage():
    model, variables = ResNet(net(**V2)), random_variables(net(**V2))
    found = model.apply(variables, IMAGES, stages=("stage2", "norm"), method="features")
    params = jax.device_get(variables["params"]["norm"])
    stats = jax.device_get(variables["batch_stats"]["norm"])
    scaled = (np.asarray(found["stage2"]) - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    expected = np.maximum(scaled * params["scale"] + params["bias"], 0)
    np.testing.assert_allclose(found["norm"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["stage3", "norm", "layer1", "logits", "head"])
def test_an_unknown_feature_map_is_refused_with_those_that_there_are(name):
    listed = "stem_conv, stem, stage1, stage2, pooled"
    with pytest.raises(ConfigError, match=rf"stages=\['{name}'\].* use {listed}(\n|$)"):
        ResNet(net()).apply(
            random_variables(net()), IMAGES, stages=("stem", name), method="features"
        )


def test_without_classes_the_output_is_the_pooled_features():
    config = net(num_classes=0)
    model, variables = ResNet(config), random_variables(config)
    last = model.apply(variables, IMAGES, stages=("stage2",), method="features")["stage2"]
    pooled = model.apply(variables, IMAGES)
    assert pooled.shape == (4, 8)
    np.testing.assert_allclose(pooled, np.asarray(last).mean((1, 2)), rtol=1e-5, atol=1e-6)


# Precision.


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    model, variables = ResNet(net(), dtype=jnp.bfloat16), random_variables(net())
    logits, moved = train(model, variables, IMAGES)
    assert logits.dtype == jnp.float32
    assert {array.dtype for array in jax.tree.leaves(moved)} == {jnp.dtype("float32")}
    features = model.apply(variables, IMAGES, stages=("stem", "stage2"), method="features")
    assert {array.dtype for array in features.values()} == {jnp.dtype("bfloat16")}
    # eight bits of mantissa through five convolutions
    np.testing.assert_allclose(logits, train(ResNet(net()), variables, IMAGES)[0], atol=0.1)


@pytest.mark.slow
def test_bfloat16_gives_float32s_numbers_at_full_size():
    model, variables = rj.create("resnet18")  # where XLA for CPUs fused a whole stage with the pool
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    exact = jax.jit(model.apply)(variables, images)
    rounded = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images)
    np.testing.assert_allclose(rounded, exact, atol=0.02 * np.abs(exact).max())


def test_initialising_in_bfloat16_gives_float32_parameters():
    model = ResNet(net(attention="se"), dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, key_of(0), IMAGES)
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_float64_computes_and_answers_in_float64_with_float32_variables():
    variables = random_variables(net())
    single = evaluate(ResNet(net()), variables, IMAGES)
    with jax.enable_x64():
        model = ResNet(net(), dtype=jnp.float64)
        double, moved = train(model, variables, IMAGES)
        assert double.dtype == jnp.float64
        assert {array.dtype for array in jax.tree.leaves(moved)} == {jnp.dtype("float32")}
        evaluated = evaluate(model, variables, IMAGES)
    np.testing.assert_allclose(single, evaluated, rtol=1e-4, atol=1e-5)
    assert (np.asarray(evaluated, np.float32) != np.asarray(evaluated)).any()


# Recomputation.


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {**V2, "drop_path_rate": 0.5, "block_dropout": 0.2}])
def test_remat_changes_neither_outputs_nor_statistics_nor_gradients(fields):
    config = net(**fields)
    variables = random_variables(config)

    @functools.partial(jax.jit, static_argnums=0)
    def step(model, params):
        def loss(params):
            logits, moved = train.__wrapped__(
                model, {**variables, "params": params}, IMAGES, key_of(7)
            )
            return jnp.square(logits).sum(), (logits, moved)

        return jax.value_and_grad(loss, has_aux=True)(params)

    kept = step(ResNet(config), variables["params"])
    again = step(ResNet(config, remat=True), variables["params"])
    assert jax.tree.structure(kept) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # fused otherwise


def test_remat_recomputes_each_block():
    def count(remat: bool) -> int:
        model, variables = ResNet(net(), remat=remat), random_variables(net())
        gradient = jax.grad(
            lambda params: model.apply({**variables, "params": params}, IMAGES).sum()
        )
        return str(jax.make_jaxpr(gradient)(variables["params"])).count("remat")

    assert count(remat=False) == 0
    assert count(remat=True) >= 2


# Dropping.


@pytest.mark.parametrize("field", ["drop_path_rate", "block_dropout", "dropout"])
def test_each_kind_of_dropping_follows_its_key_in_training_and_is_off_in_evaluation(field):
    config = net(**{field: 0.5}, norm="group", norm_groups=4)
    model, variables = ResNet(config), random_variables(config)
    keys = key_of(0), key_of(0), key_of(1)
    first, same, other = (train(model, variables, IMAGES, key)[0] for key in keys)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    never = evaluate(ResNet(net(norm="group", norm_groups=4)), variables, IMAGES)
    np.testing.assert_array_equal(evaluate(model, variables, IMAGES), never)


@pytest.mark.parametrize("field", ["drop_path_rate", "block_dropout", "dropout"])
def test_dropping_without_a_key_is_an_error_that_names_the_rng(field):
    config = net(**{field: 0.5})
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        ResNet(config).apply(random_variables(config), IMAGES, train=True, mutable=["batch_stats"])


def test_blocks_drop_by_different_keys(monkeypatch):
    config = net(block_dropout=0.5)
    keys = []

    def note(x, rate, key):
        keys.append(jax.random.key_data(key))
        return x

    monkeypatch.setattr(functions, "dropout", note)
    model, variables = ResNet(config), random_variables(config)
    rngs = {"dropout": key_of(0)}
    model.apply(variables, IMAGES, train=True, mutable=["batch_stats"], rngs=rngs)
    first, second = keys
    assert not np.array_equal(first, second)


# Every kind of block.

KINDS = {
    "basic with option A": net(shortcut="pad", widths=(8, 12)),
    "bottleneck that strides first and has a 3x3 shortcut": net(
        **BOTTLENECK, stride_on="reduce", shortcut_kernel=3
    ),
    "pre basic that strides last": net(
        **V2, stride_on="last_spatial", stride_block="last", conv_bias="all", depths=(1, 2)
    ),
    "pre bottleneck that strides last": net(
        **V2, **BOTTLENECK, stride_block="last", depths=(1, 2), conv_bias="all"
    ),
    "pre with option A and squeeze-excite": net(
        **V2, shortcut="pad", widths=(8, 12), attention="se"
    ),
    "grouped with average shortcut": net(
        **BOTTLENECK, groups=4, group_width=16, shortcut="avg_conv"
    ),
    "ResNet-RS": net(stem="deep", stem_pool="conv", shortcut="avg_conv", attention="se"),
    "ECA with a tiered stem and SiLU": net(stem="tiered", attention="eca", activation="silu"),
    "bare shortcut with biases and same padding": net(
        shortcut_norm=False, conv_bias="all", padding="same", stem_pool="max"
    ),
    "pruned bottlenecks with ECA": net(
        **BOTTLENECK,
        attention="eca",
        shortcut="avg_conv",
        depths=(2, 1),
        pruned_features=(((3, 8, 5), (7, 2, 5)), ((4, 6, 9),)),
    ),
    "blur": net(antialias="blur", stem_pool="max"),
    "average": net(antialias="average", shortcut="avg_conv", stem_pool="max"),
    "BiT with a deep stem": net(
        **V2, stem="deep", norm="group", norm_groups=2, weight_standardization_eps=1e-8
    ),
    "dilated": net(strides=(1, 1), dilations=(1, 2), inner_activation="gelu_tanh"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(kind):
    config = KINDS[kind]
    model, variables = ResNet(config), random_variables(config)
    images = random_images(2, 16, 16, 3)

    @jax.jit
    def gradients(params):
        def loss(params):
            return jnp.square(model.apply({**variables, "params": params}, images)).sum()

        return jax.grad(loss)(params)

    found = flax.traverse_util.flatten_dict(gradients(variables["params"]), sep="/")
    assert {path for path, array in found.items() if not np.isfinite(array).all()} == set()
    assert {path for path, array in found.items() if not np.any(array)} == set()


@pytest.mark.parametrize(
    "fields",
    [{}, BOTTLENECK | {"stem_width": 32}, V2, {**V2, **BOTTLENECK, "stem_width": 32}],
    ids=["basic", "bottleneck", "pre basic", "pre bottleneck"],
)
def test_zero_init_makes_each_block_the_identity_at_the_start(fields):
    config = net(**fields, depths=(2, 1), zero_init_residual=True)
    listed = leaves(plan(config))
    variables, fresh = random_variables(config), initialize(listed, 0)
    for path, leaf in listed.items():  # statistics stay random; the residual branch ends in zeros
        if leaf.kind in ("scale", "bias", "conv"):
            *parents, name = path.split("/")
            tree = functools.reduce(dict.__getitem__, parents, variables["params"])
            tree[name] = jnp.asarray(fresh[path])
    if config.order == "post":
        for block in ("stage1_block1", "stage1_block2"):
            norms = variables["batch_stats"][block]
            last = max(norms)
            norms[last]["mean"] = jnp.zeros_like(norms[last]["mean"])
    found = ResNet(config).apply(variables, IMAGES, stages=("stem", "stage1"), method="features")
    np.testing.assert_array_equal(found["stage1"], found["stem"])


# Other ways to run it.


@pytest.mark.parametrize("fields", [{}, V2], ids=["post", "pre"])
def test_the_nnx_bridge_gives_what_apply_gives(fields):
    config = net(**fields)
    model = ResNet(config)
    bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(key_of(0))).lazy_init(IMAGES)
    state = nnx.to_pure_dict(nnx.state(bridged, (nnx.Param, nnx.BatchStat)))
    flat = {"/".join(path): array for path, array in flax.traverse_util.flatten_dict(state).items()}
    listed = leaves(plan(config))
    variables = {"params": {}, "batch_stats": {}}
    for path, leaf in listed.items():
        variables[leaf.collection][path] = flat[path]
    nested = {k: flax.traverse_util.unflatten_dict(v, sep="/") for k, v in variables.items()}
    np.testing.assert_allclose(bridged(IMAGES), model.apply(nested, IMAGES), rtol=1e-5, atol=1e-6)


def test_the_nnx_bridge_trains_and_moves_statistics():
    bridged = nnx.bridge.ToNNX(ResNet(net()), rngs=nnx.Rngs(key_of(0))).lazy_init(IMAGES)
    bridged(IMAGES, train=True, mutable=["batch_stats"])
    moved = nnx.to_pure_dict(nnx.state(bridged, nnx.BatchStat))
    assert float(jnp.abs(moved["stem"]["norm1"]["mean"]).max()) > 0


def test_a_mapped_axis_gives_the_logits_and_statistics_of_the_whole_batch():
    variables, images = random_variables(net()), random_images(8, 8, 8, 3)
    mapped = ResNet(net(), axis_name="devices")
    run = jax.vmap(lambda part: train(mapped, variables, part), axis_name="devices")
    logits, moved = run(images.reshape(4, 2, 8, 8, 3))
    whole_logits, whole_moved = train(ResNet(net()), variables, images)
    np.testing.assert_allclose(logits.reshape(8, 3), whole_logits, rtol=1e-4, atol=1e-4)
    for parts, whole in zip(jax.tree.leaves(moved), jax.tree.leaves(whole_moved), strict=True):
        for part in parts:
            np.testing.assert_allclose(part, whole, rtol=1e-4, atol=1e-5)


EIGHT_DEVICES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from resnetjax.nn.resnet import ResNet
from tests.nn import test_resnet as t

assert jax.device_count() == 8
config = t.net()
variables, images = t.random_variables(config), t.random_images(16, 8, 8, 3)
mesh = Mesh(np.array(jax.devices()), ("devices",))

def step(model):
    def run(variables, images):
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, updates["batch_stats"]
    return run

plain, mapped = ResNet(config), ResNet(config, axis_name="devices")
results = {"jit": jax.jit(step(plain))(variables, images)}
results["sharded jit"] = jax.jit(step(plain))(
    jax.device_put(variables, NamedSharding(mesh, P())),
    jax.device_put(images, NamedSharding(mesh, P("devices"))),
)
results["shard_map"] = jax.jit(jax.shard_map(
    step(mapped), mesh=mesh, in_specs=(P(), P("devices")), out_specs=(P("devices"), P())
))(variables, images)
logits, moved = jax.pmap(step(mapped), axis_name="devices", in_axes=(None, 0))(
    variables, images.reshape(8, 2, 8, 8, 3)
)
results["pmap"] = logits.reshape(16, 3), jax.tree.map(lambda x: x[3], moved)
alone, _ = jax.pmap(step(plain), axis_name="devices", in_axes=(None, 0))(
    variables, images.reshape(8, 2, 8, 8, 3)
)
results["per device"] = alone.reshape(16, 3), moved
found = {
    name: [np.asarray(logits).tolist(), [np.asarray(x).tolist() for x in jax.tree.leaves(moved)]]
    for name, (logits, moved) in results.items()
}
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def eight_devices() -> dict:
    """Logits and statistics of one training step, run in every way on eight virtual devices."""
    flags = "--xla_force_host_platform_device_count=8"
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES],
        env=environment, cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", ["sharded jit", "shard_map", "pmap"])
def test_eight_devices_give_the_logits_and_statistics_of_one(eight_devices, way):
    logits, moved = eight_devices[way]
    whole_logits, whole_moved = eight_devices["jit"]
    # sums over images in another order
    np.testing.assert_allclose(logits, whole_logits, rtol=1e-4, atol=1e-4)
    for found, expected in zip(moved, whole_moved, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_without_an_axis_name_a_mapped_net_normalises_on_each_device(eight_devices):
    alone, whole = (np.array(eight_devices[way][0]) for way in ("per device", "jit"))
    assert np.abs(alone - whole).max() > 1e-2


def test_frozen_may_be_a_list_but_no_string():
    config = ResNetConfig(depths=(1, 1, 1, 1))
    assert hash(ResNet(config, frozen=["stem"])) == hash(ResNet(config, frozen=("stem",)))
    with pytest.raises(ConfigError, match="frozen='stem'"):
        ResNet(config, frozen="stem")


@pytest.mark.slow
def test_a_net_whose_every_norm_is_frozen_trains_without_mutable_statistics():
    config = ResNetConfig(depths=(1, 1), widths=(8, 8), strides=(1, 2), dilations=(1, 1))
    frozen = ("stem", "stage1", "stage2")
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    model = ResNet(config, frozen=frozen)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    found = model.apply(variables, images, train=True)
    np.testing.assert_array_equal(found, model.apply(variables, images, train=False))


@pytest.mark.slow
def test_the_head_may_pool_by_the_greatest():
    config = ResNetConfig(
        depths=(1, 1), widths=(8, 8), strides=(1, 2), dilations=(1, 1), num_classes=0
    )
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    model = ResNet(config.replace(head_pool="max"))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    last = model.apply(variables, images, stages=("stage2",), method="features")["stage2"]
    np.testing.assert_array_equal(model.apply(variables, images), last.max((1, 2)))
