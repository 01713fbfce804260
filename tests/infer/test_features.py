"""Feature maps of a pretrained net, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnetjax as rj
from resnetjax.errors import ConfigError

CONFIG = rj.ResNetConfig(
    block="basic",
    depths=(1, 1),
    widths=(8, 16),
    strides=(1, 2),
    dilations=(1, 1),
    stem_width=8,
    num_classes=3,
)
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 33, 47, 3), np.float32))


def pretrained(**fields) -> rj.Pretrained:
    model, variables = rj.create(CONFIG.replace(**fields), rng=0)
    return rj.Pretrained(model=model, variables=variables)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ["stem_conv", "stem", "stage1", "stage2"]),
        (
            {"order": "pre", "shortcut_norm": False},
            ["stem_conv", "stem", "stage1", "stage2", "norm"],
        ),
    ],
)
def test_all_feature_maps_come_by_default_with_the_shapes_of_feature_info(fields, names):
    pre = pretrained(**fields)
    found = rj.features(pre, IMAGES)
    assert list(found) == names
    for info in pre.model.feature_info:
        height, width = -(-33 // info.stride), -(-47 // info.stride)
        assert found[info.name].shape == (2, height, width, info.channels), info.name


def test_features_come_in_the_order_asked_for_and_are_those_of_the_whole_run():
    pre = pretrained()
    every, some = rj.features(pre, IMAGES), rj.features(pre, IMAGES, stages=("stage1", "stem"))
    assert list(some) == ["stage1", "stem"]
    for name, array in some.items():
        # compiled apart, so fused otherwise
        np.testing.assert_allclose(array, every[name], rtol=1e-4, atol=1e-5)


def test_the_pooled_last_stage_through_the_head_gives_the_logits():
    pre = pretrained()
    (last,) = rj.features(pre, IMAGES, stages=("stage2",)).values()
    head = jax.device_get(pre.variables["params"]["head"])
    expected = np.asarray(last).mean((1, 2)) @ head["kernel"] + head["bias"]
    found = pre.model.apply(pre.variables, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_features_use_running_statistics_and_leave_them_alone():
    pre = pretrained()
    before = jax.device_get(pre.variables["batch_stats"])
    both = rj.features(pre, IMAGES, stages=("stage2",))["stage2"]
    alone = rj.features(pre, IMAGES[:1], stages=("stage2",))["stage2"]
    np.testing.assert_allclose(both[:1], alone, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(pre.variables["batch_stats"]), before
    )


def test_nothing_after_the_last_feature_map_is_computed_or_needed():
    pre = pretrained()
    kept = {"stem": pre.variables["params"]["stem"]}
    stats = {"stem": pre.variables["batch_stats"]["stem"]}
    cut = rj.Pretrained(model=pre.model, variables={"params": kept, "batch_stats": stats})
    assert rj.features(cut, IMAGES, stages=("stem_conv",))["stem_conv"].shape == (2, 17, 24, 8)


def test_a_headless_net_has_the_same_features():
    whole = pretrained()
    params = {name: tree for name, tree in whole.variables["params"].items() if name != "head"}
    bare = rj.Pretrained(
        model=rj.ResNet(CONFIG.replace(num_classes=0)),
        variables={**whole.variables, "params": params},
    )
    for pre in (whole, bare):
        assert list(rj.features(pre, IMAGES, stages=("stage2",))) == ["stage2"]
    a, b = (rj.features(pre, IMAGES, stages=("stage2",))["stage2"] for pre in (whole, bare))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["stage3", "norm", "head", "layer1", ""])
def test_an_unknown_feature_map_is_refused_with_those_that_there_are(name):
    with pytest.raises(ConfigError, match=rf"\['{name}'\].* use stem_conv, stem, stage1, stage2"):
        rj.features(pretrained(), IMAGES, stages=("stem", name))


def test_images_of_other_channels_are_refused_with_the_shape_expected():
    with pytest.raises(ConfigError, match=r"expected \(batch, height, width, 3\)"):
        rj.features(pretrained(), IMAGES[..., :1], stages=("stem",))


def test_changed_weights_are_used_though_the_net_is_compiled():
    pre = pretrained()
    first = rj.features(pre, IMAGES, stages=("stem",))["stem"]
    pre.variables["params"]["stem"]["norm1"]["bias"] += 1
    again = rj.features(pre, IMAGES, stages=("stem",))["stem"]
    assert float(jnp.abs(again - first).max()) > 0.5
