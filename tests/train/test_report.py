"""The log of a run, the line that follows it, and the curves."""

import errno
import io
import json
import math
import os
import sys

import pytest
from PIL import Image

from resnetjax.errors import MissingExtra
from resnetjax.train import report
from resnetjax.train.report import (
    MetricsLog,
    Progress,
    Spent,
    draw_curves,
    peak_flops,
    read_metrics,
    scalars,
)

METRICS = {"loss": 1.23456, "accuracy": 0.5}


def step_line(step: int, loss: float = 1.0) -> dict:
    return {"step": step, "loss": loss, "accuracy": 0.5, "learning_rate": 0.1, "grad_norm": 2.0}


def test_line(step: int) -> dict:
    return {"step": step, "top1": 0.5, "top5": 0.9, "test_loss": 1.1}


test_line.__test__ = False


def write(path, *lines, step=0) -> None:
    log = MetricsLog(path, step=step)
    for line in lines:
        log.write(line)
    log.close()


# ---- The log.


def test_a_run_that_resumes_cuts_off_what_came_after_the_step_it_resumes_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, step_line(1), step_line(2), test_line(2), step_line(3), test_line(3))
    write(path, step_line(3, loss=7.0), step=2)
    steps, evaluations = read_metrics(path)
    assert [(line["step"], line["loss"]) for line in steps] == [(1, 1), (2, 1), (3, 7)]
    assert [line["step"] for line in evaluations] == [2]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_killed_run_leaves_the_same_log_as_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    lines = [step_line(step, loss=1 / step) for step in range(1, 6)]
    write(whole, *lines)
    write(killed, *lines[:4])
    killed.write_bytes(killed.read_bytes()[:-9])
    write(killed, *lines[3:], step=3)
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step"', "\0\0\0", "null", "[3]", "{}"])
def test_a_torn_last_line_is_not_a_step(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, step_line(1), step_line(2))
    with path.open("a") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(path)[0]] == [1, 2]
    write(path, step_line(3), step=2)
    assert [line["step"] for line in read_metrics(path)[0]] == [1, 2, 3]


def test_what_a_full_disk_took_half_of_is_a_whole_line_once_there_is_room(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, step=0)

    class Full:
        """A file on a disk that has room for nine more bytes."""

        def __init__(self, file, room=9):
            self.file, self.room = file, room

        def write(self, content):
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken, self.room = self.file.write(content[: self.room]), 0
            return taken

    with monkeypatch.context() as patch:
        patch.setattr(log, "_file", Full(log._file))
        for step in range(1, 200):
            log.write(step_line(step))
        with pytest.raises(OSError, match="No space left"):
            log.flush()
    assert path.stat().st_size == 9
    log.flush()
    assert [line["step"] for line in read_metrics(path)[0]] == [*range(1, 200)]
    log.close()


def test_every_line_is_json_even_if_a_number_is_not_finite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, step_line(1, loss=math.nan), step_line(2, loss=-math.inf))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = [json.loads(text, parse_constant=refuse) for text in path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, None]


def test_a_process_that_is_not_the_first_writes_no_log(tmp_path):
    write(None, step_line(1))
    assert read_metrics(tmp_path / "metrics.jsonl") == ([], [])


# ---- The line.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    for variable in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a minute whenever it is asked."""
    times = iter(range(0, 10**6, 60))
    monkeypatch.setattr(report.time, "monotonic", lambda: next(times))


def progress(stream=None, **fields) -> Progress:
    defaults = {"total_steps": 112_590, "steps_per_epoch": 1251, "batch_size": 1024}
    return Progress(**{**defaults, "step_flops": 2.5e13, "peak": None, "stream": stream, **fields})


SPENT = Spent(steps=10, data=0.1, step=0.85, other=0.05)


def test_the_lines_say_where_a_run_is_how_fast_it_is_and_when_it_ends():
    where, rates = progress(peak=989e12).lines(2502, METRICS, SPENT)
    assert where == (
        "epoch 2.00/90 · step 2502 · loss 1.235 · top-1 50.0% · 3 h 03 min left"
    )  # 110,088 steps of 0.1 s
    # 2.5e13 / 0.1 s / 989e12
    assert rates == ("10,240 images/s · 100 ms/step (data 10% step 85% other 5%) · MFU 25.3%")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_a_quiet_line_counts_and_shows_nothing(clock, stream):
    with progress(stream, quiet=True) as line:
        for step in (1, 2):
            line.step(step, METRICS, SPENT)
        line.say("resumed")
        line.show("evaluating")
    assert stream.getvalue() == ""
    assert line.spent == SPENT


def test_a_chip_whose_peak_is_not_known_has_no_utilisation():
    assert "MFU" not in progress().lines(1, METRICS, SPENT)[1]


def test_without_a_measured_step_there_are_no_rates():
    assert progress().lines(1, METRICS, Spent()) == (
        "epoch 0.00/90 · step 1 · loss 1.235 · top-1 50.0%",
    )


@pytest.mark.parametrize("step", [1, 749_999])
def test_the_lines_of_a_long_run_fit_on_eighty_columns(step):
    long = progress(peak=1e12, total_steps=750_600, batch_size=32_768)
    lines = long.lines(step, {"loss": 123.4567, "accuracy": 1.0}, Spent(steps=1, data=1.0))
    assert all(len(line) <= 80 for line in lines), lines


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(59.6, "1 min 00 s"), (3661, "1 h 01 min"), (86400 * 3 + 7200, "3 d 2 h")],
)
def test_the_time_that_is_left_is_told_in_two_units(seconds, left):
    line = progress(total_steps=2).lines(1, METRICS, Spent(steps=1, step=seconds))[0]
    assert line.endswith(f" · {left} left")


def test_without_a_terminal_there_is_a_whole_line_now_and_then(clock):
    stream = io.StringIO()
    with progress(stream) as shown:
        shown.show("evaluating")
        shown.step(1, METRICS, Spent(steps=1, step=30.0))  # compiles
        shown.step(2, METRICS, Spent(steps=1, step=0.1))
        shown.step(3, METRICS, Spent(steps=1, step=0.2))
    first, second, third = stream.getvalue().splitlines()
    assert first == "epoch 0.00/90 · step 1 · loss 1.235 · top-1 50.0%"
    assert " · 10,240 images/s · 100 ms/step (data 0% step 100% other 0%)" in second
    assert " · 5,120 images/s · 200 ms/step" in third
    assert shown.spent == Spent(steps=2, step=pytest.approx(0.3))


def test_lines_are_few_where_nobody_watches(monkeypatch):
    monkeypatch.setattr(report.time, "monotonic", lambda: 0.0)
    stream = io.StringIO()
    with progress(stream) as shown:
        for step in range(100):
            shown.step(step, METRICS, SPENT)
    assert stream.getvalue() == ""


def test_on_a_terminal_the_lines_are_rewritten_in_place_and_gone_in_the_end(clock):
    stream = Terminal()
    with progress(stream, peak=989e12) as shown:
        for step in (1, 2, 3):
            shown.step(step, METRICS, Spent(steps=1, step=0.1))
        shown.show("x" * 200)
        shown.say("a line that is longer than the terminal " + "y" * 60)
    screen = Screen()
    screen.feed(stream.getvalue())
    text = [line.rstrip() for line in screen.lines if line.strip()]
    assert text == ["a line that is longer than the terminal " + "y" * 40, "y" * 20]
    assert screen.seen("10,240 images/s")
    assert screen.seen("x" * 79 + "…")


class Screen:
    """As much of a terminal of 80 columns as rich makes use of."""

    def __init__(self) -> None:
        self.lines, self.row, self.column, self.states = [""], 0, 0, []

    def seen(self, text: str) -> bool:
        return any(text in state for state in self.states)

    def feed(self, text: str) -> None:
        i = 0
        while i < len(text):
            if text[i] == "\x1b":
                end = next(j for j in range(i + 2, len(text)) if text[j].isalpha())
                self._control(text[i + 2 : end], text[end])
                i = end
            elif text[i] == "\n":
                self._to(self.row + 1)
                self.column = 0
            elif text[i] == "\r":
                self.column = 0
            else:
                if self.column == 80:
                    self._to(self.row + 1)
                    self.column = 0
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + text[i] + line[self.column + 1 :]
                self.column += 1
            i += 1
            self.states.append(self.lines[self.row])

    def _control(self, number: str, kind: str) -> None:
        if kind == "A":
            self.row = max(0, self.row - int(number or 1))
        elif kind == "K":
            self.lines[self.row] = ""

    def _to(self, row: int) -> None:
        self.row = row
        self.lines += [""] * (row + 1 - len(self.lines))


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_the_peak_of_a_chip_is_its_makers(kind, tera):
    assert peak_flops(kind) == tera * 1e12


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L400", "NVIDIA A1000", "TPU v40", "", "NVIDIA H1"])
def test_a_chip_that_only_sounds_like_one_has_no_peak(kind):
    assert peak_flops(kind) is None


# ---- Curves and TensorBoard.


def test_curves_are_drawn_of_steps_and_evaluations(tmp_path):
    log = tmp_path / "metrics.jsonl"
    spoilt = step_line(30) | {"loss": math.nan, "grad_norm": math.inf}
    write(log, *(step_line(i, 9 / i) for i in range(1, 30)), spoilt, test_line(30))
    draw_curves(log, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        image.load()
        assert image.size == (1200, 480)
        assert len(image.convert("RGB").getcolors(2**20)) > 100


def test_curves_of_a_run_without_a_single_step_are_empty(tmp_path):
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1200, 480)


def test_without_matplotlib_or_tensorboardx_the_extra_is_named(tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "tensorboardX"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"resnetjax\[plots\]"):
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with pytest.raises(MissingExtra, match=r"resnetjax\[tensorboard\]"), scalars(tmp_path):
        pass


def test_smoothing_keeps_a_constant_and_widens_with_the_run():
    assert report._smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    jump = [0.0] * 10_000 + [1.0] * 10_000
    after = report._smoothed(jump)
    assert after[10_400] == pytest.approx(1 - 1 / math.e, abs=0.01)  # a fiftieth later
    assert report._smoothed([]) == []
