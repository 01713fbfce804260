"""What a hostile file is in the tests: its bytes, its error, and the reader that it harms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyfive  # noqa: F401 - which readers import at first use, opening its files

from resnetjax import folders
from resnetjax.weights import archives, files

SECRET = "SECRET-of-another-file"


@dataclass(frozen=True)
class Attack:
    """A hostile file.

    Attributes:
        kind: The CVE or the class of opcode or of structure that it abuses.
        make: Makes its bytes; or several files by their names, of which the first is read, or "."
            in front for the folder of the others.
        error: The class in errors.py that refuses it.
        victim: The function of unsafe_readers.py that it harms.
        harm: What it does there. `runs`: a command of its choice, `touch canary`. `leaks`: gives
            away the content of another file, or of another part of its own, or what a checksum
            contradicts. `writes`: a file where none may be. `exhausts`: memory beyond three times
            the file and 200 MB, the stack, or five seconds.
        file: The name that it goes by.
        reader: What of ours has to refuse it, a function of this module.
        slow: Whether the victim takes its five seconds.
    """

    kind: str
    make: Callable[[], bytes | Mapping[str, bytes]]
    error: str
    victim: str
    harm: Literal["runs", "leaks", "writes", "exhausts"]
    file: str = "weights.any"
    reader: str = "read"
    slow: bool = False


def read(path: str) -> None:
    """Reads a file of weights, and every byte of its arrays."""
    for array in files.read(path).arrays.values():
        array.tobytes()


def extract(path: str) -> None:
    """Takes `net.ckpt` out of an archive."""
    archives.extract(Path(path), ["net.ckpt"], Path("taken"))


def describe(path: str) -> None:
    """Reads what a folder says of its weights."""
    folders.describe(Path(path))
