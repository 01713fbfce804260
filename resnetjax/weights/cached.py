"""Places in the cache folder: one for each address, with a lock, and a record of its files."""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from resnetjax.cache import cache_folder
from resnetjax.errors import DigestMismatch
from resnetjax.weights import files
from resnetjax.weights.digests import Digest, compute

_RECORD = ".record.json"
_PATIENCE_SECONDS = 1.0  # after which a wait for another process is said


def say(message: str) -> None:
    """Prints a line on stderr, where there is one."""
    if sys.stderr is not None:
        print(f"resnetjax: {message}", file=sys.stderr, flush=True)


class Place:
    """What is cached of one address.

    A file's entry in the record holds its digests, and its size and times of change when they were
    computed: it is read again only once one of these differs. The digests of an entry bind, so
    that a file whose publisher gives none must stay what it was at first use.

    Attributes:
        address: Where the files come from.
        folder: Theirs alone; names that begin with a dot are the cache's own.
        facts: What else is remembered, in JSON's types.
    """

    def __init__(self, address: str) -> None:
        where = re.split("[?#]", address.partition("://")[2])[0]
        slug = re.sub(r"[^a-zA-Z0-9._]+", "-", where)[:80].strip(".-")
        key = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:16]
        self.address = address
        self.folder = cache_folder() / "weights" / f"{slug}-{key}"
        self.facts: dict[str, Any] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._read()

    def _read(self) -> None:
        # One that cannot be read is as none: what it described is then taken as it is found.
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            values = json.loads((self.folder / _RECORD).read_bytes())
            entries = {
                name: {"state": list(entry["state"]), "digests": dict(entry["digests"])}
                for name, entry in values["files"].items()
                if "sha256" in entry["digests"]
            }
            self.facts, self._entries = dict(values["facts"]), entries

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes and threads out; the system frees the lock of one that dies.

        Raises:
            OSError: The folder cannot be made or written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS)
        except filelock.Timeout:
            say(f"waiting for another process that fetches {self.address}")
            lock.acquire()
        try:
            self._read()  # the other may have written
            yield
        finally:
            lock.release()

    def knows(self, name: str, *expected: Digest) -> bool:
        """Whether a file of this name was there with these digests."""
        digests = self._digests(name)
        return bool(digests) and all(digest.matches(digests) for digest in expected)

    def unchanged(self, name: str, file: Path, *expected: Digest) -> bool:
        """Whether the file is, by size and times of change, the one with these digests."""
        try:
            state = _state(file)
        except OSError:
            return False
        return self.knows(name, *expected) and self._entries[name]["state"] == state

    def check(self, name: str, file: Path, *expected: Digest) -> None:
        """Makes sure that a file has these digests, and that it still is what it was.

        What was recorded binds only where it has these digests too: else there is a newer file.

        Raises:
            DigestMismatch: It has other digests, or is not as recorded.
            OSError: It cannot be read.
        """
        state, digests = _state(file), {}
        if name in self._entries and self._entries[name]["state"] == state:
            digests = dict(self._entries[name]["digests"])
        digests |= compute(file, {"sha256", *(d.kind for d in expected)} - digests.keys())
        known = self._digests(name) if self.knows(name, *expected) else digests
        for digest in (*expected, recorded := Digest("sha256", known["sha256"])):
            if not digest.matches(digests):
                when = " as at first use" if digest is recorded else ""
                found = Digest(digest.kind, digests[digest.kind])
                raise DigestMismatch(f"expected {digest}{when}, found {found}")
        self._entries[name] = {"state": state, "digests": digests}

    def put(self, temporary: Path, name: str, *expected: Digest) -> None:
        """Checks a file and moves it to its place in the folder.

        Raises:
            DigestMismatch: As of `check`; nothing is moved.
            OSError: It cannot be moved.
        """
        self.check(name, temporary, *expected)
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(file)
        self._entries[name]["state"] = _state(file)  # a rename is a change too

    def forget(self, *, keep: str | None = None) -> None:
        """Removes the files from the record, all but one."""
        self._entries = {name: entry for name, entry in self._entries.items() if name == keep}

    def save(self, **facts: Any) -> None:
        """Writes the record, with more facts.

        Raises:
            OSError: It cannot be written.
        """
        self.facts |= facts
        values = {"address": self.address, "facts": self.facts, "files": self._entries}
        files.write({self.folder / _RECORD: json.dumps(values, indent=1).encode()})

    def _digests(self, name: str) -> Mapping[str, str]:
        return self._entries[name]["digests"] if name in self._entries else {}


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
