"""Top-1 and top-5 over a whole data set: every example counts exactly once."""

import collections
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from resnetjax.data.datasets import Dataset, Example
from resnetjax.data.held_out import outputs_of
from resnetjax.data.host_batch import HostBatch, Reader
from resnetjax.data.loader import Loader
from resnetjax.errors import AssumptionWarning, ConfigError
from resnetjax.pretrained import Pretrained, Variables
from resnetjax.train.eval_step import make_eval_step
from resnetjax.train.labels import check_classes, known_labels, listed
from resnetjax.train.recipe import ProblemType
from resnetjax.train.scores import Score, make_details
from resnetjax.train.sharding import batch_sharding, local_rows, make_mesh, place_batch, replicated
from resnetjax.train.step import Batch, Metrics


class Evaluator:
    """Scores variables on a data set.

    Args:
        eval_step: From `make_eval_step`.
        loader: Of the data set.
        mesh: The devices.
        batch_size: Over all of them; rounded up to a multiple of their number.
        labels: What each label of the data set stands for, where it is not a class: bool[labels,
            classes], those that count as right. An example without any does not count.
        outputs: Of the net, for each class of the data set; () where they are the same.
        classes: How many the data set's labels may be of; None where they are of no classes.
        name: What an error message calls the data set.

    Raises:
        ConfigError: The data set has no examples, or, when it is read, a label of no class.
    """

    def __init__(
        self,
        eval_step: Callable[[Variables, Batch], Metrics],
        loader: Loader,
        mesh: Mesh,
        *,
        batch_size: int,
        labels: np.ndarray | None = None,
        outputs: tuple[int, ...] = (),
        classes: int | None = None,
        name: str = "the data",
    ) -> None:
        self._loader, self._mesh, self._labels = loader, mesh, labels
        self._outputs, self._classes, self._name = np.array(outputs, np.int32), classes, name
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = local_rows(mesh, self._batch_size)
        self._step = jax.jit(
            eval_step,
            in_shardings=(None, batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )
        if not len(loader.reader.dataset):
            raise ConfigError("the data set has no examples to evaluate on")

    def __call__(
        self, variables: Variables, *, progress: Callable[[int], None] | None = None
    ) -> Score:
        """The score; `progress` is told how many examples were read."""
        waiting: collections.deque[Metrics] = collections.deque()
        total: dict[str, np.ndarray] = {}
        bad: list[str] = []

        def add() -> None:
            for name, value in jax.device_get(waiting.popleft()).items():
                total[name] = total.get(name, 0) + np.asarray(value, np.float64)

        for count, batch in enumerate(self._read(), 1):
            bad += batch.bad
            waiting.append(self._step(variables, self._placed(batch)))
            if len(waiting) > 2:
                add()  # no more batches on the device than these
            if progress:
                progress(min(count * self._batch_size, len(self._loader.reader.dataset)))
        while waiting:
            add()
        count = max(float(total["examples"]), 1)
        return Score(
            **{name: float(total[name] / count) for name in ("top1", "top5") if name in total},
            loss=float(total["loss"] / count),
            examples=int(total["examples"]),
            details=make_details(total),
            bad=tuple(bad),
        )

    def batches(self) -> Iterator[Batch]:
        """What is scored, on the devices; the last batch is padded with examples of weight 0."""
        return map(self._placed, self._read())

    def _read(self) -> Iterator[HostBatch]:
        for batch in self._loader.evaluation_batches(self._batch_size, rows=self._rows):
            if self._classes is not None:
                check_classes(batch.labels, self._classes, of=self._name)
            yield batch

    def _placed(self, batch: HostBatch) -> Batch:
        if self._labels is not None:
            right = self._labels[batch.labels]
            batch = replace(batch, labels=right, weights=batch.weights * right.any(1))
        elif len(self._outputs):
            batch = replace(batch, labels=self._outputs[batch.labels])
        return place_batch(self._mesh, self._rows, batch, self._batch_size)


def read_real_labels(path: str | Path, *, num_classes: int) -> np.ndarray:
    """ImageNet-ReaL's labels (Beyer 2020), `real.json`: bool[examples, classes].

    The examples are those of ILSVRC-2012's validation set in the order of their file names.

    Raises:
        ConfigError: The file is not a JSON list of lists of classes.
    """
    try:
        lists: Any = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(lists, list):
        raise ConfigError(f"{path} is not a list of lists of classes")
    right = np.zeros((len(lists), num_classes), bool)
    for row, classes in enumerate(lists):
        if not isinstance(classes, list) or not all(
            type(index) is int and 0 <= index < num_classes for index in classes
        ):
            raise ConfigError(
                f"{path}: entry {row} is {classes!r}, where a list of classes from 0 to "
                f"{num_classes - 1} is read"
            )
        right[row, classes] = True
    return right


# As they are called wherever ILSVRC-2012 is published; in class folders their order is another.
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


def evaluate_pretrained(
    pretrained: Pretrained,
    dataset: Dataset,
    *,
    batch_size: int = 128,
    workers: int = 0,
    labels: np.ndarray | None = None,
    name: str = "the data",
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Scores a net, with its own preprocessing, on all devices.

    Where the data gives each image a row of values, the net's outputs are those of several labels,
    or, where its labels' activation is "none", of a regression; they go by their order.
    Otherwise the data set's classes are matched with the net's labels: by WordNet id, by name, by
    number (folders called 0 to 999, as in ImageNet-V2), or, where neither has any names, by index.

    Args:
        pretrained: The net.
        dataset: From `open_dataset`.
        batch_size: Images run at once, over all devices.
        workers: Processes that read; 0 reads in threads.
        labels: From `read_real_labels`: for each example, those of the data set's classes that
            count as right. Examples whose names say so are ILSVRC-2012's of these numbers; others
            are taken in their order, with a warning.
        name: What an error message calls the data set.
        progress: Told how many examples were read.

    Raises:
        ConfigError: The classes cannot be matched, a label is of none, or the net has no head.
    """
    if not pretrained.config.num_classes:
        raise ConfigError("the net has no head (num_classes=0): load it with num_classes=")
    rows = outputs_of(dataset)
    known = pretrained.labels
    regression = known is not None and known.activation == "none"
    of_rows: ProblemType = "regression" if regression else "multi_label_classification"
    if rows and rows != pretrained.config.num_classes:
        raise ConfigError(
            f"the data has {rows} values an image, the net {pretrained.config.num_classes} outputs"
        )
    outputs = () if rows else match_classes(dataset.class_names, pretrained)
    classes = None
    if labels is not None:
        dataset, labels = _Numbered(dataset, len(labels)), _reordered(labels, outputs, pretrained)
    elif not rows:
        classes = len(outputs) or pretrained.config.num_classes
        check_classes(known_labels(dataset), classes, of=name)
    reader = Reader(dataset=dataset, preprocess=pretrained.preprocess, outputs=rows)
    problem: dict[str, ProblemType] = {"problem_type": of_rows} if rows else {}
    mesh = make_mesh()
    with Loader(reader, workers=workers) as loader:
        evaluator = Evaluator(
            make_eval_step(pretrained.model, pretrained.preprocess, **problem),
            loader,
            mesh,
            batch_size=batch_size,
            labels=labels,
            outputs=outputs,
            classes=classes,
            name=name,
        )
        return evaluator(pretrained.variables, progress=progress)


def match_classes(names: Sequence[str], pretrained: Pretrained) -> tuple[int, ...]:
    """The net's output for each class of a data set; () where the indices are the same.

    Raises:
        ConfigError: Some classes have no output; the message lists the first.
    """
    known, classes = pretrained.labels, pretrained.config.num_classes
    if not names or (known is not None and tuple(names) in (known.ids, known.names)):
        return ()
    tables = [{str(i): i for i in range(classes)}]
    if known is not None:
        for words in (known.names, known.ids or ()):
            counts = collections.Counter(words)  # "crane" is two of ImageNet's classes
            tables[:0] = [{word: i for i, word in enumerate(words) if counts[word] == 1}]
    for table in tables:
        if set(names) <= table.keys():
            return tuple(table[name] for name in names)
    if known is None and len(names) == classes:
        return ()
    closest = max(tables, key=lambda table: len(set(names) & table.keys()))
    missing = [name for name in names if name not in closest]
    raise ConfigError(
        f"{len(missing)} of the data's {len(names)} classes are none of the net's {classes}: "
        f"{listed(missing)}"
    )


@dataclass(frozen=True)
class _Numbered:
    """A data set whose labels are its examples' places in a list of `count` entries."""

    dataset: Dataset
    count: int

    def __post_init__(self) -> None:
        if _VALIDATION_NAME.search(self.dataset[0].name):
            return
        if len(self) != self.count:
            raise ConfigError(
                f"labels are for {self.count} examples, but the data set has {len(self)}"
            )
        warnings.warn(
            "the examples are not named as ILSVRC2012_val_00000001: labels are matched by their "
            "order, which is right only if the data set has that of those names",
            AssumptionWarning,
            stacklevel=4,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        return ()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        example = self.dataset[index]
        number = _VALIDATION_NAME.search(example.name)
        place = int(number[1]) - 1 if number else index
        if not 0 <= place < self.count:
            raise ConfigError(f"{example.name} has no label: there are {self.count}")
        return replace(example, label=place)


def _reordered(labels: np.ndarray, outputs: tuple[int, ...], pretrained: Pretrained) -> np.ndarray:
    classes = len(outputs) or pretrained.config.num_classes
    if labels.shape[1] != classes:
        raise ConfigError(f"labels are of {labels.shape[1]} classes, but the data has {classes}")
    if not outputs:
        return labels
    right = np.zeros((len(labels), pretrained.config.num_classes), bool)
    right[:, list(outputs)] = labels
    return right
