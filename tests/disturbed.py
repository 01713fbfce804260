"""Nets and images that tell: random weights, norms and statistics unlike any others."""

from typing import Any

import jax
import numpy as np

from resnetjax.config import ResNetConfig
from resnetjax.measure import leaves
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained, make_variables


def disturbed(config: ResNetConfig, **fields: Any) -> Pretrained:
    """A net of this config; `fields` are those of `Pretrained`."""
    rng = np.random.default_rng(0)
    expected = leaves(plan(config))
    arrays = {}
    for path, leaf in expected.items():
        array = rng.standard_normal(leaf.shape, np.float32)
        if leaf.kind in ("scale", "var"):
            array = 0.5 + rng.random(leaf.shape, np.float32)
        elif len(leaf.shape) > 1:
            array *= np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        else:
            array *= np.float32(0.1)
        arrays[path] = array
    return Pretrained(model=ResNet(config), variables=make_variables(expected, arrays), **fields)


def disturb(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Random values; an eighth of all channels have a variance of the size of epsilon."""
    rng = np.random.default_rng([*"/".join(key.key for key in path).encode()])
    name, small = path[-1].key, leaf.shape[-1] // 8
    if len(leaf.shape) > 1:
        array = rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        array[..., :small] *= np.sqrt(1e-5) if len(leaf.shape) == 4 else 1
    elif name in ("scale", "var"):
        array = rng.uniform(0.5, 1.5, leaf.shape)
        array[:small] *= 1e-5 if name == "var" else 1
    else:
        array = rng.normal(0, 0.2, leaf.shape)
        array[:small] *= np.sqrt(1e-5) if name == "mean" else 1
    return array.astype(np.float32)


def varied_images(count: int, height: int, width: int) -> np.ndarray:
    """Noise of other contrast and brightness in each image, float32[count, height, width, 3].

    Of equal statistics they would have nearly equal logits in a random net, which averages noise
    away, and rounding would be large beside the spread over the images.
    """
    noise = np.random.default_rng(1).standard_normal((count, height, width, 3), np.float32)
    shape = (count, 1, 1, 1)
    contrast = np.geomspace(0.3, 2, count, dtype=np.float32).reshape(shape)
    return noise * contrast + np.linspace(-0.5, 1, count, dtype=np.float32).reshape(shape)


def spread_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the spread over the images."""
    return float(np.abs(found - expected).max() / np.abs(expected - expected.mean(0)).max())
