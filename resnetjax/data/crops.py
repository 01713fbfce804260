"""Training's view of one image, on the host: decoded, cropped, resized and mirrored as uint8."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnetjax.config import Preprocess
from resnetjax.data import jpeg
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.preprocess import crop, decode
from resnetjax.errors import BadImage

Pixels: TypeAlias = UInt8[np.ndarray, "height width channels"]
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom, as Pillow has it."""


def training_view(
    source: bytes | np.ndarray,
    rng: np.random.Generator,
    *,
    augmentation: Augmentation,
    preprocess: Preprocess,
    edge_px: int,
) -> Pixels:
    """One training image of `edge_px` x `edge_px`, red first.

    Args:
        source: An encoded image, or uint8[height, width, channels].
        rng: Draws box and flip.
        augmentation: What is drawn.
        preprocess: Number of channels; with `crop="none"` the resize and the crop as well.
        edge_px: Height and width.

    Raises:
        BadImage: It cannot be decoded, or is too small for a padded crop.
    """

    def mirror() -> bool:
        return augmentation.flip and rng.random() < 0.5

    if augmentation.crop == "random_resized":
        height, width, rows = _open(source, preprocess.channels)
        box = random_box(rng, height, width, augmentation=augmentation)
        return resized(rows(box[3]), box, edge_px, augmentation.interpolation, mirror=mirror())
    if augmentation.crop == "pad":
        height, _, rows = _open(source, preprocess.channels)
        pixels = rows(height)[..., : preprocess.channels]
        pixels = _padded_crop(pixels, rng, augmentation.crop_padding, edge_px)
    else:
        pixels = crop(decode(source, channels=preprocess.channels), preprocess)
    return pixels[:, ::-1] if mirror() else pixels


def random_box(
    rng: np.random.Generator, height: int, width: int, *, augmentation: Augmentation
) -> Box:
    """A box of random area and ratio, as torchvision's `RandomResizedCrop.get_params` draws it.

    After ten draws that do not fit, the largest centred box of an allowed ratio.
    """
    low, high = augmentation.crop_ratio
    for _ in range(10):
        area = height * width * rng.uniform(*augmentation.crop_area)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return left, top, left + box_width, top + box_height
    ratio = width / height
    box_width = width if ratio <= high else max(1, round(height * high))
    box_height = height if ratio >= low else max(1, round(width / low))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def resized(
    pixels: Pixels, box: Box, edge_px: int, interpolation: str, *, mirror: bool = False
) -> Pixels:
    """A box of an image, resized with antialiasing to `edge_px` x `edge_px`, as Pillow does it.

    Of four channels the last has no meaning.
    """
    left, top, right, bottom = box
    _, width, channels = pixels.shape
    mode, layout = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("RGB", "RGBX")}[channels]
    # Pillow takes the box out of the rows itself: NumPy's copy of it would take as long again.
    rows = np.ascontiguousarray(pixels).data.cast("B")[(top * width + left) * channels :]
    image = Image.new(mode, (right - left, bottom - top), color=None)  # not filled
    image.frombytes(rows, "raw", layout, width * channels, 1)
    image = image.resize((edge_px, edge_px), Image.Resampling[interpolation.upper()])
    if mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).reshape(edge_px, edge_px, len(mode))


def _padded_crop(pixels: Pixels, rng: np.random.Generator, padding: int, edge_px: int) -> Pixels:
    height, width, channels = pixels.shape
    wide = np.zeros((height + 2 * padding, width + 2 * padding, channels), np.uint8)
    wide[padding : padding + height, padding : padding + width] = pixels
    top, left = (
        int(rng.integers(max(edge + 2 * padding - edge_px, 0) + 1)) for edge in (height, width)
    )
    view = wide[top : top + edge_px, left : left + edge_px]
    if view.shape[:2] != (edge_px, edge_px):
        raise BadImage(
            f"{height}x{width} pixels, padded by {padding}, hold no crop of {edge_px}x{edge_px}"
        )
    return view


def _open(source: bytes | np.ndarray, channels: int) -> tuple[int, int, Callable[[int], Pixels]]:
    """Height, width, and what decodes the image's first rows, as many as are asked for or more."""
    if isinstance(source, np.ndarray) and source.ndim == 3 and source.shape[2] == channels:
        return *source.shape[:2], lambda stop: source
    file = jpeg.read_header(source) if isinstance(source, bytes) and channels == 3 else None
    if file is None:
        pixels = _decode(source, channels)
        return *pixels.shape[:2], lambda stop: pixels

    def rows(stop: int) -> Pixels:
        pixels = file.rows(stop)
        return _decode(source, channels) if pixels is None else pixels

    return file.height, file.width, rows


def _decode(source: bytes | np.ndarray, channels: int) -> Pixels:
    image = decode(source, channels=channels)
    return np.asarray(image).reshape(image.height, image.width, channels)
