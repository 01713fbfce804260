"""The table that the comparisons fill, as Markdown."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HEADER = """# Parity with the real frameworks

Written by `RESNETJAX_PARITY_TABLE=docs/parity.md make parity`; `make parity-full` does the same
with every net at full size too. The real framework builds each net; its weights are random, its
statistics measured on {images} and disturbed, and an eighth of its channels have variances of the
size of the norm's epsilon. The framework saves it, `rj.load` reads it, and both compute in
float32 on a CPU. The numbers are the largest differences as shares of the spread max|f(x_i) -
mean f| over the images: of the logits, and of the worst feature map, from `stem_conv` to the
last. 1e-4 is allowed. The last column is a control: the same with a norm epsilon of 1e-6 where
the net has 1e-5. "Told" rows were loaded with `arch=` or `config=`, for their files do not tell.
In the same run every row is saved back by `rj.save`, loaded strictly by its framework, and
compared bit by bit.

{versions}
"""
COLUMNS = ("net", "file", "size", "read as", "logits", "worst feature", "wrong epsilon")
PACKAGES = ("torch", "torchvision", "timm", "transformers", "jax", "flax")


@dataclass
class Entry:
    """One line of the table."""

    name: str
    layout: str
    size_px: tuple[int, int]
    short: bool
    detected: str
    errors: dict[str, float]
    wrong_epsilon: float | None = None

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `COLUMNS`."""
        features = {name: error for name, error in self.errors.items() if name != "logits"}
        worst = max(features, key=lambda name: features[name])
        size = "x".join(map(str, self.size_px)) + (", shortened" if self.short else "")
        control = "" if self.wrong_epsilon is None else f"{self.wrong_epsilon:.0e}"
        logits, feature = f"{self.errors['logits']:.1e}", f"{features[worst]:.1e} ({worst})"
        return (self.name, self.layout, size, self.detected, logits, feature, control)


def lines(entries: list[Entry]) -> list[str]:
    """The table in Markdown, its columns aligned."""
    rows = [COLUMNS, *(entry.cells() for entry in entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    rows.insert(1, tuple("-" * width for width in widths))
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return [f"| {' | '.join(row)} |" for row in padded]


def summary(entries: list[Entry]) -> str:
    """How many nets, and the worst of them."""
    logits = max(entries, key=lambda entry: entry.errors["logits"])
    worst = max(entries, key=lambda entry: max(entry.errors.values()))
    return (
        f"{len({entry.name for entry in entries})} nets in {len(entries)} forms; worst logits "
        f"{logits.errors['logits']:.1e} ({logits.name}), worst feature "
        f"{max(worst.errors.values()):.1e} ({worst.name})."
    )


def write(path: Path, entries: list[Entry], *, images: str) -> None:
    """The whole document."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    head = HEADER.format(images=images, versions=f"{versions}, Python {platform.python_version()}.")
    text = "\n".join([head, summary(entries), "", *lines(entries)]) + "\n"
    path.write_text(text, encoding="utf-8")
