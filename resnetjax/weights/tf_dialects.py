"""What slim (also TF Hub's modules of 2018) and Big Transfer call our arrays.

Names are those of `tf_slim/nets/resnet_v1.py` and `resnet_v2.py` (1.1), and of the npz files that
google-research/big_transfer publishes.
"""

from resnetjax.config import HALF_MEAN, HALF_STD, Preprocess
from resnetjax.weights.dialect import ANY, Dialect, Layout, Rule

_SLIM = {
    "leaf_names": {
        **dict.fromkeys(("conv", "dense"), "weights"),
        "bias": "biases",
        "scale": "gamma",
        "shift": "beta",
        "mean": "moving_mean",
        "var": "moving_variance",
    },
    "layouts": {"pointwise": Layout((0, 1), singletons=(0, 1))},
    "separator": "/",
    # Optimisers' slots, moving averages beside the weights, the step, the means of the images.
    "ignored": r".*/(Momentum|(RMSProp|Adam)(_1)?|ExponentialMovingAverage)|global_step|mean_rgb",
}


def _slim_rules(unit: str) -> tuple[Rule, ...]:
    inside = f"block{{s}}/unit_{{b}}/{unit}"
    stage = "stage{s}_block{b}"
    return (
        Rule("stem/conv1", "conv1"),
        Rule("stem/norm1", "conv1/BatchNorm"),
        Rule(f"{stage}/conv{{n}}", f"{inside}/conv{{n}}"),
        Rule(f"{stage}/norm1", f"{inside}/preact", {"order": ("pre",)}),
        Rule(f"{stage}/norm{{n}}", f"{inside}/conv{{n0}}/BatchNorm", {"order": ("pre",)}),
        Rule(f"{stage}/norm{{n}}", f"{inside}/conv{{n}}/BatchNorm"),
        Rule(f"{stage}/shortcut/conv", f"{inside}/shortcut"),
        Rule(f"{stage}/shortcut/norm", f"{inside}/shortcut/BatchNorm"),
        Rule("norm", "postnorm"),
        Rule("head", "logits", layout="pointwise"),
    )


_BASE = {
    "stride_block": "last",
    "strides": (2, 2, 2, 1),
    "stem_pool_padding": "same",
    "norm_decay": 0.997,
    "dilation_rule": "uniform",
}
_EXPRESSES = {"strides": ANY, "output_stride": (None, 4, 8, 16, 32), "projections": ANY}
# VGG's means, in the order of the image's channels (F6).
_MEANS = Preprocess(divisor=1.0, mean=(123.68, 116.78, 103.94), std=(1.0, 1.0, 1.0))

SLIM_V1 = Dialect(
    name="slim_v1",
    rules=_slim_rules("bottleneck_v1"),
    **_SLIM,
    preprocess=_MEANS,
    families=("slim_resnet_v1_*",),
    base=_BASE,
    expresses=_EXPRESSES,
    scope="resnet_v1_{layers}/",
)

SLIM_V2 = Dialect(
    name="slim_v2",
    rules=_slim_rules("bottleneck_v2"),
    **_SLIM,
    preprocess=Preprocess(
        crop_px=(299, 299), resize_mode="squash", resize_px=(299, 299), mean=HALF_MEAN, std=HALF_STD
    ),
    families=("slim_resnet_v2_*",),
    base={
        **_BASE, "order": "pre", "shortcut_norm": False, "conv_bias": ("stem", "conv3", "shortcut"),
    },
    expresses=_EXPRESSES,
    scope="resnet_v2_{layers}/",
)  # fmt: skip

_UNIT = "block{s}/unit{b:02d}"
_CONV = "standardized_conv2d"
_BIT_RULES = (
    Rule("stem/conv1", f"root_block/{_CONV}"),
    Rule("stage{s}_block{b}/conv{n}", f"{_UNIT}/{{n_letter}}/{_CONV}"),
    Rule("stage{s}_block{b}/norm{n}", f"{_UNIT}/{{n_letter}}/group_norm"),
    Rule("stage{s}_block{b}/shortcut/conv", f"{_UNIT}/a/proj/{_CONV}"),
    Rule("norm", "group_norm"),
    Rule("head", "head/conv2d", layout="pointwise"),
)
BIT = Dialect(
    name="bit",
    rules=_BIT_RULES,
    leaf_names={
        **dict.fromkeys(("conv", "dense"), "kernel"),
        "bias": "bias",
        "scale": "gamma",
        "shift": "beta",
    },
    layouts={
        "pointwise": Layout((0, 1), singletons=(0, 1)),
        # Some files keep them as (1, 1, 1, channels).
        **dict.fromkeys(("scale", "shift"), Layout((0,), singletons=(0, 1, 2), optional=True)),
    },
    separator="/",
    preprocess=Preprocess(
        crop_px=(224, 224), resize_mode="squash", resize_px=(224, 224), mean=HALF_MEAN, std=HALF_STD
    ),
    families=("resnetv2_*_bit",),
    base={
        "order": "pre",
        "shortcut_norm": False,
        "norm": "group",
        "stem_pool_value": "zero",
        "weight_standardization_eps": 1e-10,
    },
    expresses={"stem_width": ANY, "widths": ANY},
    scope="resnet/",
)

ALL = (SLIM_V1, SLIM_V2, BIT)
