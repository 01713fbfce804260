"""The arithmetic as plain functions of arrays; `resnetjax.nn.layers` holds the parameters.

Images are float[batch, height, width, channels], kernels float[height, width, in / groups, out].
"""

import functools
from collections.abc import Callable
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resnetjax.config import Activation
from resnetjax.specs import Conv, Padding, Pool

Images = Float[Array, "batch height width channels"]
Maps = Float[Array, "batch out_height out_width out_channels"]
"""Images of another size, where a function changes it."""
Kernel = Float[Array, "kernel kernel in out"]
Channels = Float[Array, " channels"]
Drop = Callable[[Array, float, Array], Array]
"""What `dropout` and `drop_path` are: array, rate and key in, array out."""


def activate(x: Images, activation: Activation | None) -> Images:
    """The activation by its config name; "gelu" is exact (erf), "gelu_tanh" its approximation."""
    match activation:
        case None:
            return x
        case "relu":
            return jax.nn.relu(x)
        case "silu":
            return jax.nn.silu(x)
        case "gelu" | "gelu_tanh":
            return jax.nn.gelu(x, approximate=activation == "gelu_tanh")


def convolve(x: Images, kernel: Kernel, conv: Conv) -> Maps:
    """The convolution that a plan's `Conv` describes, without bias."""
    padding = "SAME" if conv.padding == "same" else [(conv.padding, conv.padding)] * 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(conv.stride, conv.stride),
        padding=padding,
        rhs_dilation=(conv.dilation, conv.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=conv.groups,
    )


def standardize(kernel: Kernel, eps: float) -> Kernel:
    """The kernel with mean 0 and variance 1 over each output's inputs (Qiao 2019)."""
    mean = kernel.mean((0, 1, 2), keepdims=True)
    var = kernel.var((0, 1, 2), keepdims=True)
    return (kernel - mean) * lax.rsqrt(var + eps)


def batch_statistics(x: Images, axis_name: str | None) -> tuple[Channels, Channels]:
    """Mean and biased variance over batch and pixels, in float32 or wider.

    Args:
        x: The activations.
        axis_name: A mapped axis (`pmap`, `shard_map`) to average over as well.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, square = x.mean((0, 1, 2)), lax.square(x).mean((0, 1, 2))
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    # Both moments in one pass over x; rounding may take their difference below zero.
    return mean, jnp.maximum(square - lax.square(mean), 0)


def normalize(
    x: Images, mean: Array, var: Array, scale: Channels, bias: Channels, eps: float, dtype: Any
) -> Images:
    """`(x - mean) / sqrt(var + eps) * scale + bias`, in the statistics' precision until the end."""
    factor = lax.rsqrt(var + eps) * _over(scale, var)
    return ((x - _over(mean, x)) * _over(factor, x) + _over(bias, x)).astype(dtype)


def group_normalize(
    x: Images, scale: Channels, bias: Channels, groups: int, eps: float, dtype: Any
) -> Images:
    """Group norm (Wu and He 2018): statistics of each image over pixels and a group's channels."""
    batch, height, width, channels = x.shape
    grouped = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    grouped = grouped.reshape(batch, height * width, groups, channels // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    var = grouped.var((1, 3), keepdims=True)
    grouped = (grouped - mean) * lax.rsqrt(var + eps)
    out = grouped.reshape(x.shape)
    return (out * _over(scale, out) + _over(bias, out)).astype(dtype)


def pool(x: Images, spec: Pool) -> Maps:
    """The pooling that a plan's `Pool` describes."""
    if spec.kind == "blur":
        return _blur(x, spec)
    if spec.size == 1:
        return x[:, :: spec.stride, :: spec.stride]
    window, strides = (1, spec.size, spec.size, 1), (1, spec.stride, spec.stride, 1)
    padding = _window_padding(x, window, strides, spec.padding)
    if spec.kind == "max":
        if spec.pad_value == "zero":
            x, padding = jnp.pad(x, padding), [(0, 0)] * 4
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, padding)
    if spec.count_padding:
        return total / spec.size**2
    pixels = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return total / lax.reduce_window(pixels, 0.0, lax.add, window, strides, padding)


def pad_channels(x: Images, features: int) -> Maps:
    """`features` channels of zeros more, half before and half after (option A of He 2015)."""
    before = features // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, features - before)))


def channel_convolve(x: Float[Array, "batch channels"], kernel: Float[Array, " size"]) -> Array:
    """A one-dimensional convolution along the channels, padded with zeros (ECA)."""
    half = kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (half, half)))
    shifts = [padded[:, i : i + x.shape[1]] * kernel[i] for i in range(kernel.shape[0])]
    return functools.reduce(jnp.add, shifts)


def drop_path(x: Images, rate: float, key: Array) -> Images:
    """Each image's branch dropped with probability `rate`, the rest scaled up (Huang 2016)."""
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1, 1))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def dropout(x: Array, rate: float, key: Array) -> Array:
    """Each value dropped with probability `rate`, the rest scaled up."""
    return jnp.where(
        jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), jnp.zeros_like(x)
    )


def _blur(x: Images, spec: Pool) -> Maps:
    """Zhang 2019: a binomial filter on reflected borders, subsampled."""
    if not isinstance(spec.padding, int):
        raise AssertionError("a blur pads a fixed number of pixels")
    row = jnp.array([comb(spec.size - 1, k) for k in range(spec.size)], x.dtype) / 2 ** (
        spec.size - 1
    )
    side, channels = (spec.padding, spec.padding), x.shape[-1]
    x = jnp.pad(x, ((0, 0), side, side, (0, 0)), mode="reflect")
    kernel = jnp.broadcast_to(
        jnp.outer(row, row)[:, :, None, None], (spec.size, spec.size, 1, channels)
    )
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(spec.stride, spec.stride),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def _window_padding(
    x: Images, window: tuple[int, ...], strides: tuple[int, ...], padding: Padding
) -> list[tuple[int, int]]:
    if padding == "same":
        return list(lax.padtype_to_pads(x.shape, window, strides, "SAME"))
    return [(0, 0), (padding, padding), (padding, padding), (0, 0)]


def _over(channels: Array, like: Array) -> Array:
    """Per-channel values shaped to broadcast over `like` (rank promotion stays explicit)."""
    return channels.reshape((1,) * (like.ndim - channels.ndim) + channels.shape)
