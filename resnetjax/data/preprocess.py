"""From an image to the net's input, as the framework of the weights does it.

Decoding, resizing and cropping are Pillow's, so the pixels are those of torchvision, timm and
Transformers' PIL backend. Transformers' torchvision backend resizes in its own arithmetic. Pillow
always antialiases, so resizing without that is `resnetjax.data.interpolate`.
"""

import contextlib
import io
import os
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Float32, Num, UInt8
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from resnetjax.config import Preprocess
from resnetjax.data.interpolate import interpolate
from resnetjax.errors import BadImage, ConfigError

ImageSource: TypeAlias = bytes | str | os.PathLike[str] | Image.Image | np.ndarray

# Where Pillow's own limit turns from a warning into an error: twice a quarter of a gigabyte of RGB.
MAX_PIXELS = 178_956_970


# Those of Pillow's that `jax.image.resize` has.
_DEVICE_FILTERS = {"bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}


class _JpegFile(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Leaves EXIF alone: nothing here needs it, and where it is corrupt Pillow warns."""


class _TiffFile(TiffImageFile):
    def load_prepare(self) -> None:
        """Makes the image without Pillow's check of its size, which warns from 89 megapixels on."""
        if self._im is None:
            self.im = Image.core.new(self.mode, self._tile_size)
        super().load_prepare()


def decode(source: ImageSource, *, channels: int = 3) -> Image.Image:
    """The image as RGB, or as grey where `channels` is 1, as `PIL.Image.Image.convert` gives it.

    EXIF's orientation is not applied, since no reference applies it; a TIFF's is, by Pillow itself.
    The first frame counts. Of 16 bits a channel the high byte is taken, so that 65535 becomes 255:
    as Pillow does for colour, while of 16-bit grey its `convert` makes white.

    Args:
        source: A file or its bytes (JPEG, PNG, WEBP, BMP, TIFF, PPM or PGM by content, whatever the
            name), a Pillow image, or uint8 pixels [height, width] or [height, width, 1, 3 or 4
            channels].
        channels: 3 or 1.

    Raises:
        BadImage: The source cannot be read or decoded, is truncated, is of another format, has more
            than `MAX_PIXELS`, which is known before they are decoded, or has values of 32 bits
            (Pillow's modes "I" and "F") beyond 0..255. The message names it.
    """
    try:
        mode = {1: "L", 3: "RGB"}.get(channels)
        if mode is None:
            raise ValueError(f"images decode to 1 or 3 channels, not to {channels}")
        with contextlib.ExitStack() as stack:
            if isinstance(source, Image.Image):
                image = source
            elif isinstance(source, bytes):
                image = _read_header(io.BytesIO(source))
            elif isinstance(source, str | os.PathLike):
                image = _read_header(stack.enter_context(open(source, "rb")))
            else:
                image = _wrap(np.asarray(source))
            return _convert(image, mode)
    except Exception as error:  # Pillow raises whatever its readers stumble over
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(f"{describe(source)}: {reason}") from error


def describe(source: ImageSource) -> str:
    """What messages call an image: its path, or what is known of it."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    if isinstance(source, np.ndarray):
        return f"image {source.dtype}{list(source.shape)}"
    return str(getattr(source, "filename", "") or "image")


def crop(image: Image.Image, config: Preprocess) -> UInt8[np.ndarray, "height width channels"]:
    """The net's view of an image from `decode`, resized and cropped: 0..255, red first.

    Raises:
        BadImage: Resized, an image this long and thin would have more than `MAX_PIXELS`.
    """
    top, left, *window_px = _window(image.height, image.width, config)
    if tuple(window_px) != (image.height, image.width):
        image = image.crop((left, top, left + window_px[1], top + window_px[0]))
    height, width = _resized_px(image.height, image.width, config)
    if height * width > MAX_PIXELS:
        raise BadImage(
            f"{image.width}x{image.height} pixels would be resized to {width}x{height}, "
            f"where {MAX_PIXELS} are allowed"
        )
    if (width, height) != image.size:
        if config.antialias or config.interpolation == "nearest":
            image = image.resize((width, height), Image.Resampling[config.interpolation.upper()])
        else:
            pixels = interpolate(np.asarray(image), (height, width), config.interpolation)
            image = Image.fromarray(pixels)
    crop_height, crop_width = config.crop_px
    top = _crop_start(height, crop_height, config.crop_rounding)
    left = _crop_start(width, crop_width, config.crop_rounding)
    image = image.crop((left, top, left + crop_width, top + crop_height))
    return np.array(image).reshape(crop_height, crop_width, config.channels)


def crop_batch(
    pixels: UInt8[Any, "batch height width channels"], config: Preprocess
) -> Float32[Any, "batch crop_height crop_width channels"]:
    """As `crop`, of a batch of images of one size on the device: whole numbers, 0..255.

    Pillow's filters in float32: it rounds once where Pillow rounds after each direction.

    Raises:
        ConfigError: The filter has no counterpart in `jax.image`.
    """
    import jax  # exported nets in ONNX prepare their images without it
    import jax.numpy as jnp

    top, left, height, width = _window(pixels.shape[1], pixels.shape[2], config)
    pixels = pixels[:, top : top + height, left : left + width]
    batch, *edges, channels = pixels.shape
    resized = list(_resized_px(edges[0], edges[1], config))
    images = pixels.astype(jnp.float32)
    if resized != edges:
        if config.interpolation not in _DEVICE_FILTERS:
            raise ConfigError(
                f"interpolation={config.interpolation!r} is not allowed: on the device, use one of "
                f"{tuple(_DEVICE_FILTERS)}"
            )
        shape, method = (batch, *resized, channels), _DEVICE_FILTERS[config.interpolation]
        images = jax.image.resize(images, shape, method, antialias=config.antialias)
        images = jnp.clip(jnp.round(images), 0, 255)
    sides = []
    for edge, wanted in zip(resized, config.crop_px, strict=True):
        start = _crop_start(edge, wanted, config.crop_rounding)
        sides.append((-start, start + wanted - edge, 0))  # negative padding cuts away
    return jax.lax.pad(images, jnp.float32(0), [(0, 0, 0), *sides, (0, 0, 0)])


def normalize(
    pixels: Num[Any, "*batch channels"], config: Preprocess
) -> Float32[Any, "*batch channels"]:
    """`(pixels / divisor - mean) / std` in the config's channel order.

    NumPy arrays give NumPy arrays, bit for bit those of torchvision's `ToTensor` and `Normalize`;
    JAX arrays give JAX arrays, which may differ in the last bits.

    Args:
        pixels: Red first, in 0..255, of any real dtype, with any leading axes.
        config: What to do.

    Example:
        >>> minus_one_to_one = Preprocess(divisor=127.5, mean=(1.0,) * 3, std=(1.0,) * 3)
        >>> normalize(np.zeros((1, 1, 3), np.uint8), minus_one_to_one)
        array([[[-1., -1., -1.]]], dtype=float32)
    """
    if config.channel_order == "bgr":
        pixels = pixels[..., ::-1]
    # Of full rank: JAX may be set to refuse implicit rank promotion.
    shape = (1,) * (pixels.ndim - 1) + (config.channels,)
    mean = np.asarray(config.mean, np.float32).reshape(shape)
    std = np.asarray(config.std, np.float32).reshape(shape)
    return (pixels.astype(np.float32) / np.float32(config.divisor) - mean) / std


def preprocess(
    source: ImageSource, config: Preprocess
) -> Float32[np.ndarray, "height width channels"]:
    """One image as the net wants it.

    Raises:
        BadImage: As `decode` and `crop` do.
    """
    return normalize(crop(decode(source, channels=config.channels), config), config)


def _read_header(file: BinaryIO) -> ImageFile.ImageFile:
    # By reader, not Image.open: that tries every other format and warns from 89 megapixels on.
    start = file.read(12)
    file.seek(0)
    if start.startswith(b"\xff\xd8\xff"):
        return _JpegFile(file)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(file)
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        return WebPImageFile(file)
    if start.startswith(b"BM"):
        return _read_bmp(file)
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _read_tiff(file)
    if start.startswith((b"P5", b"P6")):  # in digits, P2 and P3, a pixel takes a microsecond
        return PpmImageFile(file)
    if not start:
        raise ValueError("there are no bytes in it")
    raise ValueError(
        f"not a JPEG, PNG, WEBP, BMP, TIFF, PPM or PGM file, for it starts with {start!r}"
    )


def _read_bmp(file: BinaryIO) -> ImageFile.ImageFile:
    image = BmpImageFile(file)
    # Pillow fills up rows pixel by pixel: a kilobyte, of a row of MAX_PIXELS, takes 20 seconds.
    if image.info["compression"] in map(BmpImageFile.COMPRESSIONS.get, ("RLE8", "RLE4")):
        raise ValueError("a BMP file that is run-length encoded, where none is allowed")
    return image


def _read_tiff(file: BinaryIO) -> ImageFile.ImageFile:
    # From memory: libtiff would map the file, which others may truncate (SIGBUS).
    image = _TiffFile(io.BytesIO(file.read()))
    # Pillow does not scale 12 bits, nor invert 16 where white is 0.
    bits, photometric = (
        image.tag_v2.get(tag) for tag in (BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION)
    )
    if image.mode.startswith("I;16") and (bits != (16,) or photometric != 1):
        raise ValueError("a TIFF file of 12 bits, or of 16 with white as 0, where none is allowed")
    return image


def _wrap(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    has_shape = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not has_shape:
        raise ValueError("expected uint8[height, width] or uint8[height, width, 1, 3 or 4]")
    return Image.fromarray(pixels)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels, where 1 to {MAX_PIXELS} are allowed")
    image.load()
    # Pillow reads PGM files of more than 8 bits as 32, scaled to 16.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):  # which Pillow clips
        values = np.asarray(image)
        if not ((values >= 0) & (values <= 255)).all():
            raise ValueError(f"pixels of mode {image.mode!r} beyond 0..255, where none are allowed")
    if "transparency" in image.info:
        # Pillow warns that it drops it. Pixels of an opaque mode do not depend on it.
        image = image.copy()
        del image.info["transparency"]
    return image.convert(mode)


def _resized_px(height: int, width: int, config: Preprocess) -> tuple[int, int]:
    match config.resize_mode, config.resize_px:
        case "short_edge", int(edge):  # torchvision: _compute_resized_output_size
            longer_edge = int(edge * max(height, width) / min(height, width))
            return (longer_edge, edge) if width <= height else (edge, longer_edge)
        case "cover", (least_height, least_width):  # timm: ResizeKeepRatio
            ratio = min(height / least_height, width / least_width)
            return round(height / ratio), round(width / ratio)
        case "squash" | "crop_to_aspect_ratio", (squashed_height, squashed_width):
            return squashed_height, squashed_width
        case _:
            return height, width


def _window(height: int, width: int, config: Preprocess) -> tuple[int, int, int, int]:
    """The part of an image that is resized: top, left, height and width."""
    if config.resize_mode != "crop_to_aspect_ratio" or not isinstance(config.resize_px, tuple):
        return 0, 0, height, width
    target_height, target_width = config.resize_px  # keras/src/backend/numpy/image.py: resize
    window_height = max(min(height, int(width * target_height / target_width)), 1)
    window_width = max(min(width, int(height * target_width / target_height)), 1)
    top, left = (height - window_height) // 2, (width - window_width) // 2
    return top, left, window_height, window_width


def _crop_start(edge: int, crop_edge: int, rounding: str) -> int:
    if rounding == "floor":  # transformers/image_transforms.py: center_crop
        return (edge - crop_edge) // 2
    if edge < crop_edge:  # torchvision/transforms/functional.py: center_crop
        return -((crop_edge - edge) // 2)
    return round((edge - crop_edge) / 2)
