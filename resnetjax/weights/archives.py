"""Single members of tar archives, found and taken out without trust in the rest."""

import gzip
import io
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

_BEGINNING = 8192  # bytes, enough for the first header of tar with its extensions
# How files of weights are called, and what is beside the index of a TensorFlow checkpoint.
_WEIGHTS = r".*\.(ckpt(-\d+)?|index|npz|h5|keras|safetensors|pth?|th|bin|msgpack)"
_SHARDS = r"\.data-\d{5}-of-\d{5}"
# What is in the archives that torch.save wrote before 0.1.11, each of which is one file of weights.
_TORCH = ("sys_info", "pickle", "tensors", "storages")


def detect(data: memoryview) -> bool:
    """Returns whether the bytes begin like a tar archive, plain or in gzip, and none of torch's."""
    begin = bytes(data[:_BEGINNING])
    if begin[:2] == b"\x1f\x8b":
        try:
            begin = zlib.decompressobj(wbits=31).decompress(begin, _BEGINNING)
        except zlib.error:
            return False
    if begin[257:262] != b"ustar":
        return False
    try:
        with tarfile.TarFile(fileobj=io.BytesIO(begin)) as tar:
            first = tar.next()
    except tarfile.TarError:
        return True  # a broken one
    return first is None or first.name.removeprefix("./") not in _TORCH


def find_checkpoint(archive: Path) -> list[str]:
    """The members that are the one checkpoint in an archive, as of `check_member`.

    The first is what is to be read: an index comes before its shards.

    Raises:
        UnknownName: There is none, or more than one; they are named.
        UnsafeWeights, CorruptFile, UnsupportedFile, OSError: As of `extract`.
    """
    with _opened(archive) as tar:
        names = [name for name, member in _checked(tar, archive.parent) if member.isreg()]
    # What begins with a dot is hidden: a Mac puts ._net.ckpt beside net.ckpt.
    names = [name for name in names if not any(x.startswith(".") for x in name.split("/"))]
    found = [name for name in names if re.fullmatch(_WEIGHTS, name)]
    if len(found) != 1:
        raise UnknownName(
            f"{archive}: expected the weights of one net in the archive, found "
            f"{', '.join(found[:20]) or 'none'}; take out the file that you mean, and load that"
        )
    prefix = found[0].removesuffix(".index")
    return found + [name for name in names if re.fullmatch(re.escape(prefix) + _SHARDS, name)]


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
    try:
        with _opened(archive) as tar:
            _extract(tar, set(members), folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """Opens an archive, and names it in the errors, whatever is wrong with it."""
    with archive.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        content = _Bounded(gzip.GzipFile(fileobj=raw) if zipped else raw, archive.stat().st_size)
        try:
            with tarfile.TarFile(fileobj=cast(Any, content)) as tar:
                yield tar
            while zipped and content.read(MAX_HEADER_BYTES):
                pass  # to gzip's checksum, which comes last
        except (tarfile.ReadError, tarfile.HeaderError) as error:
            if zipped:
                raise CorruptFile(f"{archive}: the archive is damaged: {error}") from error
            raise UnsupportedFile(f"{archive}: no tar archive: {error}") from error
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorruptFile(f"{archive}: the archive is damaged: {error}") from error
        except ResNetJAXError as error:
            raise type(error)(f"{archive}: {error}") from error


def _checked(tar: tarfile.TarFile, folder: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yields every member with its name, once it is known to stay within the folder."""
    for count, member in enumerate(tar, start=1):
        name = str(PurePosixPath(member.name))
        if count > MAX_MEMBERS:
            raise UnsafeWeights(f"the archive has more than {MAX_MEMBERS:,} members")
        try:
            tarfile.data_filter(member, str(folder))
        except tarfile.FilterError as error:
            raise UnsafeWeights(f"the archive is not to be trusted: {error}") from error
        if PurePosixPath(name).is_absolute():
            raise UnsafeWeights(f"the archive is not to be trusted: {name!r} is absolute")
        yield name, member


def _extract(tar: tarfile.TarFile, missing: set[str], folder: Path) -> None:
    seen: list[str] = []
    for name, member in _checked(tar, folder):
        seen.append(name)
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
