"""The arrays of nets of PyTorch under the names that other systems publish them by."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]

# timm's names and Big Transfer's, of which timm's own `load_pretrained` reads the latter.
_BIT = (
    (r"stem\.conv", "root_block/standardized_conv2d"),
    (r"norm", "group_norm"),
    (r"head\.fc", "head/conv2d"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv(\d)", "{unit}/{letter}/standardized_conv2d"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm(\d)", "{unit}/{letter}/group_norm"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.downsample\.conv", "{unit}/a/proj/standardized_conv2d"),
)


def bit(state: Mapping[str, torch.Tensor]) -> Arrays:
    """As in an npz of google-research/big_transfer."""
    found: Arrays = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        pattern, theirs = next(pair for pair in _BIT if re.fullmatch(pair[0], module))
        stage, block, place = (*map(int, re.fullmatch(pattern, module).groups()), 0, 0, 0)[:3]
        path = theirs.format(unit=f"block{stage + 1}/unit{block + 1:02d}", letter=" abc"[place])
        norm = {"weight": "gamma", "bias": "beta"}
        leaf = norm[kind] if "norm" in path else {"weight": "kernel", "bias": "bias"}[kind]
        found[f"resnet/{path}/{leaf}"] = _hwio(tensor)
    return found


_FLAX_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def flax(state: Mapping[str, torch.Tensor], *, basic: bool) -> dict[str, Any]:
    """As in a `flax_model.msgpack` of Transformers 4 (modeling_flax_resnet.py).

    Paths are the torch net's; only the layers of its basic blocks carry `layer_` before the number.
    """
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, tensor in state.items():
        *modules, kind = name.split(".")
        if kind == "num_batches_tracked":
            continue
        norm = modules[-1] == "normalization"
        leaf = _FLAX_NORM[kind] if norm else {"weight": "kernel", "bias": "bias"}[kind]
        if basic and len(modules) > 2 and modules[-3] == "layer":
            modules[-2] = f"layer_{modules[-2]}"
        place = tree["batch_stats" if leaf in ("mean", "var") else "params"]
        for module in modules:
            place = place.setdefault(module, {})
        place[leaf] = _hwio(tensor)
    return tree


def _hwio(tensor: torch.Tensor) -> np.ndarray:
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim, (0,))
    return np.ascontiguousarray(tensor.numpy().transpose(order))
