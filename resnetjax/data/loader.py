"""Batches as a function of the step: order, crops and flips follow from the seed and the position.

Nothing has a state that would have to be saved: a run that resumes at a step asks for the batches
from that step on, with any number of workers.
"""

import collections
import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int64

from resnetjax.data.host_batch import HostBatch, Reader
from resnetjax.data.workers import Worker
from resnetjax.errors import ConfigError, DataStalled

# A worker that was killed is replaced; one that hangs for so long ends the run.
STALL_SECONDS = 30.0
_CHUNK = 16  # rows a task: few enough to spread a batch over workers, enough to hide a task's cost


@dataclass(frozen=True)
class Order:
    """Which examples each step sees: every epoch its own permutation, the same on every host.

    Attributes:
        length: Number of examples.
        batch_size: Over all hosts.
        seed: Of the permutations.
        repeats: Times that a batch shows each of its images; as far from one another as can be,
            for what takes a part of the batch to see each but once.
        parts: That a step takes the batch in, each of every n-th row.

    Example:
        >>> order = Order(length=10, batch_size=4, seed=0)
        >>> order.steps_per_epoch
        2
        >>> len({*order.indices(0), *order.indices(1)})
        8
    """

    length: int
    batch_size: int
    seed: int
    repeats: int = 1
    parts: int = 1
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.length < self.batch_size:
            raise ConfigError(
                f"batch_size={self.batch_size} is not allowed: the data has {self.length} examples "
                f"to train on; use {self.length} or less, as --batch-size {self.length}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch; what is left over takes its chance in the next."""
        return self.length // self.batch_size

    def indices(self, step: int) -> Int64[np.ndarray, " batch"]:
        """The examples of a step, row by row."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        spread = np.concatenate([rows[first :: self.repeats] for first in range(self.repeats)])
        in_parts = spread.reshape(self.parts, -1).T.ravel()
        return self._permutation(epoch)[in_parts // self.repeats]

    def _permutation(self, epoch: int) -> Int64[np.ndarray, " length"]:
        if epoch not in self._epochs:
            self._epochs.clear()
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._epochs[epoch] = rng.permutation(self.length)
        return self._epochs[epoch]


class Loader:
    """Reads batches ahead, in threads or in processes; use it as a context manager.

    A worker process that dies is replaced, and what it was reading is read again.

    Raises:
        DataStalled: From the iterators, when a batch does not come within `STALL_SECONDS`, or
            workers die again and again.
    """

    def __init__(
        self, reader: Reader, *, workers: int = 0, threads: int = 0, prefetch: int = 4
    ) -> None:
        self.reader = reader
        self._prefetch = prefetch
        self._workers = [Worker(reader) for _ in range(workers)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        # A thread for each worker, which waits for it.
        count = workers or threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="resnetjax-read")
        self._stalled = False

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; a thread that hangs is not waited for."""
        for worker in self._workers:
            worker.close()
        self._pool.shutdown(wait=bool(self._workers) or not self._stalled, cancel_futures=True)

    def training_batches(
        self, order: Order, *, start: int, stop: int, rows: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[HostBatch]:
        """The batches of steps `start` to `stop`.

        Args:
            order: Which examples they hold.
            start: First step.
            stop: Step after the last.
            rows: The rows of each global batch that this host needs; None is all.
        """
        wanted = np.arange(order.batch_size) if rows is None else np.asarray(rows)

        def request(step: int) -> tuple[np.ndarray, np.ndarray]:
            return step * order.batch_size + wanted, order.indices(step)[wanted]

        return self._ahead(map(request, range(start, stop)))

    def evaluation_batches(
        self, batch_size: int, *, rows: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[HostBatch]:
        """Every example once, in order; the last batch is padded with rows of weight 0."""
        wanted = np.arange(batch_size) if rows is None else np.asarray(rows)
        length = len(self.reader.dataset)

        def request(step: int) -> tuple[np.ndarray, np.ndarray]:
            positions = step * batch_size + wanted
            return positions, np.where(positions < length, positions, -1)

        return self._ahead(map(request, range(-(-length // batch_size))))

    def _ahead(self, requests: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[HostBatch]:
        waiting: collections.deque[tuple[HostBatch, list[Future[tuple[str, ...]]]]]
        waiting = collections.deque()
        for positions, indices in requests:
            batch = self.reader.empty(indices)
            parts = [slice(start, start + _CHUNK) for start in range(0, len(indices), _CHUNK)]
            read = [
                self._pool.submit(self._read, positions[part], batch.rows(part)) for part in parts
            ]
            waiting.append((batch, read))
            if len(waiting) > self._prefetch:
                yield self._collect(*waiting.popleft())
        while waiting:
            yield self._collect(*waiting.popleft())

    def _collect(self, batch: HostBatch, parts: list[Future[tuple[str, ...]]]) -> HostBatch:
        for part in parts:
            if not wait([part], STALL_SECONDS).done:
                self._stalled = True
                self.close()
                raise DataStalled(
                    f"no batch within {STALL_SECONDS:.0f} s: a worker or the file system hangs"
                )
        return replace(batch, bad=tuple(text for part in parts for text in part.result()))

    def _read(self, positions: np.ndarray, batch: HostBatch) -> tuple[str, ...]:
        if not self._workers:
            return self.reader.read(positions, batch)
        worker = self._idle.get()
        try:
            return worker.read(positions, batch)
        finally:
            self._idle.put(worker)
