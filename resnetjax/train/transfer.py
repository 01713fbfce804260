"""Runs that start from a pretrained net."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from resnetjax import zoo
from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.errors import AssumptionWarning, ConfigError
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained, Variables, flatten, make_variables
from resnetjax.train.evaluate import match_classes
from resnetjax.train.labels import listed
from resnetjax.train.recipe import Recipe


def starting_from(recipe: Recipe, weights: str | os.PathLike[str]) -> Recipe:
    """The recipe on a pretrained net, with its architecture, preprocessing and image size.

    Where the weights leave images as they are (CIFAR's), they are squashed to the weights' size:
    new data may be of any.

    Args:
        recipe: All else: what is frozen, rates, data.
        weights: Anything that `resnetjax.load` reads.

    Raises:
        UnknownName, UnsupportedFile, CorruptFile, WeightsMismatch: As `resnetjax.load`.
    """
    with warnings.catch_warnings():  # what has to be assumed is said when the run loads them
        warnings.simplefilter("ignore", AssumptionWarning)
        pretrained = zoo.load(weights)
    return replace(
        recipe,
        model=replace(
            recipe.model, weights=os.fspath(weights), arch=None, config=pretrained.config
        ),
        preprocess=_resizing(pretrained.preprocess),
        data=replace(recipe.data, train_px=pretrained.preprocess.crop_px[0]),
    )


def kept_outputs(start: Pretrained, names: Sequence[str]) -> tuple[int, ...]:
    """The outputs of a head that is kept, in the order of the data's classes.

    They go by the names of the net's labels, as in an evaluation; where the net or the data has
    none, by their order.

    Args:
        start: The net that has the head.
        names: Of the data's classes; where they are fewer, the outputs that are left come last.

    Raises:
        ConfigError: A class of the data is none of the net's.
    """
    count = start.config.num_classes
    if start.labels is None:
        return tuple(range(count))
    try:
        outputs = match_classes(names, start) or tuple(range(count))
    except ConfigError as error:
        known = [name for name in start.labels.names if name not in names]
        raise ConfigError(
            f"keep_head=True is not allowed: {error}; only the net has {listed(known)}. Without "
            "it, the run starts with a new head"
        ) from error
    return (*outputs, *(output for output in range(count) if output not in set(outputs)))


def initial_variables(
    config: ResNetConfig,
    start: Pretrained | None,
    *,
    keep_head: bool = False,
    class_names: Sequence[str] = (),
    seed: int,
) -> Variables:
    """A net's variables: those of a pretrained one with a new head, or all drawn from the seed.

    Args:
        config: The net's.
        start: The pretrained one.
        keep_head: Take its head too, with its outputs in the order of the data's classes.
        class_names: Of the data; () where they have none.
        seed: Of what is drawn.

    Raises:
        ConfigError: The two are not the same net, but for the head; what differs is listed.
    """
    expected = leaves(plan(config))
    if start is None:
        return make_variables(expected, {}, seed)
    arrays = {
        name: array
        for name, array in flatten(start.variables).items()
        if keep_head or not name.startswith("head/")
    }
    wrong = [
        f"{name} {array.shape} -> {expected[name].shape if name in expected else 'nothing'}"
        for name, array in arrays.items()
        if name not in expected or expected[name].shape != array.shape
    ]
    wrong += [
        f"{name} nothing -> {leaf.shape}"
        for name, leaf in expected.items()
        if name not in arrays and (keep_head or not name.startswith("head/"))
    ]
    if wrong:
        more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(
            f"{start.source.path} does not fit the recipe's net:\n  "
            + "\n  ".join(wrong[:5])
            + more
            + "\nTake the net of the weights, as `--model PATH` and `starting_from` do."
        )
    if keep_head and (outputs := kept_outputs(start, class_names)) != tuple(range(len(outputs))):
        for name in ("head/kernel", "head/bias"):
            if name in arrays:
                arrays[name] = np.take(arrays[name], outputs, axis=-1)
    return make_variables(expected, arrays, seed)


def _resizing(preprocess: Preprocess) -> Preprocess:
    if preprocess.resize_mode != "none":
        return preprocess
    return replace(preprocess, resize_mode="squash", resize_px=preprocess.crop_px)
