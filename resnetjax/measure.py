"""What a plan amounts to: arrays and their number, arithmetic, feature maps. Imports no JAX."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from resnetjax.specs import Attention, Conv, Norm, Padding, Plan, Pool

LeafKind = Literal["conv", "dense", "channel_conv", "scale", "bias", "mean", "var"]


@dataclass(frozen=True)
class Leaf:
    """One float32 array of the variables.

    Attributes:
        collection: Trained ("params") or running ("batch_stats").
        shape: Kernels are (height, width, in, out) or (in, out).
        kind: What the array is, by which converters choose a layout and modules an initialiser.
        zero_init: Whether it starts at zero where its kind would not.
    """

    collection: Literal["params", "batch_stats"]
    shape: tuple[int, ...]
    kind: LeafKind
    zero_init: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FeatureInfo:
    """A feature map that the net can return: name, channels, and stride relative to the image."""

    name: str
    channels: int
    stride: int


def leaves(plan: Plan) -> dict[str, Leaf]:
    """Every array of the net by its path, in the order of computation.

    Example:
        >>> from resnetjax.config import ResNetConfig
        >>> from resnetjax.plan import plan
        >>> leaves(plan(ResNetConfig(depths=(3, 4, 6, 3))))["stage1_block1/conv2/kernel"].shape
        (3, 3, 64, 64)
    """
    return dict(_leaves(plan))


def parameter_count(plan: Plan) -> int:
    """Number of trained values; Keras's "total" adds `statistics_count`."""
    return sum(leaf.size for leaf in leaves(plan).values() if leaf.collection == "params")


def statistics_count(plan: Plan) -> int:
    """Number of running means and variances."""
    return sum(leaf.size for leaf in leaves(plan).values() if leaf.collection == "batch_stats")


def feature_info(plan: Plan) -> tuple[FeatureInfo, ...]:
    """The feature maps in order: `stem_conv`, `stem`, `stage1`, ..., and in v2 `norm`.

    `stem_conv` is the stem before its pooling (timm's index 0; stride 2), `stem` after it
    (Transformers' stem; stride 4). `norm` is v2's last stage after the final norm and activation.
    """
    stem = plan.stem
    stride = math.prod(conv.stride for conv in stem.convs)
    width = stem.convs[-1].features
    found = [FeatureInfo("stem_conv", width, stride)]
    stride *= math.prod(pool.stride for pool in stem.pools) * (
        stem.pool_conv.stride if stem.pool_conv else 1
    )
    found.append(FeatureInfo("stem", width, stride))
    found += [
        FeatureInfo(stage.name, stage.blocks[-1].features, stage.stride) for stage in plan.stages
    ]
    if plan.norm:
        found.append(FeatureInfo("norm", plan.features, found[-1].stride))
    return tuple(found)


def flops(plan: Plan, *, height: int = 224, width: int = 224) -> int:
    """Floating-point operations of one image's forward pass, two for each multiply-add.

    Convolutions and the head count; norms, activations and pools, about 1 % of a ResNet-50, do not.

    Args:
        plan: The net.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    size, total = (height, width), 0
    for conv in plan.stem.convs:
        size, total = _conv_flops(conv, size, total)
    for pool in plan.stem.pools:
        size = _out(size, pool.size, pool.stride, 1, pool.padding)
    if plan.stem.pool_conv:
        size, total = _conv_flops(plan.stem.pool_conv, size, total)
    for stage in plan.stages:
        for block in stage.blocks:
            inner = size
            for conv in block.convs:
                inner, total = _conv_flops(conv, inner, total)
            if block.shortcut.conv:
                pooled = _pooled(block.shortcut.pool, size)
                _, total = _conv_flops(block.shortcut.conv, pooled, total)
            if block.attention:
                total += _attention_flops(block.attention)
            size = inner
    return total + sum(2 * layer.in_features * layer.features for layer in plan.head)


def _conv_flops(conv: Conv, size: tuple[int, int], total: int) -> tuple[tuple[int, int], int]:
    height, width = _out(size, conv.kernel, conv.stride, conv.dilation, conv.padding)
    weights = conv.kernel**2 * conv.in_features // conv.groups * conv.features
    return _pooled(conv.pool, (height, width)), total + 2 * weights * height * width


def _attention_flops(attention: Attention) -> int:
    weights = attention.kernel if attention.kind == "eca" else 2 * attention.hidden
    return 2 * attention.features * weights


def _pooled(pool: Pool | None, size: tuple[int, int]) -> tuple[int, int]:
    return _out(size, pool.size, pool.stride, 1, pool.padding) if pool else size


def _out(
    size: tuple[int, int], window: int, stride: int, dilation: int, padding: Padding
) -> tuple[int, int]:
    reach = dilation * (window - 1) + 1

    def one(pixels: int) -> int:
        return (
            -(-pixels // stride)
            if padding == "same"
            else (pixels + 2 * padding - reach) // stride + 1
        )

    return one(size[0]), one(size[1])


def _leaves(plan: Plan) -> Iterator[tuple[str, Leaf]]:
    for conv in plan.stem.convs:
        yield from _conv_leaves("stem/", conv, norm_first=False)
    if plan.stem.pool_conv:
        yield from _conv_leaves("stem/pool/", plan.stem.pool_conv, norm_first=False)
    for stage in plan.stages:
        for block in stage.blocks:
            for conv in block.convs:
                yield from _conv_leaves(f"{block.name}/", conv, norm_first=block.order == "pre")
            if block.attention:
                yield from _attention_leaves(f"{block.name}/attention/", block.attention)
            if block.shortcut.conv:
                yield from _conv_leaves(
                    f"{block.name}/shortcut/", block.shortcut.conv, norm_first=False
                )
    if plan.norm:
        yield from _norm_leaves("", plan.norm)
    for layer in plan.head:
        yield f"{layer.name}/kernel", Leaf("params", (layer.in_features, layer.features), "dense")
        yield f"{layer.name}/bias", Leaf("params", (layer.features,), "bias")


def _conv_leaves(prefix: str, conv: Conv, *, norm_first: bool) -> Iterator[tuple[str, Leaf]]:
    if conv.norm and norm_first:
        yield from _norm_leaves(prefix, conv.norm)
    yield f"{prefix}{conv.name}/kernel", Leaf("params", conv.kernel_shape, "conv", conv.zero_init)
    if conv.bias:
        yield f"{prefix}{conv.name}/bias", Leaf("params", (conv.features,), "bias")
    if conv.norm and not norm_first:
        yield from _norm_leaves(prefix, conv.norm)


def _norm_leaves(prefix: str, norm: Norm) -> Iterator[tuple[str, Leaf]]:
    shape = (norm.features,)
    yield f"{prefix}{norm.name}/scale", Leaf("params", shape, "scale", norm.zero_init)
    yield f"{prefix}{norm.name}/bias", Leaf("params", shape, "bias")
    if norm.kind == "batch":
        yield f"{prefix}{norm.name}/mean", Leaf("batch_stats", shape, "mean")
        yield f"{prefix}{norm.name}/var", Leaf("batch_stats", shape, "var")


def _attention_leaves(prefix: str, attention: Attention) -> Iterator[tuple[str, Leaf]]:
    channels, hidden = attention.features, attention.hidden
    if attention.kind == "eca":
        yield f"{prefix}conv/kernel", Leaf("params", (attention.kernel,), "channel_conv")
        return
    for name, ins, outs in (("reduce", channels, hidden), ("expand", hidden, channels)):
        yield f"{prefix}{name}/kernel", Leaf("params", (ins, outs), "dense")
        yield f"{prefix}{name}/bias", Leaf("params", (outs,), "bias")
