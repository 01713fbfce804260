"""From images to labels: decoded ahead on threads, run on the device in batches of few shapes."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnetjax.config import Labels, Preprocess
from resnetjax.data.preprocess import ImageSource, crop, decode
from resnetjax.errors import BadImage, ConfigError

if TYPE_CHECKING:  # an exported net is asked without Flax
    from resnetjax.pretrained import Pretrained

T = TypeVar("T")
R = TypeVar("R")


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


def predict(
    net: "Pretrained | Classifies",
    images: ImageSource | Iterable[ImageSource],
    *,
    top: int = 5,
    batch_size: int = 32,
) -> list[list[Prediction]]:
    """The likeliest classes of each image, likeliest first.

    Args:
        net: From `resnetjax.load`; or from `resnetjax.infer.artifact.load`, which needs no Flax.
        images: Paths, bytes, Pillow images or uint8[height, width, channels] arrays; one alone is a
            list of one.
        top: Number of classes an image, at most as many as there are.
        batch_size: Images run at once. Fewer are padded to the next power of two, and the last ones
            to the size of the others, so that few shapes compile.

    Raises:
        BadImage: An image cannot be decoded; the message names it. `predict_each` goes on after
            one.
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
        if isinstance(result, BadImage):
            raise result
        found.append(result)
    return found


def predict_each(
    net: "Pretrained | Classifies",
    images: Iterable[ImageSource],
    *,
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[list[Prediction] | BadImage]:
    """As `predict`, one image at a time as batches finish; an image that is bad yields its error.

    Images are read at most two batches ahead.

    Raises:
        ConfigError: The net has no head, `batch_size` is below 1, or `top` below 0.
    """
    classifier = _classifier(net)
    if not classifier.num_classes:
        raise ConfigError(
            "the net has no head (num_classes=0): load it with num_classes= to predict"
        )
    for name, value, least in (("batch_size", batch_size, 1), ("top", top, 0)):
        if value < least:
            raise ConfigError(f"{name}={value} is not allowed: use {least} or more")
    return _predict_each(classifier, images, top, batch_size)


def _classifier(net: Any) -> Classifies:
    if hasattr(net, "top"):
        return net
    from resnetjax.infer.classify import Classifier

    return Classifier(net)


def _predict_each(
    net: Classifies, images: Iterable[ImageSource], top: int, batch_size: int
) -> Iterator[list[Prediction] | BadImage]:
    labels = net.labels
    size = 1
    count = min(top, net.num_classes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in _ahead(pool, functools.partial(_pixels, net.preprocess), images, batch_size):
            good = [pixels for pixels in batch if not isinstance(pixels, BadImage)]
            scores = indices = np.zeros((0, count))
            if good:
                size = max(size, min(1 << (len(good) - 1).bit_length(), batch_size))
                scores, indices = net.top(_padded(good, size), count)
            rows = zip(np.asarray(scores).tolist(), np.asarray(indices).tolist(), strict=True)
            for pixels in batch:
                if isinstance(pixels, BadImage):
                    yield pixels
                    continue
                yield [
                    Prediction(labels.names[index] if labels else str(index), index, score)
                    for score, index in zip(*next(rows), strict=True)
                ]


def _pixels(preprocess: Preprocess, source: ImageSource) -> np.ndarray | BadImage:
    try:
        return crop(decode(source, channels=preprocess.channels), preprocess)
    except BadImage as error:
        return error


def _padded(images: list[np.ndarray], size: int) -> np.ndarray:
    """The images with zeros after them."""
    batch = np.zeros((size, *images[0].shape), np.uint8)
    batch[: len(images)] = images
    return batch


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], size: int
) -> Iterator[list[R]]:
    """Batches of finished work; the next batch is under way while one is used."""
    remaining = iter(items)
    waiting = [pool.submit(work, item) for item in itertools.islice(remaining, size)]
    while waiting:
        following = [pool.submit(work, item) for item in itertools.islice(remaining, size)]
        yield [future.result() for future in waiting]
        waiting = following
