"""Modules that torch.save wrote whole: read without their code, and as they say of themselves."""

import jax
import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers

import resnetjax as rj
from resnetjax.errors import AssumptionWarning, WeightsMismatch
from resnetjax.weights import files
from tests.disturbed import spread_error, varied_images
from tests.parity import torch_side

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

TOLERANCE = 1e-4
IMAGES = varied_images(3, 65, 97)


def on_reduce(model):
    """The paper's own v1 of torchvision's ResNet: strides in the first convolution."""
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return model


def with_epsilon(model, eps):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = eps
    return model


def for_cifar(model):
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    return model


def with_head(model):
    model.fc = torch.nn.Sequential(
        torch.nn.Linear(512, 64), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(64, 5)
    )
    return model


def of_transformers(kind="ForImageClassification", **settings):
    config = transformers.ResNetConfig(depths=[1, 2, 1, 1], **settings)
    return getattr(transformers, f"ResNet{kind}")(config)


class Mine(torch.nn.Module):
    """A class that only the tests have, around a net."""

    def __init__(self):
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=7)

    def forward(self, x):
        return self.net(x)


resnet = torchvision.models
NETS = {
    "resnet50": (lambda: resnet.resnet50(), "resnet50"),
    "dilated": (
        lambda: resnet.resnet50(replace_stride_with_dilation=[False, True, True]), None
    ),
    "v1": (lambda: on_reduce(resnet.resnet50()), "resnet50_v1"),
    "another epsilon": (lambda: with_epsilon(resnet.resnet18(), 1e-3), None),
    "for cifar": (lambda: for_cifar(resnet.resnet18()), None),
    "with a head": (lambda: with_head(resnet.resnet18()), "resnet18"),
    "parallel": (lambda: torch.nn.DataParallel(resnet.resnext50_32x4d()), "resnext50_32x4d"),
    **{
        name: (lambda name=name: timm.create_model(name), name)
        for name in ("resnetblur50", "resnetaa50d", "seresnext26d_32x4d", "resnetrs50",
                     "ecaresnet50t", "resnet26t", "resnet50_gn", "resnetv2_50d",
                     "resnetv2_50x1_bit")
    },
    "timm, dilated": (lambda: timm.create_model("resnet50d", output_stride=8), None),
    "timm v2, dilated": (lambda: timm.create_model("resnetv2_50", output_stride=16), None),
    "timm, silu": (lambda: timm.create_model("resnet18", act_layer="silu"), None),
    "timm, max": (lambda: timm.create_model("resnet18", global_pool="max"), None),
    "transformers, silu": (lambda: of_transformers(hidden_act="silu"), None),
    "transformers, first": (lambda: of_transformers(downsample_in_first_stage=True), None),
    "transformers, v1": (lambda: of_transformers(downsample_in_bottleneck=True), None),
    "transformers, no head": (
        lambda: of_transformers("Model", layer_type="basic", hidden_sizes=[64, 128, 256, 512]), None
    ),
}  # fmt: skip


def outputs(model) -> np.ndarray:
    with torch.no_grad():
        found = model(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()))
    for name in ("logits", "pooler_output"):
        found = getattr(found, name, found)
    return found.flatten(1).numpy()


@pytest.mark.parametrize("net", NETS)
def test_a_module_saved_whole_is_what_it_says(net, tmp_path):
    build, arch = NETS[net]
    model = build().eval()
    torch_side.settle(
        getattr(model, "module", model), torch.from_numpy(IMAGES.transpose(0, 3, 1, 2))
    )
    torch.save(model, tmp_path / "net.pth")
    with pytest.warns(AssumptionWarning):  # of the images
        pre = rj.load(tmp_path / "net.pth")
    assert pre.source.arch == arch
    left = [
        x for x in pre.source.assumptions if not x.startswith(("images", "1000 classes", "fc."))
    ]
    assert left == []
    ours = np.asarray(jax.jit(pre.model.apply)(pre.variables, IMAGES))
    assert spread_error(ours, outputs(model)) < TOLERANCE
    # A state dict would have gone for another net, or for this one with a word of assumption.
    torch.save(model.state_dict(), tmp_path / "state.pth")
    with pytest.warns(AssumptionWarning, match="decides"):
        rj.load(tmp_path / "state.pth", strict=False)


@pytest.mark.parametrize(
    "options", [{}, {"pickle_protocol": 5}, {"_use_new_zipfile_serialization": False}], ids=str
)
def test_the_arrays_are_those_of_the_state_dict(options, tmp_path):
    model = timm.create_model("seresnet50")
    torch.save({"epoch": 3, "model": model}, tmp_path / "net.pth", **options)
    file = files.read(tmp_path / "net.pth")
    expected = {x: y for x, y in model.state_dict().items() if "num_batches" not in x}
    assert file.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(file.arrays[name], array.numpy())
    assert file.metadata["epoch"] == 3
    assert file.parts["layer2.0.conv2"]["stride"] == (2, 2)


def test_of_a_class_that_is_not_known_it_is_said_that_its_code_is_not_there(tmp_path):
    model = Mine().eval()
    torch.save(model, tmp_path / "net.pth")
    said = r"test_whole_modules.Mine computes with its layers what torchvision does \(its code"
    with pytest.warns(AssumptionWarning, match=said):
        pre = rj.load(tmp_path / "net.pth")
    assert pre.config.num_classes == 7
    ours = np.asarray(jax.jit(pre.model.apply)(pre.variables, IMAGES))
    assert spread_error(ours, outputs(model)) < TOLERANCE


def stem_of_stride_1(model):
    model.conv1.stride = (1, 1)


def leaky(model):
    model.relu = torch.nn.LeakyReLU()


def one_epsilon(model):
    model.layer3[0].bn2.eps = 1e-3


def a_pool_without_padding(model):
    model.maxpool = torch.nn.MaxPool2d(3, 2, ceil_mode=True)


def one_block_strided(model):
    model.layer2[1].conv1.stride = (2, 2)


def another_head(model):
    with_head(model).fc[1] = torch.nn.Tanh()


def reflecting(model):
    model.layer1[0].conv1.padding_mode = "reflect"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (stem_of_stride_1, "conv1 has stride=1, not 2"),
        (leaky, "activation='LeakyReLU' is not allowed"),
        (one_epsilon, "layer3.0.bn2 has eps=0.001, not 1e-05"),
        (a_pool_without_padding, "max of 3x3, stride 2, padding 0 and ceil_mode"),
        (one_block_strided, "layer2.1.conv1 has stride=2, not 1"),
        (another_head, "an activation between the layers of the head is Tanh, not relu"),
        (reflecting, "layer1.0.conv1 has padding_mode=reflect, not zeros"),
    ],
)
def test_what_no_config_says_is_refused_by_layer(change, said, tmp_path):
    model = torchvision.models.resnet18().eval()
    change(model)
    torch.save(model, tmp_path / "net.pth")
    with pytest.raises(WeightsMismatch, match=said):
        rj.load(tmp_path / "net.pth")
    with pytest.warns(AssumptionWarning):
        assert rj.load(tmp_path / "net.pth", arch="resnet18").source.arch == "resnet18"
