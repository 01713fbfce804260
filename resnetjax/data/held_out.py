"""What of a data set is trained on and what evaluated on, where it is not split itself."""

from dataclasses import dataclass

import numpy as np

from resnetjax.data import datasets
from resnetjax.data.datasets import Dataset, Example
from resnetjax.data.readers import splits
from resnetjax.data.readers.example import checked_index
from resnetjax.errors import ConfigError, UnknownName


@dataclass(frozen=True)
class Subset:
    """Some examples of a data set.

    Attributes:
        dataset: The whole.
        indices: Of its examples, ascending.
    """

    dataset: Dataset
    indices: np.ndarray

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the whole."""
        return self.dataset.class_names

    @property
    def labels(self) -> np.ndarray:
        """Of the examples, in their order."""
        return labels_of(self.dataset)[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.dataset[int(self.indices[checked_index(index, len(self))])]


def open_both(
    path: str,
    *,
    train_split: str,
    test_split: str,
    test_path: str | None = None,
    held_out: float = 0.0,
    seed: int = 0,
) -> tuple[Dataset, Dataset]:
    """What is trained on and what is evaluated on.

    Args:
        path: Anything that `open_dataset` reads.
        train_split: A name of the former; of data that is one whole, the whole.
        test_split: A name of the latter.
        test_path: Where the latter is, if it is elsewhere; nothing is held out then.
        held_out: Share of each class of the former that is the latter where the data has no such
            split; 0 refuses such data.
        seed: What is held out follows from it.

    Raises:
        UnknownName: The data has no such split.
        ConfigError: Nothing, or everything, would be held out.
    """
    if test_path is not None:
        return _split_or_whole(path, train_split), _split_or_whole(test_path, test_split)
    if held_out:
        names = datasets.splits(path)
        try:
            splits.choose(test_split, names, path)
        except UnknownName:
            return hold_out(_split_or_whole(path, train_split), share=held_out, seed=seed)
    train = datasets.open_dataset(path, split=train_split)
    return train, datasets.open_dataset(path, split=test_split)


def _split_or_whole(path: str, split: str) -> Dataset:
    whole = datasets.splits(path) == ("",)
    return datasets.open_dataset(path, split=None if whole else split)


def hold_out(dataset: Dataset, *, share: float, seed: int) -> tuple[Subset, Subset]:
    """What is left of a data set, and the share of each class that is taken out of it.

    Whether an example is taken follows from the seed, its class and its place among those of its
    class alone. Where images have rows of values, equal rows are a class, and those too rare for
    the share are one together. A class of several examples keeps one and gives one.

    Raises:
        ConfigError: Nothing is left, or nothing is taken.

    Example:
        >>> digits = datasets.open_dataset("digits", split="train")
        >>> rest, held = hold_out(digits, share=0.25, seed=0)
        >>> len(rest), len(held), sorted(np.bincount(held.labels).tolist())[::9]
        (1079, 359, [35, 36])
    """
    classes = _strata(labels_of(dataset), share)
    taken = np.zeros(len(dataset), bool)
    for label in range(classes.max(initial=-1) + 1):
        places = np.flatnonzero(classes == label)
        rng = np.random.Generator(np.random.Philox(key=[seed, label], counter=[0, 0, 0, 1]))
        count = round(share * len(places))
        if len(places) > 1:
            count = min(max(count, 1), len(places) - 1)
        taken[places[np.argsort(rng.random(len(places)), kind="stable")[:count]]] = True
    if taken.all() or not taken.any():
        raise ConfigError(
            f"held_out={share} is not allowed: of {len(dataset)} examples it leaves "
            f"{len(dataset) - taken.sum()} to train on and {taken.sum()} to evaluate on"
        )
    return (
        Subset(dataset, np.flatnonzero(~taken)),
        Subset(dataset, np.flatnonzero(taken)),
    )


def labels_of(dataset: Dataset) -> np.ndarray:
    """Classes int[examples], or rows of values float32[examples, outputs].

    A data set that does not have them at hand is read through, without being decoded.
    """
    known = getattr(dataset, "labels", None)
    if known is not None:
        return np.asarray(known)
    return np.array([dataset[index].label for index in range(len(dataset))])


def outputs_of(dataset: Dataset) -> int:
    """How many values a data set has for each image; 0 where it has a class."""
    known = getattr(dataset, "labels", None)
    return known.shape[1] if known is not None and known.ndim == 2 else 0


def _strata(labels: np.ndarray, share: float) -> np.ndarray:
    """What is held out by itself: a class, a row of values, or all rows too rare to give any."""
    if labels.ndim == 1:
        return labels
    _, rows, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    common = counts * share >= 1
    return np.where(common, np.arange(1, 1 + len(counts)), 0)[rows.reshape(-1)]
