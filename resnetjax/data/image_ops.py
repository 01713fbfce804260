"""Pillow's image operations, on the device, as three primitives.

A warp (`warp_nearest`, `warp_bilinear`), a blend with a degenerate image (`blend` with `grey`,
`smooth` or a constant) and a look-up table (`look_up` with `equalize_tables` or any other). Images
are uint8[height, width, channels] with one channel (Pillow's mode L) or three (RGB), of at most
2,048 x 2,048 pixels, where sums of them still fit 32 bits; `jax.vmap` gives batches.

The bytes are Pillow's (checked on CPU), but for `warp_bilinear`: it computes in float32, Pillow in
float64, and where the two fall on either side of a whole number is one level off.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

Image = UInt8[Array, "height width channels"]
Tables = UInt8[Array, "256 channels"]


def warp_nearest(image: Image, matrix: Int[Array, "6"], *, fill: Any) -> Image:
    """`Image.transform(size, AFFINE, matrix, NEAREST)`: each pixel is the one it comes from.

    Args:
        image: The image.
        matrix: From `to_fixed`.
        fill: One value in 0..255 per channel, for what comes from outside the image.

    Example:
        >>> left = to_fixed(np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]))
        >>> warp_nearest(jnp.array([[[1], [2], [3]]], jnp.uint8), left, fill=(9,)).ravel().tolist()
        [2, 3, 9]
    """
    height, width, _ = image.shape
    y, x = _grid(height, width)
    a, b, c, d, e, f = matrix
    # Arithmetic shifts round down, so what is left of or above the image stays negative.
    x, y = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    return _or_fill(_at(image, y, x), _inside(y, x, height, width), fill)


def warp_bilinear(image: Image, matrix: Float[Array, "6"], *, fill: Any) -> Image:
    """`Image.transform(size, AFFINE, matrix, BILINEAR)`, to one level.

    Args:
        image: The image.
        matrix: (a, b, c, d, e, f): the pixel at x, y comes from a x + b y + c, d x + e y + f.
        fill: One value in 0..255 per channel, for what comes from outside the image.

    Example:
        >>> half = jnp.array([1.0, 0.0, 0.5, 0.0, 1.0, 0.0])
        >>> warp_bilinear(jnp.array([[[1], [3], [9]]], jnp.uint8), half, fill=(7,)).ravel().tolist()
        [2, 6, 7]
    """
    height, width, _ = image.shape
    y, x = (axis + 0.5 for axis in _grid(height, width))
    a, b, c, d, e, f = matrix
    x, y = a * x + b * y + c, d * x + e * y + f
    inside = _inside(y, x, height, width)
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right_share, lower_share = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
    column, row = left.astype(jnp.int32), top.astype(jnp.int32)

    def along_row(row: Array) -> Array:
        start = _at(image, row, column).astype(jnp.float32)
        return start + (_at(image, row, column + 1) - start) * right_share

    upper, lower = along_row(row), along_row(row + 1)
    return _or_fill((upper + (lower - upper) * lower_share).astype(jnp.uint8), inside, fill)


def blend(degenerate: Array, image: Image, factor: Any) -> Image:
    """`Image.blend(degenerate, image, factor)`, as all of `ImageEnhance` does it.

    Args:
        degenerate: What a factor of 0 gives: an array that broadcasts to the image.
        image: What a factor of 1 gives; beyond that, it is extrapolated.
        factor: A scalar, taken to float32 as Pillow does.

    Example:
        >>> blend(jnp.zeros((1, 1, 1)), jnp.array([[[99]]], jnp.uint8), 0.5).item()
        49
    """
    start = degenerate.astype(jnp.float32)
    change = (image.astype(jnp.float32) - start) * jnp.asarray(factor, jnp.float32)
    # The maximum changes nothing, but keeps compilers from fusing product and sum, which would
    # skip the rounding between them that Pillow has.
    return jnp.clip(start + jnp.maximum(change, -1e30), 0, 255).astype(jnp.uint8)


def look_up(image: Image, tables: Tables) -> Image:
    """Every value replaced by that of its channel's table, as `Image.point` does.

    Example:
        >>> inverse = jnp.arange(255, -1, -1, dtype=jnp.uint8)[:, None]
        >>> look_up(jnp.array([[[99]]], jnp.uint8), inverse).item()
        156
    """
    height, width, channels = image.shape
    values = image.reshape(height * width, channels).astype(jnp.int32)
    found = jnp.take_along_axis(tables, values, axis=0, mode="promise_in_bounds")
    return found.reshape(image.shape)


def to_fixed(matrix: np.ndarray) -> Int[np.ndarray, "*matrices 6"]:
    """Float64 matrices as `warp_nearest` takes them: 16.16 fixed point, offset by half a pixel.

    `affine_fixed` in Pillow's Geometry.c. Its other path, for scalings and translations, gives the
    same pixels for whole numbers of them.
    """
    a, b, c, d, e, f = np.moveaxis(matrix, -1, 0)
    offset = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], axis=-1)
    return np.floor(offset * 65536 + 0.5).astype(np.int32)


def grey(image: Image) -> UInt8[Array, "height width 1"]:
    """`Image.convert("L")`: ITU-R 601-2 luma in 16-bit fixed point."""
    if image.shape[-1] == 1:
        return image
    weighted = image.astype(jnp.int32) * jnp.array([[[19595, 38470, 7471]]])
    return ((weighted.sum(-1, keepdims=True) + 32768) >> 16).astype(jnp.uint8)


def smooth(image: Image) -> Image:
    """`Image.filter(ImageFilter.SMOOTH)`, which leaves the outermost pixels."""
    height, width, _ = image.shape
    values = jnp.pad(image.astype(jnp.int32), ((1, 1), (1, 1), (0, 0)))
    rows = values[:-2] + values[1:-1] + values[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image.astype(jnp.int32)
    y, x = _grid(height, width)
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    # 13ths, rounded: an odd count of 26ths is never in the middle.
    return jnp.where(inner[..., None], ((2 * total + 13) // 26).astype(jnp.uint8), image)


def mean_grey(image: Image) -> UInt8[Array, ""]:
    """The mean of `grey`, rounded: what `ImageEnhance.Contrast` blends with."""
    values = grey(image)
    return ((2 * values.astype(jnp.int32).sum() + values.size) // (2 * values.size)).astype(
        jnp.uint8
    )


def histogram(image: Image) -> Int[Array, "256 channels"]:
    """How many pixels have each value, as `Image.histogram` counts them."""
    planes = image.reshape(-1, image.shape[-1])
    count = jax.vmap(lambda plane: jnp.zeros(256, jnp.int32).at[plane].add(1), 1, 1)
    return count(planes)


def equalize_tables(counts: Int[Array, "256 channels"]) -> Tables:
    """The tables of `ImageOps.equalize`, from an image's `histogram`."""
    values = _values()
    below = jnp.cumsum(counts, axis=0) - counts
    highest = jnp.max(jnp.where(counts > 0, values, 0), axis=0, keepdims=True)
    # All pixels but those of the highest value; none where there is one value only.
    step = jnp.take_along_axis(below, highest, axis=0) // 255
    spread = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step == 0, values, spread).astype(jnp.uint8)


def autocontrast_tables(counts: Int[Array, "256 channels"]) -> Tables:
    """The tables of `ImageOps.autocontrast`, from an image's `histogram`."""
    values = _values()
    low = jnp.min(jnp.where(counts > 0, values, 255), axis=0)
    high = jnp.max(jnp.where(counts > 0, values, 0), axis=0)
    exact = 255 * (values - low[None]) // jnp.maximum(high - low, 1)[None]
    packed = jnp.asarray(_autocontrast_shortfalls())[low, high]
    shortfall = jnp.unpackbits(packed, axis=-1).T.astype(jnp.int32)
    stretched = jnp.clip(exact - shortfall, 0, 255)
    return jnp.where(high[None] > low[None], stretched, values).astype(jnp.uint8)


@functools.cache
def _autocontrast_shortfalls() -> UInt8[np.ndarray, "256 256 32"]:
    """One bit for every lowest, highest and present value: is Pillow's result one too low?

    Pillow truncates float64, and where the result is a whole number it can come out just below.
    Of all triples these are 0.4 %.
    """
    low, high, value = np.ogrid[:256, :256, :256]
    span = np.maximum(high - low, 1)
    bits = np.zeros((256, 256, 256), bool)
    for i in range(256):  # by the lowest value: all at once takes half a gigabyte
        scale = 255.0 / span[i]
        pillow = (value[0] * scale + -i * scale).astype(np.int64)
        bits[i] = (pillow < 255 * (value[0] - i) // span[i]) & (value[0] >= i) & (high[0] > i)
    return np.packbits(bits, axis=-1)


def _values() -> Int[Array, "256 1"]:
    return jnp.arange(256, dtype=jnp.int32)[:, None]


def _grid(height: int, width: int) -> tuple[Array, Array]:
    shape = (height, width)
    return lax.broadcasted_iota(jnp.int32, shape, 0), lax.broadcasted_iota(jnp.int32, shape, 1)


def _inside(y: Array, x: Array, height: int, width: int) -> Bool[Array, "height width"]:
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


def _at(image: Image, y: Array, x: Array) -> Image:
    """The image's pixels at these places, or at the nearest to them."""
    height, width, channels = image.shape
    place = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
    return image.reshape(-1, channels).at[place].get(mode="promise_in_bounds")


def _or_fill(pixels: Image, inside: Array, fill: Any) -> Image:
    return jnp.where(inside[..., None], pixels, jnp.asarray(fill, jnp.uint8)[None, None])
