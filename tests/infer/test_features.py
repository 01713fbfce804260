"""Feature maps of a pretrained net, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnetjax as rj
from resnetjax.errors import ConfigError
from resnetjax.infer.features import feature_info

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


def four_stages(**fields) -> rj.Pretrained:
    config = CONFIG.replace(
        depths=(1, 1, 1, 1), widths=(8, 16, 24, 32), strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)
    )
    model, variables = rj.create(config.replace(**fields), rng=0)
    return rj.Pretrained(model=model, variables=variables)


V2 = {"order": "pre", "shortcut_norm": False}
# timm 1.0.31 feature_info, Transformers 5.23 ResNetBackbone, KerasHub 0.32 pyramid_outputs.
CONVENTIONS = {
    "timm": {0: ("stem_conv", 8, 2), 1: ("stage1", 8, 4), 2: ("stage2", 16, 8),
             3: ("stage3", 24, 16), 4: ("stage4", 32, 32)},
    "transformers": {"stem": ("stem", 8, 4), "stage1": ("stage1", 8, 4),
                     "stage2": ("stage2", 16, 8), "stage3": ("stage3", 24, 16),
                     "stage4": ("stage4", 32, 32)},
    "keras": {"P2": ("stage1", 8, 4), "P3": ("stage2", 16, 8), "P4": ("stage3", 24, 16),
              "P5": ("stage4", 32, 32)},
}  # fmt: skip


@pytest.mark.parametrize("fields", [{}, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_convention_has_its_keys_with_channels_and_strides(convention, fields):
    found = feature_info(four_stages(**fields), convention=convention)
    expected = CONVENTIONS[convention]
    assert {key: (x.name, x.channels, x.stride) for key, x in found.items()} == expected
    assert list(found) == list(expected)


def test_a_convention_changes_the_keys_and_not_the_maps():
    pre = pretrained(**V2)
    ours = rj.features(pre, IMAGES)
    found = rj.features(pre, IMAGES, convention="keras", stages=("P3", "P2"))
    assert list(found) == ["P3", "P2"]
    for key, name in (("P2", "stage1"), ("P3", "stage2")):
        np.testing.assert_allclose(found[key], ours[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("convention", "stages", "keys"),
    [
        ("timm", (1, 3), [1, 3]),
        ("timm", (-1,), [4]),
        ("timm", (-2, 0), [3, 0]),
        ("transformers", (0, 3), ["stem", "stage3"]),
        ("transformers", ("stem", -1), ["stem", "stage4"]),
        ("keras", ("P5",), ["P5"]),
        ("keras", (), []),
    ],
)
def test_indices_count_along_a_conventions_keys(convention, stages, keys):
    assert list(feature_info(four_stages(), convention=convention, stages=stages)) == keys


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"convention": "torchvision"}, "'torchvision' .* 'timm', 'transformers', 'keras'"),
        ({"convention": "timm", "stages": (5,)}, r"\[5\] .* use 0, 1, 2, 3, 4"),
        ({"convention": "timm", "stages": ("stage1",)}, "use 0, 1, 2, 3, 4"),
        ({"convention": "keras", "stages": ("P6",)}, "use P2, P3, P4, P5"),
        ({"convention": "transformers", "stages": ("pooled",)}, "use stem, stage1"),
        ({"stages": (1,)}, r"\[1\] .* use stem_conv, stem"),
    ],
)
def test_a_key_that_a_convention_has_not_is_refused_with_those_it_has(asked, words):
    with pytest.raises(ConfigError, match=words):
        rj.features(four_stages(), IMAGES, **asked)


@pytest.mark.parametrize("fields", [{}, V2], ids=["v1", "v2"])
def test_the_pooled_vector_is_what_the_head_sees(fields):
    pre = pretrained(**fields)
    vectors = rj.features(pre, IMAGES, stages=("pooled",))["pooled"]
    assert vectors.shape == (2, 16)
    head = jax.device_get(pre.variables["params"]["head"])
    expected = np.asarray(vectors) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(
        pre.model.apply(pre.variables, IMAGES), expected, rtol=1e-4, atol=1e-5
    )


def test_pooled_is_asked_for_by_name_only_and_is_no_map():
    pre = pretrained()
    assert "pooled" not in rj.features(pre, IMAGES)
    assert "pooled" not in feature_info(pre)
    with pytest.raises(ConfigError, match="'pooled' is a vector"):
        feature_info(pre, stages=("pooled",))


@pytest.mark.parametrize("stage", ["stem", "stage1", "norm"])
def test_the_rest_of_the_net_makes_the_logits_of_a_stages_maps(stage):
    pre = pretrained(**V2)
    maps = rj.features(pre, IMAGES, stages=(stage,))[stage]
    logits = pre.model.apply(pre.variables, maps, stage=stage, method="logits_from")
    np.testing.assert_allclose(logits, pre.model.apply(pre.variables, IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["stem_conv", "pooled", "stage7"])
def test_the_rest_of_the_net_begins_after_a_stage(stage):
    pre = pretrained()
    with pytest.raises(ConfigError, match=rf"stage=\['{stage}'\].* use stem, stage1, stage2"):
        pre.model.apply(pre.variables, IMAGES, stage=stage, method="logits_from")
    with pytest.raises(ConfigError, match=r"expected \(batch, height, width, 16\)"):
        pre.model.apply(pre.variables, IMAGES, stage="stage2", method="logits_from")
