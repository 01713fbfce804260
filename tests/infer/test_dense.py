"""Atrous equals dense subsampling, as tf_slim's testAtrousFullyConvolutionalValues has it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnetjax as rj
from resnetjax.errors import ConfigError
from resnetjax.infer.features import dense, feature_info
from resnetjax.infer.fold import fold
from resnetjax.plan import plan

SMALL = rj.ResNetConfig(
    depths=(1, 1, 2, 1), widths=(4, 6, 8, 10), stem_width=8, num_classes=0, group_width=64
)
PRE = {"order": "pre", "shortcut_norm": False}
SLIM = {"stride_block": "last", "strides": (2, 2, 2, 1), "dilation_rule": "uniform"}
BASIC = {"block": "basic"}
# Nets by where they stride; all pad as torch does, and slim's, which pads so where it strides.
STYLES = {
    "v1.5": {},
    "v2": PRE,
    "slim v2": {**PRE, **SLIM, "stem_pool_padding": "same"},
    "v1": {"stride_on": "reduce"},
    "basic": BASIC,
    "v2 basic": {**BASIC, **PRE},
    "slim v1": {**SLIM, "stem_pool_padding": "same"},
    "kerascv v2 basic": {
        **BASIC, **PRE, "stride_on": "last_spatial", "stride_block": "last",
        "strides": (1, 2, 2, 2), "dilation_rule": "undilated",
    },
    "senet": {"shortcut_kernel": 3, "groups": 2},
    "equal widths": {**BASIC, "widths": (8, 8, 8, 8)},
    "option A": {**BASIC, "shortcut": "pad", "stem_width": 4},
}  # fmt: skip
QUICK = [("v1.5", 8)]
CASES = [
    pytest.param(style, stride, marks=[] if (style, stride) in QUICK else pytest.mark.slow)
    for style in STYLES
    for stride in (8, 16, 32)
]
# tf_slim/nets/resnet_v1_test.py
SLIM_PX, ATOL, RTOL = 81, 1e-4, 1e-4


def pretrained(**fields) -> rj.Pretrained:
    """A net of which every array was drawn, so that no pad is zero after a norm by chance."""
    model, variables = rj.create(SMALL.replace(**fields), rng=0)
    rng = np.random.default_rng(0)
    drawn = {"bias": (-0.5, 0.5), "mean": (-0.5, 0.5), "var": (0.5, 2.0), "scale": (0.5, 1.5)}
    variables = jax.tree.map_with_path(
        lambda path, x: (
            jnp.asarray(rng.uniform(*drawn[path[-1].key], x.shape), jnp.float32)
            if path[-1].key in drawn
            else x
        ),
        variables,
    )
    return rj.Pretrained(model=model, variables=variables)


def images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, height, width, 3)).astype(np.float32)


def largest_difference(pre: rj.Pretrained, x: np.ndarray, stride: int) -> float:
    """Of dense and subsampled features from those of the net as it was made, over all maps."""
    ours, expected = rj.features(pre, x, output_stride=stride), rj.features(pre, x)
    after = feature_info(pre, output_stride=stride)
    differences = []
    for info in pre.model.feature_info:
        factor = info.stride // after[info.name].stride
        assert after[info.name].stride == min(info.stride, stride)
        subsampled = ours[info.name][:, ::factor, ::factor]
        assert subsampled.shape == expected[info.name].shape
        # As numpy.allclose compares: below 1 it agrees.
        allowed = ATOL + RTOL * jnp.abs(expected[info.name])
        differences.append(float((jnp.abs(subsampled - expected[info.name]) / allowed).max()))
    return max(differences)


@pytest.mark.parametrize(("style", "stride"), CASES)
def test_dense_features_subsampled_are_those_at_the_nominal_stride(style, stride):
    assert largest_difference(pretrained(**STYLES[style]), images(SLIM_PX, SLIM_PX), stride) < 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 96), (65, 81), (70, 83), (97, 97)])
@pytest.mark.parametrize("style", ["v1.5", "v2", "v1", "basic"])
def test_with_torchs_padding_it_holds_for_every_size(style, size):
    assert largest_difference(pretrained(**STYLES[style]), images(*size), 8) < 1


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, STYLES["kerascv v2 basic"]], ids=["v1.5", "kerascv v2"])
@pytest.mark.parametrize(("edge_px", "holds"), [(97, True), (65, True), (96, False), (81, False)])
def test_with_same_padding_it_holds_where_every_stride_meets_an_odd_size(fields, edge_px, holds):
    pre = pretrained(padding="same", stem_pool_padding="same", **fields)
    assert (largest_difference(pre, images(edge_px, edge_px), 8) < 1) == holds


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"attention": "se"},
        {"shortcut": "avg_conv"},
        {"antialias": "blur"},
        {"norm": "group", "norm_groups": 2},
    ],
    ids=["attention", "avg_conv", "blur", "group"],
)
def test_it_does_not_hold_where_a_value_depends_on_more_than_its_place(fields):
    found = largest_difference(pretrained(**fields), images(SLIM_PX, SLIM_PX), 8)
    assert found > 10
    assert math.isfinite(found)


def test_a_dense_net_has_the_same_weights_and_says_its_strides():
    pre = pretrained()
    net = dense(pre, 8)
    assert net.variables is pre.variables
    assert [info.stride for info in net.model.feature_info] == [2, 4, 4, 8, 8, 8]
    assert [info.stride for info in pre.model.feature_info] == [2, 4, 4, 8, 16, 32]
    assert dense(net, 32).model.feature_info == pre.model.feature_info


def folded(pre: rj.Pretrained) -> rj.Pretrained:
    model, variables = fold(pre.model, pre.variables)
    return dataclasses.replace(pre, model=model, variables=variables)


def test_a_folded_net_is_made_dense_too():
    pre, x = pretrained(), images(33, 33)
    expected = rj.features(pre, x, output_stride=8)
    for name, maps in rj.features(folded(pre), x, output_stride=8).items():
        assert maps.shape == expected[name].shape
        np.testing.assert_allclose(maps, expected[name], rtol=RTOL, atol=ATOL)


def test_a_net_with_a_plan_of_its_own_is_not_made_dense():
    other = rj.ResNet(SMALL, net=plan(SMALL.replace(strides=(1, 2, 2, 1))))
    with pytest.raises(ConfigError, match=r"output_stride=8 is not allowed: .*plan of its own"):
        dense(dataclasses.replace(pretrained(), model=other), 8)


@pytest.mark.parametrize(
    ("fields", "stride", "words"),
    [
        ({}, 64, r"output_stride=64 is not allowed: use 8, 16 or 32"),
        ({"stem": "conv3", "stem_pool": "none"}, 16, r"output_stride=16 .* at most .* own, 8"),
        ({"dilations": (1, 1, 1, 2), "strides": (1, 2, 2, 1)}, 8, r"dilations=\(1, 1, 1, 2\)"),
        ({"stride_block": "last", "shortcut_kernel": 3, "depths": (1, 1, 1, 2)}, 8, "other arrays"),
    ],
)
def test_an_output_stride_that_cannot_be_is_refused(fields, stride, words):
    model = rj.ResNet(SMALL.replace(**fields))
    pre = dataclasses.replace(pretrained(), model=model)
    with pytest.raises(ConfigError, match=words):
        rj.features(pre, images(32, 32), output_stride=stride)
