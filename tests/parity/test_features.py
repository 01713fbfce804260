"""Feature maps by the keys of timm, Transformers and KerasHub, beside what these give for them."""

import warnings

import keras
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import transformers

import resnetjax as rj
from resnetjax import presets
from resnetjax.errors import AssumptionWarning
from resnetjax.infer.features import feature_info
from tests.disturbed import varied_images
from tests.parity import engine, torch_side
from tests.parity.engine import TOLERANCE
from tests.parity.test_keras import fill, hub

pytestmark = [
    pytest.mark.parity,
    # Of Keras and PyTorch: arrays that are not writable.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

SIZE_PX = (65, 96)


def load(path, **told) -> rj.Pretrained:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        return rj.load(path, **told)


def torch_images(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def assert_same(ours: dict, theirs: dict) -> None:
    assert list(ours) == list(theirs)
    errors = engine.errors({key: np.asarray(x) for key, x in ours.items()}, theirs)
    assert {key: error for key, error in errors.items() if not error < TOLERANCE} == {}


@pytest.fixture(scope="module")
def images(samples):
    return engine.pictures(samples, SIZE_PX, 3)


# resnet50 strides on the 3x3, resnet50d pools its shortcuts, resnetv2 norms first.
@pytest.fixture(
    scope="module", params=["resnet18", "resnet50", "resnet50d", "resnetv2_50", "resnetaa50d"]
)
def timm_net(request, images, tmp_path_factory):
    """A timm net, whole and settled, in a file, and ours that was loaded from it."""
    torch.manual_seed(0)
    model = timm.create_model(request.param, layers=(1, 2, 1, 2)).eval()
    torch_side.settle(model, torch_images(images))
    path = tmp_path_factory.mktemp("timm") / "net.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    config = presets.get(request.param).replace(depths=(1, 2, 1, 2))
    return request.param, model, load(path, config=config)


def features_only(name: str, model: torch.nn.Module, **arguments) -> torch.nn.Module:
    """A wrapper of timm, with the whole weights: it flattens names, and keeps their order."""
    wrapped = timm.create_model(name, layers=(1, 2, 1, 2), features_only=True, **arguments).eval()
    values = iter(model.state_dict().values())
    wrapped.load_state_dict({key: next(values) for key in wrapped.state_dict()}, strict=True)
    return wrapped


# timm's avg_conv and anti-aliased nets too: where they dilate, so do ours.
@pytest.mark.parametrize("stride", [None, 16, 8])
def test_timms_out_indices_with_their_channels_and_reductions(timm_net, images, stride):
    name, model, pre = timm_net
    wrapped = features_only(name, model, **({} if stride is None else {"output_stride": stride}))
    with torch.no_grad():
        maps = wrapped(torch_images(images))
    theirs = {i: x.permute(0, 2, 3, 1).numpy() for i, x in enumerate(maps)}
    assert_same(rj.features(pre, images, convention="timm", output_stride=stride), theirs)
    info = feature_info(pre, convention="timm", output_stride=stride)
    assert [x.channels for x in info.values()] == wrapped.feature_info.channels()
    assert [x.stride for x in info.values()] == wrapped.feature_info.reduction()


@pytest.mark.parametrize("indices", [(1, 3), (-1,), (2, 3, 4)])
def test_timms_out_indices_are_counted_alike(timm_net, images, indices):
    name, model, pre = timm_net
    wrapped = features_only(name, model, out_indices=indices)
    with torch.no_grad():
        maps = wrapped(torch_images(images))
    ours = rj.features(pre, images, convention="timm", stages=indices)
    theirs = [x.permute(0, 2, 3, 1).numpy() for x in maps]
    assert_same(ours, dict(zip(ours, theirs, strict=True)))


def test_timms_pooled_features_are_what_the_head_sees(timm_net, images):
    _, model, pre = timm_net
    with torch.no_grad():
        x = torch_images(images)
        theirs = model.forward_head(model.forward_features(x), pre_logits=True).numpy()
    assert_same(rj.features(pre, images, stages=("pooled",)), {"pooled": theirs})


def test_v2_stages_are_those_before_the_last_norm(timm_net, images):
    name, model, pre = timm_net
    if not name.startswith("resnetv2"):
        assert "norm" not in feature_info(pre)
        return
    with torch.no_grad():
        theirs = model.forward_features(torch_images(images)).permute(0, 2, 3, 1).numpy()
    ours = rj.features(pre, images, stages=("norm", "stage4"))
    assert_same({"norm": ours["norm"]}, {"norm": theirs})
    assert np.abs(np.asarray(ours["stage4"]) - theirs).max() > 0.1


@pytest.mark.parametrize(
    ("asked", "stages"),
    [
        ({"out_features": ["stem", "stage1", "stage2", "stage3", "stage4"]}, None),
        ({"out_features": ["stage2", "stage4"]}, ("stage2", "stage4")),
        ({"out_indices": [0, 3]}, (0, 3)),
        ({"out_indices": [-1]}, (-1,)),
        ({}, (-1,)),  # Transformers' default is the last
    ],
)
def test_transformers_out_features_and_out_indices(images, tmp_path, asked, stages):
    torch.manual_seed(0)
    small = {"depths": [1, 2, 1, 1], "hidden_sizes": [32, 64, 96, 128], "embedding_size": 16}
    model = transformers.ResNetBackbone(transformers.ResNetConfig(**small, **asked)).eval()
    torch_side.settle(model, torch_images(images))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        maps = model(torch_images(images)).feature_maps
    theirs = dict(zip(model.out_features, (x.permute(0, 2, 3, 1).numpy() for x in maps)))  # noqa: B905
    pre = load(tmp_path)
    ours = rj.features(pre, images, convention="transformers", stages=stages)
    assert_same(ours, theirs)
    info = feature_info(pre, convention="transformers", stages=stages)
    assert [x.channels for x in info.values()] == list(model.channels)


@pytest.mark.parametrize("block_type", ["basic_block", "bottleneck_block", "bottleneck_block_vd"])
@pytest.mark.parametrize("pre_activation", [False, True])
def test_kerashubs_pyramid_outputs(block_type, pre_activation, tmp_path):
    if block_type.endswith("vd") and pre_activation:
        pre_activation = False  # KerasHub has no such net
    model = hub(block_type, pre=pre_activation)
    fill(model)
    model.save(tmp_path / "net.keras")
    backbone = model.backbone
    x = varied_images(4, 65, 65)
    outputs = keras.Model(backbone.inputs, backbone.pyramid_outputs)(x, training=False)
    theirs = {key: keras.ops.convert_to_numpy(value) for key, value in outputs.items()}
    pre = load(tmp_path / "net.keras")
    assert_same(rj.features(pre, x, convention="keras"), theirs)
    assert list(rj.features(pre, x, convention="keras", stages=("P5", "P3"))) == ["P5", "P3"]
