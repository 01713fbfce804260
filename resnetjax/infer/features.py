"""Feature maps of a pretrained net."""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from resnetjax.errors import ConfigError
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Pretrained, Variables


def features(
    pretrained: Pretrained,
    images: Float[Array, "batch height width channels"],
    *,
    stages: tuple[str, ...] | None = None,
) -> dict[str, Float[Array, "batch ..."]]:
    """The named feature maps, float[batch, height, width, channels], of preprocessed images.

    `pretrained.model.feature_info` lists names, channels and strides.

    Args:
        pretrained: The net.
        images: As `pretrained.preprocess` makes them, of any height and width.
        stages: "stem_conv", "stem", "stage1", ..., and in v2 "norm"; None for all of them. Nothing
            after the last one is computed.

    Raises:
        ConfigError: No feature map has this name, or the images have another number of channels.
    """
    if isinstance(stages, str):
        raise ConfigError(f"stages={stages!r} is not allowed: use a tuple of names")
    model = pretrained.model
    wanted = tuple(info.name for info in model.feature_info) if stages is None else tuple(stages)
    found = _features(model, wanted, pretrained.variables, images)
    return {name: found[name] for name in wanted}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(
    model: ResNet, stages: tuple[str, ...], variables: Variables, images: Array
) -> dict[str, Array]:
    found: Any = model.apply(variables, images, stages=stages, method="features")
    return found
