"""The likeliest classes of a batch, by a net that is not exported: one compiled program."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float, Int, UInt8

from resnetjax.config import Labels, OutputActivation, Preprocess
from resnetjax.data.preprocess import normalize
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Pretrained, Variables


@dataclass(frozen=True)
class Classifier:
    """A `Pretrained` as `predict` asks it."""

    pretrained: Pretrained

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the pixels."""
        return self.pretrained.preprocess

    @property
    def labels(self) -> Labels | None:
        """What the outputs mean, or None where that is unknown."""
        return self.pretrained.labels

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 where the net has no head."""
        return self.pretrained.config.num_classes

    def top(
        self, pixels: UInt8[Any, "batch height width channels"], count: int
    ) -> tuple[Float[Array, "batch top"], Int[Array, "batch top"]]:
        """The scores of the likeliest classes of each image, likeliest first, and these."""
        pretrained = self.pretrained
        return _top(
            pretrained.model,
            pretrained.preprocess,
            activation_of(pretrained.labels),
            count,
            pretrained.variables,
            pixels,
        )


def activation_of(labels: Labels | None) -> OutputActivation:
    """What turns logits into predictions; softmax where labels are unknown."""
    return labels.activation if labels else "softmax"


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _top(
    model: ResNet,
    preprocess: Preprocess,
    activation: OutputActivation,
    count: int,
    variables: Variables,
    pixels: UInt8[Any, "batch height width channels"],
) -> tuple[Float[Array, "batch top"], Int[Array, "batch top"]]:
    logits: Any = model.apply(variables, normalize(pixels, preprocess), train=False)
    if activation == "softmax":
        logits = jax.nn.softmax(logits)
    elif activation == "sigmoid":
        logits = jax.nn.sigmoid(logits)
    return jax.lax.top_k(logits, count)
