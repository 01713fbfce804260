"""Digests of files: as publishers give them, and as they are found."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from resnetjax.errors import ConfigError

_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Digest:
    """What a file's digest must be.

    Attributes:
        kind: "sha256", "md5", or "git": the SHA-1 by which git names a file's content.
        value: In hex; of a SHA-256 the first 8 digits may do, as in `resnet50-0676ba61.pth`.
    """

    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"

    def matches(self, found: Mapping[str, str]) -> bool:
        """Whether a file with these digests, by kind, is the one that is meant."""
        return self.kind in found and found[self.kind].startswith(self.value)


def parse(text: str) -> Digest:
    """The digest in `sha256:HEX`, all 64 digits or the first 8, or in `md5:HEX`.

    Raises:
        ConfigError: It is spelled in another way.

    Example:
        >>> parse("sha256:0676BA61")
        Digest(kind='sha256', value='0676ba61')
    """
    kind, _, value = text.lower().partition(":")
    lengths = {"sha256": (64, 8), "md5": (32,)}
    if len(value) not in lengths.get(kind, ()) or not re.fullmatch("[0-9a-f]+", value):
        raise ConfigError(
            f"digest={text!r} is not allowed: use sha256: and 64 or the first 8 hex digits, "
            "or md5: and 32"
        )
    return Digest(kind, value)


def compute(path: Path, kinds: Iterable[str]) -> dict[str, str]:
    """The digests of a file in hex, by kind; the file is read once.

    Raises:
        OSError: It cannot be read.
    """
    hashes = {kind: hashlib.new(_HASHES[kind], usedforsecurity=False) for kind in kinds}
    if "git" in hashes:
        hashes["git"].update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            for each in hashes.values():
                each.update(block)
    return {kind: each.hexdigest() for kind, each in hashes.items()}


_HASHES = {"sha256": "sha256", "md5": "md5", "git": "sha1"}
