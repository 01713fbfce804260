"""Resizing by a filter of fixed width, which Keras and TensorFlow do unless told otherwise.

Where an image shrinks, pixels between the filter's taps do not count: it is not antialiased.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, UInt8

_Kernel = Callable[[np.ndarray], np.ndarray]


def interpolate(
    pixels: UInt8[np.ndarray, "height width *channels"], size_px: tuple[int, int], name: str
) -> UInt8[np.ndarray, "new_height new_width *channels"]:
    """The image in another size, in float64 and rounded once, half to even.

    Args:
        pixels: The image.
        size_px: Its new height and width.
        name: The filter: "bilinear", "bicubic" (Keys 1981, a = -1/2) or "lanczos" (three lobes).
    """
    support, kernel = _KERNELS[name]
    values: np.ndarray = pixels
    for axis, edge in enumerate(size_px):
        taps, weights = _taps(pixels.shape[axis], edge, support, kernel)
        shape = [1] * values.ndim
        shape[axis] = edge
        # A tap of every row or column at a time, since whole images of products are large.
        products = (
            np.take(values, taps[:, i], axis) * weights[:, i].reshape(shape)
            for i in range(2 * support)
        )
        values = functools.reduce(np.add, products)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _taps(
    edge: int, new_edge: int, support: int, kernel: _Kernel
) -> tuple[np.ndarray, Float64[np.ndarray, "new_edge taps"]]:
    """For every new pixel, the old ones under its filter and what each counts: 0 outside."""
    centers = (np.arange(new_edge) + 0.5) * edge / new_edge - 0.5
    taps = np.floor(centers)[:, None] + np.arange(1 - support, 1 + support)
    weights = kernel(np.abs(centers[:, None] - taps)) * ((taps >= 0) & (taps < edge))
    return np.clip(taps, 0, edge - 1).astype(int), weights / weights.sum(1, keepdims=True)


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
