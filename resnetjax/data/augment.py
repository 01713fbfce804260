"""Batches of uint8 images to varied, normalised float32 batches and soft targets, on the device.

The order is torchvision's references' and that of timm without its prefetcher: policy, normalise,
erase, mix. (timm's prefetcher mixes rounded uint8 images first and erases last.) Crop and flip have
happened on the host. Image i's own draws follow from the key and i, those of the mix from the key:
how the batch is sharded changes nothing.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt8

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.policies import example_keys, rand_augment, trivial_augment
from resnetjax.data.preprocess import normalize

__all__ = [
    "augment",
    "cut_box",
    "cutmix",
    "draw_lam",
    "erase",
    "erase_box",
    "mix",
    "mixup",
    "rand_augment",
    "smooth_labels",
    "trivial_augment",
]

Images = Float32[Array, "batch height width channels"]
Targets = Float32[Array, "batch classes"]
Box = tuple[Array, Array, Array, Array]
"""Top, bottom, left and right in pixels; bottom and right are no longer in it."""

ERASED_AREA = (0.02, 1 / 3)
ERASED_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))
ERASE_ATTEMPTS = 10


def augment(
    key: Array,
    images: UInt8[Array, "batch height width channels"],
    labels: Int32[Array, " batch"] | Float32[Array, "batch outputs"],
    *,
    augmentation: Augmentation,
    preprocess: Preprocess,
    num_classes: int,
) -> tuple[Images, Targets]:
    """The net's input and targets for one step, varied as `augmentation` says.

    Args:
        key: Of the step, from `jax.random.key`.
        images: Cropped and flipped, red first.
        labels: Classes from 0 on; -1 gives a target that is no class (before smoothing, zeros).
            Rows are targets as they are.
        augmentation: What to do; its crop, flip and repeats were the host's.
        preprocess: How images are normalised.
        num_classes: Width of the targets.

    Example:
        >>> images, targets = augment(
        ...     jax.random.key(0),
        ...     jnp.zeros((4, 32, 32, 3), jnp.uint8),
        ...     jnp.array([1, 0, 2, 1]),
        ...     augmentation=Augmentation(mixup_alpha=0.2, label_smoothing=0.1),
        ...     preprocess=Preprocess(crop_px=(32, 32)),
        ...     num_classes=3,
        ... )
        >>> images.shape, targets.shape
        ((4, 32, 32, 3), (4, 3))
    """
    policy_key, erase_key, mix_key = jax.random.split(key, 3)
    if augmentation.policy == "trivial":
        images = trivial_augment(policy_key, images)
    elif augmentation.policy == "rand":
        images = rand_augment(
            policy_key,
            images,
            ops=augmentation.policy_ops,
            magnitude=augmentation.policy_magnitude,
            magnitude_std=augmentation.policy_magnitude_std,
            increasing=augmentation.policy_increasing,
            fill=mean_pixel(preprocess),
        )
    normalized: Images = normalize(images, preprocess)
    if augmentation.erase_probability > 0:
        normalized = erase(
            erase_key,
            normalized,
            probability=augmentation.erase_probability,
            value=augmentation.erase_value,
        )
    smoothing = augmentation.label_smoothing
    rows = labels.ndim == 2
    targets = labels if rows else smooth_labels(labels, num_classes, smoothing=smoothing)
    return mix(mix_key, normalized, targets, augmentation=augmentation)


def mean_pixel(preprocess: Preprocess) -> tuple[int, ...]:
    """What normalises to about 0, red first (timm/data/transforms_factory.py: `img_mean`)."""
    mean = preprocess.mean if preprocess.channel_order == "rgb" else preprocess.mean[::-1]
    return tuple(min(255, max(0, round(preprocess.divisor * value))) for value in mean)


def smooth_labels(labels: Int[Array, " batch"], num_classes: int, *, smoothing: float) -> Targets:
    """One-hot targets of which a share goes to all classes alike (Szegedy et al. 2016).

    Example:
        >>> smooth_labels(jnp.array([1]), 4, smoothing=0.5).tolist()
        [[0.125, 0.625, 0.125, 0.125]]
    """
    off = smoothing / num_classes  # timm/data/mixup.py: mixup_target
    is_class = jax.nn.one_hot(labels, num_classes, dtype=jnp.bool)
    return jnp.where(is_class, jnp.float32(1 - smoothing + off), jnp.float32(off))


def mix(
    key: Array, images: Images, targets: Targets, *, augmentation: Augmentation
) -> tuple[Images, Targets]:
    """The batch mixed with itself in reverse order by mixup or CutMix, or as it is.

    timm/data/mixup.py: `Mixup` in its "batch" mode, for one method and strength a batch.
    """
    alphas = augmentation.mixup_alpha, augmentation.cutmix_alpha
    if not any(alphas) or augmentation.mix_probability == 0:
        return images, targets
    lam_key, switch_key, centre_key = jax.random.split(key, 3)
    _, height, width, _ = images.shape
    switch_probability = (
        augmentation.mix_switch_probability if all(alphas) else float(alphas[1] > 0)
    )
    switch = jax.random.bernoulli(switch_key, switch_probability)
    alpha = jnp.where(switch, alphas[1], alphas[0])
    lam = draw_lam(lam_key, alpha=alpha, probability=augmentation.mix_probability)

    def by_mixup() -> tuple[Images, Targets]:
        return mixup(images, targets, lam=lam)

    def by_cutmix() -> tuple[Images, Targets]:
        centre = jax.random.randint(centre_key, (2,), 0, jnp.array([height, width]))
        return cutmix(images, targets, box=cut_box(lam, centre, height=height, width=width))

    if not all(alphas):
        return by_cutmix() if alphas[1] > 0 else by_mixup()
    return lax.cond(switch, by_cutmix, by_mixup)


def draw_lam(key: Array, *, alpha: float | Array, probability: float) -> Float32[Array, ""]:
    """The share that each image keeps, from Beta(alpha, alpha); 1 for the batches left unmixed."""
    whether, share = jax.random.split(key)
    drawn = jax.random.beta(share, alpha, alpha, dtype=jnp.float32)
    return jnp.where(jax.random.bernoulli(whether, probability), drawn, jnp.float32(1))


def mixup(images: Images, targets: Targets, *, lam: Float[Array, ""]) -> tuple[Images, Targets]:
    """Each example by `lam` and its partner, in the reversed batch, by the rest (Zhang 2018).

    Example:
        >>> both = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> mixup(both.reshape(2, 1, 1, 2), both, lam=jnp.float32(0.75))[1].tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """
    return _interpolate(images, lam), _interpolate(targets, lam)


def cutmix(images: Images, targets: Targets, *, box: Box) -> tuple[Images, Targets]:
    """Each image with its partner's pixels in the box, targets by their areas (Yun et al. 2019).

    The partner is the example's in the reversed batch.

    Example:
        >>> box = (jnp.array(0), jnp.array(1), jnp.array(0), jnp.array(2))
        >>> images = jnp.array([1.0, 2.0]).reshape(2, 1, 1, 1) * jnp.ones((2, 1, 8, 1))
        >>> mixed, targets = cutmix(images, jnp.array([[1.0, 0.0], [0.0, 1.0]]), box=box)
        >>> mixed[0].ravel().tolist(), targets[0].tolist()
        ([2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.75, 0.25])
    """
    _, height, width, _ = images.shape
    top, bottom, left, right = box
    lam = 1 - ((bottom - top) * (right - left)).astype(jnp.float32) / (height * width)
    inside = _in_box(box, height, width)[None, :, :, None]
    return jnp.where(inside, images[::-1], images), _interpolate(targets, lam)


def cut_box(lam: Float[Array, ""], centre: Int[Array, "2"], *, height: int, width: int) -> Box:
    """A box with a share `1 - lam` of the image's area, clipped to the image.

    timm/data/mixup.py: `rand_bbox`, given its centre.

    Args:
        lam: Share of the image that stays, before clipping.
        centre: y and x.
        height: Of the image, in pixels.
        width: Likewise.

    Example:
        >>> box = cut_box(jnp.float32(0.75), jnp.array([0, 4]), height=8, width=8)
        >>> [edge.item() for edge in box]
        [0, 2, 2, 6]
    """
    edge = jnp.sqrt(1 - lam)
    tall, wide = ((size * edge).astype(jnp.int32) for size in (height, width))
    y, x = centre
    return (
        jnp.clip(y - tall // 2, 0, height),
        jnp.clip(y + (tall + 1) // 2, 0, height),
        jnp.clip(x - wide // 2, 0, width),
        jnp.clip(x + (wide + 1) // 2, 0, width),
    )


def erase(
    key: Array,
    images: Images,
    *,
    probability: float,
    value: Literal["zero", "noise"] = "zero",
) -> Images:
    """A rectangle of some images overwritten by 0 or by normal noise (Zhong et al. 2017).

    timm/data/random_erasing.py, mode "const" or "pixel": 2 to 33 % of the area, 0.3 to 3.33 times
    as high as wide. torchvision's differs in the third digits.

    Args:
        key: Image i's draws follow from it and i alone.
        images: Normalised.
        probability: With which an image loses a rectangle.
        value: What replaces it.

    Example:
        >>> images = jnp.ones((1, 32, 32, 1))
        >>> erased = jax.jit(erase)(jax.random.key(0), images, probability=1.0)
        >>> 0.02 < (erased == 0).mean().item() < 0.34
        True
    """
    _, height, width, _ = images.shape

    def erase_one(key: Array, image: Array) -> Array:
        whether, where, what = jax.random.split(key, 3)
        inside = _in_box(erase_box(where, height=height, width=width), height, width)
        inside &= jax.random.bernoulli(whether, probability)
        noise = jax.random.normal(what, image.shape, image.dtype) if value == "noise" else None
        return jnp.where(inside[..., None], 0 if noise is None else noise, image)

    return jax.vmap(erase_one)(example_keys(key, images), images)


def erase_box(key: Array, *, height: int, width: int) -> Box:
    """The first of ten rectangles that fits into the image, or an empty one."""
    drawn = jax.random.uniform(key, (2 * ERASE_ATTEMPTS + 2,))
    areas, ratios = drawn[:ERASE_ATTEMPTS], drawn[ERASE_ATTEMPTS:-2]
    area = (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * areas) * (height * width)
    low, high = ERASED_LOG_RATIO
    ratio = jnp.exp(low + (high - low) * ratios)
    tall = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    wide = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits)
    tall, wide = jnp.where(fits[first], tall[first], 0), jnp.where(fits[first], wide[first], 0)
    top = (drawn[-2] * (height - tall + 1)).astype(jnp.int32)
    left = (drawn[-1] * (width - wide + 1)).astype(jnp.int32)
    return top, top + tall, left, left + wide


def _interpolate(batch: Array, lam: Array) -> Array:
    return batch * lam + batch[::-1] * (1 - lam)


def _in_box(box: Box, height: int, width: int) -> Bool[Array, "height width"]:
    top, bottom, left, right = box
    y = lax.broadcasted_iota(jnp.int32, (height, width), 0)
    x = lax.broadcasted_iota(jnp.int32, (height, width), 1)
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)
