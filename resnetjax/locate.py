"""Where the weights are that are asked for: a path, an address, or a published name."""

import os
from pathlib import Path

from resnetjax import folders
from resnetjax.errors import UnknownName
from resnetjax.weights import sources
from resnetjax.weights.sources import PublishedWeights


def locate(source: str | os.PathLike[str]) -> tuple[Path, PublishedWeights | None]:
    """The file or folder of a source, fetched where it is not here, and what is published of it.

    Raises:
        UnknownName: There is no such file, directory or published weight; the nearest are named.
        DownloadFailed, DigestMismatch, MissingExtra: It cannot be fetched.
    """
    path = folders.find_model(Path(source))
    if path.exists():
        return path, None
    text = os.fspath(source)
    if "://" in text:
        return _fetch(text), None
    try:
        published = sources.find(text)
    except UnknownName as error:
        raise UnknownName(f"there is no file or directory {text!r}, and {error}") from None
    return _fetch(published.address, digest=published.digest), published


def _fetch(address: str, *, digest: str | None = None) -> Path:
    from resnetjax.weights.download import fetch  # takes a while to import, and is seldom needed

    return fetch(address, digest=digest)
