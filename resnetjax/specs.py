"""What a plan consists of: convolutions, norms, pools, shortcuts as plain data. Imports no JAX."""

from dataclasses import dataclass
from typing import Literal

from resnetjax.config import Activation

Padding = int | Literal["same"]
"""Pixels on every side, or TensorFlow's SAME."""


@dataclass(frozen=True)
class Pool:
    """A pooling window. A max-pool of size 1 is plain subsampling."""

    kind: Literal["max", "average", "blur"]
    size: int
    stride: int
    padding: Padding = 0
    pad_value: Literal["-inf", "zero"] = "-inf"
    count_padding: bool = False  # whether an average counts the padding's zeros


@dataclass(frozen=True)
class Norm:
    """Batch or group norm over the channels; what inference makes of batch norm is affine."""

    name: str
    features: int
    kind: Literal["batch", "group", "affine"]
    groups: int
    eps: float
    decay: float
    zero_init: bool = False


@dataclass(frozen=True)
class Conv:
    """A convolution with the norm and activation that belong to it.

    They follow it in the stem, in shortcuts and in v1 blocks, and precede it in v2 blocks. `pool`
    comes last (anti-aliasing). `form` is how it is computed: by XLA's convolution, as the matrix
    product that a 1x1 convolution is, or by Winograd's algorithm, whose kernels are stored
    transformed (`resnetjax.nn.winograd`).
    """

    name: str
    in_features: int
    features: int
    kernel: int
    stride: int
    dilation: int
    groups: int
    padding: Padding
    bias: bool
    standardize_eps: float | None
    norm: Norm | None = None
    activation: Activation | None = None
    pool: Pool | None = None
    zero_init: bool = False
    form: Literal["xla", "dot", "winograd"] = "xla"

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Of the array: height, width, in, out."""
        edge = 4 if self.form == "winograd" else self.kernel
        return edge, edge, self.in_features // self.groups, self.features


@dataclass(frozen=True)
class Attention:
    """Channel attention: squeeze-excite with `hidden` features, or ECA with a `kernel`."""

    kind: Literal["se", "eca"]
    features: int
    hidden: int
    kernel: int


@dataclass(frozen=True)
class Shortcut:
    """What happens to a block's input on its way to the addition: nothing, if all is empty.

    Attributes:
        pool: Applied first.
        conv: The projection; in v2 it reads the block's activated input, else the input itself.
        pad_features: Channels of zeros added, half before and half after.
    """

    pool: Pool | None = None
    conv: Conv | None = None
    pad_features: int = 0


@dataclass(frozen=True)
class Block:
    """One residual block."""

    name: str
    order: Literal["post", "pre"]
    convs: tuple[Conv, ...]
    shortcut: Shortcut
    attention: Attention | None
    activation: Activation | None  # after the addition
    drop_path_rate: float
    dropout_rate: float

    @property
    def features(self) -> int:
        """Channels of the block's output."""
        return self.convs[-1].features


@dataclass(frozen=True)
class Stage:
    """Blocks of one width; `stride` is relative to the image."""

    name: str
    blocks: tuple[Block, ...]
    stride: int


@dataclass(frozen=True)
class Stem:
    """The first convolutions, then the pools in turn, or a strided convolution in their place."""

    convs: tuple[Conv, ...]
    pools: tuple[Pool, ...]
    pool_conv: Conv | None


@dataclass(frozen=True)
class Dense:
    """A dense layer of the head and the activation after it."""

    name: str
    in_features: int
    features: int
    activation: Activation | None = None


@dataclass(frozen=True)
class Plan:
    """A whole net, from image to logits; `norm` and `norm_activation` are v2's last."""

    in_channels: int
    stem: Stem
    stages: tuple[Stage, ...]
    norm: Norm | None
    norm_activation: Activation | None
    features: int
    head_pool: Literal["average", "max"]
    dropout_rate: float
    head: tuple[Dense, ...]

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 where there is none."""
        return self.head[-1].features if self.head else 0
