"""Every architecture by name, as data.

Plain names mean what torchvision and timm mean by them (`resnet50` is v1.5: `resnet50_v1` is the
paper's); other systems' nets carry their family: `keras_`, `kerascv_`, `kerashub_`, `flax_`,
`slim_`, `cifar_`, `mlperf_`. Letters as in timm:
c, s: deep stem; d: deep stem and average-pooled shortcuts; t: tiered stem and the same; aa, blur:
anti-aliased; se, eca: channel attention; rs: ResNet-RS; bit: Big Transfer.
"""

import difflib
import fnmatch
import re
from typing import Any

from resnetjax.config import ResNetConfig as Net
from resnetjax.errors import UnknownName

_Fields = dict[str, Any]

# Blocks a stage, by the number of layers that they give a bottleneck net (and 18, 34: a basic one).
_18, _34, _50, _101, _152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_26, _200, _269 = (2, 2, 2, 2), (3, 24, 36, 3), (3, 30, 48, 8)

_BASIC: _Fields = {"block": "basic"}
_C: _Fields = {"stem": "deep"}
_S: _Fields = {"stem": "deep", "stem_width": 128}
_D: _Fields = {"stem": "deep", "shortcut": "avg_conv"}
_T: _Fields = {"stem": "tiered", "shortcut": "avg_conv"}
_AA: _Fields = {"antialias": "average"}
_BLUR: _Fields = {"antialias": "blur"}
_SE: _Fields = {"attention": "se"}
_ECA: _Fields = {"attention": "eca"}
_RS: _Fields = {**_D, **_SE, "se_ratio": 0.25, "stem_pool": "conv"}
_V2: _Fields = {"order": "pre", "shortcut_norm": False}
_GN: _Fields = {"norm": "group"}
_BIT: _Fields = {**_V2, **_GN, "stem_pool_value": "zero", "weight_standardization_eps": 1e-8}

# What is left of each block's three convolutions, stage by stage (Aflalo 2020, arXiv:2002.08258):
# timm's _pruned/ecaresnet50d_pruned.txt and ecaresnet101d_pruned.txt.
_PRUNED_50D = (
    ((47, 18, 19), (52, 22, 19), (64, 35, 19)),
    ((85, 37, 171), (107, 80, 171), (120, 85, 171), (125, 87, 171)),
    (
        (198, 126, 818), (255, 232, 818), (256, 233, 818), (253, 235, 818), (256, 225, 818),
        (256, 239, 818),
    ),
    ((492, 237, 2022), (512, 500, 2022), (512, 490, 2022)),
)  # fmt: skip
_PRUNED_101D = (
    ((45, 25, 26), (53, 20, 26), (60, 27, 26)),
    ((81, 24, 142), (93, 49, 142), (102, 54, 142), (122, 78, 142)),
    (
        (101, 25, 278), (239, 160, 278), (234, 156, 278), (250, 176, 278), (253, 191, 278),
        (251, 175, 278), (230, 128, 278), (244, 154, 278), (244, 159, 278), (238, 97, 278),
        (244, 149, 278), (253, 181, 278), (245, 119, 278), (255, 216, 278), (256, 201, 278),
        (253, 149, 278), (254, 141, 278), (256, 190, 278), (256, 217, 278), (255, 156, 278),
        (256, 155, 278), (256, 232, 278), (256, 214, 278),
    ),
    ((499, 289, 2042), (512, 512, 2042), (512, 502, 2042)),
)  # fmt: skip


def _x(groups: int, group_width: int) -> _Fields:
    return {"groups": groups, "group_width": group_width}


def _wide(factor: int) -> _Fields:
    """BiT's width factor, which widens the stem as well."""
    return {
        "stem_width": 64 * factor,
        "widths": tuple(factor * width for width in (64, 128, 256, 512)),
    }


# keras.applications: biases everywhere (v1) or where no norm follows (v2); the pool pads with zeros
# (F2-F5).
_KERAS_NORM: _Fields = {"norm_eps": 1.001e-5, "norm_decay": 0.99}
_KERAS: _Fields = {
    **_KERAS_NORM,
    "stride_on": "reduce",
    "conv_bias": "all",
    "stem_pool_value": "zero",
}
_KERAS_RESNEXT: _Fields = {**_KERAS_NORM, "stem_pool_value": "zero"}
_LAST: _Fields = {"stride_block": "last", "strides": (2, 2, 2, 1)}
_V2_BIAS: _Fields = {"conv_bias": ("stem", "conv3", "shortcut")}
_KERAS_V2: _Fields = {**_KERAS_NORM, **_V2, **_LAST, **_V2_BIAS, "stem_pool_value": "zero"}

_KERASCV: _Fields = {**_KERAS_NORM, "padding": "same", "stem_pool_padding": "same"}
_KERASCV_V2: _Fields = {**_KERASCV, **_V2, "stride_block": "last", "dilation_rule": "undilated"}
_KERASCV_V2_BASIC: _Fields = {
    **_KERASCV_V2, **_BASIC, "stride_on": "last_spatial", "conv_bias": ("stem", "shortcut"),
}  # fmt: skip

_FLAX: _Fields = {"padding": "same_blocks", "stem_pool_padding": "same"}
_SLIM: _Fields = {
    **_LAST,
    "stem_pool_padding": "same",
    "norm_decay": 0.997,
    "dilation_rule": "uniform",
}
_SLIM_V2: _Fields = {**_SLIM, **_V2, **_V2_BIAS, "num_classes": 1001}

_CIFAR: _Fields = {
    "stem": "conv3", "stem_width": 16, "stem_pool": "none", "widths": (16, 32, 64),
    "strides": (1, 2, 2), "dilations": (1, 1, 1), "num_classes": 10,
}  # fmt: skip
_A: _Fields = {"shortcut": "pad"}


def _cifar(depth: int, **fields: Any) -> Net:
    """He et al.'s CIFAR nets: 6n+2 layers of basic blocks; 164 and 1001 are 9n+2 of bottlenecks."""
    bottleneck = depth in (164, 1001)
    blocks = (depth - 2) // (9 if bottleneck else 6)
    kind = {} if bottleneck else _BASIC
    return Net(depths=(blocks,) * 3, **{**_CIFAR, **kind, **fields})


def _wrn(depth: int, factor: int) -> Net:
    """Zagoruyko and Komodakis's wide nets: (depth - 4) / 6 pre-activation basic blocks a stage."""
    widths = tuple(factor * width for width in (16, 32, 64))
    return Net(depths=((depth - 4) // 6,) * 3, **{**_CIFAR, **_BASIC, **_V2, "widths": widths})


_CIFAR_DEPTHS = (20, 32, 44, 56, 110, 164, 1001, 1202)

# What an architecture leaves to a file.
SIZES = ("num_classes", "head_widths", "in_channels")

ARCHITECTURES: dict[str, Net] = {
    # torchvision and timm, v1.5
    "resnet18": Net(depths=_18, **_BASIC),
    "resnet34": Net(depths=_34, **_BASIC),
    "resnet26": Net(depths=_26),
    "resnet50": Net(depths=_50),
    "resnet101": Net(depths=_101),
    "resnet152": Net(depths=_152),
    "resnet200": Net(depths=_200),
    "resnext50_32x4d": Net(depths=_50, **_x(32, 4)),
    "resnext101_32x4d": Net(depths=_101, **_x(32, 4)),
    "resnext101_32x8d": Net(depths=_101, **_x(32, 8)),
    "resnext101_32x16d": Net(depths=_101, **_x(32, 16)),
    "resnext101_32x32d": Net(depths=_101, **_x(32, 32)),
    "resnext101_64x4d": Net(depths=_101, **_x(64, 4)),
    "wide_resnet50_2": Net(depths=_50, group_width=128),
    "wide_resnet101_2": Net(depths=_101, group_width=128),
    # He 2015 as published (Caffe)
    "resnet50_v1": Net(depths=_50, stride_on="reduce"),
    "resnet101_v1": Net(depths=_101, stride_on="reduce"),
    "resnet152_v1": Net(depths=_152, stride_on="reduce"),
    # timm: other stems and shortcuts
    "resnet10t": Net(depths=(1, 1, 1, 1), **_BASIC, **_T),
    "resnet14t": Net(depths=(1, 1, 1, 1), **_T),
    "resnet18d": Net(depths=_18, **_BASIC, **_D),
    "resnet34d": Net(depths=_34, **_BASIC, **_D),
    "resnet26t": Net(depths=_26, **_T),
    "resnet26d": Net(depths=_26, **_D),
    "resnet50c": Net(depths=_50, **_C),
    "resnet50d": Net(depths=_50, **_D),
    "resnet50s": Net(depths=_50, **_S),
    "resnet50t": Net(depths=_50, **_T),
    "resnet50_gn": Net(depths=_50, **_GN),
    "resnet101c": Net(depths=_101, **_C),
    "resnet101d": Net(depths=_101, **_D),
    "resnet101s": Net(depths=_101, **_S),
    "resnet152c": Net(depths=_152, **_C),
    "resnet152d": Net(depths=_152, **_D),
    "resnet152s": Net(depths=_152, **_S),
    "resnet200d": Net(depths=_200, **_D),
    "resnext50d_32x4d": Net(depths=_50, **_D, **_x(32, 4)),
    # timm: channel attention
    "ecaresnet26t": Net(depths=_26, **_T, **_ECA),
    "ecaresnet50t": Net(depths=_50, **_T, **_ECA),
    "ecaresnet50d": Net(depths=_50, **_D, **_ECA),
    "ecaresnet50d_pruned": Net(depths=_50, **_D, **_ECA, pruned_features=_PRUNED_50D),
    "ecaresnet101d": Net(depths=_101, **_D, **_ECA),
    "ecaresnet101d_pruned": Net(depths=_101, **_D, **_ECA, pruned_features=_PRUNED_101D),
    "ecaresnet200d": Net(depths=_200, **_D, **_ECA),
    "ecaresnet269d": Net(depths=_269, **_D, **_ECA),
    "ecaresnetlight": Net(depths=(1, 1, 11, 3), shortcut="avg_conv", **_ECA),
    "ecaresnext26t_32x4d": Net(depths=_26, **_T, **_ECA, **_x(32, 4)),
    "ecaresnext50t_32x4d": Net(depths=_50, **_T, **_ECA, **_x(32, 4)),
    "seresnet18": Net(depths=_18, **_BASIC, **_SE),
    "seresnet34": Net(depths=_34, **_BASIC, **_SE),
    "seresnet50": Net(depths=_50, **_SE),
    "seresnet50t": Net(depths=_50, **_T, **_SE),
    "seresnet101": Net(depths=_101, **_SE),
    "seresnet152": Net(depths=_152, **_SE),
    "seresnet152d": Net(depths=_152, **_D, **_SE),
    "seresnet200d": Net(depths=_200, **_D, **_SE),
    "seresnet269d": Net(depths=_269, **_D, **_SE),
    "seresnext26d_32x4d": Net(depths=_26, **_D, **_SE, **_x(32, 4)),
    "seresnext26t_32x4d": Net(depths=_26, **_T, **_SE, **_x(32, 4)),
    "seresnext50_32x4d": Net(depths=_50, **_SE, **_x(32, 4)),
    "seresnext101_32x4d": Net(depths=_101, **_SE, **_x(32, 4)),
    "seresnext101_32x8d": Net(depths=_101, **_SE, **_x(32, 8)),
    "seresnext101d_32x8d": Net(depths=_101, **_D, **_SE, **_x(32, 8)),
    "seresnext101_64x4d": Net(depths=_101, **_SE, **_x(64, 4)),
    "senet154": Net(depths=_152, **_S, **_SE, **_x(64, 4), shortcut_kernel=3, reduce_first=2),
    # timm: anti-aliased
    "resnetblur18": Net(depths=_18, **_BASIC, **_BLUR),
    "resnetblur50": Net(depths=_50, **_BLUR),
    "resnetblur50d": Net(depths=_50, **_D, **_BLUR),
    "resnetblur101d": Net(depths=_101, **_D, **_BLUR),
    "resnetaa34d": Net(depths=_34, **_BASIC, **_D, **_AA),
    "resnetaa50": Net(depths=_50, **_AA),
    "resnetaa50d": Net(depths=_50, **_D, **_AA),
    "resnetaa101d": Net(depths=_101, **_D, **_AA),
    "seresnetaa50d": Net(depths=_50, **_D, **_AA, **_SE),
    "seresnextaa101d_32x8d": Net(depths=_101, **_D, **_AA, **_SE, **_x(32, 8)),
    "seresnextaa201d_32x8d": Net(
        depths=(3, 24, 36, 4), **{**_D, "stem_width": 128}, **_AA, **_SE, **_x(32, 8)
    ),
    # timm: ResNet-RS (Bello 2021)
    "resnetrs50": Net(depths=_50, **_RS),
    "resnetrs101": Net(depths=_101, **_RS),
    "resnetrs152": Net(depths=_152, **_RS),
    "resnetrs200": Net(depths=_200, **_RS),
    "resnetrs270": Net(depths=(4, 29, 53, 4), **_RS),
    "resnetrs350": Net(depths=(4, 36, 72, 4), **_RS),
    "resnetrs420": Net(depths=(4, 44, 87, 4), **_RS),
    "test_resnet": Net(
        block=("basic", "basic", "bottleneck", "basic"), depths=(1, 1, 1, 1),
        widths=(32, 48, 48, 96), **{**_D, "stem_width": 32},
    ),
    # timm: v2
    "resnetv2_18": Net(depths=_18, **_BASIC, **_V2),
    "resnetv2_18d": Net(depths=_18, **_BASIC, **_V2, **_D),
    "resnetv2_34": Net(depths=_34, **_BASIC, **_V2),
    "resnetv2_34d": Net(depths=_34, **_BASIC, **_V2, **_D),
    "resnetv2_50": Net(depths=_50, **_V2),
    "resnetv2_50d": Net(depths=_50, **_V2, **_D),
    "resnetv2_50t": Net(depths=_50, **_V2, **_T),
    "resnetv2_50d_gn": Net(depths=_50, **_V2, **_D, **_GN),
    "resnetv2_101": Net(depths=_101, **_V2),
    "resnetv2_101d": Net(depths=_101, **_V2, **_D),
    "resnetv2_152": Net(depths=_152, **_V2),
    "resnetv2_152d": Net(depths=_152, **_V2, **_D),
    # Big Transfer (Kolesnikov 2019), with timm's epsilon in the weight standardisation
    "resnetv2_50x1_bit": Net(depths=_50, **_BIT),
    "resnetv2_50x3_bit": Net(depths=_50, **_BIT, **_wide(3)),
    "resnetv2_101x1_bit": Net(depths=_101, **_BIT),
    "resnetv2_101x3_bit": Net(depths=_101, **_BIT, **_wide(3)),
    "resnetv2_152x2_bit": Net(depths=_152, **_BIT, **_wide(2)),
    "resnetv2_152x4_bit": Net(depths=_152, **_BIT, **_wide(4)),
    # keras.applications
    "keras_resnet50": Net(depths=_50, **_KERAS),
    "keras_resnet101": Net(depths=_101, **_KERAS),
    "keras_resnet152": Net(depths=_152, **_KERAS),
    "keras_resnext50": Net(depths=_50, **_KERAS_RESNEXT, **_x(32, 4)),
    "keras_resnext101": Net(depths=_101, **_KERAS_RESNEXT, **_x(32, 4)),
    "keras_resnet50v2": Net(depths=_50, **_KERAS_V2),
    "keras_resnet101v2": Net(depths=_101, **_KERAS_V2),
    "keras_resnet152v2": Net(depths=_152, **_KERAS_V2),
    # KerasCV
    "kerascv_resnet18": Net(depths=_18, **_BASIC, **_KERASCV),
    "kerascv_resnet34": Net(depths=_34, **_BASIC, **_KERASCV),
    "kerascv_resnet50": Net(depths=_50, stride_on="reduce", **_KERASCV),
    "kerascv_resnet101": Net(depths=_101, stride_on="reduce", **_KERASCV),
    "kerascv_resnet152": Net(depths=_152, stride_on="reduce", **_KERASCV),
    "kerascv_resnet18v2": Net(depths=_18, **_KERASCV_V2_BASIC),
    "kerascv_resnet34v2": Net(depths=_34, **_KERASCV_V2_BASIC),
    "kerascv_resnet50v2": Net(depths=_50, **_KERASCV_V2, **_V2_BIAS),
    "kerascv_resnet101v2": Net(depths=_101, **_KERASCV_V2, **_V2_BIAS),
    "kerascv_resnet152v2": Net(depths=_152, **_KERASCV_V2, **_V2_BIAS),
    # KerasHub's, of PaddleClas's ResNet-vd, as far as they are no resnet*d: the basic blocks of
    # each first block project in the first stage too, and 200 layers are divided otherwise.
    "kerashub_resnet18_vd": Net(depths=_18, **_BASIC, **_D, projections=(True,) * 4),
    "kerashub_resnet34_vd": Net(depths=_34, **_BASIC, **_D, projections=(True,) * 4),
    "kerashub_resnet200_vd": Net(depths=(3, 12, 48, 3), **_D),
    # Flax's ImageNet example
    "flax_resnet18": Net(depths=_18, **_BASIC, **_FLAX),
    "flax_resnet34": Net(depths=_34, **_BASIC, **_FLAX),
    "flax_resnet50": Net(depths=_50, **_FLAX),
    "flax_resnet101": Net(depths=_101, **_FLAX),
    "flax_resnet152": Net(depths=_152, **_FLAX),
    "flax_resnet200": Net(depths=_200, **_FLAX),
    # slim and TF Hub
    "slim_resnet_v1_50": Net(depths=_50, **_SLIM),
    "slim_resnet_v1_101": Net(depths=_101, **_SLIM),
    "slim_resnet_v1_152": Net(depths=_152, **_SLIM),
    "slim_resnet_v1_200": Net(depths=_200, **_SLIM),
    "slim_resnet_v2_50": Net(depths=_50, **_SLIM_V2),
    "slim_resnet_v2_101": Net(depths=_101, **_SLIM_V2),
    "slim_resnet_v2_152": Net(depths=_152, **_SLIM_V2),
    "slim_resnet_v2_200": Net(depths=_200, **_SLIM_V2),
    # CIFAR: v1 with option A, v1 with option B, v2
    **{f"cifar_resnet{depth}": _cifar(depth, **_A) for depth in _CIFAR_DEPTHS},
    **{f"cifar_resnet{depth}b": _cifar(depth) for depth in _CIFAR_DEPTHS},
    **{f"cifar_resnetv2_{depth}": _cifar(depth, **_V2) for depth in _CIFAR_DEPTHS},
    "cifar_wrn28_10": _wrn(28, 10),
    "cifar_wrn40_4": _wrn(40, 4),
    # MLPerf Tiny's Keras net: SAME padding, biases, bare shortcuts, Keras's default norm
    "mlperf_tiny_resnet8": Net(
        depths=(1, 1, 1), **{**_CIFAR, **_BASIC}, padding="same", conv_bias="all",
        shortcut_norm=False, norm_eps=1e-3, norm_decay=0.99,
    ),
}  # fmt: skip

ALIASES: dict[str, str] = {
    "resnet50_v1.5": "resnet50",
    "resnet50_v1b": "resnet50",
    "wrn_28_10": "cifar_wrn28_10",
    "wrn_40_4": "cifar_wrn40_4",
}


def names(glob: str = "*") -> tuple[str, ...]:
    """The architectures whose name matches a shell pattern, in the order of this file.

    Example:
        >>> names("resnet*v2_18*")
        ('resnetv2_18', 'resnetv2_18d')
    """
    return tuple(name for name in ARCHITECTURES if fnmatch.fnmatchcase(name, glob))


def get(name: str) -> Net:
    """The config of an architecture, by name or alias.

    Raises:
        UnknownName: With the nearest names.
    """
    name = ALIASES.get(name, name)
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, [*ARCHITECTURES, *ALIASES], n=3, cutoff=0.5)
        hint = f": did you mean {', '.join(near)}?" if near else ""
        if re.search(r"[/\\]|\.(pth|pt|th|bin|h5|keras|npz|msgpack|safetensors)$", name):
            hint = ", and there is no such file or directory"
        raise UnknownName(f"no architecture is called {name!r}{hint} (names() lists all)")
    return ARCHITECTURES[name]


def architecture_of(config: Net) -> str | None:
    """The architecture that is this net, its head and input channels aside.

    Example:
        >>> architecture_of(get("resnet50").replace(num_classes=10))
        'resnet50'
    """
    sizes = {field: getattr(config, field) for field in SIZES}
    for name, known in ARCHITECTURES.items():
        if known.replace(**sizes) == config:
            return name
    return None
