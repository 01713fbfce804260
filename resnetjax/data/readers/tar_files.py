"""Where the members of a tar archive lie, without unpacking it.

Stricter than `tarfile`, which takes a damaged header behind the first one for the end.
"""

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from resnetjax.data.readers.open_files import ByteFile
from resnetjax.errors import CorruptFile, UnsupportedFile

_BLOCK = tarfile.BLOCKSIZE
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_CONTENT = (tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_MAX_EXTENSION = 1 << 20  # bytes of a long name or a pax header


class TarMember(NamedTuple):
    """A plain file in an archive, and where its bytes are in the archive's file."""

    name: str
    start: int
    size: int


def members(file: ByteFile, *, start: int = 0, end: int | None = None) -> Iterator[TarMember]:
    """The plain files of an uncompressed archive (ustar, GNU or pax), in its order.

    Args:
        file: What has the archive in it.
        start: Where the archive starts, for one inside another.
        end: Where it ends at most; None for the end of the file.

    Raises:
        CorruptFile: A header is damaged, or the archive is cut off: a member reaches beyond its
            end, or the block of zeros is missing that closes it. The message gives the offset.
        UnsupportedFile: The archive is compressed, or has sparse or special files.
    """
    end = file.size if end is None else end
    position, changed = start, {}
    if file.read(start, min(2, end - start)) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        raise UnsupportedFile(
            f"{file.path} is compressed, so it can only be read from its start: decompress it first"
        )
    while True:
        if position + _BLOCK > end:
            raise CorruptFile(f"{file.path}: the archive is cut off at offset {end}")
        block = file.read(position, _BLOCK)
        if not any(block):
            return
        header = _header(file, block, position)
        size = int(changed.get("size", header.size)) if header.type in _PLAIN else header.size
        content = position + _BLOCK
        if header.type in _WITHOUT_CONTENT:
            size = 0
        if size < 0 or content + size > end:
            raise CorruptFile(
                f"{file.path}: the archive is cut off at offset {end}: {header.name!r:.80} at "
                f"offset {position} has {size} bytes"
            )
        if header.type in _PLAIN:
            yield TarMember(changed.get("path", header.name), content, size)
        position = content + -(-size // _BLOCK) * _BLOCK
        changed = _extension(file, header, content, size)


def _header(file: ByteFile, block: bytes, position: int) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise CorruptFile(
            f"{file.path}: at offset {position} is no header of a tar archive: {error}"
        ) from error
    known = (*_PLAIN, *_WITHOUT_CONTENT, *_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
    if header.type not in known:
        raise UnsupportedFile(
            f"{file.path}: {header.name!r:.80} at offset {position} is neither a plain file nor a "
            f"folder, but of type {header.type!r}"
        )
    return header


def _extension(file: ByteFile, header: tarfile.TarInfo, start: int, size: int) -> dict[str, str]:
    """What a header says of the next one: its path and size where they did not fit."""
    if header.type == tarfile.XGLTYPE or header.type not in (*_PAX, tarfile.GNUTYPE_LONGNAME):
        return {}
    if size > _MAX_EXTENSION:
        raise CorruptFile(f"{file.path}: a name of {size} bytes at offset {start}")
    content = file.read(start, size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    try:
        return _pax_records(content)
    except ValueError as error:
        raise CorruptFile(f"{file.path}: a damaged pax header at offset {start}") from error


def _pax_records(content: bytes) -> dict[str, str]:
    records = {}
    while content:  # each is b"<its length> <key>=<value>\n"
        length = int(content.split(b" ", 1)[0])
        record = content[:length]
        if not record.endswith(b"\n") or len(record) != length:
            raise ValueError("a pax record does not end where it says")
        key, value = record[:-1].split(b" ", 1)[1].split(b"=", 1)
        if key in (b"path", b"size"):
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse"):
            raise ValueError("sparse files are not supported")
        content = content[length:]
    if not records.get("size", "0").isdigit():
        raise ValueError("the size in a pax header is no number")
    return records
