"""Images in batches of few shapes: decoded ahead on threads, run on the device."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from resnetjax.config import Preprocess
from resnetjax.data.preprocess import ImageSource, crop, decode
from resnetjax.errors import BadImage, ConfigError

T = TypeVar("T")
R = TypeVar("R")
Pixels = UInt8[Any, "batch height width channels"]


def run_each(
    preprocess: Preprocess,
    images: Iterable[ImageSource],
    run: Callable[[Pixels], tuple[Any, ...]],
    *,
    batch_size: int,
) -> Iterator[tuple[Any, ...] | BadImage]:
    """Each image's row of every array that `run` makes of its batch; of a bad one its error.

    Images are read at most two batches ahead.

    Args:
        preprocess: How an image becomes pixels; `run` normalises them.
        images: Where they are.
        run: Given batches of `batch_size`, or of the next power of two where there are fewer; what
            it makes of the zeros at their ends is dropped.
        batch_size: Images run at once.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is not allowed: use 1 or more")
    return _run_each(preprocess, images, run, batch_size)


def _run_each(
    preprocess: Preprocess,
    images: Iterable[ImageSource],
    run: Callable[[Pixels], tuple[Any, ...]],
    batch_size: int,
) -> Iterator[tuple[Any, ...] | BadImage]:
    size = 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in _ahead(pool, functools.partial(_pixels, preprocess), images, batch_size):
            good = [pixels for pixels in batch if not isinstance(pixels, BadImage)]
            rows: Iterator[tuple[Any, ...]] = iter(())
            if good:
                size = max(size, min(1 << (len(good) - 1).bit_length(), batch_size))
                rows = zip(*map(np.asarray, run(_padded(good, size))), strict=True)
            for pixels in batch:
                yield pixels if isinstance(pixels, BadImage) else next(rows)


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
