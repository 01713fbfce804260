"""ResNet-50 v1.5 on ImageNet-1k in 37 epochs: MLPerf's LARS at a batch of 3,200.

    python scripts/train.py configs/imagenet_resnet50_lars.py --workdir DIR --data.path DATA

Source: MLPerf training, closed division: ResNet-50 with LARS (You et al. 2017). Larger batches have
other hyper-parameters: see `imagenet_resnet50_lars_32k.py`.

Top-1: 75.9 % is MLPerf's target, at which its runs stop. Not measured here.

Batch norm takes its statistics over the whole batch. How many images those of this size were of is
not stated; MLPerf's reference points at 1,632 and 3,264 have 204.

Differences: the polynomial ends at the run's last step, MLPerf's a step later.
"""

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Model, Optimizer, Recipe, Schedule

LEARNING_RATE = 11.0

RECIPE = Recipe(
    model=Model(arch="resnet50", zero_init_residual=True),
    augmentation=Augmentation(crop_area=(0.05, 1.0), label_smoothing=0.1),
    preprocess=Preprocess(resize_px=256, crop_px=(224, 224)),
    optimizer=Optimizer(
        name="lars",
        learning_rate=LEARNING_RATE,
        momentum=0.9,
        trust_coefficient=1e-3,
        weight_decay=5e-5,
        decayed="kernels",  # the rest is not adapted either
    ),
    schedule=Schedule(
        kind="polynomial", power=2, warmup_epochs=2, final_factor=1e-4 / LEARNING_RATE
    ),
    batch_size=3200,
    epochs=37,
)
