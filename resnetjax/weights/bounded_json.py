"""JSON objects from files: bounded in size, without duplicate keys."""

import json
from pathlib import Path
from typing import Any

from resnetjax.errors import CorruptFile

MAX_BYTES = 4 * 2**20  # an empty list of two characters takes seventy bytes in memory


def read(path: Path) -> dict[str, Any]:
    """Returns the object in a file.

    Raises:
        CorruptFile: As `loads`.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return loads(file.read(MAX_BYTES + 1), what=str(path))


def loads(content: bytes | memoryview, *, what: str) -> dict[str, Any]:
    """Returns the object in a JSON text.

    Args:
        content: The text, in UTF-8.
        what: What the text is, for messages.

    Raises:
        CorruptFile: It is too long, no JSON, no object, or has a key twice.

    Example:
        >>> loads(b'{"a": [1, 2]}', what="the header")
        {'a': [1, 2]}
    """
    if len(content) > MAX_BYTES:
        raise CorruptFile(f"{what} has {len(content):,} bytes, more than {MAX_BYTES:,}")
    try:
        value = json.loads(bytes(content), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{what} is not the JSON that it should be: {error!s:.100}") from error
    if type(value) is not dict:
        raise CorruptFile(f"{what} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{twice!r:.60} occurs twice")
    return mapping


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
