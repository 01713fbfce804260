"""The parts of a recipe: net, data, optimiser, schedule, evaluation, checkpoints, devices."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from resnetjax import presets
from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.fields import check_types, require

Decayed = Literal["all", "kernels", "not_norms"]
_ARCH = "resnet50"  # of a recipe that says no net


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which net is trained.

    Attributes:
        arch: An architecture's name; None is "resnet50", or the `config`.
        config: A net of your own in its place.
        num_classes: None takes those of the data.
        zero_init_residual: None leaves it as the architecture has it; likewise the next three.
        drop_path_rate: Stochastic depth of the last block.
        dropout: Before each dense layer of the head.
        head_widths: Features of dense layers before the head's last.
        weights: What the run starts from: anything that `resnetjax.load` reads. "" draws weights.
            `transfer.starting_from` fills in the net and its preprocessing with it.
        keep_head: Start with the head of `weights` too; it must have as many outputs.
        frozen: What is neither trained nor moves its statistics: parts ("stem", "stage1", ...),
            modules, patterns of array names ("*/norm1", "*/mean" for all statistics), or "up to
            stage3" for that and all before it.
        unfreeze_after_epochs: When only `still_frozen` stays frozen; None is never.
        still_frozen: Patterns as in `frozen`.
        remat: Recompute activations in the backward pass: less memory, a third more arithmetic.
    """

    arch: str | None = None
    config: Annotated[ResNetConfig | None, tyro.conf.Suppress] = None
    num_classes: int | None = None
    zero_init_residual: bool | None = None
    drop_path_rate: float | None = None
    dropout: float | None = None
    head_widths: tuple[int, ...] | None = None
    weights: str = ""
    keep_head: bool = False
    frozen: tuple[str, ...] = ()
    unfreeze_after_epochs: float | None = None
    still_frozen: tuple[str, ...] = ()
    remat: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        after = self.unfreeze_after_epochs
        require(self, "unfreeze_after_epochs", after is None or after >= 0, "0 or more, or None")
        thaws = after is not None or not self.still_frozen
        require(self, "still_frozen", thaws, "() where unfreeze_after_epochs is None")
        starts = self.weights or not self.keep_head
        require(self, "keep_head", starts, "False where there are no weights to keep it of")

    @property
    def architecture(self) -> str | None:
        """The name of the architecture, or None of a net of your own."""
        return None if self.config else self.arch or _ARCH

    def resolve(self, *, num_classes: int) -> ResNetConfig:
        """The net's config, for data of so many classes.

        Raises:
            UnknownName: No architecture goes by this name.
            ConfigError: A value is not allowed, or there are both a name and a config.
        """
        if self.arch and self.config:
            raise ConfigError(
                f"model.arch={self.arch!r} is not allowed here: the recipe, or --model, has a net "
                "of its own (model.config)"
            )
        base = self.config or presets.get(self.arch or _ARCH)
        changes = {
            name: getattr(self, name)
            for name in ("zero_init_residual", "drop_path_rate", "dropout", "head_widths")
            if getattr(self, name) is not None
        }
        return base.replace(num_classes=self.num_classes or num_classes, **changes)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images are trained on, and how they are read.

    Attributes:
        path: Anything that `resnetjax.data.datasets.open_dataset` reads; needed before a run.
        test_path: Where the images that are evaluated on are, if not at `path`.
        train_split: Name of the split that is trained on.
        test_split: Name of the split that is evaluated on.
        held_out: Where the data has no split of that name, the share of each class of the training
            split that is evaluated on instead; which examples follows from the recipe's seed.
        train_px: Height and width of the training images.
        workers: Processes that read and decode; 0 reads in threads of this process.
        threads: Threads of each of them; 0 takes one a core.
        prefetch: Batches read ahead.
        bad_rate: Share of unreadable images above which the run stops.
    """

    path: str = ""
    test_path: str | None = None
    train_split: str = "train"
    test_split: str = "validation"
    held_out: float = 0.0
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
        require(self, "held_out", 0 <= self.held_out < 1, "0 to below 1")
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
        learning_rate_scales: What the rate of some arrays is multiplied by: pairs of a pattern, as
            in `Model.frozen`, and a factor; the first pattern that matches decides.
        layer_decay: The head learns at the full rate, the last block at this share of it, the block
            before at the share squared, and so on down to the stem (BEiT, Bao 2021).
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
    learning_rate_scales: tuple[tuple[str, float], ...] = ()
    layer_decay: float = 1.0
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
        factors = [factor for _, factor in self.learning_rate_scales]
        require(self, "learning_rate_scales", all(f >= 0 for f in factors), "factors of 0 or more")
        require(self, "layer_decay", 0 < self.layer_decay <= 1, "above 0, up to 1")
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
        unfreezing_warmup_epochs: How long the rate of what is unfrozen later rises from 0 to that
            of all else, from the unfreezing on.
        final_factor: Where the fall ends.
        power: Of "polynomial"; 1 is linear.
        milestones: Of "steps": shares of the whole run.
        milestone_factor: What the rate is multiplied by at each.
    """

    kind: Literal["cosine", "polynomial", "steps", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    warmup_kind: Literal["linear", "constant"] = "linear"
    warmup_factor: float = 0.0
    unfreezing_warmup_epochs: float = 0.0
    final_factor: float = 0.0
    power: float = 2.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    milestone_factor: float = 0.1

    def __post_init__(self) -> None:
        check_types(self)
        for name in (
            "warmup_epochs",
            "warmup_factor",
            "unfreezing_warmup_epochs",
            "final_factor",
            "milestone_factor",
        ):
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
        patience: End the run when so many evaluations in a row are none the better; None is never.
        batch_size: None takes the training's.
        exact_statistics_batches: Recompute the norms' statistics over so many training batches
            before each evaluation, as He et al. 2015 did; 0 uses the running ones.
    """

    every_epochs: float = 1.0
    patience: int | None = None
    batch_size: int | None = None
    exact_statistics_batches: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "every_epochs", self.every_epochs >= 0, "0 or more")
        waits = self.patience is None or self.patience >= 1
        require(self, "patience", waits, "1 or more, or None")
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
        failed_save: "stop" ends the run when a checkpoint, the log or a model cannot be written;
            "continue" goes on, and only the last ones must succeed.
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
        norm_batch: Examples over which batch norm takes its statistics, or all of a batch (of each
            of its parts, with `Optimizer.accumulate`) that has fewer; None is always all, over all
            devices. The batch over the number of devices is "per-device" batch norm.
    """

    model: int = 1
    norm_batch: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "model", self.model >= 1, "1 or more")
        fits = self.norm_batch is None or self.norm_batch >= 1
        require(self, "norm_batch", fits, "1 or more, or None")
