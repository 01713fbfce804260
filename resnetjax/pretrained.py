"""A net with its weights, and what goes in and comes out."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from resnetjax.config import Labels, OutputActivation, Preprocess, ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.measure import Leaf
from resnetjax.nn.init import initialize
from resnetjax.nn.resnet import ResNet

Variables = dict[str, Any]
"""`{"params": ..., "batch_stats": ...}`, nested as the modules are."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where weights came from.

    Attributes:
        path: The file or directory, or "" for random weights.
        format: Of the file ("safetensors", "torch-zip", ...).
        dialect: Whose names its arrays had.
        arch: The architecture's name; None for a net that has none.
        sha256: Digest of the file; of an index and its shards, the digest of their digests.
        licence: Where it is known.
        assumptions: What the file left open, and how it was read.
        skipped: With `strict=False`, what did not fit and was left out.
    """

    path: str = ""
    format: str | None = None
    dialect: str | None = None
    arch: str | None = None
    sha256: str | None = None
    licence: str | None = None
    assumptions: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretrained:
    """A net with its weights, and what goes in and comes out.

    Attributes:
        model: The module: `model.apply(variables, images, train=False)` gives logits.
        variables: `{"params": ..., "batch_stats": ...}`, float32 on the default device.
        preprocess: How an image becomes the net's input.
        labels: What the outputs mean, or None where that is unknown.
        source: Where the weights came from.
    """

    model: ResNet
    variables: Variables = field(repr=False)
    preprocess: Preprocess = field(default_factory=Preprocess)
    labels: Labels | None = field(default=None, repr=False)
    source: Source = field(default_factory=Source)

    @property
    def config(self) -> ResNetConfig:
        """The architecture."""
        return self.model.config

    @property
    def activation(self) -> OutputActivation:
        """What turns logits into predictions; softmax of several where labels are unknown."""
        if self.labels:
            return self.labels.activation
        return "softmax" if self.config.num_classes > 1 else "none"

    def __post_init__(self) -> None:
        classes = self.config.num_classes
        if self.labels is not None and len(self.labels.names) != classes:
            raise ConfigError(
                f"labels has {len(self.labels.names)} names, but the net {classes} outputs"
            )
        if self.preprocess.channels != self.config.in_channels:
            raise ConfigError(
                f"preprocess makes {self.preprocess.channels} channels, "
                f"but the net takes {self.config.in_channels}"
            )


def make_variables(
    expected: Mapping[str, Leaf], arrays: Mapping[str, np.ndarray], rng: int | jax.Array = 0
) -> Variables:
    """Nested float32 arrays on the default device; those that are absent are drawn."""
    absent = {path: leaf for path, leaf in expected.items() if path not in arrays}
    whole = {**arrays, **(initialize(absent, seed_of(rng)) if absent else {})}
    placed = jax.device_put([_owned(whole[path]) for path in expected])
    nested: Variables = {"params": {}, "batch_stats": {}}
    for (path, leaf), array in zip(expected.items(), placed, strict=True):
        nested[leaf.collection][tuple(path.split("/"))] = array
    return {
        collection: flax.traverse_util.unflatten_dict(tree)
        for collection, tree in nested.items()
        if tree
    }


def flatten(variables: Variables) -> dict[str, np.ndarray]:
    """The arrays of both collections by path, on the host."""
    return {
        path: np.asarray(array)
        for tree in variables.values()
        for path, array in flax.traverse_util.flatten_dict(tree, sep="/").items()
    }


def seed_of(rng: SupportsIndex | jax.Array) -> int:
    """A seed, or what a key of `jax.random.key` draws as one.

    Raises:
        ConfigError: It is neither, or below 0.
    """
    try:
        seed = operator.index(rng)
    except TypeError:
        if isinstance(rng, jax.Array | np.ndarray):
            return int(jax.random.bits(rng, dtype=jnp.uint32))
        seed = -1
    if seed < 0:
        raise ConfigError(
            f"rng={rng!r} is not allowed: use a seed of 0 or more, or a key of jax.random.key"
        )
    return seed


def _owned(array: np.ndarray) -> np.ndarray:
    """The values as float32, in memory that is not a file's where device_put would keep it."""
    array = array.astype(np.float32, copy=False)
    # On a CPU device_put keeps aligned arrays of the default layout as they are, mapped files too,
    # which others may change or truncate (SIGBUS). It copies and permutes all others, faster than
    # NumPy would.
    return array.copy() if array.flags.c_contiguous and not array.flags.owndata else array
