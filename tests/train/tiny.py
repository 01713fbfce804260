"""A run of a few seconds in which everything that is random takes part."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Checkpointing, Data, Model, Optimizer, Recipe, Schedule

STEPS = 33

RECIPE = Recipe(
    model=Model(
        config=ResNetConfig(
            block="basic",
            depths=(1,),
            widths=(8,),
            strides=(1,),
            dilations=(1,),
            stem="conv3",
            stem_width=8,
            stem_pool="none",
            in_channels=1,
        ),
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
