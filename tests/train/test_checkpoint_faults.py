"""Kills, flipped bits, lost files and full disks: the last good step comes back, or an error."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from resnetjax.errors import CheckpointCorrupt, ConfigError, CorruptFile, SaveFailed
from resnetjax.train import checkpoint, manifest
from resnetjax.train.checkpoint import Checkpoints, Restored, state_digest


def numbers(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {
        "params": {"kernel": rng.standard_normal((32, 32), dtype=np.float32)},
        "momentum": (rng.standard_normal(5), np.zeros((0, 2))),
        "step": np.array(step),
    }


def save(folder: Path, *steps: int) -> None:
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, numbers(step))


def restore(folder: Path, log: Callable[[str], None] = lambda _: None) -> Restored | None:
    with Checkpoints(folder, log=log) as checkpoints:
        return checkpoints.restore(numbers(0))


def assert_restores(folder: Path, step: int) -> None:
    restored = restore(folder)
    assert restored is not None
    assert restored.step == step
    assert state_digest(restored.state) == state_digest(numbers(step))


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run's folder with the steps 10 and 20, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    save(folder, 10, 20)
    return folder


@pytest.fixture
def run(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


# R2: kills. The event at which a forked child dies is counted over everything that Python does to
# files during the save; one run without a kill tells how many there are. Negative moments are
# those before the renames.

KILLED_SAVE = """
import os, shutil, sys, warnings
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from resnetjax.train.checkpoint import Checkpoints

warnings.simplefilter("ignore")  # of forking: nothing has run yet that has threads
KINDS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open", "os.scandir"}

def child(folder, kill_at):
    seen = []
    def hook(event, arguments):
        if event in KINDS and (event != "open" or str(folder) in str(arguments[0])):
            seen.append(event)
            if kill_at in (len(seen), -seen.count(event) if event == "os.rename" else None):
                os._exit(9)
    state = np.load(sys.argv[2], allow_pickle=True).item()
    sys.addaudithook(hook)
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(30, state)
    sys.stdout.write(" ".join(seen))
    sys.stdout.flush()
    os._exit(0)

for kill_at in map(int, sys.argv[4:]):
    folder = Path(sys.argv[3]) / str(kill_at)
    process = os.fork()
    if process == 0:
        try:
            child(folder, kill_at)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    # Threads do not always do the same number of things: the last moment may not come.
    assert code in ((9, 0) if kill_at > 0 else (9,) if kill_at else (0,)), (kill_at, code)
"""


def killed_saves(saved: Path, folder: Path, moments: list[int]) -> str:
    for moment in moments:
        shutil.copytree(saved, folder / str(moment))
    np.save(folder / "state.npy", numbers(30), allow_pickle=True)  # type: ignore[arg-type]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED_SAVE, str(root), str(folder / "state.npy"), str(folder)]
    done = subprocess.run(
        [*command, *map(str, moments)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_survives_kills(saved: Path, folder: Path, count: int) -> None:
    events = killed_saves(saved, folder, [0]).split()
    renames = {-index - 1 for index in range(events.count("os.rename"))}  # before each of them
    step = max(1, len(events) // count)
    moments = sorted(renames.union(range(1, len(events) + 1, step)))
    killed_saves(saved, folder, moments)
    ends = set()
    for moment in moments:
        run = folder / str(moment)
        step = max(Checkpoints(run).steps())
        assert_restores(run, step)
        ends.add((step, (run / "00000010").is_dir()))
        save(run, 40)  # the next start needs no help
        assert_restores(run, 40)
        assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
        assert not list(run.glob("*.bad"))
    # Killed before the step was complete, before the old one was deleted, and meanwhile.
    assert ends == {(20, True), (30, True), (30, False)}


def test_a_kill_at_any_stage_of_a_save_leaves_the_last_complete_step(saved, tmp_path):
    assert_survives_kills(saved, tmp_path, count=8)


@pytest.mark.slow
def test_a_kill_at_every_file_operation_of_a_save_leaves_the_last_complete_step(saved, tmp_path):
    assert_survives_kills(saved, tmp_path, count=10_000)


STAGES = {
    "before mkdir": (Path, "mkdir", False),
    "before the arrays": (checkpoint, "_write_arrays", False),
    "after the arrays": (checkpoint, "_write_arrays", True),
    "before the manifest": (manifest, "write", False),
    "after the manifest": (manifest, "write", True),
    "before fsync": (os, "fsync", False),
    "before verifying": (checkpoint, "_read", False),
    "before rename": (Path, "rename", False),
}


@contextlib.contextmanager
def failing(stage: str, error: BaseException) -> Iterator[None]:
    owner, name, after = STAGES[stage]
    original = getattr(owner, name)

    def fail(*args, **kwargs):
        if after:
            original(*args, **kwargs)
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


# R3: flipped bits


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def random_bits(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Half evenly over the files, half evenly over their bits."""
    rng = np.random.default_rng(seed)
    files = files_of(folder)
    sizes = np.array([(folder / file).stat().st_size for file in files], float)
    for index in range(count):
        weights = sizes > 0 if index % 2 else sizes
        file = files[rng.choice(len(files), p=weights / weights.sum())]
        yield file, int(rng.integers(8 * (folder / file).stat().st_size))


def assert_survives_flips(run: Path, count: int) -> None:
    newest = run / "00000020"
    whole = shutil.copytree(newest, run.parent / "whole")
    for file, bit in random_bits(whole, count, seed=count):
        flip(newest / file, bit)
        assert_restores(run, 10)
        aside = run / "00000020.bad"
        shutil.copyfile(whole / file, aside / file)
        aside.rename(newest)
    assert_restores(run, 20)


def test_a_flipped_bit_is_found_and_the_step_before_is_used(run):
    assert_survives_flips(run, 100)


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_found(run):
    assert_survives_flips(run, 1000)


def test_orbax_alone_restores_flipped_values_and_the_digests_of_the_leaves_tell(run, monkeypatch):
    arrays = run / "00000020" / "arrays"
    kernel = numbers(20)["params"]["kernel"]
    holds = (path for path in arrays.rglob("*") if path.is_file())
    file = next(path for path in holds if kernel.tobytes() in path.read_bytes())
    start = 8 * file.read_bytes().index(kernel.tobytes())
    monkeypatch.setattr(manifest, "check_files", lambda *_: None)
    for bit in range(start, start + 8 * kernel.nbytes, kernel.nbytes // 2 + 1):
        flip(file, bit)
        with contextlib.closing(ocp.PyTreeCheckpointer()) as orbax:
            restored = orbax.restore(arrays)
        assert (restored["params/kernel"] != kernel).sum() == 1
        log: list[str] = []
        assert restore(run, log.append).step == 10  # type: ignore[union-attr]
        assert "params/kernel does not hold the values that were saved" in log[0]
        (run / "00000020.bad").rename(run / "00000020")
        flip(file, bit)
    assert_restores(run, 20)


# R4: truncation, deletion, foreign folders


def assert_survives_damage(run: Path, damage: Callable[[Path], None]) -> None:
    newest = run / "00000020"
    whole = shutil.copytree(newest, run.parent / "whole")
    for file in files_of(whole):
        damage(newest / file)
        log: list[str] = []
        restored = restore(run, log.append)
        assert restored is not None
        assert restored.step == 10
        assert state_digest(restored.state) == state_digest(numbers(10))
        assert len(log) == 1
        assert str(file) in log[0]
        shutil.rmtree(run / "00000020.bad")
        shutil.copytree(whole, newest)


@pytest.mark.parametrize("percent", [0, 50, 99])
def test_a_truncated_file_is_named_and_the_step_before_is_used(run, percent):
    def truncate(path: Path) -> None:
        os.truncate(path, path.stat().st_size * percent // 100)

    assert_survives_damage(run, truncate)


def test_a_deleted_file_is_named_and_the_step_before_is_used(run):
    assert_survives_damage(run, Path.unlink)


def test_a_folder_in_place_of_a_file_is_named_and_the_step_before_is_used(run):
    def replace(path: Path) -> None:
        path.unlink()
        path.mkdir()

    assert_survives_damage(run, replace)


def test_a_lost_arrays_folder_is_found(run):
    shutil.rmtree(run / "00000020" / "arrays")
    assert_restores(run, 10)


@pytest.mark.parametrize("name", ["2", "00000030", "00000010.bad", ".00000030.new-1", "000000030"])
def test_an_empty_folder_is_no_step(run, name):
    (run / name).mkdir()
    assert_restores(run, 20)
    assert (run / name).is_dir()


@pytest.mark.parametrize("name", ["2", "tensorboard", "000000030"])
def test_foreign_folders_are_left_alone(run, name):
    shutil.copytree(run / "00000010", run / name)
    assert_restores(run, 20)
    save(run, 40)
    assert (run / name / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["30", "00000030", "notes.txt"])
def test_files_in_place_of_folders_are_no_steps(run, name):
    (run / name).write_text("hello")
    assert_restores(run, 20)
    assert (run / name).is_file()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_is_in_the_way_of_a_step_is_set_aside(run, make):
    make(run / "00000030")
    save(run, 30)
    assert (run / "00000030.bad").exists()
    assert_restores(run, 30)


def test_a_step_under_another_steps_name_is_found(run):
    shutil.copytree(run / "00000010", run / "00000030")
    log: list[str] = []
    restored = restore(run, log.append)
    assert restored is not None
    assert restored.step == 20
    assert "it is step 10 by its manifest" in log[0]


def test_a_bad_step_is_set_aside_under_a_free_name_and_saved_anew(run):
    for expected in ("00000020.bad", "00000020.bad2", "00000020.bad3"):
        (run / "00000020" / "manifest.json").write_text("{}")
        assert_restores(run, 10)
        assert (run / expected / "arrays").is_dir()
        save(run, 20)
        assert_restores(run, 20)


def test_a_bad_step_that_is_saved_again_without_a_restore_is_replaced(run):
    flip(run / "00000020" / files_of(run / "00000020")[0], 3)
    save(run, 20)
    assert (run / "00000020.bad").is_dir()
    assert_restores(run, 20)


def test_a_manifest_that_was_rewritten_by_hand_is_found(run):
    path = run / "00000020" / "manifest.json"
    path.write_text(path.read_text().replace('"step":20', '"step":20 '))
    with pytest.raises(CorruptFile, match="digest"):
        manifest.read(path.parent)
    assert_restores(run, 10)


# R5: nothing to trust


def test_every_step_bad_is_an_error_that_lists_each_every_time(run):
    (run / "00000010" / "manifest.json").unlink()
    (run / "00000020" / files_of(run / "00000020")[0]).write_bytes(b"")
    for _ in range(2):  # the second start must not begin afresh either
        with pytest.raises(CheckpointCorrupt) as caught:
            restore(run)
        lines = str(caught.value).splitlines()
        assert (
            lines[1]
            == "  00000020  arrays/_CHECKPOINT_METADATA holds other bytes than were written"
        )
        assert lines[2] == "  00000010  manifest.json is missing"
    assert sorted(path.name for path in run.iterdir()) == ["00000010", "00000020"]


def test_another_structure_is_no_damage(run):
    with Checkpoints(run) as checkpoints, pytest.raises(ConfigError, match="another state"):
        checkpoints.restore({"other": np.ones(3)})
    assert_restores(run, 20)


# R6: writes that fail


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_failed_save_cleans_up_and_the_next_one_works(run, stage, code):
    with Checkpoints(run, keep=2) as checkpoints:
        with failing(stage, OSError(code, os.strerror(code))):
            checkpoints.save(30, numbers(30))
            with pytest.raises(SaveFailed, match=rf"step 30 .*{os.strerror(code)}"):
                checkpoints.wait()
        assert sorted(path.name for path in run.iterdir()) == ["00000010", "00000020"]
        assert_restores(run, 20)
        checkpoints.save(30, numbers(30))
    assert_restores(run, 30)


def test_a_failed_save_is_reported_once_by_the_next_call_and_not_begun_again(run):
    with Checkpoints(run) as checkpoints:
        with failing("before the arrays", ValueError("RESOURCE_EXHAUSTED")):
            checkpoints.save(30, numbers(30))
            with pytest.raises(SaveFailed, match="step 30"):
                checkpoints.save(40, numbers(40))
        assert checkpoints.steps() == (10, 20)
        checkpoints.save(40, numbers(40))
        checkpoints.wait()
        assert checkpoints.steps() == (10, 20, 40)


def test_a_synchronous_save_fails_at_once(run):
    with Checkpoints(run, asynchronous=False) as checkpoints:
        with failing("before rename", OSError("no")), pytest.raises(SaveFailed, match="step 30"):
            checkpoints.save(30, numbers(30))
        assert issubclass(SaveFailed, OSError)


def test_arrays_that_orbax_wrote_wrongly_are_found_before_the_step_is_there(run, monkeypatch):
    write = checkpoint._write_arrays
    wrong = numbers(31)["params"]["kernel"]
    monkeypatch.setattr(
        checkpoint, "_write_arrays", lambda p, arrays: write(p, arrays | {"params/kernel": wrong})
    )
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.save(30, numbers(30))
        with pytest.raises(SaveFailed, match="params/kernel does not hold the values"):
            checkpoints.wait()
        assert checkpoints.steps() == (10, 20)


def test_an_old_step_that_cannot_be_deleted_fails_no_save(run, monkeypatch):
    log: list[str] = []

    def refuse(path, **_):
        if ".old-" in str(path):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with Checkpoints(run, keep=2, log=log.append) as checkpoints:
        checkpoints.save(30, numbers(30))
        checkpoints.wait()
        assert checkpoints.steps() == (20, 30)
    assert "could not be deleted" in log[0]
    monkeypatch.undo()
    save(run, 40)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_a_read_only_folder_still_restores(run, monkeypatch):
    flip(run / "00000020" / "manifest.json", 100)
    log: list[str] = []
    with failing("before rename", OSError(errno.EROFS, os.strerror(errno.EROFS))):
        restored = restore(run, log.append)
    assert restored is not None
    assert restored.step == 10
    assert "is passed over" in log[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission_is_a_failed_save(run):
    run.chmod(0o555)
    try:
        with Checkpoints(run) as checkpoints:
            checkpoints.save(30, numbers(30))
            with pytest.raises(SaveFailed, match="Permission denied"):
                checkpoints.wait()
            assert_restores(run, 20)
    finally:
        run.chmod(0o755)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# Orbax closes its event loop while TensorStore still has other writes to report as failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_a_failed_save_and_the_next_one_works(small_disk):
    large = numbers(30) | {"params": {"kernel": np.random.default_rng(0).random((512, 512))}}
    with Checkpoints(small_disk, keep=1) as checkpoints:
        checkpoints.save(20, numbers(20))
        checkpoints.save(30, large)
        with pytest.raises(SaveFailed, match=r"step 30 .*No space left") as raised:
            checkpoints.wait()
        assert "{" not in str(raised.value)  # TensorStore's specification is a screenful
        assert checkpoints.steps() == (20,)
        assert_restores(small_disk, 20)
        checkpoints.save(40, numbers(40))
    assert [path.name for path in small_disk.iterdir()] == ["00000040"]
    assert_restores(small_disk, 40)


def test_a_reader_removes_nothing_of_a_save_under_way(run):
    (run / ".00000030.new-1" / "arrays").mkdir(parents=True)
    assert_restores(run, 20)
    assert (run / ".00000030.new-1" / "arrays").is_dir()
    save(run, 30)  # a run's own save does
    assert not (run / ".00000030.new-1").exists()
