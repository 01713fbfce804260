"""A file over HTTP: what was cut is resumed, and tried again where a fault may pass.

Why not pooch (1.9, `core.py` and `downloaders.py`): each attempt begins anew in a temporary file of
another name, so that nothing is resumed; there is no lock; `hash_matches` knows whole digests only;
and requests, below it, follows a redirect from https to http. What would be left of it is a rename.
"""

import http.client
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnetjax.errors import DownloadFailed
from resnetjax.weights.cached import say
from resnetjax.weights.connection import Fault, NoSuchPart, connect, reason_of

RETRY_SECONDS = (0.5, 2.0, 5.0)  # waits after failures in a row that brought nothing new
SYNC_BYTES = 8 * 2**20  # at most so much is fetched again after a kill or a loss of power
_BLOCK_BYTES = 2**18


@dataclass
class _Part:
    """What is known of a file that is partly there, kept beside it.

    Attributes:
        validator: ETag or date by which the server tells whether it still has the same file.
        total: Bytes of the whole, where the server says.
        synced: Bytes that are safely on the disk.
    """

    validator: str | None = None
    total: int | None = None
    synced: int = 0


def download(address: str, partial: Path, *, name: str, unsized: bool) -> bool:
    """Fetches a file, or the rest of it; returns whether a part from before was used.

    After an error what was fetched stays, for the next call to resume. A disk that is full loses
    it. Calls for the same file must not overlap.

    Args:
        address: As `check_address` allows.
        partial: Where the content goes; not fit for use before this returns.
        name: The file's, for the progress bar.
        unsized: Whether a server need not say how long the file is: where a digest is known.

    Raises:
        DownloadFailed: For a fault that does not pass or will not.
        OSError: The file cannot be written.
    """
    failures, furthest, resumed = 0, 0, False
    while True:
        before = _read_part(partial).synced
        resumed |= before > 0
        try:
            _attempt(address, partial, name=name, unsized=unsized)
            return resumed
        except Fault as fault:
            if isinstance(fault, NoSuchPart):
                discard(partial)
            got = _read_part(partial).synced
            failures, furthest = 1 if got > furthest else failures + 1, max(got, furthest)
            if failures > len(RETRY_SECONDS):
                text = f"{address} cannot be fetched: {fault}, {failures} times in a row"
                raise DownloadFailed(text) from fault
            time.sleep(RETRY_SECONDS[failures - 1])


def discard(partial: Path) -> None:
    """Removes a part."""
    partial.unlink(missing_ok=True)
    _beside(partial).unlink(missing_ok=True)


def _beside(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _read_part(partial: Path) -> _Part:
    with suppress(OSError, ValueError, TypeError):
        part = _Part(**json.loads(_beside(partial).read_bytes()))
        if 0 <= part.synced <= partial.stat().st_size:
            whole = part.total is not None and part.synced == part.total
            return part if part.validator or whole else _Part()
    return _Part()


def _attempt(address: str, partial: Path, *, name: str, unsized: bool) -> None:
    part = _read_part(partial)
    if part.total is not None and part.synced == part.total:
        return
    headers = {}
    if part.synced:
        headers = {"Range": f"bytes={part.synced}-", "If-Range": str(part.validator)}
    with connect(address, headers) as response:
        if response.status == 206:
            _check_continues(response, part)
        elif response.status == 200:
            part = _Part(_validator(response), response.length)
            if part.total is None and not response.chunked and not unsized:
                raise DownloadFailed(
                    f"{address} cannot be fetched: the server does not say how long the file is, "
                    "so that one cut short would pass for whole: give digest="
                )
        else:
            raise DownloadFailed(f"{address} cannot be fetched: it answers {response.status}")
        try:
            _store(response, partial, part, name=name)
        except OSError as error:  # of the disk: the connection's are faults
            discard(partial)
            raise OSError(error.errno, error.strerror, str(partial)) from error
    if part.total is not None and part.synced != part.total:
        raise Fault(f"the connection ended after {part.synced:,} of {part.total:,} bytes")


def _check_continues(response: http.client.HTTPResponse, part: _Part) -> None:
    span = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", response.headers.get("Content-Range", ""))
    etag, validator = response.headers.get("ETag"), part.validator
    changed = _is_etag(etag) and _is_etag(validator) and etag != validator
    total = int(span[2]) if span and span[2] != "*" else part.total
    if not span or int(span[1]) != part.synced or changed or part.total not in (None, total):
        raise NoSuchPart("the server sends another part than it was asked for")
    part.total = total


def _validator(response: http.client.HTTPResponse) -> str | None:
    etag = response.headers.get("ETag")
    return etag if _is_etag(etag) else response.headers.get("Last-Modified")


def _is_etag(text: str | None) -> bool:
    return text is not None and text.startswith('"')  # a weak one, W/"...", compares no bytes


def _store(response: http.client.HTTPResponse, partial: Path, part: _Part, *, name: str) -> None:
    if not part.synced:
        discard(partial)  # a new start: what is known of the old part must not outlive it
    with partial.open("r+b" if part.synced else "wb") as file:
        if part.synced:
            file.seek(part.synced)
            file.truncate()
        left = None if part.total is None else part.total - part.synced
        try:
            with _progress(name, part) as advance:
                for block in _blocks(response, left):
                    file.write(block)
                    advance(len(block))
                    if file.tell() - part.synced >= SYNC_BYTES:
                        _sync(file, partial, part)
        except OSError:
            raise  # the disk's: there is nothing to keep
        except BaseException:
            _sync(file, partial, part)
            raise
        _sync(file, partial, part)


def _sync(file: Any, partial: Path, part: _Part) -> None:
    file.flush()
    os.fsync(file.fileno())
    part.synced = file.tell()
    new = _beside(partial).with_suffix(".new")
    new.write_text(json.dumps(asdict(part)))
    new.replace(_beside(partial))


def _blocks(response: http.client.HTTPResponse, left: int | None) -> Iterator[bytes]:
    while left is None or left > 0:
        try:
            block = response.read1(_BLOCK_BYTES if left is None else min(_BLOCK_BYTES, left))
        except (OSError, http.client.HTTPException) as error:
            raise Fault(f"the connection broke: {reason_of(error)}") from error
        if not block:
            return
        yield block
        left = None if left is None else left - len(block)


@contextmanager
def _progress(name: str, part: _Part) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while somebody looks, else a line; what it gives is told of each block."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        size = f" ({part.total / 1e6:,.1f} MB)" if part.total else ""
        say(f"fetching {name}{size}" + (f" from byte {part.synced:,} on" if part.synced else ""))
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=part.total, completed=part.synced)
        yield lambda count: bar.advance(task, count)
