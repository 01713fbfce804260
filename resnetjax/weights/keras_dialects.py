"""What keras.applications, KerasCV and KerasHub call our arrays.

Keras keeps kernels as we do. Names are those of `keras/src/applications/resnet.py` (3.15), of
KerasCV's `resnet_v1_backbone.py` and `resnet_v2_backbone.py` (0.9), of KerasHub's
`resnet_backbone.py` (0.32), and of `keras_applications`: `resnet50.py` (1.0.2, of 2018) and, for
ResNeXt, `resnet_common.py` (1.0.8, of 2019).
"""

import dataclasses
from collections.abc import Iterator

from resnetjax.config import HALF_MEAN, HALF_STD, Preprocess, ResNetConfig
from resnetjax.plan import plan
from resnetjax.weights.dialect import ANY, Depthwise, Dialect, Layout, Rule
from resnetjax.weights.numbered import Numbered

KERAS_LEAVES = {
    **dict.fromkeys(("conv", "dense"), "kernel"),
    "bias": "bias",
    "scale": "gamma",
    "shift": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}
_KERAS = {
    "leaf_names": KERAS_LEAVES,
    "layouts": dict[str, Layout](),
    "separator": "/",
    "listing": "aligned",
    "head": "predictions",  # in keras_applications, before TensorFlow 2.2, `probs`
    "own_head_names": ".*",
}

# "caffe" and "tf" of keras.applications.imagenet_utils (F6); images are squashed by load_img.
_SQUASH = {"resize_mode": "squash", "resize_px": (224, 224), "interpolation": "nearest"}
CAFFE = Preprocess(
    **_SQUASH,
    divisor=1.0,
    mean=(103.939, 116.779, 123.68),
    std=(1.0, 1.0, 1.0),
    channel_order="bgr",
)
_TF = Preprocess(**_SQUASH, mean=HALF_MEAN, std=HALF_STD)
_UNIT = Preprocess(**_SQUASH, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

_NORM = {"norm_eps": 1.001e-5, "norm_decay": 0.99}
_V2 = {"order": "pre", "shortcut_norm": False}
_V2_BIAS = ("stem", "conv3", "shortcut")


def _block_rules(block: str, *, pre: str) -> tuple[Rule, ...]:
    """Rules of names such as `<block>_1_conv`; `pre` ends the first norm's of a v2 block."""
    stage = "stage{s}_block{b}"
    return (
        Rule(f"{stage}/conv{{n}}", f"{block}_{{n}}_conv"),
        Rule(f"{stage}/norm1", f"{block}_{pre}", {"order": ("pre",)}),
        Rule(f"{stage}/norm{{n}}", f"{block}_{{n0}}_bn", {"order": ("pre",)}),
        Rule(f"{stage}/norm{{n}}", f"{block}_{{n}}_bn"),
        Rule(f"{stage}/shortcut/conv", f"{block}_0_conv"),
        Rule(f"{stage}/shortcut/norm", f"{block}_0_bn"),
    )


_ENDS = (
    Rule("stem/conv{n}", "conv{n}_conv"),
    Rule("stem/norm{n}", "conv{n}_bn"),
    Rule("norm", "post_bn"),
    Rule("head/hidden{n}", "hidden{n}"),
    Rule("head", "predictions"),
)
_APPLICATIONS = (*_block_rules("conv{s1}_block{b}", pre="preact_bn"), *_ENDS)
_KERASCV = (*_block_rules("v2_stack_{s0}_block{b}", pre="use_preactivation_bn"), *_ENDS)
_KERASHUB = (*_block_rules("stack{s0}_block{b0}", pre="pre_activation_bn"), *_ENDS)

KERAS = Dialect(
    name="keras",
    rules=_APPLICATIONS,
    **_KERAS,
    preprocess=CAFFE,
    families=("keras_resnet50", "keras_resnet101", "keras_resnet152"),
    base={**_NORM, "stride_on": "reduce", "conv_bias": "all", "stem_pool_value": "zero"},
    expresses={"projections": ANY, "head_widths": ANY},
)

KERAS_V2 = Dialect(
    name="keras_v2",
    rules=_APPLICATIONS,
    **_KERAS,
    preprocess=_TF,
    families=("keras_resnet*v2",),
    base={
        **_NORM,
        **_V2,
        "conv_bias": _V2_BIAS,
        "stride_block": "last",
        "strides": (2, 2, 2, 1),
        "stem_pool_value": "zero",
    },
    expresses={"projections": ANY, "head_widths": ANY},
)

# The 3x3 of a block is a DepthwiseConv2D, and a fixed reduction (F10): a Lambda without weights,
# or before 1.0.8 a 1x1 of zeros and ones, `_2_gconv`, which says nothing of the net.
KERAS_RESNEXT = Dialect(
    name="keras_resnext",
    rules=(
        Rule("stage{s}_block{b}/conv2", "conv{s1}_block{b}_2_conv", layout="depthwise"),
        *_APPLICATIONS,
    ),
    **{
        **_KERAS,
        "leaf_names": {**KERAS_LEAVES, "depthwise": "depthwise_kernel"},
        "layouts": {"depthwise": Depthwise()},
    },
    preprocess=Preprocess(**_SQUASH),
    families=("keras_resnext*",),
    base={**_NORM, "stem_pool_value": "zero"},
    expresses={"groups": ANY, "group_width": ANY, "projections": ANY, "head_widths": ANY},
    ignored=r".*_2_gconv/kernel",
)

_LETTERS = "{s1}{b_letter}_branch"
KERAS_2017 = Dialect(
    name="keras_2017",
    rules=(
        Rule("stem/conv1", "conv1"),
        Rule("stem/norm1", "bn_conv1"),
        Rule("stage{s}_block{b}/conv{n}", f"res{_LETTERS}2{{n_letter}}"),
        Rule("stage{s}_block{b}/norm{n}", f"bn{_LETTERS}2{{n_letter}}"),
        Rule("stage{s}_block{b}/shortcut/conv", f"res{_LETTERS}1"),
        Rule("stage{s}_block{b}/shortcut/norm", f"bn{_LETTERS}1"),
        Rule("head/hidden{n}", "hidden{n}"),
        Rule("head", "fc1000"),
    ),
    **{**_KERAS, "head": "fc1000"},
    preprocess=CAFFE,
    families=("keras_resnet50",),
    base={**KERAS.base, "norm_eps": 1e-3},  # Keras's default
    expresses={"head_widths": ANY},
)

KERASCV = Dialect(
    name="kerascv",
    rules=_KERASCV,
    **_KERAS,
    preprocess=_UNIT,
    families=("kerascv_resnet18", "kerascv_resnet34", "kerascv_resnet50", "kerascv_resnet101",
              "kerascv_resnet152"),
    base={**_NORM, "padding": "same", "stem_pool_padding": "same"},
    expresses={
        "block": ("basic", "bottleneck"),
        "stride_on": ("spatial", "reduce"),
        "strides": ANY,
        "projections": ANY,
        "head_widths": ANY,
    },
)  # fmt: skip

KERASCV_V2 = Dialect(
    name="kerascv_v2",
    rules=_KERASCV,
    **_KERAS,
    preprocess=_UNIT,
    families=("kerascv_resnet*v2",),
    base={
        **KERASCV.base,
        **_V2,
        "stride_block": "last",
        "dilation_rule": "undilated",
        "conv_bias": _V2_BIAS,
    },
    expresses={
        "block": ("basic", "bottleneck"),
        "stride_on": ("spatial", "last_spatial"),
        "conv_bias": (_V2_BIAS, ("stem", "shortcut")),
        "strides": ANY,
        "dilations": ANY,
        "projections": ANY,
        "head_widths": ANY,
    },
)


def _kerashub_lacks(config: ResNetConfig) -> Iterator[tuple[str, str]]:
    """As `ResNetBackbone` puts its blocks together (models/resnet/resnet_backbone.py)."""
    vd, pre = config.shortcut == "avg_conv", config.order == "pre"
    if vd and pre:
        yield "shortcut", "KerasHub has 'conv' with order='pre'"
    projects = tuple(stage.blocks[0].shortcut.conv is not None for stage in plan(config).stages)
    theirs = (vd or config.blocks[0] == "bottleneck", *(True for _ in config.depths[1:]))
    if projects != theirs:
        yield "projections", f"KerasHub has {theirs}"


KERASHUB = Dialect(
    name="kerashub",
    rules=_KERASHUB,
    **_KERAS,
    preprocess=Preprocess(),
    families=("resnet18", "resnet34", "resnet26", "resnet50", "resnet101", "resnet152",
              "resnet[0-9]*d", "resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_101",
              "resnetv2_152", "kerashub_*"),
    base={},
    expresses={
        "block": ("basic", "bottleneck"),
        "order": ("post", "pre"),
        "shortcut_norm": (True, False),
        "stem": ("conv7", "deep"),
        "stem_width": ANY,
        "shortcut": ("conv", "avg_conv"),
        "strides": ANY,
        "projections": ANY,
    },
    lacks=_kerashub_lacks,
)  # fmt: skip

# Nets like that of Keras's CIFAR-10 example, from which MLPerf Tiny's is: biases everywhere, bare
# projections, Keras's default epsilon, pixels as they are.
KERAS_NUMBERED = Dialect(
    name="keras_numbered",
    rules=(),
    numbered=Numbered(projection="last"),
    **{**_KERAS, "head": "dense"},
    preprocess=Preprocess(
        crop_px=(32, 32),
        resize_mode="squash",
        resize_px=(32, 32),
        divisor=1.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    families=("mlperf_tiny_resnet8",),
    base={"padding": "same", "norm_eps": 1e-3, "norm_decay": 0.99},
    expresses={
        "block": ("basic", "bottleneck"),
        "stride_on": ("spatial", "reduce"),
        "shortcut_norm": (True, False),
        "conv_bias": ("none", "all"),
        "stem": ("conv3", "conv7"),
        "stem_width": ANY,
        "stem_pool": ("none", "max"),
        "projections": ANY,
        "head_widths": ANY,
    },
)
KERAS_NUMBERED_FIRST = dataclasses.replace(
    KERAS_NUMBERED, name="keras_numbered_first", numbered=Numbered(projection="first"), families=()
)

# Files of Keras 2.13 to 2.15 that name no layers: their groups count them as the model lists them.
KERAS_ORDER = Dialect(
    name="keras_order",
    rules=(),
    numbered=Numbered(projection="aligned"),
    **{**_KERAS, "head": "dense"},
    preprocess=CAFFE,
    families=("keras_resnet*", "kerascv_*"),
    base={},
    expresses={},
)

# Whose files those of KERAS_ORDER are.
IN_ORDER = (KERAS, KERAS_V2, KERASCV, KERASCV_V2)

ALL = (
    KERAS,
    KERAS_V2,
    KERAS_RESNEXT,
    KERAS_2017,
    KERASCV,
    KERASCV_V2,
    KERASHUB,
    KERAS_NUMBERED,
    KERAS_NUMBERED_FIRST,
    KERAS_ORDER,
)
