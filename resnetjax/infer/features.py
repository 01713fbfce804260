"""Feature maps of a pretrained net: by our names or another library's, at any output stride."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
from jaxtyping import Array, Float

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.infer.fold import folded
from resnetjax.measure import FeatureInfo, leaves
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained, Variables

Convention = Literal["timm", "transformers", "keras"]
OutputStride = Literal[8, 16, 32]
Key = str | int


def features(
    pretrained: Pretrained,
    images: Float[Array, "batch height width channels"],
    *,
    stages: Sequence[Key] | None = None,
    convention: Convention | None = None,
    output_stride: OutputStride | None = None,
) -> dict[Any, Float[Array, "batch ..."]]:
    """The named feature maps, float[batch, height, width, channels], of preprocessed images.

    `feature_info` says their channels and strides under the same arguments.

    Args:
        pretrained: The net.
        images: As `pretrained.preprocess` makes them, of any height and width.
        stages: "stem_conv", "stem", "stage1", ..., and in v2 "norm"; or "pooled", float[batch,
            features], which the head sees. None for all maps. Nothing after the last one is
            computed.
        convention: Whose keys `stages` and the result have: timm's `features_only` (0, 1, ..., 0
            before the stem's pool), Transformers' `ResNetBackbone` ("stem", after the pool,
            "stage1", ...) or KerasHub's `pyramid_outputs` ("P2", "P3", ...). An integer in `stages`
            counts along these keys, from the end where it is negative, as in `out_indices`.
        output_stride: Of the last map, in pixels, in place of the net's own: as `dense`.

    Raises:
        ConfigError: No feature map has this name, the images have another number of channels, or
            the net cannot have this output stride.
    """
    model = pretrained.model if output_stride is None else dense(pretrained, output_stride).model
    wanted = _chosen(pretrained.config, stages, convention)
    found = _features(model, tuple(wanted.values()), pretrained.variables, images)
    return {key: found[name] for key, name in wanted.items()}


def feature_info(
    pretrained: Pretrained,
    *,
    stages: Sequence[Key] | None = None,
    convention: Convention | None = None,
    output_stride: OutputStride | None = None,
) -> dict[Any, FeatureInfo]:
    """Our name, channels and stride of each map that `features` gives for the same arguments.

    Raises:
        ConfigError: As `features`, or "pooled", which is no map.

    Example:
        >>> import resnetjax as rj
        >>> model, variables = rj.create("resnet18")
        >>> pre = rj.Pretrained(model=model, variables=variables)
        >>> feature_info(pre, convention="keras", stages=("P5",))
        {'P5': FeatureInfo(name='stage4', channels=512, stride=32)}
    """
    wanted = _chosen(pretrained.config, stages, convention)
    if "pooled" in wanted.values():
        raise ConfigError(f"stages={stages!r} is not allowed: use maps, for 'pooled' is a vector")
    model = pretrained.model if output_stride is None else dense(pretrained, output_stride).model
    known = {info.name: info for info in model.feature_info}
    return {key: known[name] for key, name in wanted.items()}


def dense(pretrained: Pretrained, output_stride: OutputStride) -> Pretrained:
    """The same weights in a net whose strides beyond `output_stride` are dilations instead.

    Each 3x3 convolution is dilated by the strides that no longer come before it. Subsampled, the
    dense maps are then those of the net as it was trained ("atrous equals dense subsampling":
    Chen 2015), where each pixel's value depends on those around it alone: with batch norm, without
    channel attention, and with strides that are neither pooled ("avg_conv" shortcuts, antialias)
    nor padded on one side (padding="same" on even sizes). Elsewhere they are near.

    Raises:
        ConfigError: The net's own stride is smaller, it has dilations that no stride explains, or
            it runs another plan than its config's, which is not that one folded either.
    """
    model, config = pretrained.model, pretrained.config
    is_folded = model.net is not None and model.net == folded(plan(config))
    if model.net not in (None, plan(config)) and not is_folded:
        raise ConfigError(
            f"output_stride={output_stride} is not allowed: the net runs a plan of its own: make "
            "it dense before that"
        )
    first = [stage.blocks[0] for stage in plan(config).stages]
    # A 3x3 that carries the stride itself sees what came before it, so the stage before's rate; one
    # behind it sees the stage's own. Where a last block strides, the rate grows after it.
    before = config.stride_on == "spatial" and config.stride_block == "first"
    changed = config.replace(
        output_stride=output_stride,
        dilation_rule="previous" if before else "uniform",
        # Else a shortcut that projects only for its stride would lose its convolution with it.
        projections=config.projections or tuple(bool(block.shortcut.conv) for block in first),
    )
    if leaves(plan(changed)) != leaves(plan(config)):  # shortcut_kernel=3 can bring this about
        raise ConfigError(
            f"output_stride={output_stride} is not allowed: dilated, this net has other arrays"
        )
    net = folded(plan(changed)) if is_folded else None
    return dataclasses.replace(pretrained, model=model.clone(config=changed, net=net))


def _chosen(
    config: ResNetConfig, stages: Sequence[Key] | None, convention: Convention | None
) -> dict[Key, str]:
    """Our name of each map that is asked for, by its key."""
    if isinstance(stages, str):
        raise ConfigError(f"stages={stages!r} is not allowed: use a tuple of names")
    if convention is not None and convention not in get_args(Convention):
        allowed = ", ".join(map(repr, get_args(Convention)))
        raise ConfigError(f"convention={convention!r} is not allowed: use {allowed}")
    known = _keys(config, convention)
    if stages is None:
        return {key: name for key, name in known.items() if name != "pooled"}
    keys, unknown = list(known), [key for key in stages if not _is_known(key, known)]
    if unknown:
        raise ConfigError(f"stages={unknown} is not allowed: use {', '.join(map(str, keys))}")
    chosen = [keys[key] if isinstance(key, int) else key for key in stages]
    return {key: known[key] for key in chosen}


def _is_known(key: Key, known: dict[Key, str]) -> bool:
    # Our own names are not counted: "pooled" stands among them.
    if isinstance(key, int):
        return "pooled" not in known and -len(known) <= key < len(known)
    return key in known


def _keys(config: ResNetConfig, convention: Convention | None) -> dict[Key, str]:
    net = plan(config)
    stages = [stage.name for stage in net.stages]
    match convention:
        case "timm":  # timm/models/resnet.py, resnetv2.py: feature_info
            return dict(enumerate(["stem_conv", *stages]))
        case "transformers":  # models/resnet/modeling_resnet.py: ResNetBackbone
            return {name: name for name in ["stem", *stages]}
        case "keras":  # keras_hub/src/models/resnet/resnet_backbone.py: pyramid_outputs
            return {f"P{level}": name for level, name in enumerate(stages, start=2)}
    norm = ["norm"] if net.norm else []
    return {name: name for name in ["stem_conv", "stem", *stages, *norm, "pooled"]}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(
    model: ResNet, stages: tuple[str, ...], variables: Variables, images: Array
) -> dict[str, Array]:
    found: Any = model.apply(variables, images, stages=stages, method="features")
    return found
