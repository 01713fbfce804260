"""What random values a net of Keras or slim gets: the recipe of `torch_side.settle`, in NumPy.

Runs in TensorFlow's environment too: no import but NumPy. Each layer draws from its own name, so
that the order in which a framework runs them does not matter.
"""

import re
import zlib
from collections.abc import Collection

import numpy as np

Array = np.ndarray


def generator(name: str) -> np.random.Generator:
    """Random numbers that belong to a layer."""
    return np.random.default_rng(zlib.crc32(name.encode()))


# Of convolutions and norms: 152 layers have 310, 200 have 400 and more.
DEEP = 350


def size_of(name: str, names: Collection[str]) -> float:
    """How large a layer's outputs are: a third where it ends a residual branch, else 1.

    In nets of 200 layers a fifth: with a third slim's v1 amplified float32's rounding so much that
    in float32 its own last stage was 1.2e-4 of the spread off its float64 values, and ours 1.0e-4.

    A block's last has no successor: `conv3_block1_2_bn` without `conv3_block1_3_bn`, slim's
    `unit_1/bottleneck_v2/conv3` without a `conv4`.
    """
    found = re.fullmatch(r"(.*block.*(?:_|/conv))(\d)(_conv|_bn|/BatchNorm|)", name)
    if not found or f"{found[1]}{int(found[2]) + 1}{found[3]}" in names:
        return 1.0
    return 0.2 if len(names) > DEEP else 0.3


def gain(output: Array, name: str, *, size: float) -> Array:
    """What to multiply a convolution's kernel by, for outputs [batch, height, width, channels]."""
    channels = output.shape[-1]
    small = channels // 8
    wanted = generator(name).uniform(0.5, 2, channels)
    wanted[:small] *= 1e-5**0.5
    wanted[small:] *= size
    return (wanted / output.std((0, 1, 2), dtype=np.float64)).astype(np.float32)


def norm(inputs: Array, name: str, *, size: float) -> tuple[Array, Array, Array, Array]:
    """Scale, shift, mean and variance of a batch norm that these inputs reach."""
    rng, channels = generator(name), inputs.shape[-1]
    mean, var = inputs.mean((0, 1, 2), dtype=np.float64), inputs.var((0, 1, 2), dtype=np.float64)
    values = (
        rng.uniform(0.5 * size, 1.5 * size, channels),
        rng.normal(0, 0.3 * size, channels),
        mean + 0.2 * np.sqrt(var) * rng.standard_normal(channels),
        var * np.exp(0.3 * rng.standard_normal(channels)),
    )
    scale, shift, mean, var = (value.astype(np.float32) for value in values)
    return scale, shift, mean, var


def bias(name: str, channels: int) -> Array:
    """A convolution's or the head's bias."""
    return generator(f"{name}/bias").normal(0, 0.1, channels).astype(np.float32)
