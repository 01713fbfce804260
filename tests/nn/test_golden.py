"""Tiny nets give what Keras, KerasCV and TF-Slim gave for the same weights (tests/golden)."""

import io
import itertools
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pyfive
import pytest
from PIL import Image

from resnetjax.config import ResNetConfig
from resnetjax.measure import leaves
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan
from resnetjax.presets import get
from tests.golden.weights import CHANNELS, CLASSES, KERAS_ARRAYS, MLPERF_LAYERS, draw, image

FOLDER = Path(__file__).parents[1] / "golden"
# The largest difference, in standard deviations of the output: another order of sums gives 2e-5.
TOLERANCE = 1e-4
# Of depth 50, or dilated: they take most of the time and are left to `make test-slow`.
LARGE = {
    *("keras_v1", "keras_v2", "kerascv_v1", "kerascv_v2"),
    *("kerascv_v2_dilated1112", "kerascv_v2_dilated1124", "kerascv_v2_basic_dilated1112"),
    *("kerascv_v2_basic_dilated1124", "slim_v1_stride16"),
}


class Golden(NamedTuple):
    """The config of a golden file, and values of its fields that would be mistakes."""

    config: ResNetConfig
    wrong: tuple[tuple[str, Any], ...]


def golden(preset: str, wrong: tuple[tuple[str, Any], ...], **fields: Any) -> Golden:
    return Golden(get(preset).replace(**{"num_classes": CLASSES, **fields}), wrong)


REDUCE, SPATIAL = ("stride_on", "reduce"), ("stride_on", "spatial")
LAST_SPATIAL = ("stride_on", "last_spatial")
FIRST, LAST = ("stride_block", "first"), ("stride_block", "last")
TORCH, SAME = ("padding", "torch"), ("padding", "same")
ZERO, INFINITY = ("stem_pool_value", "zero"), ("stem_pool_value", "-inf")
PREVIOUS, UNDILATED, UNIFORM = (
    ("dilation_rule", rule) for rule in ("previous", "undilated", "uniform")
)

KERAS = (("norm_eps", 1e-5), SAME, ("stem_pool_padding", "same"))
KERASCV = (("norm_eps", 1e-5), TORCH, ("stem_pool_padding", "torch"))
KERASCV_V2 = (*KERASCV, ZERO, FIRST, ("strides", (2, 2, 2, 1)))
KERASCV_DILATED = (
    ("dilations", (1, 1, 1, 1)),
    ("strides", (1, 2, 2, 2)),
    UNIFORM,
    TORCH,
    FIRST,
)
SLIM = (
    ("norm_eps", 1.001e-5),
    SAME,
    ("stem_pool_padding", "torch"),
    REDUCE,
    FIRST,
    ("strides", (1, 2, 2, 2)),
    ("output_stride", 8),
)
SLIM_DENSE = (("output_stride", None), PREVIOUS, UNDILATED, SAME, FIRST)

V1 = {"depths": (2, 1, 2, 1), "widths": (8, 16, 32, 64)}
V1_BASIC = {"depths": (2, 1, 2, 1), "widths": (64, 8, 16, 32)}
V2 = {"depths": (2, 3, 3, 3), "widths": (8, 16, 32, 64)}
V2_BASIC = {"depths": (2, 3, 3, 3), "widths": (64, 8, 16, 32)}
# KerasCV was given strides 1, 2, 2, 2: it drops them where it dilates.
RATES_1112 = {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)}
RATES_1124 = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}
# Keras projects in each stage's first block, slim only where the channels change.
KERAS_V2 = {"depths": (2, 3, 2, 2), "widths": (8, 8, 32, 64), "projections": (True,) * 4}
SLIM_FIELDS = {
    "depths": (2, 1, 3, 2),
    "widths": (16, 16, 32, 64),
    "projections": (False, False, True, True),
}

KERASCV_50V2, KERASCV_18V2 = "kerascv_resnet50v2", "kerascv_resnet18v2"
SLIM_50V1, SLIM_50V2 = "slim_resnet_v1_50", "slim_resnet_v2_50"
GOLDENS = {
    "keras_v1": golden("keras_resnet50", (*KERAS, SPATIAL, LAST), **V1),
    "keras_v2": golden(
        "keras_resnet50v2",
        (*KERAS, REDUCE, INFINITY, FIRST, ("strides", (1, 2, 2, 2))),
        **KERAS_V2,
    ),
    "mlperf_resnet8": golden(
        "mlperf_tiny_resnet8", (("norm_eps", 1.001e-5), TORCH, LAST_SPATIAL), num_classes=10
    ),
    "kerascv_v1": golden("kerascv_resnet50", (*KERASCV, SPATIAL), **V1),
    "kerascv_v1_basic": golden("kerascv_resnet18", (*KERASCV, LAST_SPATIAL), **V1_BASIC),
    "kerascv_v2": golden(KERASCV_50V2, (*KERASCV_V2, REDUCE), **V2),
    # Its one dilated stage follows undilated ones, so "previous" means "undilated".
    "kerascv_v2_dilated1112": golden(KERASCV_50V2, (*KERASCV_DILATED, REDUCE), **V2, **RATES_1112),
    "kerascv_v2_dilated1124": golden(
        KERASCV_50V2, (*KERASCV_DILATED, REDUCE, PREVIOUS), **V2, **RATES_1124
    ),
    "kerascv_v2_basic": golden(KERASCV_18V2, (*KERASCV_V2, SPATIAL), **V2_BASIC),
    "kerascv_v2_basic_dilated1112": golden(
        KERASCV_18V2, (*KERASCV_DILATED, SPATIAL, PREVIOUS), **V2_BASIC, **RATES_1112
    ),
    "kerascv_v2_basic_dilated1124": golden(
        KERASCV_18V2, (*KERASCV_DILATED, SPATIAL, PREVIOUS), **V2_BASIC, **RATES_1124
    ),
    "slim_v1": golden(SLIM_50V1, SLIM, **SLIM_FIELDS),
    "slim_v1_stride16": golden(SLIM_50V1, SLIM_DENSE, **SLIM_FIELDS, output_stride=16),
    "slim_v1_stride8": golden(SLIM_50V1, SLIM_DENSE, **SLIM_FIELDS, output_stride=8),
    "slim_v2": golden(SLIM_50V2, (*SLIM, ZERO), **SLIM_FIELDS),
    "slim_v2_stride16": golden(SLIM_50V2, SLIM_DENSE, **SLIM_FIELDS, output_stride=16),
    "slim_v2_stride8": golden(SLIM_50V2, SLIM_DENSE, **SLIM_FIELDS, output_stride=8),
}
WRONG = [(name, *wrong) for name, golden in GOLDENS.items() for wrong in golden.wrong]


def expected(name: str) -> dict[str, dict[str, np.ndarray]]:
    """A golden file's outputs by size of the image."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return flax.traverse_util.unflatten_dict(dict(arrays), sep="/")


def seeded(config: ResNetConfig) -> dict[str, Any]:
    arrays = {f"{leaf.collection}/{path}": jnp.asarray(draw(path, leaf.shape))
              for path, leaf in leaves(plan(config)).items()}  # fmt: skip
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def logits(config: ResNetConfig, x: np.ndarray) -> np.ndarray:
    # Not under jit: nets share most of their operations, and these compile once for all.
    return np.asarray(ResNet(config).apply(seeded(config), jnp.asarray(x)))


def error(ours: Any, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / theirs.std())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in GOLDENS]
)
def test_the_logits_and_features_are_those_of_the_real_framework(name):
    config = GOLDENS[name].config
    for size, outputs in expected(name).items():
        x, theirs = image(size), dict(outputs)
        assert error(logits(config, x), theirs.pop("logits")) < TOLERANCE, size
        stages = tuple(theirs)
        ours = ResNet(config).apply(
            seeded(config), jnp.asarray(x), stages=stages, method="features"
        )
        for stage in stages:
            kept = ours[stage][..., :CHANNELS]
            assert kept.shape == theirs[stage].shape, (size, stage)
            assert error(kept, theirs[stage]) < TOLERANCE, (size, stage)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "field", "value"),
    WRONG,
    ids=[f"{name}-{field}={value}" for name, field, value in WRONG],
)
def test_one_field_with_another_value_gives_logits_ten_tolerances_off(name, field, value):
    config = GOLDENS[name].config
    wrong = config.replace(**{field: value})
    assert wrong != config
    size, outputs = next(iter(expected(name).items()))  # the even one, on which all fields tell
    assert error(logits(wrong, image(size)), outputs["logits"]) > 10 * TOLERANCE


def test_every_golden_file_is_compared_with_all_of_its_features():
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(GOLDENS)
    for name, golden in GOLDENS.items():
        stages = {f"stage{i}" for i in range(1, len(golden.config.depths) + 1)}
        norm = {"norm"} if golden.config.order == "pre" else set()
        for size, outputs in expected(name).items():
            assert set(outputs) == {"logits"} | stages | norm, (name, size)


def test_the_golden_files_weights_follow_from_their_paths_bit_for_bit():
    arrays = [
        draw("stage1_block1/conv1/kernel", (3, 3, 4, 8)),
        draw("norm/scale", (64,)),
        image("5x7"),
    ]
    assert [zlib.crc32(array.tobytes()) for array in arrays] == [950097589, 3648795879, 2011337078]


def mlperf_variables(path: Path) -> dict[str, Any]:
    """The weights of MLPerf Tiny's ResNet-8, by Keras's names of their layers."""
    arrays = {}
    with pyfive.File(path) as file:
        for layer, ours in MLPERF_LAYERS.items():
            for name, array in file[f"model_weights/{layer}/{layer}"].items():
                kind = KERAS_ARRAYS[name.removesuffix(":0")]
                arrays[f"{ours}/{kind}"] = jnp.asarray(array[...])
    named = leaves(plan(get("mlperf_tiny_resnet8")))
    assert {name: array.shape for name, array in arrays.items()} == {
        k: v.shape for k, v in named.items()
    }
    paths = {f"{named[name].collection}/{name}": array for name, array in arrays.items()}
    return flax.traverse_util.unflatten_dict(paths, sep="/")


def test_mlperf_tinys_resnet8_predicts_what_keras_predicts(shared_weights, shared_data):
    with np.load(shared_weights / "mlperf-tiny-resnet8-expected.npz") as arrays:
        probabilities, argmax = arrays["probabilities_first_200"], arrays["argmax"][:1000]
    with np.load(shared_data / "cifar10-jpeg.npz") as arrays:
        jpeg, offsets = arrays["test_jpeg"].tobytes(), arrays["test_offsets"][:1001]
    files = [jpeg[start:end] for start, end in itertools.pairwise(offsets)]
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)), np.float32) for file in files])
    variables = mlperf_variables(shared_weights / "mlperf-tiny-resnet8.h5")
    found = ResNet(get("mlperf_tiny_resnet8")).apply(variables, jnp.asarray(images))
    np.testing.assert_array_equal(np.argmax(found, -1), argmax)
    np.testing.assert_allclose(jax.nn.softmax(found[:200]), probabilities, rtol=0, atol=1e-5)
