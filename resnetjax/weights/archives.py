"""Single members of tar archives, taken out without trust in the rest."""

import gzip
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from resnetjax.errors import (
    ConfigError,
    CorruptFile,
    ResNetJAXError,
    UnknownName,
    UnsafeWeights,
    UnsupportedFile,
)

SUFFIXES = (".tar.gz", ".tgz", ".tar")
MAX_MEMBERS = 10_000
MAX_HEADER_BYTES = 2**20  # tarfile reads a long name, or pax's fields, whole
MAX_GROWTH = 20  # weights hardly compress: published ones grow by a tenth


def check_member(name: str) -> str:
    """The name of a member as asked for, without a leading `./`.

    Raises:
        ConfigError: It leads out of the archive, or begins with a dot.
    """
    path = PurePosixPath(name)
    parts = path.parts
    if path.is_absolute() or not parts or "\\" in name or any(p.startswith(".") for p in parts):
        raise ConfigError(f"files={name!r} is not allowed: use names as in the archive")
    return str(path)


def extract(archive: Path, members: Sequence[str], folder: Path) -> None:
    """Writes some members of an archive, and nothing else, to a new folder.

    Every member is checked, not only those that are asked for: an archive that tries to write
    elsewhere deserves no trust.

    Args:
        archive: A tar file, plain or in gzip.
        members: Names as of `check_member`.
        folder: Removed first, and again after an error.

    Raises:
        UnknownName: There is no such member.
        UnsafeWeights: A member leads out of the archive, is a device, or is a link where a file is
            asked for; or there is far more than the archive's size can justify.
        CorruptFile: It is truncated or contradicts itself.
        UnsupportedFile: It is no tar archive.
        OSError: It cannot be read, or the folder written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with archive.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    try:
        with archive.open("rb") as raw:
            size = archive.stat().st_size
            content = _Bounded(gzip.GzipFile(fileobj=raw) if zipped else raw, size)
            _extract(content, set(members), folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (tarfile.ReadError, tarfile.HeaderError)) and not zipped:
            raise UnsupportedFile(f"{archive}: no tar archive: {error}") from error
        if isinstance(error, (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)):
            raise CorruptFile(f"{archive}: the archive is damaged: {error}") from error
        if isinstance(error, ResNetJAXError):
            raise type(error)(f"{archive}: {error}") from error
        raise


def _extract(content: "_Bounded", missing: set[str], folder: Path) -> None:
    seen: list[str] = []
    with tarfile.TarFile(fileobj=cast(Any, content)) as tar:
        for member in tar:
            seen.append(name := str(PurePosixPath(member.name)))
            if len(seen) > MAX_MEMBERS:
                raise UnsafeWeights(f"the archive has more than {MAX_MEMBERS:,} members")
            try:
                tarfile.data_filter(member, str(folder))
            except tarfile.FilterError as error:
                raise UnsafeWeights(f"the archive is not to be trusted: {error}") from error
            if PurePosixPath(name).is_absolute():
                raise UnsafeWeights(f"the archive is not to be trusted: {name!r} is absolute")
            if name not in missing:
                continue
            # Also not a sparse file: a header of it makes any number of zeros.
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                raise UnsafeWeights(f"{name!r} in the archive is a link or no plain file")
            missing.remove(name)
            _copy(tar, member, folder / name)
    if missing:
        raise UnknownName(
            f"the archive has no {', '.join(sorted(missing))}; it has {', '.join(seen[:20])}"
        )


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None, "a plain file has content"
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, 2**18)
        file.flush()
        os.fsync(file.fileno())
        if file.tell() != member.size:
            raise CorruptFile(f"{member.name!r} in the archive is cut short")


class _Bounded(io.RawIOBase):
    """A stream that refuses to give much at once, or far more than its file's size."""

    def __init__(self, stream: io.BufferedIOBase, size: int) -> None:
        self._stream = stream
        self._limit = MAX_GROWTH * size + MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES or self._stream.tell() > self._limit:
            raise UnsafeWeights("the archive holds far more than its size can justify")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset > self._limit:
            raise UnsafeWeights("the archive holds far more than its size can justify")
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
