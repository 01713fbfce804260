"""What Flax's ImageNet example, Transformers 4, jax-resnet and flaxmodels call our arrays.

Names are those of flax `examples/imagenet/models.py`, of Transformers' `modeling_flax_resnet.py`
and of n2cholas/jax-resnet (0.0.4) `resnet.py` and `common.py`, whose collections `params` and
`batch_stats` are merged, as no name is in both; and of matthias-wright/flaxmodels (0.1.3)
`resnet/resnet.py`: of the HDF5 files that it opens, and of its variables.
"""

from resnetjax.config import Preprocess
from resnetjax.weights.dialect import ANY, Dialect, Layout, Rule

_FLAX_LEAVES = {
    **dict.fromkeys(("conv", "dense"), "kernel"),
    **dict.fromkeys(("bias", "shift"), "bias"),
    "scale": "scale",
    "mean": "mean",
    "var": "var",
}
_FLAX = {
    "leaf_names": _FLAX_LEAVES,
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
    preprocess=Preprocess(interpolation="bicubic", antialias=False),
    families=("flax_resnet*",),
    base={"padding": "same_blocks", "stem_pool_padding": "same"},
    expresses={"block": ("basic", "bottleneck"), "stem_width": ANY},
)

_CONVS, _NORMS = "ConvBlock_{n0}/Conv_0", "ConvBlock_{n0}/BatchNorm_0"
# A sequence of the stem, its pool, every block, the mean, the head; what is no module has a number.
_SKIPS = (
    ("ResNetDSkipConnection_0", {"shortcut": ("avg_conv",)}),
    ("ResNetSkipConnection_0", {}),
)
JAX_RESNET = Dialect(
    name="jax_resnet",
    rules=(
        Rule("stem/conv{n}", f"layers_0/{_CONVS}"),
        Rule("stem/norm{n}", f"layers_0/{_NORMS}"),
        Rule("stage{s}_block{b}/conv{n}", f"layers_{{block2}}/{_CONVS}"),
        Rule("stage{s}_block{b}/norm{n}", f"layers_{{block2}}/{_NORMS}"),
        *(
            Rule(
                f"stage{{s}}_block{{b}}/shortcut/{ours}",
                f"layers_{{block2}}/{skip}/ConvBlock_0/{theirs}",
                when,
            )
            for skip, when in _SKIPS
            for ours, theirs in (("conv", "Conv_0"), ("norm", "BatchNorm_0"))
        ),
        Rule("head", "layers_{blocks3}"),
    ),
    **_FLAX,
    preprocess=Preprocess(),
    families=(
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200"),
        *("wide_resnet*", "resnext50_32x4d", "resnext101_32x8d"),
        *("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d", "resnet200d"),
    ),
    base={},
    expresses={
        "block": ("basic", "bottleneck"),
        "stem": ("conv7", "deep"),
        "stem_width": ANY,
        "shortcut": ("conv", "avg_conv"),
        "groups": ANY,
        "group_width": ANY,
    },
)

FLAXMODELS = Dialect(
    name="flaxmodels",
    rules=(
        Rule("stem/conv1", "conv1"),
        Rule("stem/norm1", "bn1"),
        Rule("stage{s}_block{b}/conv{n}", "layer{s}/block{b0}/conv{n}"),
        Rule("stage{s}_block{b}/norm{n}", "layer{s}/block{b0}/bn{n}"),
        Rule("stage{s}_block{b}/shortcut/conv", "layer{s}/block{b0}/downsample/conv"),
        Rule("stage{s}_block{b}/shortcut/norm", "layer{s}/block{b0}/downsample/bn"),
        Rule("head", "fc"),
    ),
    **{**_FLAX, "leaf_names": {**_FLAX_LEAVES, "conv": "weight", "dense": "weight"}},
    preprocess=Preprocess(),
    families=("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    base={},
    expresses={"block": ("basic", "bottleneck")},
)

_KINDS_OF_FLAXMODELS = (
    ("Bottleneck", "3", {"block": ("bottleneck",)}),
    ("BasicBlock", "2", {}),
)
FLAXMODELS_TREE = Dialect(
    name="flaxmodels_tree",
    rules=(
        Rule("stem/conv1", "Conv_0"),
        Rule("stem/norm1", "BatchNorm_0"),
        *(
            Rule(f"stage{{s}}_block{{b}}/{ours}", f"{kind}_{{block0}}/{theirs}", when)
            for kind, last, when in _KINDS_OF_FLAXMODELS
            for ours, theirs in (
                ("conv{n}", "Conv_{n0}"),
                ("norm{n}", "BatchNorm_{n0}"),
                ("shortcut/conv", f"Conv_{last}"),
                ("shortcut/norm", f"BatchNorm_{last}"),
            )
        ),
        Rule("head", "Dense_0"),
    ),
    **_FLAX,
    preprocess=Preprocess(),
    families=FLAXMODELS.families,
    base={},
    expresses={"block": ("basic", "bottleneck")},
)

# Those of variables of Flax, which go into a file in their collections.
TREES = (TRANSFORMERS_FLAX, FLAX_EXAMPLE, JAX_RESNET, FLAXMODELS_TREE)
ALL = (*TREES, FLAXMODELS)
