"""What a training run is, as one tree of frozen dataclasses; `configs/` holds its values."""

import dataclasses
import hashlib
import json
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.errors import ConfigError
from resnetjax.fields import check_types, construct, require
from resnetjax.train.parts import (
    Checkpointing,
    Data,
    Evaluation,
    Model,
    Optimizer,
    Parallelism,
    Schedule,
)

__all__ = [
    "Checkpointing",
    "Data",
    "Evaluation",
    "Model",
    "Optimizer",
    "Parallelism",
    "Recipe",
    "Schedule",
    "read_recipe",
]

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Loss = Literal["cross_entropy", "binary_cross_entropy", "mean_squared_error"]

# The losses that a problem may have; Transformers' `problem_type` has the same names and the first
# of these.
LOSSES: dict[ProblemType, tuple[Loss, ...]] = {
    "single_label_classification": ("cross_entropy", "binary_cross_entropy"),
    "multi_label_classification": ("binary_cross_entropy",),
    "regression": ("mean_squared_error",),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run.

    Attributes:
        model: Which net.
        data: Which images.
        augmentation: How training images are varied.
        preprocess: The evaluation's transform, whose mean and deviation normalise training images
            too; the trained net takes it along.
        problem_type: Whether an image has one class, any number of them, or numbers to be found.
        loss: "cross_entropy", or "binary_cross_entropy" of each class (Wightman 2021), which is
            that of several labels too; "mean_squared_error" of a regression.
        loss_threshold: Mixed targets above it count as 1, others as 0; of binary cross-entropy,
            None takes them as they are.
        class_weights: What an example's loss is multiplied by for its class, as Keras does it; with
            several labels, what the loss of a label that is there is (torch's `pos_weight`).
            "balanced" weighs by the inverse of the frequency in the training data.
        optimizer: How gradients become updates.
        schedule: How the learning rate runs.
        evaluation: When and how the net is scored.
        checkpoint: When the state is saved.
        precision: Of the activations; "float16" scales the loss. Parameters stay float32.
        parallelism: How a step is spread over devices.
        batch_size: Over all devices and hosts.
        epochs: Passes over the images; the last batch of each, where it is not full, is dropped.
        seed: Of initial weights, order and augmentation.
    """

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    preprocess: Preprocess = field(default_factory=Preprocess)
    problem_type: ProblemType = "single_label_classification"
    loss: Loss = "cross_entropy"
    loss_threshold: float | None = None
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "bfloat16"
    parallelism: Parallelism = field(default_factory=Parallelism)
    batch_size: int = 1024
    epochs: float = 90.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "batch_size", self.batch_size >= 1, "1 or more")
        require(self, "epochs", self.epochs > 0, "a positive number")
        # jax.random.key takes 32 bits unless 64 are enabled, and drops the rest without a word.
        require(self, "seed", 0 <= self.seed < 2**32, "0 to below 2**32")
        losses = LOSSES[self.problem_type]
        fits = self.loss in losses
        require(self, "loss", fits, f"{' or '.join(map(repr, losses))} in {self.problem_type}")
        weights = self.class_weights if isinstance(self.class_weights, tuple) else ()
        require(self, "class_weights", all(weight >= 0 for weight in weights), "0 or more each")
        unweighted = self.problem_type == "regression" and self.class_weights is not None
        require(self, "class_weights", not unweighted, "None in a regression")
        if self.problem_type != "single_label_classification":
            smoothing = self.augmentation.label_smoothing
            if smoothing:
                raise ConfigError(
                    f"label_smoothing={smoothing} is not allowed: use 0 in {self.problem_type}"
                )
        parts = self.optimizer.accumulate
        fits = self.batch_size % parts == 0
        require(self, "batch_size", fits, f"a multiple of optimizer.accumulate, which is {parts}")
        part, norm_batch = self.batch_size // parts, self.norm_batch
        if norm_batch and part % norm_batch:
            of = f"batch_size={self.batch_size} in {parts} parts" if parts > 1 else "batch_size"
            raise ConfigError(
                f"parallelism.norm_batch={norm_batch} is not allowed: use a divisor of {of}, which "
                f"is {part}, or None for all of them"
            )

    @property
    def norm_batch(self) -> int | None:
        """Examples over which batch norm takes its statistics; None where those are all."""
        chosen = self.parallelism.norm_batch
        fewer = chosen and chosen < self.batch_size // self.optimizer.accumulate
        return chosen if fewer else None

    @property
    def learning_rate(self) -> float:
        """The peak of the learning rate at this batch size."""
        per = self.optimizer.learning_rate_batch
        return self.optimizer.learning_rate * (self.batch_size / per if per else 1)

    def to_json(self) -> dict[str, Any]:
        """Every field of the tree, in plain JSON types once serialised."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_json` described.

        Raises:
            ConfigError: A field is unknown or not allowed.
        """
        return construct(cls, values)

    def digest(self) -> str:
        """SHA-256 of all that decides the numbers of a run: equal for runs that may be resumed."""
        return hashlib.sha256(json.dumps(_deciding(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Recipe") -> tuple[str, ...]:
        """What decides the numbers and is not the same, as "field: this -> other"."""
        mine, theirs = _deciding(self), _deciding(other)
        return tuple(
            f"{name}: {mine.get(name)} -> {theirs.get(name)}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        )


# Fields that say where and how fast a run goes, and leave its numbers alone (but for rounding).
_FREE = (
    "checkpoint.",
    "data.bad_rate",
    "data.path",
    "data.prefetch",
    "data.test_path",
    "data.threads",
    "data.workers",
    "evaluation.batch_size",
    "evaluation.every_epochs",
    "model.remat",
    "model.weights",
    "parallelism.model",
)


def _deciding(recipe: Recipe) -> dict[str, Any]:
    # 90.0 is read as 90: as `epochs=90` in a file and `--epochs 90` after it, it is one recipe.
    plain = json.loads(json.dumps(recipe.to_json()), parse_float=_number)
    flat = _flatten(plain, "")
    flat["model.arch"] = recipe.model.architecture
    deciding = {name: value for name, value in flat.items() if not name.startswith(_FREE)}
    if recipe.evaluation.patience is not None:  # evaluations decide when the run ends
        deciding["evaluation.every_epochs"] = flat["evaluation.every_epochs"]
    return deciding


def _number(text: str) -> float | int:
    return int(float(text)) if float(text).is_integer() else float(text)


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        inner = _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flat.update({f"{prefix}{name}": value} if inner is None else inner)
    return flat


def read_recipe(path: str | Path) -> Recipe:
    """The `RECIPE` that a Python file of `configs/` defines. The file is run.

    Raises:
        ConfigError: There is no such file, it cannot be run, or there is no `RECIPE` in it.
    """
    if not Path(path).is_file():
        raise ConfigError(f"there is no recipe {str(path)!r}: name a file such as configs/NAME.py")
    try:
        recipe = runpy.run_path(str(path)).get("RECIPE")
    except Exception as error:  # it may do anything
        raise ConfigError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"{path} defines no RECIPE = Recipe(...)")
    return recipe
