"""A whole run in a minute, offline: train, evaluate, save, reload, export, predict, draw.

    make demo

The data is scikit-learn's: 1,797 handwritten digits, 8 x 8 pixels each.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import resnetjax as rj
from resnetjax.data.datasets import Example, open_dataset
from resnetjax.infer import artifact
from resnetjax.train.loop import train
from resnetjax.train.metrics_log import read_metrics
from resnetjax.train.recipe import read_recipe

CONFIG = Path(__file__).parent.parent / "configs" / "digits_resnet8.py"
PICTURE = Path("demo.png")
SHOWN = 24
TARGET = 0.98


def main() -> int:
    """Runs all of it, says how long each part took, and fails below 98 %."""
    recipe = read_recipe(CONFIG)
    with tempfile.TemporaryDirectory() as name:
        run, exported = Path(name) / "run", Path(name) / "digits.stablehlo"
        with step(f"train {CONFIG.name} on digits for {recipe.epochs:g} epochs"):
            outcome = train(recipe, run)
        score = outcome.score
        assert score is not None
        print(f"          {score.top1:.2%} of {score.examples} digits that it never saw are right")
        with step("reload the best model of the run"):
            pre = rj.load(run)
        with step("export it as StableHLO, and load that"):
            rj.export(pre, exported)
            served = artifact.load(exported)
        test = open_dataset("digits", split="test")
        examples = [test[i] for i in range(len(test))]
        with step(f"predict {len(examples)} digits"):
            found = [top[0] for top in rj.predict(pre, [e.image for e in examples], top=1)]
        with step("predict them by the exported file"):
            logits = served(np.stack([np.asarray(e.image) for e in examples]))
        same = [p.index for p in found] == np.asarray(logits).argmax(1).tolist()
        print(f"          both give the same labels: {same}")
        draw(run / "metrics.jsonl", examples, found)
    print(f"The curves and {SHOWN} of the digits are in {PICTURE}.")
    return 0 if same and score.top1 >= TARGET else 1


def draw(log: Path, examples: list[Example], found: list[rj.Prediction]) -> None:
    """Loss and accuracy on the left, digits with their labels on the right, mistakes first."""
    steps, evaluations = read_metrics(log)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    halves = figure.add_gridspec(1, 2, width_ratios=(1, 1.1))
    left, right = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    axes = left.subplots()
    axes.semilogy([line["step"] for line in steps], [line["loss"] for line in steps], alpha=0.4)
    axes.set(xlabel="step", ylabel="training loss")
    accuracy = axes.twinx()
    at = [line["step"] for line in evaluations]
    accuracy.plot(at, [100 * line["top1"] for line in evaluations], "o-", color="tab:orange")
    accuracy.set_ylabel("accuracy on unseen digits in %", color="tab:orange")
    wrong_first = sorted(range(len(found)), key=lambda i: found[i].index == examples[i].label)
    grid = right.subplots(4, SHOWN // 4)
    for cell, i in zip(grid.flat, wrong_first, strict=False):
        _draw_digit(cell, examples[i], found[i])
    right.suptitle("predictions (red: wrong, with the truth)")
    figure.savefig(PICTURE, dpi=110)


def _draw_digit(cell: Axes, example: Example, found: rj.Prediction) -> None:
    right = found.index == example.label
    text = found.label if right else f"{found.label}, not {example.label}"
    cell.imshow(np.asarray(example.image)[..., 0], cmap="gray")
    cell.set_title(f"{text}\n{found.probability:.0%}", color="black" if right else "red", size=9)
    cell.axis("off")


@contextmanager
def step(what: str) -> Iterator[None]:
    """Prints what was done and how long it took."""
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:7.2f} s  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
