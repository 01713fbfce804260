"""What a net is, what goes in and what comes out, as three frozen dataclasses that import no JAX.

`ResNetConfig` says what to build; `resnetjax.plan.plan` resolves it into the explicit list of
convolutions, norms and shortcuts that everything else reads.
"""

import dataclasses
import math
import operator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

from resnetjax.fields import check_types, construct, require

BlockKind = Literal["basic", "bottleneck"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
OutputActivation = Literal["softmax", "sigmoid", "none"]
ConvSite = Literal["stem", "conv1", "conv2", "conv3", "shortcut"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

# Statistics of ImageNet's training images in [0, 1], red first: torchvision, timm, Transformers.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of [0, 1] to [-1, 1]: BiT, and timm's "inception" statistics.
HALF_MEAN = (0.5, 0.5, 0.5)
HALF_STD = (0.5, 0.5, 0.5)
# Caffe's mean in [0, 255], blue first: keras.applications v1. TF-Slim v1 has the same, red first.
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)

# Beyond any net's edges, and small enough that a hostile configuration cannot ask for gigabytes.
MAX_EDGE_PX = 8192
MAX_BLOCKS = 2_000
MAX_STAGES = 16


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The architecture of one ResNet; the defaults are torchvision's ResNet-50 (v1.5).

    Attributes:
        block: Two 3x3 convolutions ("basic") or 1x1, 3x3, 1x1 with four times the width at the end
            ("bottleneck"); a tuple gives each stage its own.
        depths: Number of blocks of each stage.
        widths: Channels of the 3x3 convolutions of each stage (torchvision's planes).
        order: "post" (v1: convolution, norm, activation) or "pre" (v2: norm, activation,
            convolution).
        stride_on: Which convolution of a block carries its stride: "reduce" (a bottleneck's first
            1x1: v1),
            "spatial" (its 3x3, or a basic block's first: v1.5) or "last_spatial" (a basic block's
            second: KerasCV v2). With "last_spatial" only that convolution is dilated, unless
            `dilation_rule` is "uniform".
        stride_block: Whether a stage strides in its "first" block or, with a subsampled identity as
            shortcut, in its "last" (slim, keras.applications v2, KerasCV v2).
        strides: Stride of each stage.
        dilations: Dilation of each stage's 3x3 convolutions.
        dilation_rule: What a dilated stage's first block does: take the rate of the stage before in
            its first 3x3 ("previous": timm, torchvision), stay undilated ("undilated": KerasCV v2),
            or take the stage's own rate ("uniform": slim).
        output_stride: Asks for this total stride; the strides beyond it turn into dilations.
        stem: One 7x7 convolution of stride 2 ("conv7"), three 3x3 ("deep": half, half, full width;
            "tiered": 3/8, half, full width), or one 3x3 of stride 1 ("conv3", for CIFAR).
        stem_width: Channels that the stem puts out.
        stem_pool: A 3x3 max-pool of stride 2, a 3x3 convolution of stride 2 with norm and
            activation ("conv", as in ResNet-RS), or "none".
        stem_pool_padding: "torch" or "same", as `padding`, for the stem's pool.
        stem_pool_value: What the stem's max-pool is padded with. It matters in v2, where no ReLU
            comes first.
        shortcut: Projection by a strided 1x1 convolution, by average pool and 1x1 ("avg_conv": D
            variants), or none: subsample and pad the channels with zeros on both sides ("pad":
            option A of He et al.).
        shortcut_norm: Whether a projection is normalised; v2 never does.
        shortcut_kernel: Size of a strided projection's kernel: 1, or 3 in SENet-154.
        projections: Whether each stage's first block projects; None projects where the shape
            changes.
        antialias: Replace strides by stride 1 and a pool: binomial "blur" (Zhang 2019) or
            "average".
        groups: Groups of a bottleneck's 3x3 (ResNeXt's cardinality).
        group_width: Channels of each group where the width is 64 (torchvision's width_per_group).
        reduce_first: Divides the features of each block's first convolution (2 in SENet-154).
        pruned_features: What pruning left of each convolution's features: for each stage a tuple of
            its blocks, for each block a tuple of its convolutions, as `((47, 18, 19), ...)`. The
            last is the same in all blocks of a stage, which are added up. `widths` stay those of
            the net before, which still decides ECA's kernels (timm's pruned nets). None: all are
            left.
        padding: "torch" pads both sides alike; "same" as TensorFlow does, (0, 1) for stride 2 on
            even inputs; "same_blocks" is "same" but for the stem (Flax's ImageNet example).
        norm: Batch or group norm.
        norm_groups: Number of groups of a group norm.
        norm_eps: Added to the variance.
        norm_decay: Share of the running statistics kept at each update (1 - torch's momentum).
        conv_bias: Which convolutions have a bias: "none", "all", or a tuple of sites.
        weight_standardization_eps: None, or the epsilon within the square root that standardises
            each kernel.
        activation: After the stem and after each addition; in v2 of each block's first norm and the
            last one.
        inner_activation: Between a block's convolutions; None means `activation`.
        attention: Channel attention at the end of each residual branch: squeeze-excite, ECA, or
            none.
        se_ratio: Squeeze-excite's bottleneck, as a share of the block's output channels.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        block_dropout: Dropout before each block's last convolution (wide ResNets).
        head_pool: How the last feature map is pooled.
        head_widths: Features of dense layers before the head's last, each with `activation`; ()
            where there is no head.
        dropout: Dropout before each dense layer of the head.
        zero_init_residual: Start each residual branch at zero (last norm's scale; in v2 the last
            kernel).
        in_channels: Channels of the image.
        num_classes: Outputs of the head; 0 leaves the head away.

    Raises:
        ConfigError: A value is not allowed; the message names field, value and what is.

    Example:
        >>> ResNetConfig(depths=(3, 4, 6, 3)).block
        'bottleneck'
        >>> ResNetConfig(depths=(3, 4, 6, 3), stem="conv9")
        Traceback (most recent call last):
        ...
        resnetjax.errors.ConfigError: stem='conv9' is not allowed: use 'conv7', 'deep', 'tiered' or
        'conv3'
    """

    block: BlockKind | tuple[BlockKind, ...] = "bottleneck"
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    order: Literal["post", "pre"] = "post"
    stride_on: Literal["reduce", "spatial", "last_spatial"] = "spatial"
    stride_block: Literal["first", "last"] = "first"
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    dilation_rule: Literal["previous", "undilated", "uniform"] = "previous"
    output_stride: Literal[8, 16, 32] | None = None
    stem: Literal["conv7", "deep", "tiered", "conv3"] = "conv7"
    stem_width: int = 64
    stem_pool: Literal["max", "conv", "none"] = "max"
    stem_pool_padding: Literal["torch", "same"] = "torch"
    stem_pool_value: Literal["-inf", "zero"] = "-inf"
    shortcut: Literal["conv", "avg_conv", "pad"] = "conv"
    shortcut_norm: bool = True
    shortcut_kernel: Literal[1, 3] = 1
    projections: tuple[bool, ...] | None = None
    antialias: Literal["none", "blur", "average"] = "none"
    groups: int = 1
    group_width: int = 64
    reduce_first: int = 1
    pruned_features: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    padding: Literal["torch", "same", "same_blocks"] = "torch"
    norm: Literal["batch", "group"] = "batch"
    norm_groups: int = 32
    norm_eps: float = 1e-5
    norm_decay: float = 0.9
    conv_bias: Literal["none", "all"] | tuple[ConvSite, ...] = "none"
    weight_standardization_eps: float | None = None
    activation: Activation = "relu"
    inner_activation: Activation | None = None
    attention: Literal["none", "se", "eca"] = "none"
    se_ratio: float = 1 / 16
    drop_path_rate: float = 0.0
    block_dropout: float = 0.0
    head_pool: Literal["average", "max"] = "average"
    head_widths: tuple[int, ...] = ()
    dropout: float = 0.0
    zero_init_residual: bool = False
    in_channels: int = 3
    num_classes: int = 1000

    def __post_init__(self) -> None:
        check_types(self)
        stages = len(self.depths)
        for name in ("block", "widths", "strides", "dilations", "projections"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                require(
                    self, name, len(value) == stages, f"{stages} values, one for each of depths"
                )
        for name in ("depths", "widths", "strides", "dilations"):
            require(
                self, name, all(i >= 1 for i in getattr(self, name)) and stages, "1 or more each"
            )
        require(self, "depths", stages <= MAX_STAGES, f"{MAX_STAGES} stages at most")
        few = sum(self.depths) <= MAX_BLOCKS
        require(self, "depths", few, f"{MAX_BLOCKS} blocks in all at most")
        for name in (
            "stem_width",
            "groups",
            "group_width",
            "reduce_first",
            "norm_groups",
            "in_channels",
        ):
            require(self, name, getattr(self, name) >= 1, "1 or more")
        require(self, "num_classes", self.num_classes >= 0, "0 (no head) or more")
        require(self, "head_widths", all(i >= 1 for i in self.head_widths), "1 or more each")
        for name in ("drop_path_rate", "block_dropout", "dropout"):
            require(self, name, 0 <= getattr(self, name) < 1, "0 or more and below 1")
        require(self, "norm_decay", 0 <= self.norm_decay < 1, "0 or more and below 1")
        require(self, "norm_eps", self.norm_eps > 0, "above 0")
        require(self, "se_ratio", 0 < self.se_ratio <= 1, "above 0 and at most 1")
        epsilon = self.weight_standardization_eps
        require(
            self, "weight_standardization_eps", epsilon is None or epsilon > 0, "None or above 0"
        )
        if isinstance(self.block, tuple) and len(set(self.block)) == 1:
            object.__setattr__(self, "block", self.block[0])  # one spelling for one net
        if not self.num_classes:
            object.__setattr__(self, "head_widths", ())
        self._check_combinations()
        if self.pruned_features is not None:
            self._check_pruned(self.pruned_features)

    def _check_combinations(self) -> None:
        if "basic" in self.blocks:
            for name, only in (("groups", 1), ("group_width", 64)):
                require(self, name, getattr(self, name) == only, f"{only} with basic blocks")
            require(self, "stride_on", self.stride_on != "reduce", "'spatial' with basic blocks")
        if "bottleneck" in self.blocks:
            only = "'reduce' or 'spatial' with bottlenecks"
            require(self, "stride_on", self.stride_on != "last_spatial", only)
        if self.order == "pre":
            require(self, "shortcut_norm", not self.shortcut_norm, "False with order='pre'")
            require(self, "antialias", self.antialias == "none", "'none' with order='pre'")
        if self.antialias != "none":
            require(self, "stem_pool", self.stem_pool != "conv", "'max' or 'none' with antialias")
        if self.stem == "deep":
            require(
                self, "stem_width", self.stem_width % 2 == 0, "a multiple of 2 with stem='deep'"
            )
        if self.stem == "tiered":
            require(
                self, "stem_width", self.stem_width % 8 == 0, "a multiple of 8 with stem='tiered'"
            )
        if self.norm == "group":
            groups = math.gcd(self.stem_width, *self.widths)
            fits = groups % self.norm_groups == 0
            require(self, "norm_groups", fits, f"a divisor of stem_width and widths (of {groups})")
        if self.output_stride is not None:
            plain = all(rate == 1 for rate in self.dilations)
            require(
                self, "dilations", plain, "1 in every stage with output_stride, which sets them"
            )
            most = self.stem_stride * math.prod(self.strides)
            require(
                self, "output_stride", self.output_stride <= most, f"at most the net's own, {most}"
            )
            reached = list(accumulate(self.strides, operator.mul, initial=self.stem_stride))
            met = f"what the strides come to after a stage: one of {sorted(set(reached))}"
            require(self, "output_stride", self.output_stride in reached, met)

    def _check_pruned(self, stages: tuple[tuple[tuple[int, ...], ...], ...]) -> None:
        counted = tuple(map(len, stages)) == self.depths
        require(self, "pruned_features", counted, f"one tuple a block, of depths={self.depths}")
        for number, (kind, blocks) in enumerate(zip(self.blocks, stages, strict=True), start=1):
            convs = 3 if kind == "bottleneck" else 2
            sized = all(len(block) == convs and min(block) >= 1 for block in blocks)
            each = f"{convs} values of 1 or more for each block of stage {number}"
            require(self, "pruned_features", sized, each)
            one = f"one last value in all blocks of stage {number}, which are added up"
            require(self, "pruned_features", len({block[-1] for block in blocks}) == 1, one)
        for name, only in (("groups", 1), ("reduce_first", 1)):
            require(self, name, getattr(self, name) == only, f"{only} with pruned_features")
        # Nobody has pruned these: what is left of option A's zeros and of squeeze-excite's
        # bottleneck is nowhere laid down.
        projects = "'conv' or 'avg_conv' with pruned_features"
        require(self, "shortcut", self.shortcut != "pad", projects)
        require(self, "attention", self.attention != "se", "'none' or 'eca' with pruned_features")

    @property
    def blocks(self) -> tuple[BlockKind, ...]:
        """The kind of block of each stage."""
        return self.block if isinstance(self.block, tuple) else (self.block,) * len(self.depths)

    @property
    def stem_stride(self) -> int:
        """Stride of the stem, its pooling included."""
        return (1 if self.stem == "conv3" else 2) * (1 if self.stem_pool == "none" else 2)

    @property
    def bias_sites(self) -> tuple[ConvSite, ...]:
        """The sites whose convolutions have a bias; basic blocks have no third."""
        if self.conv_bias == "none":
            return ()
        return tuple(
            site
            for site in get_args(ConvSite)
            if (self.conv_bias == "all" or site in self.conv_bias)
            and (site != "conv3" or "bottleneck" in self.blocks)
        )

    def replace(self, **changes: Any) -> "ResNetConfig":
        """A copy with some fields changed, validated like a new one."""
        return construct(type(self), {**self.to_json(), **changes})

    def to_json(self) -> dict[str, Any]:
        """Every field, in plain JSON types once serialised (tuples become lists)."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ResNetConfig":
        """The config that `to_json` described; lists become tuples.

        Raises:
            ConfigError: A field is unknown, missing or not allowed.
        """
        return construct(cls, values)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The evaluation transform that weights were published with; the defaults are torchvision's V1.

    An image is resized, its centre is cropped (black beyond its edges), then every channel becomes
    `(x / divisor - mean) / std`, with x in 0..255.

    Attributes:
        crop_px: Height and width of the output.
        resize_mode: "short_edge" brings the shorter edge to `resize_px` and truncates the longer
            (torchvision, timm, Transformers); "cover" scales until `resize_px` is covered and
            rounds (timm, where the output is not square); "squash" ignores the aspect ratio (Keras,
            timm, Transformers from 384 pixels on); "crop_to_aspect_ratio" squashes the largest
            centred window of `resize_px`'s aspect ratio (KerasHub); "none" leaves the image as it
            is.
        resize_px: One edge for "short_edge", height and width for the others, None for "none".
        interpolation: Pillow's filter.
        antialias: Whether the filter is widened where it shrinks, as Pillow's are but for
            "nearest"; without it are "bilinear", "bicubic" and "lanczos" (KerasHub).
        crop_rounding: Where the crop starts when an odd number of pixels goes: torchvision and timm
            round the half to even, Transformers rounds it down.
        divisor: 255.0 brings pixels to [0, 1], 127.5 to [0, 2], 1.0 leaves them.
        mean: One number per channel of the output.
        std: One number per channel of the output.
        channel_order: Of the output, so of `mean` and `std` too.

    Raises:
        ConfigError: A value is not allowed; the message names field, value and what is.

    Example:
        >>> Preprocess(resize_mode="squash", resize_px=(224, 224), interpolation="nearest").channels
        3
    """

    crop_px: tuple[int, int] = (224, 224)
    resize_mode: Literal["short_edge", "cover", "squash", "crop_to_aspect_ratio", "none"] = (
        "short_edge"
    )
    resize_px: int | tuple[int, int] | None = 256
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    crop_rounding: Literal["half_even", "floor"] = "half_even"
    divisor: float = 255.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        check_types(self)
        kind, wanted = {
            "short_edge": (int, "one edge"),
            "cover": (tuple, "(height, width)"),
            "squash": (tuple, "(height, width)"),
            "crop_to_aspect_ratio": (tuple, "(height, width)"),
            "none": (type(None), "None"),
        }[self.resize_mode]
        fits = isinstance(self.resize_px, kind)
        require(self, "resize_px", fits, f"{wanted} with resize_mode={self.resize_mode!r}")
        for name in ("crop_px", "resize_px"):
            value = getattr(self, name)
            edges = value if isinstance(value, tuple) else () if value is None else (value,)
            in_range = all(1 <= edge <= MAX_EDGE_PX for edge in edges)
            require(self, name, in_range, f"1 to {MAX_EDGE_PX} pixels")
        pillow_alone = self.interpolation in ("box", "hamming")
        require(
            self,
            "antialias",
            self.antialias or not pillow_alone,
            f"True with interpolation={self.interpolation!r}",
        )
        require(self, "divisor", self.divisor > 0, "above 0")
        require(self, "mean", self.mean, "one number per channel")
        same_length = len(self.std) == len(self.mean)
        require(self, "std", same_length, f"{len(self.mean)} values, one for each of mean")
        require(self, "std", all(value > 0 for value in self.std), "above 0 each")
        rgb = self.channel_order == "rgb" or self.channels == 3
        require(self, "channel_order", rgb, f"'rgb' with {self.channels} channels")

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return len(self.mean)

    def to_json(self) -> dict[str, Any]:
        """Every field, in plain JSON types once serialised (tuples become lists)."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocess":
        """The preprocessing that `to_json` described; lists become tuples.

        Raises:
            ConfigError: A field is unknown or not allowed.
        """
        return construct(cls, values)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What each output of a net stands for.

    Attributes:
        names: One per output. ImageNet's are not unique: "crane" is a bird and a machine.
        ids: One per output where the data set has them (WordNet's: "n02123045"), else None.
        activation: What turns logits into predictions.

    Raises:
        ConfigError: A value is not allowed; the message names field, value and what is.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None
    activation: OutputActivation = "softmax"

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "names", self.names, "one or more, one for each output")
        same_length = self.ids is None or len(self.ids) == len(self.names)
        require(self, "ids", same_length, f"{len(self.names)} values, one for each of names")

    def to_json(self) -> dict[str, Any]:
        """Every field, in plain JSON types once serialised (tuples become lists)."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Labels":
        """The labels that `to_json` described; lists become tuples.

        Raises:
            ConfigError: A field is unknown, missing or not allowed.
        """
        return construct(cls, values)
