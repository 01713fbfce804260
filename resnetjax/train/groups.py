"""Which arrays of a net are trained when, and at what share of the learning rate."""

from collections.abc import Iterable

from resnetjax.errors import ConfigError
from resnetjax.nn.frozen import frozen_names, matches, place
from resnetjax.train.recipe import Optimizer, Recipe


def unfreezing_step(recipe: Recipe, *, steps_per_epoch: int) -> int | None:
    """The first step at which only `model.still_frozen` is frozen; None where that never comes.

    Example:
        >>> from resnetjax.train.recipe import Model
        >>> recipe = Recipe(model=Model(frozen=("stem",), unfreeze_after_epochs=1.5))
        >>> unfreezing_step(recipe, steps_per_epoch=10)
        15
    """
    epochs = recipe.model.unfreeze_after_epochs
    return None if epochs is None else round(epochs * steps_per_epoch)


def frozen_at(recipe: Recipe, step: int, *, steps_per_epoch: int) -> tuple[str, ...]:
    """The patterns of what is frozen at a step, for `ResNet.frozen`."""
    thaw = unfreezing_step(recipe, steps_per_epoch=steps_per_epoch)
    return recipe.model.frozen if thaw is None or step < thaw else recipe.model.still_frozen


def training_groups(recipe: Recipe, names: Iterable[str]) -> dict[str, str]:
    """Of each parameter, whether it is "trained", "frozen", or "thawed": frozen, then trained.

    Args:
        recipe: Its `model` is read.
        names: Of all parameters.

    Raises:
        ConfigError: A pattern matches nothing, or a parameter would be frozen after training.
    """
    names = list(names)
    # What patterns of statistics match; only norms have a scale.
    norms = [name.removesuffix("scale") for name in names if name.endswith("/scale")]
    statistics = [f"{norm}{which}" for norm in norms for which in ("mean", "var")]
    every = (*names, *statistics)
    first = frozen_names(every, recipe.model.frozen)
    thaws = recipe.model.unfreeze_after_epochs is not None
    then = frozen_names(every, recipe.model.still_frozen) if thaws else first
    late = sorted((then - first).intersection(names))
    if late:
        raise ConfigError(
            f"still_frozen={list(recipe.model.still_frozen)} is not allowed: {late[0]} "
            "is trained before, for it is not frozen"
        )
    return {
        name: "frozen" if name in then else "thawed" if name in first else "trained"
        for name in names
    }


def rate_factors(chosen: Optimizer, names: Iterable[str]) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by.

    The last norm of v2 belongs to the head.

    Args:
        chosen: Its `learning_rate_scales` and `layer_decay` are read.
        names: Of all parameters.

    Raises:
        ConfigError: A pattern matches nothing.

    Example:
        >>> names = ("stem/conv1/kernel", "stage1_block1/conv1/kernel", "head/kernel")
        >>> rate_factors(Optimizer(layer_decay=0.5), names)["stem/conv1/kernel"]
        0.25
    """
    names = list(names)
    factors = dict.fromkeys(names, 1.0)
    if chosen.layer_decay != 1:
        top = place("norm")
        layers = sorted({min(place(name), top) for name in names} | {top})
        for name in names:
            above = len(layers) - 1 - layers.index(min(place(name), top))
            factors[name] = chosen.layer_decay**above
    for pattern, _ in chosen.learning_rate_scales:
        if not any(matches(name, pattern) for name in names):
            modules = ", ".join(sorted({name.split("/")[0] for name in names}))
            raise ConfigError(
                f"learning_rate_scales={pattern!r} is not allowed: use patterns of the net's "
                f"names, which has {modules}"
            )
    for name in names:
        for pattern, factor in chosen.learning_rate_scales:
            if matches(name, pattern):
                factors[name] *= factor
                break
    return factors
