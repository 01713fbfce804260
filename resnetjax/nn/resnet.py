"""The net: one linen module for every ResNet that a config can describe."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnetjax.config import ResNetConfig
from resnetjax.errors import BatchNormError, ConfigError
from resnetjax.measure import FeatureInfo, feature_info, leaves
from resnetjax.nn import functions
from resnetjax.nn.blocks import PostBlock, PreBlock, Stem
from resnetjax.nn.frozen import frozen_names
from resnetjax.nn.functions import Images
from resnetjax.nn.layers import Head, Mode, Normalization
from resnetjax.plan import plan
from resnetjax.specs import Plan

BLOCKS = {"post": PostBlock, "pre": PreBlock}


class ResNet(nn.Module):
    """A ResNet from images to logits.

    Attributes:
        config: The architecture.
        dtype: Of the arithmetic (float32, bfloat16, float16, float64); parameters and statistics
            stay float32 and logits are float32 at least.
        remat: Recompute each block's activations in the backward pass in place of keeping them.
        frozen: Patterns of `frozen_names` ("stem", "up to stage3", "*/norm1", ...). Norms whose
            statistics they match behave as with `train=False` even in training: they neither use
            nor move batch statistics. What they match whole drops nothing. Parameters are the
            optimiser's affair.
        axis_name: A mapped axis (`pmap`, `shard_map`) over which batch statistics are averaged.
            Under `jit`, sharded or not, statistics are global without it.
        norm_batch: Examples over which batch norm takes its statistics in training, in the order of
            the batch; None takes all of them. The batch over the number of devices gives per-device
            statistics under `jit`. The running statistics move by the mean over these parts.
        net: The plan that runs; None is the config's own. `resnetjax.infer.fold` gives another.

    Example:
        >>> import jax
        >>> config = ResNetConfig(depths=(1,), widths=(8,), strides=(1,), dilations=(1,))
        >>> model = ResNet(config)
        >>> images = jnp.zeros((2, 32, 32, 3))
        >>> variables = jax.jit(model.init)(jax.random.key(0), images)
        >>> jax.jit(model.apply)(variables, images).shape
        (2, 1000)
    """

    config: ResNetConfig
    dtype: Any = jnp.float32
    remat: bool = False
    frozen: Sequence[str] = ()
    axis_name: str | None = None
    norm_batch: int | None = None
    net: Plan | None = None

    def __post_init__(self) -> None:
        if isinstance(self.frozen, str):
            raise ConfigError(f"frozen={self.frozen!r} is not allowed: use a tuple of names")
        self.frozen = tuple(self.frozen)  # hashable, as a static argument has to be
        super().__post_init__()

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """The logits; with `num_classes=0` the pooled features.

        Args:
            images: Preprocessed as the weights want them.
            train: Normalise by the batch and update the running statistics, for which `apply` needs
                `mutable=["batch_stats"]`; drop, for which it needs an rng named "dropout".

        Raises:
            BatchNormError: `train=True` and `batch_stats` is not mutable.
            ConfigError: The images have another number of channels than the config, or are not of
                rank 4.
        """
        return self._run(images, train, None)["logits"]

    def features(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        stages: tuple[str, ...],
        train: bool = False,
    ) -> dict[str, Float[Array, "batch ..."]]:
        """The named feature maps, as ordered; nothing after the last of them is computed.

        Args:
            images: Preprocessed as the weights want them.
            stages: Names from `feature_info`: "stem_conv", "stem", "stage1", ..., and in v2 "norm";
                or "pooled": float[batch, features], what the head sees.
            train: As for the logits.

        Raises:
            ConfigError: No feature map has this name.
        """
        found = self._run(images, train, tuple(stages))
        return {name: found[name] for name in stages}

    def logits_from(
        self,
        maps: Float[Array, "batch height width channels"],
        *,
        stage: str,
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        """The logits that the rest of the net makes of a feature map.

        Args:
            maps: What `features` gives under the stage's name.
            stage: "stem", "stage1", ..., or in v2 "norm".
            train: As for the logits.

        Raises:
            ConfigError: No feature map has this name, or this one has other channels.
        """
        return self._run(maps, train, None, after=stage)["logits"]

    @property
    def frozen_names(self) -> frozenset[str]:
        """The arrays, of parameters and statistics, that `frozen` matches.

        Raises:
            ConfigError: A pattern matches nothing.
        """
        return frozen_names(_names(self.config), tuple(self.frozen)) if self.frozen else frozenset()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Name, channels and stride of every feature map."""
        return feature_info(plan(self.config))

    @nn.compact
    def _run(
        self,
        images: Images,
        train: bool,
        wanted: tuple[str, ...] | None,
        after: str | None = None,
    ) -> dict[str, Array]:
        net = self.net or plan(self.config)
        self._check(images, train, wanted, after)
        remaining = None if wanted is None else set(wanted)
        found: dict[str, Array] = {}

        def reach(name: str, x: Array) -> bool:
            """Notes a feature map, and says whether the last that was asked for is there."""
            if remaining is not None and name in remaining:
                found[name] = x
                remaining.discard(name)
            return remaining is not None and not remaining

        x = images.astype(self.dtype)
        if after is None:
            before, x = Stem(net.stem, self._mode("stem", train), name="stem")(x)
            if reach("stem_conv", before) or reach("stem", x):
                return found
        passed = ("stem", *(stage.name for stage in net.stages), "norm").index(after or "stem")
        for stage in net.stages[passed:]:
            for block in stage.blocks:
                kind = nn.remat(BLOCKS[block.order]) if self.remat else BLOCKS[block.order]
                x = kind(block, self._mode(block.name, train), name=block.name)(x)
            if reach(stage.name, x):
                return found
        if net.norm and after != "norm":
            x = Normalization(net.norm, self._mode("norm", train), name="norm")(x)
            x = functions.activate(x, net.norm_activation)
            if reach("norm", x):
                return found
        mode = self._mode("head", train)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        if x.dtype != wide:
            # XLA of jaxlib 0.11 and 0.12 for CPUs would fuse the last stage with the pool into NaN.
            x = jax.lax.optimization_barrier(x).astype(wide)
        x = x.mean((1, 2)) if net.head_pool == "average" else x.max((1, 2))
        if reach("pooled", x):
            return found
        if net.head:
            *hidden, last = net.head
            drop = self._dropping(net.dropout_rate if mode.train else 0.0)
            head = Head(last.features, mode, tuple(hidden), drop, name="head")
            x = head(x).astype(wide)
        return {"logits": x}

    def _dropping(self, rate: float) -> Callable[[Array], Array]:
        if not rate:
            return lambda x: x
        return lambda x: functions.dropout(x, rate, self.make_rng("dropout"))

    def _mode(self, module: str, train: bool) -> Mode:
        mode = Mode(train, self.dtype, self.axis_name, self.norm_batch)
        frozen = self.frozen_names
        if not train or not frozen:
            return mode
        inside = [name for name in _names(self.config) if name.startswith(f"{module}/")]
        # Whole paths: the net may be part of another module.
        norms = frozenset(
            (*self.path, *name.split("/")[:-1]) for name in frozen if name.endswith("/mean")
        )
        whole = bool(inside) and frozen.issuperset(inside)
        return dataclasses.replace(mode, train=not whole, frozen=norms)

    def _check(
        self, images: Images, train: bool, wanted: tuple[str, ...] | None, after: str | None
    ) -> None:
        maps = {info.name: info.channels for info in self.feature_info}
        names, starts = list(maps), [name for name in maps if name != "stem_conv"]
        for field, asked, allowed in (
            ("stages", wanted or (), [*names, "pooled"]),
            ("stage", [after] if after is not None else [], starts),
        ):
            unknown = [name for name in asked if name not in allowed]
            if unknown:
                raise ConfigError(f"{field}={unknown} is not allowed: use {', '.join(allowed)}")
        expected = self.config.in_channels if after is None else maps[after]
        if images.ndim != 4 or images.shape[-1] != expected:
            raise ConfigError(
                f"images of shape {images.shape} do not fit: "
                f"expected (batch, height, width, {expected})"
            )
        if train and self.norm_batch and len(images) % self.norm_batch:
            raise ConfigError(
                f"norm_batch={self.norm_batch} is not allowed: "
                f"use a divisor of the batch, which is {len(images)}"
            )
        means = {name for name in _names(self.config) if name.endswith("/mean")}
        moving = not self.net and means - self.frozen_names
        if train and moving and not self.is_mutable_collection("batch_stats"):
            raise BatchNormError(
                "train=True updates the running statistics: call "
                'model.apply(variables, images, train=True, mutable=["batch_stats"]), which '
                "returns (logits, updates), or use train=False"
            )


@functools.lru_cache
def _names(config: ResNetConfig) -> tuple[str, ...]:
    """Of parameters and statistics."""
    return tuple(leaves(plan(config)))
