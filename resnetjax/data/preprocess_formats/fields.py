"""What these dicts have in common: numbers that are still to be checked, and what none can say."""

import math
from collections.abc import Iterable
from typing import Any

from resnetjax.config import MAX_EDGE_PX, Preprocess
from resnetjax.errors import ConfigError


def pair(value: Any) -> Any:
    """One edge as height and width; what is no edge stays."""
    return (value, value) if isinstance(value, int) else value


def crop_pct_of(crop_px: tuple[int, int], resize_px: tuple[int, int] | None) -> float | None:
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


def numbers(name: str, values: Any, *, count: int, least: float = 0.01) -> list[Any]:
    """The values of a field, of which there have to be so many.

    Raises:
        ConfigError: There are not, or one is no number in range.
    """
    if not isinstance(values, Iterable) or len(found := list(values)) != count:
        raise ConfigError(f"{name}={values!r} is not allowed: use {count} numbers")
    return [number(name, value, least=least) for value in found]


def number(name: str, value: Any, *, least: float = 0.01) -> Any:
    """A field that has to be a number.

    Raises:
        ConfigError: It is none, or out of range.
    """
    # A range in which no arithmetic here overflows; `Preprocess` checks the results.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= MAX_EDGE_PX:
        raise ConfigError(f"{name}={value!r} is not allowed: use {least} to {MAX_EDGE_PX}")
    return value


def refuse(config: Preprocess, framework: str, resize_mode: str) -> None:
    """What neither of two frameworks can do, and a mode that one cannot."""
    unsupported = (
        ("channel_order", "bgr"),
        ("antialias", False),
        ("resize_mode", "crop_to_aspect_ratio"),
        ("resize_mode", resize_mode),
    )
    for name, value in unsupported:
        if getattr(config, name) == value:
            raise lacking(framework, name, value)


def lacking(framework: str, name: str, value: Any) -> ConfigError:
    """The error of a field that a framework has no transform for."""
    return ConfigError(
        f"{framework} has no transform with {name}={value!r}: load the net with another "
        "preprocess=, or write a file alone, which needs none"
    )
