"""Trainings in processes of their own, to be killed: what a test sees of them and does to them."""

import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from resnetjax.train import manifest

TIMEOUT_S = 180
RECIPE = Path(__file__).with_name("tiny.py")


class Nursery:
    """Starts trainings from a process that has imported everything already.

    Args:
        folder: Gets outputs and the cache of compiled steps, which all of them share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        self._running: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_and_die.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def close(self) -> None:
        for pid in self._running:  # a test has failed
            os.kill(pid, signal.SIGKILL)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(TIMEOUT_S)

    @property
    def environment(self) -> dict[str, str]:
        """For interpreters of their own to share the cache."""
        return {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(
        self,
        *arguments: object,
        recipe: Path = RECIPE,
        devices: int = 1,
        patches: Mapping[str, Any] = MappingProxyType({}),
        environment: Mapping[str, str] = MappingProxyType({}),
        stop_in_evaluation_after: int | None = None,
    ) -> "Life":
        """`resnetjax train` with these arguments.

        Args:
            arguments: After the recipe.
            recipe: Its file.
            devices: How many the child sees.
            environment: Variables that it sees beside ours.
            patches: Values of module-level names, such as "resnetjax.data.loader.STALL_SECONDS".
            stop_in_evaluation_after: Step at whose evaluation it sends itself SIGTERM.
        """
        self._count += 1
        life = Life(self, self.folder / f"{self._count}.txt", self.folder / f"{self._count}.events")
        request = {
            "arguments": [str(recipe), *map(str, arguments)],
            "environment": {
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "JAX_PLATFORMS": "cpu",
                **environment,
            },
            "cache": str(self.folder / "cache"),
            "patches": dict(patches),
            "stop": stop_in_evaluation_after,
            "output": str(life.output),
            "events": str(life.events),
        }
        life.pid = int(self._ask(request))
        self._running.add(life.pid)
        return life

    def wait(self, pid: int) -> int:
        """The exit code of a life, below 0 for the signal that ended it."""
        code = int(self._ask({"wait": pid}))
        self._running.remove(pid)
        return code

    def _ask(self, request: dict[str, Any]) -> str:
        assert self._process.stdin
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(TIMEOUT_S), "a run does not end"
        return self._process.stdout.readline().strip()


@dataclass
class Life:
    """One process of a run."""

    nursery: Nursery
    output: Path
    events: Path
    pid: int = 0

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def happened(self) -> list[str]:
        return self.events.read_text().splitlines() if self.events.exists() else []

    def spans(self, what: str) -> list[float]:
        """Seconds that each of something took; one that did not end took for ever."""
        times = [
            [float(line.split()[-1]) for line in self.happened() if line.startswith(start)]
            for start in (f"{what} begins", f"{what} ends")
        ]
        ends = [*times[1], *[float("inf")] * (len(times[0]) - len(times[1]))]
        return [end - begin for begin, end in zip(times[0], ends, strict=True)]

    def ended(self) -> bool:
        """Whether it did: what has ended is still to be waited for."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def until(self, event: str, *, count: int = 1) -> bool:
        """Waits for an event; False if the process ended before."""

        def happened() -> bool:
            return sum(line.startswith(event) for line in self.happened()) >= count

        poll(lambda: happened() or self.ended(), f"{event}: {self.said()}")
        return happened()

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        return self.nursery.wait(self.pid)

    def finish(self) -> str:
        """The digest that it prints at its end."""
        code = self.wait()
        assert code == 0, self.said()
        return re.findall(r"^state sha256 (\w{64})$", self.said(), re.MULTILINE)[0]


def poll(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


@contextlib.contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    with contextlib.closing(Nursery(folder)) as opened:
        yield opened


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_saved(run: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in run.glob("checkpoints/[0-9]*/manifest.json"))


def leaves(run: Path) -> Any:
    """Digest, shape and dtype of every leaf of the last checkpoint."""
    return manifest.read(run / f"checkpoints/{steps_saved(run)[-1]:08d}").leaves
