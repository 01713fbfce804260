"""The directories that we write, opened by the systems that they are written for."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

import resnetjax as rj
from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.data.preprocess import preprocess
from resnetjax.presets import get
from resnetjax.pretrained import Pretrained, Source
from tests.disturbed import disturbed
from tests.parity import torchvision_shim

torchvision_shim.install()

import timm  # noqa: E402
import transformers  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE = 1e-8  # of the spread of the logits over the images, both sides in float64
LABELS = Labels(names=("ant", "bee", "cat", "dog", "emu"))
GREY = {"mean": (0.5,), "std": (0.25,)}


def assert_equal_outputs(pre: Pretrained, model: torch.nn.Module, *, output=lambda x: x) -> None:
    shape = (4, 65, 65, pre.config.in_channels)
    images = np.random.default_rng(1).normal(size=shape)
    with jax.enable_x64(True):
        net = rj.ResNet(pre.config, dtype=jnp.float64)
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), pre.variables)
        ours = np.asarray(jax.jit(net.apply)(variables, jnp.asarray(images)))
    with torch.no_grad():
        theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        found = output(copy.deepcopy(model).double().eval()(theirs))
    theirs = found.numpy().reshape(ours.shape)
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs - theirs.mean(0)).max()


TRANSFORMERS = {
    "basic": ResNetConfig(block="basic", depths=(2, 1), widths=(16, 24), strides=(1, 2),
                          dilations=(1, 1), stem_width=16, num_classes=5),
    "first stage strided, gelu": ResNetConfig(
        depths=(1, 2, 1), widths=(16, 24, 32), strides=(2, 2, 2), dilations=(1, 1, 1),
        activation="gelu_tanh", inner_activation="relu", num_classes=5),
    "v1": ResNetConfig(depths=(1, 2, 1), widths=(16, 24, 32), strides=(1, 2, 2),
                       dilations=(1, 1, 1), stride_on="reduce", num_classes=5),
    "grey": ResNetConfig(block="basic", depths=(1,), widths=(16,), strides=(1,), dilations=(1,),
                         in_channels=1, num_classes=5),
    "resnet18": get("resnet18").replace(num_classes=5),
}  # fmt: skip


@pytest.mark.parametrize("config", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_transformers_loads_its_directory_and_computes_our_logits(tmp_path, config):
    prepared = Preprocess(**GREY) if config.in_channels == 1 else Preprocess()
    pre = disturbed(config, labels=LABELS, preprocess=prepared)
    rj.save(pre, tmp_path, dialect="transformers")
    model, said = transformers.ResNetForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(said.values()), said
    assert model.config.id2label == dict(enumerate(LABELS.names))
    assert model.config.label2id["dog"] == 3
    assert_equal_outputs(pre, model, output=lambda x: x.logits)
    _, said = transformers.ResNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(said["unexpected_keys"]) == {"classifier.1.weight", "classifier.1.bias"}
    assert not said["missing_keys"]


def test_a_headless_directory_is_transformers_model_and_backbone(tmp_path):
    pre = disturbed(TRANSFORMERS["v1"].replace(num_classes=0))
    rj.save(pre, tmp_path, dialect="transformers")
    model, said = transformers.ResNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said
    assert_equal_outputs(pre, model, output=lambda x: x.pooler_output)
    backbone, said = transformers.ResNetBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said
    maps = backbone.eval()(torch.zeros(1, 3, 64, 64)).feature_maps
    assert maps[-1].shape == (1, 128, 4, 4)


@pytest.mark.parametrize(
    ("activation", "problem"),
    [("sigmoid", "multi_label_classification"), ("none", "regression")],
)
def test_transformers_reads_what_the_outputs_mean(tmp_path, activation, problem):
    labels = Labels(names=LABELS.names, activation=activation)
    rj.save(disturbed(TRANSFORMERS["basic"], labels=labels), tmp_path, dialect="transformers")
    assert transformers.AutoConfig.from_pretrained(tmp_path).problem_type == problem


@pytest.mark.parametrize(
    "prepared",
    [
        Preprocess(interpolation="bicubic"),
        Preprocess(crop_px=(96, 96), resize_mode="squash", resize_px=(96, 96), divisor=127.5),
        Preprocess(crop_px=(64, 96), resize_px=100),
    ],
    ids=["short edge", "squash", "oblong"],
)
def test_transformers_image_processor_gives_our_pixels(tmp_path, prepared):
    rj.save(disturbed(TRANSFORMERS["basic"], preprocess=prepared), tmp_path, dialect="transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    # The margins are even, so that where the crop starts needs no rounding.
    image = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = preprocess(Image.fromarray(image), prepared)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


TIMM = {
    "resnet18": ({}, {}),
    "resnet18d": ({"in_channels": 1}, GREY),
    "test_resnet": ({"activation": "silu", "head_pool": "max"}, {}),
    "ecaresnet26t": ({"output_stride": 8}, {}),
    "ecaresnet50d_pruned": ({"in_channels": 1}, GREY),
    "ecaresnet101d_pruned": ({"num_classes": 0}, {}),
    "resnetaa34d": ({"num_classes": 0}, {}),
    "resnetblur18": ({}, {}),
    "resnetrs50": ({}, {}),
    "resnetv2_18": ({"output_stride": 16}, {}),
    "resnetv2_34d": ({"in_channels": 1}, GREY),
    "resnetv2_50x1_bit": ({}, {}),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_loads_its_directory_strictly_and_computes_our_logits(tmp_path, name):
    changes, statistics = TIMM[name]
    config = get(name).replace(**{"num_classes": 5, **changes})
    prepared = Preprocess(crop_px=(192, 192), resize_px=240, interpolation="bicubic", **statistics)
    labels = LABELS if config.num_classes else None
    pre = disturbed(config, labels=labels, preprocess=prepared, source=Source(arch=name))
    rj.save(pre, tmp_path, dialect="timm_v2" if config.order == "pre" else "timm")
    # Strict unless the number of classes is another.
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    theirs = {key: x.numpy() for key, x in model.state_dict().items()}
    written = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == written.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(theirs[key], array, err_msg=key)
    assert model.num_classes == config.num_classes
    assert_equal_outputs(pre, model)
    transform = timm.data.resolve_model_data_config(model)
    assert tuple(transform["input_size"]) == (config.in_channels, 192, 192)
    assert tuple(transform["mean"]) == prepared.mean
    assert tuple(transform["std"]) == prepared.std
    assert (transform["interpolation"], transform["crop_pct"]) == ("bicubic", 0.8)
    assert transform["crop_mode"] == "center"
    plain = timm.create_model(name, num_classes=config.num_classes)
    for key in ("first_conv", "classifier"):
        assert model.pretrained_cfg[key] == plain.pretrained_cfg[key]
    if labels:
        assert tuple(model.pretrained_cfg["label_names"]) == labels.names
