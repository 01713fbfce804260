"""What the labels of a recipe's data are: classes or rows of values, their names, their weights."""

from collections.abc import Sequence

import numpy as np

from resnetjax.data import datasets
from resnetjax.data.datasets import Dataset
from resnetjax.data.held_out import Subset, labels_of, outputs_of
from resnetjax.data.readers.splits import choose
from resnetjax.errors import ConfigError
from resnetjax.train.recipe import Recipe


def split_names(recipe: Recipe, test: Dataset) -> tuple[str, str]:
    """What messages call that which is trained on and that which is evaluated on.

    Splits have their names on disk: where "validation" was asked for, it may be "test".
    """
    data = recipe.data
    train = _split_name(data.path, data.train_split)
    if isinstance(test, Subset):
        return train, f"what is held out of {train}"
    if data.test_path is not None:
        return train, f"{_split_name(data.test_path, data.test_split)} at {data.test_path}"
    return train, _split_name(data.path, data.test_split)


def _split_name(path: str, split: str) -> str:
    names = datasets.splits(path)
    return "the data" if names == ("",) else f"the split {choose(split, names, path)}"


def output_count(train: Dataset, test: Dataset, recipe: Recipe) -> int:
    """Values that the data has for each image, if the problem is of that kind.

    Raises:
        ConfigError: It is not, or the splits differ.
    """
    outputs = outputs_of(train)
    if outputs_of(test) != outputs:
        raise ConfigError(
            f"the splits have other values: {outputs} and {outputs_of(test)} an image"
        )
    of_rows = recipe.problem_type != "single_label_classification"
    if of_rows != bool(outputs):
        kind = f"{outputs} values an image" if outputs else "a class for each image"
        wanted = "a row of values, as metadata.csv gives it" if of_rows else "a class"
        raise ConfigError(
            f"problem_type={recipe.problem_type!r} is not allowed: the data has {kind}, "
            f"not {wanted}"
        )
    rows = labels_of(train) if recipe.problem_type == "multi_label_classification" else None
    if rows is not None and not np.isin(rows, (0, 1)).all():
        raise ConfigError("the data of a multi_label_classification has values other than 0 and 1")
    return outputs


def check_classes(labels: np.ndarray, num_classes: int, *, of: str) -> None:
    """Refuses labels that are none of a net's outputs.

    Args:
        labels: Some of a data set; rows of values are no classes, and pass.
        num_classes: Of the net, or of the data where its classes are matched with the net's.
        of: What the message calls the data set.

    Raises:
        ConfigError: One is below 0, or not below the number of classes.
    """
    if labels.ndim != 1 or not len(labels):
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest >= 0 and highest < num_classes:
        return
    label = lowest if lowest < 0 else highest
    cause = "counted from 1?" if label == num_classes else "are there more classes?"
    raise ConfigError(
        f"label {label} of {of} is not allowed: of {num_classes} classes, labels are 0 to "
        f"{num_classes - 1} ({'an image without a label?' if label < 0 else cause})"
    )


def known_labels(dataset: Dataset) -> np.ndarray:
    """The labels that a data set has at hand; none where it would have to be read through."""
    known = getattr(dataset, "labels", None)
    if isinstance(dataset, Subset):
        known = known_labels(dataset.dataset)
        known = known[dataset.indices] if len(known) else known
    return np.zeros(0, np.int32) if known is None else np.asarray(known)


def listed(names: Sequence[str], *, most: int = 5) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def counted(count: int, what: str) -> str:
    """So many of something, for a message: "1 image", "2,000 images"."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def class_weights(recipe: Recipe, data: Dataset, num_classes: int) -> tuple[float, ...] | None:
    """The recipe's weights in numbers.

    "balanced" is scikit-learn's for classes, and absent over present ones for each label.

    Raises:
        ConfigError: There are not as many as classes, or a class has no examples to be weighed by.
    """
    weights = recipe.class_weights
    if weights is None:
        return None
    if weights != "balanced":
        if len(weights) != num_classes:
            raise ConfigError(
                f"class_weights has {len(weights)} values: use {num_classes}, one for each class"
            )
        return weights
    labels = labels_of(data)
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ConfigError(
            f"class_weights='balanced' is not allowed: class {int(counts.argmin())} has no examples"
        )
    total = len(labels)
    balanced = (total - counts) / counts if labels.ndim == 2 else total / (len(counts) * counts)
    return tuple(balanced.tolist())


def class_names(
    train: Dataset, test: Dataset, recipe: Recipe, *, of: tuple[str, str]
) -> tuple[str, ...]:
    """The names of the data's classes, labels or outputs; () where they have none.

    Args:
        train: Examples to train on.
        test: Examples to evaluate on.
        recipe: It may say how many classes there are.
        of: What messages call the two.

    Raises:
        ConfigError: The splits differ, or nothing says how many classes there are.
    """
    names, others = train.class_names, test.class_names
    if names and others and names != others:
        apart = [
            f"only {split} has {listed(own)}"
            for split, own in (
                (of[0], [name for name in names if name not in set(others)]),
                (of[1], [name for name in others if name not in set(names)]),
            )
            if own
        ]
        raise ConfigError(
            f"the classes are not the same: {len(names)} in {of[0]}, {len(others)} in {of[1]}; "
            + ("; ".join(apart) or "they have the same names, in another order or number")
        )
    if not names and not others and recipe.model.num_classes is None:
        raise ConfigError("the data does not say how many classes it has: give --model.num-classes")
    return names or others
