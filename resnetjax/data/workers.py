"""Processes that read: replaced when they die, and ended whatever they do."""

import signal
import threading
import traceback
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from resnetjax.data.host_batch import HostBatch, Reader
from resnetjax.errors import DataStalled

_LIVES = 3  # processes that may die over the same images


class Worker:
    """A process that reads for one thread: started when it is first needed, and when it has died.

    Each has a pipe of its own, whose end tells at once that the process is gone; a queue that
    several share would keep waiting for the rest of what one of them was sending when it died.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._closed = False
        self._process: BaseProcess | None = None
        self._connection: Connection

    def read(self, positions: np.ndarray, batch: HostBatch) -> tuple[str, ...]:
        """What the reader fills, gives, or raises."""
        for _ in range(_LIVES):
            self._start()
            try:
                self._connection.send((positions, batch.indices))
                answer = self._connection.recv()
            except (EOFError, OSError):
                self._end()
                continue
            if isinstance(answer, BaseException):
                raise answer
            for name in ("images", "labels", "weights"):
                getattr(batch, name)[...] = getattr(answer, name)
            return answer.bad
        raise DataStalled(
            f"{_LIVES} worker processes died over the same images: is memory short? They were "
            f"examples {', '.join(map(str, batch.indices))}"
        )

    def close(self) -> None:
        """Ends the process, whatever it is doing, for good."""
        self._closed = True
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.join()

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise DataStalled("the loader is closed")
            if self._process is None:
                # Not forked: a copy of a process in which XLA's threads run may hang. The reader
                # goes there once, not with every batch: the index of a large data set is large.
                context = get_context("spawn")
                self._connection, theirs = context.Pipe()
                self._process = context.Process(
                    target=_serve, args=(theirs, self._reader), daemon=True, name="resnetjax-read"
                )
                self._process.start()
                theirs.close()

    def _end(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.join()
                self._process = None
            self._connection.close()


def _serve(connection: Connection, reader: Reader) -> None:
    """Answers until the other end is closed, as it is when that process dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to the worker too
    while True:
        try:
            positions, indices = connection.recv()
        except (EOFError, OSError):
            return
        try:
            batch = reader.empty(indices)
            answer: HostBatch | Exception = replace(batch, bad=reader.read(positions, batch))
        except Exception as error:  # the other end raises it, whatever it is
            error.add_note(traceback.format_exc())
            answer = error
        try:
            connection.send(answer)
        except OSError:
            return
