import contextlib
import dataclasses
import io
import json
import struct
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnetjax.config import CAFFE_MEAN_BGR, Preprocess
from resnetjax.data.preprocess import MAX_PIXELS, crop, decode, normalize, preprocess
from resnetjax.errors import BadImage, ConfigError

KINDS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"]


def photo(mode: str = "RGB", *, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture with a different slope in every channel."""
    y, x = np.mgrid[:height, :width]
    channels = [(x * 5 + y * (i + 1)) % 256 for i in range(len(mode))]
    pixels = np.stack(channels, axis=-1).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if len(mode) == 1 else pixels, mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_without_pixels(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", b""))


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def bmp_without_pixels(width: int, height: int, *, compression: int = 0) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + header + bytes(1024)


def tiff_without_pixels(width: int, height: int, *, bits: int = 8, photometric: int = 1) -> bytes:
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1,
            278: height, 279: 1}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def palette_with_transparency() -> bytes:
    image = photo().quantize(16)
    return encode(image, "PNG", transparency=bytes(range(0, 160, 10)))


def corrupt_exif() -> bytes:
    # A directory that claims 9 entries and ends after the first bytes of one.
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x09\x00\x1a\x01"
    return encode(photo(), "JPEG", exif=exif).replace(b"JFIF", b"JUNK")


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_files_decode_as_pillow_does(tmp_path, kind):
    content = encode(photo(), kind)
    (tmp_path / "image").write_bytes(content)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    for source in (content, tmp_path / "image", str(tmp_path / "image")):
        np.testing.assert_array_equal(np.asarray(decode(source)), expected)


@pytest.mark.parametrize(
    "content",
    [
        encode(photo("L"), "JPEG"),
        encode(photo("CMYK"), "JPEG"),
        encode(photo("RGBA"), "PNG"),
        encode(photo("RGBA"), "WEBP"),
        encode(photo("LA"), "PNG"),
        encode(photo().quantize(16), "PNG"),
        encode(photo("L").convert("1"), "PNG"),
        encode(photo("L"), "PNG", transparency=7),
    ],
    ids=["grey", "cmyk", "rgba", "rgba webp", "grey alpha", "palette", "1 bit", "key"],
)
@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_other_modes_convert_as_pillow_does(content, channels, mode):
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert(mode))
    np.testing.assert_array_equal(np.asarray(decode(content, channels=channels)), expected)


SIXTEEN_BITS = np.array([[0, 255, 256, 0x7FFF], [0x8000, 0xFEFF, 0xFF00, 0xFFFF]], np.uint16)


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """Grey of [height, width], or colour of [height, width, 3], which Pillow does not write."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png_of((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


@pytest.mark.parametrize("channels", [1, 3])
def test_of_sixteen_bits_the_high_byte_is_taken_of_grey_as_of_colour(channels):
    high = [[0, 0, 1, 127], [128, 254, 255, 255]]
    colour = np.repeat(SIXTEEN_BITS[..., None], 3, axis=2)
    big_endian = Image.frombytes("I;16B", (4, 2), SIXTEEN_BITS.astype(">u2").tobytes())
    for source in (
        png_of_16_bits(SIXTEEN_BITS),
        png_of_16_bits(colour),
        Image.fromarray(SIXTEEN_BITS),
        big_endian,
        encode(Image.fromarray(SIXTEEN_BITS), "TIFF"),
        encode(big_endian, "TIFF"),
        encode(Image.fromarray(SIXTEEN_BITS), "PPM"),
    ):
        found = np.asarray(decode(source, channels=channels)).reshape(2, 4, channels)
        np.testing.assert_array_equal(found, np.repeat(np.array(high)[..., None], channels, 2))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_32_bits_are_refused_beyond_those_of_bytes(dtype):
    fits = np.array([[0, 128, 255]], dtype)
    np.testing.assert_array_equal(decode(Image.fromarray(fits), channels=1), fits)
    beyond = [[[0, 256]], [[-1, 0]], *([[[0, np.nan]]] if dtype == np.float32 else [])]
    for values in beyond:
        with pytest.raises(BadImage, match=r"pixels of mode '[IF]' beyond 0..255"):
            decode(Image.fromarray(np.array(values, dtype)))


def test_a_palette_with_transparency_decodes_without_a_warning():
    content = palette_with_transparency()
    with (
        Image.open(io.BytesIO(content)) as image,
        pytest.warns(UserWarning, match="Transparency expressed in bytes"),
    ):
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(content)), expected)


def test_decoding_leaves_a_pillow_image_as_it_was():
    with Image.open(io.BytesIO(palette_with_transparency())) as image:
        decode(image)
        assert (image.mode, "transparency" in image.info) == ("P", True)


def test_a_corrupt_exif_block_decodes_without_a_warning():
    content = corrupt_exif()
    with pytest.warns(UserWarning, match="EXIF"), Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(content)), expected)


def test_exif_orientation_is_not_applied():
    orientation = Image.Exif()
    orientation[0x0112] = 6
    assert decode(encode(photo(), "JPEG", exif=orientation)).size == (40, 30)


def test_a_png_named_jpg_is_a_png(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(encode(photo(), "PNG"))
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "cat.jpg")), np.asarray(photo()))


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3), (30, 40, 4)])
def test_arrays_of_bytes_are_images(shape):
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    grey = pixels.reshape(30, 40, -1)[..., :3]
    expected = np.broadcast_to(grey, (30, 40, 3))
    np.testing.assert_array_equal(np.asarray(decode(pixels)), expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no bytes"),
        (b"<!DOCTYPE html><html>", "not a JPEG, PNG, WEBP, BMP, TIFF, PPM or PGM file.*DOCTYPE"),
        (encode(photo(), "GIF"), "not a JPEG, PNG, WEBP, BMP, TIFF, PPM or PGM file.*GIF8"),
        (png_without_pixels(50_000, 50_000), "50000x50000 pixels"),
        (bmp_without_pixels(50_000, 50_000), "50000x50000 pixels"),
        (bmp_without_pixels(50_000, 1, compression=1), "run-length encoded"),
        (tiff_without_pixels(50_000, 50_000), "50000x50000 pixels"),
        (tiff_without_pixels(2**32 - 1, 2**32 - 1), "4294967295x4294967295 pixels"),
        (tiff_without_pixels(4, 4, bits=12), "12 bits"),
        (tiff_without_pixels(4, 4, bits=16, photometric=0), "white as 0"),
        (b"P5 50000 50000 255\n", "50000x50000 pixels"),
        (b"Pf 1 1 -1.0\n\0\0\0\0", "PPM or PGM file.*Pf"),
        (png_without_pixels(0, 10), ""),
        (png_without_pixels(10, 10), ""),
        (b"\xff\xd8\xff", ""),
        (b"RIFF\x10\x00\x00\x00WEBP", ""),
    ],
    ids=[
        "empty",
        "html",
        "gif",
        "png bomb",
        "bmp bomb",
        "bmp rle",
        "tiff bomb",
        "tiff 64 bits",
        "tiff 12 bits",
        "tiff inverted",
        "ppm bomb",
        "pfm",
        "flat",
        "no data",
        "marker",
        "riff",
    ],
)
def test_what_is_no_image_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=rf"cat\.jpg: .*({reason})"):
        decode(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), kind)
    with pytest.raises(BadImage):
        decode(content[: int(len(content) * kept)])


@given(st.data())
def test_damaged_files_are_decoded_or_refused(data):
    content = bytearray(encode(photo(), data.draw(st.sampled_from(KINDS))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadImage):
        assert decode(bytes(content)).mode == "RGB"


def test_images_that_pillow_warns_of_decode_in_silence_up_to_the_limit():
    width = 10_000
    content = encode(Image.new("1", (width, MAX_PIXELS // width)), "PNG")
    assert decode(content, channels=1).height == MAX_PIXELS // width
    content = encode(Image.new("1", (width, MAX_PIXELS // width)), "TIFF", compression="group4")
    assert decode(content, channels=1).height == MAX_PIXELS // width
    content = encode(Image.new("1", (width, MAX_PIXELS // width + 1)), "PNG")
    with pytest.raises(BadImage, match="are allowed"):
        decode(content, channels=1)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    with pytest.raises(BadImage, match=r"missing\.png: No such file"):
        decode(tmp_path / "missing.png")
    with pytest.raises(BadImage, match="Is a directory"):
        decode(tmp_path)


def test_arrays_that_are_no_images_are_refused_by_shape():
    with pytest.raises(BadImage, match=r"float32\[4, 4, 3\]: expected uint8"):
        decode(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(BadImage, match=r"uint8\[2, 4, 4, 3\]"):
        decode(np.zeros((2, 4, 4, 3), np.uint8))


def test_images_have_one_or_three_channels():
    with pytest.raises(BadImage, match="not to 5"):
        decode(photo(), channels=5)


def test_a_hair_thin_image_is_refused_before_it_is_resized():
    with pytest.raises(BadImage, match="would be resized"):
        crop(Image.new("L", (1, 60_000)), Preprocess(mean=(0.5,), std=(0.5,)))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"resize_mode": "none", "resize_px": None, "crop_px": (2, 2)}, (14, 19)),
        ({"resize_mode": "none", "resize_px": None, "crop_px": (27, 37)}, (2, 2)),
        (
            {
                "resize_mode": "none",
                "resize_px": None,
                "crop_px": (27, 37),
                "crop_rounding": "floor",
            },
            (1, 1),
        ),
    ],
)
def test_a_crop_starts_where_its_rounding_says(config, expected):
    y, x = np.mgrid[:30, :40].astype(np.uint8)
    pixels = crop(decode(np.stack([y, x, x], axis=-1)), Preprocess(**config))
    assert tuple(pixels[0, 0, :2]) == expected


def test_a_crop_beyond_the_image_is_black():
    config = Preprocess(resize_mode="none", resize_px=None, crop_px=(4, 5))
    pixels = crop(decode(np.full((3, 2, 3), 9, np.uint8)), config)
    expected = np.zeros((4, 5), np.uint8)
    expected[0:3, 1:3] = 9
    np.testing.assert_array_equal(pixels[..., 0], expected)


def test_one_channel_is_grey_and_keeps_its_axis():
    config = Preprocess(crop_px=(24, 24), resize_px=24, mean=(0.5,), std=(0.5,))
    assert preprocess(photo(), config).shape == (24, 24, 1)


def test_cifar_images_pass_unchanged():
    image = photo(width=32, height=32)
    config = Preprocess(resize_mode="none", resize_px=None, crop_px=(32, 32))
    np.testing.assert_array_equal(crop(image, config), np.asarray(image))


def test_f06_keras_caffe_style_is_bgr_minus_its_mean():
    pixels = np.array([[[10, 20, 30]]], np.uint8)
    config = Preprocess(divisor=1.0, mean=CAFFE_MEAN_BGR, std=(1.0,) * 3, channel_order="bgr")
    expected = np.float32([30, 20, 10]) - np.float32(CAFFE_MEAN_BGR)
    np.testing.assert_array_equal(normalize(pixels, config)[0, 0], expected)


def test_normalize_takes_batches_of_jax_arrays_under_jit():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    config = Preprocess(channel_order="bgr")
    result = jax.jit(lambda x: normalize(x, config))(jnp.asarray(pixels))
    assert isinstance(result, jax.Array)
    # XLA multiplies by the reciprocal of a constant divisor: the last bits differ.
    np.testing.assert_allclose(result, normalize(pixels, config), rtol=1e-5, atol=1e-6)


def test_preprocessing_gives_what_a_net_takes():
    result = preprocess(encode(photo(), "PNG"), Preprocess())
    assert (result.shape, result.dtype) == ((224, 224, 3), np.float32)


def test_without_antialiasing_pixels_between_the_taps_do_not_count():
    # Four rows and columns for one: each new pixel lies between the second and the third.
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    config = Preprocess(crop_px=(8, 12), resize_mode="squash", resize_px=(8, 12), antialias=False)
    groups = pixels.reshape(8, 4, 12, 4, 3)[:, 1:3, :, 1:3].astype(float)
    expected = np.rint(groups.mean((1, 3)))
    np.testing.assert_array_equal(crop(decode(pixels), config), expected)
    of_one = dataclasses.replace(config, mean=(0.5,), std=(0.5,))
    grey = crop(decode(pixels[..., 0], channels=1), of_one)
    np.testing.assert_array_equal(grey[..., 0], expected[..., 0])


def test_a_thin_image_takes_little_memory_without_antialiasing():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 200_000, 3), np.uint8)
    config = Preprocess(resize_mode="squash", resize_px=(224, 224), antialias=False)
    tracemalloc.start()
    try:
        result = crop(decode(pixels), config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.shape == (224, 224, 3)
    assert peak < 4 * pixels.nbytes


def test_a_window_of_the_aspect_ratio_is_what_is_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    size = (16, 16)
    config = Preprocess(crop_px=size, resize_mode="crop_to_aspect_ratio", resize_px=size)
    squash = dataclasses.replace(config, resize_mode="squash")
    window = pixels[:, 8:39]
    np.testing.assert_array_equal(crop(decode(pixels), config), crop(decode(window), squash))


def test_a_preprocess_survives_json():
    original = Preprocess(resize_mode="squash", resize_px=(224, 256), channel_order="bgr")
    assert Preprocess.from_json(json.loads(json.dumps(original.to_json()))) == original


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_px": 224}, "crop_px=224"),
        ({"crop_px": [0, 224]}, "crop_px.*1 to 8192"),
        ({"crop_px": [9000, 224]}, "crop_px.*1 to 8192"),
        ({"resize_px": True}, "resize_px=True"),
        ({"resize_px": 0}, "resize_px=0.*1 to 8192"),
        ({"resize_px": [224, 224]}, "resize_px.*one edge with resize_mode='short_edge'"),
        ({"resize_mode": "squash"}, r"resize_px=256.*\(height, width\)"),
        ({"resize_mode": "none"}, "resize_px=256.*None"),
        ({"resize_mode": "long_edge"}, "resize_mode='long_edge'.*'short_edge', 'cover'"),
        ({"interpolation": "random"}, "interpolation='random'.*'bicubic'"),
        ({"antialias": False, "interpolation": "box"}, "antialias=False.*True with.*'box'"),
        ({"resize_mode": "crop_to_aspect_ratio"}, r"resize_px=256.*\(height, width\)"),
        ({"divisor": 0}, "divisor=0.*above 0"),
        ({"mean": []}, "mean"),
        ({"mean": [float("nan")] * 3}, "mean"),
        ({"mean": "abc"}, "mean='abc'"),
        ({"std": [1.0]}, "std.*3 values"),
        ({"std": [1.0, 0.0, 1.0]}, "std.*above 0"),
        ({"mean": [0.5], "std": [0.5], "channel_order": "bgr"}, "channel_order.*1 channels"),
        ({"brightness": 1}, "brightness"),
    ],
)
def test_a_malformed_preprocess_is_refused_by_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        Preprocess.from_json(fields)
