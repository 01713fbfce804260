"""One step of training, as a pure function of a state and a batch."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from resnetjax.config import ResNetConfig
from resnetjax.data.augment import augment
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Variables
from resnetjax.train.recipe import Recipe
from resnetjax.train.state import TrainState, Tree, by_path, first_not_finite

Batch: TypeAlias = dict[str, Array]
"""`images` uint8[batch, height, width, channels], `labels` int32[batch] or, of several labels and
of a regression, float32[batch, outputs], `weights` float32[batch]: 1, or 0 for an image that could
not be read and for padding."""
Metrics: TypeAlias = dict[str, Array]


def make_model(
    recipe: Recipe,
    config: ResNetConfig,
    *,
    frozen: tuple[str, ...] | None = None,
    axis_name: str | None = None,
) -> ResNet:
    """The net as a recipe trains it; `frozen` is the recipe's own, or what is after unfreezing."""
    return ResNet(
        config,
        dtype=jnp.dtype(recipe.precision),
        remat=recipe.model.remat,
        frozen=recipe.model.frozen if frozen is None else frozen,
        axis_name=axis_name,
        norm_batch=recipe.norm_batch,
    )


def make_train_step(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    *,
    schedule: Callable[[Array], Array],
    warmup_steps: int = 0,
    class_weights: tuple[float, ...] | None = None,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step of a recipe: a pure function of state and batch, for `jax.jit` or `jax.pmap`.

    A loss, gradient, statistic or parameter that is not finite skips the update: the state stays as
    it was, but for `step`, `skipped`, the loss scale and the optimiser's counts.

    Args:
        model: From `make_model`.
        optimizer: From `make_optimizer`.
        recipe: The rest.
        schedule: From `make_schedule`, for the metrics.
        warmup_steps: How long the averages only follow the parameters.
        class_weights: The recipe's, where they are numbers, or what "balanced" amounts to.
        axis_name: The mapped axis under `pmap` or `shard_map(check_vma=False)`, on which the batch
            is split; None under `jit`, where statistics and gradients are global by themselves.
            With a model without it each device normalises by its own statistics, and the running
            ones move by their mean.

    Returns:
        A function to (new state, metrics): `loss`, `accuracy` (of single labels), `learning_rate`,
        `grad_norm`, and `bad_leaf`, the index of the first leaf of `watched(state)` that is not
        finite, or -1.
    """
    parts = recipe.optimizer.accumulate
    of_classes = recipe.problem_type == "single_label_classification"

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, drop_key = draw_keys(recipe, state.step, axis_name=axis_name)
        images, targets, weights = vary(recipe, model.config, augment_key, batch)
        total = jnp.maximum(_sum_over(weights.sum(), axis_name), 1)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale

        def loss_of(params: Tree, stats: Tree, part: tuple[Array, ...], key: Array) -> Any:
            images, targets, weights = part
            logits, updates = model.apply(
                {"params": _fixed(params, model.frozen_names), "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            loss = losses(logits, targets, recipe, class_weights=class_weights)
            loss = (loss * weights).sum() / total
            hits = (logits.argmax(-1) == targets.argmax(-1)) * weights
            stats = updates.get("batch_stats", stats)
            return loss * scale, (loss, hits.sum() / total, stats)

        gradient = jax.grad(loss_of, has_aux=True)

        def accumulate(carry: Any, part_and_key: Any) -> tuple[Any, None]:
            grads, loss, accuracy, stats = carry
            more, (more_loss, more_accuracy, stats) = gradient(state.params, stats, *part_and_key)
            grads = jax.tree.map(jnp.add, grads, more)
            return (grads, loss + more_loss, accuracy + more_accuracy, stats), None

        if parts == 1:
            grads, (loss, accuracy, stats) = gradient(
                state.params, state.batch_stats, (images, targets, weights), drop_key
            )
        else:
            # Every n-th example, not the n-th part: a batch split over devices stays where it is.
            split = [
                x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
                for x in (images, targets, weights)
            ]
            zero = jnp.zeros((), jnp.promote_types(model.dtype, jnp.float32))
            start = (jax.tree.map(jnp.zeros_like, state.params), zero, zero, state.batch_stats)
            (grads, loss, accuracy, stats), _ = lax.scan(
                accumulate, start, (tuple(split), jax.random.split(drop_key, parts))
            )
        grads, loss, accuracy = _sum_over((grads, loss, accuracy), axis_name)
        grads = jax.tree.map(lambda g: g / scale, grads)
        if axis_name is not None and model.axis_name is None:
            stats = lax.pmean(stats, axis_name)  # each device took its own
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        bad_leaf = first_not_finite(state, grads, loss, stats, params)
        changed = {"params": params, "batch_stats": stats}
        new = _advanced(state, changed, opt_state, recipe, bad_leaf < 0, warmup_steps)
        metrics = {
            "loss": loss,
            **({"accuracy": accuracy} if of_classes else {}),
            "learning_rate": schedule(state.step),
            "grad_norm": optax.tree.norm(grads),
            "bad_leaf": bad_leaf,
        }
        return new, metrics

    return train_step


def draw_keys(
    recipe: Recipe, step: Array | int, *, axis_name: str | None = None
) -> tuple[Array, Array]:
    """What a step draws from: the key of `vary`, and that of what the net drops."""
    key = jax.random.fold_in(jax.random.key(recipe.seed), step)
    if axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(axis_name))
    augment_key, drop_key = jax.random.split(key)
    return augment_key, drop_key


def _fixed(params: Tree, frozen: frozenset[str]) -> Tree:
    """The same values, with no gradient to what is frozen.

    Nothing is derived that would not be used, and the gradient's norm is that of what is trained.
    """
    return by_path(lambda name, leaf: lax.stop_gradient(leaf) if name in frozen else leaf, params)


def vary(
    recipe: Recipe, config: ResNetConfig, key: Array, batch: Batch
) -> tuple[Array, Array, Array]:
    """A batch as the net is trained on it: images float32, targets [batch, classes], weights."""
    images, targets = augment(
        key,
        batch["images"],
        batch["labels"],
        augmentation=recipe.augmentation,
        preprocess=recipe.preprocess,
        num_classes=config.num_classes,
    )
    weights = batch["weights"]
    if recipe.augmentation.mixup_alpha or recipe.augmentation.cutmix_alpha:
        weights = weights * weights[::-1]  # a mixed image is as bad as its partner
    return images, targets, weights


def losses(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    recipe: Recipe,
    *,
    class_weights: tuple[float, ...] | None = None,
) -> Float[Array, " batch"]:
    """The loss of each example.

    Binary cross-entropy is the mean over the classes, as `torch.nn.BCEWithLogitsLoss` takes it, and
    so is the squared error over the outputs. `class_weights` multiply an example's loss, in the
    shares of a mixed or smoothed target; of several labels, the part of the loss of those that are
    there (`pos_weight` of `torch.nn.BCEWithLogitsLoss`).
    """
    targets = targets.astype(logits.dtype)
    if recipe.loss == "mean_squared_error":
        return lax.square(logits - targets).mean(-1)
    weights = None if class_weights is None else jnp.asarray(class_weights, logits.dtype)
    of_example = 1.0 if weights is None else targets @ weights
    if recipe.loss == "cross_entropy":
        return optax.softmax_cross_entropy(logits, targets) * of_example
    if recipe.loss_threshold is not None:
        targets = (targets > recipe.loss_threshold).astype(logits.dtype)
    each = optax.sigmoid_binary_cross_entropy(logits, targets)
    if recipe.problem_type == "multi_label_classification" and weights is not None:
        there = targets * (weights[None] - 1) * jax.nn.softplus(-logits)
        return (each + there).mean(-1)
    return each.mean(-1) * of_example


def _advanced(
    state: TrainState,
    changed: Variables,
    opt_state: Tree,
    recipe: Recipe,
    finite: Array,
    warmup_steps: int,
) -> TrainState:
    """The state after a step, or, where something is not finite, the one before it."""
    ema = state.ema
    if ema is not None:
        decay = jnp.where(state.step < warmup_steps, 0.0, recipe.optimizer.ema_decay or 0.0)
        decay = jnp.where((state.step + 1) % recipe.optimizer.ema_every == 0, decay, 1.0)

        def average(old: Array, new: Array) -> Array:
            # By the difference: what does not change, as in frozen parts, keeps its bits.
            moved = old + ((1 - decay) * (new - old)).astype(old.dtype)
            return jnp.where(decay == 0, new, moved)

        ema = jax.tree.map(average, ema, changed)

    def unless_skipped(new: Array, old: Array) -> Array:
        return jnp.where(finite, new, old)

    def count_on(new: Array, old: Array) -> Array:
        # The learning rate is read at a count, and stays a function of the step if it goes on.
        counts = jnp.issubdtype(new.dtype, jnp.integer)
        return new if counts else unless_skipped(new, old)

    kept, ema = jax.tree.map(unless_skipped, (changed, ema), (state.variables, state.ema))
    opt_state = jax.tree.map(count_on, opt_state, state.opt_state)
    return TrainState(
        step=state.step + 1,
        params=kept["params"],
        batch_stats=kept["batch_stats"],
        opt_state=opt_state,
        ema=ema,
        loss_scale=state.loss_scale and state.loss_scale.after(finite),
        skipped=jnp.where(finite, 0, state.skipped + 1),
    )


def _sum_over(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else lax.psum(tree, axis_name)
