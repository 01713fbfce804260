"""The real frameworks' nets, built from their names, and where their feature maps come out."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torchvision
import transformers
from timm.layers import StdConv2d
from torch import nn
from torch.nn import functional


def build(
    framework: str, net: str, arguments: Mapping[str, Any], depths: tuple[int, ...]
) -> nn.Module:
    """The framework's own net with random weights; `depths`, where given, shortens it."""
    model = _BUILDERS[framework](net, dict(arguments), depths)
    return model.eval()


def taps(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """For each of our features the module whose input or output it is."""
    model = getattr(model, "resnet", model)  # Transformers' classifier wraps its net
    if hasattr(model, "embedder"):
        pool, stages = model.embedder.pooler, model.encoder.stages
    elif hasattr(model, "stages"):
        last = model.stem.conv3 if hasattr(model.stem, "conv3") else model.stem.conv
        found = {"stem_conv": (last, "output"), "stem": (model.stem, "output")}
        found |= {f"stage{i}": (stage, "output") for i, stage in enumerate(model.stages, start=1)}
        return found | {"norm": (model.norm, "output")}
    else:
        stages = [module for name, module in model.named_children() if name.startswith("layer")]
        pool = getattr(model, "maxpool", None)
    found = {f"stage{i}": (stage, "output") for i, stage in enumerate(stages, start=1)}
    if pool is None:
        return {"stem_conv": (stages[0], "input"), "stem": (stages[0], "input"), **found}
    return {"stem_conv": (pool, "input"), "stem": (pool, "output"), **found}


class CifarBlock(nn.Module):
    """Two 3x3 convolutions, with option A or B of He et al. 2015 where the shape changes."""

    def __init__(self, incoming: int, features: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, features, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut: nn.Module = nn.Sequential()
        if stride == 1 and incoming == features:
            return
        if option == "A":
            self.shortcut = SubsampleAndPad(features)
        else:
            conv = nn.Conv2d(incoming, features, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class SubsampleAndPad(nn.Module):
    """Option A as akamaster writes it: every other pixel, zeros for channels on both sides."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.side = features // 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side), "constant", 0)


class CifarResNet(nn.Module):
    """akamaster/pytorch_resnet_cifar10, rewritten: the same names, the same function."""

    def __init__(self, blocks: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        incoming = 16
        for stage, features in enumerate((16, 32, 64), start=1):
            strides = [1 if stage == 1 else 2, *[1] * (blocks - 1)]
            layer = []
            for stride in strides:
                layer.append(CifarBlock(incoming, features, stride, option))
                incoming = features
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _torchvision(net: str, arguments: dict[str, Any], depths: tuple[int, ...]) -> nn.Module:
    return _shortened(torchvision.models.get_model(net, weights=None, **arguments), depths)


def _timm(net: str, arguments: dict[str, Any], depths: tuple[int, ...]) -> nn.Module:
    return _shortened(timm.create_model(net, **arguments), depths)


def _bit(net: str, arguments: dict[str, Any], depths: tuple[int, ...]) -> nn.Module:
    """A net of timm's, with the epsilon of the code that published Big Transfer's files."""
    model = _timm(net, arguments, depths)
    for module in model.modules():
        if isinstance(module, StdConv2d):
            module.eps = 1e-10  # big_transfer's bit_pytorch/models.py; timm has 1e-8
    return model


def _shortened(model: nn.Module, depths: tuple[int, ...]) -> nn.Module:
    for stage, depth in enumerate(depths, start=1):
        if hasattr(model, "stages"):
            model.stages[stage - 1].blocks = model.stages[stage - 1].blocks[:depth]
        else:
            setattr(model, f"layer{stage}", getattr(model, f"layer{stage}")[:depth])
    return model


def _transformers(net: str, arguments: dict[str, Any], depths: tuple[int, ...]) -> nn.Module:
    sizes = {"depths": list(depths)} if depths else {}
    config = transformers.ResNetConfig(**{**arguments, **sizes})
    return getattr(transformers, net)(config)


def _akamaster(net: str, arguments: dict[str, Any], depths: tuple[int, ...]) -> nn.Module:
    return CifarResNet((int(net.removeprefix("resnet")) - 2) // 6, **arguments)


_BUILDERS = {
    "bit": _bit,
    "transformers_flax": _transformers,
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "akamaster": _akamaster,
}
