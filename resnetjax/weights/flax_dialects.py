"""What Flax's ImageNet example and the Flax nets of Transformers 4 call our arrays.

Names are those of flax `examples/imagenet/models.py` and of Transformers'
`modeling_flax_resnet.py`, whose collections `params` and `batch_stats` are merged: no name is in
both.
"""

from resnetjax.config import Preprocess
from resnetjax.weights.dialect import ANY, Dialect, Layout, Rule

_FLAX = {
    "leaf_names": {
        **dict.fromkeys(("conv", "dense"), "kernel"),
        **dict.fromkeys(("bias", "shift"), "bias"),
        "scale": "scale",
        "mean": "mean",
        "var": "var",
    },
    "layouts": dict[str, Layout](),
    "separator": "/",
}

_LAYER = "encoder/stages/{s0}/layers/{b0}"
TRANSFORMERS_FLAX = Dialect(
    name="transformers_flax",
    rules=(
        Rule("stem/conv1", "embedder/embedder/convolution"),
        Rule("stem/norm1", "embedder/embedder/normalization"),
        *(
            Rule(f"stage{{s}}_block{{b}}/{ours}{{n}}", f"{_LAYER}/layer/{part}/{theirs}", when)
            for part, when in (("layer_{n0}", {"block": ("basic",)}), ("{n0}", {}))
            for ours, theirs in (("conv", "convolution"), ("norm", "normalization"))
        ),
        Rule("stage{s}_block{b}/shortcut/conv", f"{_LAYER}/shortcut/convolution"),
        Rule("stage{s}_block{b}/shortcut/norm", f"{_LAYER}/shortcut/normalization"),
        Rule("head", "classifier/1"),
    ),
    **_FLAX,
    preprocess=Preprocess(interpolation="bicubic", crop_rounding="floor"),
    families=("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152"),
    base={},
    expresses={
        "block": ("basic", "bottleneck"),
        "stem_width": ANY,
        "strides": tuple((first, *(2,) * more) for more in range(8) for first in (1, 2)),
    },
    root="resnet/",
)

_KINDS = (("BottleneckResNetBlock", {"block": ("bottleneck",)}), ("ResNetBlock", {}))
FLAX_EXAMPLE = Dialect(
    name="flax_example",
    rules=(
        Rule("stem/conv1", "conv_init"),
        Rule("stem/norm1", "bn_init"),
        *(
            Rule(f"stage{{s}}_block{{b}}/{ours}", f"{kind}_{{block0}}/{theirs}", when)
            for kind, when in _KINDS
            for ours, theirs in (
                ("conv{n}", "Conv_{n0}"),
                ("norm{n}", "BatchNorm_{n0}"),
                ("shortcut/conv", "conv_proj"),
                ("shortcut/norm", "norm_proj"),
            )
        ),
        Rule("head", "Dense_0"),
    ),
    **_FLAX,
    preprocess=Preprocess(resize_px=256),
    families=("flax_resnet*",),
    base={"padding": "same_blocks", "stem_pool_padding": "same"},
    expresses={"block": ("basic", "bottleneck"), "stem_width": ANY},
)

ALL = (TRANSFORMERS_FLAX, FLAX_EXAMPLE)
