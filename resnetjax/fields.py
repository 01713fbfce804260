"""Frozen dataclasses checked against their own annotations, and built from JSON."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from resnetjax.errors import ConfigError

T = TypeVar("T")


def construct(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of a frozen dataclass from JSON values; lists become tuples, objects dataclasses.

    Raises:
        ConfigError: A field is unknown, missing or not allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"{cls.__name__} has no field {', '.join(unknown)}: it has {', '.join(fields)}"
        )
    required = [
        n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}")
    hints = _hints_of(cls)
    return cls(**{name: _build(value, hints[name]) for name, value in values.items()})


def _build(value: Any, hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)]
    return construct(kinds[0], value) if kinds and isinstance(value, Mapping) else _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def require(owner: Any, field: str, holds: object, allowed: str) -> None:
    """Nothing, if a field's value holds.

    Raises:
        ConfigError: It does not; the message names field, value and what is allowed.
    """
    if not holds:
        # Bounded: what a file holds may be long.
        raise ConfigError(f"{field}={getattr(owner, field)!r:.2000} is not allowed: use {allowed}")


def check_types(owner: Any) -> None:
    """Checks every field of a frozen dataclass against its annotation.

    Raises:
        ConfigError: Naming field, value and allowed values.
    """
    for name, hint in _hints_of(type(owner)).items():
        if not _fits(getattr(owner, name), hint):
            require(owner, name, False, _describe(hint))


@functools.cache
def _hints_of(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return any(
            value is choice or (value == choice and type(value) is type(choice))
            for choice in get_args(hint)
        )
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is tuple:
        kind, *rest = get_args(hint)
        if rest in ([], [...]):
            return isinstance(value, tuple) and all(_fits(item, kind) for item in value)
        kinds = get_args(hint)
        return (
            isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
        )
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max  # isfinite overflows on a long int
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        *most, last = map(repr, get_args(hint))
        return f"{', '.join(most)} or {last}" if most else last
    if origin in (Union, UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if origin is tuple:
        return f"a tuple of {_describe(get_args(hint)[0])}"
    plain = {
        int: "a whole number",
        float: "a finite number",
        bool: "True or False",
        str: "a string",
    }
    return plain.get(hint, "None" if hint is type(None) else getattr(hint, "__name__", str(hint)))
