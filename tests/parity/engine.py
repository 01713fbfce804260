"""Makes a real net whose statistics hide nothing, runs it and ours on the same images, measures."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

import resnetjax as rj
from resnetjax.config import Preprocess
from resnetjax.data.preprocess import preprocess
from resnetjax.zoo import AssumptionWarning
from tests.parity import keras_side, tensorflow_side, torch_side
from tests.parity.row import Row, Size

# Of the spread max|f(x_i) - mean f|; both sides compute in float32.
TOLERANCE = 1e-4

Features = dict[str, np.ndarray]

SIDES: dict[str, ModuleType] = {
    **dict.fromkeys(
        ("torchvision", "timm", "transformers", "akamaster", "bit", "transformers_flax"), torch_side
    ),
    **dict.fromkeys(("keras", "keras_hub"), keras_side),
    **dict.fromkeys((*keras_side.TF_KERAS, "slim"), tensorflow_side),
}


@dataclasses.dataclass
class Original:
    """A real net, what it makes of its images, and the file or directory that it was saved in."""

    row: Row
    size: Size
    model: Any
    images: np.ndarray
    outputs: Features
    folder: Path
    path: Path


def make(row: Row, size: Size, photographs: list[Path], folder: Path) -> Original:
    """The row's net, settled on photographs and saved."""
    channels = row.arguments.get("in_chans", row.arguments.get("num_channels", 3))
    size_px, count = (row.small_px, 4) if size == "small" else (row.full_px, 2)
    images = pictures(photographs, size_px, channels)[:count]
    model, outputs, path = SIDES[row.framework].make(row, size, images, folder)
    return Original(row, size, model, images, outputs, folder, path)


def differences(original: Original, pretrained: rj.Pretrained) -> list[str]:
    """The arrays that are others when the framework has read what we save, strictly."""
    side = SIDES[original.row.framework]
    row, size, model, folder = original.row, original.size, original.model, original.folder
    return side.differences(row, size, model, pretrained, folder)


def pictures(photographs: list[Path], size_px: tuple[int, int], channels: int) -> np.ndarray:
    """Photographs as a net wants them, or structured noise where there are none.

    Float [4, height, width, channels], red first; a fourth channel is grey.
    """
    if photographs:
        config = Preprocess(crop_px=size_px, resize_mode="squash", resize_px=size_px)
        images = np.stack([preprocess(path, config) for path in photographs])
    else:
        rng, (height, width) = np.random.default_rng(0), size_px
        images = np.zeros((4, height, width, 3), np.float32)
        for cell in (1, 8, 32):  # pixels of three sizes
            coarse = rng.standard_normal((4, -(-height // cell), -(-width // cell), 3))
            images += coarse.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    if channels == 3:
        return images
    grey = images.mean(-1, keepdims=True)
    return grey if channels == 1 else np.concatenate([images, grey], -1)


def runner(pretrained: rj.Pretrained) -> Callable[[Any, np.ndarray], Features]:
    """Ours as one compiled function of variables and images: logits and every feature map."""
    run = _compiled(_Keyed(pretrained))
    return lambda variables, images: jax.device_get(run(variables, images))


@dataclasses.dataclass(frozen=True)
class _Keyed:
    """A net, equal to those of the same model: files of one net share what is compiled."""

    pretrained: rj.Pretrained = dataclasses.field(compare=False)
    model: rj.ResNet = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", self.pretrained.model)


@functools.lru_cache(maxsize=1)
def _compiled(net: _Keyed) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    jax.clear_caches()

    @jax.jit
    def run(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        pretrained = dataclasses.replace(net.pretrained, variables=variables)
        logits = pretrained.model.apply(variables, images)
        return {**rj.features(pretrained, images), "logits": logits}

    return run


def reconfigured(pretrained: rj.Pretrained, **changes: Any) -> rj.Pretrained:
    """The same arrays in a net whose config has other values."""
    config = pretrained.config.replace(**changes)
    return dataclasses.replace(pretrained, model=rj.ResNet(config))


def load(original: Original) -> rj.Pretrained:
    """As a user would: directories must leave nothing open, files always leave something."""
    told = original.row.told(original.size)
    if original.row.layout == "directory":
        return rj.load(original.path, **told)
    with pytest.warns(AssumptionWarning):
        return rj.load(original.path, **told)


def errors(ours: Features, theirs: Features) -> dict[str, float]:
    """The largest difference of each output, as a share of its spread over the images.

    Infinite where shapes differ or ours is not finite.
    """
    return {name: _error(ours[name], theirs[name]) for name in theirs}


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(theirs - theirs.mean(0)).max())
