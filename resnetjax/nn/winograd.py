"""3x3 convolutions by Winograd's F(2x2, 3x3): 16 products where 36 are plain (Lavin and Gray 2016).

Tiles of 4x4 inputs, two apart, give tiles of 2x2 outputs. Each of the tile's 16 transformed inputs
is a matrix product over channels with the kernel transformed likewise, which is done once. In
float32 the result is within some 1e-6 of its largest value, as that of other orders of summation.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# What each row and column of a kernel is multiplied by.
_OF_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def transform(kernel: Float[Any, "3 3 in out"]) -> Float[np.ndarray, "4 4 in out"]:
    """The kernel as `convolve` takes it, of the same dtype; computed in float64."""
    wide = np.asarray(kernel, np.float64)
    return np.einsum("ai,bj,ijcf->abcf", _OF_KERNEL, _OF_KERNEL, wide).astype(kernel.dtype)


def convolve(
    x: Float[Array, "batch height width in"], kernel: Float[Array, "4 4 in out"]
) -> Float[Array, "batch height width out"]:
    """The convolution of stride 1, padded with one pixel of zeros on every side."""
    batch, height, width, ins = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    products = [
        [
            part.reshape(-1, ins) @ kernel[i, j]
            for j, part in enumerate(_of_input(strip, 2, columns))
        ]
        for i, strip in enumerate(_of_input(x, 1, rows))
    ]
    strips = [_of_output(row) for row in products]
    tiles = [_of_output([strip[j] for strip in strips]) for j in range(2)]
    shape = (batch, rows, columns, kernel.shape[-1])
    halves = [jnp.stack([tiles[j][i].reshape(shape) for j in range(2)], 3) for i in range(2)]
    out = jnp.stack(halves, 2).reshape(batch, 2 * rows, 2 * columns, -1)
    return out[:, :height, :width]


def _of_input(x: Array, axis: int, tiles: int) -> tuple[Array, Array, Array, Array]:
    """Along one axis, what the tiles' four pixels become."""
    a, b, c, d = (lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4))
    return a - c, b + c, c - b, b - d


def _of_output(products: list[Array]) -> tuple[Array, Array]:
    """Along one axis, the two pixels that the four products make."""
    a, b, c, d = products
    return a + b + c, b - c - d
