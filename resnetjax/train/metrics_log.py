"""What is kept of a run: a log of every step and evaluation, its curves, TensorBoard's files."""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resnetjax.errors import MissingExtra

_BUFFERED_BYTES = 8192


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
