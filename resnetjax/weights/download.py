"""Published weights, fetched once into the cache folder and checked at every use."""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from resnetjax.errors import ConfigError, DigestMismatch, DownloadFailed
from resnetjax.weights import (
    archives,
    connection,
    digests,
    hugging_face,
    kaggle,
    transfer,
    unpacked,
)
from resnetjax.weights.cached import Place
from resnetjax.weights.digests import Digest

_PARTIAL = ".partial"


def fetch(address: str, *, digest: str | None = None, files: Sequence[str] | None = None) -> Path:
    """The file at an address, or the folder of a repository, from the cache or else the network.

    What is there already is used without a request; only a repository on Hugging Face without
    `@commit`, and one on Kaggle without version, are asked for something newer where the network
    allows. A digest is checked before first use; where none is given, the file must stay what it
    was at first use. Several processes may fetch at once.

    Args:
        address: One of

            - `https://host/path/file`; `http://` from this machine, or with a full SHA-256;
            - `hf://owner/repository[@revision][/file]`, on Hugging Face;
            - `kaggle://owner/model/framework/variation[/version]`.
        digest: `sha256:` and 64 or the first 8 hex digits, or `md5:` and 32. Of a repository it is
            that of its one weight file.
        files: Of a tar archive: the members to take out. Of a repository: the files, rather than
            its description and its weights.

    Returns:
        The file; or the folder of a repository or of an archive's members.

    Raises:
        DownloadFailed: The network, the server or the address fails; it says what to do.
        DigestMismatch: What came is not what was published, or not what came at first; it is gone.
        ConfigError: The address, `digest` or `files` is not allowed.
        UnknownName: The repository or archive has no such file.
        UnsupportedFile, UnsafeWeights, CorruptFile: The archive is refused, or a repository has no
            weights.
        MissingExtra: The address needs a package that is not installed.
        OSError: The cache cannot be written, as when the disk is full.

    Example:
        >>> folder = fetch("hf://timm/resnet18.a1_in1k")  # doctest: +SKIP
        >>> sorted(path.name for path in folder.iterdir())  # doctest: +SKIP
        ['config.json', 'model.safetensors']
    """
    given = () if digest is None else (digests.parse(digest),)
    match address.partition("://")[0].lower():
        case "https" | "http":
            return (
                _fetch_file(address, given)
                if files is None
                else _fetch_members(address, given, files)
            )
        case "hf":
            return hugging_face.fetch(address, given, files)
        case "kaggle":
            return kaggle.fetch(address, given, files)
    raise ConfigError(
        f"address {address!r} is not allowed: use https://host/path, hf://owner/repository or "
        "kaggle://owner/model/framework/variation"
    )


def _fetch_file(address: str, given: tuple[Digest, ...]) -> Path:
    trusted = any(digest.kind == "sha256" and len(digest.value) == 64 for digest in given)
    connection.check_address(address, plain=trusted)
    place = Place(address)
    name = _file_name(address)
    file = place.folder / name
    if place.unchanged(name, file, *given):
        return file
    if file.is_file() and not os.access(place.folder, os.W_OK):  # one cache for many users
        place.check(name, file, *given)
        return file
    with place.locked():
        # There is one without a record after a kill at the last moment, or put there by hand.
        if not (file.is_file() and _is_good(place, name, given)):
            _download(place, name, given)
            place.forget(keep=name)
        place.save()
    return file


def _is_good(place: Place, name: str, given: tuple[Digest, ...]) -> bool:
    try:
        place.check(name, place.folder / name, *given)
    except DigestMismatch as error:
        text = f"{place.folder / name} is not what it should be, so it is fetched again: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
        return False
    return True


def _download(place: Place, name: str, given: tuple[Digest, ...]) -> None:
    partial = place.folder / _PARTIAL
    for last in (False, True):
        try:
            resumed = transfer.download(place.address, partial, name=name, unsized=bool(given))
        except DownloadFailed as error:
            raise DownloadFailed(
                f"{error}\nWithout it: put the file at\n  {place.folder / name}\n"
                "($RESNETJAX_HOME names another cache folder). Behind a proxy: set $HTTPS_PROXY."
            ) from error
        try:
            place.put(partial, name, *given)
        except DigestMismatch as error:
            transfer.discard(partial)
            if resumed and not last:
                continue  # perhaps its parts are of two files: once more, from the beginning
            raise DigestMismatch(
                f"{place.address}: {error}. What came is removed. If the publisher has changed the "
                f"file, and you trust it: leave out digest=, and remove {place.folder}"
            ) from error
        transfer.discard(partial)
        return


def _file_name(address: str) -> str:
    """What the last part of an address says, without what a file system could take amiss."""
    last = unquote(urlsplit(address).path).replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^\w.+=@-]", "_", last, flags=re.ASCII).lstrip(".")[-100:].lstrip(".") or "file"


def _fetch_members(address: str, given: tuple[Digest, ...], members: Sequence[str]) -> Path:
    archive_name = _file_name(address)
    if not archive_name.endswith(archives.SUFFIXES) or not members:
        raise ConfigError(
            f"files={list(members)!r} is not allowed with {address!r}: name members of an archive "
            f"({', '.join(archives.SUFFIXES)})"
        )
    names = [archives.check_member(member) for member in members]
    place = Place(address)
    if place.knows(archive_name, *given) and unpacked.are_there(place, names):
        return unpacked.folder_of(place)
    archive = _fetch_file(address, given)
    with place.locked():
        return unpacked.take_out(place, archive, names)
