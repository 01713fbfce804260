"""Two real processes as one run: the same numbers as one, one folder, and one end for both."""

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.train.lives import Life, Nursery, free_port, leaves, metrics, steps_saved

DEADLINE_S = 30.0  # within which a process notices that its peer is gone


def start(nursery: Nursery, run: Path, *arguments: object) -> list[Life]:
    several = ("--coordinator", f"localhost:{free_port()}", "--processes", 2)
    return [
        nursery.start("--workdir", run, *arguments, *several, "--process", index)
        for index in range(2)
    ]


def finish(lives: list[Life]) -> None:
    codes = [life.wait() for life in lives]
    assert codes == [0, 0], "\n".join(life.said() for life in lives)
    told = ["test top-1" in life.said() or "resumed at" in life.said() for life in lives]
    assert told == [True, False], lives[1].said()  # each line is there once


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("two") / "run"
    finish(start(nursery, run))
    return run


def assert_same_run(run: Path, other: Path) -> None:
    assert (run / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert leaves(run) == leaves(other)


def assert_same_numbers(run: Path, other: Path) -> None:
    one, two = metrics(run), metrics(other)
    assert [line["examples"] for line in one] == [line["examples"] for line in two]
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for name in ("loss", "grad_norm", "learning_rate", "test_loss"):
        values = [[line[name] for line in lines if name in line] for lines in (one, two)]
        # Sums in another order, and 33 steps in which the difference may grow.
        np.testing.assert_allclose(*values, rtol=1e-3, err_msg=name)


def test_two_processes_train_as_one_with_two_devices(nursery, undisturbed, tmp_path):
    nursery.start("--workdir", tmp_path, devices=2).finish()
    assert_same_numbers(undisturbed, tmp_path)
    assert steps_saved(undisturbed) == steps_saved(tmp_path)
    # One folder, with nothing of a second process in it.
    names = [sorted(path.name for path in run.iterdir()) for run in (undisturbed, tmp_path)]
    assert names[0] == names[1]


@pytest.mark.faults
def test_processes_that_share_the_parameters_train_alike(nursery, undisturbed, tmp_path):
    finish(start(nursery, tmp_path, "--parallelism.model", 2, "--data.workers", 1))
    assert_same_numbers(undisturbed, tmp_path)


def test_a_run_that_is_refused_ends_both_processes(nursery, undisturbed, tmp_path):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    lives = start(nursery, undisturbed, "--seed", 1)
    assert [life.wait() for life in lives] == [2, 2], "\n".join(life.said() for life in lives)
    assert all("seed: 0 -> 1" in life.said() for life in lives)
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def stop_one(nursery: Nursery, run: Path, *, which: int, step: int) -> None:
    lives = start(nursery, run)
    lives[0].until(f"step {step}")
    lives[which].send(signal.SIGTERM)
    assert [life.wait() for life in lives] == [143, 143], [life.said() for life in lives]
    said = [life.said().rpartition("after step ")[2] for life in lives]
    assert said[0] == said[1]
    assert steps_saved(run)[-1] == int(said[0].split(";")[0])


def kill_one(nursery: Nursery, run: Path, *, which: int, step: int) -> None:
    lives = start(nursery, run)
    lives[0].until(f"step {step}")
    lives[which].send(signal.SIGKILL)
    begun = time.monotonic()
    codes = [life.wait() for life in lives]
    assert time.monotonic() - begun < DEADLINE_S
    assert codes[which] == -signal.SIGKILL
    assert codes[1 - which] != 0


@pytest.mark.faults
def test_a_signal_to_one_stops_both(nursery, undisturbed, tmp_path):
    stop_one(nursery, tmp_path, which=1, step=2)
    finish(start(nursery, tmp_path))
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.faults
def test_the_death_of_one_ends_both(nursery, undisturbed, tmp_path):
    kill_one(nursery, tmp_path, which=1, step=18)  # the coordinator has to notice by itself
    finish(start(nursery, tmp_path))
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(5))
def test_signals_and_deaths_at_random_leave_no_trace(nursery, undisturbed, tmp_path, seed):
    draw = random.Random(seed)
    stop_one(nursery, tmp_path, which=seed % 2, step=draw.randint(1, 5))
    kill_one(nursery, tmp_path, which=seed % 2, step=draw.randint(12, 18))
    stop_one(nursery, tmp_path, which=1 - seed % 2, step=draw.randint(20, 22))
    finish(start(nursery, tmp_path))
    assert_same_run(tmp_path, undisturbed)
