"""Records by number in TFRecord and ArrayRecord files.

A TFRecord file (tensorflow/core/lib/io/record_writer.h) is a sequence of
    uint64 length, uint32 masked CRC-32C of the length, the record, uint32 masked CRC-32C of it.
The length's checksum is verified when a file is indexed, in Python; a record's when it is read, if
google-crc32c is installed, for in Python that would take longer than decoding the image.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnetjax.data.readers.cache import Index, cached_index
from resnetjax.data.readers.open_files import ByteFile, OpenFiles
from resnetjax.errors import CorruptFile, MissingExtra

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


class TFRecordFiles:
    """The records of TFRecord files, one file after the other.

    Args:
        paths: The files.
        cache: The folder for the index; None for the usual one.

    Raises:
        CorruptFile: A file is cut off, or a length is damaged.
    """

    def __init__(self, paths: Sequence[Path], *, cache: Path | None = None) -> None:
        self._files = OpenFiles(paths, ByteFile)
        self._index = cached_index("tfrecord", paths, lambda: _build(paths), folder=cache)
        self.counts = np.bincount(self._index["shard"], minlength=len(paths)).tolist()

    def __len__(self) -> int:
        return len(self._index["shard"])

    def read(self, index: int) -> tuple[bytes, str]:
        """A record, and what to call it.

        Raises:
            CorruptFile: Its checksum is wrong.
        """
        file, start, size = (int(self._index[name][index]) for name in ("shard", "start", "size"))
        path = self._files.paths[file]
        content = self._files[file].read(start, size + _FOOTER.size)
        record, (checksum,) = content[:size], _FOOTER.unpack(content[size:])
        crc32c = _fast_crc32c()
        if crc32c is not None and _mask(crc32c(record)) != checksum:
            raise CorruptFile(f"{path}: the record at offset {start} has a wrong checksum")
        return record, f"{path.name}@{start}"


class ArrayRecordFiles:
    """The records of ArrayRecord files, one file after the other. ArrayRecord verifies checksums.

    Raises:
        CorruptFile: A file is cut off, or its footer is damaged.
        MissingExtra: array_record is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = OpenFiles(paths, _open_array_record)
        self.counts = [int(_open_array_record(path).num_records()) for path in paths]
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> tuple[bytes, str]:
        """A record, and what to call it.

        Raises:
            CorruptFile: Its checksum is wrong.
        """
        file = int(np.searchsorted(self._ends, index, side="right"))
        position = index - int(self._ends[file]) + self.counts[file]
        path = self._files.paths[file]
        try:
            return self._files[file].read([position])[0], f"{path.name}:{position}"
        except RuntimeError as error:
            raise CorruptFile(f"{path}: record {position}: {error}") from error


def is_tfrecord(path: Path) -> bool:
    """Whether a file starts as a TFRecord file does, whatever its name."""
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    return len(header) == _HEADER.size and _has_right_length(header)


def _open_array_record(path: Path) -> Any:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise MissingExtra(
            'reading ArrayRecord needs array_record: pip install "resnetjax[data]"'
        ) from error
    # No threads and no reading ahead: what array_record itself advises for random access.
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
    if not reader.ok():  # not raised by the constructor, and num_records() would be 0
        try:
            reader.read([0])
            reason = "it cannot be read"
        except RuntimeError as error:
            reason = str(error)
        raise CorruptFile(f"{path} is not a whole ArrayRecord file: {reason}")
    return reader


def _build(paths: Sequence[Path]) -> Index:
    files, starts, sizes = [], [], []
    for number, path in enumerate(paths):
        file, position = ByteFile(path), 0
        while position < file.size:
            if file.size - position < _HEADER.size:
                raise CorruptFile(f"{path} is cut off at offset {file.size}")
            header = file.read(position, _HEADER.size)
            size = _HEADER.unpack(header)[0]
            if not _has_right_length(header):
                raise CorruptFile(f"{path}: at offset {position} is no length of a TFRecord")
            start = position + _HEADER.size
            position = start + size + _FOOTER.size
            if position > file.size:
                raise CorruptFile(f"{path} is cut off at offset {file.size}, in a record")
            files.append(number)
            starts.append(start)
            sizes.append(size)
    return {
        "shard": np.array(files, np.int32),
        "start": np.array(starts, np.int64),
        "size": np.array(sizes, np.int64),
    }


def _has_right_length(header: bytes) -> bool:
    return _mask(_crc32c(header[:8])) == _HEADER.unpack(header)[1]


def _mask(checksum: int) -> int:
    # tensorflow/core/lib/hash/crc32c.h: Mask
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):  # Castagnoli's polynomial, bits reversed
        table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
    return table


_CRC_TABLE = _crc_table()


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


@functools.cache
def _fast_crc32c() -> Callable[[bytes], int] | None:
    try:
        from google_crc32c import value
    except ImportError:
        return None
    return value
