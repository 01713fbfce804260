"""Rewritings of a net's arrays leave what it computes as it was."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.measure import leaves
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan
from resnetjax.weights.passes import (
    absorb_epsilon,
    fold_biases,
    fold_mean,
    fold_scale,
    reverse_channels,
)
from tests.golden.weights import draw

BGR = Preprocess(divisor=2.0, mean=(10.0, -20.0, 30.0), std=(1.0, 2.0, 4.0), channel_order="bgr")
TOLERANCE = 2e-6  # of the largest logit: the sums of one float32 convolution


def net(**fields) -> ResNetConfig:
    values = {
        "depths": (2, 2), "widths": (8, 16), "strides": (1, 2), "dilations": (1, 1),
        "stem_width": 8, "num_classes": 7, "norm_eps": 1.001e-5, "conv_bias": "all",
    }  # fmt: skip
    return ResNetConfig(**{**values, **fields})


NETS = {
    "post": net(),
    "basic": net(block="basic", norm_eps=1e-3),
    "bare shortcuts": net(shortcut_norm=False),
    "pre": net(order="pre", shortcut_norm=False),
    "deep": net(stem="deep", shortcut="avg_conv"),
    "deep pre": net(stem="deep", order="pre", shortcut_norm=False),
    "CIFAR": net(stem="conv3", stem_pool="none", shortcut="pad", widths=(8, 8)),
}


def drawn(config: ResNetConfig) -> dict[str, np.ndarray]:
    return {path: draw(path, leaf.shape) for path, leaf in leaves(plan(config)).items()}


def as_variables(config: ResNetConfig, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    named = {
        f"{leaf.collection}/{path}": jnp.asarray(arrays[path])
        for path, leaf in leaves(plan(config)).items()
    }
    return flax.traverse_util.unflatten_dict(named, sep="/")


def logits(config: ResNetConfig, arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    expected = leaves(plan(config))
    assert arrays.keys() == expected.keys()
    assert all(arrays[path].dtype == np.float32 for path in arrays)
    nested = as_variables(config, arrays)
    with jax.default_matmul_precision("highest"):
        return np.asarray(ResNet(config).apply(nested, jnp.asarray(x)))


def image(size: int = 33) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)


def seen(x: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    x = x if preprocess.channel_order == "rgb" else x[..., ::-1]
    scaled = (np.float64(x) / preprocess.divisor - preprocess.mean) / preprocess.std
    return scaled.astype(np.float32)


def assert_close(ours: np.ndarray, theirs: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("name", NETS)
def test_f04_a_bias_that_a_norm_follows_is_part_of_its_mean(name):
    config = NETS[name]
    arrays, x = drawn(config), seen(image(), Preprocess())
    folded, plain = fold_biases(arrays, config)
    left = {"bare shortcuts": ("shortcut",), "pre": ("stem", "conv3", "shortcut"),
            "deep pre": ("stem", "conv3", "shortcut")}.get(name, ())  # fmt: skip
    assert plain.bias_sites == left
    assert plain == config.replace(conv_bias=left or "none")
    assert_close(logits(plain, folded, x), logits(config, arrays, x))
    assert folded.keys() < arrays.keys()


@pytest.mark.parametrize("norm_eps", [1e-5, 1e-3, 1.001e-5])
@pytest.mark.parametrize("name", ["post", "basic", "pre"])
def test_f03_an_epsilon_is_part_of_the_variance(name, norm_eps):
    config = NETS[name]
    arrays, x = drawn(config), seen(image(), Preprocess())
    absorbed, other = absorb_epsilon(arrays, config, norm_eps)
    assert other == config.replace(norm_eps=norm_eps)
    theirs = logits(config, arrays, x)
    # A variance of epsilon's size keeps 24 bits of the sum of both, not of itself.
    assert_close(logits(other, absorbed, x), theirs, 1e-5)
    if norm_eps != config.norm_eps:
        wrong = logits(other, arrays, x)
        assert np.abs(wrong - theirs).max() > 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", NETS)
def test_f06_blue_first_becomes_red_first_in_the_stem(name):
    config = NETS[name]
    arrays, x = drawn(config), image()
    turned, preprocess = reverse_channels(arrays, BGR)
    assert preprocess.channel_order == "rgb"
    assert reverse_channels(turned, preprocess)[1] == BGR
    theirs = logits(config, arrays, seen(x, BGR))
    assert_close(logits(config, turned, seen(x, preprocess)), theirs)


@pytest.mark.parametrize("name", NETS)
def test_a_scale_of_the_input_is_part_of_the_stem_to_the_border(name):
    config = NETS[name]
    arrays, x = drawn(config), image()
    scaled, preprocess = fold_scale(arrays, BGR)
    assert (preprocess.divisor, preprocess.std) == (1.0, (1.0, 1.0, 1.0))
    theirs = logits(config, arrays, seen(x, BGR))
    assert_close(logits(config, scaled, seen(x, preprocess)), theirs)


@pytest.mark.parametrize("name", ["post", "CIFAR"])
def test_a_mean_of_the_input_is_part_of_the_stem_s_norm_but_at_the_border(name):
    config = NETS[name].replace(stem_pool="none")
    arrays, x = drawn(config), image()
    folded, preprocess = fold_mean(arrays, config, BGR)
    assert preprocess.mean == (0.0, 0.0, 0.0)

    def stem(arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        nested, net = as_variables(config, arrays), ResNet(config)
        found = net.apply(nested, jnp.asarray(x), stages=("stem",), method="features")
        return np.asarray(found["stem"])

    ours, theirs = stem(folded, seen(x, preprocess)), stem(arrays, seen(x, BGR))
    edge = 2 if config.stem == "conv7" else 1  # of the output: three pixels, or one, of the input
    inside = (slice(None), slice(edge, -edge), slice(edge, -edge))
    assert_close(ours[inside], theirs[inside], 1e-5)
    assert np.abs(ours - theirs).max() > 0.1


def test_group_norm_stores_neither_mean_nor_variance():
    config = net(norm="group", norm_groups=4)
    for rewrite in (
        lambda: fold_biases(drawn(config), config),
        lambda: absorb_epsilon(drawn(config), config, 1e-5),
        lambda: fold_mean(drawn(config), config, BGR),
    ):
        with pytest.raises(ConfigError, match="is not allowed"):
            rewrite()


def test_what_a_norm_does_not_follow_keeps_its_mean():
    config = NETS["pre"]
    with pytest.raises(ConfigError, match="order='pre'"):
        fold_mean(drawn(config), config, dataclasses.replace(BGR, std=(1.0, 1.0, 1.0)))
