"""What a step of training reads and writes."""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from resnetjax.pretrained import Variables
from resnetjax.train.recipe import Recipe

Tree: TypeAlias = Any

# Dynamic scaling of float16 losses (Micikevicius 2017), with the figures of NVIDIA's Apex.
FIRST_LOSS_SCALE = 2.0**15
LOSS_SCALE_STEPS = 2000


class LossScale(flax.struct.PyTreeNode):
    """What a float16 loss is multiplied by.

    Attributes:
        scale: Halved when a gradient is not finite, doubled after `LOSS_SCALE_STEPS` that are.
        good_steps: Since it last changed.
    """

    scale: Float[Array, ""]
    good_steps: Int[Array, ""]

    def after(self, finite: Array) -> "LossScale":
        """The scale for the next step."""
        grown = self.good_steps + 1 >= LOSS_SCALE_STEPS
        scale = jnp.where(
            finite, jnp.where(grown, self.scale * 2, self.scale), jnp.maximum(self.scale / 2, 1)
        )
        steps = jnp.where(finite & ~grown, self.good_steps + 1, 0)
        return LossScale(scale=scale, good_steps=steps)


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step reads and writes; a checkpoint holds just this.

    Attributes:
        step: Number of batches seen.
        params: Float32.
        batch_stats: Running statistics.
        opt_state: Of the optimiser.
        ema: Averages of parameters and statistics, or None.
        loss_scale: For float16, or None.
        skipped: Steps in a row that were skipped for a value that is not finite.
    """

    step: Int[Array, ""]
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Variables | None
    loss_scale: LossScale | None
    skipped: Int[Array, ""]

    @property
    def variables(self) -> Variables:
        """What the net is applied to in training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def best_variables(self) -> Variables:
        """What the net is evaluated and kept with: the averages, where there are any."""
        return self.ema or self.variables


def create_state(
    variables: Variables, optimizer: optax.GradientTransformation, recipe: Recipe
) -> TrainState:
    """The state before the first step; its arrays are its own, for a donated step to overwrite."""
    owned = jax.tree.map(jnp.copy, variables)
    stats = owned.get("batch_stats", {})
    averages = {"params": owned["params"], "batch_stats": stats}
    scaled = recipe.precision == "float16"
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=owned["params"],
        batch_stats=stats,
        opt_state=optimizer.init(owned["params"]),
        ema=jax.tree.map(jnp.copy, averages) if recipe.optimizer.ema_decay else None,
        loss_scale=LossScale(scale=jnp.float32(FIRST_LOSS_SCALE), good_steps=jnp.int32(0))
        if scaled
        else None,
        skipped=jnp.zeros((), jnp.int32),
    )


def by_path(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """A tree of the same structure, of what the function makes of each leaf's path and value.

    Example:
        >>> by_path(lambda path, leaf: f"{path}={leaf}", {"head": {"bias": 3}})
        {'head': {'bias': 'head/bias=3'}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        tree,
    )


def watched(state: TrainState) -> list[str]:
    """Names of what `first_not_finite` counts, in its order."""
    names = [
        f"{kind}{jax.tree_util.keystr(path, simple=True, separator='/')}"
        for kind, tree in (
            ("parameter ", state.params),
            ("statistic ", state.batch_stats),
            ("gradient of ", state.params),
            ("updated statistic ", state.batch_stats),
            ("updated parameter ", state.params),
        )
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return [*names, "loss"]


def first_not_finite(
    state: TrainState, grads: Tree, loss: Array, stats: Tree, params: Tree
) -> Int[Array, ""]:
    """The first leaf that holds a NaN or an infinity, or -1.

    Args:
        state: Before the step.
        grads: Of its parameters.
        loss: Of the step.
        stats: After it.
        params: After it.
    """
    leaves = jax.tree.leaves((state.params, state.batch_stats, grads, stats, params, loss))
    bad = jnp.stack([~jnp.isfinite(leaf).all() for leaf in leaves])
    return jnp.where(bad.any(), bad.argmax(), -1).astype(jnp.int32)
