"""The statistics of batch norms, recomputed over many batches in place of running averages."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from resnetjax.config import Preprocess
from resnetjax.data.preprocess import normalize
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Variables
from resnetjax.train.state import Tree
from resnetjax.train.step import Batch


def exact_statistics(
    model: ResNet, variables: Variables, batches: Iterable[Batch], preprocess: Preprocess
) -> Variables:
    """The variables with the norms' statistics recomputed over batches, as He et al. 2015 did.

    Means are averaged over the batches, and variances with the spread of the means, so that equal
    batches give the statistics of all their examples together. Nothing is dropped meanwhile, and
    frozen parts keep theirs.
    """
    whole = model.config.replace(drop_path_rate=0.0, block_dropout=0.0, dropout=0.0)
    model = model.clone(config=whole, norm_batch=None)
    total, count = None, 0
    for batch in batches:
        now = _moments(model, preprocess, variables, batch)
        total = now if total is None else jax.tree.map(jnp.add, total, now)
        count += 1
    if total is None:
        return variables
    exact = _of_norms(
        lambda mean, square: (mean, jnp.maximum(square - lax.square(mean), 0)),
        {name: moment / count for name, moment in total.items()},
    )
    return {**variables, "batch_stats": _nested({**_flat(variables["batch_stats"]), **exact})}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(
    model: ResNet, preprocess: Preprocess, variables: Variables, batch: Batch
) -> dict[str, Array]:
    """Mean and mean square of a batch at every norm that is not frozen, as "mean" and "var"."""
    stats = _flat(variables["batch_stats"])
    moving = stats.keys() - model.frozen_names
    zeros = {name: jnp.zeros_like(stats[name]) for name in moving}
    _, updates = model.apply(
        {**variables, "batch_stats": _nested({**stats, **zeros})},
        normalize(batch["images"], preprocess),
        train=True,
        mutable=["batch_stats"],
    )
    # From zero the running values moved by this share of the batch's.
    share = 1 - model.config.norm_decay
    moved = _flat(updates.get("batch_stats", {}))
    now = {name: moved[name] / share for name in sorted(moving)}
    return _of_norms(lambda mean, var: (mean, var + lax.square(mean)), now)


def _of_norms(
    change: Callable[[Array, Array], tuple[Array, Array]], stats: dict[str, Array]
) -> dict[str, Array]:
    """What a function makes of each norm's mean and variance."""
    norms = [name.removesuffix("/mean") for name in stats if name.endswith("/mean")]
    pairs = {norm: change(stats[f"{norm}/mean"], stats[f"{norm}/var"]) for norm in norms}
    return {
        f"{norm}/{which}": value
        for norm, pair in pairs.items()
        for which, value in zip(("mean", "var"), pair, strict=True)
    }


def _flat(tree: Tree) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(tree, sep="/")


def _nested(flat: dict[str, Array]) -> Tree:
    return flax.traverse_util.unflatten_dict(flat, sep="/")
