"""What is in an archive, as files in the cache folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from resnetjax.weights import archives
from resnetjax.weights.cached import Place

_ARCHIVE, _EXTRACTED, _MEMBERS = "archive", ".extracted", "files"


def unpack(archive: Path) -> Path:
    """The one checkpoint in a tar archive, in the cache folder: taken out once.

    It is taken out anew once the archive, or what was taken out, is not what it was.

    Returns:
        The file; of a TensorFlow checkpoint in several files the index, beside the others.

    Raises:
        UnknownName: The archive holds no checkpoint, or more than one; they are named.
        UnsafeWeights, CorruptFile, UnsupportedFile: It is refused, as of `archives.extract`.
        OSError: It cannot be read, or the cache not be written.
    """
    archive = archive.resolve()
    place = Place(archive.as_uri())

    def is_there() -> bool:
        members = place.facts.get("members", [])
        return place.unchanged(_ARCHIVE, archive) and are_there(place, members)

    if not is_there():
        with place.locked():
            if not is_there():
                place.forget()
                place.check(_ARCHIVE, archive)
                members = archives.find_checkpoint(archive)
                take_out(place, archive, members, members=members)
    return place.folder / _MEMBERS / place.facts["members"][0]


def are_there(place: Place, members: Sequence[str]) -> bool:
    """Whether members of an archive, one at least, are as they were taken out."""
    keys = [f"{_MEMBERS}/{member}" for member in members]
    return bool(keys) and all(place.unchanged(key, place.folder / key) for key in keys)


def take_out(place: Place, archive: Path, names: Sequence[str], **facts: object) -> Path:
    """The folder with members of an archive at a place, which is locked and is given the facts.

    Raises:
        As of `archives.extract`.
        DigestMismatch: They were others at first use.
    """
    extracted = place.folder / _EXTRACTED
    archives.extract(archive, names, extracted)
    for name in names:
        place.put(extracted / name, f"{_MEMBERS}/{name}")
    shutil.rmtree(extracted)
    place.save(**facts)
    return place.folder / _MEMBERS


def folder_of(place: Place) -> Path:
    """Where members are put that are taken out."""
    return place.folder / _MEMBERS
