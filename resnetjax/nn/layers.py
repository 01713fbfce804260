"""Thin linen modules, one for each entry of a plan: they own parameters and call `functions`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnetjax import specs
from resnetjax.nn import functions
from resnetjax.nn.functions import Images, Maps
from resnetjax.nn.init import initializer
from resnetjax.specs import Attention, Conv, Norm


@dataclass(frozen=True)
class Mode:
    """How a net is run, as against what it is.

    Attributes:
        train: Use and update batch statistics, and drop.
        dtype: Of the activations and of the arithmetic on them; parameters and statistics stay
            float32.
        axis_name: A mapped axis over which batch statistics are averaged.
        norm_batch: Examples that share batch statistics; None is all of them.
        frozen: Paths of norms that use their running statistics in training too.
    """

    train: bool
    dtype: Any
    axis_name: str | None
    norm_batch: int | None
    frozen: frozenset[tuple[str, ...]] = frozenset()


class Convolution(nn.Module):
    """A kernel and, where the plan has one, a bias."""

    spec: Conv
    mode: Mode

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        """The convolution alone; norm, activation and pool are the block's to order."""
        conv, dtype = self.spec, self.mode.dtype
        init = initializer("conv", zero_init=conv.zero_init)
        kernel = self.param("kernel", init, conv.kernel_shape)
        if conv.standardize_eps is not None:
            kernel = functions.standardize(kernel, conv.standardize_eps)
        x = functions.convolve(x.astype(dtype), kernel.astype(dtype), conv)
        if conv.bias:
            x = (
                x
                + self.param("bias", initializer("bias"), (conv.features,)).astype(dtype)[
                    None, None, None
                ]
            )
        return x


class Normalization(nn.Module):
    """Batch norm with running statistics, group norm, or a scale and a shift alone."""

    spec: Norm
    mode: Mode

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """By the batch in training, which also moves the running statistics; by these otherwise."""
        norm, mode, shape = self.spec, self.mode, (self.spec.features,)
        scale = self.param("scale", initializer("scale", zero_init=norm.zero_init), shape)
        bias = self.param("bias", initializer("bias"), shape)
        if norm.kind == "group":
            return functions.group_normalize(x, scale, bias, norm.groups, norm.eps, mode.dtype)
        if norm.kind == "affine":
            return functions.scale_and_shift(x, scale, bias, mode.dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not mode.train or self.path in mode.frozen:
            mean, var = running_mean.value, running_var.value
            return functions.normalize(x, mean, var, scale, bias, norm.eps, mode.dtype)
        parts = x.reshape(-1, mode.norm_batch or x.shape[0], *x.shape[1:])
        run = functools.partial(
            functions.batch_normalize, eps=norm.eps, axis_name=mode.axis_name, dtype=mode.dtype
        )
        normalized, means, variances = jax.vmap(run, (0, None, None))(parts, scale, bias)
        if not self.is_initializing():
            for running, now in ((running_mean, means), (running_var, variances)):
                moved = norm.decay * running.value + (1 - norm.decay) * now.mean(0)
                running.value = moved.astype(running.value.dtype)
        return normalized.reshape(x.shape)


class Dense(nn.Module):
    """A matrix and a bias."""

    features: int
    mode: Mode

    @nn.compact
    def __call__(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """`x @ kernel + bias`."""
        return self._product(x)

    def _product(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        dtype = self.mode.dtype
        kernel = self.param("kernel", initializer("dense"), (x.shape[-1], self.features))
        bias = self.param("bias", initializer("bias"), (self.features,))
        return x.astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype)[None]


class Head(Dense):
    """Dense layers from the pooled features to the logits, and what is done before each."""

    hidden: tuple[specs.Dense, ...]
    drop: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """The logits. The last layer's arrays are the module's own: "head/kernel"."""
        for layer in self.hidden:
            name = layer.name.removeprefix("head/")
            x = Dense(layer.features, self.mode, name=name)(self.drop(x))
            x = functions.activate(x, layer.activation)
        return self._product(self.drop(x))


class ChannelConvolution(nn.Module):
    """ECA's convolution along the channels."""

    size: int
    mode: Mode

    @nn.compact
    def __call__(self, x: Float[Array, "batch channels"]) -> Float[Array, "batch channels"]:
        """One value a channel, from its neighbours."""
        kernel = self.param("kernel", initializer("channel_conv"), (self.size,))
        return functions.channel_convolve(x, kernel.astype(self.mode.dtype))


class ChannelAttention(nn.Module):
    """Squeeze-excite (Hu 2017) or ECA (Wang 2019): each channel scaled by what all of them say."""

    spec: Attention
    mode: Mode

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """The channels of x, each times a gate between 0 and 1."""
        y = x.mean((1, 2))
        if self.spec.kind == "eca":
            y = ChannelConvolution(self.spec.kernel, self.mode, name="conv")(y)
        else:
            y = jax.nn.relu(Dense(self.spec.hidden, self.mode, name="reduce")(y))
            y = Dense(self.spec.features, self.mode, name="expand")(y)
        return x * jax.nn.sigmoid(y)[:, None, None]
