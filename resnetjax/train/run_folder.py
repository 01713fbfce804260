"""The folder of a run: what lies where, and whether a recipe may go on in it."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetjax.errors import ConfigError, CorruptFile
from resnetjax.folders import model_files
from resnetjax.train import scores
from resnetjax.train.checkpoint import Checkpoints
from resnetjax.train.recipe import Recipe


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what.

    Attributes:
        root: The folder itself.
    """

    root: Path

    @property
    def checkpoints(self) -> Path:
        """The states to resume from."""
        return self.root / "checkpoints"

    @property
    def recipe(self) -> Path:
        """What the run is."""
        return self.root / "recipe.json"

    @property
    def metrics(self) -> Path:
        """The log of every step and evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """The log, drawn."""
        return self.root / "curves.png"

    @property
    def first_batch(self) -> Path:
        """What a dry run draws."""
        return self.root / "first_batch.png"

    @property
    def bad_images(self) -> Path:
        """A line for each image that could not be read."""
        return self.root / "bad_images.txt"

    @property
    def report(self) -> Path:
        """How the best model scored, class by class."""
        return self.root / "report.json"

    @property
    def confusion(self) -> Path:
        """The classes that it took for others, drawn."""
        return self.root / "confusion.png"

    def model(self, which: str) -> Path:
        """The native form of the "best" or the "latest" model; `resnetjax.load` reads it."""
        return self.root / which

    def check(self) -> None:
        """Makes sure that a run may have the folder, whatever its recipe.

        Raises:
            ConfigError: It is a file, or below one. Or it holds a model and no run: what loads the
                folder would take that model, and never the run's.
        """
        for path in (self.root, *self.root.parents):
            if path.is_file():
                raise ConfigError(
                    f"workdir={os.fspath(self.root)!r} is not allowed: {path} is a file; name a "
                    "folder, which need not be there"
                )
        found = model_files(self.root)
        if found and not self.recipe.exists() and not self.checkpoints.exists():
            raise ConfigError(
                f"workdir={os.fspath(self.root)!r} is not allowed: it holds a model "
                f"({', '.join(found)}), which would be taken for the run's. Name a folder of its "
                "own, as --workdir runs/NAME"
            )

    def claim(self, recipe: Recipe, facts: Mapping[str, Any], *, allow_changes: bool) -> None:
        """Notes the recipe of a new run, or checks that of one that is to be resumed.

        Args:
            recipe: The recipe.
            facts: What the data is: a run on other data is another run.
            allow_changes: Resume even so; the new recipe is noted.

        Raises:
            ConfigError: The run was begun with another recipe or on other data; all differences
                that decide its numbers are listed, where `recipe.json` is there to tell them. Or as
                `check`.
            CorruptFile: `recipe.json` is not one.
        """
        self.check()
        path = self.recipe
        if path.exists():
            before, facts_before = _read(path)
            changes = before.differences(recipe) + tuple(
                f"{name}: {facts_before[name]} -> {value}"
                for name, value in facts.items()
                if name in facts_before and facts_before[name] != value  # not all data has names
            )
        else:
            newest = Checkpoints(self.checkpoints).latest()
            same = newest is None or newest.config == run_digest(recipe, facts)
            changes = (
                () if same else ("recipe.json is gone; the checkpoints are of another recipe",)
            )
        if changes and not allow_changes:
            raise ConfigError(
                f"{self.root} holds a run with another recipe:\n  "
                + "\n  ".join(changes)
                + "\nTake another --workdir, or --allow-changes to go on with the new values."
            )
        self.root.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"recipe": recipe.to_json(), "data": dict(facts)}, indent=1)
        _replace(path, f"{text}\n")

    def note_report(self, report: Mapping[str, Any]) -> None:
        """Writes how the best model scored, as JSON and as a table of its classes."""
        _replace(self.report, f"{json.dumps(report)}\n")
        lines = scores.table(report["classes"])
        _replace(self.report.with_suffix(".txt"), "\n".join((*lines, "")))

    def draw_report(self) -> None:
        """Draws `confusion.png`, where the classes of a report can be confused.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        report = json.loads(self.report.read_text()) if self.report.exists() else {}
        if "confusion" in report:
            names = [row["name"] for row in report["classes"]]
            scores.draw_confusion(report["confusion"], names, self.confusion)

    def report_lines(self) -> list[str]:
        """The table of a report, and where it is; of many classes only the latter."""
        table = self.report.with_suffix(".txt")
        lines = table.read_text().splitlines() if table.exists() else []
        shown = lines if len(lines) <= _SHOWN_LINES else []
        return [*shown, f"class by class: {table}"] if lines else []

    def bad_lines(self) -> list[str]:
        """What `note_bad` has listed so far, in this process or before."""
        return self.bad_images.read_text().splitlines() if self.bad_images.exists() else []

    def note_bad(self, lines: Iterable[str]) -> None:
        """Lists images that could not be read, each once."""
        known = set(self.bad_lines())
        new = [
            line for line in dict.fromkeys(_one_line(text) for text in lines) if line not in known
        ]
        if new:
            with self.bad_images.open("a") as file:
                file.writelines(f"{line}\n" for line in new)


def run_digest(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe and its data, which checkpoints carry: equal for one run."""
    text = json.dumps([recipe.digest(), dict(facts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


_SHOWN_LINES = 50


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _read(path: Path) -> tuple[Recipe, dict[str, Any]]:
    try:
        values = json.loads(path.read_text())
        return Recipe.from_json(values["recipe"]), dict(values["data"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{path}: not the recipe of a run: {error}") from error
