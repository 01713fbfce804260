"""Batches as a function of the step: order, crops and flips follow from the seed and the position.

Nothing has a state that would have to be saved: a run that resumes at a step asks for the batches
from that step on, with any number of workers.
"""

import collections
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context

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
_CHUNK = 16  # rows a task: few enough to spread a batch over workers, enough to hide a task's cost


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """Some rows of a global batch, on the host.

    Attributes:
        images: Red first.
        labels: Indices of classes.
        weights: 1, or 0 for an image that could not be read (its pixels are zero) and for padding.
        indices: Of the examples, in the data set; -1 for padding.
        bad: What could not be read, as "name: reason".
    """

    images: UInt8[np.ndarray, "rows height width channels"]
    labels: Int32[np.ndarray, " rows"]
    weights: Float32[np.ndarray, " rows"]
    indices: Int64[np.ndarray, " rows"]
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """Which examples each step sees: every epoch its own permutation, the same on every host.

    Attributes:
        length: Number of examples.
        batch_size: Over all hosts.
        seed: Of the permutations.
        repeats: Times that a batch shows each of its images.

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
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.length < self.batch_size:
            raise ConfigError(
                f"batch_size={self.batch_size} is not allowed: the data has {self.length} examples"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch; what is left over takes its chance in the next."""
        return self.length // self.batch_size

    def indices(self, step: int) -> Int64[np.ndarray, " batch"]:
        """The examples of a step, row by row."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        return self._permutation(epoch)[rows // self.repeats]

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
    """

    dataset: Dataset
    preprocess: Preprocess
    augmentation: Augmentation | None = None
    edge_px: int = 0
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        size = (self.edge_px, self.edge_px) if self.augmentation else self.preprocess.crop_px
        return (*size, self.preprocess.channels)

    def read(self, positions: np.ndarray, indices: np.ndarray) -> HostBatch:
        """The examples `indices`; what is random in them follows from `positions`."""
        rows = len(indices)
        images = np.zeros((rows, *self.shape), np.uint8)
        labels, weights = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
        bad = []
        for row, (position, index) in enumerate(zip(positions, indices, strict=True)):
            if index < 0:
                continue
            name = f"example {index}"
            try:
                example = self.dataset[int(index)]
                name, labels[row] = example.name, example.label
                images[row] = self._view(example.image, position)
                weights[row] = 1
            except (ResNetJAXError, OSError, ValueError) as error:
                bad.append(str(error) if name in str(error) else f"{name}: {error}")
        return HostBatch(
            images=images,
            labels=labels,
            weights=weights,
            indices=np.asarray(indices, np.int64),
            bad=tuple(bad),
        )

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


class Loader:
    """Reads batches ahead, in threads or in processes; use it as a context manager.

    A worker process that dies is replaced and its rows are read again.

    Raises:
        DataStalled: From the iterators, when a batch does not come within `STALL_SECONDS`, or
            workers die again and again.
    """

    def __init__(
        self, reader: Reader, *, workers: int = 0, threads: int = 0, prefetch: int = 4
    ) -> None:
        self.reader = reader
        self._workers = workers
        self._threads = threads or os.cpu_count() or 1
        self._prefetch = prefetch
        self._pool = self._start()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers."""
        self._pool.shutdown(wait=self._workers == 0, cancel_futures=True)

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
        waiting: collections.deque[_Pending] = collections.deque()
        for positions, indices in requests:
            waiting.append(_Pending(positions, indices))
            waiting[-1].submit(self._submit)
            if len(waiting) > self._prefetch:
                yield self._collect(waiting)
        while waiting:
            yield self._collect(waiting)

    def _collect(self, waiting: "collections.deque[_Pending]") -> HostBatch:
        for _ in range(3):
            try:
                batch = waiting[0].result()
                waiting.popleft()
                return batch
            except BrokenProcessPool:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = self._start()
                for pending in waiting:
                    pending.submit(self._submit)
            except TimeoutError:
                self._kill()
                raise DataStalled(
                    f"no batch within {STALL_SECONDS:.0f} s: a worker or the file system hangs"
                ) from None
        raise DataStalled("worker processes died three times over one batch: is memory short?")

    def _start(self) -> Executor:
        if self._workers == 0:
            return ThreadPoolExecutor(self._threads, thread_name_prefix="resnetjax-read")
        # Not forked: a copy of a process in which XLA's threads run may hang. The reader goes there
        # once, not with every task: the index of a large data set is large.
        return ProcessPoolExecutor(
            self._workers,
            mp_context=get_context("spawn"),
            initializer=_set_reader,
            initargs=(self.reader,),
        )

    def _submit(self, positions: np.ndarray, indices: np.ndarray) -> Future[HostBatch]:
        read = self.reader.read if self._workers == 0 else _read_in_worker
        return self._pool.submit(read, positions, indices)

    def _kill(self) -> None:
        """Ends workers that do not answer, for whom an interpreter would wait when it exits."""
        processes = dict(getattr(self._pool, "_processes", None) or {})
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes.values():
            process.kill()


_reader: Reader | None = None  # of a worker process


def _set_reader(reader: Reader) -> None:
    global _reader
    _reader = reader


def _read_in_worker(positions: np.ndarray, indices: np.ndarray) -> HostBatch:
    assert _reader is not None
    return _reader.read(positions, indices)


class _Pending:
    """A batch under way, in chunks."""

    def __init__(self, positions: np.ndarray, indices: np.ndarray) -> None:
        self._positions, self._indices = positions, indices
        self._chunks: list[Future[HostBatch]] = []

    def submit(self, read: Callable[[np.ndarray, np.ndarray], Future[HostBatch]]) -> None:
        bounds = range(0, len(self._indices), _CHUNK)
        self._chunks = [
            read(self._positions[b : b + _CHUNK], self._indices[b : b + _CHUNK]) for b in bounds
        ]

    def result(self) -> HostBatch:
        parts = [chunk.result(STALL_SECONDS) for chunk in self._chunks]
        whole = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("images", "labels", "weights", "indices")
        }
        return HostBatch(**whole, bad=tuple(text for part in parts for text in part.bad))
