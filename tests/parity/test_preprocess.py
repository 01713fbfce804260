"""Preprocessing against the frameworks' own, on photographs in their real sizes and encodings.

Where the reference resizes with Pillow, every bit is the same. Transformers' torchvision backend,
its default since version 5, resizes in torch's arithmetic: its two backends differ from each other.
"""

from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import timm
import torch
from keras.src.backend.jax.image import resize as keras_jax_resize
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.models import ResNet50_Weights
from torchvision.models._meta import _IMAGENET_CATEGORIES
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    PILToTensor,
    Resize,
    ToTensor,
)
from transformers import (
    BitImageProcessor,
    BitImageProcessorPil,
    ConvNextImageProcessor,
    ConvNextImageProcessorPil,
    ViTImageProcessorPil,
)

import resnetjax as rj
from resnetjax.config import (
    HALF_MEAN,
    HALF_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
)
from resnetjax.data import labels
from resnetjax.data.preprocess import crop, decode, normalize, preprocess
from resnetjax.data.preprocess_formats.kerashub import from_kerashub
from resnetjax.data.preprocess_formats.timm import from_timm, to_timm
from resnetjax.data.preprocess_formats.transformers import from_transformers, to_transformers
from resnetjax.weights import sources

pytestmark = pytest.mark.parity

STATISTICS = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}


@pytest.fixture(scope="module")
def photographs(shared_data) -> list[Path]:
    """Thirty of the samples, all the grey ones among them."""

    def is_colour(path: Path) -> bool:
        with Image.open(path) as image:
            return image.mode == "RGB"

    paths = sorted((shared_data / "imagenet-samples").iterdir())
    chosen = sorted(paths, key=is_colour)[:30]
    assert [is_colour(path) for path in chosen].count(False) == 4
    return chosen


def as_torch_users_open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


def assert_same_bits(photographs, config: Preprocess, reference) -> None:
    for path in photographs:
        expected = channels_last(reference(as_torch_users_open(path)))
        np.testing.assert_array_equal(preprocess(path, config), expected, err_msg=path.name)


@pytest.mark.parametrize("weights", list(ResNet50_Weights), ids=lambda weights: weights.name)
def test_torchvision_weights_transforms_are_the_same_bits(photographs, weights):
    reference = weights.transforms()
    config = Preprocess(resize_px=reference.resize_size[0])
    assert_same_bits(photographs, config, reference)


@pytest.mark.parametrize("crop_px", [(224, 224), (300, 225), (600, 31)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_torchvision_resize_and_crop_are_the_same_pixels(photographs, crop_px, interpolation):
    # 600 is more than most of these edges: black is padded.
    config = Preprocess(crop_px=crop_px, resize_px=237, interpolation=interpolation)
    mode = InterpolationMode(interpolation)
    reference = Compose([Resize(237, mode), CenterCrop(crop_px), PILToTensor()])
    for path in photographs[:10]:
        expected = channels_last(reference(as_torch_users_open(path)))
        np.testing.assert_array_equal(crop(decode(path), config), expected, err_msg=path.name)


def test_torchvision_crops_without_resizing_are_the_same_pixels(photographs):
    config = Preprocess(crop_px=(333, 477), resize_mode="none", resize_px=None)
    reference = Compose(
        [CenterCrop((333, 477)), ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )
    assert_same_bits(photographs, config, reference)


def test_every_pixel_value_normalises_to_torch_s_bits():
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 1, 3)).copy()
    for mean, std in ((IMAGENET_MEAN, IMAGENET_STD), (HALF_MEAN, HALF_STD)):
        expected = channels_last(Compose([ToTensor(), Normalize(mean, std)])(pixels))
        np.testing.assert_array_equal(normalize(pixels, Preprocess(mean=mean, std=std)), expected)


TIMM = {
    "a1_in1k": {"crop_pct": 0.95, "interpolation": "bicubic"},
    "a1_in1k test": {"input_size": (3, 288, 288), "crop_pct": 1.0, "interpolation": "bicubic"},
    "tv_in1k": {"crop_pct": 0.875, "interpolation": "bilinear"},
    "tv2_in1k": {"crop_pct": 0.965, "interpolation": "bilinear"},
    "bit 448": {
        "input_size": (3, 448, 448),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": HALF_MEAN,
        "std": HALF_STD,
    },
    "squash": {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
    "squash and crop": {"crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear"},
    "wide": {"input_size": (3, 192, 256), "crop_pct": 0.9, "interpolation": "bicubic"},
    "tall squash": {
        "input_size": (3, 256, 192),
        "crop_pct": 0.875,
        "crop_mode": "squash",
        "interpolation": "bilinear",
    },
}


@pytest.mark.parametrize("pretrained_cfg", TIMM.values(), ids=list(TIMM))
def test_timm_evaluation_transforms_are_the_same_bits(photographs, pretrained_cfg):
    config = from_timm(pretrained_cfg)
    for fields in (pretrained_cfg, to_timm(config)):
        options = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **fields}
        size = options.pop("input_size", (3, 224, 224))[1:]
        reference = transforms_imagenet_eval(img_size=size, **options)
        assert_same_bits(photographs, config, reference)


TRANSFORMERS = {
    "resnet 224": (ConvNextImageProcessorPil, {"size": {"shortest_edge": 224}, "resample": 3}),
    "resnet 224, crop_pct 0.95": (
        ConvNextImageProcessorPil,
        {"size": {"shortest_edge": 224}, "resample": 3, "crop_pct": 0.95},
    ),
    "resnet 384": (ConvNextImageProcessorPil, {"size": {"shortest_edge": 384}, "resample": 3}),
    "bit 448": (
        BitImageProcessorPil,
        {
            "size": {"shortest_edge": 448},
            "crop_size": {"height": 448, "width": 448},
            "resample": 2,
        },
    ),
    "bit padded": (
        BitImageProcessorPil,
        {
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 301, "width": 300},
            "resample": 1,
        },
    ),
    "vit": (ViTImageProcessorPil, {"size": {"height": 224, "width": 320}, "resample": 2}),
}


@pytest.mark.parametrize(("processor", "fields"), TRANSFORMERS.values(), ids=list(TRANSFORMERS))
def test_transformers_pil_processors_are_the_same_bits(photographs, processor, fields):
    reference = processor(**STATISTICS, **fields)
    config = from_transformers(reference.to_dict())
    for path in photographs:
        image = as_torch_users_open(path)
        expected = reference(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(preprocess(path, config), expected, err_msg=path.name)


@pytest.mark.parametrize(
    "config",
    [
        Preprocess(interpolation="bicubic", crop_rounding="floor"),
        Preprocess(crop_px=(384, 384), resize_px=438, crop_rounding="floor"),
        Preprocess(resize_mode="squash", resize_px=(240, 256), crop_rounding="floor"),
        Preprocess(divisor=127.5, mean=(1.0,) * 3, std=(1.0,) * 3, crop_rounding="floor"),
    ],
)
def test_transformers_reads_what_is_written_for_it(photographs, config):
    fields = to_transformers(config)
    processors = {
        "ConvNextImageProcessor": ConvNextImageProcessorPil,
        "BitImageProcessor": BitImageProcessorPil,
    }
    reference = processors[fields.pop("image_processor_type")](**fields)
    for path in photographs[:10]:
        image = as_torch_users_open(path)
        expected = reference(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(preprocess(path, config), expected, err_msg=path.name)


@pytest.mark.parametrize(
    ("processor", "fields", "levels", "share_beyond_one"),
    [
        (ConvNextImageProcessor, {"size": {"shortest_edge": 224}, "resample": 3}, 2, 2e-6),
        # All hundred samples: 0.04 levels on average, 0.02 % beyond one.
        (ConvNextImageProcessor, {"size": {"shortest_edge": 384}, "resample": 3}, 16, 1e-3),
        (BitImageProcessor, {"size": {"shortest_edge": 256}, "resample": 2}, 1, 0),
    ],
    ids=["resnet 224 bicubic", "resnet 384 bicubic", "bit bilinear"],
)
def test_transformers_torchvision_processors_differ_as_little_as_was_measured(
    photographs, processor, fields, levels, share_beyond_one
):
    reference = processor(**fields, do_rescale=False, do_normalize=False)
    config = from_transformers(reference.to_dict() | STATISTICS)
    differences = []
    for path in photographs:
        expected = reference(as_torch_users_open(path), return_tensors="pt")["pixel_values"][0]
        difference = crop(decode(path), config).astype(int) - channels_last(expected)
        differences.append(np.abs(difference))
    assert np.max(differences) <= levels
    assert np.mean(np.greater(differences, 1)) <= share_beyond_one
    assert np.mean(differences) < 0.07


@pytest.mark.parametrize("processor", [ConvNextImageProcessor, BitImageProcessor])
def test_transformers_torchvision_processors_normalise_to_six_digits(photographs, processor):
    # They fold the scale into mean and standard deviation.
    reference = processor(**STATISTICS, do_resize=False, do_center_crop=False)
    image = as_torch_users_open(photographs[-1])
    expected = channels_last(reference(image, return_tensors="pt")["pixel_values"][0])
    np.testing.assert_allclose(normalize(np.asarray(image), Preprocess()), expected, atol=5e-7)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos3"])
@pytest.mark.parametrize("crop_to_aspect_ratio", [True, False])
def test_keras_resizes_on_jax_to_the_same_pixels(photographs, interpolation, crop_to_aspect_ratio):
    # Up to its float32, which rounds the other way where a value lies between two levels, and where
    # the nearest pixel is one of two.
    options = {"interpolation": interpolation, "crop_to_aspect_ratio": crop_to_aspect_ratio}
    config = from_kerashub({"image_size": (224, 288), **options})
    differences = []
    for path in photographs[-4:]:
        pixels = np.asarray(as_torch_users_open(path))
        resized = keras_jax_resize(pixels, (224, 288), data_format="channels_last", **options)
        expected = np.clip(np.rint(resized), 0, 255).astype(int)
        differences.append(np.abs(crop(decode(path), config) - expected))
    assert np.mean(np.greater(differences, 1)) <= (0.01 if interpolation == "nearest" else 0)
    assert np.mean(np.equal(differences, 1)) < 1e-3


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # Keras with torch's tensors
@pytest.mark.parametrize("antialias", [False, True])
def test_a_preset_of_kerashub_prepares_images_as_it_does_there(photographs, tmp_path, antialias):
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(224, 192),
        scale=[1 / 255 / deviation for deviation in IMAGENET_STD],
        offset=[-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)],
        antialias=antialias,
    )
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
    )
    preprocessor = keras_hub.models.ResNetImageClassifierPreprocessor(converter)
    for folder, part in (("task", preprocessor), ("backbone", converter)):
        backbone.save_to_preset(tmp_path / folder)
        part.save_to_preset(tmp_path / folder)
        config = rj.load(tmp_path / folder).preprocess
        assert config is not None
        for path in photographs[-4:]:
            image = np.asarray(as_torch_users_open(path))
            expected = keras.ops.convert_to_numpy(preprocessor(image))
            level = 1 / 255 / min(IMAGENET_STD) + 1e-5
            np.testing.assert_allclose(preprocess(path, config), expected, atol=level)


def test_imagenet_names_hold_those_of_torchvision():
    names = labels.get("imagenet_1k").names
    differing = [
        (theirs, ours)
        for theirs, ours in zip(_IMAGENET_CATEGORIES, names, strict=True)
        if theirs not in ours.split(", ")
    ]
    # torchvision tells these two from their namesakes.
    assert differing == [("crane bird", "crane"), ("maillot tank suit", "maillot, tank suit")]


@pytest.mark.parametrize("subset", ["imagenet-1k", "imagenet-12k", "imagenet-21k-goog"])
def test_imagenet_labels_are_those_of_timm_in_its_order(subset):
    theirs = ImageNetInfo(subset)
    ours = labels.get(subset.removesuffix("-goog").replace("-", "_"))
    assert list(ours.ids or ()) == theirs.label_names()
    assert list(ours.names) == theirs.label_descriptions()


def test_published_heads_have_the_labels_that_timm_gives_them():
    assert "timm" in {weights.publisher for weights in sources.WEIGHTS.values()}
    for weights in sources.WEIGHTS.values():
        if weights.publisher == "timm" and weights.num_classes:
            config = timm.get_pretrained_cfg(weights.name).to_dict()
            subset = infer_imagenet_subset(config)
            assert subset is not None
            theirs = ImageNetInfo(subset).label_names()
            assert weights.labels is not None
            assert list(labels.get(weights.labels).ids or ()) == theirs, weights.name
