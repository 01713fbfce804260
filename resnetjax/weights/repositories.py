"""Folders of files in the caches of other libraries, which do not check what lies there."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from resnetjax.errors import ConfigError, DigestMismatch
from resnetjax.weights.cached import Place
from resnetjax.weights.digests import Digest

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".h5", ".keras", ".npz", ".msgpack")
_HEAD = "task.weights.h5"  # of KerasHub, beside model.weights.h5


def unchanged(place: Place, asked: list[str], given: tuple[Digest, ...]) -> Path | None:
    """The folder that was fetched when the same was asked for, if nothing in it has changed."""
    facts = place.facts
    if facts.get("asked") != asked or not facts.get("names"):
        return None
    folder = Path(facts["folder"])
    main = main_file(dict.fromkeys(facts["names"], folder), given)
    same = all(
        place.unchanged(name, folder / name, *(given if name == main else ()))
        for name in facts["names"]
    )
    return folder if same else None


def main_file(paths: Mapping[str, Path], given: tuple[Digest, ...]) -> str | None:
    """The file that a given digest is of: the only one, or the only one with weights."""
    if not given:
        return None
    names = [name for name in paths if name.endswith(_WEIGHT_SUFFIXES) and name != _HEAD]
    names = list(paths) if len(paths) == 1 else names
    if len(names) != 1:
        raise ConfigError(f"digest={given[0]} is not allowed: weights are {listing(names)}")
    return names[0]


def verified(
    place: Place,
    name: str,
    path: Path,
    expected: tuple[Digest, ...],
    again: Callable[[], Path] | None,
) -> Path:
    """The path, once the file there has the digests; a bad one is removed, and fetched once more.

    Raises:
        DigestMismatch: It is bad again, or cannot be fetched.
    """
    try:
        place.check(name, path, *expected)
        return path
    except DigestMismatch as error:
        _remove(path)
        if again is None:
            raise DigestMismatch(f"{place.address}: {path}: {error}. It is removed") from error
        text = f"{path} is not what it should be, so it is fetched again: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=5)
    path = again()
    try:
        place.check(name, path, *expected)
        return path
    except DigestMismatch as error:
        _remove(path)
        raise DigestMismatch(f"{place.address}: {name}: {error}. It is removed") from error


def _remove(path: Path) -> None:
    content = Path(os.path.realpath(path))  # Hugging Face's cache links to it
    for file in (path, content):
        with suppress(OSError):
            file.unlink()


def listing(names: Mapping[str, object] | Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(list(names)[:20]) or "none"
