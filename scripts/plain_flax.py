"""A ResNet as one writes it in Flax without a library: what `scripts/benchmark.py` compares with.

The layers are those of Flax's own ImageNet example (`flax/examples/imagenet/models.py`): `nn.Conv`
without bias and `nn.BatchNorm`, whose statistics are not folded. `resnet50` is v1.5, the CIFAR nets
are the paper's with projections in place of padded shortcuts.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class Basic(nn.Module):
    """Two 3x3 convolutions and the shortcut."""

    width: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The block's output."""
        y = nn.relu(self.norm()(self.conv(self.width, (3, 3), strides=self.stride)(x)))
        y = self.norm()(self.conv(self.width, (3, 3))(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(self.width, (1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and the shortcut."""

    width: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The block's output."""
        y = nn.relu(self.norm()(self.conv(self.width, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.width, (3, 3), strides=self.stride)(y)))
        y = self.norm()(self.conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(4 * self.width, (1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class PlainResNet(nn.Module):
    """The net, from images to logits."""

    block: Callable[..., Any]
    depths: tuple[int, ...]
    width: int = 64
    classes: int = 1000
    small: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """The logits."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        kernel, stride = ((3, 3), 1) if self.small else ((7, 7), 2)
        x = nn.relu(norm()(conv(self.width, kernel, strides=stride)(x.astype(self.dtype))))
        if not self.small:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                x = self.block(self.width * 2**stage, stride, conv, norm)(x)
        x = x.mean((1, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


NETS = {
    "resnet18": PlainResNet(Basic, (2, 2, 2, 2)),
    "resnet50": PlainResNet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": PlainResNet(Bottleneck, (3, 4, 23, 3)),
    "cifar_resnet20": PlainResNet(Basic, (3, 3, 3), width=16, classes=10, small=True),
}
