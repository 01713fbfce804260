"""Arrays, counts, features and FLOPs, against published numbers and nets counted by hand."""

import pytest

from resnetjax.config import ResNetConfig
from resnetjax.measure import (
    FeatureInfo,
    Leaf,
    feature_info,
    flops,
    leaves,
    parameter_count,
    statistics_count,
)
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES


def one_block(**fields) -> ResNetConfig:
    """A basic block of 8 channels after a 3x3 stem, for images of one channel and 5 classes."""
    stem = {"stem": "conv3", "stem_width": 8, "stem_pool": "none", "in_channels": 1}
    sizes = {"depths": (1,), "widths": (8,), "strides": (1,), "dilations": (1,)}
    return ResNetConfig(**{"block": "basic", **sizes, **stem, "num_classes": 5, **fields})


def test_leaves_of_a_v1_net_follow_the_order_of_computation():
    assert list(leaves(plan(one_block(projections=(True,), conv_bias=("shortcut",))))) == [
        "stem/conv1/kernel",
        "stem/norm1/scale",
        "stem/norm1/bias",
        "stem/norm1/mean",
        "stem/norm1/var",
        "stage1_block1/conv1/kernel",
        "stage1_block1/norm1/scale",
        "stage1_block1/norm1/bias",
        "stage1_block1/norm1/mean",
        "stage1_block1/norm1/var",
        "stage1_block1/conv2/kernel",
        "stage1_block1/norm2/scale",
        "stage1_block1/norm2/bias",
        "stage1_block1/norm2/mean",
        "stage1_block1/norm2/var",
        "stage1_block1/shortcut/conv/kernel",
        "stage1_block1/shortcut/conv/bias",
        "stage1_block1/shortcut/norm/scale",
        "stage1_block1/shortcut/norm/bias",
        "stage1_block1/shortcut/norm/mean",
        "stage1_block1/shortcut/norm/var",
        "head/kernel",
        "head/bias",
    ]


def test_leaves_of_a_v2_net_have_each_norm_before_its_convolution_and_one_at_the_end():
    fields = {"order": "pre", "shortcut_norm": False, "norm": "group", "norm_groups": 4}
    assert list(leaves(plan(one_block(**fields)))) == [
        "stem/conv1/kernel",
        "stage1_block1/norm1/scale",
        "stage1_block1/norm1/bias",
        "stage1_block1/conv1/kernel",
        "stage1_block1/norm2/scale",
        "stage1_block1/norm2/bias",
        "stage1_block1/conv2/kernel",
        "norm/scale",
        "norm/bias",
        "head/kernel",
        "head/bias",
    ]


def test_a_leaf_knows_its_collection_shape_and_kind():
    found = leaves(plan(one_block(attention="se", zero_init_residual=True)))
    assert found["stem/conv1/kernel"] == Leaf("params", (3, 3, 1, 8), "conv")
    assert found["stage1_block1/norm2/scale"] == Leaf("params", (8,), "scale", True)
    assert found["stage1_block1/norm2/var"] == Leaf("batch_stats", (8,), "var")
    assert found["stage1_block1/attention/reduce/kernel"] == Leaf("params", (8, 8), "dense")
    assert found["head/kernel"] == Leaf("params", (8, 5), "dense")
    eca = leaves(plan(one_block(attention="eca")))
    assert eca["stage1_block1/attention/conv/kernel"] == Leaf("params", (3,), "channel_conv")


def test_a_grouped_kernel_has_a_groups_share_of_the_inputs():
    found = leaves(plan(ARCHITECTURES["resnext50_32x4d"]))
    assert found["stage1_block1/conv2/kernel"].shape == (3, 3, 4, 128)


def test_without_classes_there_is_no_head():
    assert not any(path.startswith("head") for path in leaves(plan(one_block(num_classes=0))))


def test_parameters_and_statistics_of_a_small_net_are_counted_apart():
    # Stem 72 + 16, two convolutions of 576 and their norms of 16, head 40 + 5; statistics of
    # three norms.
    assert parameter_count(plan(one_block())) == 72 + 16 + 2 * (576 + 16) + 45
    assert statistics_count(plan(one_block())) == 3 * 16


def test_a_group_norm_has_no_statistics():
    assert statistics_count(plan(ARCHITECTURES["resnetv2_50x1_bit"])) == 0


# Feature maps.


def as_tuples(config: ResNetConfig) -> list[tuple[str, int, int]]:
    return [(info.name, info.channels, info.stride) for info in feature_info(plan(config))]


def test_features_of_an_imagenet_net_begin_before_and_after_the_pool():
    assert as_tuples(ARCHITECTURES["resnet50"]) == [
        ("stem_conv", 64, 2),
        ("stem", 64, 4),
        ("stage1", 256, 4),
        ("stage2", 512, 8),
        ("stage3", 1024, 16),
        ("stage4", 2048, 32),
    ]


def test_features_of_a_v2_net_end_with_its_last_norm():
    assert as_tuples(ARCHITECTURES["resnetv2_18"])[-2:] == [("stage4", 512, 32), ("norm", 512, 32)]


def test_features_of_a_cifar_net_start_at_stride_one():
    assert as_tuples(ARCHITECTURES["cifar_resnet20"]) == [
        ("stem_conv", 16, 1),
        ("stem", 16, 1),
        ("stage1", 16, 1),
        ("stage2", 32, 2),
        ("stage3", 64, 4),
    ]


@pytest.mark.parametrize(
    ("fields", "strides"),
    [
        ({}, (2, 4)),
        ({"stem": "deep"}, (2, 4)),
        ({"stem_pool": "conv"}, (2, 4)),
        ({"stem_pool": "none"}, (2, 2)),
        ({"antialias": "blur"}, (2, 4)),
        ({"antialias": "average"}, (2, 4)),
        ({"stem": "conv3"}, (1, 2)),
    ],
)
def test_the_stems_strides_count_whatever_pools(fields, strides):
    found = feature_info(plan(ResNetConfig(depths=(1, 1, 1, 1), **fields)))
    assert (found[0].stride, found[1].stride) == strides
    assert found[-1].stride == strides[1] * 8


def test_strides_in_the_last_block_count_in_the_stage_that_they_end():
    slim = [(name, stride) for name, _, stride in as_tuples(ARCHITECTURES["slim_resnet_v2_50"])]
    assert slim[2:6] == [("stage1", 8), ("stage2", 16), ("stage3", 32), ("stage4", 32)]


def test_output_stride_shows_in_the_features():
    found = feature_info(plan(ARCHITECTURES["resnet50"].replace(output_stride=8)))
    assert found[-1] == FeatureInfo("stage4", 2048, 8)


# FLOPs: torchvision's `_ops` (GFLOPs, multiply-adds), in the metadata of its weights.


@pytest.mark.parametrize(
    ("name", "giga_multiply_adds"),
    [
        ("resnet18", 1.814),
        ("resnet34", 3.664),
        ("resnet50", 4.089),
        ("resnet101", 7.801),
        ("resnet152", 11.514),
        ("resnext50_32x4d", 4.230),
        ("resnext101_32x8d", 16.414),
        ("resnext101_64x4d", 15.460),
        ("wide_resnet50_2", 11.398),
        ("wide_resnet101_2", 22.753),
    ],
)
def test_flops_are_twice_the_multiply_adds_that_torchvision_publishes(name, giga_multiply_adds):
    found = flops(plan(ARCHITECTURES[name])) / 2e9
    assert found == pytest.approx(giga_multiply_adds, abs=0.0006)  # published to three decimals


def test_striding_on_the_reduce_convolution_costs_less():
    # 3.8 GFLOPs in He 2015, table 1.
    assert flops(plan(ARCHITECTURES["resnet50_v1"])) / 2e9 == pytest.approx(3.86, abs=0.01)


def test_flops_of_a_small_net_are_those_counted_by_hand():
    # 6x4 pixels: stem 9 * 8, two 3x3 convolutions of 8 to 8; then the head.
    by_hand = 2 * (24 * (72 + 576 + 576) + 8 * 5)
    assert flops(plan(one_block()), height=6, width=4) == by_hand


def test_flops_of_odd_images_follow_the_rounding_of_the_padding():
    # 7x7 pixels at stride 2: 4x4 out, with either padding; 6x6: 3x3. A 7x7 stem of 1 to 8 channels.
    fields = {"stem": "conv7", "num_classes": 0}
    for padding in ("torch", "same"):
        config = one_block(**fields, padding=padding)
        for side, pixels in ((7, 16), (6, 9)):
            expected = 2 * pixels * (49 * 8 + 2 * 576)
            assert flops(plan(config), height=side, width=side) == expected, (padding, side)


def test_flops_count_a_projection_at_its_own_resolution():
    fields = {"strides": (2,), "num_classes": 0, "projections": (True,)}
    for shortcut in ("conv", "avg_conv"):
        config = one_block(**fields, shortcut=shortcut)
        expected = 2 * (64 * 72 + 16 * (576 + 576 + 64))
        assert flops(plan(config), height=8, width=8) == expected, shortcut


def test_a_blurred_convolution_runs_before_its_pool_at_full_resolution():
    plain, blurred = (one_block(strides=(2,), antialias=kind) for kind in ("none", "blur"))
    dense_conv1 = 2 * (64 - 16) * 576
    counted = [flops(plan(config), height=8, width=8) for config in (plain, blurred)]
    assert counted[1] - counted[0] == dense_conv1


def test_flops_of_eca_and_squeeze_excite_are_those_of_their_layers():
    base = flops(plan(one_block()), height=4, width=4)
    eca = flops(plan(one_block(attention="eca")), height=4, width=4)
    assert eca - base == 2 * 8 * 3  # eight channels, a kernel of three
    squeeze = flops(plan(one_block(attention="se")), height=4, width=4)
    assert squeeze - base == 2 * (8 * 8 + 8 * 8)
