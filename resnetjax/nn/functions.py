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
from resnetjax.nn import winograd
from resnetjax.specs import Conv, Padding, Pool

Images = Float[Array, "batch height width channels"]
Maps = Float[Array, "batch out_height out_width out_channels"]
"""Images of another size, where a function changes it."""
Kernel = Float[Array, "kernel kernel in out"]
Channels = Float[Array, " channels"]
Drop = Callable[[Array, float, Array], Array]
"""What `dropout` and `drop_path` are: array, rate and key in, array out."""


def activate(x: Array, activation: Activation | None) -> Array:
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
    if conv.form == "winograd":
        return winograd.convolve(x, kernel)
    if conv.form == "dot":
        pixels = x[:, :: conv.stride, :: conv.stride]
        flat = pixels.reshape(-1, conv.in_features) @ kernel[0, 0]
        return flat.reshape(*pixels.shape[:3], conv.features)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_normalize(
    x: Images, scale: Channels, bias: Channels, eps: float, axis_name: str | None, dtype: Any
) -> tuple[Images, Channels, Channels]:
    """Batch norm by the batch's own statistics, and these: (normalised, mean, biased variance).

    The derivative is written out (Ioffe and Szegedy 2015, section 3), since XLA takes three times
    as long on a CPU over the one that it would derive. Mean and variance pass no gradient on.

    Args:
        x: The activations.
        scale: What the normalised ones are multiplied by.
        bias: What is added to them.
        eps: Added to the variance.
        axis_name: A mapped axis (`pmap`, `shard_map`) over which statistics are taken as well.
        dtype: Of the result; statistics are float32 or wider.
    """
    return _batch_normalize(x, scale, bias, eps, axis_name, dtype)[0]


def _batch_normalize(
    x: Images, scale: Channels, bias: Channels, eps: float, axis_name: str | None, dtype: Any
) -> tuple[tuple[Images, Channels, Channels], tuple[Array, ...]]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = x.size // x.shape[-1]
    sums = (_channel_sums(wide) / count, _channel_sums(lax.square(wide)) / count)
    mean, square = _mean_over(sums, axis_name)
    # Both moments in one pass over x; rounding may take their difference below zero.
    var = jnp.maximum(square - lax.square(mean), 0)
    out = normalize(x, mean, var, scale, bias, eps, dtype)
    return (out, mean, var), (x, scale, bias, mean, lax.rsqrt(var + eps))


def _batch_normalize_backward(
    eps: float, axis_name: str | None, dtype: Any, kept: tuple[Array, ...], grads: Any
) -> tuple[Images, Channels, Channels]:
    x, scale, bias, mean, factor = kept
    grad = grads[0].astype(factor.dtype)
    normalized = (x - _over(mean, x)) * _over(factor, x)
    count = x.size // x.shape[-1]
    of_bias, of_scale = _channel_sums(grad), _channel_sums(grad * normalized)
    of_mean, of_factor = _mean_over((of_bias / count, of_scale / count), axis_name)
    of_x = (grad - _over(of_mean, x) - normalized * _over(of_factor, x)) * _over(scale * factor, x)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


batch_normalize.defvjp(_batch_normalize, _batch_normalize_backward)


def normalize(
    x: Images, mean: Array, var: Array, scale: Channels, bias: Channels, eps: float, dtype: Any
) -> Images:
    """`(x - mean) / sqrt(var + eps) * scale + bias`, in the statistics' precision until the end."""
    factor = lax.rsqrt(var + eps) * _over(scale, var)
    return ((x - _over(mean, x)) * _over(factor, x) + _over(bias, x)).astype(dtype)


def scale_and_shift(x: Images, scale: Channels, bias: Channels, dtype: Any) -> Images:
    """`x * scale + bias`, in the parameters' precision until the end."""
    return (x * _over(scale, x) + _over(bias, x)).astype(dtype)


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


def _channel_sums(x: Images) -> Channels:
    """Over the batch first, then over pixels: two short sums round less than a long one."""
    return x.reshape(x.shape[0], -1).sum(0).reshape(-1, x.shape[-1]).sum(0)


def _mean_over(values: Any, axis_name: str | None) -> Any:
    return values if axis_name is None else lax.pmean(values, axis_name)
