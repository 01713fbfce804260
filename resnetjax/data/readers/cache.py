"""Indexes of large files, kept in the cache folder so that a file is scanned once."""

import hashlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from resnetjax.cache import cache_folder

Index = Mapping[str, np.ndarray]

_VERSION = 1  # of what is in an index: a higher one makes older files stale


def cached_index(
    kind: str, paths: Sequence[Path], build: Callable[[], Index], *, folder: Path | None
) -> Index:
    """What `build` gives, from the cache if it was built from these very files before.

    An index counts as long as every file has the same path, size and time of modification. One that
    is stale or cannot be read is built again. A cache that cannot be written gives a warning.

    Args:
        kind: What sort of index it is; part of its file's name.
        paths: The files that it describes.
        build: Scans them. Arrays of any dtype but object.
        folder: Where it is kept, in a sub-folder; None for `cache_folder()`.
    """
    folder = (cache_folder() if folder is None else folder) / "indexes"
    where = [os.path.abspath(path) for path in paths]
    stats = [os.stat(path) for path in where]
    states = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats]
    file = folder / f"{kind}-{_digest(where)[:32]}.npz"
    fingerprint = _digest([str(_VERSION), *states])
    index = _read(file, fingerprint)
    if index is None:
        index = build()
        try:
            _write(file, {**index, "fingerprint": np.array(fingerprint)})
        except OSError as error:
            warnings.warn(
                f"the index of {where[0]} is built each time, for it cannot be kept: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
    return index


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()


def _read(file: Path, fingerprint: str) -> Index | None:
    try:
        # Opened here: where it fails, np.load leaves open what it opened itself.
        with open(file, "rb") as content, np.load(content, allow_pickle=False) as arrays:
            index = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError):
        return None
    return index if str(index.pop("fingerprint", "")) == fingerprint else None


def _write(file: Path, index: Index) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.stem}-", delete=False) as new:
        try:
            np.savez(new, allow_pickle=False, **index)
            new.close()
            os.replace(new.name, file)
        except BaseException:
            os.unlink(new.name)
            raise
