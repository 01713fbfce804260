"""From images to labels."""

import collections
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnetjax.config import Labels, Preprocess
from resnetjax.data.preprocess import ImageSource, describe
from resnetjax.errors import BadImage, ConfigError, NonFinite
from resnetjax.infer.batches import run_each

if TYPE_CHECKING:  # an exported net is asked without Flax
    from resnetjax.pretrained import Pretrained


class Classifies(Protocol):
    """What `predict` asks of a net."""

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the pixels."""
        ...

    @property
    def labels(self) -> Labels | None:
        """What the outputs mean, or None where that is unknown."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of outputs; 0 where the net has no head."""
        ...

    def top(
        self, pixels: UInt8[np.ndarray, "batch height width channels"], count: int, /
    ) -> tuple[Any, Any]:
        """The scores of the likeliest classes of each image, likeliest first, and these."""
        ...


@dataclass(frozen=True)
class Prediction:
    """One class of an image.

    Attributes:
        label: The class's name, or its index in digits where names are unknown.
        index: Of the output.
        probability: What the labels' activation makes of the logit (softmax where labels are
            unknown); the logit itself where that is "none".
    """

    label: str
    index: int
    probability: float


Result: TypeAlias = list[Prediction] | BadImage | NonFinite


def predict(
    net: "Pretrained | Classifies",
    images: ImageSource | Iterable[ImageSource],
    *,
    top: int = 5,
    batch_size: int = 32,
) -> list[list[Prediction]]:
    """The likeliest classes of each image, likeliest first; of a regression every value.

    Args:
        net: From `resnetjax.load`; or from `resnetjax.infer.artifact.load`, which needs no Flax.
        images: Paths, bytes, Pillow images or uint8[height, width, channels] arrays; one alone is a
            list of one.
        top: Number of classes an image, at most as many as there are. Where the labels' activation
            is "none" (regression) every output is given, in the net's order.
        batch_size: Images run at once. Fewer are padded to the next power of two, and the last ones
            to the size of the others, so that few shapes compile.

    Raises:
        BadImage: An image cannot be decoded; the message names it. `predict_each` goes on after
            one.
        NonFinite: The net's outputs for an image are NaN or infinite.
        ConfigError: The net has no head.

    Example:
        >>> import resnetjax as rj
        >>> model, variables = rj.create("cifar_resnet20")
        >>> small = rj.Preprocess(crop_px=(32, 32), resize_mode="none", resize_px=None)
        >>> pre = rj.Pretrained(model=model, variables=variables, preprocess=small)
        >>> [
        ...     [p.index for p in found]
        ...     for found in rj.predict(pre, [np.zeros((32, 32, 3), np.uint8)], top=0)
        ... ]
        [[]]
    """
    one = (
        isinstance(images, str | bytes | os.PathLike | Image.Image)
        or getattr(images, "ndim", 4) < 4
    )
    sources: Iterable[ImageSource] = [images] if one else images  # type: ignore[list-item]
    found = []
    for result in predict_each(net, sources, top=top, batch_size=batch_size):
        if not isinstance(result, list):
            raise result
        found.append(result)
    return found


def predict_each(
    net: "Pretrained | Classifies",
    images: Iterable[ImageSource],
    *,
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[Result]:
    """As `predict`, one image at a time as batches finish; an image that is bad yields its error.

    So does one for which the net's outputs are not finite. Images are read at most two batches
    ahead.

    Raises:
        ConfigError: The net has no head, `batch_size` is below 1, or `top` below 0.
    """
    classifier = _classifier(net)
    if not classifier.num_classes:
        raise ConfigError(
            "the net has no head (num_classes=0): load it with num_classes= to predict"
        )
    if top < 0:
        raise ConfigError(f"top={top} is not allowed: use 0 or more")
    labels = classifier.labels
    values = labels is not None and labels.activation == "none"
    count = classifier.num_classes if values else min(top, classifier.num_classes)

    def run(pixels: np.ndarray) -> tuple[Any, ...]:
        return classifier.top(pixels, count)

    names = collections.deque[str]()  # of the images under way

    def noted() -> Iterator[ImageSource]:
        for image in images:
            names.append(describe(image))
            yield image

    rows = run_each(classifier.preprocess, noted(), run, batch_size=batch_size)
    found = (_result(row, labels, name=names.popleft()) for row in rows)
    return (_in_order(each) for each in found) if values else found


def _classifier(net: Any) -> Classifies:
    if hasattr(net, "top"):
        return net
    from resnetjax.infer.predictor import predictor_of

    return predictor_of(net)


def _in_order(found: Result) -> Result:
    if not isinstance(found, list):
        return found
    return sorted(found, key=lambda prediction: prediction.index)


def _result(row: tuple[np.ndarray, ...] | BadImage, labels: Labels | None, *, name: str) -> Result:
    if isinstance(row, BadImage):
        return row
    scores, indices = (values.tolist() for values in row)
    if not all(map(math.isfinite, scores)):
        return NonFinite(
            f"{name}: the net's outputs are not finite: its weights are at fault, or its dtype is "
            "too narrow for them"
        )
    return [
        Prediction(labels.names[index] if labels else str(index), index, score)
        for score, index in zip(scores, indices, strict=True)
    ]
