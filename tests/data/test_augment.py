"""Whole batches: what is drawn, what it depends on, and what comes out when nothing is on."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnetjax.config import Preprocess
from resnetjax.data import augment as augment_module
from resnetjax.data.augment import (
    augment,
    cut_box,
    cutmix,
    draw_lam,
    erase_box,
    mean_pixel,
    mix,
    mixup,
    smooth_labels,
)
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.operations import TABLES
from resnetjax.data.policies import RAND, RAND_INCREASING, TRIVIAL
from resnetjax.data.preprocess import normalize

PREPROCESS = Preprocess(crop_px=(12, 10))
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 12, 10, 3), np.uint8)
LABELS = np.array([0, 3, 1, 1, 2, 0, 3, 2], np.int32)
EVERYTHING = Augmentation(
    policy="rand",
    policy_magnitude=7,
    policy_magnitude_std=0.5,
    policy_increasing=True,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
    erase_probability=0.5,
    erase_value="noise",
    label_smoothing=0.1,
)


# Compiled, and once: one by one, their many small operations would take minutes.
erase = jax.jit(augment_module.erase, static_argnames=("probability", "value"))
rand_augment = jax.jit(augment_module.rand_augment, static_argnames=("probability", "fill"))
trivial_augment = jax.jit(augment_module.trivial_augment)


@functools.cache
def compiled(augmentation: Augmentation, preprocess: Preprocess):
    options = {"augmentation": augmentation, "preprocess": preprocess, "num_classes": 4}
    return jax.jit(lambda *inputs: augment(*inputs, **options))


def run(key=KEY, images=IMAGES, labels=LABELS, *, augmentation=EVERYTHING, preprocess=PREPROCESS):
    return compiled(augmentation, preprocess)(key, images, labels)


def assert_share(share: float, probability: float, count: int) -> None:
    """Within 4 standard deviations of a binomial: for a fixed seed, not a matter of luck."""
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / count)


@pytest.fixture(scope="module")
def everything():
    return run()


def test_nothing_on_normalises_and_encodes_exactly():
    images, targets = run(augmentation=Augmentation())
    np.testing.assert_array_equal(images, jax.jit(lambda x: normalize(x, PREPROCESS))(IMAGES))
    np.testing.assert_array_equal(targets, np.eye(4, dtype=np.float32)[LABELS])


def test_outputs_are_float32_of_the_inputs_size(everything):
    images, targets = everything
    assert (images.shape, images.dtype) == (IMAGES.shape, jnp.float32)
    assert (targets.shape, targets.dtype) == ((8, 4), jnp.float32)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)


def test_one_key_gives_one_batch_and_another_key_another(everything):
    images, targets = everything
    again_images, again_targets = run()
    np.testing.assert_array_equal(images, again_images)
    np.testing.assert_array_equal(targets, again_targets)
    assert not np.array_equal(images, run(jax.random.key(1))[0])


POLICIES = {
    "trivial": trivial_augment,
    "rand": lambda key, images: rand_augment(key, images, probability=1.0),
    "erase": lambda key, images: erase(key, images / 255, probability=0.7, value="noise"),
}


@pytest.mark.parametrize("function", POLICIES.values(), ids=list(POLICIES))
def test_an_image_depends_on_the_key_and_its_place_alone(function):
    others = RNG.integers(0, 256, IMAGES.shape, np.uint8)
    others[5] = IMAGES[5]
    in_both = np.asarray(function(KEY, jnp.asarray(IMAGES)))
    np.testing.assert_array_equal(in_both[5], function(KEY, jnp.asarray(others))[5])
    in_one_place = np.asarray(function(KEY, jnp.tile(IMAGES[:1], (8, 1, 1, 1))))
    assert len(np.unique(in_one_place.reshape(8, -1), axis=0)) >= 5


SHARDED = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tests.data.test_augment import IMAGES, KEY, LABELS, run
mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
images, labels = jax.device_put((IMAGES, LABELS), NamedSharding(mesh, PartitionSpec("batch")))
images, targets = run(KEY, images, labels)
assert len(images.sharding.device_set) == 8
np.savez(sys.argv[1], images=images, targets=targets)
"""


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(tmp_path, everything):
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path / "sharded.npz")]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[2])
    with np.load(tmp_path / "sharded.npz") as sharded:
        for ours, theirs in zip(sharded.values(), everything, strict=True):
            # The same draws and bytes; XLA fuses normalising and mixing otherwise, which rounds
            # once less or more. One level of one pixel would be 0.017.
            np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


def test_a_fill_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="use 1 values"):
        rand_augment(KEY, jnp.asarray(IMAGES[..., :1]))


def test_grey_images_are_augmented():
    preprocess = Preprocess(crop_px=(12, 10), mean=(0.5,), std=(0.5,))
    grey = IMAGES[..., :1]
    images, _ = run(KEY, grey, augmentation=Augmentation(policy="trivial"), preprocess=preprocess)
    assert images.shape == (8, 12, 10, 1)
    assert not np.allclose(images, normalize(grey, preprocess), atol=1e-5)


def test_images_from_outside_take_the_mean_colour_red_first():
    assert mean_pixel(Preprocess()) == (124, 116, 104)
    assert mean_pixel(Preprocess(divisor=127.5, mean=(1.0,) * 3, std=(1.0,) * 3)) == (128,) * 3
    caffe = Preprocess(
        divisor=1.0, mean=(103.939, 116.779, 123.68), std=(1.0,) * 3, channel_order="bgr"
    )
    assert mean_pixel(caffe) == (124, 117, 104)


@pytest.fixture
def settings_drawn(monkeypatch):
    """What 20,000 images are to undergo, in place of their pixels: table, degenerate, argument."""

    def tell(image, setting, *, fill):
        drawn = jnp.stack([setting.table, setting.degenerate, setting.argument])
        return drawn.astype(jnp.float32)[:, None, None]

    monkeypatch.setattr("resnetjax.data.policies.transform", tell)

    def settings(policy):
        images = jnp.zeros((20_000, 3, 1, 1), jnp.float32)
        return np.asarray(jax.jit(policy)(KEY, images)).reshape(-1, 3).T

    return settings


def test_trivial_augment_draws_every_operation_bin_and_sign_alike(settings_drawn):
    table, degenerate, argument = settings_drawn(
        lambda *batch: augment_module.trivial_augment(*batch)
    )
    for name in ("posterize", "solarize", "autocontrast", "equalize"):
        assert_share(np.mean(table == TABLES.index(name)), 1 / len(TRIVIAL), 20_000)
    for kind in (1, 2, 3):
        assert_share(np.mean(degenerate == kind), 1 / len(TRIVIAL), 20_000)
    factors = argument[degenerate > 0]
    assert np.unique(factors).size == 2 * 31 - 1
    assert_share(np.mean(factors < 1), 30 / 62, factors.size)
    thresholds, counts = np.unique(argument[table == TABLES.index("solarize")], return_counts=True)
    assert thresholds.size == 31
    assert counts.min() > 0.4 * counts.mean()


def test_rand_augment_does_half_of_its_operations_around_the_magnitude_given(
    settings_drawn,
):
    options = {"ops": 1, "magnitude": 7, "magnitude_std": 0.5, "increasing": True, "fill": (0,)}
    table, _, argument = settings_drawn(functools.partial(augment_module.rand_augment, **options))
    for name in ("invert", "posterize", "solarize", "solarize_add", "equalize"):
        assert_share(np.mean(table == TABLES.index(name)), 0.5 / len(RAND), 20_000)
    levels = argument[table == TABLES.index("invert")] * 10  # kept, though of no use to it
    assert abs(levels.mean() - 7) < 4 * 0.5 / np.sqrt(levels.size)
    assert abs(levels.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * levels.size)


def test_magnitudes_are_clipped_to_ten(settings_drawn):
    options = {"ops": 1, "magnitude": 9.5, "magnitude_std": 1.0, "fill": (0,), "probability": 1.0}
    table, _, argument = settings_drawn(functools.partial(augment_module.rand_augment, **options))
    levels = argument[table == TABLES.index("invert")] * 10
    assert levels.max() == 10
    assert_share(np.mean(levels == 10), 0.3085, levels.size)  # 1 - Phi(0.5)


def test_both_op_lists_name_the_same_operations():
    assert set(RAND) == set(RAND_INCREASING)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0])
def test_lam_has_the_moments_of_its_beta_distribution(alpha):
    keys = jax.random.split(KEY, 20_000)
    draw = jax.vmap(lambda key: draw_lam(key, alpha=alpha, probability=1.0))
    lam = np.asarray(jax.jit(draw)(keys))
    assert ((lam >= 0) & (lam <= 1)).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(lam.mean() - 0.5) < 4 * np.sqrt(variance / lam.size)
    assert abs(lam.var() - variance) < 0.02 * variance


@pytest.mark.slow
def test_batches_are_mixed_and_switched_as_often_as_asked():
    augmentation = Augmentation(
        mixup_alpha=1.0, cutmix_alpha=1.0, mix_probability=0.8, mix_switch_probability=0.3
    )
    # Image 0 is zeros, its partner ones: between them lies what mixup alone gives.
    images = jnp.stack([jnp.zeros((16, 16, 1)), jnp.ones((16, 16, 1))])
    targets = jnp.eye(2)
    keys = jax.random.split(KEY, 4000)
    mix_each = jax.vmap(lambda key: mix(key, images, targets, augmentation=augmentation))
    mixed, soft = jax.jit(mix_each)(keys)
    first = np.asarray(mixed)[:, 0]
    between = ((first > 0) & (first < 1)).any((1, 2, 3))
    assert_share(between.mean(), 0.8 * 0.7, 4000)
    np.testing.assert_allclose(first.mean((1, 2, 3)), soft[:, 0, 1], atol=2e-6)
    # Few boxes are smaller than a pixel, so nearly all that is left unmixed was meant to be.
    assert_share(np.mean(soft[:, 0, 1] > 0), 0.8, 4000)


def test_mixup_weighs_each_example_and_its_partner():
    images, targets = jnp.arange(4.0).reshape(4, 1, 1, 1), jnp.eye(4)
    mixed, soft = mixup(images, targets, lam=jnp.float32(0.75))
    np.testing.assert_array_equal(mixed.ravel(), [0.75, 1.25, 1.75, 2.25])
    np.testing.assert_array_equal(soft[0], [0.75, 0, 0, 0.25])


def test_cutmix_s_targets_are_the_clipped_box_s_area():
    images = jnp.stack([jnp.zeros((8, 10, 1)), jnp.ones((8, 10, 1))])
    box = cut_box(jnp.float32(0.36), jnp.array([0, 9]), height=8, width=10)
    assert [int(edge) for edge in box] == [0, 3, 5, 10]
    mixed, targets = cutmix(images, jnp.eye(2), box=box)
    np.testing.assert_allclose(mixed[0].mean(), 15 / 80, rtol=1e-6)
    np.testing.assert_allclose(targets[0], [65 / 80, 15 / 80], rtol=1e-6)


def test_unmixed_batches_keep_their_bits():
    images, targets = jnp.asarray(RNG.normal(size=(4, 6, 6, 3)), jnp.float32), jnp.eye(4)
    one = jnp.float32(1)
    np.testing.assert_array_equal(mixup(images, targets, lam=one)[0], images)
    box = cut_box(one, jnp.array([3, 3]), height=6, width=6)
    for ours, theirs in zip(cutmix(images, targets, box=box), (images, targets), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_erased_rectangles_have_the_areas_and_ratios_asked_for():
    keys = jax.random.split(KEY, 5000)
    box = jax.jit(jax.vmap(lambda key: erase_box(key, height=200, width=200)))(keys)
    top, bottom, left, right = np.asarray(box)
    tall, wide = bottom - top, right - left
    assert min(top.min(), left.min()) >= 0
    assert max(bottom.max(), right.max()) <= 200
    area = tall * wide / 200**2
    assert area.min() > 0.019
    assert area.max() < 0.34
    low, high = augment_module.ERASED_AREA
    assert abs(area.mean() - (low + high) / 2) < 0.01
    assert abs(np.log(tall / wide).mean()) < 4 * 0.7 / np.sqrt(5000)
    assert (tall / wide).min() > 0.28
    assert (tall / wide).max() < 3.5
    # Room left over is shared evenly between both sides.
    assert abs((top / np.maximum(200 - tall, 1)).mean() - 0.5) < 4 * 0.3 / np.sqrt(5000)


@pytest.mark.slow
def test_as_many_images_are_erased_as_asked():
    images = jnp.ones((2000, 16, 16, 1))
    zero = np.asarray(erase(KEY, images, probability=0.3) == 0).any((1, 2, 3))
    assert_share(zero.mean(), 0.3, 2000)


@pytest.mark.slow
def test_noise_is_normal_and_its_own_at_every_pixel():
    noisy = np.asarray(erase(KEY, jnp.full((200, 32, 32, 3), 9.0), probability=1.0, value="noise"))
    noise = noisy[noisy != 9]
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)
    assert np.unique(noise).size > 0.99 * noise.size


def test_too_small_an_image_is_not_erased():
    images = jnp.ones((8, 1, 1, 3))
    np.testing.assert_array_equal(erase(KEY, images, probability=1.0), images)


def test_smoothing_keeps_the_sum_and_padding_is_no_class():
    targets = smooth_labels(jnp.array([2, -1]), 5, smoothing=0.1)
    np.testing.assert_allclose(targets[0], [0.02, 0.02, 0.92, 0.02, 0.02], rtol=1e-6)
    nothing = smooth_labels(jnp.array([-1]), 5, smoothing=0.0)
    np.testing.assert_array_equal(nothing, np.zeros((1, 5)))
