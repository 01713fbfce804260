"""A ResNet-8 on scikit-learn's 1,797 handwritten digits: a whole run in a minute, with no download.

    python scripts/train.py configs/digits_resnet8.py --workdir DIR

Our own: a net of the kind of He et al.'s CIFAR nets, for 8x8 grey images. Meant to be the first
run, and what tests train.

Top-1 on the fifth held out: 98 % or more is what to expect, in under a minute on two CPU cores.
"""

from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Data, Model, Optimizer, Recipe, Schedule

RECIPE = Recipe(
    model=Model(
        config=ResNetConfig(
            block="basic",
            depths=(1, 1, 1),
            widths=(16, 32, 64),
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            stem="conv3",
            stem_width=16,
            stem_pool="none",
            in_channels=1,
            num_classes=10,
        )
    ),
    data=Data(path="digits", train_split="train", test_split="test", train_px=8),
    # A mirrored digit is another sign.
    augmentation=Augmentation(crop="pad", crop_padding=1, flip=False),
    # Mean and deviation of the data set's pixels.
    preprocess=Preprocess(
        crop_px=(8, 8), resize_mode="none", resize_px=None, mean=(0.305,), std=(0.376,)
    ),
    optimizer=Optimizer(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=Schedule(kind="cosine", warmup_epochs=2),
    precision="float32",
    batch_size=64,
    epochs=25,
)
