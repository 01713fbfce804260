"""Resizing by a filter of fixed width, which Keras and TensorFlow do unless told otherwise.

Where an image shrinks, pixels between the filter's taps do not count: it is not antialiased.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Num, UInt8

_Kernel = Callable[[np.ndarray], np.ndarray]


def interpolate(
    pixels: UInt8[np.ndarray, "height width *channels"], size_px: tuple[int, int], name: str
) -> UInt8[np.ndarray, "new_height new_width *channels"]:
    """The image in another size, in float32 and rounded once, half to even.

    The edge that shrinks most goes first, and channels one by one, so that memory stays within
    some times the larger of the two images.

    Args:
        pixels: The image.
        size_px: Its new height and width.
        name: The filter: "bilinear", "bicubic" (Keys 1981, a = -1/2) or "lanczos" (three lobes).
    """
    if pixels.ndim == 3:
        channels = [interpolate(channel, size_px, name) for channel in np.moveaxis(pixels, 2, 0)]
        return np.stack(channels, 2)
    values: np.ndarray = pixels
    for axis in sorted((0, 1), key=lambda axis: size_px[axis] / pixels.shape[axis]):
        values = _resized(values, axis, size_px[axis], name)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _resized(
    values: Num[np.ndarray, "height width"], axis: int, new_edge: int, name: str
) -> Float32[np.ndarray, "new_height new_width"]:
    support, kernel = _KERNELS[name]
    taps, weights = _taps(values.shape[axis], new_edge, support, kernel)
    shape = (new_edge, 1) if axis == 0 else (1, new_edge)
    products = (
        np.take(values, taps[:, i], axis) * weights[:, i].reshape(shape) for i in range(2 * support)
    )
    return functools.reduce(np.add, products)


def _taps(
    edge: int, new_edge: int, support: int, kernel: _Kernel
) -> tuple[np.ndarray, Float32[np.ndarray, "new_edge taps"]]:
    """For every new pixel, the old ones under its filter and what each counts: 0 outside."""
    centers = (np.arange(new_edge) + 0.5) * edge / new_edge - 0.5
    taps = np.floor(centers)[:, None] + np.arange(1 - support, 1 + support)
    weights = kernel(np.abs(centers[:, None] - taps)) * ((taps >= 0) & (taps < edge))
    weights /= weights.sum(1, keepdims=True)
    return np.clip(taps, 0, edge - 1).astype(int), weights.astype(np.float32)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _keys(x: np.ndarray) -> np.ndarray:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)


_KERNELS: dict[str, tuple[int, _Kernel]] = {
    "bilinear": (1, _triangle),
    "bicubic": (2, _keys),
    "lanczos": (3, _lanczos),
}
