"""The members of a zip archive, checked before anything relies on them.

The format is PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3. Stricter than `zipfile`: what two
readers could understand differently (duplicate names, overlapping members, bytes behind the end)
is refused. CRC-32 is not verified: it protects against no intent, and would read every byte of a
file that is otherwise only mapped. Published weights carry a SHA-256.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from resnetjax.errors import CorruptFile, UnsafeWeights, UnsupportedFile

MAX_MEMBERS = 100_000

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest of zip: equal members give equal files
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_WIDE = 0xFFFFFFFF  # stands for a number that is in the zip64 field instead


class _Entry(NamedTuple):
    """An entry of the central directory, in the order of its fields."""

    signature: bytes
    written_by: int
    needed: int
    flags: int
    method: int
    time: int
    date: int
    crc: int
    stored_size: int
    size: int
    name_size: int
    extra_size: int
    comment_size: int
    disk: int
    internal: int
    external: int
    header: int


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive: where its local header and its bytes are, and what they become."""

    name: str
    header: int
    start: int
    end: int
    size: int
    deflated: bool


class ZipArchive:
    """The members of an archive by name.

    Raises:
        CorruptFile: It is truncated, or its parts contradict each other.
        UnsafeWeights: Names leave the archive or occur twice, members overlap, or they inflate to
            more than twice the file and 64 MiB.
        UnsupportedFile: It is encrypted, split, or compressed otherwise than by deflate.
    """

    def __init__(self, data: memoryview) -> None:
        self.data = data
        try:
            members = _members(data)
        except struct.error:
            raise CorruptFile("the zip archive is truncated") from None
        except UnicodeDecodeError:
            raise CorruptFile("the zip archive has a name that is not UTF-8") from None
        self.members = {member.name: member for member in members}
        inflated = sum(member.size for member in members if member.deflated)
        if inflated > 2 * len(data) + 64 * 2**20:
            raise UnsafeWeights(f"the zip archive inflates to {inflated:,} bytes")

    def read(self, name: str) -> memoryview:
        """Returns the bytes of a member: a view of the file, unless they are deflated."""
        if name not in self.members:
            raise CorruptFile(f"the zip archive has no member {name!r:.80}")
        member = self.members[name]
        content = self.data[member.start : member.end]
        if not member.deflated:
            return content
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than declared would show a bomb, and holds it back.
            content = memoryview(inflater.decompress(content, member.size + 1))
        except zlib.error as error:
            raise CorruptFile(f"member {name!r} of the zip archive is not deflated data") from error
        if len(content) != member.size or not inflater.eof:
            raise CorruptFile(f"member {name!r} does not inflate to its {member.size:,} bytes")
        return content


def _members(data: memoryview) -> list[Member]:
    count, start, end = _directory(data)
    if count > MAX_MEMBERS or count * _ENTRY.size > end - start:
        raise CorruptFile(f"the zip archive declares {count:,} members, more than it can hold")
    members, names, position = [], set(), start
    for _ in range(count):
        entry = _Entry._make(_ENTRY.unpack_from(data, position))
        position += _ENTRY.size
        name = bytes(data[position : position + entry.name_size]).decode()
        position += entry.name_size
        member = _member(data, name, entry, extra=data[position : position + entry.extra_size])
        position += entry.extra_size + entry.comment_size
        if name.casefold() in names:  # torch looks members up regardless of case
            raise UnsafeWeights(f"the zip archive holds {name!r:.80} twice")
        names.add(name.casefold())
        members.append(member)
    if position != end:
        raise CorruptFile("the zip archive's directory does not have its declared size")
    boundary = 0
    for member in sorted(members, key=lambda member: member.header):
        if member.header < boundary:
            raise UnsafeWeights(f"member {member.name!r:.80} of the zip archive overlaps another")
        boundary = member.end
    if boundary > start:
        raise UnsafeWeights("a member of the zip archive overlaps its directory")
    return [member for member in members if not member.name.endswith("/")]


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Returns the number of entries and the bounds of the central directory."""
    tail = max(0, len(data) - _END.size - 0xFFFF)
    position = tail + bytes(data[tail:]).rfind(b"PK\5\6")
    if position < tail:
        raise CorruptFile("the zip archive has no end record: it is truncated, or no zip archive")
    _, disk, first_disk, on_disk, count, size, start, comment = _END.unpack_from(data, position)
    if position + _END.size + comment != len(data):
        raise CorruptFile("the zip archive has bytes behind its end record")
    end = position
    locator = position - _END64_LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\6\7":
        end = locator - _END64.size
        fields = _END64.unpack_from(data, max(end, 0))
        disk, first_disk, on_disk, count, size, start = fields[4:]
        if fields[0] != b"PK\6\6" or _END64_LOCATOR.unpack_from(data, locator)[2] != end:
            raise CorruptFile("the zip archive has a broken zip64 end record")
    if disk or first_disk or on_disk != count:
        raise UnsupportedFile("the zip archive is split into several files")
    if start + size != end:
        raise CorruptFile("the zip archive's directory is not where its end record says")
    return count, start, end


def _member(data: memoryview, name: str, entry: _Entry, *, extra: memoryview) -> Member:
    if entry.signature != b"PK\1\2" or entry.disk:
        raise CorruptFile("the zip archive has a broken directory")
    if "\\" in name or "\0" in name or ":" in name or not {"", ".", ".."}.isdisjoint(_parts(name)):
        raise UnsafeWeights(f"the zip archive has a member {name!r:.80}, which leaves its folder")
    if entry.flags & 1 or entry.method not in (0, 8):
        raise UnsupportedFile(f"member {name!r:.80} of the zip archive is encrypted or compressed")
    size, stored_size, header = _wide_numbers(entry, extra)
    if header + stored_size > len(data):
        raise CorruptFile(f"member {name!r:.80} lies outside the zip archive")
    local = _LOCAL.unpack_from(data, header)
    start = header + _LOCAL.size + local[9] + local[10]
    local_name = data[header + _LOCAL.size : header + _LOCAL.size + local[9]]
    if local[0] != b"PK\3\4" or local[3] != entry.method or local_name != name.encode():
        raise CorruptFile(f"the header of member {name!r:.80} contradicts the zip directory")
    if entry.method == 0 and size != stored_size:
        raise CorruptFile(f"member {name!r:.80} of the zip archive has two sizes")
    return Member(name, header, start, start + stored_size, size, deflated=entry.method == 8)


def _parts(name: str) -> list[str]:
    return name.removesuffix("/").split("/")


def _wide_numbers(entry: _Entry, extra: memoryview) -> list[int]:
    numbers = [entry.size, entry.stored_size, entry.header]
    if _WIDE not in numbers:
        return numbers
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:  # zip64: the numbers that did not fit, in this order
            wide = iter(struct.unpack_from(f"<{numbers.count(_WIDE)}Q", extra[: 4 + size], 4))
            return [next(wide) if number == _WIDE else number for number in numbers]
        extra = extra[4 + size :]
    raise CorruptFile("the zip archive lacks a size")


def encode(members: Mapping[str, bytes | memoryview]) -> bytes:
    """The bytes of an archive of these members, stored as they are."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return written.getvalue()
