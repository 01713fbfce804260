"""One step of evaluation, as a pure function of variables and a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from resnetjax.config import Preprocess
from resnetjax.data.preprocess import normalize
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Variables
from resnetjax.train.recipe import ProblemType
from resnetjax.train.step import Batch, Metrics


def make_eval_step(
    model: ResNet,
    preprocess: Preprocess,
    *,
    problem_type: ProblemType = "single_label_classification",
    axis_name: str | None = None,
) -> Callable[[Variables, Batch], Metrics]:
    """Sums over a batch: `loss`, `examples`, and what `scores` makes its figures of.

    Of single labels these are `top1`, `top5` (hits) and `confusion`. A batch's `labels` may then
    also be bool[batch, classes], all that count as right; the loss is NaN, and nothing is confused.
    """
    sums_of = {
        "single_label_classification": _class_sums,
        "multi_label_classification": _label_sums,
        "regression": _output_sums,
    }[problem_type]

    def eval_step(variables: Variables, batch: Batch) -> Metrics:
        logits: Any = model.apply(variables, normalize(batch["images"], preprocess), train=False)
        weights = batch["weights"]
        sums = {**sums_of(logits, batch["labels"], weights), "examples": weights.sum()}
        return sums if axis_name is None else lax.psum(sums, axis_name)

    return eval_step


def _class_sums(logits: Array, labels: Array, weights: Array) -> Metrics:
    classes = logits.shape[-1]
    _, best = lax.top_k(logits, min(5, classes))
    if labels.ndim == 2:
        hits = jnp.take_along_axis(labels, best, axis=1)
        counted = {"loss": (jnp.full(len(labels), jnp.nan) * weights).sum()}
    else:
        hits = best == labels[:, None]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        true = jax.nn.one_hot(labels, classes) * weights[:, None]
        found = jax.nn.one_hot(best[:, 0], classes)
        # Whole numbers below 2**24 stay whole in a float32, whatever an accelerator multiplies in.
        confusion = jnp.matmul(true.T, found, precision=lax.Precision.HIGHEST)
        counted = {"loss": (loss * weights).sum(), "confusion": confusion}
    return {
        **counted,
        "top1": (hits[:, 0] * weights).sum(),
        "top5": (hits.any(-1) * weights).sum(),
    }


def _label_sums(logits: Array, labels: Array, weights: Array) -> Metrics:
    found, there = logits > 0, labels > 0.5
    loss = optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)
    counts = {"both": found & there, "found": found, "there": there}
    return {
        "loss": (loss * weights).sum(),
        "exact": ((found == there).all(-1) * weights).sum(),
        **{name: (held * weights[:, None]).sum(0) for name, held in counts.items()},
    }


def _output_sums(outputs: Array, targets: Array, weights: Array) -> Metrics:
    error = outputs - targets
    sizes = {
        "absolute": jnp.abs(error),
        "squared": lax.square(error),
        "target": targets,
        "target_squared": lax.square(targets),
    }
    return {
        "loss": (sizes["squared"].mean(-1) * weights).sum(),
        **{name: (size * weights[:, None]).sum(0) for name, size in sizes.items()},
    }
