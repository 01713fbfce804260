"""The `image_converter.json` of KerasHub."""

import math
from collections.abc import Mapping
from typing import Any

from resnetjax.config import MAX_EDGE_PX, Preprocess
from resnetjax.data.preprocess_formats.fields import lacking, numbers
from resnetjax.errors import ConfigError


def from_kerashub(converter_config: Mapping[str, Any]) -> Preprocess | None:
    """What KerasHub's `ImageConverter` does to uint8 images, up to the rounding of a pixel.

    None where it leaves images as large as they are.

    Args:
        converter_config: The `config` of an `image_converter.json`, by today's names or those of
            its first releases (`height`, `width`, `mean`, `variance`).

    Raises:
        ConfigError: It pads, or antialiases by a filter that Pillow rounds and clips elsewhere; or
            a field is malformed.

    Example:
        >>> from_kerashub({"image_size": [224, 224], "scale": 1 / 255, "offset": -0.5}).mean
        (0.5, 0.5, 0.5)
    """
    fields = {"crop_to_aspect_ratio": True, "interpolation": "bilinear", **converter_config}
    if "height" in fields and "width" in fields:
        fields["image_size"] = (fields["height"], fields["width"])
    if fields.get("image_size") is None:
        return None
    for name in ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias"):
        if not isinstance(fields.setdefault(name, False), bool):
            raise ConfigError(f"{name}={fields[name]!r} is not allowed: use True or False")
    interpolation, antialias = fields["interpolation"], fields["antialias"]
    if fields["pad_to_aspect_ratio"]:
        raise ConfigError("pad_to_aspect_ratio=True is not supported")
    if antialias and interpolation not in ("nearest", "bilinear"):
        raise ConfigError(f"antialias=True with interpolation={interpolation!r} is not supported")
    size = fields["image_size"]
    scale = _per_channel("scale", fields.get("scale"), default=1.0, least=1e-6)
    offset = _per_channel("offset", fields.get("offset"), default=0.0, least=-MAX_EDGE_PX)
    if "mean" in fields and "variance" in fields:
        variance = _per_channel("variance", fields["variance"], default=1.0, least=1e-6)
        mean = _per_channel("mean", fields["mean"], default=0.0, least=-MAX_EDGE_PX)
        scale = [factor / math.sqrt(v) for factor, v in zip(scale, variance, strict=True)]
        offset = [-m / math.sqrt(v) for m, v in zip(mean, variance, strict=True)]
    std = [1 / (255 * factor) for factor in scale]
    return Preprocess.from_json(
        {
            "crop_px": size,
            "resize_mode": "crop_to_aspect_ratio" if fields["crop_to_aspect_ratio"] else "squash",
            "resize_px": size,
            "interpolation": {"lanczos3": "lanczos"}.get(interpolation, interpolation),
            "antialias": antialias or interpolation == "nearest",
            "mean": [0.0 - shift * deviation for shift, deviation in zip(offset, std, strict=True)],
            "std": std,
        }
    )


def to_kerashub(config: Preprocess) -> dict[str, Any]:
    """The fields of an `ImageConverter` with which KerasHub does the same, as `from_kerashub` says.

    Raises:
        ConfigError: KerasHub has no such transform; the message names the field.
    """
    for name, allowed in (
        ("channel_order", ("rgb",)),
        ("channels", (3,)),
        ("resize_mode", ("crop_to_aspect_ratio", "squash")),
        ("resize_px", (config.crop_px,)),
        ("interpolation", ("nearest", "bilinear", "bicubic", "lanczos")),
        (
            "antialias",
            (False,) if config.interpolation in ("bicubic", "lanczos") else (False, True),
        ),
    ):
        if (value := getattr(config, name)) not in allowed:
            raise lacking("KerasHub", name, value)
    deviations = [config.divisor * deviation for deviation in config.std]
    return {
        "image_size": list(config.crop_px),
        "scale": [1 / deviation for deviation in deviations],
        "offset": [
            -mean / deviation for mean, deviation in zip(config.mean, config.std, strict=True)
        ],
        "interpolation": {"lanczos": "lanczos3"}.get(config.interpolation, config.interpolation),
        "antialias": config.antialias and config.interpolation != "nearest",
        "crop_to_aspect_ratio": config.resize_mode == "crop_to_aspect_ratio",
        "pad_to_aspect_ratio": False,
        "bounding_box_format": "yxyx",
    }


def _per_channel(name: str, value: Any, *, default: float, least: float) -> list[float]:
    """Three numbers, of which one alone stands for all."""
    values = default if value is None else value
    values = [values] if isinstance(values, int | float) else values
    values = [*values] * 3 if isinstance(values, list | tuple) and len(values) == 1 else values
    return numbers(name, values, count=3, least=least)
