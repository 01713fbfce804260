"""A net's fingerprint: what it computes on fixed images, by which two conversions can be compared.

The probe is computed in float64, where the order of additions is lost in the rounding: the same
weights give the same digest on every machine. Weights that were rewritten (a folded bias, an
absorbed epsilon) were rounded to float32 again: their logits agree to six digits, their digests do
not.
"""

import hashlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Pretrained

SEED = 20261
_DIGITS = 6  # of the largest logit: float64 keeps twice as many through the deepest net


@dataclass(frozen=True)
class Fingerprint:
    """What a net computes on the probe.

    Attributes:
        digest: SHA-256 of the logits, each rounded to a millionth of the largest.
        shape: Of the probe: images, height, width, channels.
        largest: The largest logit's magnitude.
        first: The first eight logits of the first image.
    """

    digest: str
    shape: tuple[int, int, int, int]
    largest: float
    first: tuple[float, ...]


def fingerprint(pretrained: Pretrained) -> Fingerprint:
    """What a net computes on two images of noise, of an even and an odd edge: each tells of pads.

    Values are those that the net sees, within -2 and 2: preprocessing has no part in it.

    Example:
        >>> from resnetjax.zoo import load
        >>> fingerprint(load("my-resnet50")).shape  # doctest: +SKIP
        (2, 96, 97, 3)
    """
    config = pretrained.config
    edge = 32 if config.stem == "conv3" else 96
    shape = (2, edge, edge + 1, config.in_channels)
    raw = np.random.PCG64(SEED).random_raw(int(np.prod(shape)))
    probe = (4.0 * (raw >> np.uint64(11)) * 2.0**-53 - 2.0).reshape(shape)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), pretrained.variables)
        net = ResNet(config, dtype=jnp.float64)
        logits = np.asarray(net.apply(variables, jnp.asarray(probe)), np.float64)
    largest = float(np.abs(logits).max()) or 1.0
    rounded = np.round(logits / largest, _DIGITS) + 0.0  # no negative zeros
    return Fingerprint(
        digest=hashlib.sha256(rounded.astype("<f8").tobytes()).hexdigest(),
        shape=shape,
        largest=largest,
        first=tuple(logits[0, :8].tolist()),
    )
