"""What torchvision, timm, Transformers and akamaster call our arrays."""

import itertools
from collections.abc import Iterator
from operator import mul

from resnetjax.config import HALF_MEAN, HALF_STD, Preprocess, ResNetConfig
from resnetjax.plan import plan
from resnetjax.weights.dialect import ANY, Dialect, Layout, Rule

_TORCH_LEAVES = {
    "conv": "weight",
    "dense": "weight",
    "channel_conv": "weight",
    "scale": "weight",
    **dict.fromkeys(("bias", "shift"), "bias"),
    "mean": "running_mean",
    "var": "running_var",
}
_TORCH_LAYOUTS = {
    "conv": Layout((2, 3, 1, 0)),  # OIHW to HWIO, grouped or not
    "dense": Layout((1, 0)),
    "pointwise": Layout((1, 0), singletons=(2, 3)),  # a matrix kept as a 1x1 convolution
    "channel_conv": Layout((0,), singletons=(0, 1)),
}
_TORCH = {
    "leaf_names": _TORCH_LEAVES,
    "layouts": _TORCH_LAYOUTS,
    "counter": "num_batches_tracked",
    "metadata": {"format": "pt"},  # Transformers refuses a file that does not say so
}

# nn.Sequential in the head's place; of ours, with nothing but an activation between its layers.
_SEQUENTIAL = r"fc\.(?P<position>\d+)"

_DEEP = {"stem": ("deep", "tiered")}
_AVERAGED = {"shortcut": ("avg_conv",)}

_TORCHVISION_RULES = (
    Rule("stem/conv1", "conv1"),
    Rule("stem/norm1", "bn1"),
    Rule("stage{s}_block{b}/conv{n}", "layer{s}.{b0}.conv{n}"),
    Rule("stage{s}_block{b}/norm{n}", "layer{s}.{b0}.bn{n}"),
    Rule("stage{s}_block{b}/shortcut/conv", "layer{s}.{b0}.downsample.0"),
    Rule("stage{s}_block{b}/shortcut/norm", "layer{s}.{b0}.downsample.1"),
    Rule("head/hidden{n}", "fc.{n_even}"),
    Rule("head", "fc", {"head_widths": ((),)}),
    Rule("head", "fc.{head_even}"),
)


def _strided_lacks(config: ResNetConfig) -> Iterator[tuple[str, str]]:
    """As torchvision's and timm's `ResNet` stride: or they double the dilation in place of it."""
    first, *later = config.strides
    if first != 1 or not set(later) <= {1, 2}:
        yield "strides", "torchvision and timm have 1 in the first stage, then 1 or 2"
        return
    rates = tuple(itertools.accumulate((3 - stride for stride in later), mul, initial=1))
    if config.dilations != rates:
        yield "dilations", f"torchvision and timm have {rates} with strides={config.strides}"


def _torchvision_lacks(config: ResNetConfig) -> Iterator[tuple[str, str]]:
    yield from _strided_lacks(config)
    blocks = (block for stage in plan(config).stages for block in stage.blocks)
    if "basic" in config.blocks and any(conv.dilation > 1 for x in blocks for conv in x.convs):
        field = "output_stride" if config.output_stride else "dilations"
        yield field, "torchvision, unlike timm, dilates no basic block"


TORCHVISION = Dialect(
    name="torchvision",
    rules=_TORCHVISION_RULES,
    **_TORCH,
    head="fc",
    own_head_names=_SEQUENTIAL,
    preprocess=Preprocess(),
    families=("resnet*", "resnext*", "wide_resnet*"),
    base={},
    expresses={
        "block": ("basic", "bottleneck"),
        "groups": ANY,
        "group_width": ANY,
        # replace_stride_with_dilation
        "strides": ANY,
        "dilations": ANY,
        "output_stride": (None, 8, 16, 32),
        "head_widths": ANY,
    },
    lacks=_torchvision_lacks,
)

TIMM = Dialect(
    name="timm",
    rules=(
        Rule("stem/conv1", "conv1.0", _DEEP),
        Rule("stem/norm1", "conv1.1", _DEEP),
        Rule("stem/conv2", "conv1.3", _DEEP),
        Rule("stem/norm2", "conv1.4", _DEEP),
        Rule("stem/conv3", "conv1.6", _DEEP),
        Rule("stem/norm3", "bn1", _DEEP),
        Rule("stem/pool/conv", "maxpool.0"),
        Rule("stem/pool/norm", "maxpool.1"),
        Rule("stage{s}_block{b}/shortcut/conv", "layer{s}.{b0}.downsample.1", _AVERAGED),
        Rule("stage{s}_block{b}/shortcut/norm", "layer{s}.{b0}.downsample.2", _AVERAGED),
        Rule("stage{s}_block{b}/attention/reduce", "layer{s}.{b0}.se.fc1", layout="pointwise"),
        Rule("stage{s}_block{b}/attention/expand", "layer{s}.{b0}.se.fc2", layout="pointwise"),
        Rule("stage{s}_block{b}/attention/conv", "layer{s}.{b0}.se.conv"),
        *_TORCHVISION_RULES,
    ),
    **_TORCH,
    head="fc",
    own_head_names=_SEQUENTIAL,
    preprocess=Preprocess(),
    families=("resnet*", "resnext*", "wide_resnet*", "se*", "eca*", "test_resnet"),
    base={},
    expresses={
        **TORCHVISION.expresses,
        "block": ANY,
        "stem": ("conv7", "deep", "tiered"),
        "stem_width": ANY,
        "stem_pool": ("max", "conv"),
        "shortcut": ("conv", "avg_conv"),
        "shortcut_kernel": (1, 3),
        "reduce_first": (1, 2),
        "pruned_features": ANY,
        "antialias": ("none", "blur", "average"),
        "norm": ("batch", "group"),
        "attention": ("none", "se", "eca"),
        "se_ratio": (1 / 16, 0.25),
        "head_pool": ("average", "max"),
        "activation": ("relu", "gelu", "gelu_tanh", "silu"),
    },
    lacks=_strided_lacks,
)

TIMM_V2 = Dialect(
    name="timm_v2",
    rules=(
        Rule("stem/conv1", "stem.conv", {"stem": ("conv7",)}),
        Rule("stem/conv{n}", "stem.conv{n}", _DEEP),
        Rule("stem/norm{n}", "stem.norm{n}", _DEEP),
        Rule("stage{s}_block{b}/conv{n}", "stages.{s0}.blocks.{b0}.conv{n}"),
        Rule("stage{s}_block{b}/norm{n}", "stages.{s0}.blocks.{b0}.norm{n}"),
        Rule("stage{s}_block{b}/shortcut/conv", "stages.{s0}.blocks.{b0}.downsample.conv"),
        Rule("norm", "norm"),
        Rule("head", "head.fc", layout="pointwise"),
    ),
    **_TORCH,
    preprocess=Preprocess(interpolation="bicubic", mean=HALF_MEAN, std=HALF_STD),
    families=("resnetv2*",),
    base={"order": "pre", "shortcut_norm": False},
    expresses={
        "block": ("basic", "bottleneck"),
        "stem": ("conv7", "deep", "tiered"),
        "stem_width": ANY,
        "stem_pool_value": ("-inf", "zero"),
        "shortcut": ("conv", "avg_conv"),
        "norm": ("batch", "group"),
        "weight_standardization_eps": (None, 1e-8),
        "head_pool": ("average", "max"),
        "activation": ("relu", "gelu", "gelu_tanh", "silu"),
        "output_stride": (None, 8, 16, 32),
    },
)

TRANSFORMERS = Dialect(
    name="transformers",
    rules=(
        Rule("stem/conv1", "embedder.embedder.convolution"),
        Rule("stem/norm1", "embedder.embedder.normalization"),
        Rule("stage{s}_block{b}/conv{n}", "encoder.stages.{s0}.layers.{b0}.layer.{n0}.convolution"),
        Rule(
            "stage{s}_block{b}/norm{n}", "encoder.stages.{s0}.layers.{b0}.layer.{n0}.normalization"
        ),
        Rule(
            "stage{s}_block{b}/shortcut/conv",
            "encoder.stages.{s0}.layers.{b0}.shortcut.convolution",
        ),
        Rule(
            "stage{s}_block{b}/shortcut/norm",
            "encoder.stages.{s0}.layers.{b0}.shortcut.normalization",
        ),
        Rule("head", "classifier.1"),
    ),
    **_TORCH,
    preprocess=Preprocess(interpolation="bicubic", crop_rounding="floor"),
    families=("resnet[0-9]*",),
    base={"inner_activation": "relu"},
    expresses={
        "block": ("basic", "bottleneck"),
        "stem_width": ANY,
        "stride_on": ("spatial", "reduce"),
        # downsample_in_first_stage, of any number of stages
        "strides": tuple((first, *(2,) * more) for more in range(8) for first in (1, 2)),
        "activation": ("relu", "gelu", "gelu_tanh", "silu"),
    },
    root="resnet.",
)

AKAMASTER = Dialect(
    name="akamaster",
    rules=(
        Rule("stage{s}_block{b}/shortcut/conv", "layer{s}.{b0}.shortcut.0"),
        Rule("stage{s}_block{b}/shortcut/norm", "layer{s}.{b0}.shortcut.1"),
        Rule("head", "linear"),
        *_TORCHVISION_RULES[:4],
    ),
    **_TORCH,
    preprocess=Preprocess(crop_px=(32, 32), resize_mode="squash", resize_px=(32, 32)),
    families=("cifar_resnet*",),
    base={"block": "basic", "stem": "conv3", "stem_width": 16, "stem_pool": "none"},
    expresses={"shortcut": ("pad", "conv")},
)

# In the order in which `detect` tries them.
ALL = (AKAMASTER, TIMM_V2, TRANSFORMERS, TORCHVISION, TIMM)
