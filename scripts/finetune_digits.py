"""Fine-tuning beside training from scratch, for `scripts/benchmark.py finetune`.

A CIFAR-10 net is fine-tuned as `configs/finetune.py` says on 20 images of each of scikit-learn's
digits; all others are the test. From scratch the same net sees the same images for as many steps,
at each of four learning rates, of which the best on the test counts.
"""

import dataclasses
import json
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

# The package and NumPy are imported where they are used: `benchmark.py` times importing them.
if TYPE_CHECKING:
    from resnetjax.train.recipe import Recipe

CONFIG = Path(__file__).parent.parent / "configs" / "finetune.py"
IMAGES_OF_EACH = 20
RATES = (0.01, 0.03, 0.1, 0.3)
BATCH, EPOCHS = 25, 8


def compare(weights: str, *, seeds: tuple[int, ...], out: Path | None) -> dict[str, Any]:
    """Top-1 of both for each seed; runs that `out` has already are not done again."""
    runs: list[dict[str, Any]] = []
    if out is not None and out.exists():
        runs = json.loads(out.read_text())["runs"]
    for seed in seeds:
        for rate in (None, *RATES):
            if any((run["seed"], run["rate"]) == (seed, rate) for run in runs):
                continue
            runs.append({"seed": seed, "rate": rate, **_score(weights, seed=seed, rate=rate)})
            print(json.dumps(runs[-1]), flush=True)
            if out is not None:
                out.write_text(json.dumps({"runs": runs}))
    tuned = {run["seed"]: run["top1"] for run in runs if run["rate"] is None}
    scratch = {
        rate: statistics.mean(run["top1"] for run in runs if run["rate"] == rate) for rate in RATES
    }
    best = max(scratch, key=lambda rate: scratch[rate])
    return {
        "training_images": 10 * IMAGES_OF_EACH,
        "steps": runs[0]["steps"],
        "fine_tuned_top1": statistics.mean(tuned.values()),
        "from_scratch_top1": {str(rate): top1 for rate, top1 in scratch.items()},
        "best_rate_from_scratch": best,
        "gain_of_each_seed": {
            run["seed"]: tuned[run["seed"]] - run["top1"] for run in runs if run["rate"] == best
        },
        "runs": runs,
    }


def finetune(
    weights: tyro.conf.Positional[str],
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    out: Path | None = None,
) -> None:
    """Fine-tune a CIFAR net on 200 digits, and train it from scratch at four rates.

    Args:
        weights: Of a CIFAR-10 net, in any form that `resnetjax.load` reads.
        seeds: Of the choice of images and the runs; runs that are in `out` already stay.
        out: Where the JSON goes, beside the terminal.
    """
    import timing

    found = compare(weights, seeds=seeds, out=out)
    packages = timing.environment("jax", "jaxlib", "flax", "optax", "numpy")
    name = f"{Path(weights).name} fine-tuned to 200 digits, and the same net from scratch"
    timing.report({"benchmark": name, "environment": packages, **found}, out)


def recipe_of(weights: str, data: str, *, seed: int, rate: float | None) -> "Recipe":
    """`configs/finetune.py` on digits; at a rate, from scratch."""
    from resnetjax.errors import AssumptionWarning
    from resnetjax.train.recipe import Evaluation, Model, read_recipe
    from resnetjax.train.transfer import starting_from

    recipe = read_recipe(CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        recipe = starting_from(recipe, weights)
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, path=data),
        # A mirrored digit is another sign.
        augmentation=dataclasses.replace(recipe.augmentation, flip=False),
        evaluation=Evaluation(every_epochs=0, batch_size=100),
        batch_size=BATCH,
        epochs=EPOCHS,
        seed=seed,
    )
    if rate is None:
        return recipe
    optimizer = dataclasses.replace(recipe.optimizer, learning_rate=rate, learning_rate_scales=())
    return dataclasses.replace(recipe, model=Model(config=recipe.model.config), optimizer=optimizer)


def write_digits(folder: Path, *, seed: int) -> None:
    """All 1,797 digits as PNG files: `train/` with 20 of each, `val/` with the others."""
    import numpy as np
    from PIL import Image

    from resnetjax.data.datasets import open_dataset

    rng = np.random.default_rng(seed)
    whole = [open_dataset("digits", split=split) for split in ("train", "test")]
    examples = [part[i] for part in whole for i in range(len(part))]
    labels = np.array([example.label for example in examples])
    for digit in range(10):
        places = rng.permutation(np.flatnonzero(labels == digit))
        for count, place in enumerate(places):
            split = "train" if count < IMAGES_OF_EACH else "val"
            path = folder / split / str(digit) / f"{place:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(examples[place].image)[..., 0]).save(path)


def _score(weights: str, *, seed: int, rate: float | None) -> dict[str, Any]:
    from resnetjax.errors import AssumptionWarning
    from resnetjax.train.loop import train

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        write_digits(Path(name) / "digits", seed=seed)
        data = str(Path(name) / "digits")
        recipe = recipe_of(weights, data, seed=seed, rate=rate)
        outcome = train(recipe, Path(name) / "run")
    assert outcome.score is not None
    return {
        "top1": outcome.score.top1,
        "test_images": outcome.score.examples,
        "steps": outcome.step,
    }
