"""Nets cut to fewer blocks, which take less time and have the same kinds of layers."""

from collections.abc import Sequence
from typing import Any

from resnetjax.config import ResNetConfig


def cut(config: ResNetConfig, depths: Sequence[int], **changes: Any) -> ResNetConfig:
    """The net of each stage's first blocks; `depths` may have fewer stages, as `changes` say."""
    if config.pruned_features is not None:
        stages = zip(config.pruned_features, depths, strict=False)
        changes["pruned_features"] = tuple(blocks[:depth] for blocks, depth in stages)
    return config.replace(depths=tuple(depths), **changes)
