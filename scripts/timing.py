"""What every benchmark needs: calls timed in turn, spreads, peak memory, versions and hardware."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def timed_in_turn(
    calls: dict[str, Callable[[], Any]],
    *,
    runs: int,
    limit_s: float = float("inf"),
    clock: Callable[[Callable[[], Any]], float] = seconds_of,
) -> dict[str, list[float]]:
    """Seconds of each call, as `clock` has them, A B A B ..., after two untimed rounds.

    Past `limit_s` no further round is begun, once three are timed; the untimed ones count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for run in range(-2, runs):
        if run >= 3 and time.perf_counter() - begun > limit_s:
            break
        for name, call in calls.items():
            taken = clock(call)
            if run >= 0:
                seconds[name].append(taken)
    return seconds


def extra_peak(call: Callable[[], Any]) -> int:
    """Bytes of resident memory at a call's peak above what was there before (Linux)."""
    before = resident_bytes()
    return peak_bytes(call) - before


def peak_bytes(call: Callable[[], Any]) -> int:
    """Bytes of resident memory at a call's peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present
    kept = call()
    del kept
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """Bytes of resident memory at present (Linux)."""
    return _status_bytes("VmRSS")


def spread(values: list[float]) -> dict[str, float]:
    """Median, least, greatest and number of some measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }


def environment(*packages: str) -> dict[str, Any]:
    """Versions and hardware."""
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    return {
        "python": platform.python_version(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        **{name: importlib.metadata.version(name) for name in packages if is_installed(name)},
    }


def is_installed(package: str) -> bool:
    """Whether a distribution of this name is there."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def report(result: dict[str, Any], out: Path | None) -> None:
    """Prints the result as JSON, and writes it where asked."""
    print(json.dumps(result, indent=1))
    write(result, out)


def write(result: dict[str, Any], out: Path | None) -> None:
    """Writes the result as JSON where asked."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
