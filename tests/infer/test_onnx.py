"""Nets as ONNX files: onnxruntime gives what the net gives, for every element that a plan has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnetjax as rj
from resnetjax import presets
from resnetjax.data.preprocess import normalize
from resnetjax.infer import artifact
from resnetjax.infer.fold import fold
from tests.cut import cut
from tests.infer.settled import noise, settled

onnx = pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

# An odd and an even edge: SAME pads them differently, and windows end differently on them.
PREPROCESS = rj.Preprocess(
    crop_px=(65, 50), resize_mode="squash", resize_px=(65, 50), channel_order="bgr", divisor=127.5,
    mean=(0.7, 1.0, 1.1), std=(0.5, 0.7, 0.9),
)  # fmt: skip
# Of the spread max|f(x_i) - mean f|; both sides compute in float32.
TOLERANCE = 1e-4
SMALL = {
    "depths": (2, 1), "widths": (16, 24), "strides": (2, 2), "dilations": (1, 1),
    "stem_width": 16, "num_classes": 5, "norm_eps": 0.1,
}  # fmt: skip
V2 = {"order": "pre", "shortcut_norm": False}
# Between them every element that a plan can have.
NETS = {
    "deep_stem-groups-se-blur-avg_conv-silu": {
        "stem": "deep", "groups": 4, "group_width": 16, "attention": "se", "antialias": "blur",
        "shortcut": "avg_conv", "activation": "silu",
        "depths": (1, 1),
    },
    "v2-group_norm-standardized-zero_pool-gelu": {
        **V2, "norm": "group", "norm_groups": 8, "weight_standardization_eps": 1e-8,
        "stem_pool_value": "zero", "activation": "gelu", "head_pool": "max", "block": "basic",
        "depths": (1, 1),
    },
    "same-dilated-eca-biases-gelu_tanh": {
        "padding": "same", "stem_pool_padding": "same", "output_stride": 8, "attention": "eca",
        "conv_bias": "all", "activation": "gelu_tanh", "stride_block": "last",
        "shortcut": "avg_conv",
    },
    "pruned-eca-avg_conv-hidden": {
        "attention": "eca", "shortcut": "avg_conv",
        "pruned_features": (((9, 12, 50), (16, 5, 50)), ((24, 7, 30),)),
        "head_widths": (12, 7), "activation": "silu",
    },
    "basic-pad_shortcut-average_pool-headless": {
        "block": "basic", "shortcut": "pad", "antialias": "average", "inner_activation": "silu",
        "num_classes": 0,
    },
    "tiered_stem-pool_conv-reduce-v2_last": {
        **V2, "stem": "tiered", "stem_pool": "conv", "stride_on": "reduce", "stride_block": "last",
        "conv_bias": ("stem", "conv3", "shortcut"), "padding": "same_blocks",
    },
}  # fmt: skip


def exported(pretrained: rj.Pretrained, path) -> artifact.Artifact:
    rj.export(pretrained, path)
    onnx.checker.check_model(str(path), full_check=True)
    return artifact.load(path)


def logits_of(pretrained: rj.Pretrained, pixels: np.ndarray) -> np.ndarray:
    run = jax.jit(lambda x: pretrained.model.apply(pretrained.variables, x))
    return np.asarray(run(normalize(jnp.asarray(pixels), pretrained.preprocess)))


def check(config: rj.ResNetConfig, path) -> None:
    pixels = noise(3, PREPROCESS)
    net = settled(config, PREPROCESS)
    expected = logits_of(net, pixels)
    ours = exported(net, path)
    spread = np.abs(expected - expected.mean(0)).max()
    for batch in (1, 3):
        found = ours(pixels[:batch])
        assert found.shape == expected[:batch].shape
        assert np.abs(found - expected[:batch]).max() < TOLERANCE * spread


@pytest.mark.parametrize("name", NETS)
def test_every_element_of_a_plan_gives_what_the_net_gives(name, tmp_path):
    check(rj.ResNetConfig(**{**SMALL, **NETS[name]}), tmp_path / "net.onnx")


@pytest.mark.parametrize("fields", [{}, {**V2, "weight_standardization_eps": 1e-8}])
def test_a_folded_net_gives_what_the_net_gives(fields, tmp_path):
    config, pixels = rj.ResNetConfig(**{**SMALL, "depths": (1, 1), **fields}), noise(3, PREPROCESS)
    net = settled(config, PREPROCESS)
    expected = logits_of(net, pixels)
    model, variables = fold(net.model, net.variables)
    folded = dataclasses.replace(net, model=model, variables=variables)
    difference = exported(folded, tmp_path / "net.onnx")(pixels) - expected
    assert np.abs(difference).max() < TOLERANCE * np.abs(expected - expected.mean(0)).max()


def narrow(config: rj.ResNetConfig) -> rj.ResNetConfig:
    """The config with few blocks of few channels, and all else as it was."""
    stages = len(config.depths)
    widths = (16, 32, 48, 64)[:stages]
    config = cut(config, (2, 2, 1, 1)[:stages])
    pruned = config.pruned_features and tuple(
        tuple(tuple(map(min, block, (width, width, 4 * width))) for block in blocks)
        for width, blocks in zip(widths, config.pruned_features, strict=True)
    )
    return config.replace(
        widths=widths,
        pruned_features=pruned,
        stem_width=16,
        groups=min(config.groups, 4),
        group_width=32 if config.groups > 1 else config.group_width,
        norm_groups=8,
        num_classes=7,
    )


FAMILIES = {narrow(config): name for name, config in reversed(presets.ARCHITECTURES.items())}


@pytest.mark.slow
@pytest.mark.parametrize("config", list(reversed(FAMILIES)), ids=FAMILIES.get)
def test_every_family_of_presets_gives_what_the_net_gives(config, tmp_path):
    check(config, tmp_path / "net.onnx")
