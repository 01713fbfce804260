"""The table that the comparisons fill, as Markdown."""

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.parity.rows import ROWS

HEADER = """# Parity with the real frameworks

Written by `RESNETJAX_PARITY_TABLE=docs/parity.md make parity`; `make parity-full` does the same
with every net at full size too. The real framework builds each net; its weights are random, its
statistics measured on {images} and disturbed, and an eighth of its channels have variances of the
size of the norm's epsilon. It is saved, `rj.load` reads it, and both compute in float32 on a CPU.
The numbers are the largest differences as shares of the spread max|f(x_i) - mean f| over the
images: of the logits, and of the worst feature map, from `stem_conv` to the last. 1e-4 is allowed.
The last column is a control: the same with a norm epsilon of 1e-6 where the net has 1e-5 or
1.001e-5. "Told" rows were loaded with `arch=` or `config=`, for their files do not tell. In the
same run `rj.save` writes every row back, its framework reads that, strictly, and all arrays are
compared bit by bit.

{families}

Of a classifier of KerasHub or KerasCV the backbone alone is written back to `.h5`: the head would
be in a group beside the backbone's, which `rj.save` writes in `.weights.h5` and `.keras` only.

{versions}
"""
# By the first part of a row's name: who builds, computes and saves; what we write and who reads it.
FAMILIES = (
    (
        "torchvision, timm, transformers",
        "the package",
        "safetensors: `load_state_dict`, `from_pretrained`",
    ),
    ("akamaster", "its code, written again in `nets.py`", "safetensors: `load_state_dict`"),
    (
        "keras, keras_hub",
        "Keras 3 and KerasHub on PyTorch",
        "`.h5`, `.weights.h5`: `load_weights`; `.keras`: `load_model`",
    ),
    (
        "tf_keras, keras-applications, keras_cv",
        "tf_keras, keras-applications' ResNeXt of its blocks, KerasCV: on TensorFlow, in another "
        "process",
        "`.h5`: `load_weights`, for Keras 3's `.weights.h5` is not read there",
    ),
    (
        "slim",
        "slim in a graph of TensorFlow 1, in another process",
        "npz: compared by name with the graph's variables",
    ),
    (
        "bit",
        "timm with the epsilon of Big Transfer's own code, which is not run; the npz is made of "
        "timm's arrays, by the names that timm reads",
        "npz: timm's `load_pretrained`",
    ),
    (
        "transformers-flax",
        "Transformers' PyTorch net, for Transformers 5 has no Flax; the msgpack is made of its "
        "arrays, by the names of `modeling_flax_resnet.py` in Transformers 4",
        "msgpack: compared with the same tree, read by Flax",
    ),
)
COLUMNS = ("net", "file", "size", "read as", "logits", "worst feature", "wrong epsilon")
PACKAGES = (
    "torch", "torchvision", "timm", "transformers", "keras", "keras-hub", "jax", "flax",
)  # fmt: skip


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


@dataclass
class Table:
    """All lines, and what they were measured on.

    Attributes:
        entries: As they were measured.
        images: What the nets saw.
        beside: Versions of what ran in another process.
        complete: Whether every process has told what it measured.
    """

    entries: list[Entry] = field(default_factory=list)
    images: str = "photographs"
    beside: dict[str, str] = field(default_factory=dict)
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """In plain types, for the process that writes the table."""
        return asdict(self)

    def add(self, values: dict[str, Any]) -> None:
        """Takes what another process measured, from its `to_json`."""
        self.entries += [Entry(**entry) for entry in values["entries"]]
        if values["entries"]:
            self.images = values["images"]
        self.beside.update(values["beside"])

    def lines(self) -> list[str]:
        """The table in Markdown, its columns aligned, in the order of the rows."""
        order = {row.name: place for place, row in enumerate(ROWS)}
        entries = sorted(self.entries, key=lambda entry: (order[entry.name], entry.size_px))
        return _aligned([COLUMNS, *(entry.cells() for entry in entries)])

    def summary(self) -> str:
        """How many nets, and the worst of them."""
        logits = max(self.entries, key=lambda entry: entry.errors["logits"])
        worst = max(self.entries, key=lambda entry: max(entry.errors.values()))
        return (
            f"{len({entry.name for entry in self.entries})} nets in {len(self.entries)} forms; "
            f"worst logits {logits.errors['logits']:.1e} ({logits.name}), worst feature "
            f"{max(worst.errors.values()):.1e} ({worst.name})."
        )

    def write(self, path: Path) -> None:
        """The whole document."""
        packages = {**{package: version(package) for package in PACKAGES}, **self.beside}
        packages["Python"] = platform.python_version()
        versions = ", ".join(f"{name} {number}" for name, number in packages.items())
        titles = ("rows", "who builds, computes and saves", "what `rj.save` writes, who reads it")
        families = "\n".join(_aligned([titles, *FAMILIES]))
        head = HEADER.format(images=self.images, families=families, versions=f"{versions}.")
        text = "\n".join([head, self.summary(), "", *self.lines()]) + "\n"
        path.write_text(text, encoding="utf-8")


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return [f"| {' | '.join(row)} |" for row in padded]
