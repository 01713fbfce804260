"""The real nets of PyTorch: settled, run, saved, and filled from our files."""

import functools
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm.layers
import timm.models
import torch
import transformers
from flax import serialization, traverse_util
from torch import nn

import resnetjax as rj
from resnetjax.config import IMAGENET_MEAN, IMAGENET_STD
from tests.parity import nets, torch_arrays
from tests.parity.row import Row, Size

Features = dict[str, np.ndarray]

# What timm writes as 1x1 convolutions: v2's head, and squeeze-excite.
DENSE = ("fc", "fc1", "fc2")

transformers.utils.logging.disable_progress_bar()


def make(
    row: Row, size: Size, images: np.ndarray, folder: Path
) -> tuple[nn.Module, Features, Path]:
    """The row's net, what it computes, and where it is saved."""
    torch.manual_seed(0)
    model = nets.build(row.framework, row.net, row.arguments, row.depths(size))
    settle(model, _to_torch(images))
    outputs = run_theirs(model, _to_torch(images))
    return model, outputs, LAYOUTS[row.layout](model, row, folder)


@torch.no_grad()
def settle(model: nn.Module, images: torch.Tensor) -> None:
    """Random scales and biases, statistics measured in one pass and disturbed.

    Each convolution's kernel is scaled so that its outputs deviate by 1/2 to 2, but in the first
    eighth of its channels by that times the root of the norm's epsilon: there epsilon matters.
    Each batch norm then gets the statistics of what reaches it, off by a fifth of a deviation in
    the mean and a third in the variance. Later layers see what the disturbed ones give, so nothing
    explodes or fades. Residual branches end at a third of their size, as in trained nets: random
    nets whose branches do not are chaotic, and amplify float32's rounding tenfold in fifty layers.
    """
    modules, hooks = dict(model.named_modules()), []
    for name, module in modules.items():
        size = 0.3 if _ends_branch(name, modules) else 1.0
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.weight.uniform_(0.5 * size, 1.5 * size)
            module.bias.normal_(0, 0.3 * size)
        elif getattr(module, "bias", None) is not None:
            module.bias.normal_(0, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(_measure))
        elif isinstance(module, nn.Conv2d) and not name.endswith(DENSE):
            hooks.append(module.register_forward_hook(functools.partial(_rescale, size)))
    model(images)
    for hook in hooks:
        hook.remove()


def _ends_branch(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a block's convolution or norm has no successor: `conv2` without a `conv3`."""
    found = re.fullmatch(r"(.*(?:layer|block).*(?:bn|conv|layer\.))(\d)(\.\w+)?", name)
    return bool(found) and f"{found[1]}{int(found[2]) + 1}{found[3] or ''}" not in modules


def _rescale(
    size: float, conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor
) -> torch.Tensor:
    small = conv.out_channels // 8
    wanted = torch.empty(conv.out_channels).uniform_(0.5, 2)
    wanted[:small] *= 1e-5**0.5
    wanted[small:] *= size
    gain = wanted / output.std((0, 2, 3))
    if isinstance(conv, timm.layers.StdConv2d):
        # Standardised, a kernel's size counts only where its variance v is of its epsilon's size,
        # for what remains of it is v / (v + epsilon).
        var = conv.weight.var((1, 2, 3), correction=0)
        target = conv.eps * gain**2 / (1 - gain**2)
        target[small : 2 * small] = conv.eps
        gain = torch.sqrt(target / var)
        gain[2 * small :] = 1
    conv.weight *= gain[:, None, None, None]
    return conv.forward(*inputs)


def _measure(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
    var, mean = torch.var_mean(inputs[0], (0, 2, 3))
    norm.running_mean.copy_(mean + 0.2 * var.sqrt() * torch.randn_like(mean))
    norm.running_var.copy_(var * torch.exp(0.3 * torch.randn_like(var)))


@torch.no_grad()
def run_theirs(model: nn.Module, images: torch.Tensor) -> Features:
    """Logits, or pooled features of a net without a head, and every feature map, in our layout."""
    found: Features = {}

    def keep(name: str) -> Callable[..., None]:
        # Copied: the next module may work in place.
        def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: Any = None) -> None:
            found[name] = _from_torch(inputs[0] if output is None else output)

        return hook

    hooks = []
    for name, (module, at) in nets.taps(model).items():
        register = (
            module.register_forward_pre_hook if at == "input" else module.register_forward_hook
        )
        hooks.append(register(keep(name)))
    output = model(images)
    for hook in hooks:
        hook.remove()
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor):  # Transformers' nets without a head
        logits = torch.from_numpy(found[list(found)[-1]]).mean((1, 2))
    return {**found, "logits": logits.numpy()}


def differences(
    row: Row, size: Size, model: nn.Module, pretrained: rj.Pretrained, folder: Path
) -> list[str]:
    """The arrays that are others when the framework has read what `rj.save` writes, strictly."""
    saved = folder / f"back.{row.layout if row.layout in ('npz', 'msgpack') else 'safetensors'}"
    rj.save(pretrained, saved, dialect=pretrained.source.dialect)
    if row.layout == "msgpack":
        return _others_than_flax(row, model, saved)
    back, original = read_back(row, size, model, saved), model.state_dict()
    assert list(back) == list(original)
    return [
        name
        for name, tensor in original.items()
        if not name.endswith("num_batches_tracked") and not torch.equal(tensor, back[name])
    ]


def read_back(row: Row, size: Size, model: nn.Module, saved: Path) -> Mapping[str, torch.Tensor]:
    """The state of a fresh net of the framework's that has read our file, strictly."""
    if row.framework == "transformers":
        folder = saved.parent / "read_back"
        model.config.save_pretrained(folder)
        shutil.copy(saved, folder / "model.safetensors")
        kind = getattr(transformers, row.net)
        fresh, report = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
    elif row.framework == "bit":
        with np.load(saved) as archive:
            assert set(archive) == set(torch_arrays.bit(model.state_dict()))
        fresh = nets.build(row.framework, row.net, row.arguments, row.depths(size))
        fresh.load_pretrained(saved)
    else:
        with torch.device("meta"):  # without spending time on random numbers
            fresh = nets.build(row.framework, row.net, row.arguments, row.depths(size))
        fresh.load_state_dict(safetensors.torch.load_file(saved), strict=True, assign=True)
    return fresh.state_dict()


def _others_than_flax(row: Row, model: nn.Module, saved: Path) -> list[str]:
    """The arrays that differ from the tree, for there is no Flax in Transformers 5 to read them."""
    trees = (
        torch_arrays.flax(model.state_dict(), basic=_is_basic(row)),
        serialization.msgpack_restore(saved.read_bytes()),
    )
    right, found = (traverse_util.flatten_dict(tree, sep="/") for tree in trees)
    same = {name for name in found if np.array_equal(found[name], right.get(name, ()))}
    return sorted({*right, *found} - same)


def _is_basic(row: Row) -> bool:
    return row.arguments.get("layer_type") == "basic"


def _to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _from_torch(array: torch.Tensor) -> np.ndarray:
    return array.detach().numpy().transpose(0, 2, 3, 1).copy()


def _zip(model: nn.Module, row: Row, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "net.pth")
    return folder / "net.pth"


def _legacy(model: nn.Module, row: Row, folder: Path) -> Path:
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    saved = {"state_dict": state, "best_prec1": 91.7}
    torch.save(saved, folder / "net.th", _use_new_zipfile_serialization=False)
    return folder / "net.th"


def _checkpoint(model: nn.Module, row: Row, folder: Path) -> Path:
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    saved = {"epoch": 90, "arch": row.net, "state_dict": state, "optimizer": optimizer}
    torch.save(saved, folder / "net.tar")
    return folder / "net.tar"


def _safetensors(model: nn.Module, row: Row, folder: Path) -> Path:
    safetensors.torch.save_file(model.state_dict(), folder / "net.safetensors", {"format": "pt"})
    return folder / "net.safetensors"


def _directory(model: nn.Module, row: Row, folder: Path) -> Path:
    if row.framework == "transformers":
        model.save_pretrained(folder)
        channels = model.config.num_channels
        processor = transformers.ConvNextImageProcessor(
            size={"shortest_edge": 224},
            crop_pct=0.875,
            image_mean=np.resize(IMAGENET_MEAN, channels).tolist(),
            image_std=np.resize(IMAGENET_STD, channels).tolist(),
        )
        processor.save_pretrained(folder)
    else:
        names = [f"thing {i}" for i in range(model.num_classes)]
        timm.models.save_for_hf(model, folder, {"label_names": names}, safe_serialization=True)
    return folder


def _npz(model: nn.Module, row: Row, folder: Path) -> Path:
    np.savez(folder / "net.npz", **torch_arrays.bit(model.state_dict()))
    return folder / "net.npz"


def _msgpack(model: nn.Module, row: Row, folder: Path) -> Path:
    tree = torch_arrays.flax(model.state_dict(), basic=_is_basic(row))
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    return folder / "flax_model.msgpack"


LAYOUTS = {
    "npz": _npz,
    "msgpack": _msgpack,
    "zip": _zip,
    "legacy": _legacy,
    "checkpoint": _checkpoint,
    "safetensors": _safetensors,
    "directory": _directory,
}
