"""Calls functions in children that may take so much memory and time, and that tell what they did.

A server without JAX imports what is called once and forks for each call, which takes milliseconds.
"""

import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# Of the audit events (https://docs.python.org/3/library/audit_events.html) those that touch
# something outside of the process, or run code that came as data.
_TELLING = (
    "open", "exec", "compile", "import", "marshal.", "pickle.", "os.", "shutil.", "subprocess.",
    "socket.", "ctypes.", "tempfile.", "urllib.",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        raised: The name of the exception's class, or of the signal that ended the child; None if
            the function returned.
        message: The exception's.
        returned: What the function returned, where it was asked for.
        seconds: Of the processor.
        did: Audit events and what they were about: `open /etc/passwd`.
    """

    raised: str | None = None
    message: str = ""
    returned: Any = None
    seconds: float = 0.0
    did: tuple[str, ...] = ()


class Confinement:
    """The server of one test process; a context manager."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.weights.confined"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Confinement":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def call(
        self, function: str, *arguments: Any, folder: Path, memory: int, seconds: float
    ) -> Outcome:
        """Returns how a call ended.

        Args:
            function: As `module:name`.
            arguments: What JSON can hold.
            folder: Where the child works.
            memory: Bytes of address space beyond what the child begins with.
            seconds: By the clock, after which it is ended.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = [function, arguments, str(folder), memory, seconds]
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Outcome(**answer | {"did": tuple(answer.get("did", ()))})


def _serve() -> None:
    for line in sys.stdin:
        function, arguments, folder, memory, seconds = json.loads(line)
        called = _imported(function)
        receiving, sending = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receiving)
            # Its answer goes to its own pipe: what it runs may write anything to the server's.
            silent = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(silent, descriptor)
            answer = _confined(called, arguments, folder, memory, seconds)
            with os.fdopen(sending, "w") as pipe:
                json.dump(answer, pipe)
            os._exit(0)
        os.close(sending)
        with os.fdopen(receiving) as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            answer = json.dumps({"raised": signal.Signals(os.WTERMSIG(status)).name})
        print(answer, flush=True)


@functools.cache
def _imported(function: str) -> Any:
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def _confined(called: Any, arguments: Any, folder: str, memory: int, seconds: float) -> dict:
    os.chdir(folder)
    did: list[str] = []
    listening = True

    def listen(event: str, values: tuple[Any, ...]) -> None:
        if listening and event.startswith(_TELLING):
            did.append(f"{event} {values[0]!s:.200}" if values else event)

    sys.addaudithook(listen)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    did.clear()
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    started = time.process_time()
    answer: dict[str, Any]
    try:
        answer = {"returned": called(*arguments)}
        json.dumps(answer)
    except BaseException as error:
        answer = {"raised": type(error).__name__, "message": f"{error!s:.500}"}
    listening = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    return answer | {"seconds": time.process_time() - started, "did": did}


if __name__ == "__main__":
    _serve()
