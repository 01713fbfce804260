"""What decides whether weights mean the same thing elsewhere: the facts by their numbers.

A test whose name begins with `test_f03_` is of fact F3, wherever it is: most are beside what they
test. Those of no other place are here. What is expected is from the frameworks' own files: see
`tests/golden`, and `tests/parity` for the comparison with the frameworks themselves.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from resnetjax.config import ResNetConfig
from resnetjax.data.preprocess import normalize
from resnetjax.identify import preprocess_of
from resnetjax.measure import feature_info, leaves
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES
from resnetjax.weights.arrays import save_arrays
from resnetjax.weights.detect import Detection
from resnetjax.weights.dialect import base_config, entries
from resnetjax.weights.dialects import get
from resnetjax.weights.passes import absorb_epsilon, fold_biases
from resnetjax.weights.sources import find

FACTS = {
    1: "padding of strided convolutions",
    2: "the stem's max-pool",
    3: "norm epsilon and decay",
    4: "convolution biases",
    5: "where the stride is",
    6: "preprocessing",
    7: "labels",
    8: "names and layouts",
    9: "containers",
    10: "Keras's ResNeXt",
    11: "stem features",
    12: "activations",
    13: "dilation",
    14: "Keras files describe themselves",
}
TESTS = Path(__file__).parents[1]


def test_every_fact_has_a_test():
    text = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    tested = {int(number) for number in re.findall(r"^def test_f(\d\d)_", text, re.MULTILINE)}
    assert tested >= set(FACTS)


# torchvision, timm, Transformers and KerasHub; Keras and slim pad by themselves; KerasCV and
# MLPerf's say "same" throughout, Flax's example in its blocks only.
@pytest.mark.parametrize(
    ("name", "stem", "spatial"),
    [
        ("resnet50", 3, 1),
        ("resnetv2_50", 3, 1),
        ("resnetv2_50x1_bit", 3, 1),
        ("keras_resnet50", 3, 1),
        ("keras_resnet50v2", 3, 1),
        ("slim_resnet_v1_50", 3, 1),
        ("slim_resnet_v2_50", 3, 1),
        ("cifar_resnet20", 1, 1),
        ("flax_resnet50", 3, "same"),
        ("kerascv_resnet50", "same", "same"),
        ("kerascv_resnet50v2", "same", "same"),
        ("mlperf_tiny_resnet8", "same", "same"),
    ],
)
def test_f01_strided_convolutions_pad_as_their_framework_does(name, stem, spatial):
    planned = plan(ARCHITECTURES[name])
    found = {c.padding for s in planned.stages for b in s.blocks for c in b.convs if c.kernel == 3}
    assert (planned.stem.convs[0].padding, found) == (stem, {spatial})


@pytest.mark.parametrize("name", ["flax_resnet50", "kerascv_resnet50", "slim_resnet_v1_50"])
def test_f02_pools_of_same_padding_are_padded_with_minus_infinity(name):
    (pool,) = plan(ARCHITECTURES[name]).stem.pools
    assert (pool.kind, pool.padding, pool.pad_value) == ("max", "same", "-inf")


def test_f03_the_files_of_2017_have_keras_own_epsilon():
    config = base_config(get("keras_2017"), (3, 4, 6, 3), (64, 128, 256, 512))
    assert (config.norm_eps, config.norm_decay) == (1e-3, 0.99)


def tiny(**fields) -> ResNetConfig:
    sizes = {"depths": (1,), "widths": (4,), "strides": (1,), "dilations": (1,), "stem_width": 4}
    return ResNetConfig(**{**sizes, "num_classes": 2, **fields})


def constant(config: ResNetConfig, **values: float) -> dict[str, np.ndarray]:
    """Arrays filled with a value for each kind of leaf, by the end of its path."""
    return {
        path: np.full(leaf.shape, values.get(path.rpartition("/")[2], 1), np.float32)
        for path, leaf in leaves(plan(config)).items()
    }


def test_f03_the_difference_of_two_epsilons_is_added_to_the_variance():
    config = tiny(norm_eps=1e-3)
    moved, other = absorb_epsilon(constant(config, var=0.002), config, 1e-5)
    assert other.norm_eps == 1e-5
    variances = [array for path, array in moved.items() if path.endswith("/var")]
    np.testing.assert_allclose(np.concatenate(variances), 0.002 + 0.001 - 0.00001, rtol=1e-6)


def test_f04_a_v1_bias_is_taken_from_the_mean():
    config = tiny(conv_bias="all")
    folded, _ = fold_biases(constant(config, mean=3, bias=0.5), config)
    means = [array for path, array in folded.items() if path.endswith("/mean")]
    assert set(np.concatenate(means).tolist()) == {2.5}


# The strides of the three convolutions of the second stage's first block.
@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet50", [1, 2, 1]),  # torchvision, timm, Transformers, KerasHub
        ("flax_resnet50", [1, 2, 1]),
        ("resnet50_v1", [2, 1, 1]),
        ("keras_resnet50", [2, 1, 1]),
        ("kerascv_resnet50", [2, 1, 1]),
        ("keras_resnet50v2", [1, 1, 1]),  # in the last block, as are those below
        ("kerascv_resnet50v2", [1, 1, 1]),
        ("slim_resnet_v1_50", [1, 1, 1]),
        ("slim_resnet_v2_50", [1, 1, 1]),
    ],
)
def test_f05_a_stages_first_block_strides_where_its_framework_does(name, strides):
    block = plan(ARCHITECTURES[name]).stages[1].blocks[0]
    assert [conv.stride for conv in block.convs] == strides


IMAGENET = [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225]
HALVES = [10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1]


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("torchvision", IMAGENET),
        ("timm", IMAGENET),
        ("transformers", IMAGENET),
        ("kerashub", IMAGENET),
        ("flax_example", IMAGENET),
        ("keras", [30 - 103.939, 20 - 116.779, 10 - 123.68]),
        ("keras_2017", [30 - 103.939, 20 - 116.779, 10 - 123.68]),
        ("keras_v2", HALVES),
        ("kerascv", [10 / 255, 20 / 255, 30 / 255]),
        ("kerascv_v2", [10 / 255, 20 / 255, 30 / 255]),
        ("slim_v1", [10 - 123.68, 20 - 116.78, 30 - 103.94]),
        ("slim_v2", HALVES),
        ("bit", HALVES),
    ],
)
def test_f06_a_pixel_becomes_what_its_framework_makes_of_it(dialect, expected):
    pixel = np.array([10, 20, 30], np.uint8)
    found = normalize(pixel, get(dialect).preprocess)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # of float32


# A file of tf_keras that names no layers may be of any of these.
@pytest.mark.parametrize(
    ("arch", "system"),
    [
        ("keras_resnet50", "keras"),
        ("keras_resnet101v2", "keras_v2"),
        ("kerascv_resnet18", "kerascv"),
        ("kerascv_resnet152", "kerascv"),
        ("kerascv_resnet34v2", "kerascv_v2"),
        ("kerascv_resnet50v2", "kerascv_v2"),
    ],
)
def test_f06_a_net_of_layers_without_names_is_given_its_own_systems_pixels(arch, system):
    found, said = preprocess_of(Detection(get("keras_order"), ARCHITECTURES[arch], arch, ()), None)
    assert found == get(system).preprocess
    assert f"as by {system} " in said[0]


@pytest.mark.parametrize(
    ("name", "resize_px", "interpolation"),
    [
        ("resnet50.tv2_in1k", 232, "bilinear"),
        ("resnet50.a1_in1k", 288, "bicubic"),  # 288 / crop_pct 1.0
    ],
)
def test_f06_resizing_travels_with_published_weights(name, resize_px, interpolation):
    preprocess = find(name).preprocess
    assert (preprocess.resize_px, preprocess.interpolation) == (resize_px, interpolation)


def test_f06_transformers_resizes_to_the_size_by_its_crop():
    preprocess = get("transformers").preprocess
    assert preprocess.resize_px == 256  # 224 / (224 / 256)
    assert preprocess.interpolation == "bicubic"
    assert preprocess.crop_px == (224, 224)


# From keras/src/applications, keras_applications, keras_cv, keras_hub, tf_slim, big_transfer and
# Transformers' Flax files.
NAMES = [
    ("keras", "keras_resnet50", {
        "stem/conv1/kernel": "conv1_conv/kernel",
        "stem/conv1/bias": "conv1_conv/bias",
        "stem/norm1/var": "conv1_bn/moving_variance",
        "stage1_block1/shortcut/conv/kernel": "conv2_block1_0_conv/kernel",
        "stage4_block3/norm3/scale": "conv5_block3_3_bn/gamma",
        "head/bias": "predictions/bias",
    }),
    ("keras_v2", "keras_resnet50v2", {
        "stage1_block1/norm1/bias": "conv2_block1_preact_bn/beta",
        "stage1_block1/conv1/kernel": "conv2_block1_1_conv/kernel",
        "stage1_block1/norm2/scale": "conv2_block1_1_bn/gamma",
        "norm/mean": "post_bn/moving_mean",
    }),
    ("keras_2017", "keras_resnet50", {
        "stem/conv1/kernel": "conv1/kernel",
        "stem/norm1/scale": "bn_conv1/gamma",
        "stage1_block1/conv1/kernel": "res2a_branch2a/kernel",
        "stage1_block1/norm1/bias": "bn2a_branch2a/beta",
        "stage1_block1/shortcut/conv/kernel": "res2a_branch1/kernel",
        "stage3_block6/conv3/kernel": "res4f_branch2c/kernel",
        "head/kernel": "fc1000/kernel",
    }),
    ("slim_v2", "slim_resnet_v2_50", {
        "stage1_block1/norm1/scale": "block1/unit_1/bottleneck_v2/preact/gamma",
        "stage1_block1/shortcut/conv/kernel": "block1/unit_1/bottleneck_v2/shortcut/weights",
        "stage1_block1/conv3/bias": "block1/unit_1/bottleneck_v2/conv3/biases",
        "norm/var": "postnorm/moving_variance",
        "head/kernel": "logits/weights",
    }),
    ("bit", "resnetv2_50x1_bit", {
        "stem/conv1/kernel": "root_block/standardized_conv2d/kernel",
        "stage1_block1/conv1/kernel": "block1/unit01/a/standardized_conv2d/kernel",
        "stage1_block1/shortcut/conv/kernel": "block1/unit01/a/proj/standardized_conv2d/kernel",
        "stage1_block1/norm1/scale": "block1/unit01/a/group_norm/gamma",
        "head/kernel": "head/conv2d/kernel",
    }),
    ("transformers_flax", "resnet50", {
        "stem/norm1/mean": "embedder/embedder/normalization/mean",
        "stage2_block1/conv3/kernel": "encoder/stages/1/layers/0/layer/2/convolution/kernel",
        "head/bias": "classifier/1/bias",
    }),
    ("flax_example", "flax_resnet50", {
        "stem/conv1/kernel": "conv_init/kernel",
        "stage2_block1/conv1/kernel": "BottleneckResNetBlock_3/Conv_0/kernel",
        "stage1_block1/shortcut/norm/scale": "BottleneckResNetBlock_0/norm_proj/scale",
        "head/kernel": "Dense_0/kernel",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "arch", "expected"), NAMES, ids=[name for name, *_ in NAMES])
def test_f08_names_are_those_of_the_frameworks_files(dialect, arch, expected):
    named = entries(get(dialect), ARCHITECTURES[arch])
    assert {path: named[path].name for path in expected} == expected


@pytest.mark.parametrize(
    ("dialect", "arch", "name"),
    [
        ("slim_v2", "slim_resnet_v2_50", "resnet_v2_50/logits/weights"),
        ("bit", "resnetv2_50x1_bit", "resnet/head/conv2d/kernel"),
    ],
)
def test_f08_a_head_of_tensorflow_is_a_1x1_convolution_in_the_nets_scope(dialect, arch, name):
    config = ARCHITECTURES[arch]
    arrays = {
        path: np.broadcast_to(np.float32(0), leaf.shape)
        for path, leaf in leaves(plan(config)).items()
    }
    arrays["head/kernel"] = np.arange(2048 * config.num_classes, dtype=np.float32).reshape(2048, -1)
    theirs = save_arrays(get(dialect), arrays, config)
    np.testing.assert_array_equal(theirs[name][0, 0], arrays["head/kernel"])


def test_f08_scales_of_big_transfer_may_have_four_dimensions():
    scale = entries(get("bit"), ARCHITECTURES["resnetv2_50x1_bit"])["norm/scale"]
    for shape in ((5,), (1, 1, 1, 5)):
        found = scale.load(np.arange(5, dtype=np.float32).reshape(shape))
        assert found is not None
        assert found.tolist() == [0, 1, 2, 3, 4]


def test_f08_standardised_kernels_have_the_epsilon_of_their_framework():
    sizes = ((3, 4, 6, 3), (64, 128, 256, 512))
    assert base_config(get("bit"), *sizes).weight_standardization_eps == 1e-10
    assert ARCHITECTURES["resnetv2_50x1_bit"].weight_standardization_eps == 1e-8  # timm


def test_f11_transformers_stem_is_pooled_and_timms_is_not():
    timm, transformers, *_ = feature_info(plan(ARCHITECTURES["resnet50"]))
    assert (timm.name, timm.stride) == ("stem_conv", 2)
    assert (transformers.name, transformers.stride) == ("stem", 4)
