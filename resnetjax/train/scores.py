"""What a net scored: figures to follow and, class by class, tables and a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from resnetjax.errors import MissingExtra

Names = Sequence[str]
_SHOWN_CLASSES = 40  # more have no room on a picture for their names


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a net scored.

    Attributes:
        loss: Mean cross-entropy, binary cross-entropy or squared error; NaN where an example has
            several right labels of which one counts.
        examples: How many counted; unreadable ones and those without a label do not.
        top1: Share of the examples whose likeliest class is right; NaN where there is no such
            class, as for the next.
        top5: Share of those that have the right one among the likeliest five.
        details: Class by class, label by label or output by output, where that was counted.
        bad: What could not be read on this host, as "name: reason".
    """

    loss: float
    examples: int
    top1: float = math.nan
    top5: float = math.nan
    details: "Details | None" = field(default=None, repr=False, compare=False)
    bad: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, float]:
        """What is logged, the figure by which the best model is chosen first; greater is better."""
        own = {} if math.isnan(self.top1) else {"top1": self.top1, "top5": self.top5}
        return own or (self.details.figures if self.details else {})

    @property
    def text(self) -> str:
        """The figures in words."""
        if not math.isnan(self.top1):
            return f"top-1 {self.top1:.3%}, top-5 {self.top5:.3%}"
        return ", ".join(f"{name} {value:.4f}" for name, value in self.figures.items())

    def to_json(self) -> dict[str, Any]:
        """The figures, in plain JSON types: a number that there is not is null."""
        plain = {"loss": self.loss, "examples": self.examples, **self.figures}
        finite = {n: v if math.isfinite(v) else None for n, v in plain.items()}
        return {**finite, "bad": self.bad}


class Details(Protocol):
    """A score class by class."""

    @property
    def figures(self) -> dict[str, float]:
        """Of the whole."""
        ...

    def rows(self, names: Names) -> list[dict[str, Any]]:
        """For each class, label or output its name and its figures."""
        ...


@dataclass(frozen=True)
class Confusion:
    """How often each class was taken for each.

    Attributes:
        counts: A row for each true class, a column for each that was found.

    Example:
        >>> found = Confusion(np.array([[3, 1], [0, 4]]))
        >>> found.rows(["cat", "dog"])[0]
        {'name': 'cat', 'precision': 1.0, 'recall': 0.75, 'f1': 0.857..., 'support': 4}
    """

    counts: Int[np.ndarray, "classes classes"]

    @property
    def figures(self) -> dict[str, float]:
        """Accuracy, and the mean over the classes of F1."""
        f1 = [row["f1"] for row in self.rows([""] * len(self.counts))]
        right = np.trace(self.counts) / max(self.counts.sum(), 1)
        return {"accuracy": float(right), "macro_f1": float(np.mean(f1))}

    def rows(self, names: Names) -> list[dict[str, Any]]:
        """Precision, recall, F1 and the number of examples of each class."""
        return _rows(names, np.diag(self.counts), self.counts.sum(0), self.counts.sum(1))


@dataclass(frozen=True)
class LabelCounts:
    """Of several labels an image, how often each was found and was there.

    Attributes:
        both: Found, and there.
        found: Found.
        there: There.
        exact: Images all of whose labels were right.
        examples: Images.
    """

    both: Int[np.ndarray, " labels"]
    found: Int[np.ndarray, " labels"]
    there: Int[np.ndarray, " labels"]
    exact: int
    examples: int

    @property
    def figures(self) -> dict[str, float]:
        """The mean over the labels of F1, and the share of images without a mistake."""
        f1 = [row["f1"] for row in self.rows([""] * len(self.both))]
        return {"macro_f1": float(np.mean(f1)), "exact": self.exact / max(self.examples, 1)}

    def rows(self, names: Names) -> list[dict[str, Any]]:
        """Precision, recall, F1 and the number of images of each label."""
        return _rows(names, self.both, self.found, self.there)


@dataclass(frozen=True)
class Residuals:
    """Of a regression, the sums over the images for each output.

    Attributes:
        absolute: Of the errors' sizes.
        squared: Of their squares.
        target: Of the targets.
        target_squared: Of their squares.
        examples: Images.
    """

    absolute: Float[np.ndarray, " outputs"]
    squared: Float[np.ndarray, " outputs"]
    target: Float[np.ndarray, " outputs"]
    target_squared: Float[np.ndarray, " outputs"]
    examples: int

    @property
    def figures(self) -> dict[str, float]:
        """The means over the outputs of the share of variance explained, and of the errors."""
        rows = self.rows([""] * len(self.squared))
        return {
            "r2": float(np.mean([row["r2"] for row in rows])),
            "negative_mean_error": -float(np.mean([row["mean_error"] for row in rows])),
        }

    def rows(self, names: Names) -> list[dict[str, Any]]:
        """R2, mean absolute and root-mean-square error of each output."""
        count = max(self.examples, 1)
        spread = self.target_squared - self.target**2 / count
        # As scikit-learn has it where a target does not vary.
        r2 = np.where(spread > 0, 1 - self.squared / np.where(spread > 0, spread, 1), 0.0)
        return [
            {
                "name": name,
                "r2": float(r2[i]),
                "mean_error": float(self.absolute[i] / count),
                "rms_error": math.sqrt(self.squared[i] / count),
            }
            for i, name in enumerate(names)
        ]


def make_details(sums: Mapping[str, np.ndarray]) -> Details | None:
    """What an evaluation's sums say class by class; None where they do not."""
    examples = int(sums["examples"])
    if "confusion" in sums:
        return Confusion(_whole(sums["confusion"]))
    if "exact" in sums:
        counts = (_whole(sums[name]) for name in ("both", "found", "there"))
        return LabelCounts(*counts, exact=int(sums["exact"]), examples=examples)
    if "squared" in sums:
        fields = ("absolute", "squared", "target", "target_squared")
        return Residuals(*(np.asarray(sums[name]) for name in fields), examples=examples)
    return None


def to_json(score: Score, names: Names) -> dict[str, Any]:
    """A score class by class, in plain JSON types.

    Args:
        score: With details.
        names: Of classes, labels or outputs.
    """
    assert score.details is not None
    described = {**score.to_json(), **score.details.figures, "classes": score.details.rows(names)}
    if isinstance(score.details, Confusion):
        described["confusion"] = score.details.counts.tolist()
    return described


def table(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    r"""The lines of a table of rows as `Details.rows` gives them.

    Example:
        >>> print("\n".join(table([{"name": "cat", "recall": 0.75, "support": 4}])))
        name  recall  support
        cat    0.750        4
    """
    columns = list(classes[0])
    cells = [columns, *([_cell(row[name]) for name in columns] for row in classes)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def draw_confusion(counts: Sequence[Sequence[int]], names: Names, path: Path) -> None:
    """A confusion matrix as a PNG: true classes down, found ones across, shares of each row.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            'confusion.png needs matplotlib: pip install "resnetjax[plots]"'
        ) from error
    matrix = np.asarray(counts)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    named = len(matrix) <= _SHOWN_CLASSES
    edge = min(4 + 0.35 * len(matrix), 14) if named else 9
    figure = Figure(figsize=(edge + 1, edge), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="found", ylabel="true", title="Confusion")
    if named:
        places = range(len(matrix))
        axes.set_xticks(places, [_short(name) for name in names], rotation=60, ha="right")
        axes.set_yticks(places, [_short(name) for name in names])
        for i, j in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color, size=8)
    figure.savefig(path, dpi=120)


def _rows(
    names: Names, both: np.ndarray, found: np.ndarray, there: np.ndarray
) -> list[dict[str, Any]]:
    """A share of nothing counts as 0, as in scikit-learn."""
    return [
        {
            "name": name,
            "precision": float(both[i] / max(found[i], 1)),
            "recall": float(both[i] / max(there[i], 1)),
            "f1": float(2 * both[i] / max(found[i] + there[i], 1)),
            "support": int(there[i]),
        }
        for i, name in enumerate(names)
    ]


def _whole(sums: np.ndarray) -> np.ndarray:
    return np.rint(sums).astype(np.int64)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
