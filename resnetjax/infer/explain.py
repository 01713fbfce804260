"""Grad-CAM (Selvaraju 2017): which places of an image speak for a class."""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from resnetjax.config import Labels
from resnetjax.data.preprocess import ImageSource, crop, decode, normalize
from resnetjax.errors import ConfigError, UnknownName
from resnetjax.infer.predict import Prediction
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Pretrained, Variables

# The heat's colours from nothing to its largest value; between them they are mixed.
COLOURS = np.array([[0, 0, 96], [0, 128, 255], [64, 255, 128], [255, 224, 0], [255, 0, 0]])
DRAWN_PX = 224  # smaller images are drawn with whole pixels at least this large


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Which places of an image speak for a class.

    Attributes:
        heat: float32[height, width] of the stage: 0 where nothing does; its unit is the logit's
            per place.
        prediction: The class.
        stage: Whose feature maps were weighed.
        pixels: uint8[height, width, channels]: what the net sees of the image, before
            normalisation.
    """

    heat: Float[np.ndarray, "height width"] = field(repr=False)
    prediction: Prediction
    stage: str
    pixels: np.ndarray = field(repr=False)

    def draw(self) -> Image.Image:
        """The net's view of the image, and the same under the heat, blue to red, side by side."""
        height, width, channels = self.pixels.shape
        factor = -(-DRAWN_PX // min(height, width))
        size = (width * factor, height * factor)
        view = Image.fromarray(self.pixels[..., 0] if channels == 1 else self.pixels)
        view = view.convert("RGB").resize(size, Image.Resampling.NEAREST)
        share = self.heat / (self.heat.max() or 1)
        smooth = Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        at = np.linspace(0, 1, len(COLOURS))
        colour = [np.interp(np.asarray(smooth), at, COLOURS[:, i]) for i in range(3)]
        heated = Image.blend(view, Image.fromarray(np.stack(colour, -1).astype(np.uint8)), 0.5)
        both = Image.new("RGB", (2 * size[0], size[1]))
        both.paste(view, (0, 0))
        both.paste(heated, (size[0], 0))
        return both


def explain(
    pretrained: Pretrained,
    image: ImageSource,
    *,
    label: str | int | None = None,
    stage: str | None = None,
) -> Explanation:
    """Which places of an image speak for a class, by Grad-CAM.

    The feature maps of a stage are added up, each times the mean of the class's logit's derivative
    by it, and what is below zero is cut off.

    Args:
        pretrained: The net.
        image: A path, bytes, a Pillow image or a uint8[height, width, channels] array.
        label: The class by its name, its id (n02123045) or its index; None is the likeliest.
        stage: "stem", "stage1", ..., and in v2 "norm"; None is the last, what the head pools.

    Raises:
        BadImage: The image cannot be decoded.
        ConfigError: The net has no head, or no such stage.
        UnknownName: There is no such label.

    Example:
        >>> import resnetjax as rj
        >>> model, variables = rj.create("cifar_resnet20")
        >>> small = rj.Preprocess(crop_px=(32, 32), resize_mode="none", resize_px=None)
        >>> pre = rj.Pretrained(model=model, variables=variables, preprocess=small)
        >>> rj.explain(pre, np.zeros((32, 32, 3), np.uint8)).heat.shape
        (8, 8)
    """
    classes, labels = pretrained.config.num_classes, pretrained.labels
    if not classes:
        raise ConfigError(
            "the net has no head (num_classes=0): load it with num_classes= to explain"
        )
    asked = None if label is None else index_of(label, labels, classes)
    # Not the stem before its pool: the rest of the net begins after a stage.
    stages = [info.name for info in pretrained.model.feature_info if info.name != "stem_conv"]
    stage = stages[-1] if stage is None else stage
    if stage not in stages:
        raise ConfigError(f"stage={stage!r} is not allowed: use {', '.join(stages)}")
    pixels = crop(decode(image, channels=pretrained.preprocess.channels), pretrained.preprocess)
    inputs = jnp.asarray(normalize(pixels, pretrained.preprocess))[None]
    maps, logits = _forward(pretrained.model, stage, pretrained.variables, inputs)
    index = int(logits[0].argmax()) if asked is None else asked
    heat = _heat(pretrained.model, stage, pretrained.variables, maps, jnp.asarray(index))
    activations = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid, "none": jnp.asarray}
    scores = activations[pretrained.activation](logits[0])
    name = labels.names[index] if labels else str(index)
    return Explanation(
        heat=np.asarray(heat),
        prediction=Prediction(name, index, float(scores[index])),
        stage=stage,
        pixels=pixels,
    )


def index_of(label: str | int, labels: Labels | None, classes: int) -> int:
    """The output that a label is: the first of this name, this id, or this index.

    Raises:
        UnknownName: There is none.
    """
    for known in (labels.names, labels.ids or ()) if labels else ():
        if label in known:
            return known.index(str(label))
    digits = str(label)
    if digits.isascii() and digits.isdecimal() and int(digits) < classes:
        return int(digits)
    some = f", such as {', '.join(labels.names[:3])}" if labels else ""
    raise UnknownName(f"no label is called {label!r}: use a name{some}, or 0 to {classes - 1}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
    model: ResNet, stage: str, variables: Variables, images: Array
) -> tuple[Float[Array, "1 height width channels"], Float[Array, "1 classes"]]:
    found: Any = model.apply(variables, images, stages=(stage,), method="features")
    return found[stage], _logits(model, stage, variables, found[stage])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _heat(
    model: ResNet, stage: str, variables: Variables, maps: Array, index: Array
) -> Float[Array, "height width"]:
    grads = jax.grad(lambda x: _logits(model, stage, variables, x)[0, index])(maps)
    weights = grads.mean((1, 2), keepdims=True, dtype=jnp.float32)
    return jax.nn.relu((maps * weights).sum((0, 3)))


def _logits(model: ResNet, stage: str, variables: Variables, maps: Array) -> Any:
    return model.apply(variables, maps, stage=stage, method="logits_from")
