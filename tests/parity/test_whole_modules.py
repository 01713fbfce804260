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


def without_head(model):
    model.fc = torch.nn.Identity()
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
    "transformers, gelu_new": (lambda: of_transformers(hidden_act="gelu_new"), None),
    "transformers, gelu": (lambda: of_transformers(hidden_act="gelu"), None),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(resnet.resnet18()), "resnet18"),
    "synchronised": (
        lambda: torch.nn.SyncBatchNorm.convert_sync_batchnorm(resnet.resnet18()), "resnet18"
    ),
    "frozen": (
        lambda: resnet.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d), "resnet18"
    ),
    "no classes": (lambda: without_head(resnet.resnet18()), "resnet18"),
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
    said = r"test_whole_modules.Mine compute with their layers what torchvision does \(the code"
    with pytest.warns(AssumptionWarning, match=said):
        pre = rj.load(tmp_path / "net.pth")
    assert pre.config.num_classes == 7
    ours = np.asarray(jax.jit(pre.model.apply)(pre.variables, IMAGES))
    assert spread_error(ours, outputs(model)) < TOLERANCE


class Conv(torch.nn.Conv2d):
    """A layer that only the tests have."""


class Block(torchvision.models.resnet.BasicBlock):
    """A block that only the tests have."""


class Hook:
    """Something to run behind a layer."""

    def __call__(self, *_):
        return None


def setting(path, **attributes):
    """A change of a layer's attributes."""

    def change(model):
        vars(model.get_submodule(path)).update(attributes)

    return change


def putting(path, layer):
    """A change of a layer for another."""
    return lambda model: model.set_submodule(path, layer)


def norms(make):
    """A change of all norms."""

    def change(model):
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.BatchNorm2d):
                model.set_submodule(name, make(module.num_features))

    return change


def hooked(model):
    model.layer4.register_forward_hook(Hook())


nn = torch.nn
CHANGES = {
    "stem of stride 1": (setting("conv1", stride=(1, 1)), "conv1 has stride=1, not 2"),
    "a list": (setting("conv1", stride=[1, 1]), "conv1 has stride=1, not 2"),
    "no stride": (setting("layer2.0.conv1", stride=None), "layer2.0.conv1 has stride=None, not"),
    "leaky": (putting("relu", nn.LeakyReLU()), "relu is a torch.nn.modules.activation.LeakyReLU"),
    "sigmoid": (putting("relu", nn.Sigmoid()), "relu is a torch.nn.modules.activation.Sigmoid"),
    "no activation": (putting("layer1.0.relu", nn.Identity()), "layer1.0.relu is a .*Identity"),
    "one activation": (putting("layer3.0.relu", nn.SiLU()), "layer3.0.relu is a silu, not a relu"),
    "another in the stem": (putting("relu", nn.SiLU()), "relu is a relu, not a silu"),
    "one epsilon": (setting("layer3.0.bn2", eps=1e-3), "layer3.0.bn2 has eps=0.001, not 1e-05"),
    "rounding up": (
        putting("maxpool", nn.MaxPool2d(3, 2, ceil_mode=True)),
        "maxpool is a max pool of 3x3, stride 2, padding 0, ceil_mode=True",
    ),
    "a dilated pool": (putting("maxpool", nn.MaxPool2d(3, 2, 1, 2)), "padding 1, dilation=2"),
    "another pool": (putting("maxpool", nn.LPPool2d(2, 3, 2)), "maxpool is a .*LPPool2d"),
    "an adaptive pool": (
        putting("maxpool", nn.AdaptiveMaxPool2d(16)), "maxpool is a .*AdaptiveMaxPool2d"
    ),
    "more behind the pool": (
        putting("maxpool", nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.InstanceNorm2d(64))),
        "maxpool.1 is a .*InstanceNorm2d",
    ),
    "another padding": (
        putting("maxpool", nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), 0.0), nn.MaxPool2d(3, 2))),
        r"maxpool.0 pads by \(0, 1, 0, 1\) with 0.0",
    ),
    "four pixels": (
        putting("avgpool", nn.AdaptiveAvgPool2d(2)), "avgpool has output_size=2, not 1"
    ),
    "one block strided": (setting("layer2.1.conv1", stride=(2, 2)), "layer2.1.conv1 has stride=2"),
    "reflecting": (
        setting("layer1.0.conv1", padding_mode="reflect"), "conv1 has padding_mode=reflect, not"
    ),
    "of my own": (
        putting("layer1.0.conv2", Conv(64, 64, 3, 1, 1, bias=False)), "conv2 is a .*modules.Conv"
    ),
    "instance norms": (
        norms(lambda n: nn.InstanceNorm2d(n, affine=True)), "bn1 is a .*InstanceNorm2d"
    ),
    "hooks": (hooked, "layer4 has hooks"),
    "tanh in the head": (
        putting("fc", nn.Sequential(nn.Linear(512, 9), nn.Tanh(), nn.Linear(9, 5))),
        "fc.1 is a torch.nn.modules.activation.Tanh",
    ),
    "sigmoid in the head": (
        putting("fc", nn.Sequential(nn.Linear(512, 9), nn.Sigmoid(), nn.Linear(9, 5))),
        "fc.1 is a Sigmoid where an activation between linear layers is",
    ),
    "nothing in the head": (
        putting("fc", nn.Sequential(nn.Linear(512, 9), nn.Linear(9, 5))), "fc.1 is a Linear where"
    ),
    "a norm in the head": (
        putting("fc", nn.Sequential(nn.LayerNorm(512, 1e-5, False), nn.Linear(512, 5))),
        "fc.0 is a .*LayerNorm",
    ),
    "a rectified head": (
        putting("fc", nn.Sequential(nn.Linear(512, 5), nn.ReLU())), "the head ends in ReLU"
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_config_says_is_refused_by_layer(change, tmp_path):
    make, said = CHANGES[change]
    model = torchvision.models.resnet18().eval()
    make(model)
    torch.save(model, tmp_path / "net.pth")
    with pytest.raises(WeightsMismatch, match=said):
        rj.load(tmp_path / "net.pth")


def with_gates(model, gate):
    for name in [name for name, _ in model.named_modules() if name.endswith("se.gate")]:
        model.set_submodule(name, gate)
    return model


OTHERS = {
    "mish": (lambda: of_transformers(hidden_act="mish"), "is a .*activations.MishActivation"),
    "quick_gelu": (lambda: of_transformers(hidden_act="quick_gelu"), "is a .*QuickGELUActivation"),
    "stem of v2": (
        lambda: timm.create_model("resnetv2_50", stem_type="same"), "stem.pool is a .*MaxPool2dSame"
    ),
    "layer norms": (
        lambda: timm.create_model("resnet18", norm_layer="layernorm2d"), "bn1 is a .*LayerNorm2d"
    ),
    "layer norms of v2": (
        lambda: timm.create_model("resnetv2_50", norm_layer="layernorm2d"), "stem.conv has eps=None"
    ),
    "activated norms": (
        lambda: timm.create_model("resnet18", norm_layer=timm.layers.BatchNormAct2d),
        "bn1 is a timm.layers.norm_act.BatchNormAct2d, not a BatchNorm2d",
    ),
    "gates": (
        lambda: with_gates(timm.create_model("seresnet18"), nn.Hardsigmoid()),
        "se.gate is a .*Hardsigmoid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("net", OTHERS)
def test_other_nets_of_these_libraries_are_refused_by_layer(net, tmp_path):
    build, said = OTHERS[net]
    torch.save(build().eval(), tmp_path / "net.pth")
    with pytest.raises(WeightsMismatch, match=said):
        rj.load(tmp_path / "net.pth")


def test_a_block_of_ones_own_is_named(tmp_path):
    torch.save(torchvision.models.ResNet(Block, [2, 2, 2, 2]), tmp_path / "net.pth")
    said = r"test_whole_modules.Block compute with their layers what torchvision does \(the code"
    with pytest.warns(AssumptionWarning, match=said):
        rj.load(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("layer", "activation"), [(nn.Sigmoid(), "sigmoid"), (nn.Softmax(1), "softmax")]
)
def test_what_ends_the_head_makes_its_predictions(layer, activation, tmp_path):
    model = torchvision.models.resnet18().eval()
    model.fc = nn.Sequential(nn.Linear(512, 5), layer)
    torch.save(model, tmp_path / "net.pth")
    with pytest.warns(AssumptionWarning):
        pre = rj.load(tmp_path / "net.pth")
    assert pre.activation == activation
    ours = jax.jit(pre.model.apply)(pre.variables, IMAGES)
    found = jax.nn.sigmoid(ours) if activation == "sigmoid" else jax.nn.softmax(ours)
    assert spread_error(np.asarray(found), outputs(model)) < TOLERANCE
    with pytest.warns(AssumptionWarning):
        assert rj.load(tmp_path / "net.pth", arch="resnet18").source.arch == "resnet18"
