"""What reading a file may take, measured in one place."""

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(*, seconds: float = 1.0, memory: int | None = None) -> Iterator[None]:
    """Asserts that what is done within takes no more.

    Args:
        seconds: Of the processor.
        memory: Bytes that Python and numpy hold at once, beside what they held before; what is
            mapped is not counted. It takes time to count, so None for what needs no bound.
    """
    if memory is not None:
        tracemalloc.start()
    started = time.process_time()
    try:
        yield
        taken, peak = time.process_time() - started, 0
        if memory is not None:
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= seconds, f"{taken:.2f} s, not {seconds}"
    assert memory is None or peak <= memory, f"{peak:,} bytes, not {memory:,}"
