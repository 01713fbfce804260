"""The statistics of batch norms, recomputed over many batches in place of running averages."""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from resnetjax.config import Preprocess
from resnetjax.data.preprocess import normalize
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Variables
from resnetjax.train.state import Tree
from resnetjax.train.step import Batch, is_frozen


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
    averaged = jax.tree.map(lambda x: x / count, total)
    exact = _map_norms(
        lambda mean, square: (mean, jnp.maximum(square - lax.square(mean), 0)), averaged
    )
    return {**variables, "batch_stats": {**variables["batch_stats"], **exact}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(model: ResNet, preprocess: Preprocess, variables: Variables, batch: Batch) -> Tree:
    """Mean and mean square of a batch at every norm that is not frozen, as "mean" and "var"."""
    stats = variables["batch_stats"]
    moving = [name for name in stats if not is_frozen(model, name)]
    zeros = jax.tree.map(jnp.zeros_like, {name: stats[name] for name in moving})
    _, updates = model.apply(
        {**variables, "batch_stats": {**stats, **zeros}},
        normalize(batch["images"], preprocess),
        train=True,
        mutable=["batch_stats"],
    )
    # From zero the running values moved by this share of the batch's.
    share = 1 - model.config.norm_decay
    now = {
        name: jax.tree.map(lambda moved: moved / share, updates["batch_stats"][name])
        for name in moving
    }
    return _map_norms(lambda mean, var: (mean, var + lax.square(mean)), now)


def _map_norms(change: Callable[[Array, Array], tuple[Array, Array]], stats: Tree) -> Tree:
    if "mean" in stats and "var" in stats:
        mean, var = change(stats["mean"], stats["var"])
        return {"mean": mean, "var": var}
    return {name: _map_norms(change, below) for name, below in stats.items()}
