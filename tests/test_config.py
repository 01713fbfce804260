"""`ResNetConfig` refuses what no net can be, says why, and survives JSON."""

import dataclasses
import json
import math

import pytest

from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.errors import ConfigError, ResNetJAXError
from resnetjax.presets import ARCHITECTURES

DEPTHS = (3, 4, 6, 3)
PRUNED = tuple(((4, 4, 16),) * depth for depth in DEPTHS)
NAN, INF = math.nan, math.inf

# For each field: values of a wrong type, then values out of range; and words of what is allowed.
REFUSED = {
    "block": (["wide", 1, None, ("basic",) * 3, ("basic", "wide", "basic", "basic")], "basic"),
    "depths": (
        [[3, 4, 6, 3], 4, "3463", (3, 4.0, 6, 3), (3, True, 6, 3), (3, 4, 0, 3), (1, 1, 1, 10**9)],
        "",
    ),
    "widths": ([None, (64, 128, 256), (64, 128, 256, 512, 512), (64, 128, -1, 512)], ""),
    "order": (["v2", True, None], "'post' or 'pre'"),
    "stride_on": (["3x3", 1], "'reduce', 'spatial' or 'last_spatial'"),
    "stride_block": (["middle", False], "'first' or 'last'"),
    "strides": ([(1, 2, 2), (1, 2, 2, 0), (1, 2, 2, 2.0), 2], ""),
    "dilations": ([(1, 1), (1, 1, 0, 2), (1, 1, 2, "4"), None], ""),
    "dilation_rule": (["first", None], "'previous', 'undilated' or 'uniform'"),
    "output_stride": ([4, 64, 8.0, "8", True], "8, 16 or 32"),
    "stem": (["conv9", None], "'conv7', 'deep', 'tiered' or 'conv3'"),
    "stem_width": ([0, -64, 64.0, True, "64"], ""),
    "stem_pool": ([True, "avg"], "'max', 'conv' or 'none'"),
    "stem_pool_padding": ([1, "valid"], "'torch' or 'same'"),
    "stem_pool_value": ([0, -INF, "0"], "'-inf' or 'zero'"),
    "shortcut": (["identity", None], "'conv', 'avg_conv' or 'pad'"),
    "shortcut_norm": ([1, 0, None, "yes"], "True or False"),
    "shortcut_kernel": ([2, True, 3.0], "1 or 3"),
    "projections": ([True, (True,) * 3, (1, 1, 1, 1), ()], ""),
    "antialias": ([None, "max"], "'none', 'blur' or 'average'"),
    "groups": ([0, 32.0, True], ""),
    "group_width": ([0, 4.5, None], ""),
    "reduce_first": ([0, False, 0.5], ""),
    "pruned_features": (
        [4, (4,), ((4, 4, 16),) * 4, (((4, 4, 16.0),) * 3,) * 4, (((4, 4, 16),) * 3,) * 4],
        "",
    ),
    "padding": ([3, "SAME"], "'torch', 'same' or 'same_blocks'"),
    "norm": (["layer", None], "'batch' or 'group'"),
    "norm_groups": ([0, None, 32.0], ""),
    "norm_eps": ([0, -1e-5, NAN, INF, True, "1e-5", None, 10**400], ""),
    "norm_decay": ([1, 1.1, -0.1, NAN, False], ""),
    "conv_bias": ([True, None, "some", ("conv4",), ("stem", 1)], "'none' or 'all'"),
    "weight_standardization_eps": ([0.0, -1e-8, NAN, True], "None"),
    "activation": (["selu", None, "RELU"], "'relu', 'gelu', 'gelu_tanh' or 'silu'"),
    "inner_activation": (["selu", 0], "'relu', 'gelu', 'gelu_tanh' or 'silu'"),
    "attention": ([None, "cbam"], "'none', 'se' or 'eca'"),
    "se_ratio": ([0, 1.5, -0.25, NAN, True], ""),
    "drop_path_rate": ([-0.1, 1, 1.0, NAN, None], ""),
    "block_dropout": ([-0.1, 1, NAN, "0.5"], ""),
    "head_pool": (["mean", None], "'average' or 'max'"),
    "head_widths": ([8, None, (8, 0), (8, 2.0), (True,)], ""),
    "dropout": ([-0.1, 1, NAN, True], ""),
    "zero_init_residual": ([0, 1, None], "True or False"),
    "in_channels": ([0, -3, 3.0, True], ""),
    "num_classes": ([-1, 10.0, None, True], ""),
}


def net(**fields) -> ResNetConfig:
    return ResNetConfig(**{"depths": DEPTHS, **fields})


def test_the_refusals_below_cover_every_field():
    assert list(REFUSED) == [field.name for field in dataclasses.fields(ResNetConfig)]


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, (values, _) in REFUSED.items() for value in values],
)
def test_a_wrong_value_is_refused_by_field_value_and_what_is_allowed(field, value):
    with pytest.raises(ConfigError) as caught:
        net(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field}={value!r} is not allowed: use ")
    assert REFUSED[field][1] in message
    assert len(message.partition(": use ")[2]) > 3


def test_a_config_error_is_a_value_error_and_one_of_ours():
    with pytest.raises(ValueError, match="depths") as caught:
        net(depths=())
    assert isinstance(caught.value, ResNetJAXError)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("groups", {"block": "basic", "groups": 32}),
        ("group_width", {"block": "basic", "group_width": 128}),
        ("groups", {"block": ("bottleneck", "bottleneck", "bottleneck", "basic"), "groups": 2}),
        ("stride_on", {"block": "basic", "stride_on": "reduce"}),
        ("stride_on", {"stride_on": "last_spatial"}),
        ("shortcut_norm", {"order": "pre"}),
        ("antialias", {"order": "pre", "shortcut_norm": False, "antialias": "blur"}),
        ("groups", {"groups": 32, "pruned_features": PRUNED}),
        ("reduce_first", {"reduce_first": 2, "pruned_features": PRUNED}),
        ("shortcut", {"shortcut": "pad", "pruned_features": PRUNED}),
        ("attention", {"attention": "se", "pruned_features": PRUNED}),
        ("stem_pool", {"antialias": "blur", "stem_pool": "conv"}),
        ("stem_width", {"stem": "tiered", "stem_width": 60}),
        ("stem_width", {"stem": "deep", "stem_width": 65}),
        ("norm_groups", {"norm": "group", "norm_groups": 48}),
        ("dilations", {"output_stride": 8, "dilations": (1, 1, 2, 4)}),
        ("output_stride", {"output_stride": 32, "strides": (1, 2, 2, 1)}),
        ("output_stride", {"output_stride": 32, "stem": "conv3", "stem_pool": "none"}),
        ("output_stride", {"output_stride": 8, "strides": (3, 3, 1, 1)}),
    ],
)
def test_a_combination_that_no_net_can_have_is_refused_by_the_field_to_change(field, fields):
    with pytest.raises(ConfigError, match=f"^{field}=.* is not allowed: use "):
        net(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"conv_bias": ()},
        {"conv_bias": ("conv3", "stem")},
        {"norm_eps": 1},
        {"norm_decay": 0},
        {"num_classes": 0},
        {"inner_activation": None},
        {"projections": (True, True, False, True), "widths": (64, 128, 128, 512)},
        {"block": ("basic", "bottleneck", "basic", "bottleneck")},
        {"output_stride": 32},
        {"se_ratio": 1},
        {"pruned_features": PRUNED},
    ],
)
def test_a_value_at_the_edge_of_what_is_allowed_is_taken_as_it_is(fields):
    config = net(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("blocks", "allowed"),
    [
        (((8, 8, 32),), r"one tuple a block, of depths=\(1, 2\)"),
        (((8, 8), (8, 8)), "3 values of 1 or more for each block of stage 2"),
        (((8, 8, 32), ()), "3 values of 1 or more for each block of stage 2"),
        (((8, 8, 32), (8, 0, 32)), "3 values of 1 or more for each block of stage 2"),
        (((8, 8, 32), (8, 8, 31)), "one last value in all blocks of stage 2, which are added up"),
    ],
)
def test_pruned_features_that_no_block_can_have_are_refused_by_their_stage(blocks, allowed):
    with pytest.raises(ConfigError, match=f"^pruned_features=.* use {allowed}$"):
        net(depths=(1, 2), widths=(8, 8), strides=(1, 2), dilations=(1, 1),
            pruned_features=(((4, 4, 16),), blocks))  # fmt: skip


def test_a_basic_block_is_pruned_in_two_convolutions():
    pruned = (((3, 5), (7, 5)),)
    sizes = {"depths": (2,), "widths": (8,), "strides": (1,), "dilations": (1,)}
    assert net(block="basic", **sizes, pruned_features=pruned).pruned_features == pruned
    with pytest.raises(ConfigError, match="2 values of 1 or more for each block of stage 1"):
        net(block="basic", **sizes, pruned_features=(((3, 5, 5), (7, 5, 5)),))


def test_a_long_value_is_cut_short_in_the_message():
    with pytest.raises(ConfigError) as caught:
        net(pruned_features=(((4, 4, 16),) * 100_000,))
    assert len(str(caught.value)) < 2500
    assert str(caught.value).endswith("use one tuple a block, of depths=(3, 4, 6, 3)")


def test_other_numbers_of_stages_than_four_are_allowed_where_all_lengths_agree():
    config = net(depths=(1, 2), widths=(8, 16), strides=(1, 2), dilations=(1, 1))
    assert config.blocks == ("bottleneck", "bottleneck")


def test_lengths_that_disagree_are_refused_with_the_length_that_fits():
    with pytest.raises(ConfigError, match=r"widths=.* use 3 values, one for each of depths"):
        net(depths=(1, 2, 3), strides=(1, 2, 2), dilations=(1, 1, 1))


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        net().depths = (1, 1, 1, 1)


def test_equal_configs_are_equal_keys_and_different_ones_are_not():
    assert {net(): 1}[net(widths=(64, 128, 256, 512))] == 1
    assert net() != net(norm_eps=1.001e-5)
    assert hash(net()) == hash(net(order="post"))


def test_arguments_are_by_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        ResNetConfig("bottleneck", DEPTHS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_preset_comes_back_from_json_text_equal_and_hashable(name):
    config = ARCHITECTURES[name]
    back = ResNetConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert back == config
    assert hash(back) == hash(config)


def test_json_has_every_field_so_that_a_new_default_does_not_change_an_old_net():
    assert set(net().to_json()) == set(REFUSED)


def test_an_unknown_field_is_named_beside_the_fields_that_there_are():
    with pytest.raises(
        ConfigError, match=r"ResNetConfig has no field depth, width: it has block, "
    ):
        ResNetConfig.from_json({"depths": [1, 1, 1, 1], "width": 64, "depth": 50})


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match="ResNetConfig needs depths"):
        ResNetConfig.from_json({"widths": [64, 128, 256, 512]})


def test_from_json_refuses_what_the_constructor_refuses():
    with pytest.raises(ConfigError, match=r"norm_eps=nan is not allowed"):
        ResNetConfig.from_json(json.loads('{"depths": [1, 1, 1, 1], "norm_eps": NaN}'))


def test_replace_changes_the_named_fields_only():
    changed = net().replace(num_classes=10, widths=[8, 16, 32, 64])
    assert changed == net(num_classes=10, widths=(8, 16, 32, 64))


@pytest.mark.parametrize("change", [{"stem": "conv9"}, {"order": "pre"}, {"depths": (1, 1)}])
def test_replace_validates_like_the_constructor(change):
    with pytest.raises(ConfigError, match="is not allowed"):
        net().replace(**change)


def test_replace_refuses_an_unknown_field_by_name():
    with pytest.raises(ConfigError, match="has no field classes"):
        net().replace(classes=10)


@pytest.mark.parametrize(
    ("conv_bias", "sites"),
    [
        ("none", ()),
        ("all", ("stem", "conv1", "conv2", "conv3", "shortcut")),
        (("shortcut", "conv3"), ("conv3", "shortcut")),
    ],
)
def test_bias_sites_spell_out_the_words_in_one_order(conv_bias, sites):
    assert net(conv_bias=conv_bias).bias_sites == sites


@pytest.mark.parametrize(
    ("stem", "pool", "stride"),
    [("conv7", "max", 4), ("deep", "conv", 4), ("tiered", "none", 2), ("conv3", "none", 1)],
)
def test_stem_stride_counts_the_pool(stem, pool, stride):
    assert net(stem=stem, stem_pool=pool).stem_stride == stride


def test_labels_need_an_id_for_each_name():
    with pytest.raises(ConfigError, match=r"ids=.* use 2 values, one for each of names"):
        Labels(names=("cat", "dog"), ids=("n1",))


@pytest.mark.parametrize(
    ("field", "value"),
    [("names", ()), ("names", ["cat"]), ("names", ("cat", 1)), ("activation", "tanh")],
)
def test_labels_refuse_what_names_no_output(field, value):
    with pytest.raises(ConfigError, match=f"^{field}=.* is not allowed: use "):
        Labels(**{"names": ("cat",), field: value})


@pytest.mark.parametrize(
    "value",
    [
        Labels(names=("crane", "crane"), ids=("n02012849", "n03126707"), activation="sigmoid"),
        Preprocess(resize_mode="squash", resize_px=(224, 200), mean=(0.1,), std=(0.2,)),
    ],
)
def test_labels_and_preprocessing_come_back_from_json_text(value):
    assert type(value).from_json(json.loads(json.dumps(value.to_json()))) == value
