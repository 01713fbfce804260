"""One vector an image, for retrieval and nearest neighbours."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from resnetjax.config import Preprocess
from resnetjax.data.preprocess import ImageSource, normalize
from resnetjax.errors import BadImage, ConfigError
from resnetjax.infer.batches import Pixels, run_each
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Pretrained, Variables


def vector_names(pretrained: Pretrained) -> tuple[str, ...]:
    """The stages of which a net gives vectors."""
    return (*(info.name for info in pretrained.model.feature_info), "pooled")


def vectors_each(
    pretrained: Pretrained,
    images: Iterable[ImageSource],
    *,
    stage: str = "pooled",
    batch_size: int = 32,
) -> Iterator[Float[np.ndarray, " channels"] | BadImage]:
    """A float32 vector of each image as batches finish; an image that is bad yields its error.

    Args:
        pretrained: The net.
        images: Paths, bytes, Pillow images or uint8[height, width, channels] arrays; they are
            prepared as for `predict`.
        stage: "pooled" is what the head sees; of a feature map it is the mean over its pixels.
        batch_size: Images run at once.

    Raises:
        ConfigError: There is no such stage, or `batch_size` is below 1.
    """
    if stage not in (known := vector_names(pretrained)):
        raise ConfigError(f"stage={stage!r} is not allowed: use {', '.join(known)}")
    preprocess = pretrained.preprocess
    run = functools.partial(_vectors, pretrained.model, preprocess, stage, pretrained.variables)
    rows = run_each(preprocess, images, run, batch_size=batch_size)
    return (row if isinstance(row, BadImage) else row[0] for row in rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _vectors(
    model: ResNet, preprocess: Preprocess, stage: str, variables: Variables, pixels: Pixels
) -> tuple[Float[Array, "batch channels"]]:
    images = normalize(pixels, preprocess)
    found: Any = model.apply(variables, images, stages=(stage,), method="features")
    x = found[stage].astype(np.float32)
    return (x.mean((1, 2)) if x.ndim == 4 else x,)
