"""What a checkpoint says of itself: a JSON file that any flipped bit makes unreadable."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from resnetjax.errors import CorruptFile
from resnetjax.weights import bounded_json, files

NAME = "manifest.json"

JSON: TypeAlias = Mapping[str, "JSON"] | list["JSON"] | str | int | float | bool | None


@dataclass(frozen=True)
class Leaf:
    """An array of a state, with the digest of its bytes in C order; "" where that is not known."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str = ""

    def __str__(self) -> str:
        """As JAX writes it: float32[3,3]."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint.

    Attributes:
        step: The step after which it was saved.
        config: The digest of the configuration that it was saved under.
        facts: What the caller saved beside the arrays.
        leaves: By their paths in the state.
        files: The SHA-256 of each, by its path in the checkpoint's folder.
        versions: Of the libraries that wrote it.
    """

    step: int
    config: str
    facts: Mapping[str, JSON]
    leaves: Mapping[str, Leaf]
    files: Mapping[str, str]
    versions: Mapping[str, str]


def digest(array: np.ndarray) -> Leaf:
    """An array's dtype, shape and digest."""
    # Through uint8: hashlib takes no bfloat16.
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return Leaf(array.dtype.name, array.shape, hashlib.sha256(content.data).hexdigest())


def state_digest(leaves: Mapping[str, Leaf]) -> str:
    """One SHA-256 for a whole state: of the lines `path dtype[shape] sha256`, sorted."""
    lines = sorted(f"{path} {leaf} {leaf.sha256}\n" for path, leaf in leaves.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write(folder: Path, manifest: Manifest) -> None:
    """Writes a folder's manifest: whole, or not at all.

    Raises:
        OSError: It cannot be written.
        TypeError: The facts are not JSON.
        ValueError: The facts hold a number that is not finite.
    """
    files.write({folder / NAME: _encode(asdict(manifest))})


def read(folder: Path) -> Manifest:
    """The manifest in a folder.

    Raises:
        CorruptFile: There is none, or it is not as it was written.
        OSError: It cannot be read.
    """
    if not (folder / NAME).is_file():
        raise CorruptFile(f"{NAME} is missing")
    with (folder / NAME).open("rb") as file:
        content = file.read(bounded_json.MAX_BYTES + 1)
    body = bounded_json.loads(content, what=NAME).get("manifest")
    # Written in one way only, so that a flipped bit shows wherever it is.
    if type(body) is not dict or _encode(body) != content:
        raise CorruptFile(f"{NAME} does not have the digest that it gives")
    try:
        leaves = {
            path: Leaf(leaf["dtype"], tuple(leaf["shape"]), leaf["sha256"])
            for path, leaf in body["leaves"].items()
        }
        return Manifest(
            body["step"], body["config"], body["facts"], leaves, body["files"], body["versions"]
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise CorruptFile(f"{NAME} is of another layout: {error!s:.100}") from error


def _encode(body: Mapping[str, Any]) -> bytes:
    text = _dump(body)
    return _dump({"manifest": body, "sha256": hashlib.sha256(text).hexdigest()}) + b"\n"


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Checks files against their digests.

    Raises:
        CorruptFile: One is missing or holds other bytes.
        OSError: One cannot be read.
    """
    for name, sha256 in expected.items():
        if not (folder / name).is_file():
            raise CorruptFile(f"{name} is missing")
        if _sha256(folder / name) != sha256:
            raise CorruptFile(f"{name} holds other bytes than were written")


def digest_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
