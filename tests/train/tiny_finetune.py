"""A fine-tune of a few seconds, with all that a resumed run has to remember of one.

`RESNETJAX_TINY_WEIGHTS` and `RESNETJAX_TINY_DATA` name the pretrained net and the images.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

import resnetjax as rj
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import (
    Checkpointing,
    Data,
    Evaluation,
    Model,
    Optimizer,
    Recipe,
    Schedule,
)
from tests.train.tiny import CONFIG

PREPROCESS = rj.Preprocess(crop_px=(8, 8), resize_mode="squash", resize_px=(8, 8))
NAMES = ("dark", "light")


def write_weights(folder: Path) -> Path:
    """A tiny net of three classes whose statistics and biases are not those of the start."""
    model, variables = rj.create(CONFIG.replace(in_channels=3, num_classes=3, depths=(2,)), rng=7)
    stats = variables["batch_stats"]["stem"]["norm1"]
    stats["mean"] = stats["mean"] + 0.125
    rj.save(rj.Pretrained(model=model, variables=variables, preprocess=PREPROCESS), folder)
    return folder


def write_images(folder: Path, *, count: int = 20) -> Path:
    """Noise that is dark or light, in a folder for each, twice as much of the former."""
    rng = np.random.default_rng(3)
    for name, low, number in (("dark", 0, 2 * count), ("light", 96, count)):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(low, low + 160, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")
    return folder


def finetune(weights: Path, data: Path, **fields: object) -> Recipe:
    values: dict = {
        "model": Model(
            weights=str(weights),
            config=rj.load(weights).config,
            frozen=("up to stage1",),
            unfreeze_after_epochs=1,
            still_frozen=("stem", "stage1_block1/norm1"),
        ),
        "data": Data(path=str(data), held_out=0.25, train_px=8, threads=1, prefetch=2),
        "augmentation": Augmentation(crop_area=(0.5, 1.0)),
        "preprocess": PREPROCESS,
        "class_weights": "balanced",
        "optimizer": Optimizer(
            name="adamw", learning_rate=0.02, layer_decay=0.5, learning_rate_scales=(("head", 2.0),)
        ),
        "schedule": Schedule(warmup_epochs=0.5),
        "evaluation": Evaluation(patience=3),
        "checkpoint": Checkpointing(every_steps=3),
        "precision": "float32",
        "batch_size": 8,
        "epochs": 20,
    }
    return Recipe(**(values | fields))


if "RESNETJAX_TINY_WEIGHTS" in os.environ:
    RECIPE = finetune(
        Path(os.environ["RESNETJAX_TINY_WEIGHTS"]), Path(os.environ["RESNETJAX_TINY_DATA"])
    )
