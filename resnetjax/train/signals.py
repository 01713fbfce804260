"""Signals that end a run in good order."""

import contextlib
import os
import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopSignals:
    """SIGTERM and SIGINT are noted, for the run to end in good order; a second one ends it at once.

    Attributes:
        received: The first, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self
        # Python runs handlers in the main thread, and only between its own instructions: a second
        # signal would have to wait for XLA to finish compiling. A thread does not.
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        thread = threading.Thread(target=self._watch, args=(told,), daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(os.close, tell)
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(tell))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._stack.callback(signal.signal, number, signal.signal(number, _do_nothing))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _watch(self, told: int) -> None:
        while number := os.read(told, 1):
            if number[0] in (signal.SIGTERM, signal.SIGINT):
                if self.received is not None:
                    os._exit(128 + number[0])
                self.received = number[0]
        os.close(told)

    def agreed(self) -> int | None:
        """The signal that any process received; all must ask at the same point."""
        if jax.process_count() == 1:
            return self.received
        return int(multihost_utils.process_allgather(np.int32(self.received or 0)).max()) or None


def _do_nothing(*_: object) -> None:
    pass
