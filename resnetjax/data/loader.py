"""Batches as a function of the step: order, crops and flips follow from the seed and the position.

Nothing has a state that would have to be saved: a run that resumes at a step asks for the batches
from that step on, with any number of workers.
"""

import collections
import os
import queue
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.crops import training_view
from resnetjax.data.datasets import Dataset
from resnetjax.data.preprocess import crop, decode
from resnetjax.errors import ConfigError, DataStalled, ResNetJAXError

# A worker that was killed is replaced; one that hangs for so long ends the run.
STALL_SECONDS = 30.0
_LIVES = 3  # processes that may die over the same images
_CHUNK = 16  # rows a task: few enough to spread a batch over workers, enough to hide a task's cost


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """Some rows of a global batch, on the host.

    Attributes:
        images: Red first.
        labels: Indices of classes, or rows of values.
        weights: 1, or 0 for an image that could not be read (its pixels are zero) and for padding.
        indices: Of the examples, in the data set; -1 for padding.
        bad: What could not be read, as "name: reason".
    """

    images: UInt8[np.ndarray, "rows height width channels"]
    labels: Int32[np.ndarray, " rows"] | Float32[np.ndarray, "rows outputs"]
    weights: Float32[np.ndarray, " rows"]
    indices: Int64[np.ndarray, " rows"]
    bad: tuple[str, ...] = ()

    def rows(self, part: slice) -> "HostBatch":
        """A view of some rows."""
        return HostBatch(
            images=self.images[part],
            labels=self.labels[part],
            weights=self.weights[part],
            indices=self.indices[part],
        )


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


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Rows of a data set as pixels; it goes to worker processes as it is.

    Attributes:
        dataset: Where the images are.
        preprocess: Evaluation's transform, and training's number of channels.
        augmentation: Training's transform; None for evaluation.
        edge_px: Edge of training images.
        seed: Of boxes and flips.
        outputs: Values that the data set has for each image; 0 where it has a class.
    """

    dataset: Dataset
    preprocess: Preprocess
    augmentation: Augmentation | None = None
    edge_px: int = 0
    seed: int = 0
    outputs: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        size = (self.edge_px, self.edge_px) if self.augmentation else self.preprocess.crop_px
        return (*size, self.preprocess.channels)

    def empty(self, indices: np.ndarray) -> HostBatch:
        """A batch of the examples `indices` whose images are still to be read."""
        return HostBatch(
            images=np.empty((len(indices), *self.shape), np.uint8),
            labels=np.zeros((len(indices), self.outputs), np.float32)
            if self.outputs
            else np.zeros(len(indices), np.int32),
            weights=np.zeros(len(indices), np.float32),
            indices=np.asarray(indices, np.int64),
        )

    def read(self, positions: np.ndarray, batch: HostBatch) -> tuple[str, ...]:
        """Fills a batch; what is random in it follows from `positions`. Gives what is bad."""
        bad = []
        for row, (position, index) in enumerate(zip(positions, batch.indices, strict=True)):
            if index < 0:
                batch.images[row] = 0
                continue
            name = f"example {index}"
            try:
                example = self.dataset[int(index)]
                name, batch.labels[row] = example.name, example.label
                batch.images[row] = self._view(example.image, position)
                batch.weights[row] = 1
            except MemoryError:
                raise  # says nothing of the image: the same run might read it another time
            except Exception as error:  # whatever a decoder stumbles over, the epoch goes on
                batch.images[row] = 0
                bad.append(_reason(name, error))
        return tuple(bad)

    def _view(self, image: bytes | np.ndarray, position: int) -> UInt8[np.ndarray, "h w c"]:
        if self.augmentation is None:
            return crop(decode(image, channels=self.preprocess.channels), self.preprocess)
        # A generator of its own for every position: what one image draws leaves the next alone.
        # The position is not in the counter's lowest word, which counts the draws.
        bits = np.random.Philox(key=[self.seed, 1 << 63], counter=[0, position, 0, 0])
        return training_view(
            image,
            np.random.Generator(bits),
            augmentation=self.augmentation,
            preprocess=self.preprocess,
            edge_px=self.edge_px,
        )


def _reason(name: str, error: Exception) -> str:
    known = isinstance(error, ResNetJAXError | OSError | ValueError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return text if name in text else f"{name}: {text}"


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
        self._workers = [_Worker(reader) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
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


class _Worker:
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
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        try:
            connection.send(answer)
        except OSError:
            return
