"""A tiny net, steps of it that can be followed by hand, and a run of everything that is random."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Checkpointing, Data, Model, Optimizer, Recipe, Schedule

STEPS = 33  # of RECIPE

CONFIG = ResNetConfig(
    block="basic",
    depths=(1,),
    widths=(8,),
    strides=(1,),
    dilations=(1,),
    stem="conv3",
    stem_width=8,
    stem_pool="none",
    in_channels=1,
    num_classes=10,
)
# Normalised pixels are exact in float32, so that float64 nets can be compared.
EXACT = Preprocess(
    crop_px=(8, 8), resize_mode="none", resize_px=None, divisor=1.0, mean=(64.0,), std=(64.0,)
)
PLAIN = Optimizer(learning_rate=0.125, momentum=0.0, weight_decay=0.0)


def tiny_recipe(
    config: ResNetConfig = CONFIG, *, model: Model | None = None, **fields: Any
) -> Recipe:
    """Digits on a net of 1,500 parameters, as they are, at a constant rate."""
    defaults = {
        "data": Data(path="digits", train_split="train", test_split="test", train_px=8),
        "augmentation": Augmentation(crop="none", flip=False),
        "preprocess": EXACT,
        "optimizer": PLAIN,
        "schedule": Schedule(kind="constant"),
        "precision": "float32",
        "batch_size": 8,
        "epochs": 1,
    }
    model = replace(model or Model(), config=config)
    return Recipe(**{**defaults, "model": model, **fields})


def batch_of(seed: int, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (size, 8, 8, 1), np.uint8),
        "labels": rng.integers(0, 10, size, np.int32),
        "weights": np.ones(size, np.float32),
    }


RECIPE = Recipe(
    model=Model(
        config=CONFIG,
        num_classes=10,
        drop_path_rate=0.2,
    ),
    data=Data(path="digits", test_split="test", train_px=8, prefetch=2, threads=2),
    augmentation=Augmentation(crop="pad", crop_padding=1, mixup_alpha=0.4),
    preprocess=Preprocess(
        crop_px=(8, 8), resize_mode="none", resize_px=None, mean=(0.305,), std=(0.376,)
    ),
    optimizer=Optimizer(learning_rate=0.1, ema_decay=0.9),
    schedule=Schedule(warmup_epochs=0.5),
    checkpoint=Checkpointing(every_steps=5),
    precision="float32",
    batch_size=128,
    epochs=3,
)


def of_files(data: Path, **changes: Any) -> Recipe:
    """The same on coloured images of files, without mixing, so that each can be told apart."""
    values = {
        "model": Model(config=replace(RECIPE.model.config, in_channels=3), drop_path_rate=0.2),
        "data": replace(RECIPE.data, path=str(data), test_split="val"),
        "augmentation": Augmentation(),
        "preprocess": Preprocess(crop_px=(8, 8), resize_px=8),
        "batch_size": 32,
        "epochs": 1.0,
    }
    return replace(RECIPE, **(values | changes))
