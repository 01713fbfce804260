"""The `preprocessor_config.json` of Transformers' image processors."""

import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from resnetjax.config import Preprocess
from resnetjax.data.preprocess_formats.fields import crop_pct_of, number, pair, refuse
from resnetjax.errors import ConfigError

# From this edge on, Transformers' ConvNext processor squashes the image instead of cropping it.
_CONVNEXT_SQUASH_PX = 384

# The steps each family of processors knows, and whether it takes them if a file says nothing.
_COMMON_STEPS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
}
_STEPS = {
    "ConvNext": {**_COMMON_STEPS, "do_center_crop": False},
    "Bit": {**_COMMON_STEPS, "do_center_crop": True},
    "ViT": {**_COMMON_STEPS, "do_center_crop": False},
}


def from_transformers(processor_config: Mapping[str, Any]) -> Preprocess:
    """What the image processor of a `preprocessor_config.json` does on its PIL backend.

    Args:
        processor_config: Of ConvNext's processor (which Transformers' ResNets use), Bit's or ViT's.

    Raises:
        ConfigError: The processor is another, takes a step that is not supported, or lacks a field;
            or a field is malformed.
    """
    given = {name: value for name, value in processor_config.items() if value is not None}
    kind = given.get("image_processor_type") or given.get("feature_extractor_type")
    family = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(kind))
    if family not in _STEPS:
        raise ConfigError(f"image processor {kind!r} is not supported: use {', '.join(_STEPS)}")
    fields = {"rescale_factor": 1 / 255, "crop_pct": 224 / 256, **_STEPS[family], **given}
    missing = [
        name for name in ("size", "resample", "image_mean", "image_std") if name not in fields
    ]
    if missing:
        raise ConfigError(f"{kind} needs {', '.join(missing)}")
    unsupported = [
        n for n in fields if n.startswith("do_") and fields[n] and n not in _STEPS[family]
    ]
    if family == "ConvNext":
        unsupported += ["do_center_crop"] * bool(fields["do_center_crop"])
        unsupported += ["do_resize"] * (not fields["do_resize"])
    if unsupported:
        values = ", ".join(f"{name}={fields[name]!r}" for name in unsupported)
        raise ConfigError(f"{kind} with {values} is not supported")
    geometry = _convnext_geometry(fields) if family == "ConvNext" else _geometry(fields, family)
    factor = number("rescale_factor", fields["rescale_factor"], least=1e-6)
    return Preprocess.from_json(
        {
            "interpolation": _interpolation(fields["resample"]),
            "crop_rounding": "floor",
            "divisor": 1 / factor if fields["do_rescale"] else 1.0,
            "mean": fields["image_mean"] if fields["do_normalize"] else (0.0,) * 3,
            "std": fields["image_std"] if fields["do_normalize"] else (1.0,) * 3,
            **geometry,
        }
    )


def to_transformers(config: Preprocess) -> dict[str, Any]:
    """A `preprocessor_config.json` with which Transformers does the same.

    It is ConvNext's where that can do it, else Bit's. Both always round the start of a crop down.

    Raises:
        ConfigError: Transformers has no such transform; the message names the field.
    """
    refuse(config, "Transformers", "cover")
    height, width = config.crop_px
    fields = {
        "image_processor_type": "ConvNextImageProcessor",
        "do_convert_rgb": config.channels == 3,
        "do_resize": config.resize_mode != "none",
        "do_rescale": True,
        "do_normalize": True,
        "resample": Image.Resampling[config.interpolation.upper()].value,
        "rescale_factor": 1 / config.divisor,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "size": {"shortest_edge": height},
    }
    crop_pct = crop_pct_of(config.crop_px, pair(config.resize_px))
    if height == width < _CONVNEXT_SQUASH_PX and config.resize_mode == "short_edge" and crop_pct:
        return fields | {"crop_pct": crop_pct}
    if height == width >= _CONVNEXT_SQUASH_PX and config.resize_px == config.crop_px:
        return fields
    fields |= {
        "image_processor_type": "BitImageProcessor",
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }
    if config.resize_mode == "short_edge":
        return fields | {"size": {"shortest_edge": config.resize_px}}
    height, width = pair(config.resize_px) or config.crop_px
    return fields | {"size": {"height": height, "width": width}}


def _convnext_geometry(fields: Mapping[str, Any]) -> dict[str, Any]:
    # transformers/models/convnext/image_processing_pil_convnext.py
    edge = number("size", _size("size", fields["size"]))
    crop_pct = number("crop_pct", fields["crop_pct"])
    crop_px = (edge, edge)
    if edge >= _CONVNEXT_SQUASH_PX:
        return {"crop_px": crop_px, "resize_mode": "squash", "resize_px": crop_px}
    return {"crop_px": crop_px, "resize_mode": "short_edge", "resize_px": int(edge / crop_pct)}


def _geometry(fields: Mapping[str, Any], family: str) -> dict[str, Any]:
    # transformers/image_processing_backends.py: PilBackend
    size = _size("size", fields["size"])
    if family == "ViT":
        size = pair(size)
    is_squashed = isinstance(size, tuple)
    if not fields["do_resize"]:
        resize = {"resize_mode": "none", "resize_px": None}
    else:
        resize = {"resize_mode": "squash" if is_squashed else "short_edge", "resize_px": size}
    if fields["do_center_crop"]:
        return resize | {"crop_px": pair(_size("crop_size", fields.get("crop_size")))}
    if not (fields["do_resize"] and is_squashed):
        raise ConfigError("do_center_crop=False is supported only with a size of height and width")
    return resize | {"crop_px": size}


def _size(name: str, value: Any) -> Any:
    """One edge or (height, width), whose values are still to be checked."""
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"shortest_edge"}:
        return value["shortest_edge"]
    if set(value) == {"height", "width"}:
        return value["height"], value["width"]
    raise ConfigError(
        f"{name}={dict(value)!r} is not supported: use shortest_edge or height, width"
    )


def _interpolation(resample: Any) -> str:
    names = {filter_.value: filter_.name.lower() for filter_ in Image.Resampling}
    if not isinstance(resample, int) or resample not in names:
        allowed = ", ".join(f"{value} ({name})" for value, name in sorted(names.items()))
        raise ConfigError(f"resample={resample!r} is not allowed: use {allowed}")
    return names[resample]
