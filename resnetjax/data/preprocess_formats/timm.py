"""timm's `pretrained_cfg`."""

import math
from collections.abc import Mapping
from typing import Any

from resnetjax.config import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from resnetjax.data.preprocess_formats.fields import crop_pct_of, number, numbers, pair, refuse
from resnetjax.errors import ConfigError


def from_timm(pretrained_cfg: Mapping[str, Any], *, test_size: bool = False) -> Preprocess:
    """What timm's `transforms_imagenet_eval` does; absent fields mean timm's defaults.

    Args:
        pretrained_cfg: The dict of that name, in timm or in a hub repository's `config.json`.
        test_size: Take `test_input_size` and `test_crop_pct` where they are given.

    Raises:
        ConfigError: A field is malformed, or `crop_mode` is "border".

    Example:
        >>> from_timm({"input_size": (3, 224, 224), "crop_pct": 0.95}).resize_px
        235
    """

    def get(name: str, default: Any) -> Any:
        test_value = pretrained_cfg.get(f"test_{name}") if test_size else None
        return test_value or pretrained_cfg.get(name) or default

    channels, *crop_px = numbers("input_size", get("input_size", (3, 224, 224)), count=3)
    crop_pct = number("crop_pct", get("crop_pct", 0.875))
    resize_px: Any = tuple(math.floor(edge / crop_pct) for edge in crop_px)
    crop_mode = get("crop_mode", "center")
    if crop_mode not in ("center", "squash"):
        raise ConfigError(f"crop_mode={crop_mode!r} is not supported: use 'center' or 'squash'")
    resize_mode = "squash" if crop_mode == "squash" else "cover"
    if resize_mode == "cover" and resize_px[0] == resize_px[1]:
        resize_mode, resize_px = "short_edge", resize_px[0]
    config = Preprocess.from_json(
        {
            "crop_px": crop_px,
            "resize_mode": resize_mode,
            "resize_px": resize_px,
            "interpolation": get("interpolation", "bicubic"),
            "mean": get("mean", IMAGENET_MEAN),
            "std": get("std", IMAGENET_STD),
        }
    )
    if config.channels != channels:
        raise ConfigError(f"mean has {config.channels} channels, but input_size has {channels}")
    return config


def to_timm(config: Preprocess) -> dict[str, Any]:
    """The fields of a `pretrained_cfg` with which timm does the same.

    timm has pixels in [0, 1], so another divisor goes into mean and std, and it always rounds the
    start of a crop half to even.

    Raises:
        ConfigError: timm has no such transform; the message names the field.
    """
    refuse(config, "timm", "none")
    crop_pct = crop_pct_of(config.crop_px, pair(config.resize_px))
    scale = config.divisor / 255
    fields = {
        "input_size": (config.channels, *config.crop_px),
        "interpolation": config.interpolation,
        "crop_pct": crop_pct,
        "crop_mode": "squash" if config.resize_mode == "squash" else "center",
        "mean": tuple(value * scale for value in config.mean),
        "std": tuple(value * scale for value in config.std),
    }
    if crop_pct is None or from_timm(fields).resize_mode != config.resize_mode:
        raise ConfigError(
            f"timm cannot resize to resize_px={config.resize_px!r} by resize_mode="
            f"{config.resize_mode!r} for crop_px={config.crop_px!r}: it divides both edges of the "
            f"crop by one crop_pct"
        )
    return fields
