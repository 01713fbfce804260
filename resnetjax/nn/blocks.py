"""The stem and the two residual blocks: an order of operations is a class, all else the plan."""

import flax.linen as nn
from jaxtyping import Array, Float

from resnetjax.nn import functions
from resnetjax.nn.functions import Images, Maps
from resnetjax.nn.layers import ChannelAttention, Convolution, Mode, Normalization
from resnetjax.specs import Block, Conv, Shortcut
from resnetjax.specs import Stem as StemPlan


class Stem(nn.Module):
    """The first convolutions and the pooling after them."""

    spec: StemPlan
    mode: Mode

    @nn.compact
    def __call__(
        self, x: Images
    ) -> tuple[Maps, Float[Array, "batch pooled_height pooled_width out_channels"]]:
        """The stem before its pooling, and after it."""
        for conv in self.spec.convs:
            x = conv_norm_act(x, conv, self.mode)
        before = x
        for pool in self.spec.pools:
            x = functions.pool(x, pool)
        if self.spec.pool_conv:
            x = Projection(self.spec.pool_conv, self.mode, name="pool")(x)
        return before, x


class PostBlock(nn.Module):
    """v1 (He 2015): convolution, norm, activation; the activation again after the addition."""

    spec: Block
    mode: Mode

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        """The block's output for its input."""
        block, mode, y = self.spec, self.mode, x
        for i, conv in enumerate(block.convs):
            if i == len(block.convs) - 1:
                y = _drop(self, y, block.dropout_rate, functions.dropout)
            y = conv_norm_act(y, conv, mode)
        y = _finish_branch(self, y)
        return functions.activate(y + _shortcut(x, x, block.shortcut, mode), block.activation)


class PreBlock(nn.Module):
    """v2 (He 2016): norm, activation, convolution; a projection reads the first activation."""

    spec: Block
    mode: Mode

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        """The block's output for its input."""
        block, mode, y, activated = self.spec, self.mode, x, x
        for i, conv in enumerate(block.convs):
            if conv.norm:
                y = Normalization(conv.norm, mode, name=conv.norm.name)(y)
            y = functions.activate(y, conv.activation)
            if i == 0:
                activated = y
            if i == len(block.convs) - 1:
                y = _drop(self, y, block.dropout_rate, functions.dropout)
            y = Convolution(conv, mode, name=conv.name)(y)
        return _finish_branch(self, y) + _shortcut(x, activated, block.shortcut, mode)


class Projection(nn.Module):
    """A named scope for a convolution and its norm, in shortcuts and in place of a stem's pool."""

    spec: Conv
    mode: Mode

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        """Convolved, normalised, activated, as far as the plan says."""
        return conv_norm_act(x, self.spec, self.mode)


def conv_norm_act(x: Images, conv: Conv, mode: Mode) -> Maps:
    """Convolution, norm, activation and pool in this order, as submodules of the calling module."""
    x = Convolution(conv, mode, name=conv.name)(x)
    if conv.norm:
        x = Normalization(conv.norm, mode, name=conv.norm.name)(x)
    x = functions.activate(x, conv.activation)
    return functions.pool(x, conv.pool) if conv.pool else x


def _shortcut(x: Images, activated: Images, shortcut: Shortcut, mode: Mode) -> Maps:
    x = activated if shortcut.conv else x
    if shortcut.pool:
        x = functions.pool(x, shortcut.pool)
    if shortcut.conv:
        x = Projection(shortcut.conv, mode, name="shortcut")(x)
    return functions.pad_channels(x, shortcut.pad_features) if shortcut.pad_features else x


def _finish_branch(module: PostBlock | PreBlock, y: Images) -> Images:
    block = module.spec
    if block.attention:
        y = ChannelAttention(block.attention, module.mode, name="attention")(y)
    return _drop(module, y, block.drop_path_rate, functions.drop_path)


def _drop(module: PostBlock | PreBlock, x: Images, rate: float, how: functions.Drop) -> Images:
    if not module.mode.train or rate == 0:
        return x
    return how(x, rate, module.make_rng("dropout"))
