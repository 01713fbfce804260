"""Augmentation against torchvision's and timm's own, on photographs and noise."""

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, random_erasing
from timm.data import mixup as timm_mixup
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from resnetjax.config import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from resnetjax.data import augment
from resnetjax.data.operations import transform
from resnetjax.data.policies import (
    RAND,
    RAND_INCREASING,
    TRIVIAL,
    TRIVIAL_BINS,
    rand_setting,
    trivial_settings,
)

pytestmark = pytest.mark.parity

FILL = augment.mean_pixel(Preprocess())
LEVELS = np.arange(0, 10.5, 0.5)


@pytest.fixture(scope="module")
def images(samples) -> list[np.ndarray]:
    """Photographs and noise, of odd and even sizes."""
    noise = np.random.default_rng(0).integers(0, 256, (45, 31, 3), np.uint8)
    pictures = [noise]
    for path, size in zip(samples, ((64, 64), (45, 57), (90, 71)), strict=False):
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB").resize(size)))
    return pictures


@jax.jit
def transform_each(image, settings, fill):
    return jax.vmap(lambda setting: transform(image, setting, fill=fill))(settings)


@pytest.mark.parametrize("name", TRIVIAL)
def test_every_trivial_augment_draw_gives_torchvision_s_bytes(images, name):
    magnitudes, signed = TrivialAugmentWide()._augmentation_space(TRIVIAL_BINS)[name]
    magnitudes = [float(value) for value in magnitudes.expand(TRIVIAL_BINS)]
    for image in images:
        height, width, _ = image.shape
        settings = trivial_settings(name, height=height, width=width)
        settings = jax.tree.map(jnp.concatenate, settings)  # one axis of bins and signs
        ours = transform_each(image, settings, jnp.zeros(3, jnp.uint8))
        picture = Image.fromarray(image)
        theirs = [
            _apply_op(picture, name, sign * magnitude, InterpolationMode.NEAREST, None)
            for magnitude in magnitudes
            for sign in ((1, -1) if signed else (1, 1))
        ]
        np.testing.assert_array_equal(ours, np.stack(theirs))


def test_trivial_augment_has_torchvision_s_operations():
    assert list(TRIVIAL) == list(TrivialAugmentWide()._augmentation_space(TRIVIAL_BINS))


def timm_names(*, increasing: bool) -> dict[str, str]:
    """Ours to timm's."""
    theirs = auto_augment.rand_augment_choices("", increasing=increasing)
    return {name.removesuffix("Increasing").removesuffix("Rel"): name for name in theirs}


@pytest.mark.parametrize("increasing", [False, True])
def test_rand_augment_has_timm_s_operations_and_arguments(monkeypatch, increasing):
    names = timm_names(increasing=increasing)
    arguments = RAND_INCREASING if increasing else RAND
    assert set(arguments) == set(names)
    for negate in (False, True):
        monkeypatch.setattr(random, "random", lambda negate=negate: 0.9 if negate else 0.1)
        sign = -1.0 if negate else 1.0
        for ours, theirs in names.items():
            level_to_argument = auto_augment.LEVEL_TO_ARG[theirs]
            if level_to_argument is None:
                continue
            expected = np.array([level_to_argument(level, {})[0] for level in LEVELS])
            shares = jnp.asarray(LEVELS, jnp.float32) / 10
            found = np.asarray(arguments[ours](shares, jnp.float32(sign)))
            # Whole numbers are the same; the others differ in float32's last bits.
            exact = expected.dtype.kind == "i"
            np.testing.assert_allclose(found, expected, rtol=0, atol=0 if exact else 2e-6)


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", RAND)
def test_rand_augment_s_operations_give_timm_s_bytes(monkeypatch, images, name, increasing):
    theirs = timm_names(increasing=increasing)[name]
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR}
    warps = name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    drawn = [(level, sign) for level in (0.0, 1.0, 2.7, 5.0, 7.3, 9.0, 10.0) for sign in (1, -1)]
    if name == "Posterize":  # to 0 bits, which Pillow refuses from 13 on: black here
        drawn = [draw for draw in drawn if (draw[0] < 10 if increasing else draw[0] > 2.5)]
        drawn += drawn[: 14 - len(drawn)]
    levels, signs = (jnp.asarray(values, jnp.float32) for values in zip(*drawn, strict=True))
    for image in images[:3]:
        size = {"height": image.shape[0], "width": image.shape[1]}
        settings = jax.vmap(
            lambda level, sign, size=size: rand_setting(
                name, level, sign, increasing=increasing, **size
            )
        )(levels, signs)
        ours = np.asarray(transform_each(image, settings, jnp.array(FILL, jnp.uint8)))
        expected = []
        for level, sign in drawn:
            monkeypatch.setattr(random, "random", lambda sign=sign: 0.1 if sign > 0 else 0.9)
            operation = auto_augment.AugmentOp(theirs, prob=1.0, magnitude=level, hparams=hparams)
            expected.append(np.asarray(operation(Image.fromarray(image))))
        difference = np.abs(ours.astype(int) - np.stack(expected))
        # Blends and tables are exact. Interpolation truncates float32 here and float64 there: a
        # translation by simple fractions of a pixel, as at these levels, brings many values near
        # whole numbers. Measured: up to 1.5 %.
        assert difference.max() <= (1 if warps else 0)
        assert difference.mean() <= 0.02


def test_nothing_is_left_of_no_bits():
    image = jnp.full((5, 5, 3), 255, jnp.uint8)
    settings = rand_setting(
        "Posterize", jnp.array([10.0]), jnp.ones(1), increasing=True, height=5, width=5
    )
    assert not np.asarray(transform_each(image, settings, jnp.zeros(3, jnp.uint8))).any()


@pytest.mark.parametrize("divisor_mean", [(255.0, IMAGENET_MEAN), (255.0, (0.5, 0.5, 0.5))])
def test_the_fill_is_timm_s(divisor_mean):
    divisor, mean = divisor_mean
    preprocess = Preprocess(divisor=divisor, mean=mean, std=IMAGENET_STD)
    # timm/data/transforms_factory.py: transforms_imagenet_train
    assert augment.mean_pixel(preprocess) == tuple(min(255, round(255 * value)) for value in mean)


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 24, 17, 3)).astype(np.float32)
    return images, np.array([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("cut", [False, True])
def test_mixing_is_timm_s_for_the_same_draws(monkeypatch, batch, cut, smoothing):
    images, labels = batch
    for lam in (0.0, 0.03, 0.36, 0.5, 0.77, 0.9999, 1.0):
        centre = iter((11, 3))
        monkeypatch.setattr(np.random, "beta", lambda *_, lam=lam: lam)
        monkeypatch.setattr(np.random, "randint", lambda *_, centre=centre, **__: next(centre))
        alphas = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0} if cut else {"mixup_alpha": 1.0}
        reference = timm_mixup.Mixup(**alphas, label_smoothing=smoothing, num_classes=5)
        their_images, their_targets = reference(
            torch.tensor(images).permute(0, 3, 1, 2).clone(), torch.tensor(labels)
        )
        targets = augment.smooth_labels(jnp.asarray(labels), 5, smoothing=smoothing)
        if cut:
            box = augment.cut_box(jnp.float32(lam), jnp.array([11, 3]), height=24, width=17)
            ours, targets = augment.cutmix(jnp.asarray(images), targets, box=box)
        else:
            ours, targets = augment.mixup(jnp.asarray(images), targets, lam=jnp.float32(lam))
        # timm weighs by 1 - lam from float64, and torch and XLA fuse differently.
        tolerance = 0 if cut else 5e-7
        their_images = their_images.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(ours, their_images, rtol=0, atol=tolerance)
        np.testing.assert_allclose(targets, their_targets, rtol=0, atol=2e-7)


def test_cut_boxes_are_timm_s(monkeypatch):
    rng = np.random.default_rng(0)
    shares = rng.uniform(size=500).astype(np.float32)
    centres = rng.integers(0, (224, 160), (500, 2))
    boxes = jax.vmap(lambda *drawn: augment.cut_box(*drawn, height=224, width=160))(
        shares, centres.astype(np.int32)
    )
    for i in range(500):
        centre = iter(centres[i])
        monkeypatch.setattr(np.random, "randint", lambda *_, centre=centre, **__: next(centre))
        expected = timm_mixup.rand_bbox((6, 3, 224, 160), float(shares[i]))
        assert [int(edge[i]) for edge in boxes] == [int(edge) for edge in expected]


def test_erased_boxes_are_distributed_as_timm_s():
    count = 4000
    eraser = random_erasing.RandomErasing(1.0, device="cpu")
    random.seed(0)
    kept = torch.ones(count, 1, 40, 56)
    theirs = eraser(kept)[:, 0].numpy() == 0
    images = jnp.ones((count, 40, 56, 1))
    erased = jax.jit(lambda key, images: augment.erase(key, images, probability=1.0))
    ours = np.asarray(erased(jax.random.key(0), images))[..., 0] == 0
    for measure in (
        lambda inside: inside.mean((1, 2)),  # area
        lambda inside: np.log(inside.any(2).sum(1) / inside.any(1).sum(1)),  # ratio
        lambda inside: inside.any(2).argmax(1),  # top
        lambda inside: inside.any(1).argmax(1),  # left
    ):
        statistic = kolmogorov_smirnov(measure(ours), measure(theirs))
        assert statistic < 1.95 * math.sqrt(2 / count)  # p = 0.001


def kolmogorov_smirnov(ours: np.ndarray, theirs: np.ndarray) -> float:
    at = np.concatenate([ours, theirs])
    our_share = np.searchsorted(np.sort(ours), at, "right") / ours.size
    their_share = np.searchsorted(np.sort(theirs), at, "right") / theirs.size
    return float(np.abs(our_share - their_share).max())
