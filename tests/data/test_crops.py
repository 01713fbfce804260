"""Training's view of an image: boxes of the right shapes, and in them the pixels of Pillow."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnetjax.config import Preprocess
from resnetjax.data import crops
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.crops import random_box, resized, training_view
from resnetjax.data.preprocess import preprocess as evaluation_view
from resnetjax.errors import BadImage

EDGE_PX = 64
RGB, GREY = Preprocess(), Preprocess(mean=(0.5,), std=(0.5,))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Boxes


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    areas=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    ratios=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    seed=st.integers(0, 2**32),
)
def test_boxes_lie_within_the_image_and_obey_area_and_ratio(height, width, areas, ratios, seed):
    chosen = Augmentation(crop_area=(min(areas), max(areas)), crop_ratio=(min(ratios), max(ratios)))
    left, top, right, bottom = random_box(rng(seed), height, width, augmentation=chosen)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    box_width, box_height = right - left, bottom - top
    low, high = chosen.crop_ratio
    # Half a pixel of each edge is rounded, and an edge has one at least.
    assert (box_width + 0.5) / (box_height - 0.5) >= low * (1 - 1e-9) or box_height == 1
    assert (box_width - 0.5) / (box_height + 0.5) <= high * (1 + 1e-9) or box_width == 1
    least, most = (share * height * width for share in chosen.crop_area)
    drawn = (box_width + 0.5) * (box_height + 0.5) >= least and (box_width - 0.5) * (
        box_height - 0.5
    ) <= most
    assert drawn or box_width == width or box_height == height


def distance(values: np.ndarray, low: float, high: float) -> float:
    """Of Kolmogorov and Smirnov, from the uniform distribution."""
    ordered = np.sort((values - low) / (high - low))
    return np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max()


def test_areas_logarithms_of_ratios_and_places_are_uniform():
    # No box of at most half the area sticks out of a square, so none is drawn again.
    chosen = Augmentation(crop_area=(0.1, 0.5), crop_ratio=(3 / 4, 4 / 3))
    generator, edge = rng(), 10_000
    boxes = np.array([random_box(generator, edge, edge, augmentation=chosen) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    limit = 1.95 / math.sqrt(len(boxes))  # exceeded once in a thousand
    assert distance(width * height / edge**2, 0.1, 0.5) < limit
    assert distance(np.log(width / height), math.log(3 / 4), math.log(4 / 3)) < limit
    across, down = left / (edge - width), top / (edge - height)
    assert distance(across, 0, 1) < limit
    assert distance(down, 0, 1) < limit
    assert abs(np.corrcoef(across, down)[0, 1]) < 4 / math.sqrt(len(boxes))


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((100, 1000), (433, 0, 566, 100)),  # as wide as 4/3 allows
        ((1000, 100), (0, 433, 100, 566)),  # as high as 3/4 allows
        ((100, 100), (0, 0, 100, 100)),
    ],
)
def test_where_nothing_fits_it_is_the_largest_box_in_the_middle(size, box):
    # Of this share of the area none fits, or only the whole, which is never drawn.
    chosen = Augmentation(crop_area=(0.9999999, 1.0))
    assert random_box(rng(1), *size, augmentation=chosen) == box


# Pixels


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_a_box_has_the_pixels_of_pillow_s_decode_crop_and_resize(
    photographs, monkeypatch, interpolation
):
    chosen = Augmentation(interpolation=interpolation, flip=False)
    assert len(photographs) > 5
    for seed, path in enumerate(photographs):
        with Image.open(path) as image:
            whole = image.convert("RGB")
        box = random_box(rng(seed), whole.height, whole.width, augmentation=chosen)
        monkeypatch.setattr(crops, "random_box", lambda *_, box=box, **__: box)
        view = training_view(
            path.read_bytes(), rng(), augmentation=chosen, preprocess=RGB, edge_px=EDGE_PX
        )
        expected = whole.crop(box).resize(
            (EDGE_PX, EDGE_PX), Image.Resampling[interpolation.upper()]
        )
        np.testing.assert_array_equal(view, np.asarray(expected), err_msg=path.name)


def test_grey_boxes_stay_grey():
    pixels = rng().integers(0, 256, (20, 30, 1), np.uint8)
    part = resized(pixels, (3, 4, 13, 14), 10, "bilinear")
    np.testing.assert_array_equal(part, pixels[4:14, 3:13])  # of its own size: not resized


# Padded crops, flips


def padded(pixels: np.ndarray, generator: np.random.Generator, **changes) -> np.ndarray:
    chosen = Augmentation(**({"crop": "pad", "crop_padding": 2, "flip": False} | changes))
    return training_view(
        pixels, generator, augmentation=chosen, preprocess=GREY, edge_px=pixels.shape[0]
    )


def test_padded_crops_are_all_shifts_with_zeros_around_and_equally_often():
    pixels = rng().integers(1, 256, (6, 6, 1), np.uint8)
    shifts = {}
    for down in range(-2, 3):
        for right in range(-2, 3):
            moved = np.roll(pixels, (-down, -right), (0, 1)).copy()
            rows, columns = np.arange(6) + down, np.arange(6) + right
            moved[(rows < 0) | (rows > 5)] = 0
            moved[:, (columns < 0) | (columns > 5)] = 0
            shifts[moved.tobytes()] = 0
    generator = rng(2)
    for _ in range(5000):
        shifts[padded(pixels, generator).tobytes()] += 1
    assert len(shifts) == 25
    # 200 expected of each; six standard deviations.
    assert all(abs(count - 200) < 6 * math.sqrt(200) for count in shifts.values())


def test_half_of_the_images_are_mirrored():
    pixels = rng().integers(0, 256, (6, 6, 1), np.uint8)
    generator = rng(3)
    mirrored = 0
    for _ in range(1000):
        view = padded(pixels, generator, crop_padding=0, flip=True)
        is_mirrored = np.array_equal(view, pixels[:, ::-1])
        assert is_mirrored or np.array_equal(view, pixels)
        mirrored += is_mirrored
    assert abs(mirrored - 500) < 6 * math.sqrt(250)


def test_an_image_too_small_for_a_padded_crop_is_bad():
    with pytest.raises(BadImage, match="4x4 pixels, padded by 1, hold no crop of 8x8"):
        training_view(
            np.zeros((4, 4, 1), np.uint8),
            rng(),
            augmentation=Augmentation(crop="pad", crop_padding=1),
            preprocess=GREY,
            edge_px=8,
        )


def test_without_a_crop_it_is_the_view_of_the_evaluation():
    source = rng().integers(0, 256, (67, 101, 3), np.uint8)
    config = Preprocess(
        crop_px=(32, 32), resize_px=40, divisor=1.0, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    view = training_view(
        source,
        rng(),
        augmentation=Augmentation(crop="none", flip=False),
        preprocess=config,
        edge_px=32,
    )
    np.testing.assert_array_equal(view, evaluation_view(source, config))
