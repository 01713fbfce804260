"""Models on Kaggle, through kagglehub."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from resnetjax.errors import ConfigError, DownloadFailed, MissingExtra
from resnetjax.weights.cached import Place
from resnetjax.weights.digests import Digest
from resnetjax.weights.repositories import main_file, unchanged, verified


def fetch(address: str, given: tuple[Digest, ...], files: Sequence[str] | None) -> Path:
    """The folder of a model's variation, in kagglehub's cache.

    Raises:
        As `download.fetch`.
    """
    handle = address.partition("://")[2]
    if files is not None or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*){3}(/\d+)?", handle):
        raise ConfigError(
            f"address {address!r} is not allowed: use kaggle://owner/model/framework/variation, "
            "with or without /version, and no files=: it is fetched whole"
        )
    try:
        import kagglehub
        from kagglehub import exceptions
    except ImportError as error:
        raise MissingExtra('kaggle:// needs kagglehub: pip install "resnetjax[keras]"') from error
    faults = (
        OSError,  # as of requests
        ValueError,
        exceptions.BackendError,
        exceptions.CredentialError,
        exceptions.DataCorruptionError,
        exceptions.NotFoundError,
        exceptions.UnauthenticatedError,
    )
    place = Place(address)
    pinned = handle.count("/") == 4
    if pinned and (folder := unchanged(place, [], given)):
        return folder

    def get(*, force: bool = False) -> Path:
        try:
            return Path(kagglehub.model_download(handle, force_download=force))
        except faults as error:
            raise DownloadFailed(
                f"{address} cannot be fetched: {' '.join(str(error).split()):.400}\n"
                f"Without it: fetch https://www.kaggle.com/models/{handle} elsewhere, and load the "
                "folder itself ($KAGGLEHUB_CACHE names kagglehub's cache, $KAGGLE_USERNAME and "
                "$KAGGLE_KEY who may read what is private)."
            ) from error

    def get_again(name: str) -> Path:
        return get(force=True) / name

    # kagglehub 1.0.2 takes no lock, and writes files in their places (clients.py: _download_file).
    with place.locked():
        known = Path(place.facts.get("folder", ""))
        online = True
        try:
            folder = get()
        except DownloadFailed:
            online, folder = False, known
            if not place.facts or not folder.is_dir():
                raise
        if folder != known:  # another version
            place.forget()
        elif online and not all((folder / name).is_file() for name in place.facts["names"]):
            folder = get(force=True)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        paths = {name: folder / name for name in names}
        main = main_file(paths, given)
        for name, path in paths.items():
            again = functools.partial(get_again, name) if online else None
            verified(place, name, path, given if name == main else (), again)
        place.save(asked=[], names=names, folder=str(folder))
    return folder
