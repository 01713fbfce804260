"""Runs that are killed, stopped, moved and poisoned: they end as if undisturbed, or say so."""

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest

from resnetjax.data.datasets import open_dataset
from resnetjax.train.checkpoint import Checkpoints
from resnetjax.train.metrics_log import read_metrics
from resnetjax.train.setup import Setup
from tests.train.lives import RECIPE, TIMEOUT_S, Nursery, leaves, metrics, poll, steps_saved
from tests.train.tiny import RECIPE as TINY

SAY_EVERYTHING = {"resnetjax.train.progress._SECONDS_BETWEEN_LINES": 0.0}


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to."""

    folder: Path
    digest: str
    seconds: float
    save_seconds: float
    said: str


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    # The first compiles, the second reads what was compiled, as all that are killed do.
    lives = [nursery.start("--workdir", folder / "compiled")]
    digest = lives[0].finish()
    begun = time.monotonic()
    lives.append(nursery.start("--workdir", folder / "cached", patches=SAY_EVERYTHING))
    assert lives[1].finish() == digest
    seconds = time.monotonic() - begun
    assert_same_run(folder / "cached", folder / "compiled")
    return Undisturbed(
        folder=folder / "compiled",
        digest=digest,
        seconds=seconds,
        save_seconds=statistics.median(lives[1].spans("save")),
        said=lives[1].said(),
    )


def assert_same_run(run: Path, other: Path) -> None:
    assert (run / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert steps_saved(run)[-1] == steps_saved(other)[-1]
    assert leaves(run) == leaves(other)
    for model in ("best", "latest"):
        assert model_of(run / model) == model_of(other / model)


def model_of(folder: Path) -> tuple[str, dict[str, str], bytes]:
    """All of it but the order of the metadata, which safetensors draws anew in each process."""
    content = (folder / "model.safetensors").read_bytes()
    arrays = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:arrays])
    return (folder / "config.json").read_text(), header, content[arrays:]


# R1: kill -9


def assert_survives_kills(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path, count: int
) -> None:
    draw = random.Random(count)
    runs = [folder / "0"]
    killed = inside_saves = 0
    while killed < count:
        life = nursery.start("--workdir", runs[-1])
        if killed % 2:
            life.until("save begins", count=draw.randint(1, 2))
            time.sleep(draw.uniform(0, 0.9) * undisturbed.save_seconds)
        else:
            time.sleep(draw.uniform(0, 0.7) * undisturbed.seconds)
        life.send(signal.SIGKILL)
        if life.wait() == 0:
            runs.append(folder / str(len(runs)))
            continue
        killed += 1
        inside_saves += float("inf") in life.spans("save")
    assert inside_saves >= 0.3 * count
    for run in runs:
        assert nursery.start("--workdir", run).finish() == undisturbed.digest
        assert_same_run(run, undisturbed.folder)


def test_a_run_killed_at_random_ends_bit_identical(nursery, undisturbed, tmp_path):
    assert_survives_kills(nursery, undisturbed, tmp_path, count=8)


@pytest.mark.faults
def test_a_run_killed_fifty_times_at_random_ends_bit_identical(nursery, undisturbed, tmp_path):
    assert_survives_kills(nursery, undisturbed, tmp_path, count=50)


# R7: SIGTERM and SIGINT


MOMENTS = ("compiling begins", "step 1", "save begins", "evaluation begins", "")


def assert_stops_in_good_order(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path, count: int
) -> None:
    draw = random.Random(count)
    runs, stopped = [folder / "0"], []
    while len(stopped) < count:
        number = (signal.SIGTERM, signal.SIGINT)[len(stopped) % 2]
        before = max(steps_saved(runs[-1]), default=0)
        life = nursery.start("--workdir", runs[-1])
        # Not before it begins: until then there is nothing to save.
        moment = MOMENTS[len(stopped) % len(MOMENTS)]
        happened = life.until("compiling begins") and life.until(moment)
        time.sleep(draw.uniform(0, 0.02 if moment else 0.3) * undisturbed.seconds)
        life.send(number)
        code = life.wait()
        if "state sha256" in life.said() or not happened:  # it was at its end
            assert code in (0, 128 + number, -number), life.said()
            runs.append(folder / str(len(runs)))
            continue
        assert code == 128 + number, life.said()
        done = [int(line.split()[1]) for line in life.happened() if line.startswith("step ")]
        assert max(steps_saved(runs[-1]), default=0) == max(done, default=before)
        assert f"stopped by signal {number.value} after step" in life.said()
        assert "Traceback" not in life.said()
        stopped.append(moment)
    for run in runs:
        assert nursery.start("--workdir", run).finish() == undisturbed.digest
        assert_same_run(run, undisturbed.folder)


def test_a_run_that_is_told_to_stop_saves_its_last_step(nursery, undisturbed, tmp_path):
    assert_stops_in_good_order(nursery, undisturbed, tmp_path, count=3)


@pytest.mark.faults
def test_a_run_that_is_told_to_stop_fifty_times_loses_no_step(nursery, undisturbed, tmp_path):
    assert_stops_in_good_order(nursery, undisturbed, tmp_path, count=50)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("-m resnetjax train", signal.SIGINT),
        ("scripts/train.py", signal.SIGTERM),
    ],
)
@pytest.mark.faults
def test_the_command_line_stops_for_ctrl_c_and_for_a_scheduler(nursery, tmp_path, command, number):
    arguments = ("--workdir", str(tmp_path / "run"), "--epochs", "1000", "--data.workers", "1")
    with subprocess.Popen(
        [sys.executable, *command.split(), str(RECIPE), *arguments],
        cwd=Path(__file__).parents[2],
        env=nursery.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        poll(lambda: bool(steps_saved(tmp_path / "run")), "no checkpoint")
        os.killpg(process.pid, number)  # as a terminal does: the workers get it too
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number, said
    step = steps_saved(tmp_path / "run")[-1]
    assert said.splitlines()[-1:] == [
        f"stopped by signal {number.value} after step {step}; the same command goes on from there"
    ]
    assert "Traceback" not in said
    poll(lambda: not processes_of_group(process.pid), "a worker is left")


def processes_of_group(group: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(path.parent.name)
    return found


BUSY_IN_C = """
import ctypes, sys
from resnetjax.train.signals import StopSignals

libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
with StopSignals():
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)  # for ever, as XLA may compile for minutes
"""


def test_a_second_signal_ends_a_run_at_once_whatever_it_is_doing():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_IN_C], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.wait(TIMEOUT_S)
    assert process.returncode in (130, 143)  # of two that are pending, the kernel chooses


@pytest.mark.faults
def test_an_evaluation_that_was_stopped_is_made_once(nursery, undisturbed, tmp_path):
    life = nursery.start("--workdir", tmp_path, stop_in_evaluation_after=33)
    assert life.wait() == 143, life.said()
    assert steps_saved(tmp_path)[-1] == 33
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")[1]] == [11, 22]
    for _ in range(2):  # nothing is left for the second, which finds it in the log
        assert nursery.start("--workdir", tmp_path).finish() == undisturbed.digest
        assert metrics(tmp_path) == metrics(undisturbed.folder)


def test_the_first_step_may_take_longer_than_lines_are_apart(undisturbed):
    for step in (1, 2, 33):
        assert f"step {step} · loss " in undisturbed.said


# R9: other devices, other workers


def stop_at(life, step: int) -> None:
    life.until(f"step {step}")
    life.send(signal.SIGTERM)
    assert life.wait() == 143, life.said()


@pytest.mark.faults
def test_a_run_goes_on_with_any_number_of_workers_and_from_another_path(
    nursery, undisturbed, tmp_path
):
    stop_at(nursery.start("--workdir", tmp_path, "--data.workers", "2"), 12)
    copy = ("--data.path", digits(tmp_path / "copy.npz"), "--data.workers", "1")
    life = nursery.start("--workdir", tmp_path, *copy, "--data.prefetch", "7")
    assert life.finish() == undisturbed.digest
    assert metrics(tmp_path) == metrics(undisturbed.folder)


def assert_goes_on_with_devices(
    nursery: Nursery, undisturbed: Undisturbed, folder: Path, counts: tuple[tuple[int, int], ...]
) -> None:
    for step, (devices, model) in enumerate(counts):
        life = nursery.start("--workdir", folder, "--parallelism.model", model, devices=devices)
        if step + 1 < len(counts):
            stop_at(life, 8 * (step + 1))
        else:
            life.finish()
    one, other = metrics(folder), metrics(undisturbed.folder)
    assert [line["examples"] for line in one] == [line["examples"] for line in other]
    for name in ("loss", "grad_norm", "learning_rate", "test_loss"):
        values = [[line[name] for line in lines if name in line] for lines in (one, other)]
        # Sums in another order, and 33 steps in which the difference may grow.
        np.testing.assert_allclose(*values, rtol=1e-3, err_msg=name)


@pytest.mark.faults
def test_a_run_of_eight_devices_goes_on_with_one(nursery, undisturbed, tmp_path):
    assert_goes_on_with_devices(nursery, undisturbed, tmp_path, ((8, 2), (1, 1)))


@pytest.mark.faults
def test_a_run_goes_on_with_any_number_of_devices(nursery, undisturbed, tmp_path):
    counts = ((1, 1), (8, 2), (8, 1), (4, 4))
    assert_goes_on_with_devices(nursery, undisturbed, tmp_path, counts)


# Promise 10: another recipe


@pytest.mark.slow
def test_a_run_with_another_recipe_goes_on_only_if_that_is_allowed(nursery, undisturbed, tmp_path):
    run = ("--workdir", shutil.copytree(undisturbed.folder, tmp_path / "run"))
    others = ("--optimizer.learning-rate", "0.2", "--seed", "1", "--batch-size", "64")
    life = nursery.start(*run, *others, "--data.path", digits(tmp_path / "fewer.npz", count=999))
    assert life.wait() == 2, life.said()
    assert re.findall(r"^  (.*)$", life.said(), re.MULTILINE) == [
        "batch_size: 128 -> 64",
        "optimizer.learning_rate: 0.1 -> 0.2",
        "seed: 0 -> 1",
        "training examples: 1438 -> 999",
    ]
    assert "Traceback" not in life.said()
    assert_same_run(tmp_path / "run", undisturbed.folder)

    wider = (*run, "--augmentation.crop-padding", "2")
    life = nursery.start(*wider)
    assert life.wait() == 2, life.said()
    assert "  augmentation.crop_padding: 1 -> 2\n" in life.said()
    life = nursery.start(*wider, "--allow-changes")
    assert life.finish() == undisturbed.digest
    assert "resumed at step 33 of 33" in life.said()


def digits(path: Path, *, count: int | None = None) -> Path:
    """The same digits in a file of their own, or some of those to train on."""
    arrays = {}
    for split, most in (("train", count), ("test", None)):
        opened = open_dataset("digits", split=split)
        examples = [opened[index] for index in range(len(opened))]
        arrays[f"x_{split}"] = np.stack([digit.image for digit in examples[:most]])
        arrays[f"y_{split}"] = np.array([digit.label for digit in examples[:most]])
    np.savez(path, **arrays)
    return path


# R12: values that are not finite


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        # The update leaves finite parameters, which give a loss that is not.
        (
            "1e30",
            r"step 6: gradient of \S+ is not finite, for the 4th step in a row",
        ),
        # The update itself is not finite.
        pytest.param(
            "1e39",
            r"step 4: updated parameter \S+ is not finite, for the 4th step in a row",
            marks=pytest.mark.faults,
        ),
    ],
)
def test_values_that_stay_infinite_end_the_run_and_reach_no_checkpoint(
    nursery, tmp_path, rate, message
):
    every = ("--checkpoint.every-steps", "1", "--checkpoint.max-skipped", "3")
    life = nursery.start("--workdir", tmp_path, "--optimizer.learning-rate", rate, *every)
    assert life.wait() == 2, life.said()
    assert re.search(f"{message}; the examples were ", life.said()), life.said()
    assert "Traceback" not in life.said()
    recipe = replace(TINY, optimizer=replace(TINY.optimizer, learning_rate=float(rate)))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.restore(Setup(recipe).state_shapes)
    assert restored
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.state))
