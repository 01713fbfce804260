"""A net compiled for one size of batch, and one that stands ready for any."""

import dataclasses
import functools
import itertools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import resnetjax as rj
from resnetjax.data.preprocess import crop, crop_batch, normalize
from resnetjax.errors import ConfigError
from resnetjax.infer import compiled, predictor
from resnetjax.infer.batches import in_turn
from resnetjax.infer.compiled import for_inference
from resnetjax.nn import functions, winograd
from resnetjax.specs import Conv

CONFIG = rj.ResNetConfig(
    depths=(1, 1), widths=(8, 16), strides=(1, 2), dilations=(1, 1), stem_width=8, num_classes=5
)
SMALL = rj.Preprocess(crop_px=(32, 32), resize_mode="none", resize_px=None)
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def pre():
    model, variables = rj.create(CONFIG)
    return rj.Pretrained(model=model, variables=variables, preprocess=SMALL)


@pytest.fixture(scope="module")
def logits(pre):
    images = jnp.asarray(normalize(PIXELS, SMALL))
    return np.asarray(jax.jit(pre.model.apply)(pre.variables, images))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_the_compiled_function_gives_the_nets_logits_and_compiles_no_more(pre, logits, caplog):
    run = rj.compile_inference(pre.model, pre.variables, batch_size=7, image_px=(32, 32))
    images = jnp.asarray(normalize(PIXELS, SMALL))
    with jax.log_compiles():
        found = run(images)
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
    np.testing.assert_allclose(found, logits, atol=1e-5 * logits.std())


def test_the_compiled_function_refuses_another_batch(pre):
    run = rj.compile_inference(pre.model, pre.variables, batch_size=7, image_px=(32, 32))
    with pytest.raises(TypeError):
        run(jnp.zeros((8, 32, 32, 3)))


def test_the_compiled_function_computes_in_the_dtype_that_was_asked_for(pre, logits):
    run = rj.compile_inference(
        pre.model, pre.variables, batch_size=7, image_px=(32, 32), dtype=jnp.bfloat16
    )
    difference = np.abs(run(jnp.asarray(normalize(PIXELS, SMALL))) - logits).max() / logits.std()
    assert 1e-4 < difference < 0.2  # bfloat16 keeps 8 bits


def test_a_batch_of_none_is_refused(pre):
    with pytest.raises(ConfigError, match=r"batch_size=0 is not allowed"):
        rj.compile_inference(pre.model, pre.variables, batch_size=0)
    with pytest.raises(ConfigError, match=r"batch_size=0 is not allowed"):
        rj.Predictor(pre, batch_size=0)


@pytest.mark.parametrize("image_px", [32, (32,), (0, 32), (32, -1), (32.0, 32), (32, 32, 3)])
def test_sizes_that_no_image_has_are_refused(pre, image_px):
    with pytest.raises(ConfigError, match=r"image_px=.* is not allowed: use \(height, width\)"):
        rj.compile_inference(pre.model, pre.variables, batch_size=1, image_px=image_px)


def test_devices_may_be_an_array_but_not_none_at_all(pre, logits):
    ready = rj.Predictor(pre, devices=np.array(jax.devices()))
    np.testing.assert_allclose(ready(PIXELS), softmax(logits), atol=1e-5)
    with pytest.raises(ConfigError, match=r"devices=\[\] is not allowed"):
        rj.Predictor(pre, devices=[])


def test_pointwise_convolutions_as_dots_are_the_same_convolutions():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6, 4)), jnp.float32)
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(1, 1, 4, 5)), jnp.float32)
    for stride, padding in itertools.product((1, 2, 3), (0, "same")):
        conv = Conv("conv", 4, 5, 1, stride, 1, 1, padding, bias=False, standardize_eps=None)
        expected = functions.convolve(x, kernel, conv)
        found = functions.convolve(x, kernel, dataclasses.replace(conv, form="dot"))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_on_a_cpu_pointwise_convolutions_alone_become_dots(pre):
    net = for_inference(pre.model, pre.variables)[0].net
    convs = [conv for stage in net.stages for block in stage.blocks
             for conv in (*block.convs, block.shortcut.conv) if conv]  # fmt: skip
    assert [conv.kernel for conv in convs if conv.form == "dot"] == [1] * 6
    assert [conv.kernel for conv in convs if conv.form == "xla"] == [3] * 2
    assert net.stem.convs[0].form == "xla"


@pytest.mark.parametrize("edges", [(1, 1), (2, 3), (7, 7), (8, 6)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_winograd_s_convolution_is_the_same_convolution(edges, dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *edges, 4)), dtype)
        kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 4, 5)), dtype)
        conv = Conv("conv", 4, 5, 3, 1, 1, 1, 1, bias=False, standardize_eps=None)
        expected = functions.convolve(x, kernel, conv)
        transformed = winograd.transform(kernel)
        assert transformed.dtype == dtype
        assert transformed.shape == dataclasses.replace(conv, form="winograd").kernel_shape
        found = jax.jit(winograd.convolve)(x, transformed)
        np.testing.assert_allclose(found, expected, atol=1e-4 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize(
    ("dtype", "form"),
    [("float32", "winograd"), pytest.param("bfloat16", "xla", marks=pytest.mark.slow)],
)
def test_on_a_cpu_wide_convolutions_of_3x3_go_by_winograd_s_algorithm_in_float32(dtype, form):
    config = CONFIG.replace(widths=(64, 128), stem_width=64)
    model, variables = rj.create(config)
    net, params = for_inference(model, variables, dtype=dtype)
    second = [block.convs[1] for stage in net.net.stages for block in stage.blocks]
    assert [(conv.stride, conv.form) for conv in second] == [(1, form), (2, "xla")]
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 37, 37, 3)), jnp.float32)
    expected = model.apply(variables, images, train=False)
    tolerance = 1e-5 if dtype == "float32" else 0.05
    spread = np.abs(expected - expected.mean(0, keepdims=True)).max()
    np.testing.assert_allclose(net.apply(params, images), expected, atol=tolerance * spread)


@pytest.mark.parametrize(("batch", "parts"), [(5, 1), (8, 2), (11, 3), (13, 3)])
def test_a_large_batch_on_a_cpu_gives_the_same_logits_in_parts(pre, monkeypatch, batch, parts):
    monkeypatch.setattr(compiled, "_PART_PX", 5 * 32 * 32)
    net, params = for_inference(pre.model, pre.variables)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, 32, 32, 3)), jnp.float32)
    run = jax.jit(functools.partial(compiled.apply_in_parts, net, params))
    loops = re.findall(r"length=(\d+)", str(jax.make_jaxpr(run)(images)))
    assert loops == ([str(parts)] if parts > 1 else [])
    np.testing.assert_allclose(run(images), net.apply(params, images), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "resize", "allowed"),
    [
        ((32, 32, 3), True, "height, width, 3"),
        ((2, 0, 0, 3), True, "height, width, 3"),
        ((2, 32, 32, 1), True, "height, width, 3"),
        ((32, 32, 3), False, "32, 32, 3"),
        ((2, 32, 32, 1), False, "32, 32, 3"),
        ((2, 32, 33, 3), False, "32, 32, 3"),
        ((0, 8, 8, 3), False, "32, 32, 3"),
    ],
)
def test_pixels_of_another_shape_are_refused(pre, shape, resize, allowed):
    found = rf"pixels of shape {re.escape(str(shape))} .* use uint8\[images, {allowed}\]"
    with pytest.raises(ConfigError, match=found):
        rj.Predictor(pre, resize=resize)(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool])
@pytest.mark.parametrize("resize", [False, True])
def test_pixels_of_another_dtype_are_refused(pre, dtype, resize):
    ready = rj.Predictor(pre, resize=resize)
    for run in (ready, functools.partial(ready.top, count=1)):
        with pytest.raises(ConfigError, match=rf"dtype {np.dtype(dtype)} are .* use uint8"):
            run(PIXELS.astype(dtype))


def test_a_predictor_scores_any_number_of_images(pre, logits):
    predictor = rj.Predictor(pre, batch_size=4)
    for count in (0, 1, 3, 7):
        expected = softmax(logits[:count]) if count else np.zeros((0, 5))
        np.testing.assert_allclose(predictor(PIXELS[:count]), expected, atol=1e-5)


def test_a_predictor_compiles_one_program_for_each_power_of_two(caplog):
    model, variables = rj.create(CONFIG.replace(num_classes=6))  # nobody else has compiled it
    predictor = rj.Predictor(
        rj.Pretrained(model=model, variables=variables, preprocess=SMALL), batch_size=4
    )
    with jax.log_compiles():
        for count in range(1, 8):
            predictor(PIXELS[:count])
    messages = [record.getMessage() for record in caplog.records]
    assert sum(text.startswith("Compiling jit(_scores)") for text in messages) == 3  # 1, 2, 4


def test_a_batch_is_on_its_way_before_the_one_before_it_is_fetched(pre):
    taken = []

    def batches():
        for i in range(4):
            taken.append(i)
            yield PIXELS[:2]

    run = functools.partial(rj.Predictor(pre, batch_size=2).top, count=1)
    results = in_turn(batches(), run, batch_size=2)
    next(results)
    assert taken == [0, 1]
    assert len(list(results)) == 3


def test_jax_has_no_use_for_donated_pixels(pre):
    scores = predictor._scores.__wrapped__
    run = functools.partial(scores, pre.model, SMALL, "softmax", False, False)
    with pytest.warns(UserWarning, match=r"donated buffers were not usable: uint8\[7,32,32,3\]"):
        jax.jit(run, donate_argnums=1)(pre.variables, jax.device_put(PIXELS))


def test_changed_weights_change_predictions(pre):
    model, variables = rj.create(CONFIG)
    own = rj.Pretrained(model=model, variables=variables, preprocess=SMALL)
    before = rj.predict(own, PIXELS[0])
    variables["params"]["head"]["bias"] += jnp.arange(5.0) * 100
    (after,) = rj.predict(own, PIXELS[0])
    assert before[0] != after
    assert after[0].index == 4


def test_weights_of_numpy_that_change_in_place_change_predictions(pre):
    own = dataclasses.replace(pre, variables=jax.tree.map(np.array, pre.variables))
    before = rj.predict(own, PIXELS[0])
    own.variables["params"]["head"]["bias"] += np.arange(5, dtype=np.float32) * 100
    (after,) = rj.predict(own, PIXELS[0])
    assert before[0] != after
    assert after[0].index == 4


def test_a_predictor_resizes_on_the_device_as_pillow_does():
    colours = np.random.default_rng(2).integers(0, 256, (2, 9, 7, 3), np.uint8)
    large = np.stack([np.asarray(Image.fromarray(x).resize((45, 61))) for x in colours])
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        config = rj.Preprocess(crop_px=(24, 33), resize_px=29, interpolation=interpolation)
        expected = np.stack([crop(Image.fromarray(x), config) for x in large]).astype(int)
        found = np.asarray(jax.jit(crop_batch, static_argnums=1)(large, config))
        assert np.abs(found - expected).max() <= 1  # Pillow rounds twice
        assert np.abs(found - expected).mean() < 0.2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop_px", [(24, 33), (90, 61)])
def test_the_device_resizes_the_same_window_without_antialiasing(interpolation, crop_px):
    config = rj.Preprocess(
        crop_px=crop_px,
        resize_mode="crop_to_aspect_ratio",
        resize_px=crop_px,
        interpolation=interpolation,
        antialias=False,
    )
    large = np.random.default_rng(0).integers(0, 256, (2, 61, 45, 3), np.uint8)
    expected = np.stack([crop(Image.fromarray(x), config) for x in large]).astype(int)
    found = np.asarray(jax.jit(crop_batch, static_argnums=1)(large, config))
    assert np.abs(found - expected).max() <= 1  # float32 rounds otherwise between two levels
    assert np.abs(found - expected).mean() < 0.05


def test_a_resizing_predictor_takes_images_of_another_size(pre):
    config = dataclasses.replace(SMALL, resize_mode="squash", resize_px=(32, 32))
    large = np.stack([np.asarray(Image.fromarray(x).resize((70, 50), 0)) for x in PIXELS])
    resizing = dataclasses.replace(pre, preprocess=config)
    expected = rj.Predictor(resizing)(np.stack([crop(Image.fromarray(x), config) for x in large]))
    found = rj.Predictor(resizing, resize=True)(large)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_a_filter_that_the_device_has_not_is_refused(pre):
    config = rj.Preprocess(interpolation="hamming")
    with pytest.raises(ConfigError, match=r"interpolation='hamming' is not allowed"):
        crop_batch(jnp.zeros((1, 300, 300, 3), jnp.uint8), config)


EIGHT = """
import jax, numpy as np, resnetjax as rj
config = rj.ResNetConfig(depths=(1,), widths=(8,), strides=(1,), dilations=(1,), stem_width=8,
                         num_classes=5)
small = rj.Preprocess(crop_px=(32, 32), resize_mode="none", resize_px=None)
model, variables = rj.create(config)
pre = rj.Pretrained(model=model, variables=variables, preprocess=small)
pixels = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)
eight, one = rj.Predictor(pre), rj.Predictor(pre, devices=jax.devices()[:1])
assert len(jax.devices()) == 8
placed = eight.top(np.concatenate((pixels, pixels[:5])), 5)[0]
assert [shard.data.shape for shard in placed.addressable_shards] == [(2, 5)] * 8
np.testing.assert_allclose(eight(pixels), one(pixels), atol=1e-6)
likeliest = [found.index for found in rj.predict(pre, pixels[:1])[0]]
assert likeliest == one(pixels[:1])[0].argsort()[::-1].tolist()
"""


def test_eight_devices_share_a_batch_and_agree_with_one():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", EIGHT], check=True, env={**os.environ, **flags})
