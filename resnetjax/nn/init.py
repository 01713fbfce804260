"""How each kind of array starts, in `model.init` and, without tracing, for a whole net."""

import math
import zlib
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, constant, variance_scaling

from resnetjax.measure import Leaf, LeafKind

SCALING: dict[
    LeafKind, tuple[float, Literal["fan_in", "fan_out"], Literal["normal", "uniform"]]
] = {
    # He 2015 over the outputs, as torchvision and timm start their convolutions.
    "conv": (2.0, "fan_out", "normal"),
    # torch.nn.Linear and Conv1d: uniform within 1 / sqrt(fan in).
    "dense": (1 / 3, "fan_in", "uniform"),
    "channel_conv": (1 / 3, "fan_in", "uniform"),
}
# float32 by name: under jax_enable_x64 JAX's default is float64.
zeros, ones = constant(0.0, jnp.float32), constant(1.0, jnp.float32)
CONSTANTS: dict[LeafKind, Initializer] = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}


def initializer(kind: LeafKind, *, zero_init: bool = False) -> Initializer:
    """What a module hands to `self.param` for an array of this kind; `zero_init` goes first."""
    if zero_init:
        return zeros
    if kind in CONSTANTS:
        return CONSTANTS[kind]
    draw = variance_scaling(*SCALING[kind], dtype=jnp.float32)

    if kind != "channel_conv":
        return draw
    # variance_scaling wants an axis of inputs and one of outputs; ECA's kernel has one of each.
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: draw(
        key, (*shape, 1), dtype, out_sharding
    )[:, 0]


def initialize(leaves: dict[str, Leaf], seed: int) -> dict[str, np.ndarray]:
    """Fresh float32 arrays by path, in a fraction of the time that compiling `model.init` takes.

    Args:
        leaves: What `resnetjax.measure.leaves` lists.
        seed: Each array's numbers follow from it and the array's path alone.
    """
    return {path: _draw(leaf, np.random.default_rng([seed, zlib.crc32(path.encode())]))
            for path, leaf in leaves.items()}  # fmt: skip


def _draw(leaf: Leaf, rng: np.random.Generator) -> np.ndarray:
    if leaf.kind in CONSTANTS or leaf.zero_init:
        one = CONSTANTS.get(leaf.kind) is ones and not leaf.zero_init
        return np.full(leaf.shape, float(one), np.float32)
    scale, mode, distribution = SCALING[leaf.kind]
    receptive = math.prod(leaf.shape[:-2])
    fan_in, fan_out = (leaf.shape[0], 1) if len(leaf.shape) == 1 else leaf.shape[-2:]
    deviation = math.sqrt(scale / (receptive * (fan_in if mode == "fan_in" else fan_out)))
    if distribution == "normal":
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(deviation)
    return (rng.random(leaf.shape, np.float32) * 2 - 1) * np.float32(deviation * math.sqrt(3))
