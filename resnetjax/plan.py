"""The plan of a net: every convolution, norm, pool and shortcut of a config, spelled out.

Modules, parameter counts, FLOPs, the parameter tree and conversion all read the plan; nothing else
knows what a bottleneck is. Imports no JAX.
"""

import functools
import math

from resnetjax.config import Activation, ConvSite, ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.specs import Attention, Block, Conv, Dense, Norm, Plan, Pool, Shortcut, Stage, Stem


@functools.lru_cache(maxsize=256)
def plan(config: ResNetConfig) -> Plan:
    """The net that a config describes.

    Raises:
        ConfigError: `projections` leaves a block without the projection that its change of shape
            needs, channels do not divide into the groups of a convolution or a norm, or
            `pruned_features` has more than there were.

    Example:
        >>> plan(ResNetConfig(depths=(3, 4, 6, 3))).stages[1].blocks[0].convs[1].stride
        2
    """
    strides, dilations = _strides_and_dilations(config)
    stages, features, total_stride, previous, done = [], config.stem_width, config.stem_stride, 1, 0
    for stage, depth in enumerate(config.depths):
        blocks = []
        for position in range(1, depth + 1):
            strided = position == (1 if config.stride_block == "first" else depth)
            block = _block(
                config,
                stage=stage,
                position=position,
                in_features=features,
                stride=strides[stage] if strided else 1,
                dilation=dilations[stage],
                previous_dilation=previous if position == 1 else dilations[stage],
                drop_path_rate=config.drop_path_rate * done / max(sum(config.depths) - 1, 1),
            )
            blocks.append(block)
            features = block.features
            done += 1
        previous = dilations[stage]
        total_stride *= strides[stage]
        stages.append(Stage(f"stage{stage + 1}", tuple(blocks), total_stride))
    pre = config.order == "pre"
    return Plan(
        in_channels=config.in_channels,
        stem=_stem(config),
        stages=tuple(stages),
        norm=_norm(config, "norm", features) if pre else None,
        norm_activation=config.activation if pre else None,
        features=features,
        head_pool=config.head_pool,
        dropout_rate=config.dropout,
        head=_head(config, features),
    )


def _strides_and_dilations(config: ResNetConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if config.output_stride is None:
        return config.strides, config.dilations
    strides, dilations, rate, total = [], [], 1, config.stem_stride
    for stride in config.strides:
        reached = total >= config.output_stride
        grown = rate * stride if reached else rate
        # A stride in the last block comes after the stage's own 3x3s (slim's stack_blocks_dense).
        dilations.append(grown if config.stride_block == "first" else rate)
        strides.append(1 if reached else stride)
        total *= strides[-1]
        rate = grown
    return tuple(strides), tuple(dilations)


def _norm(config: ResNetConfig, name: str, features: int, *, zero_init: bool = False) -> Norm:
    groups = config.norm_groups if config.norm == "group" else 0
    if groups and features % groups:
        raise ConfigError(
            f"norm_groups={groups} is not allowed: use a divisor of {features}, which {name} has"
        )
    return Norm(name, features, config.norm, groups, config.norm_eps, config.norm_decay, zero_init)


def _conv(
    config: ResNetConfig,
    site: ConvSite,
    name: str,
    in_features: int,
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    norm: Norm | None = None,
    activation: Activation | None = None,
    pool: Pool | None = None,
    zero_init: bool = False,
) -> Conv:
    same = config.padding == "same" or (config.padding == "same_blocks" and site != "stem")
    return Conv(
        name=name,
        in_features=in_features,
        features=features,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        groups=groups,
        padding="same" if same else dilation * (kernel - 1) // 2,
        bias=site in config.bias_sites,
        standardize_eps=config.weight_standardization_eps,
        norm=norm,
        activation=activation,
        pool=pool,
        zero_init=zero_init,
    )


def _stem(config: ResNetConfig) -> Stem:
    width = config.stem_width
    kernel, features = {
        "conv7": (7, (width,)),
        "conv3": (3, (width,)),
        "deep": (3, (width // 2, width // 2, width)),
        # timm: 3 * (stem_width // 4) of its own stem_width, which is half of ours.
        "tiered": (3, (3 * (width // 8), width // 2, width)),
    }[config.stem]
    convs, in_features = [], config.in_channels
    for i, out in enumerate(features, start=1):
        # v2's last stem convolution stays bare: the first block begins with a norm.
        bare = config.order == "pre" and i == len(features)
        norm = None if bare else _norm(config, f"norm{i}", out)
        activation = None if bare else config.activation
        stride = 2 if i == 1 and config.stem != "conv3" else 1
        convs.append(
            _conv(config, "stem", f"conv{i}", in_features, out, kernel,
                  stride=stride, norm=norm, activation=activation)
        )  # fmt: skip
        in_features = out
    if config.stem_pool == "conv":
        norm = _norm(config, "norm", width)
        conv = _conv(
            config, "stem", "conv", width, width, 3,
            stride=2, norm=norm, activation=config.activation,
        )  # fmt: skip
        return Stem(tuple(convs), (), conv)
    return Stem(tuple(convs), _stem_pools(config), None)


def _stem_pools(config: ResNetConfig) -> tuple[Pool, ...]:
    if config.stem_pool == "none":
        return ()
    padding = "same" if config.stem_pool_padding == "same" else 1
    smooth = _antialias(config, 2)
    if config.antialias == "average":
        return (Pool("average", 2, 2),)
    stride = 1 if smooth else 2
    max_pool = Pool("max", 3, stride, padding, config.stem_pool_value)
    return (max_pool, smooth) if smooth else (max_pool,)


def _antialias(config: ResNetConfig, stride: int) -> Pool | None:
    if config.antialias == "blur":
        return Pool("blur", 3, stride, 1)
    if config.antialias == "average" and stride > 1:
        # timm's AvgPool2d rounds down where the shortcut rounds up, and so fails on odd sizes; this
        # is the same on even ones.
        return Pool("average", stride, stride, "same")
    return None


def _block(
    config: ResNetConfig,
    *,
    stage: int,
    position: int,
    in_features: int,
    stride: int,
    dilation: int,
    previous_dilation: int,
    drop_path_rate: float,
) -> Block:
    width, kind = config.widths[stage], config.blocks[stage]
    if kind == "basic":
        kernels, groups = (3, 3), (1, 1)
        features = (width // config.reduce_first, width)
    else:
        inner = width * config.group_width // 64 * config.groups
        kernels, groups = (1, 3, 1), (1, config.groups, 1)
        features = (inner // config.reduce_first, inner, 4 * width)
        if inner == 0 or inner // config.reduce_first % config.groups:
            raise ConfigError(
                f"group_width={config.group_width} is not allowed: use one that gives each of "
                f"groups={config.groups} one or more of the channels of stage {stage + 1}'s first "
                f"two convolutions, which are {features[0]} and {inner}"
            )
    if features[0] == 0:
        raise ConfigError(
            f"reduce_first={config.reduce_first} is not allowed: use one that leaves channels to "
            f"the first convolution of stage {stage + 1}"
        )
    unpruned, features = features, _pruned(config, stage, position, features)
    rates = _dilations(config, kernels, position, dilation, previous_dilation)
    first_rate = next(rate for rate, kernel in zip(rates, kernels, strict=True) if kernel == 3)
    stride_at = {"reduce": 0, "spatial": kernels.index(3), "last_spatial": 1}[config.stride_on]
    # timm (Bottleneck.use_aa): smooth where the block strides, and where its first 3x3 has another
    # rate.
    smooth = _antialias(config, stride) if stride > 1 or first_rate != dilation else None
    inner_activation = config.inner_activation or config.activation
    pre, last, convs = config.order == "pre", len(kernels) - 1, []
    incoming = (in_features, *features)
    for i, kernel in enumerate(kernels):
        zero_init = config.zero_init_residual and i == last
        if pre:
            norm = _norm(config, f"norm{i + 1}", incoming[i])
            activation = config.activation if i == 0 else inner_activation
        else:
            norm = _norm(config, f"norm{i + 1}", features[i], zero_init=zero_init)
            activation = None if i == last else inner_activation
        convs.append(
            _conv(
                config,
                ("conv1", "conv2", "conv3")[i],
                f"conv{i + 1}",
                incoming[i],
                features[i],
                kernel,
                stride=stride if i == stride_at and not smooth else 1,
                dilation=rates[i],
                groups=groups[i],
                norm=norm,
                activation=activation,
                pool=smooth if i == stride_at else None,
                zero_init=zero_init and pre,
            )
        )
    return Block(
        name=f"stage{stage + 1}_block{position}",
        order=config.order,
        convs=tuple(convs),
        shortcut=_shortcut(
            config, stage, position, in_features, features[-1], stride, dilation, first_rate
        ),
        attention=_attention(config, features[-1], unpruned[-1]),
        activation=None if pre else config.activation,
        drop_path_rate=drop_path_rate,
        dropout_rate=config.block_dropout,
    )


def _pruned(
    config: ResNetConfig, stage: int, position: int, features: tuple[int, ...]
) -> tuple[int, ...]:
    """What pruning left of the features of a block's convolutions."""
    if config.pruned_features is None:
        return features
    left = config.pruned_features[stage][position - 1]
    if any(some > all_ for some, all_ in zip(left, features, strict=True)):
        raise ConfigError(
            f"pruned_features={config.pruned_features!r:.2000} is not allowed: use no more for a "
            f"block of stage {stage + 1} than the {features} that it has by widths={config.widths}"
        )
    return left


def _dilations(
    config: ResNetConfig, kernels: tuple[int, ...], position: int, own: int, previous: int
) -> list[int]:
    """The rate of each convolution of a block."""
    spatial = [i for i, kernel in enumerate(kernels) if kernel == 3]
    rates = [own if i in spatial else 1 for i in range(len(kernels))]
    if config.dilation_rule == "undilated" and position == 1:
        return [1] * len(kernels)
    if config.dilation_rule == "previous":
        rates[spatial[0]] = previous
    if config.stride_on == "last_spatial" and config.dilation_rule != "uniform":
        rates[spatial[0]] = 1
    return rates


def _shortcut(
    config: ResNetConfig,
    stage: int,
    position: int,
    in_features: int,
    features: int,
    stride: int,
    dilation: int,
    first_rate: int,
) -> Shortcut:
    subsample = Pool("max", 1, stride) if stride > 1 else None
    if config.shortcut == "pad":
        if features < in_features:
            raise ConfigError(
                f"shortcut='pad' is not allowed: use another where channels become fewer, as in "
                f"stage {stage + 1}, from {in_features} to {features}"
            )
        return Shortcut(subsample, None, features - in_features)
    changed = in_features != features or stride > 1
    wanted = changed if config.projections is None else config.projections[stage]
    if position > 1 or not wanted:
        if in_features != features:
            raise ConfigError(
                f"projections={config.projections!r} is not allowed: stage {stage + 1} starts with "
                f"{in_features} channels and ends with {features}, so it must project"
            )
        return Shortcut(subsample)
    pool, kernel = None, 1
    if config.shortcut == "avg_conv":
        # timm's downsample_avg: a stage that dilates in place of striding averages densely, and
        # there, unlike elsewhere, the zeros it pads with count.
        if dilation > 1 and stride == 1:
            pool = Pool("average", 2, 1, "same", count_padding=True)
        elif stride > 1:
            pool = Pool("average", 2, stride, "same")
        stride = 1
    elif stride > 1 or dilation > 1:
        kernel = config.shortcut_kernel
    norm = _norm(config, "norm", features) if config.shortcut_norm else None
    rate = first_rate if kernel > 1 else 1
    conv = _conv(
        config, "shortcut", "conv", in_features, features, kernel,
        stride=stride, dilation=rate, norm=norm,
    )  # fmt: skip
    return Shortcut(pool, conv)


def _head(config: ResNetConfig, features: int) -> tuple[Dense, ...]:
    if not config.num_classes:
        return ()
    layers = []
    for number, width in enumerate(config.head_widths, start=1):
        layers.append(Dense(f"head/hidden{number}", features, width, config.activation))
        features = width
    return *layers, Dense("head", features, config.num_classes)


def _attention(config: ResNetConfig, features: int, unpruned: int) -> Attention | None:
    if config.attention == "none":
        return None
    # timm: make_divisible(channels * ratio, 8, round_limit=0), and ECA's kernel from its paper
    # (gamma 2, beta 1), which its pruned nets keep from before.
    hidden = max(8, int(features * config.se_ratio + 4) // 8 * 8)
    nearest = int((math.log2(unpruned) + 1) / 2)
    return Attention(config.attention, features, hidden, max(nearest | 1, 3))
