"""The operations against Pillow: the same bytes, but for bilinear interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from resnetjax.data import image_ops
from resnetjax.data.operations import PRIMITIVES, setting, transform

FILL = (124, 116, 104)
FACTORS = (0.0, 0.01, 0.1, 0.55, 0.703, 1.0, 1.3, 1.9, 1.99)


def noise(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def photo(height: int, width: int, channels: int) -> np.ndarray:
    """A smooth picture that leaves out the darkest and brightest values."""
    small = noise(3, 4, channels).squeeze() // 2 + 50
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels)


IMAGES = {
    "noise": noise(37, 53, 3),
    "photo": photo(37, 53, 3),
    "grey": photo(37, 53, 1),
    "tiny": noise(2, 5, 3),
    "plain": np.full((37, 53, 3), 77, np.uint8),
}


def as_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


@jax.jit
def transform_each(image, settings):
    fill = FILL[: image.shape[-1]]
    return jax.vmap(lambda setting: transform(image, setting, fill=fill))(settings)


def by_operation(name: str, image: np.ndarray, arguments, *, nearest: bool = False) -> np.ndarray:
    height, width, _ = image.shape
    padded = np.resize(np.array(arguments, np.float64), 18)  # of one length: compiled once
    settings = setting(name, padded, height=height, width=width)
    if nearest:
        settings = settings._replace(matrix=image_ops.to_fixed(settings.matrix))
    transformed = transform_each(image, jax.tree.map(jnp.asarray, settings))
    return np.asarray(transformed)[: len(arguments)]


def by_pillow(image: np.ndarray, function, arguments) -> np.ndarray:
    pictures = [np.asarray(function(as_pillow(image), argument)) for argument in arguments]
    return np.stack(pictures).reshape(-1, *image.shape)


def affine(place: int):
    def warp(picture: Image.Image, argument: float, resampling: Image.Resampling) -> Image.Image:
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        matrix[place] = argument
        fill = FILL if picture.mode == "RGB" else FILL[0]
        method = Image.Transform.AFFINE
        return picture.transform(picture.size, method, matrix, resampling, fillcolor=fill)

    return warp


def rotate(picture: Image.Image, argument: float, resampling: Image.Resampling) -> Image.Image:
    fill = FILL if picture.mode == "RGB" else FILL[0]
    return picture.rotate(argument, resampling, fillcolor=fill)


SHEARS = (0.0, 0.033, -0.033, 0.3, -0.3, 0.99, -0.99)
SHIFTS = (0.0, 1.0, -1.0, 7.0, -13.0, 36.0, 60.0)
WARPS = {
    "ShearX": (affine(1), SHEARS),
    "ShearY": (affine(3), SHEARS),
    "TranslateX": (affine(2), SHIFTS),
    "TranslateY": (affine(5), SHIFTS),
    "Rotate": (rotate, (0.0, 4.5, -4.5, 30.0, -30.0, 90.0, -90.0, 135.0, 180.0)),
}
POINTWISE = {
    "Identity": (lambda picture, _: picture, (0.0,)),
    "Brightness": (lambda picture, by: ImageEnhance.Brightness(picture).enhance(by), FACTORS),
    "Color": (lambda picture, by: ImageEnhance.Color(picture).enhance(by), FACTORS),
    "Contrast": (lambda picture, by: ImageEnhance.Contrast(picture).enhance(by), FACTORS),
    "Sharpness": (lambda picture, by: ImageEnhance.Sharpness(picture).enhance(by), FACTORS),
    "Invert": (lambda picture, _: ImageOps.invert(picture), (0.0,)),
    "Posterize": (lambda picture, bits: ImageOps.posterize(picture, int(bits)), range(1, 9)),
    "Solarize": (ImageOps.solarize, (0.0, 8.5, 128.0, 255.0, 256.0)),
    "AutoContrast": (lambda picture, _: ImageOps.autocontrast(picture), (0.0,)),
    "Equalize": (lambda picture, _: ImageOps.equalize(picture), (0.0,)),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=list(IMAGES))
@pytest.mark.parametrize("name", POINTWISE)
def test_blends_and_tables_give_pillow_s_bytes(name, image):
    function, arguments = POINTWISE[name]
    expected = by_pillow(image, function, arguments)
    np.testing.assert_array_equal(by_operation(name, image, arguments), expected)


@pytest.mark.parametrize("image", IMAGES.values(), ids=list(IMAGES))
@pytest.mark.parametrize("name", WARPS)
def test_nearest_warps_give_pillow_s_bytes(name, image):
    function, arguments = WARPS[name]
    nearest = Image.Resampling.NEAREST
    expected = by_pillow(image, lambda *which: function(*which, nearest), arguments)
    np.testing.assert_array_equal(by_operation(name, image, arguments, nearest=True), expected)


@pytest.mark.parametrize("image", IMAGES.values(), ids=list(IMAGES))
@pytest.mark.parametrize("name", WARPS)
def test_bilinear_warps_give_pillow_s_bytes_to_one_level(name, image):
    # Truncated from float32 here and float64 there: where the value is near a whole number, as
    # simple fractions of pixels often make it, they fall on either side. Measured: up to 0.8 %.
    function, arguments = WARPS[name]
    arguments = [argument + 0.37 for argument in arguments] + list(arguments)
    bilinear = Image.Resampling.BILINEAR
    expected = by_pillow(image, lambda *which: function(*which, bilinear), arguments)
    difference = np.abs(by_operation(name, image, arguments).astype(int) - expected)
    assert difference.max() <= 1
    assert difference.sum() <= max(10, 0.01 * difference.size)


def test_every_operation_but_solarize_add_is_compared():
    # Pillow has no such operation; tests/parity compares it with timm's.
    assert {*POINTWISE, *WARPS} == {*PRIMITIVES} - {"SolarizeAdd"}


def test_every_factor_blends_all_pairs_of_values_as_pillow_does():
    # A fused multiply-add, which skips a rounding, would give other bytes.
    start, end = (grid.astype(np.uint8) for grid in np.mgrid[:256, :256])
    factors = np.random.default_rng(0).uniform(0, 2, 50)
    ours = jax.jit(jax.vmap(image_ops.blend, (None, None, 0)))(
        start[..., None], end[..., None], jnp.asarray(factors, jnp.float32)
    )
    pictures = Image.fromarray(start), Image.fromarray(end)
    expected = np.stack([np.asarray(Image.blend(*pictures, factor)) for factor in factors])
    np.testing.assert_array_equal(np.asarray(ours)[..., 0], expected)


def test_every_range_of_values_is_stretched_as_autocontrast_does():
    low, high = (ends[::7] for ends in np.triu_indices(256))
    counts = np.zeros((256, low.size), np.int32)
    counts[low, np.arange(low.size)] = counts[high, np.arange(low.size)] = 1
    tables = np.asarray(jax.jit(image_ops.autocontrast_tables)(counts))
    for i in range(low.size):
        values = np.arange(low[i], high[i] + 1)
        expected = ImageOps.autocontrast(Image.fromarray(values.astype(np.uint8)[None]))
        np.testing.assert_array_equal(tables[values, i], np.asarray(expected)[0])


def test_few_pixels_are_equalized_as_pillow_does():
    # Steps of 0 or 1 pixel: tables that are left alone, and that would pass 255.
    rng = np.random.default_rng(0)
    equalize = jax.jit(
        lambda i: image_ops.look_up(i, image_ops.equalize_tables(image_ops.histogram(i)))
    )
    for _ in range(40):
        values = rng.integers(0, rng.integers(2, 256), rng.integers(200, 600)).astype(np.uint8)
        image = np.resize(values, (20, 31, 1))
        expected = np.asarray(ImageOps.equalize(as_pillow(image)))
        np.testing.assert_array_equal(np.asarray(equalize(image))[..., 0], expected)


def test_grey_and_its_mean_are_pillow_s_for_every_kind_of_colour():
    image = noise(256, 256, 3)
    expected = np.asarray(as_pillow(image).convert("L"))
    np.testing.assert_array_equal(np.asarray(image_ops.grey(jnp.asarray(image)))[..., 0], expected)
    assert int(image_ops.mean_grey(jnp.asarray(image))) == int(expected.mean() + 0.5)


def test_a_histogram_counts_every_channel():
    image = noise(37, 53, 3)
    counts = np.asarray(image_ops.histogram(jnp.asarray(image)))
    np.testing.assert_array_equal(counts.T.ravel(), as_pillow(image).histogram())
