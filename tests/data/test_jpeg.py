"""JPEG files by simplejpeg, whole or in part: the pixels of Pillow, and its refusals."""

import io

import numpy as np
import pytest
from PIL import Image

from resnetjax.config import Preprocess
from resnetjax.data import jpeg
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.crops import training_view
from resnetjax.data.preprocess import decode
from resnetjax.errors import BadImage

RGB, GREY = Preprocess(), Preprocess(mean=(0.5,), std=(0.5,))
FILES = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True, "quality": 30},
    "coarse": {"quality": 1},
    "restart markers": {"restart_marker_blocks": 2},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "RGB within": {"keep_rgb": True},
}
TAKEN = {name: options for name, options in FILES.items() if name not in ("CMYK", "RGB within")}


def noisy_jpeg(height: int, width: int, *, mode: str = "RGB", **options) -> bytes:
    rng = np.random.default_rng(height * width)
    pixels = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def view(source: bytes, *, seed: int = 0, preprocess: Preprocess = RGB) -> np.ndarray | None:
    """Training's, None of a bad image."""
    rng = np.random.default_rng(seed)
    try:
        return training_view(
            source, rng, augmentation=Augmentation(), preprocess=preprocess, edge_px=19
        )
    except BadImage:
        return None


@pytest.fixture
def with_simplejpeg():
    pytest.importorskip("simplejpeg")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 33), (31, 16), (67, 101)], ids=str)
@pytest.mark.parametrize("options", FILES.values(), ids=list(FILES))
@pytest.mark.parametrize("preprocess", [RGB, GREY], ids=["to RGB", "to grey"])
def test_both_decoders_give_the_same_view(monkeypatch, size, options, preprocess):
    source = noisy_jpeg(*size, **options)
    fast = [view(source, seed=seed, preprocess=preprocess) for seed in range(5)]
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    slow = [view(source, seed=seed, preprocess=preprocess) for seed in range(5)]
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.usefixtures("with_simplejpeg")
@pytest.mark.parametrize("options", TAKEN.values(), ids=list(TAKEN))
def test_every_number_of_first_rows_has_the_pixels_of_the_whole(options):
    source = noisy_jpeg(67, 45, **options)
    file, whole = jpeg.read_header(source), np.asarray(decode(source))
    for stop in range(1, 68):
        rows = file.rows(stop)
        assert stop <= len(rows) <= 67
        np.testing.assert_array_equal(rows[:stop, :, :3], whole[:stop], err_msg=str(stop))


@pytest.mark.usefixtures("with_simplejpeg")
def test_fewer_rows_are_decoded_of_files_of_one_pass():
    rows = {
        name: len(jpeg.read_header(noisy_jpeg(67, 45, **TAKEN[name])).rows(20)) for name in TAKEN
    }
    whole = {"progressive", "restart markers"}
    assert {name for name, count in rows.items() if count == 67} == whole
    assert all(count < 30 for name, count in rows.items() if name not in whole)


@pytest.mark.usefixtures("with_simplejpeg")
@pytest.mark.parametrize("name", ["CMYK", "RGB within"])
def test_unusual_files_are_left_to_pillow(name):
    assert jpeg.read_header(noisy_jpeg(67, 45, **FILES[name])) is None


@pytest.mark.usefixtures("with_simplejpeg")
def test_photographs_have_the_pixels_of_pillow_in_all_their_rows(photographs):
    taken = 0
    for path in photographs:
        file, whole = jpeg.read_header(path.read_bytes()), np.asarray(decode(path))
        if file is None or (pixels := file.rows(file.height)) is None:
            continue
        taken += 1
        np.testing.assert_array_equal(pixels[..., :3], whole, err_msg=path.name)
        for stop in np.linspace(1, file.height, 5, dtype=int).tolist():
            pixels = file.rows(stop)[:stop, :, :3]
            np.testing.assert_array_equal(pixels, whole[:stop], err_msg=path.name)
    assert taken >= 0.9 * len(photographs)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_what_is_cut_off_is_bad_for_both_decoders_wherever_the_box_lies(monkeypatch, share):
    source = noisy_jpeg(67, 101)
    for _ in range(2):
        assert all(view(source[: int(share * len(source))], seed=seed) is None for seed in range(9))
        monkeypatch.setattr(jpeg, "simplejpeg", None)


@pytest.mark.parametrize("options", TAKEN.values(), ids=list(TAKEN))
def test_damaged_files_have_the_same_view_from_both_decoders(monkeypatch, options):
    rng = np.random.default_rng(0)
    whole = noisy_jpeg(67, 101, **options)
    damaged = []
    for _ in range(500):
        source = bytearray(whole)
        for at in rng.integers(2, len(source) - 2, rng.integers(1, 4)):
            source[at] = rng.integers(256)
        damaged.append(bytes(source))
    fast = [view(source, seed=seed) for seed, source in enumerate(damaged)]
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    slow = [view(source, seed=seed) for seed, source in enumerate(damaged)]
    for mine, pillows in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(mine, pillows)


@pytest.mark.usefixtures("with_simplejpeg")
def test_a_marker_within_the_data_is_seen_wherever_it_lies():
    whole = noisy_jpeg(200, 160, quality=95)
    start, bad = whole.index(b"\xff\xda") + 14, 0
    for at in np.linspace(start, len(whole) - 4, 60, dtype=int).tolist():
        for marker in (0x01, 0xC4, 0xD8, 0xD9, 0xDA, 0xE1, 0xFE):
            damaged = whole[:at] + bytes([0xFF, marker]) + whole[at + 2 :]
            try:
                expected = np.asarray(decode(damaged))
            except BadImage:
                expected, bad = None, bad + 1
            rows = jpeg.read_header(damaged).rows(100)
            if expected is None:
                assert rows is None, (at, marker)
            elif rows is not None:
                np.testing.assert_array_equal(rows[:100, :, :3], expected[:100])
    assert bad > 100
