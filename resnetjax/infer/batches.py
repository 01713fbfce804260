"""Images in batches of few shapes: decoded ahead on threads, run on the device."""

import collections
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
        run: As for `in_turn`.
        batch_size: Images run at once.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    check_batch_size(batch_size)
    return _run_each(preprocess, images, run, batch_size)


def check_batch_size(batch_size: int) -> None:
    """Raises ConfigError below 1."""
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is not allowed: use 1 or more")


def _run_each(
    preprocess: Preprocess,
    images: Iterable[ImageSource],
    run: Callable[[Pixels], tuple[Any, ...]],
    batch_size: int,
) -> Iterator[tuple[Any, ...] | BadImage]:
    read: collections.deque[list[np.ndarray | BadImage]] = collections.deque()

    def batches(pool: ThreadPoolExecutor) -> Iterator[Pixels]:
        for batch in _ahead(pool, functools.partial(_pixels, preprocess), images, batch_size):
            read.append(batch)
            good = [pixels for pixels in batch if not isinstance(pixels, BadImage)]
            yield np.stack(good) if good else np.zeros((0,), np.uint8)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in in_turn(batches(pool), run, batch_size=batch_size):
            rows = zip(*found, strict=True)
            for pixels in read.popleft():
                yield pixels if isinstance(pixels, BadImage) else next(rows)


def in_turn(
    batches: Iterable[Pixels], run: Callable[[Pixels], tuple[Any, ...]], *, batch_size: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """What `run` makes of each batch; of an empty one nothing.

    JAX's arrays are fetched when the next batch is on its way, so that device and host both work.

    Args:
        batches: Of `batch_size` images at most.
        run: Given batches of `batch_size`, or of the next power of two where there are fewer, but
            none smaller than one before it, so that few shapes compile.
        batch_size: Images run at once.
    """
    size = 1
    waiting: tuple[int, tuple[Any, ...]] | None = None
    for pixels in batches:
        started: tuple[int, tuple[Any, ...]] = (0, ())
        if count := len(pixels):
            size = max(size, min(1 << (count - 1).bit_length(), batch_size))
            started = count, run(_padded(pixels, size))
        if waiting is not None:
            yield _fetched(*waiting)
        waiting = started
    if waiting is not None:
        yield _fetched(*waiting)


def _fetched(count: int, arrays: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(array)[:count] for array in arrays)


def _pixels(preprocess: Preprocess, source: ImageSource) -> np.ndarray | BadImage:
    try:
        return crop(decode(source, channels=preprocess.channels), preprocess)
    except BadImage as error:
        return error


def _padded(pixels: Pixels, size: int) -> Pixels:
    """The images with zeros after them."""
    batch = np.zeros((size, *pixels.shape[1:]), np.uint8)
    batch[: len(pixels)] = pixels
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
