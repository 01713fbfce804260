"""TrivialAugment and RandAugment of whole batches on the device.

What each operation may do is a table: `TRIVIAL` of ranges, `RAND` and `RAND_INCREASING` of
functions of the magnitude.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, UInt8

from resnetjax.data import image_ops
from resnetjax.data.operations import Image, Setting, setting, transform

Images = UInt8[Array, "batch height width channels"]


class Range(NamedTuple):
    """What TrivialAugment draws from: equal steps, with either sign, as an operation's argument."""

    first: float = 0.0
    last: float = 0.0
    signed: bool = False
    to_argument: Callable[[np.ndarray], np.ndarray] = np.asarray


def _moved(pixels: np.ndarray) -> np.ndarray:
    return -np.trunc(pixels)


def _changed(change: np.ndarray) -> np.ndarray:
    return 1 + change


TRIVIAL_BINS = 31
TRIVIAL = {
    "Identity": Range(),
    "ShearX": Range(0, 0.99, True),
    "ShearY": Range(0, 0.99, True),
    "TranslateX": Range(0, 32, True, _moved),
    "TranslateY": Range(0, 32, True, _moved),
    "Rotate": Range(0, 135, True),
    "Brightness": Range(0, 0.99, True, _changed),
    "Color": Range(0, 0.99, True, _changed),
    "Contrast": Range(0, 0.99, True, _changed),
    "Sharpness": Range(0, 0.99, True, _changed),
    "Posterize": Range(8, 2, False, np.round),
    "Solarize": Range(255, 0),
    "AutoContrast": Range(),
    "Equalize": Range(),
}


def trivial_arguments(name: str) -> Float64[np.ndarray, "bins 2"]:
    """Every argument that TrivialAugment Wide may draw for an operation, by bin and sign.

    torchvision/transforms/autoaugment.py: `TrivialAugmentWide._augmentation_space`, `_apply_op`.
    """
    values = TRIVIAL[name]
    # torch.linspace to the last bit: a float32 step, from both ends towards the middle.
    step = float(np.float32(values.last - values.first) / np.float32(TRIVIAL_BINS - 1))
    i = np.arange(TRIVIAL_BINS)
    first, last = (float(np.float32(end)) for end in (values.first, values.last))
    steps = np.where(i < TRIVIAL_BINS // 2, first + step * i, last - step * (TRIVIAL_BINS - 1 - i))
    signs = np.array([[1.0, -1.0 if values.signed else 1.0]])
    return values.to_argument(steps.astype(np.float32).astype(np.float64)[:, None] * signs)


def trivial_settings(name: str, *, height: int, width: int) -> Setting:
    """What `trivial_augment` may do by an operation, exactly: arrays [bins, 2, ...]."""
    exact = setting(name, trivial_arguments(name), height=height, width=width)
    return exact._replace(
        matrix=image_ops.to_fixed(exact.matrix),
        factor=exact.factor.astype(np.float32),
        argument=exact.argument.astype(np.float32),
    )


def trivial_augment(key: Array, images: Images) -> Images:
    """TrivialAugment Wide (Müller and Hutter 2021): one operation an image, of any strength.

    `torchvision.transforms.TrivialAugmentWide` on Pillow images, to the byte: nearest
    interpolation, black from outside. Only which numbers are drawn differs.

    Args:
        key: Image i's draws follow from it and i alone.
        images: The batch.

    Example:
        >>> images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
        >>> jax.jit(trivial_augment)(jax.random.key(0), images).shape
        (2, 8, 8, 3)
    """
    _, height, width, channels = images.shape
    each = [trivial_settings(name, height=height, width=width) for name in TRIVIAL]
    settings: Setting = jax.tree.map(lambda *values: jnp.asarray(np.stack(values)), *each)

    def augment(key: Array, image: Image) -> Image:
        counts = jnp.array([len(TRIVIAL), TRIVIAL_BINS, 2])
        place = tuple(jax.random.randint(key, (3,), 0, counts))
        chosen = jax.tree.map(lambda values: values[place], settings)
        return transform(image, chosen, fill=(0,) * channels)

    return jax.vmap(augment)(example_keys(key, images), images)


RandArguments = dict[str, Callable[[Any, Any], Any]]
"""By operation: from a share of the greatest magnitude, 0 to 1, and a sign to its argument.

A translation's is a share of the edge.
"""

_SAME: RandArguments = {
    "AutoContrast": lambda share, sign: share,
    "Equalize": lambda share, sign: share,
    "Invert": lambda share, sign: share,
    "Rotate": lambda share, sign: share * 30 * sign,
    "SolarizeAdd": lambda share, sign: jnp.floor(share * 110),
    "ShearX": lambda share, sign: share * 0.3 * sign,
    "ShearY": lambda share, sign: share * 0.3 * sign,
    "TranslateX": lambda share, sign: share * 0.45 * sign,
    "TranslateY": lambda share, sign: share * 0.45 * sign,
}
_FACTORS = ("Color", "Contrast", "Brightness", "Sharpness")

RAND: RandArguments = _SAME | {
    "Posterize": lambda share, sign: jnp.floor(share * 4),
    "Solarize": lambda share, sign: jnp.floor(share * 256),
    **dict.fromkeys(_FACTORS, lambda share, sign: share * 1.8 + 0.1),
}
"""timm/data/auto_augment.py: `_RAND_TRANSFORMS`."""

RAND_INCREASING: RandArguments = _SAME | {
    "Posterize": lambda share, sign: 4 - jnp.floor(share * 4),
    "Solarize": lambda share, sign: 256 - jnp.floor(share * 256),
    **dict.fromkeys(_FACTORS, lambda share, sign: jnp.maximum(0.1, 1 + share * 0.9 * sign)),
}
"""timm/data/auto_augment.py: `_RAND_INCREASING_TRANSFORMS`."""


def rand_setting(
    name: str, level: Array, sign: Array, *, increasing: bool, height: int, width: int
) -> Setting:
    """What `rand_augment` does by an operation at a level of 0 to 10 and a sign of -1 or 1."""
    arguments = RAND_INCREASING if increasing else RAND
    argument = arguments[name](level / 10, sign)
    argument = argument * {"TranslateX": width, "TranslateY": height}.get(name, 1)
    return setting(name, argument, height=height, width=width)


def rand_augment(
    key: Array,
    images: Images,
    *,
    ops: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.0,
    increasing: bool = False,
    fill: Sequence[int] = (128, 128, 128),
    probability: float = 0.5,
) -> Images:
    """RandAugment (Cubuk et al. 2020) as timm has it: `rand-m9-n2`, or `rand-m7-mstd0.5-inc1`.

    timm/data/auto_augment.py: `rand_augment_transform`. Interpolation is bilinear, which is timm's
    with `--train-interpolation bilinear`; timm's default takes bilinear or bicubic by chance.
    Posterizing to 0 bits gives black, as with Pillow before 13, which refuses it.

    Args:
        key: Image i's draws follow from it and i alone.
        images: The batch.
        ops: Operations an image, drawn with replacement.
        magnitude: Of 10.
        magnitude_std: Of the normal distribution that each operation's magnitude is drawn from,
            then clipped to 0..10.
        increasing: Use the operations whose strength only grows with the magnitude.
        fill: What comes from outside the image, a value in 0..255 per channel; timm takes the mean.
        probability: With which each of the operations drawn is done.

    Example:
        >>> images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
        >>> rand_augment(jax.random.key(0), images, magnitude=7, magnitude_std=0.5).shape
        (2, 8, 8, 3)
    """
    _, height, width, channels = images.shape
    if len(fill) != channels:
        raise ValueError(f"fill={fill!r} is not allowed: use {channels} values, one a channel")

    def draw(key: Array) -> Setting:
        choice_key, level_key = jax.random.split(key)
        whether, which, side = jax.random.uniform(choice_key, (3,))
        level = jnp.clip(magnitude + magnitude_std * jax.random.normal(level_key), 0, 10)
        sign = jnp.where(side < 0.5, -1.0, 1.0)
        size = {"height": height, "width": width}
        each = [rand_setting(name, level, sign, increasing=increasing, **size) for name in RAND]
        each.append(setting("Identity", level, **size))
        settings: Setting = jax.tree.map(lambda *values: jnp.stack(values), *each)
        place = (which * len(RAND)).astype(jnp.int32)
        place = jnp.where(whether < probability, place, len(RAND))
        return jax.tree.map(lambda values: values[place], settings)

    def augment(key: Array, image: Image) -> Image:
        def step(i: Array, image: Image) -> Image:
            return transform(image, draw(jax.random.fold_in(key, i)), fill=tuple(fill))

        return jax.lax.fori_loop(0, ops, step, image)

    return jax.vmap(augment)(example_keys(key, images), images)


def example_keys(key: Array, images: Array) -> Array:
    """One key for each example: that of example i follows from `key` and i, however sharded."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0]))
