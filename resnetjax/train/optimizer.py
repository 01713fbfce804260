"""A recipe's learning rate and optimiser, composed of optax's transformations.

Each optimiser is the one its recipes were published with: SGD, AdamW and their order of clipping
and decay as in torch, LAMB as in timm (ResNet strikes back), LARS as in MLPerf.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from optax import contrib

from resnetjax.train.groups import rate_factors, training_groups, unfreezing_step
from resnetjax.train.parts import Decayed
from resnetjax.train.recipe import Optimizer, Recipe
from resnetjax.train.state import by_path

LearningRate = Callable[[ArrayLike], Float[Array, ""]]
Mask = Callable[[optax.Params], optax.Params]

# The root mean square of AdamW's updates in practice (Liu 2025, section 2.2). Muon's are brought to
# it, so that one learning rate serves the convolutions and all else.
_MUON_RMS = 0.2


def total_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Updates in the whole run.

    Example:
        >>> total_steps(Recipe(epochs=1.5), 10)
        15
    """
    return round(recipe.epochs * steps_per_epoch)


def make_schedule(recipe: Recipe, *, steps_per_epoch: int) -> LearningRate:
    """The learning rate, in float32, as a function of the number of updates done.

    The first update of a run is step 0. The warm-up is over at the step that its epochs amount to,
    where the rate is at its peak; at `total_steps` and after it, the rate has its final value.

    Example:
        >>> rate = make_schedule(Recipe(epochs=10, batch_size=256), steps_per_epoch=100)
        >>> [round(float(rate(step)), 4) for step in (0, 500, 1000)]
        [0.1, 0.05, 0.0]
    """
    schedule, peak = recipe.schedule, recipe.learning_rate
    total = total_steps(recipe, steps_per_epoch)
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    milestones = [round(share * total) for share in schedule.milestones]
    low = schedule.final_factor

    def rise(step: Float[Array, ""]) -> Float[Array, ""] | float:
        if schedule.warmup_kind == "constant":
            return schedule.warmup_factor
        return schedule.warmup_factor + (1 - schedule.warmup_factor) * step / max(warmup, 1)

    def fall(step: Float[Array, ""]) -> Float[Array, ""] | float:
        if schedule.kind == "constant":
            return 1.0
        if schedule.kind == "steps":
            passed = jnp.sum(jnp.asarray([step >= milestone for milestone in milestones]))
            return jnp.float32(schedule.milestone_factor) ** passed
        left = 1 - jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1)
        if schedule.kind == "cosine":
            return low + (1 - low) * (1 - jnp.cos(jnp.pi * left)) / 2
        return low + (1 - low) * left**schedule.power

    def learning_rate(step: ArrayLike) -> Float[Array, ""]:
        now = jnp.asarray(step, jnp.float32)
        return jnp.asarray(peak * jnp.where(now < warmup, rise(now), fall(now)), jnp.float32)

    return learning_rate


def make_optimizer(
    recipe: Recipe, params: optax.Params, *, steps_per_epoch: int
) -> optax.GradientTransformation:
    """What turns gradients into updates to be added to the parameters.

    Gradients are clipped first, each unit before the whole (timm's order). Frozen parts get updates
    of zero, count for no norm and have no state. Parts that are unfrozen later have theirs from the
    beginning, and it starts with their first update, as their own warm-up does.

    Args:
        recipe: Its `optimizer`, `schedule` and what `model` says of freezing are read.
        params: The tree of parameters, or of their shapes.
        steps_per_epoch: Updates in an epoch.

    Raises:
        ConfigError: A pattern of what is frozen or scaled matches nothing.

    Example:
        >>> params = {"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
        >>> optimizer = make_optimizer(Recipe(), params, steps_per_epoch=100)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """
    chosen, names = recipe.optimizer, _paths(params)
    rate = make_schedule(recipe, steps_per_epoch=steps_per_epoch)
    groups = training_groups(recipe, names)
    factors = rate_factors(chosen, names)

    def directions(start: int, warmup: int) -> list[optax.GradientTransformation]:
        def own_rate(count: ArrayLike) -> Float[Array, ""]:
            risen = jnp.minimum(jnp.divide(count, warmup), 1) if warmup else 1.0
            return rate(jnp.add(count, start)) * risen

        parts = _directions(chosen, own_rate)
        scaled = any(factor != 1 for factor in factors.values())
        return [*parts, _scale_by(factors)] if scaled else parts

    steps = directions(0, 0)
    if "thawed" in groups.values():
        start = unfreezing_step(recipe, steps_per_epoch=steps_per_epoch) or 0
        warmup = round(recipe.schedule.unfreezing_warmup_epochs * steps_per_epoch)
        # Its counts and moments begin when it does, as those of a new optimiser would.
        thawed = optax.conditionally_mask(
            optax.chain(*directions(start, warmup)),
            lambda step, **_: jnp.greater_equal(step, start),
        )
        steps = [
            optax.partition({"trained": optax.chain(*steps), "thawed": thawed}, _labels(groups))
        ]
    transform = optax.chain(*_clips(chosen), *steps)
    if "frozen" not in groups.values():
        return transform
    labels = by_path(lambda path, _: "frozen" if groups[path] == "frozen" else "trained", params)
    return optax.partition({"trained": transform, "frozen": optax.set_to_zero()}, labels)


def _labels(groups: Mapping[str, str]) -> Mask:
    return lambda params: by_path(lambda path, _: groups[path], params)


def _scale_by(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies each update: all optimisers' are proportional to the learning rate."""
    return optax.stateless(
        lambda updates, params: by_path(lambda path, update: update * factors[path], updates)
    )


def _clips(chosen: Optimizer) -> list[optax.GradientTransformation]:
    clips = []
    if chosen.clip_adaptive is not None:
        # Brock 2021 and timm leave the classifier's gradient as it is.
        unit = optax.adaptive_grad_clip(chosen.clip_adaptive, eps=1e-3)
        clips.append(optax.masked(unit, _mask(lambda path: not path.startswith("head/"))))
    if chosen.clip_norm is not None:
        clips.append(optax.clip_by_global_norm(chosen.clip_norm))
    return clips


def _directions(chosen: Optimizer, rate: LearningRate) -> list[optax.GradientTransformation]:
    decayed = _decayed(chosen.decayed)
    decay = optax.add_decayed_weights(chosen.weight_decay, decayed)
    descend = optax.scale_by_learning_rate(rate)
    momentum = optax.trace(chosen.momentum, chosen.nesterov)
    adam = optax.scale_by_adam(*chosen.betas, eps=chosen.eps)
    if chosen.name == "sgd":
        return [decay, momentum, descend]
    if chosen.name == "lars":
        # The momentum holds updates, not gradients: a falling rate does not shrink what it holds.
        return [optax.masked(_scale_by_lars(chosen), decayed), descend, momentum]
    if chosen.name == "lamb":
        return [adam, decay, optax.masked(optax.scale_by_trust_ratio(), decayed), descend]
    if chosen.name == "adamw":
        return [adam, decay, descend]
    return [_scale_by_muon(chosen), decay, descend]


def _scale_by_lars(chosen: Optimizer) -> optax.GradientTransformation:
    """Adds the decay and scales to `eta |w| / (|g| + decay |w|)`, as MLPerf's reference does.

    `optax.lars` divides by the norm of the sum, `|g + decay w|`, and so takes other steps.
    """

    def scale(gradient: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
        weight_norm, gradient_norm = jnp.linalg.norm(weight), jnp.linalg.norm(gradient)
        adapts = (weight_norm > 0) & (gradient_norm > 0)
        divisor = jnp.where(adapts, gradient_norm + chosen.weight_decay * weight_norm, 1)
        ratio = jnp.where(adapts, chosen.trust_coefficient * weight_norm / divisor, 1)
        return ratio * (gradient + chosen.weight_decay * weight)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates, params))


def _scale_by_muon(chosen: Optimizer) -> optax.GradientTransformation:
    """Muon for convolutions as matrices (height x width x in, out), Adam for all else.

    With `nesterov`, Adam is Nesterov's too (as in timm), and Muon's momentum is corrected for its
    start (as torch's is not).
    """

    def matrices(params: optax.Params) -> optax.Params:
        numbers = contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
        return jax.tree.map(lambda leaf: numbers if leaf.ndim == 4 else None, params)

    descent = contrib.muon(
        1.0,
        beta=chosen.momentum,
        eps=chosen.eps,
        nesterov=chosen.nesterov,
        adam_b1=chosen.betas[0],
        adam_b2=chosen.betas[1],
        muon_weight_dimension_numbers=matrices,
        consistent_rms=_MUON_RMS,
    )
    return optax.chain(descent, optax.scale(-1.0))


def _decayed(which: Decayed) -> Mask:
    """Where a tree of parameters decays; only norms have a scale."""
    if which == "all":
        return _mask(lambda path: True)
    if which == "kernels":
        return _mask(lambda path: path.endswith("/kernel"))

    def not_norms(params: optax.Params) -> optax.Params:
        norms = {path.removesuffix("scale") for path in _paths(params) if path.endswith("/scale")}
        return by_path(lambda path, _: path[: path.rindex("/") + 1] not in norms, params)

    return not_norms


def _mask(holds: Callable[[str], bool]) -> Mask:
    return lambda params: by_path(lambda path, _: holds(path), params)


def _paths(params: optax.Params) -> list[str]:
    return jax.tree.leaves(by_path(lambda path, _: path, params))
