"""What a training run is, as one tree of frozen dataclasses; `configs/` holds its values."""

import dataclasses
import hashlib
import json
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from resnetjax import presets
from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.data.augmentation import Augmentation
from resnetjax.errors import ConfigError
from resnetjax.fields import check_types, construct, require

Decayed = Literal["all", "kernels", "not_norms"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which net is trained.

    Attributes:
        arch: An architecture's name.
        config: A net of your own in its place.
        num_classes: None takes those of the data.
        zero_init_residual: None leaves it as the architecture has it; likewise the next two.
        drop_path_rate: Stochastic depth of the last block.
        dropout: Before the head.
        frozen: Parts ("stem", "stage1", ...) that are neither trained nor move their statistics.
        remat: Recompute activations in the backward pass: less memory, a third more arithmetic.
    """

    arch: str = "resnet50"
    config: Annotated[ResNetConfig | None, tyro.conf.Suppress] = None
    num_classes: int | None = None
    zero_init_residual: bool | None = None
    drop_path_rate: float | None = None
    dropout: float | None = None
    frozen: tuple[str, ...] = ()
    remat: bool = False

    def __post_init__(self) -> None:
        check_types(self)

    def resolve(self, *, num_classes: int) -> ResNetConfig:
        """The net's config, for data of so many classes.

        Raises:
            UnknownName: No architecture goes by this name.
            ConfigError: A value is not allowed.
        """
        base = self.config or presets.get(self.arch)
        changes = {
            name: getattr(self, name)
            for name in ("zero_init_residual", "drop_path_rate", "dropout")
            if getattr(self, name) is not None
        }
        return base.replace(num_classes=self.num_classes or num_classes, **changes)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images are trained on, and how they are read.

    Attributes:
        path: Anything that `resnetjax.data.datasets.open_dataset` reads; needed before a run.
        train_split: Name of the split that is trained on.
        test_split: Name of the split that is evaluated on.
        train_px: Height and width of the training images.
        workers: Processes that read and decode; 0 reads in threads of this process.
        threads: Threads of each of them; 0 takes one a core.
        prefetch: Batches read ahead.
        bad_rate: Share of unreadable images above which the run stops.
    """

    path: str = ""
    train_split: str = "train"
    test_split: str = "validation"
    train_px: int = 224
    workers: int = 0
    threads: int = 0
    prefetch: int = 4
    bad_rate: float = 0.01

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("train_px", "prefetch"):
            require(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("workers", "threads"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "bad_rate", 0 <= self.bad_rate <= 1, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How gradients become updates.

    Attributes:
        name: "sgd", "lars" (You 2017), "lamb" (You 2019), "adamw", or "muon" (Jordan 2024: Muon for
            convolutions, AdamW for all else).
        learning_rate: Its peak, for a batch of `learning_rate_batch`.
        learning_rate_batch: Scale the rate by batch size / this (linear scaling, Goyal 2017); None
            takes the rate as it stands.
        momentum: Of SGD, LARS and Muon.
        nesterov: Look ahead by the momentum; SGD, LARS and Muon.
        betas: Of AdamW and LAMB.
        eps: Of AdamW and LAMB.
        weight_decay: Added to the gradient (SGD, LARS) or to the update (AdamW, LAMB, Muon).
        decayed: "kernels" (neither norms nor biases), "not_norms" (biases too), or "all".
        trust_coefficient: LARS's eta.
        clip_norm: Bound on the global norm of the gradient, or None.
        clip_adaptive: Bound on each unit's gradient over its weight (AGC, Brock 2021), or None.
        accumulate: Batches are taken in so many equal parts, one after the other, and their
            gradients summed.
        ema_decay: Keep an average of parameters and statistics, of this share a update; None keeps
            none. It follows the parameters until the warm-up is over.
        ema_every: Steps between its updates.
    """

    name: Literal["sgd", "lars", "lamb", "adamw", "muon"] = "sgd"
    learning_rate: float = 0.1
    learning_rate_batch: int | None = None
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    decayed: Decayed = "kernels"
    trust_coefficient: float = 1e-3
    clip_norm: float | None = None
    clip_adaptive: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    ema_every: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("learning_rate", "eps", "weight_decay", "trust_coefficient"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        require(self, "betas", all(0 <= beta < 1 for beta in self.betas), "0 to below 1 each")
        for name in ("accumulate", "ema_every"):
            require(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("momentum", "ema_decay"):
            require(self, name, 0 <= (getattr(self, name) or 0) < 1, "0 to below 1")
        for name in ("clip_norm", "clip_adaptive", "learning_rate_batch"):
            value = getattr(self, name)
            require(self, name, value is None or value > 0, "a positive number, or None")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate runs, as a factor of its peak, changing at every step.

    Attributes:
        kind: "cosine" or "polynomial" from 1 to `final_factor`, "steps", or "constant".
        warmup_epochs: Length of the warm-up before that.
        warmup_kind: "linear" from `warmup_factor` to 1, or "constant" at that factor (He 2015).
        warmup_factor: Where the rise begins.
        final_factor: Where the fall ends.
        power: Of "polynomial"; 1 is linear.
        milestones: Of "steps": shares of the whole run.
        milestone_factor: What the rate is multiplied by at each.
    """

    kind: Literal["cosine", "polynomial", "steps", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    warmup_kind: Literal["linear", "constant"] = "linear"
    warmup_factor: float = 0.0
    final_factor: float = 0.0
    power: float = 2.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    milestone_factor: float = 0.1

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("warmup_epochs", "warmup_factor", "final_factor", "milestone_factor"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        increasing = list(self.milestones) == sorted(set(self.milestones))
        require(
            self,
            "milestones",
            increasing and all(0 < share < 1 for share in self.milestones),
            "increasing shares of the run, between 0 and 1",
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and how the net is scored.

    Attributes:
        every_epochs: Between evaluations; the last epoch is always followed by one. 0 is that only.
        batch_size: None takes the training's.
        exact_statistics_batches: Recompute the norms' statistics over so many training batches
            before each evaluation, as He et al. 2015 did; 0 uses the running ones.
    """

    every_epochs: float = 1.0
    batch_size: int | None = None
    exact_statistics_batches: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "every_epochs", self.every_epochs >= 0, "0 or more")
        fits = self.batch_size is None or self.batch_size >= 1
        require(self, "batch_size", fits, "1 or more, or None")
        require(self, "exact_statistics_batches", self.exact_statistics_batches >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """When the state is saved, and what is done about faults.

    Attributes:
        every_steps: Between checkpoints; 0 saves after each evaluation and at the end only.
        keep: Newest checkpoints kept.
        asynchronous: Write while training goes on.
        failed_save: "stop" ends the run when a checkpoint cannot be written, "continue" goes on.
        max_skipped: Steps in a row that may be skipped for a loss or gradient that is not finite.
    """

    every_steps: int = 0
    keep: int = 3
    asynchronous: bool = True
    failed_save: Literal["stop", "continue"] = "continue"
    max_skipped: int = 10

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "every_steps", self.every_steps >= 0, "0 or more")
        require(self, "keep", self.keep >= 1, "1 or more")
        require(self, "max_skipped", self.max_skipped >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How a step is spread over the devices.

    Attributes:
        model: Devices over which parameters and optimiser state are split (fully sharded); the
            batch is split over all devices in any case.
        norm_batch: Examples over which batch norm takes its statistics; None takes the whole batch,
            over all devices. The batch over the number of devices is "per-device" batch norm.
    """

    model: int = 1
    norm_batch: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "model", self.model >= 1, "1 or more")
        fits = self.norm_batch is None or self.norm_batch >= 1
        require(self, "norm_batch", fits, "1 or more, or None")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run.

    Attributes:
        model: Which net.
        data: Which images.
        augmentation: How training images are varied.
        preprocess: The evaluation's transform, whose mean and deviation normalise training images
            too; the trained net takes it along.
        loss: "cross_entropy", or "binary_cross_entropy" of each class (Wightman 2021).
        loss_threshold: Mixed targets above it count as 1, others as 0; of binary cross-entropy,
            None takes them as they are.
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
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    loss_threshold: float | None = None
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
        parts = {"accumulate": self.optimizer.accumulate}
        for name, number in parts.items():
            self._require_divides(name, number)
        self._require_divides(
            "norm_batch times accumulate",
            (self.parallelism.norm_batch or 1) * self.optimizer.accumulate,
        )

    def _require_divides(self, name: str, number: int) -> None:
        if self.batch_size % number:
            raise ConfigError(
                f"batch_size={self.batch_size} is not allowed: use a multiple of "
                f"{name}, which is {number}"
            )

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
    "data.threads",
    "data.workers",
    "evaluation.batch_size",
    "evaluation.every_epochs",
    "model.remat",
    "parallelism.model",
)


def _deciding(recipe: Recipe) -> dict[str, Any]:
    # 90.0 is read as 90: as `epochs=90` in a file and `--epochs 90` after it, it is one recipe.
    plain = json.loads(json.dumps(recipe.to_json()), parse_float=_number)
    flat = _flatten(plain, "")
    return {name: value for name, value in flat.items() if not name.startswith(_FREE)}


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
