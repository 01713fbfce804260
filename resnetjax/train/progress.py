"""The line that follows a run: where it is, how fast, and what its time goes to."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
