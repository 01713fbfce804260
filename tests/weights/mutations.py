"""Weight files with a few bytes changed, at random but for the seed; run confined."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnetjax.errors import ResNetJAXError
from tests.weights.attack import read
from tests.weights.npz_bytes import npy, one
from tests.weights.table_bytes import masked, table

SECONDS = 5.0  # for each file
Files = dict[str, bytes]
Generator = np.random.Generator


def changed(content: bytes, rng: Generator) -> bytes:
    """Bytes replaced, bits flipped, a run overwritten, or the end cut off."""
    mutated = np.frombuffer(content, np.uint8).copy()
    # Where something is: most of a small HDF5 file is free space.
    places = rng.choice(np.flatnonzero(mutated), size=rng.integers(1, 8))
    match rng.integers(4):
        case 0:
            mutated[places] = rng.integers(0, 256, size=len(places))
        case 1:
            mutated[places] ^= 1 << rng.integers(0, 8, size=len(places), dtype=np.uint8)
        case 2:
            start = places[0]
            mutated[start : start + rng.integers(1, 16)] = rng.choice([0, 1, 127, 255])
        case 3:
            mutated = mutated[: rng.integers(0, len(mutated))]
    return mutated.tobytes()


def any_file(files: Files, rng: Generator) -> Files:
    """One of the files changed."""
    name = list(files)[rng.integers(len(files))]
    return files | {name: changed(files[name], rng)}


def bundle(files: Files, rng: Generator) -> Files:
    """The same; or a table whose first block was changed before it got its checksum."""
    if rng.random() < 0.5:
        return any_file(files, rng)
    name, content = next(item for item in files.items() if item[0].endswith(".index"))
    size = content.index(b"\0\0\0\0\1\0\0\0")
    body = changed(content[:size], rng) + content[size : size + 8] + b"\0"
    return files | {name: table(body + masked(body))}


def numpy_archive(files: Files, rng: Generator) -> Files:
    """The same; or the header of an array changed to what nearly is one."""
    if rng.random() < 0.5:
        return any_file(files, rng)
    array = np.frombuffer(npy(), np.uint8).copy()
    places = rng.integers(0, len(array), size=rng.integers(1, 4))
    array[places] = rng.choice(np.frombuffer(b"0123456789(),'<>|=LOUVfiu {}", np.uint8))
    return {name: one(array.tobytes()) for name in files}


def survive(folder: str, mutate: str, seed: int, count: int) -> list[int]:
    """How many mutations of the files in a folder were read, and how many refused.

    Args:
        folder: The first of its files, by name, is read.
        mutate: A function above.
        seed: Of the mutations.
        count: How many.

    Raises:
        AssertionError: One raised what is no error of ours; or was read in more than `SECONDS`.
    """
    function: Callable[[Files, Generator], Files] = globals()[mutate]
    files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    first = next(name for name in files if not name.endswith(".data-00000-of-00001"))
    place = Path("mutated")
    place.mkdir()
    noted = os.open("number", os.O_CREAT | os.O_WRONLY)
    results = [0, 0]
    for number in range(count):
        mutated = function(files, np.random.default_rng((seed, number)))
        # What ends this process leaves its cause behind: the file, and its number.
        for name, content in mutated.items():
            (place / name).write_bytes(content)
        os.pwrite(noted, b"%d" % number, 0)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            read(str(place / first))
            results[0] += 1
        except ResNetJAXError:
            results[1] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {seed}: {error!r}") from error
        for name in mutated:  # anew: what is mapped still must not change
            os.unlink(place / name)
    return results
