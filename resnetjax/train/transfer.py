"""Runs that start from a pretrained net."""

import os
import warnings
from dataclasses import replace

from resnetjax import zoo
from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.errors import AssumptionWarning, ConfigError
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained, Variables, flatten, make_variables
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


def initial_variables(
    config: ResNetConfig, start: Pretrained | None, *, keep_head: bool = False, seed: int
) -> Variables:
    """A net's variables: those of a pretrained one with a new head, or all drawn from the seed.

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
    return make_variables(expected, arrays, seed)


def _resizing(preprocess: Preprocess) -> Preprocess:
    if preprocess.resize_mode != "none":
        return preprocess
    return replace(preprocess, resize_mode="squash", resize_px=preprocess.crop_px)
