"""The real nets of Keras 3 and KerasHub, on PyTorch, in this process."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch

import resnetjax as rj
from tests.parity import keras_nets
from tests.parity.keras_nets import Outputs
from tests.parity.row import Layout, Row, Size

# What `rj.save` writes for a framework that has written a file of that layout. tf_keras looks for a
# group of every layer in a `.weights.h5`, of those without arrays too, and does not read Keras 3's.
BACK: dict[Layout, str] = {
    "h5 weights": "back.h5",
    "h5 model": "back.h5",
    "weights.h5": "back.weights.h5",
    "keras": "back.keras",
    "bundle": "back.npz",
    "npz": "back.npz",
}
TF_KERAS = ("tf_keras", "keras-applications", "keras_cv")


def make(row: Row, size: Size, images: np.ndarray, folder: Path) -> tuple[Any, Outputs, Path]:
    """The row's net, what it computes, and where it is saved."""
    with _quiet():
        model, outputs = _made(_key(row, size), images.shape, images.tobytes())
        return model, outputs, keras_nets.save(model, row.layout, folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Keras's and PyTorch's warnings: of the legacy format, of arrays not writable."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _key(row: Row, size: Size) -> str:
    sizes = (row.depths(size), row.widths(size))
    return json.dumps([row.framework, row.net, dict(row.arguments), *sizes])


@functools.lru_cache(maxsize=1)
def _made(key: str, shape: tuple[int, ...], pixels: bytes) -> tuple[Any, Outputs]:
    """The last net again, for its next file."""
    images = np.frombuffer(pixels, np.float32).reshape(shape).copy()
    model = keras_nets.build(keras, *json.loads(key))
    keras_nets.settle(keras, model, images)
    return model, keras_nets.run(keras, model, images)


def differences(
    row: Row, size: Size, model: Any, pretrained: rj.Pretrained, folder: Path
) -> list[str]:
    """The arrays that are others when Keras has read what `rj.save` writes, strictly."""

    def read(saved: Path, whole: bool) -> list[str]:
        with _quiet():
            return keras_nets.differences(keras, model, saved, whole=whole)

    return written_back(row, pretrained, folder, read)


def written_back(
    row: Row, pretrained: rj.Pretrained, folder: Path, read: Callable[[Path, bool], list[str]]
) -> list[str]:
    """What `read` finds in the file that we write, given whether it has the whole net."""
    # A classifier on a backbone keeps that in a group of its own, which legacy files of ours lack.
    saved = folder / ("back.h5" if row.framework in TF_KERAS else BACK[row.layout])
    nested = row.framework in ("keras_hub", "keras_cv") and row.arguments["num_classes"]
    whole = not nested or saved.name != "back.h5"
    if not whole:
        pretrained = without_head(pretrained)
    rj.save(pretrained, saved, dialect=pretrained.source.dialect)
    return read(saved, whole)


def without_head(pretrained: rj.Pretrained) -> rj.Pretrained:
    """The same net and arrays but for the head."""
    params = {k: v for k, v in pretrained.variables["params"].items() if k != "head"}
    config = pretrained.config.replace(num_classes=0)
    return dataclasses.replace(
        pretrained,
        labels=None,
        model=rj.ResNet(config),
        variables={**pretrained.variables, "params": params},
    )
