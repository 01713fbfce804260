"""The line that follows a run."""

import io

import pytest

from resnetjax.train import progress as module
from resnetjax.train.progress import Progress, Spent, peak_flops

METRICS = {"loss": 1.23456, "accuracy": 0.5}


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
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))


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
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
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
