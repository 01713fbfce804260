import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetjax.config import HALF_MEAN, HALF_STD, Preprocess
from resnetjax.data.preprocess import normalize
from resnetjax.data.preprocess_formats.kerashub import from_kerashub, to_kerashub
from resnetjax.data.preprocess_formats.timm import from_timm, to_timm
from resnetjax.data.preprocess_formats.transformers import from_transformers, to_transformers
from resnetjax.errors import ConfigError

EDGES = st.integers(16, 512)
# microsoft/resnet-50, as it is on the hub.
RESNET_50 = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}
# google/bit-50, but for do_convert_rgb.
BIT_50 = {
    "crop_size": {"height": 448, "width": 448},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 448},
}
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": {"height": 224, "width": 320},
}


@pytest.mark.parametrize(
    ("pretrained_cfg", "expected"),
    [
        ({}, Preprocess(interpolation="bicubic")),
        ({"crop_pct": 0.95}, Preprocess(resize_px=235, interpolation="bicubic")),
        (
            {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
            Preprocess(resize_mode="squash", resize_px=(224, 224)),
        ),
        (
            {"input_size": [3, 192, 256], "crop_pct": 0.9, "interpolation": "bilinear"},
            Preprocess(crop_px=(192, 256), resize_mode="cover", resize_px=(213, 284)),
        ),
    ],
)
def test_timm_fields_are_read_as_timm_reads_them(pretrained_cfg, expected):
    assert from_timm(pretrained_cfg) == expected


def test_timm_test_sizes_are_read_on_request():
    cfg = {"input_size": (3, 224, 224), "test_input_size": (3, 288, 288), "test_crop_pct": 1.0}
    assert from_timm(cfg).crop_px == (224, 224)
    assert (from_timm(cfg, test_size=True).crop_px, from_timm(cfg, test_size=True).resize_px) == (
        (288, 288),
        288,
    )


@given(crop=EDGES, extra=st.integers(0, 128), squash=st.booleans())
def test_timm_has_a_crop_pct_for_every_square_net(crop, extra, squash):
    config = Preprocess(
        crop_px=(crop, crop),
        resize_mode="squash" if squash else "short_edge",
        resize_px=(crop + extra,) * 2 if squash else crop + extra,
    )
    assert from_timm(to_timm(config)) == config


@given(height=EDGES, width=EDGES, crop_pct=st.floats(0.5, 1.0), squash=st.booleans())
def test_what_timm_can_do_goes_there_and_back(height, width, crop_pct, squash):
    crop_mode = "squash" if squash else "center"
    config = from_timm(
        {"input_size": (3, height, width), "crop_pct": crop_pct, "crop_mode": crop_mode}
    )
    assert from_timm(to_timm(config)) == config


def test_timm_takes_divisors_as_mean_and_std():
    config = Preprocess(divisor=127.5, mean=(1.0,) * 3, std=(1.0,) * 3)
    assert (to_timm(config)["mean"], to_timm(config)["std"]) == (HALF_MEAN, HALF_STD)


@pytest.mark.parametrize(
    ("resize_px", "crop_pct"), [(256, 0.875), (235, 0.95), (232, 0.965), (224, 1.0)]
)
def test_timm_gets_the_crop_pct_that_it_publishes(resize_px, crop_pct):
    assert to_timm(Preprocess(resize_px=resize_px))["crop_pct"] == crop_pct


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channel_order": "bgr"}, "channel_order='bgr'"),
        ({"resize_mode": "none", "resize_px": None}, "resize_mode='none'"),
        ({"antialias": False}, "antialias=False"),
        (
            {"resize_mode": "crop_to_aspect_ratio", "resize_px": (224, 224)},
            "resize_mode='crop_to_aspect_ratio'",
        ),
        ({"crop_px": (192, 256)}, r"resize_px=256.*crop_px=\(192, 256\)"),
        ({"resize_mode": "squash", "resize_px": (300, 231)}, "one crop_pct"),
    ],
)
def test_what_timm_cannot_do_is_refused_by_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        to_timm(Preprocess(**fields))


@pytest.mark.parametrize(
    ("pretrained_cfg", "message"),
    [
        ({"crop_mode": "border"}, "crop_mode='border'.*'center' or 'squash'"),
        ({"interpolation": "random"}, "interpolation='random'"),
        ({"input_size": [224, 224]}, "input_size.*3 numbers"),
        ({"input_size": 224}, "input_size=224"),
        ({"input_size": [1, 224, 224]}, "mean has 3 channels, but input_size has 1"),
        ({"crop_pct": 1e-300}, "crop_pct=1e-300"),
        ({"crop_pct": "0.9"}, "crop_pct='0.9'"),
        ({"mean": 0.5}, "mean=0.5"),
    ],
)
def test_malformed_timm_fields_are_refused_by_name(pretrained_cfg, message):
    with pytest.raises(ConfigError, match=message):
        from_timm(pretrained_cfg)


@pytest.mark.parametrize(
    ("processor_config", "expected"),
    [
        (RESNET_50, Preprocess(interpolation="bicubic", crop_rounding="floor")),
        (
            RESNET_50 | {"size": {"shortest_edge": 384}},
            Preprocess(
                crop_px=(384, 384),
                resize_mode="squash",
                resize_px=(384, 384),
                interpolation="bicubic",
                crop_rounding="floor",
            ),
        ),
        (
            BIT_50,
            Preprocess(
                crop_px=(448, 448),
                resize_px=448,
                crop_rounding="floor",
                mean=HALF_MEAN,
                std=HALF_STD,
            ),
        ),
        (
            VIT,
            Preprocess(
                crop_px=(224, 320),
                resize_mode="squash",
                resize_px=(224, 320),
                crop_rounding="floor",
                mean=HALF_MEAN,
                std=HALF_STD,
            ),
        ),
        (
            BIT_50 | {"do_resize": False, "do_rescale": False, "do_normalize": False},
            Preprocess(
                crop_px=(448, 448),
                resize_mode="none",
                resize_px=None,
                crop_rounding="floor",
                divisor=1.0,
                mean=(0.0,) * 3,
                std=(1.0,) * 3,
            ),
        ),
    ],
    ids=["resnet", "resnet 384", "bit", "vit", "bit without steps"],
)
def test_transformers_fields_are_read_as_its_processors_read_them(processor_config, expected):
    assert from_transformers(processor_config) == expected


@pytest.mark.parametrize(
    "config",
    [
        Preprocess(),
        Preprocess(resize_px=232, interpolation="bicubic"),
        Preprocess(crop_px=(288, 288), resize_px=288),
        Preprocess(crop_px=(384, 384), resize_px=438),
        Preprocess(crop_px=(384, 384), resize_mode="squash", resize_px=(384, 384)),
        Preprocess(resize_mode="squash", resize_px=(224, 224), interpolation="nearest"),
        Preprocess(crop_px=(192, 256)),
        Preprocess(resize_mode="none", resize_px=None, crop_px=(32, 32)),
        Preprocess(divisor=127.5, mean=(1.0,) * 3, std=(1.0,) * 3),
        Preprocess(mean=(0.5,), std=(0.25,)),
    ],
)
def test_what_transformers_can_do_goes_there_and_back_through_json(config):
    fields = json.loads(json.dumps(to_transformers(config)))
    assert from_transformers(fields) == dataclasses.replace(config, crop_rounding="floor")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Preprocess(channel_order="bgr"), "channel_order='bgr'"),
        (Preprocess(resize_mode="cover", resize_px=(224, 256)), "resize_mode='cover'"),
    ],
)
def test_what_transformers_cannot_do_is_refused_by_field(config, message):
    with pytest.raises(ConfigError, match=message):
        to_transformers(config)


@pytest.mark.parametrize(
    ("processor_config", "message"),
    [
        ({}, "image processor None"),
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor.*ConvNext, Bit, ViT"),
        ({"image_processor_type": "BitImageProcessor"}, "size, resample, image_mean, image_std"),
        (RESNET_50 | {"do_center_crop": True}, "do_center_crop=True"),
        (RESNET_50 | {"do_resize": False}, "do_resize=False"),
        (RESNET_50 | {"do_flip_channel_order": True}, "do_flip_channel_order=True"),
        (RESNET_50 | {"size": {"height": 224, "width": 224}}, "size="),
        (RESNET_50 | {"resample": 9}, "resample=9.*2 .bilinear."),
        (RESNET_50 | {"crop_pct": 0}, "crop_pct=0"),
        (RESNET_50 | {"rescale_factor": 0}, "rescale_factor=0"),
        (BIT_50 | {"size": {"longest_edge": 448}}, "longest_edge"),
        (BIT_50 | {"do_center_crop": False}, "do_center_crop=False"),
        (BIT_50 | {"crop_size": None}, "crop_px=None"),
    ],
)
def test_malformed_transformers_fields_are_refused_by_name(processor_config, message):
    with pytest.raises(ConfigError, match=message):
        from_transformers(processor_config)


# What KerasHub 0.32 writes, but for what its layers have in common.
IMAGE_CONVERTER = {
    "name": "res_net_image_converter",
    "image_size": [224, 288],
    "scale": [0.025, 0.02, 0.01],
    "offset": [-2.0, -1.0, 0.5],
    "interpolation": "bicubic",
    "antialias": False,
    "crop_to_aspect_ratio": True,
    "pad_to_aspect_ratio": False,
    "bounding_box_format": "yxyx",
}


def test_an_image_converter_of_kerashub_is_scale_and_offset():
    config = from_kerashub(IMAGE_CONVERTER)
    geometry = {"crop_px": (224, 288), "resize_px": (224, 288), "interpolation": "bicubic"}
    expected = Preprocess(
        resize_mode="crop_to_aspect_ratio",
        antialias=False,
        mean=config.mean,
        std=config.std,
        **geometry,
    )
    assert config == expected
    pixels = np.arange(256)[:, None] * np.ones(3)
    scaled = pixels * IMAGE_CONVERTER["scale"] + IMAGE_CONVERTER["offset"]
    np.testing.assert_allclose(normalize(pixels, config), scaled, atol=1e-5)


def test_an_image_converter_of_kerashub_s_first_releases_has_mean_and_variance():
    older = {"height": 224, "width": 288, "scale": 1 / 255}
    config = from_kerashub(older | {"mean": [0.5, 0.4, 0.3], "variance": [0.04, 0.09, 0.16]})
    assert config.crop_px == config.resize_px == (224, 288)
    np.testing.assert_allclose(config.mean, [0.5, 0.4, 0.3])
    np.testing.assert_allclose(config.std, [0.2, 0.3, 0.4])


def test_an_image_converter_of_kerashub_that_does_not_resize_says_no_preprocess():
    assert from_kerashub(IMAGE_CONVERTER | {"image_size": None}) is None


def test_one_number_of_kerashub_stands_for_all_channels_and_nearest_never_antialiases():
    fields = {"scale": [0.1], "offset": None, "interpolation": "nearest"}
    config = from_kerashub(IMAGE_CONVERTER | fields | {"crop_to_aspect_ratio": False})
    assert config == from_kerashub(
        IMAGE_CONVERTER | fields | {"scale": 0.1, "crop_to_aspect_ratio": False}
    )
    assert str(config.mean) == "(0.0, 0.0, 0.0)"
    assert to_timm(config)["interpolation"] == "nearest"


def test_an_image_converter_of_kerashub_may_leave_pixels_and_shape_alone():
    fields = {"scale": None, "offset": None, "crop_to_aspect_ratio": False}
    config = from_kerashub(IMAGE_CONVERTER | fields | {"interpolation": "lanczos3"})
    assert (config.resize_mode, config.interpolation) == ("squash", "lanczos")
    pixels = np.arange(256)[:, None] * np.ones(3)
    np.testing.assert_allclose(normalize(pixels, config), pixels, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"antialias": "false"}, "antialias='false'"),
        ({"crop_to_aspect_ratio": 1}, "crop_to_aspect_ratio=1"),
        ({"pad_to_aspect_ratio": True}, "pad_to_aspect_ratio=True"),
        ({"antialias": True}, "antialias=True with interpolation='bicubic'"),
        ({"interpolation": "lanczos5"}, "interpolation='lanczos5'"),
        ({"image_size": [224]}, "crop_px"),
        ({"image_size": [224, 0]}, "crop_px"),
        ({"scale": "1"}, "scale='1'"),
        ({"scale": [0.1, 0.0, 0.1]}, "scale=0.0"),
        ({"scale": [0.1, 0.1]}, "scale"),
        ({"offset": [None] * 3}, "offset"),
    ],
)
def test_image_converters_that_cannot_be_followed_are_refused_by_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        from_kerashub(IMAGE_CONVERTER | fields)


WINDOW = Preprocess(
    crop_px=(192, 224), resize_px=(192, 224), resize_mode="crop_to_aspect_ratio", antialias=False
)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"resize_mode": "squash", "antialias": True},
        {"interpolation": "bicubic"},
        {"interpolation": "lanczos", "divisor": 127.5, "mean": (1.0, 1.0, 1.0)},
        {"interpolation": "nearest", "antialias": True},
    ],
)
def test_what_kerashub_can_do_comes_back_from_its_converter(fields):
    config = dataclasses.replace(WINDOW, **fields)
    back = from_kerashub(to_kerashub(config))
    pixels = np.arange(256)[:, None] * np.ones(3)
    np.testing.assert_allclose(normalize(pixels, back), normalize(pixels, config), atol=1e-5)
    numbers = ("divisor", "mean", "std")
    for name in set(config.to_json()) - set(numbers):
        assert getattr(back, name) == getattr(config, name), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize_mode": "short_edge", "resize_px": 256}, "resize_mode='short_edge'"),
        ({"resize_mode": "none", "resize_px": None}, "resize_mode='none'"),
        ({"resize_px": (224, 256)}, r"resize_px=\(224, 256\)"),
        ({"interpolation": "hamming", "antialias": True}, "interpolation='hamming'"),
        ({"interpolation": "bicubic", "antialias": True}, "antialias=True"),
        ({"channel_order": "bgr"}, "channel_order='bgr'"),
        ({"mean": (0.5,), "std": (0.5,)}, "channels=1"),
    ],
)
def test_what_kerashub_cannot_do_is_refused_by_field(fields, message):
    with pytest.raises(ConfigError, match=f"KerasHub has no transform with {message}"):
        to_kerashub(dataclasses.replace(WINDOW, **fields))
