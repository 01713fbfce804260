"""`Preprocess` from and to the dicts in which other libraries publish their transforms."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from resnetjax.config import IMAGENET_MEAN, IMAGENET_STD, MAX_EDGE_PX, Preprocess
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

    channels, *crop_px = _numbers("input_size", get("input_size", (3, 224, 224)), count=3)
    crop_pct = _number("crop_pct", get("crop_pct", 0.875))
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
    _refuse(config, "timm", "none")
    crop_pct = _crop_pct(config.crop_px, _pair(config.resize_px))
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
    factor = _number("rescale_factor", fields["rescale_factor"], least=1e-6)
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
    _refuse(config, "Transformers", "cover")
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
    crop_pct = _crop_pct(config.crop_px, _pair(config.resize_px))
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
    height, width = _pair(config.resize_px) or config.crop_px
    return fields | {"size": {"height": height, "width": width}}


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
            raise _without("KerasHub", name, value)
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


def in_words(config: Preprocess) -> str:
    """How images are prepared, in one line.

    Example:
        >>> in_words(Preprocess(mean=(0.5,), std=(0.25,)))
        'resize short_edge 256 bilinear, crop 224x224, divide by 255, mean 0.5, std 0.25, rgb'
    """
    height, width = config.crop_px
    edges = "x".join(map(str, config.resize_px if isinstance(config.resize_px, tuple) else ()))
    resize = f"{config.resize_mode} {edges or config.resize_px} {config.interpolation}"
    resize += "" if config.antialias else " without antialiasing"
    steps = (
        *([] if config.resize_mode == "none" else [f"resize {resize}"]),
        f"crop {height}x{width}",
        f"divide by {config.divisor:g}",
        *(
            f"{name} {' '.join(f'{value:.6g}' for value in values)}"
            for name, values in (("mean", config.mean), ("std", config.std))
        ),
        config.channel_order,
    )
    return ", ".join(steps)


def _convnext_geometry(fields: Mapping[str, Any]) -> dict[str, Any]:
    # transformers/models/convnext/image_processing_pil_convnext.py
    edge = _number("size", _size("size", fields["size"]))
    crop_pct = _number("crop_pct", fields["crop_pct"])
    crop_px = (edge, edge)
    if edge >= _CONVNEXT_SQUASH_PX:
        return {"crop_px": crop_px, "resize_mode": "squash", "resize_px": crop_px}
    return {"crop_px": crop_px, "resize_mode": "short_edge", "resize_px": int(edge / crop_pct)}


def _geometry(fields: Mapping[str, Any], family: str) -> dict[str, Any]:
    # transformers/image_processing_backends.py: PilBackend
    size = _size("size", fields["size"])
    if family == "ViT":
        size = _pair(size)
    is_squashed = isinstance(size, tuple)
    if not fields["do_resize"]:
        resize = {"resize_mode": "none", "resize_px": None}
    else:
        resize = {"resize_mode": "squash" if is_squashed else "short_edge", "resize_px": size}
    if fields["do_center_crop"]:
        return resize | {"crop_px": _pair(_size("crop_size", fields.get("crop_size")))}
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


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _interpolation(resample: Any) -> str:
    names = {filter_.value: filter_.name.lower() for filter_ in Image.Resampling}
    if not isinstance(resample, int) or resample not in names:
        allowed = ", ".join(f"{value} ({name})" for value, name in sorted(names.items()))
        raise ConfigError(f"resample={resample!r} is not allowed: use {allowed}")
    return names[resample]


def _crop_pct(crop_px: tuple[int, int], resize_px: tuple[int, int] | None) -> float | None:
    """A short decimal that divides the crop's edges into the resized ones, rounded down."""
    if resize_px is None:
        return None
    largest = min(edge / resized for edge, resized in zip(crop_px, resize_px, strict=True))
    for digits in range(1, 17):
        # The one below, too: 201 / 0.804 is less than 250 in floating point.
        for below in (0, 1):
            crop_pct = (math.floor(largest * 10**digits) - below) / 10**digits
            if crop_pct > 0 and tuple(math.floor(edge / crop_pct) for edge in crop_px) == resize_px:
                return crop_pct
    return None


def _per_channel(name: str, value: Any, *, default: float, least: float) -> list[float]:
    """Three numbers, of which one alone stands for all."""
    values = default if value is None else value
    values = [values] if isinstance(values, int | float) else values
    values = [*values] * 3 if isinstance(values, list | tuple) and len(values) == 1 else values
    return _numbers(name, values, count=3, least=least)


def _numbers(name: str, values: Any, *, count: int, least: float = 0.01) -> list[Any]:
    if not isinstance(values, Iterable) or len(numbers := list(values)) != count:
        raise ConfigError(f"{name}={values!r} is not allowed: use {count} numbers")
    return [_number(name, value, least=least) for value in numbers]


def _number(name: str, value: Any, *, least: float = 0.01) -> Any:
    # A range in which no arithmetic here overflows; `Preprocess` checks the results.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= MAX_EDGE_PX:
        raise ConfigError(f"{name}={value!r} is not allowed: use {least} to {MAX_EDGE_PX}")
    return value


def _refuse(config: Preprocess, framework: str, resize_mode: str) -> None:
    """What neither of two frameworks can do, and a mode that one cannot."""
    unsupported = (
        ("channel_order", "bgr"),
        ("antialias", False),
        ("resize_mode", "crop_to_aspect_ratio"),
        ("resize_mode", resize_mode),
    )
    for name, value in unsupported:
        if getattr(config, name) == value:
            raise _without(framework, name, value)


def _without(framework: str, name: str, value: Any) -> ConfigError:
    return ConfigError(
        f"{framework} has no transform with {name}={value!r}: load the net with another "
        "preprocess=, or write a file alone, which needs none"
    )
