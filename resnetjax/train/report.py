"""What a person sees of a run: a line of progress, a log of every step, curves."""

import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from resnetjax.errors import MissingExtra

# Peak arithmetic of one device in bfloat16, in FLOP/s, dense: the makers' data sheets. A device is
# a core on TPU v2 and v3, a chip from v4 on.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "A10G": 70e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
    "L40S": 362e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
}

_SECONDS_BETWEEN_LINES = 10.0  # where nobody watches a terminal


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s in bfloat16 of a kind of device, or None where it is not known.

    Example:
        >>> peak_flops("NVIDIA H200")
        989000000000000.0
        >>> peak_flops("cpu")
    """
    words = device_kind.split()
    known = [
        name
        for name in PEAK_FLOPS
        if any(words[i : i + len(name.split())] == name.split() for i in range(len(words)))
        or any(f"{name}-" in word for word in words)  # "A100-SXM4-40GB"
    ]
    return PEAK_FLOPS[max(known, key=len)] if known else None


class MetricsLog:
    """`metrics.jsonl`: a JSON object for each step and for each evaluation.

    A run that resumes cuts off what was logged after the step that it resumes from, so that a run
    that was killed leaves the same lines as one that was not. A number that is not finite is null,
    for JSON has none.

    Args:
        path: The file; None writes nothing.
        step: That the run starts from.
    """

    def __init__(self, path: Path | None, *, step: int) -> None:
        self._file: io.FileIO | None = None
        self._unwritten = bytearray()
        if path is None:
            return
        kept = [line for line in _lines(path) if line["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
        os.replace(partial, path)
        self._file = path.open("ab", buffering=0)

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends an object, which needs a `step`."""
        if self._file:
            text = json.dumps({name: _finite(value) for name, value in line.items()})
            self._unwritten += f"{text}\n".encode()
            if len(self._unwritten) > _BUFFERED_BYTES:
                with contextlib.suppress(OSError):  # `flush` says so
                    self._put()

    def flush(self) -> None:
        """Puts all that was written on disk; what a full disk does not take is kept for later.

        Raises:
            OSError: It cannot be written.
        """
        if self._file:
            self._put()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes what the disk takes, and closes."""
        with contextlib.suppress(OSError):
            self.flush()
        if self._file:
            self._file.close()

    def _put(self) -> None:
        while self._file and self._unwritten:
            del self._unwritten[: self._file.write(self._unwritten)]


_BUFFERED_BYTES = 8192


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of steps and those of evaluations."""
    lines = _lines(path)
    return [line for line in lines if "loss" in line], [
        line for line in lines if "test_loss" in line
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; the last may have been cut off."""
    found = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        found.append(line)
    return found


class Progress:
    """What follows a run: two lines in place on a terminal, else one now and then.

    Args:
        total_steps: Of the run.
        steps_per_epoch: Of it.
        batch_size: Over all devices.
        step_flops: Arithmetic of a step over all devices, forward and backward.
        peak: Of all devices together in FLOP/s, or None where it is not known.
        stream: Where the line goes; stderr by default.
        quiet: Show nothing: another process does.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        step_flops: float,
        peak: float | None,
        stream: TextIO | None = None,
        quiet: bool = False,
    ) -> None:
        self._total, self._epoch, self._batch = total_steps, steps_per_epoch, batch_size
        self._flops, self._peak = step_flops, peak
        self._console = Console(file=stream or sys.stderr, highlight=False, quiet=quiet)
        self._live: Live | None = None
        self._now, self._before = Spent(), Spent()
        self._shown = time.monotonic()
        self._compiled = False

    def __enter__(self) -> "Progress":
        if self._console.is_terminal and not self._console.quiet:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def spent(self) -> "Spent":
        """On all steps so far."""
        return self._now

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self._console.print(Text(text), soft_wrap=True)

    def show(self, text: str) -> None:
        """Shows a passing state in the line's place, on a terminal."""
        if self._live:
            # A line that the terminal breaks would be counted as one, and not be wiped off.
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def step(self, step: int, metrics: Mapping[str, float], spent: "Spent") -> None:
        """Counts what was spent on a step, and shows the line when it is time.

        The first step of a process is left out: it compiles.
        """
        if self._compiled:
            self._now = self._now + spent
        self._compiled = True
        between = 0.2 if self._live else _SECONDS_BETWEEN_LINES
        if time.monotonic() - self._shown < between:
            return
        lines = self.lines(step, metrics, self._now - self._before)
        if self._live:
            self.show("\n".join(lines))
        else:
            self.say(" · ".join(lines))
        self._shown, self._before = time.monotonic(), self._now

    def lines(self, step: int, metrics: Mapping[str, float], spent: "Spent") -> tuple[str, ...]:
        """Where the run is, and its rates from what was spent, if anything was.

        Each has room on a terminal of 80 columns.
        """
        where = (
            f"epoch {step / self._epoch:.2f}/{self._total / self._epoch:.4g} · step {step} · "
            f"loss {metrics['loss']:.4g}"
        )
        if "accuracy" in metrics:
            where += f" · top-1 {metrics['accuracy']:.1%}"
        if not spent.steps:
            return (where,)
        per_step = spent.seconds / spent.steps or 1e-9
        shares = " ".join(f"{kind} {share:.0%}" for kind, share in spent.shares().items())
        mfu = f" · MFU {self._flops / per_step / self._peak:.1%}" if self._peak else ""
        rates = f"{self._batch / per_step:,.0f} images/s · {1000 * per_step:.0f} ms/step ({shares})"
        return f"{where} · {_duration((self._total - step) * per_step)} left", rates + mfu


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of the host's time, by what it did.

    Attributes:
        steps: How many steps it was spent on.
        data: Waiting for batches.
        step: Waiting for the devices.
        other: Everything else: dispatch, logging, progress.
    """

    steps: int = 0
    data: float = 0.0
    step: float = 0.0
    other: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.data + self.step + self.other

    def shares(self) -> dict[str, float]:
        """Of each kind."""
        total = self.seconds or 1e-9
        return {kind: getattr(self, kind) / total for kind in ("data", "step", "other")}

    def __add__(self, more: "Spent") -> "Spent":
        return self._with(more, 1)

    def __sub__(self, less: "Spent") -> "Spent":
        return self._with(less, -1)

    def _with(self, other: "Spent", sign: int) -> "Spent":
        return Spent(
            **{name: value + sign * getattr(other, name) for name, value in vars(self).items()}
        )


@contextlib.contextmanager
def scalars(folder: Path) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function of step and numbers that writes them for TensorBoard.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MissingExtra(
            '--tensorboard needs tensorboardX: pip install "resnetjax[tensorboard]"'
        ) from error
    writer = SummaryWriter(str(folder))

    def write(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        writer.close()


def draw_curves(log: Path, path: Path) -> None:
    """Loss, accuracy and learning rate of a `metrics.jsonl`, as a PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra('curves need matplotlib: pip install "resnetjax[plots]"') from error
    steps, evaluations = read_metrics(log)
    steps = [line for line in steps if line["loss"] is not None]  # of skipped ones
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    at = [line["step"] for line in steps]
    loss.plot(at, [line["loss"] for line in steps], alpha=0.3, color="tab:blue")
    loss.plot(at, _smoothed([line["loss"] for line in steps]), color="tab:blue", label="training")
    tested = [line for line in evaluations if line["test_loss"] is not None]
    loss.plot(
        [line["step"] for line in tested],
        [line["test_loss"] for line in tested],
        "o-",
        color="tab:orange",
        label="test",
        markersize=3,
    )
    loss.set(xlabel="step", ylabel="loss", title="Loss")
    rate = loss.twinx()
    rate.plot(at, [line["learning_rate"] for line in steps], ":", color="gray", linewidth=1)
    rate.set(ylabel="learning rate (dotted)")
    figure_of = next((name for name in _FIGURES if evaluations and name in evaluations[0]), "top1")
    title, factor = _FIGURES[figure_of]
    if steps and "accuracy" in steps[0]:
        right = _smoothed([line["accuracy"] for line in steps])
        accuracy.plot(at, [factor * share for share in right],
                      color="tab:blue", label="training, with augmentation")  # fmt: skip
    accuracy.plot(
        [line["step"] for line in evaluations],
        [factor * line[figure_of] for line in evaluations],
        "o-",
        color="tab:orange",
        label="test",
        markersize=3,
    )
    accuracy.set(xlabel="step", ylabel=title, title=title.split(" in ")[0].capitalize())
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


_FIGURES = {
    "top1": ("top-1 accuracy in %", 100),
    "macro_f1": ("F1, mean over the labels", 1),
    "r2": ("R2, mean over the outputs", 1),
}


def _smoothed(values: list[float]) -> list[float]:
    keep = max(0.95, 1 - 50 / max(len(values), 1))  # over a fiftieth of the run, or twenty steps
    average, found = 0.0, []
    for count, value in enumerate(values, 1):
        average = keep * average + (1 - keep) * value
        found.append(average / (1 - keep**count))
    return found


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
