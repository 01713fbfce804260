"""The parts of a run, built from its recipe: data, net, optimiser, compiled steps."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import flax.traverse_util
import jax
import numpy as np

from resnetjax import zoo
from resnetjax.config import Labels, OutputActivation
from resnetjax.data.datasets import Dataset
from resnetjax.data.held_out import Subset, open_both
from resnetjax.data.host_batch import Reader
from resnetjax.data.loader import Loader, Order
from resnetjax.errors import ConfigError
from resnetjax.measure import flops
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained, Source, Variables
from resnetjax.train.eval_step import make_eval_step
from resnetjax.train.evaluate import Evaluator
from resnetjax.train.groups import frozen_at, training_groups, unfreezing_step
from resnetjax.train.labels import (
    check_classes,
    class_names,
    class_weights,
    counted,
    known_labels,
    listed,
    output_count,
    split_names,
)
from resnetjax.train.optimizer import make_optimizer, make_schedule, total_steps
from resnetjax.train.progress import Progress, peak_flops
from resnetjax.train.recipe import Loss, Recipe
from resnetjax.train.scores import Score, to_json
from resnetjax.train.sharding import (
    batch_sharding,
    local_rows,
    make_mesh,
    place_batch,
    place_state,
    replicated,
    state_sharding,
)
from resnetjax.train.state import TrainState, create_state
from resnetjax.train.statistics import exact_statistics
from resnetjax.train.step import Batch, Metrics, make_model, make_train_step
from resnetjax.train.transfer import initial_variables, kept_outputs


class Setup:
    """A context manager of all that a recipe asks for; data and workers are open inside it.

    Attributes:
        recipe: The recipe.
        config: The net's.
        model: The net, as it is trained.
        mesh: All devices.
        train_data: Examples to train on.
        test_data: Examples to evaluate on.
        split_names: What messages call the two.
        class_names: Of the data's classes, or of the columns of its rows.
        outputs: Values that the data has for each image; 0 where it has a class.
        start: The pretrained net that the run starts from, or None.
        order: Which examples each step sees.
        rows: Of each global batch, those of this process.
        total_steps: Of the run.
        state_shapes: Of the state, without values.
        state_shardings: Where its arrays lie.
        train_step: The first; compiled at its first call, overwrites the state that it is given.
        evaluator: Scores variables on the test data.

    Raises:
        ConfigError: The recipe does not fit the data or the devices.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        if recipe.precision == "float64" and jax.numpy.result_type(float) != np.float64:
            raise ConfigError("precision='float64' is not allowed here: set JAX_ENABLE_X64=1")
        if not recipe.data.path:
            raise ConfigError("data.path is not given: name the images, as --data.path FOLDER")
        self.train_data, self.test_data = open_both(
            recipe.data.path,
            train_split=recipe.data.train_split,
            test_split=recipe.data.test_split,
            test_path=recipe.data.test_path,
            held_out=recipe.data.held_out,
            seed=recipe.seed,
        )
        self.split_names = split_names(recipe, self.test_data)
        self.outputs = output_count(self.train_data, self.test_data, recipe)
        self.class_names = class_names(self.train_data, self.test_data, recipe, of=self.split_names)
        self.config = recipe.model.resolve(num_classes=len(self.class_names))
        for data, name in zip((self.train_data, self.test_data), self.split_names, strict=True):
            check_classes(known_labels(data), self.config.num_classes, of=name)
        _check_channels(recipe, self.config.in_channels)
        self.mesh = make_mesh(model=recipe.parallelism.model)
        self.rows = local_rows(self.mesh, recipe.batch_size)
        self.order = Order(
            len(self.train_data),
            recipe.batch_size,
            recipe.seed,
            recipe.augmentation.repeats,
            recipe.optimizer.accumulate,
        )
        self.total_steps = total_steps(recipe, self.order.steps_per_epoch)
        if not self.total_steps:
            raise ConfigError(f"epochs={recipe.epochs} is not allowed: that is no step at all")
        self.model = make_model(recipe, self.config)
        self.start = zoo.load(recipe.model.weights) if recipe.model.weights else None
        if self.start and recipe.model.keep_head:
            kept_outputs(self.start, self.class_names)
        self._build_steps()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._train_loader = self._stack.enter_context(self._loader(self.train_data, train=True))
        test_loader = self._stack.enter_context(self._loader(self.test_data, train=False))
        self.evaluator = Evaluator(
            make_eval_step(
                self.model, self.recipe.preprocess, problem_type=self.recipe.problem_type
            ),
            test_loader,
            self.mesh,
            batch_size=self.recipe.evaluation.batch_size or self.recipe.batch_size,
            classes=self.config.num_classes,
            name=self.split_names[1],
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def data_line(self) -> str:
        """What is trained and evaluated on, in a line."""
        count = len(self.class_names) or self.config.num_classes
        names = f" ({listed(self.class_names, most=3)})" if self.class_names else ""
        of = f"with {counted(count, 'value')} each" if self.outputs else f"of {count:,} classes"
        tests = len(self.test_data)
        evaluated = (
            f"{tests:,} held out of them"
            if isinstance(self.test_data, Subset)
            else f"{self.split_names[1]}, {counted(tests, 'image')}"
        )
        trained = counted(len(self.train_data), "image")
        return f"training on {trained} {of}{names}, evaluating on {evaluated}"

    @property
    def facts(self) -> dict[str, Any]:
        """What the data is, for a run not to be resumed on other data."""
        names = hashlib.sha256(repr(self.class_names).encode()).hexdigest()[:16]
        return {
            "training examples": len(self.train_data),
            "test examples": len(self.test_data),
            "classes": len(self.class_names) or self.config.num_classes,
            **({"digest of the classes' names": names} if self.class_names else {}),
            "initial weights": self.start.source.sha256 if self.start else None,
        }

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation follows this step."""
        every_epochs = self.recipe.evaluation.every_epochs
        every = max(1, round(every_epochs * self.order.steps_per_epoch)) if every_epochs else 0
        return step == self.total_steps or bool(every and step and step % every == 0)

    def pauses_at(self, step: int) -> bool:
        """Whether an evaluation or a checkpoint follows this step."""
        every = self.recipe.checkpoint.every_steps
        return self.evaluates_at(step) or bool(every and step % every == 0)

    def fresh_state(self) -> TrainState:
        """The state before the first step."""
        variables = initial_variables(
            self.config,
            self.start,
            keep_head=self.recipe.model.keep_head,
            class_names=self.class_names,
            seed=self.recipe.seed,
        )
        optimizer = self._optimizer
        state = create_state(jax.tree.map(self._as_parameter, variables), optimizer, self.recipe)
        return place_state(jax.device_get(state), self.state_shardings)

    def train_step_at(self, step: int) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """What is called at a step: `train_step`, or another once parts are unfrozen."""
        frozen = frozen_at(self.recipe, step, steps_per_epoch=self.order.steps_per_epoch)
        return self._train_steps[frozen]

    def batches(self, start: int) -> Iterator[tuple[Batch, tuple[str, ...]]]:
        """From step `start` to the end: batches on the devices, and what could not be read.

        Raises:
            ConfigError: From the iterator: a label is none of the net's classes.
        """
        batches = self._train_loader.training_batches(
            self.order, start=start, stop=self.total_steps, rows=self.rows
        )
        for batch in batches:
            check_classes(batch.labels, self.config.num_classes, of=self.split_names[0])
            yield place_batch(self.mesh, self.rows, batch, self.recipe.batch_size), batch.bad

    def test_batches(self) -> Iterator[Batch]:
        """Every test example once, on the devices."""
        return self.evaluator.batches()

    def exact_statistics(self, variables: Variables, step: int, count: int) -> Variables:
        """Variables with the norms' statistics of the `count` batches before a step."""
        if not variables["batch_stats"]:
            return variables
        batches = self._train_loader.training_batches(
            self.order, start=max(0, step - count), stop=step, rows=self.rows
        )
        placed = (
            place_batch(self.mesh, self.rows, batch, self.recipe.batch_size) for batch in batches
        )
        frozen = frozen_at(
            self.recipe, max(0, step - 1), steps_per_epoch=self.order.steps_per_epoch
        )
        model = self.model.clone(frozen=frozen)
        exact = exact_statistics(model, variables, placed, self.recipe.preprocess)
        # Where the running ones lie, or evaluation would be compiled again for where these do.
        stats = jax.device_put(exact["batch_stats"], self.state_shardings.batch_stats)
        return {**exact, "batch_stats": stats}

    def pretrained(self, variables: Variables) -> Pretrained:
        """A trained net, as it is kept."""
        activation = _ACTIVATIONS[self.recipe.loss]
        source = self.start.source if self.start else Source(arch=self.recipe.model.architecture)
        named = len(self.class_names) == self.config.num_classes
        return Pretrained(
            model=ResNet(self.config),
            variables={kind: tree for kind, tree in variables.items() if tree},
            preprocess=self.recipe.preprocess,
            labels=Labels(names=self.class_names, activation=activation) if named else None,
            source=Source(arch=source.arch, licence=source.licence),
        )

    def report(self, score: Score, *, step: int) -> dict[str, Any]:
        """A score class by class, for `report.json`."""
        names = self.class_names or tuple(map(str, range(self.config.num_classes)))
        return {"step": step, **to_json(score, names)}

    def progress(self) -> Progress:
        """The line that follows the run, which the first process shows."""
        peak = peak_flops(jax.devices()[0].device_kind)
        halved = self.recipe.precision in ("bfloat16", "float16")
        return Progress(
            total_steps=self.total_steps,
            steps_per_epoch=self.order.steps_per_epoch,
            batch_size=self.recipe.batch_size,
            step_flops=3 * self.recipe.batch_size * self.image_flops,
            peak=peak * self.mesh.size if peak and halved else None,
            quiet=jax.process_index() > 0,
        )

    @functools.cached_property
    def image_flops(self) -> int:
        """Of one training image's forward pass; the backward pass takes twice as many."""
        edge = self.recipe.data.train_px
        return flops(plan(self.config), height=edge, width=edge)

    def _build_steps(self) -> None:
        recipe, steps_per_epoch = self.recipe, self.order.steps_per_epoch
        variables = jax.eval_shape(self._initial)
        _check_learns(recipe, variables["params"])
        self._optimizer = make_optimizer(
            recipe, variables["params"], steps_per_epoch=steps_per_epoch
        )
        self.state_shapes = jax.eval_shape(
            lambda v: create_state(v, self._optimizer, recipe), variables
        )
        self.state_shardings = state_sharding(self.mesh, self.state_shapes)
        weights = class_weights(recipe, self.train_data, self.config.num_classes)

        def compiled(frozen: tuple[str, ...]) -> Any:
            step = make_train_step(
                self.model.clone(frozen=frozen),
                self._optimizer,
                recipe,
                schedule=make_schedule(recipe, steps_per_epoch=steps_per_epoch),
                warmup_steps=round(recipe.schedule.warmup_epochs * steps_per_epoch),
                class_weights=weights,
            )
            return jax.jit(
                step,
                donate_argnums=0,
                in_shardings=(self.state_shardings, batch_sharding(self.mesh)),
                out_shardings=(self.state_shardings, replicated(self.mesh)),
            )

        thaw = unfreezing_step(recipe, steps_per_epoch=steps_per_epoch)
        phases = {
            recipe.model.frozen,
            recipe.model.frozen if thaw is None else recipe.model.still_frozen,
        }
        self._train_steps = {frozen: compiled(frozen) for frozen in phases}
        self.train_step = self._train_steps[frozen_at(recipe, 0, steps_per_epoch=steps_per_epoch)]

    def _initial(self) -> Variables:
        edge = self.recipe.data.train_px
        images = jax.numpy.zeros((1, edge, edge, self.config.in_channels))
        variables = ResNet(self.config).init(jax.random.key(0), images)
        return jax.tree.map(self._as_parameter, variables)

    def _as_parameter(self, array: Any) -> Any:
        return array.astype(np.float64) if self.recipe.precision == "float64" else array

    def _loader(self, dataset: Dataset, *, train: bool) -> Loader:
        chosen = self.recipe.data
        reader = Reader(
            dataset=dataset,
            preprocess=self.recipe.preprocess,
            augmentation=self.recipe.augmentation if train else None,
            edge_px=chosen.train_px,
            seed=self.recipe.seed,
            outputs=self.outputs,
        )
        return Loader(
            reader, workers=chosen.workers, threads=chosen.threads, prefetch=chosen.prefetch
        )


_ACTIVATIONS: dict[Loss, OutputActivation] = {
    "cross_entropy": "softmax",
    "binary_cross_entropy": "sigmoid",
    "mean_squared_error": "none",
}


def _check_learns(recipe: Recipe, params: Any) -> None:
    groups = training_groups(recipe, flax.traverse_util.flatten_dict(params, sep="/"))
    trained = [name for name, group in groups.items() if group == "trained"]
    if recipe.model.weights or any(not name.startswith("head") for name in trained):
        return
    raise ConfigError(
        f"frozen={list(recipe.model.frozen)} is not allowed without weights: random features "
        "would not be trained. Name a pretrained net, as --model PATH"
    )


def _check_channels(recipe: Recipe, in_channels: int) -> None:
    if recipe.preprocess.channels != in_channels:
        raise ConfigError(
            f"preprocess makes {recipe.preprocess.channels} channels, "
            f"but the net takes {in_channels}"
        )
