"""Nets with random weights whose norms and statistics, too, are unlike any others."""

from typing import Any

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
