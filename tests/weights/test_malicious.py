"""Hostile files of every format: each is refused, and each harms a reader that is not careful."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.weights.attack import SECRET, Attack
from tests.weights.confined import Confinement, Outcome
from tests.weights.malicious import MALICIOUS

SECONDS = 5.0
MEMORY = 200 * 2**20  # beside three times the file
# Of audit events, those that a reader may cause beside opening the file, and beside making and
# removing the folder `taken` where it takes files out of an archive.
HARMLESS = ("os.listdir", "os.scandir", "import")


@pytest.fixture(scope="module")
def confinement():
    with Confinement() as confinement:
        yield confinement


@pytest.fixture
def place(tmp_path):
    """A function that writes an attack to a folder beside a secret; gives what is to be read."""
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret.index").write_text(SECRET)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = np.frombuffer(SECRET.encode(), "u1")
    folder = tmp_path / "given"
    folder.mkdir()

    def write(attack: Attack) -> Path:
        made = attack.make()
        if isinstance(made, bytes):
            made = {attack.file: made}
        for name, content in made.items():
            if name != ".":
                (folder / name).write_bytes(content)
        return folder / next(iter(made))

    return write


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def call(confinement: Confinement, function: str, path: Path) -> Outcome:
    folder = path.parents[1] if path.name else path.parent
    given = sum(len(content) for content in files_in(folder / "given").values())
    return confinement.call(
        f"tests.weights.{function}",
        str(path),
        folder=folder,
        memory=3 * given + MEMORY,
        seconds=SECONDS,
    )


def test_at_least_sixty_hostile_files_are_tried():
    assert len(MALICIOUS) >= 60


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_hostile_file_is_refused_and_does_nothing(name, place, confinement, tmp_path):
    path = place(MALICIOUS[name])
    before = files_in(tmp_path)
    outcome = call(confinement, f"attack:{MALICIOUS[name].reader}", path)
    assert outcome.raised == MALICIOUS[name].error, outcome
    assert SECRET not in outcome.message
    assert files_in(tmp_path) == before
    assert [done for done in outcome.did if not harmless(done, tmp_path)] == []


def harmless(done: str, folder: Path) -> bool:
    event, _, about = done.partition(" ")
    taken = about.partition("/")[0] == "taken" or done == "os.remove net.ckpt"
    read = event == "open" and about.startswith(str(folder / "given"))
    return event in HARMLESS or read or taken


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * MALICIOUS[n].slow) for n in MALICIOUS],
)
def test_the_same_file_harms_a_reader_that_believes_it(name, place, confinement, tmp_path):
    attack = MALICIOUS[name]
    outcome = call(confinement, f"unsafe_readers:{attack.victim}", place(attack))
    match attack.harm:
        case "runs":
            assert (tmp_path / "canary").exists(), outcome
        case "leaks":
            assert SECRET in str(outcome.returned), outcome
        case "writes":
            assert (tmp_path / "escaped").exists(), outcome
        case "exhausts":
            found = f"{outcome.raised} {outcome.message}"  # HDF5 raises an OSError of its own
            assert re.match(r"MemoryError|RecursionError|SIGALRM|OSError .*memory", found), outcome
