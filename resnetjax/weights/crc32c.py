"""The CRC-32C of bytes, and the masked form in which TensorFlow stores it."""

import functools

import numpy as np

from resnetjax.errors import CorruptFile

_LEVELS = 16  # blocks of 2**16 words


def crc32c(data: memoryview) -> int:
    """Returns the CRC-32C of bytes.

    A CRC is linear: a word may be replaced by what it becomes further on, xored onto the word
    there. So the first half of a block is folded onto the second until one word is left, which
    numpy does at 0.5 GB/s.

    Example:
        >>> hex(crc32c(memoryview(b"123456789")))
        '0xe3069283'
    """
    checksum = 0xFFFFFFFF
    tables = _tables()
    for start in range(0, len(data), 4 << _LEVELS):
        block = np.frombuffer(data[start : start + (4 << _LEVELS)], np.uint8)
        level = ((len(block) + 3) // 4 - 1).bit_length()
        padded = np.zeros(4 << level, np.uint8)
        # In front, where zeros change nothing.
        tail = padded[len(padded) - len(block) :]
        tail[:] = block
        tail[:4] ^= np.frombuffer(checksum.to_bytes(4, "little"), np.uint8)[: len(tail)]
        words = padded.view("<u4")
        for half in range(level - 1, -1, -1):
            words = _carried(words[: 1 << half], tables[half]) ^ words[1 << half :]
        checksum = int(_carried(words, tables[0])[0]) ^ checksum >> 8 * len(block)
    return checksum ^ 0xFFFFFFFF


def verify(data: memoryview, checksum: int, *, what: str) -> None:
    """Checks bytes against the masked checksum that TensorFlow stores of them.

    Raises:
        CorruptFile: It is not theirs; the message names them as `what`.
    """
    value = crc32c(data)
    # tensorflow/core/lib/hash/crc32c.h: Mask
    if checksum != ((value >> 15 | value << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF:
        raise CorruptFile(f"{what} is damaged: its checksum is wrong")


def _carried(words: np.ndarray, table: np.ndarray) -> np.ndarray:
    halves = words.view("<u2").reshape(-1, 2)
    return table[0].take(halves[:, 0]) ^ table[1].take(halves[:, 1])


@functools.cache
def _tables() -> list[np.ndarray]:
    """Returns for each level what the low and high half of a word become 2 ** level words on."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(32):  # Castagnoli's polynomial, bits reversed
        bits = bits >> 1 ^ np.where(bits & 1, np.uint32(0x82F63B78), np.uint32(0))
    tables = []
    for _ in range(_LEVELS):
        table = np.zeros((2, 1 << 16), np.uint32)
        for half in range(2):
            for bit in range(16):
                above = table[half, 1 << bit : 2 << bit]
                above[:] = table[half, : 1 << bit] ^ bits[16 * half + bit]
        tables.append(table)
        bits = _carried(bits, table)
    return tables
