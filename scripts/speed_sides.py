"""A peer of `scripts/benchmark.py infer` or `train` in a process of its own, which runs when asked.

So each side has its memory and its threads to itself, and nobody waits for another's in a loop:
whoever's turn it is not is stopped.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import jax
from speed_cases import Case
from speed_peers import PEERS
from timing import peak_bytes, resident_bytes, seconds_of

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl.h


class Side:
    """A peer made ready for a case.

    Attributes:
        found: `compile_s` (None where nothing is compiled), `ready_s` from making the model to the
            first call's end, and `memory_bytes` of a call (None where nobody counts them).

    Raises:
        RuntimeError: The peer cannot do it; its own error's first line says why.
    """

    def __init__(self, name: str, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = context.Process(target=_serve, args=(name, case, theirs, self._folder.name))
        self._process.start()
        theirs.close()
        try:
            self.found: dict[str, Any] = self._answer()
        except BaseException:
            self.end()
            raise
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> "Side":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def run(self) -> float:
        """One batch or step; the seconds that it took there."""
        self._signal(signal.SIGCONT)
        seconds = self._answer("run")
        self._signal(signal.SIGSTOP)
        return seconds

    def end(self) -> None:
        """Ends the process, stopped or not."""
        self._pipe.close()
        if self._process.is_alive():
            self._signal(signal.SIGCONT)
        self._process.join(10)
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        pid = self._process.pid
        assert pid is not None
        os.kill(pid, number)

    def _answer(self, question: str | None = None) -> Any:
        try:
            if question:
                self._pipe.send(question)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(f"its process ended: {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def _serve(name: str, case: Case, pipe: Connection, folder: str) -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # stopped, it would outlive it
    os.dup2(2, 1)  # what libraries print is no part of the result
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # empty: PyTorch finds nothing compiled there
    try:
        call, found = _made(name, case)
    except Exception as error:  # what one peer cannot do must not end the others' measurement
        lines = str(error).strip().splitlines() or [""]
        pipe.send(f"{type(error).__name__}: {lines[0][:200]}")
        return
    pipe.send(found)
    with contextlib.suppress(EOFError):  # the end
        while pipe.recv():
            if case.gpu:
                call()  # what another process's kernels have displaced comes back
            pipe.send(seconds_of(call))


def _made(name: str, case: Case) -> tuple[Callable[[], Any], dict[str, Any]]:
    peer = PEERS[name]
    peer.start(case)
    before = resident_bytes()
    start = time.perf_counter()
    ready = peer.make(case)
    first = seconds_of(ready.call)
    ready_s = time.perf_counter() - start
    later = seconds_of(ready.call)
    compile_s = max(first - later, 0.0) if ready.compile_s == "first call" else ready.compile_s
    memory = _gpu_peak(ready.call, peer.packages) if case.gpu else _cpu_peak(ready.call, before)
    return ready.call, {"ready_s": ready_s, "compile_s": compile_s, "memory_bytes": memory}


def _cpu_peak(call: Callable[[], Any], before: int) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # gives back what making the model has left free
    return peak_bytes(call) - before


def _gpu_peak(call: Callable[[], Any], packages: tuple[str, ...]) -> int | None:
    if "torch" in packages:
        import torch

        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated()
    # Since the process began: JAX has no reset.
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
