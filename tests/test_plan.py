"""What a config amounts to, against numbers worked out by hand from the frameworks' own rules."""

import dataclasses

import pytest

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.plan import Conv, Plan, Pool, plan
from resnetjax.presets import ARCHITECTURES


def net(**fields) -> ResNetConfig:
    return ResNetConfig(**{"depths": (2, 2, 2, 2), **fields})


def small(**fields) -> ResNetConfig:
    """Three stages of two basic blocks, as in the CIFAR nets."""
    sizes = {"depths": (2, 2, 2), "widths": (16, 32, 64), "strides": (1, 2, 2)}
    stem = {"stem": "conv3", "stem_width": 16, "stem_pool": "none"}
    return ResNetConfig(block="basic", dilations=(1, 1, 1), **{**sizes, **stem, **fields})


def per_block(planned: Plan, conv: int, field: str) -> list[list]:
    """One list for each stage, of one convolution's field in each block."""
    return [[getattr(b.convs[conv], field) for b in stage.blocks] for stage in planned.stages]


def shortcut_strides(planned: Plan) -> list[list[int]]:
    """What each block's shortcut subsamples by, however it does."""
    found = []
    for stage in planned.stages:
        shortcuts = [block.shortcut for block in stage.blocks]
        found.append(
            [(s.pool.stride if s.pool else 1) * (s.conv.stride if s.conv else 1) for s in shortcuts]
        )
    return found


def all_convs(planned: Plan) -> dict[str, Conv]:
    """Every convolution by its path."""
    found = {f"stem/{conv.name}": conv for conv in planned.stem.convs}
    if planned.stem.pool_conv:
        found["stem/pool/conv"] = planned.stem.pool_conv
    for stage in planned.stages:
        for block in stage.blocks:
            found |= {f"{block.name}/{conv.name}": conv for conv in block.convs}
            if block.shortcut.conv:
                found[f"{block.name}/shortcut/conv"] = block.shortcut.conv
    return found


# F5: where the stride is.


def test_f05_v1_5_strides_on_the_3x3_of_a_stages_first_block():
    planned = plan(net())
    assert per_block(planned, 1, "stride") == [[1, 1], [2, 1], [2, 1], [2, 1]]
    assert per_block(planned, 0, "stride") == per_block(planned, 2, "stride") == [[1, 1]] * 4


def test_f05_v1_strides_on_the_reduce_convolution():
    planned = plan(net(stride_on="reduce"))
    assert per_block(planned, 0, "stride") == [[1, 1], [2, 1], [2, 1], [2, 1]]
    assert per_block(planned, 1, "stride") == [[1, 1]] * 4


def test_basic_blocks_stride_on_their_first_convolution():
    planned = plan(net(block="basic"))
    assert per_block(planned, 0, "stride") == [[1, 1], [2, 1], [2, 1], [2, 1]]
    assert per_block(planned, 1, "stride") == [[1, 1]] * 4


def test_f05_kerascv_v2_basic_blocks_stride_in_the_last_blocks_second_convolution():
    planned = plan(ARCHITECTURES["kerascv_resnet18v2"])
    assert per_block(planned, 0, "stride") == [[1, 1]] * 4
    assert per_block(planned, 1, "stride") == [[1, 1], [1, 2], [1, 2], [1, 2]]


def test_f05_slim_and_keras_v2_stride_in_the_last_block_of_stages_one_to_three():
    for name in ("keras_resnet50v2", "slim_resnet_v1_50", "slim_resnet_v2_50"):
        planned = plan(ARCHITECTURES[name])
        strides = per_block(planned, 1, "stride")
        assert strides == [[1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 1, 1, 2], [1, 1, 1]], name


def test_f05_kerascv_v2_strides_in_the_last_block_of_other_stages_than_keras():
    strides = per_block(plan(ARCHITECTURES["kerascv_resnet50v2"]), 1, "stride")
    assert strides == [[1, 1, 1], [1, 1, 1, 2], [1, 1, 1, 1, 1, 2], [1, 1, 2]]


def test_f05_a_stride_in_the_last_block_subsamples_an_unprojected_shortcut():
    stage = plan(ARCHITECTURES["slim_resnet_v1_50"]).stages[0]
    first, *_, last = (block.shortcut for block in stage.blocks)
    assert first.pool is None
    assert first.conv is not None
    assert last.conv is None
    assert last.pool == Pool("max", 1, 2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_branches_of_every_block_shrink_alike(name):
    planned = plan(ARCHITECTURES[name])
    for stage, subsampled in zip(planned.stages, shortcut_strides(planned), strict=True):
        for block, shortcut in zip(stage.blocks, subsampled, strict=True):
            branch = 1
            for conv in block.convs:
                branch *= conv.stride * (conv.pool.stride if conv.pool else 1)
            assert branch == shortcut, block.name


# F13: dilation. By timm's make_blocks a stage at or beyond output_stride multiplies the rate by
# its stride; by slim's stack_blocks_dense a stride in the last unit becomes the rate of the units
# after it.


@pytest.mark.parametrize(
    ("output_stride", "strides", "first", "second"),
    [
        (32, [[1, 1], [2, 1], [2, 1], [2, 1]], [[1, 1]] * 4, [[1, 1]] * 4),
        (16, [[1, 1], [2, 1], [2, 1], [1, 1]], [[1, 1]] * 3 + [[1, 2]], [[1, 1]] * 3 + [[2, 2]]),
        (
            8,
            [[1, 1], [2, 1], [1, 1], [1, 1]],
            [[1, 1], [1, 1], [1, 2], [2, 4]],
            [[1, 1], [1, 1], [2, 2], [4, 4]],
        ),
    ],
)
def test_f13_timm_dilates_a_stages_first_convolution_by_the_previous_rate(
    output_stride, strides, first, second
):
    planned = plan(net(block="basic", output_stride=output_stride))
    assert per_block(planned, 0, "stride") == strides
    assert per_block(planned, 0, "dilation") == first
    assert per_block(planned, 1, "dilation") == second


def test_a_dilated_bottleneck_dilates_its_3x3_only():
    planned = plan(net(output_stride=8))
    assert per_block(planned, 1, "dilation") == [[1, 1], [1, 1], [1, 2], [2, 4]]
    for conv in (0, 2):
        assert per_block(planned, conv, "dilation") == [[1, 1]] * 4


def test_f13_replace_stride_with_dilation_is_the_same_as_output_stride():
    given = plan(net(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)))
    assert given == plan(net(output_stride=8))


def test_f13_kerascv_leaves_a_dilated_stages_first_block_undilated():
    fields = {"order": "pre", "shortcut_norm": False, "stride_block": "last"}
    fields |= {"dilation_rule": "undilated", "strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}
    assert per_block(plan(net(**fields)), 1, "dilation") == [[1, 1], [1, 1], [1, 2], [1, 4]]


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [
        (32, [[1, 2], [1, 2], [1, 2], [1, 1]], [[1, 1], [1, 1], [1, 1], [1, 1]]),
        (16, [[1, 2], [1, 2], [1, 1], [1, 1]], [[1, 1], [1, 1], [1, 1], [2, 2]]),
        (8, [[1, 2], [1, 1], [1, 1], [1, 1]], [[1, 1], [1, 1], [2, 2], [4, 4]]),
    ],
)
def test_f13_slims_last_unit_strides_before_the_rate_grows(output_stride, strides, dilations):
    config = ARCHITECTURES["slim_resnet_v1_50"].replace(
        depths=(2, 2, 2, 2), output_stride=output_stride
    )
    planned = plan(config)
    assert per_block(planned, 1, "stride") == strides
    assert per_block(planned, 1, "dilation") == dilations


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet50", "resnet18d", "slim_resnet_v2_50", "senet154"])
def test_the_last_stage_has_the_output_stride_asked_for(name, output_stride):
    planned = plan(ARCHITECTURES[name].replace(output_stride=output_stride))
    assert planned.stages[-1].stride == output_stride


def test_output_stride_leaves_the_arrays_alone():
    def shapes(planned: Plan) -> dict[str, tuple]:
        convs = all_convs(planned).items()
        return {path: (c.kernel, c.in_features, c.features, c.groups, c.bias) for path, c in convs}

    for name in ("resnet50", "resnet50d", "senet154", "slim_resnet_v2_50"):
        config = ARCHITECTURES[name]
        assert shapes(plan(config.replace(output_stride=8))) == shapes(plan(config)), name


# F1, F2: padding.


def test_f01_torch_padding_is_half_the_dilated_kernel():
    assert plan(net()).stem.convs[0].padding == 3
    dilated = plan(net(output_stride=8)).stages[3].blocks[1]
    assert [conv.padding for conv in dilated.convs] == [0, 4, 0]


def test_f01_same_padding_reaches_every_convolution_but_not_the_pool():
    planned = plan(net(padding="same", stem="deep"))
    assert {conv.padding for conv in all_convs(planned).values()} == {"same"}
    assert planned.stem.pools == (Pool("max", 3, 2, 1),)


@pytest.mark.parametrize(
    ("name", "padding", "value"),
    [
        ("resnet50", 1, "-inf"),
        ("resnetv2_50", 1, "-inf"),
        ("resnetv2_50x1_bit", 1, "zero"),
        ("keras_resnet50", 1, "zero"),
        ("keras_resnet50v2", 1, "zero"),
        ("kerascv_resnet50v2", "same", "-inf"),
        ("slim_resnet_v2_50", "same", "-inf"),
    ],
)
def test_f02_the_stems_pool_pads_as_its_framework_does(name, padding, value):
    assert plan(ARCHITECTURES[name]).stem.pools == (Pool("max", 3, 2, padding, value),)


# F3: norm epsilon and decay.


@pytest.mark.parametrize(
    ("name", "eps", "decay"),
    [
        ("resnet50", 1e-5, 0.9),
        ("resnetv2_50x1_bit", 1e-5, 0.9),
        ("keras_resnet50", 1.001e-5, 0.99),
        ("kerascv_resnet18v2", 1.001e-5, 0.99),
        ("slim_resnet_v2_50", 1e-5, 0.997),
        ("cifar_resnet20", 1e-5, 0.9),
        ("mlperf_tiny_resnet8", 1e-3, 0.99),
    ],
)
def test_f03_every_norm_has_the_epsilon_and_decay_of_its_framework(name, eps, decay):
    planned = plan(ARCHITECTURES[name])
    norms = [conv.norm for conv in all_convs(planned).values() if conv.norm]
    norms += [planned.norm] if planned.norm else []
    assert {(norm.eps, norm.decay) for norm in norms} == {(eps, decay)}


# F4: convolution biases.


@pytest.mark.parametrize(
    ("name", "biased"),
    [
        ("resnet50", set()),
        ("slim_resnet_v1_50", set()),
        ("keras_resnet50", {"stem", "conv1", "conv2", "conv3", "shortcut"}),
        ("keras_resnet50v2", {"stem", "conv3", "shortcut"}),
        ("kerascv_resnet50v2", {"stem", "conv3", "shortcut"}),
        ("slim_resnet_v2_50", {"stem", "conv3", "shortcut"}),
        ("kerascv_resnet18v2", {"stem", "shortcut"}),
        ("mlperf_tiny_resnet8", {"stem", "conv1", "conv2", "shortcut"}),
    ],
)
def test_f04_biases_are_at_the_sites_of_the_framework(name, biased):
    sites = {}
    for path, conv in all_convs(plan(ARCHITECTURES[name])).items():
        site = next((site for site in ("stem", "shortcut") if site in path), conv.name)
        sites.setdefault(site, set()).add(conv.bias)
    assert {site for site, found in sites.items() if found == {True}} == biased
    assert {site for site, found in sites.items() if found == {False}} == set(sites) - biased


# Names, norms and activations.


def test_names_count_from_one():
    planned = plan(net(depths=(1, 2, 1, 1), stem="deep"))
    assert [conv.name for conv in planned.stem.convs] == ["conv1", "conv2", "conv3"]
    assert [stage.name for stage in planned.stages] == ["stage1", "stage2", "stage3", "stage4"]
    assert [block.name for block in planned.stages[1].blocks] == ["stage2_block1", "stage2_block2"]
    block = planned.stages[0].blocks[0]
    assert [(conv.name, conv.norm.name) for conv in block.convs] == [
        ("conv1", "norm1"),
        ("conv2", "norm2"),
        ("conv3", "norm3"),
    ]
    assert (block.shortcut.conv.name, block.shortcut.conv.norm.name) == ("conv", "norm")


def test_a_v1_norm_counts_its_convolutions_outputs_and_a_v2_norm_its_inputs():
    post = plan(net()).stages[1].blocks[0]
    assert [conv.norm.features for conv in post.convs] == [128, 128, 512]
    pre = plan(net(order="pre", shortcut_norm=False)).stages[1].blocks[0]
    assert [conv.norm.features for conv in pre.convs] == [256, 128, 128]


def test_the_last_stem_convolution_of_v2_is_bare_and_a_last_norm_follows_the_stages():
    planned = plan(net(order="pre", shortcut_norm=False, stem="deep", activation="silu"))
    bare = [(conv.norm is None, conv.activation) for conv in planned.stem.convs]
    assert bare == [(False, "silu"), (False, "silu"), (True, None)]
    assert (planned.norm.name, planned.norm.features) == ("norm", 2048)
    assert planned.norm_activation == "silu"


def test_v1_has_no_last_norm():
    assert plan(net()).norm is None


def test_the_inner_activation_is_between_a_v1_blocks_convolutions_only():
    planned = plan(net(activation="gelu", inner_activation="relu"))
    block = planned.stages[0].blocks[1]
    assert planned.stem.convs[0].activation == "gelu"
    assert [conv.activation for conv in block.convs] == ["relu", "relu", None]
    assert block.activation == "gelu"


def test_in_v2_the_inner_activation_leaves_each_blocks_first_and_the_last_norm_alone():
    fields = {"order": "pre", "shortcut_norm": False, "activation": "gelu"}
    planned = plan(net(**fields, inner_activation="relu"))
    block = planned.stages[0].blocks[1]
    assert [conv.activation for conv in block.convs] == ["gelu", "relu", "relu"]
    assert block.activation is None
    assert planned.norm_activation == "gelu"


def test_a_projection_is_never_activated():
    for name in ("resnet50", "resnetv2_50", "resnet50d", "cifar_resnet20b"):
        convs = all_convs(plan(ARCHITECTURES[name]))
        assert {c.activation for path, c in convs.items() if "shortcut" in path} == {None}, name


def test_zero_init_is_of_the_last_norm_in_v1_and_of_the_last_kernel_in_v2():
    def zeros(config: ResNetConfig) -> list[tuple[str, bool]]:
        block = plan(config).stages[0].blocks[0]
        shortcut = block.shortcut.conv
        convs = [*block.convs, *([shortcut] if shortcut else [])]
        found = [(conv.name, conv.zero_init) for conv in convs if conv.zero_init]
        return found + [(c.norm.name, True) for c in convs if c.norm and c.norm.zero_init]

    assert zeros(net(zero_init_residual=True)) == [("norm3", True)]
    assert zeros(net(zero_init_residual=True, block="basic")) == [("norm2", True)]
    pre = net(zero_init_residual=True, order="pre", shortcut_norm=False)
    assert zeros(pre) == [("conv3", True)]
    assert zeros(net()) == []


# Stems.


def test_a_deep_stem_strides_once_and_has_half_half_and_full_width():
    convs = plan(net(stem="deep", stem_width=128)).stem.convs
    assert [(c.kernel, c.stride, c.features) for c in convs] == [
        (3, 2, 64),
        (3, 1, 64),
        (3, 1, 128),
    ]


def test_a_tiered_stem_has_three_eighths_half_and_full_width():
    assert [conv.features for conv in plan(net(stem="tiered")).stem.convs] == [24, 32, 64]


def test_resnet_rs_pools_its_stem_with_a_normed_and_activated_convolution():
    stem = plan(ARCHITECTURES["resnetrs50"]).stem
    assert stem.pools == ()
    conv = stem.pool_conv
    assert (conv.kernel, conv.stride, conv.features, conv.activation) == (3, 2, 64, "relu")
    assert conv.norm.features == 64


# Shortcuts.


def test_the_first_stage_of_basic_blocks_needs_no_projection():
    stages = plan(net(block="basic")).stages
    assert [stage.blocks[0].shortcut.conv is not None for stage in stages] == [
        False,
        True,
        True,
        True,
    ]


def test_a_projection_that_no_change_of_shape_asks_for_can_be_had():
    planned = plan(net(block="basic", projections=(True, True, True, True)))
    assert planned.stages[0].blocks[0].shortcut.conv.kernel == 1


def test_leaving_out_a_projection_that_a_change_of_channels_needs_is_refused_by_its_stage():
    config = net(projections=(True, False, True, True))
    with pytest.raises(
        ConfigError, match=r"^projections=.*stage 2 starts with 256.* ends with 512"
    ):
        plan(config)


def test_an_unprojected_stage_that_strides_subsamples():
    config = small(widths=(16, 16, 16), projections=(False, False, False))
    assert plan(config).stages[1].blocks[0].shortcut.pool == Pool("max", 1, 2)


def test_option_a_subsamples_and_pads_channels_in_place_of_a_projection():
    blocks = [stage.blocks for stage in plan(small(shortcut="pad")).stages]
    shortcuts = [[(b.shortcut.pool, b.shortcut.pad_features) for b in stage] for stage in blocks]
    half = Pool("max", 1, 2)
    assert shortcuts == [[(None, 0)] * 2, [(half, 16), (None, 0)], [(half, 32), (None, 0)]]
    assert all(block.shortcut.conv is None for stage in blocks for block in stage)


def test_option_a_is_refused_where_channels_become_fewer():
    with pytest.raises(
        ConfigError, match=r"^shortcut='pad' is not allowed.*stage 3, from 32 to 16"
    ):
        plan(small(shortcut="pad", widths=(16, 32, 16)))


def test_d_shortcuts_average_over_ceiled_windows_that_do_not_count_padding():
    shortcut = plan(net(shortcut="avg_conv")).stages[1].blocks[0].shortcut
    assert shortcut.pool == Pool("average", 2, 2, "same")
    assert (shortcut.conv.kernel, shortcut.conv.stride) == (1, 1)


def test_d_shortcuts_of_the_first_stage_average_nothing():
    shortcut = plan(net(shortcut="avg_conv")).stages[0].blocks[0].shortcut
    assert shortcut.pool is None
    assert shortcut.conv is not None


def test_d_shortcuts_of_a_dilated_stage_average_densely_and_count_the_padding():
    shortcut = plan(net(shortcut="avg_conv", output_stride=16)).stages[3].blocks[0].shortcut
    assert shortcut.pool == Pool("average", 2, 1, "same", count_padding=True)


def test_senet_projects_by_3x3_where_it_strides_and_by_1x1_where_not():
    stages = plan(ARCHITECTURES["senet154"]).stages
    kernels = [stage.blocks[0].shortcut.conv.kernel for stage in stages]
    assert kernels == [1, 3, 3, 3]
    assert stages[1].blocks[0].shortcut.conv.padding == 1


def test_a_dilated_3x3_projection_takes_the_first_rate():
    stages = plan(ARCHITECTURES["senet154"].replace(output_stride=8)).stages
    convs = [stage.blocks[0].shortcut.conv for stage in stages]
    assert [(c.kernel, c.stride, c.dilation) for c in convs] == [
        (1, 1, 1),
        (3, 2, 1),
        (3, 1, 1),
        (3, 1, 2),
    ]


# Groups and widths.


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("resnext50_32x4d", (128, 128, 256)),
        ("resnext101_32x8d", (256, 256, 256)),
        ("resnext101_64x4d", (256, 256, 256)),
        ("wide_resnet50_2", (128, 128, 256)),
        ("senet154", (128, 256, 256)),
    ],
)
def test_groups_and_their_width_set_the_inner_channels_of_a_first_stage_block(name, features):
    block = plan(ARCHITECTURES[name]).stages[0].blocks[0]
    assert tuple(conv.features for conv in block.convs) == features


def test_pruning_leaves_each_convolution_its_own_channels_and_the_next_reads_those():
    pruned = (((3, 5, 30), (16, 2, 30)), ((7, 9, 11),))
    planned = plan(ResNetConfig(
        depths=(2, 1), widths=(16, 24), strides=(1, 2), dilations=(1, 1), pruned_features=pruned
    ))  # fmt: skip
    blocks = [block for stage in planned.stages for block in stage.blocks]
    found = [[(conv.in_features, conv.features) for conv in block.convs] for block in blocks]
    assert found == [
        [(64, 3), (3, 5), (5, 30)],
        [(30, 16), (16, 2), (2, 30)],
        [(30, 7), (7, 9), (9, 11)],
    ]
    assert [[conv.norm.features for conv in b.convs] for b in blocks] == [
        list(features) for stage in pruned for features in stage
    ]
    projections = [block.shortcut.conv for block in blocks]
    assert projections[1] is None
    assert [(c.in_features, c.features) for c in projections if c] == [(64, 30), (30, 11)]
    assert planned.features == 11


def test_a_pruned_stage_that_need_not_project_does_so_where_projections_say():
    pruned = (((3, 5, 64),), ((7, 9, 11),))
    fields = {"depths": (1, 1), "widths": (16, 24), "strides": (1, 2), "dilations": (1, 1)}
    first = plan(ResNetConfig(**fields, pruned_features=pruned)).stages[0].blocks[0]
    assert first.shortcut.conv is None
    told = ResNetConfig(**fields, pruned_features=pruned, projections=(True, True))
    assert plan(told).stages[0].blocks[0].shortcut.conv is not None
    with pytest.raises(ConfigError, match=r"projections=.* stage 2 starts with 64 .* must project"):
        plan(told.replace(projections=(True, False)))


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"pruned_features": (((4, 9, 32),),)}, (8, 8, 32)),
        ({"pruned_features": (((4, 8, 33),),)}, (8, 8, 32)),
        ({"pruned_features": (((17, 16, 32),),), "group_width": 128}, (16, 16, 32)),
        ({"pruned_features": (((8, 9),),), "block": "basic"}, (8, 8)),
    ],
)
def test_pruning_leaves_no_more_than_there_was(fields, most):
    config = ResNetConfig(depths=(1,), widths=(8,), strides=(1,), dilations=(1,), **fields)
    with pytest.raises(ConfigError) as caught:
        plan(config)
    said = f"use no more for a block of stage 1 than the {most} that it has by widths=(8,)"
    assert (
        str(caught.value) == f"pruned_features={fields['pruned_features']} is not allowed: {said}"
    )


def test_only_the_3x3_is_grouped():
    block = plan(ARCHITECTURES["resnext50_32x4d"]).stages[2].blocks[0]
    assert [conv.groups for conv in block.convs] == [1, 32, 1]
    assert block.shortcut.conv.groups == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"group_width": 1, "widths": (8, 8, 8, 8)}, "group_width"),
        ({"groups": 32, "group_width": 4, "reduce_first": 3}, "group_width"),
        ({"reduce_first": 128}, "reduce_first"),
        ({"norm": "group", "stem": "tiered"}, "norm_groups"),
        ({"norm": "group", "group_width": 16}, "norm_groups"),
    ],
)
def test_channels_that_do_not_divide_are_refused_before_anything_is_built(fields, field):
    with pytest.raises(ConfigError, match=f"^{field}=.* is not allowed: use "):
        plan(net(**fields))


# Attention. Squeeze-excite: make_divisible(channels / 16, 8), so 4 * 64 / 16 = 16; never below 8.


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("seresnet50", [16, 32, 64, 128]),
        ("seresnet18", [8, 8, 16, 32]),
        ("resnetrs50", [64, 128, 256, 512]),
    ],
)
def test_squeeze_excite_has_a_sixteenth_or_a_quarter_of_the_channels_in_eights(name, hidden):
    stages = plan(ARCHITECTURES[name]).stages
    assert [stage.blocks[0].attention.hidden for stage in stages] == hidden


def test_squeeze_excite_rounds_to_the_nearest_eight_half_up():
    stages = plan(net(block="basic", attention="se", widths=(64, 192, 320, 448))).stages
    assert [stage.blocks[0].attention.hidden for stage in stages] == [8, 16, 24, 32]


def test_the_eca_kernel_is_the_odd_number_nearest_above_half_the_logarithm():
    # (log2(c) + 1) / 2 is 4.5, 5, 5.5, 6 for 256 to 2048 channels; 2.5 and 2 for 16 and 8.
    stages = plan(ARCHITECTURES["ecaresnet50t"]).stages
    assert [stage.blocks[0].attention.kernel for stage in stages] == [5, 5, 5, 7]
    tiny = plan(small(attention="eca", widths=(8, 16, 64))).stages
    assert [stage.blocks[0].attention.kernel for stage in tiny] == [3, 3, 3]


@pytest.mark.parametrize("arch", ["ecaresnet50d_pruned", "ecaresnet101d_pruned"])
def test_the_eca_kernel_of_a_pruned_net_is_that_of_before(arch):
    # timm's _pruned/*.txt, se.conv.weight; by what is left stages 1 and 4 would have 3 and 5
    for stage, kernel in zip(plan(ARCHITECTURES[arch]).stages, (5, 5, 5, 7), strict=True):
        assert {block.attention.kernel for block in stage.blocks} == {kernel}


# Anti-aliasing.


def test_antialiasing_takes_the_strides_out_of_the_convolutions():
    for kind in ("blur", "average"):
        planned = plan(net(antialias=kind, shortcut="avg_conv"))
        assert per_block(planned, 1, "stride") == [[1, 1]] * 4


def test_blur_follows_each_strided_3x3_and_the_stems_dense_max_pool():
    planned = plan(net(antialias="blur"))
    blur = Pool("blur", 3, 2, 1)
    assert planned.stem.pools == (Pool("max", 3, 1, 1), blur)
    assert per_block(planned, 1, "pool") == [[None, None], [blur, None], [blur, None], [blur, None]]


def test_average_antialiasing_replaces_the_stems_max_pool_altogether():
    planned = plan(net(antialias="average"))
    assert planned.stem.pools == (Pool("average", 2, 2),)
    assert planned.stages[1].blocks[0].convs[1].pool == Pool("average", 2, 2, "same")


def test_a_stage_that_dilates_in_place_of_striding_is_blurred_densely():
    planned = plan(net(antialias="blur", output_stride=16))
    pools = [block.convs[1].pool for block in planned.stages[3].blocks]
    assert pools == [Pool("blur", 3, 1, 1), None]


# Drop rates.


def test_drop_path_rises_linearly_from_zero_to_its_rate():
    stages = plan(small(drop_path_rate=0.25)).stages
    rates = [block.drop_path_rate for stage in stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25])


def test_a_single_block_is_never_dropped():
    one = {"depths": (1,), "widths": (8,), "strides": (1,)}
    planned = plan(ResNetConfig(**one, dilations=(1,), drop_path_rate=0.5))
    assert planned.stages[0].blocks[0].drop_path_rate == 0


def test_dropout_rates_reach_blocks_and_head_apart():
    planned = plan(small(block_dropout=0.3, dropout=0.2))
    assert {block.dropout_rate for stage in planned.stages for block in stage.blocks} == {0.3}
    assert planned.dropout_rate == 0.2


def test_equal_configs_share_one_plan_and_a_plan_is_frozen():
    assert plan(net()) is plan(net())
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan(net()).features = 1
