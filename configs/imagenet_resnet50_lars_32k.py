"""ResNet-50 v1.5 on ImageNet-1k in 64 epochs of 39 steps: LARS at a batch of 32,768.

    python scripts/train.py configs/imagenet_resnet50_lars_32k.py --workdir DIR --data.path DATA

Source: Google's JAX submission to MLPerf training 0.7 (`resnet-research-JAX-tpu-v3-8192`). Its
other sizes: 16,384 with rate 25, warm-up 5 and 56 epochs; 65,536 with rate 23.08, warm-up 33, 92
epochs and momentum 0.95372 (28 seconds on 8,192 TPU v3 cores).

Top-1: 75.9 % is MLPerf's target, at which its runs stop. Not measured here.

Batch norm takes its statistics over 64 images, by its `batchnorm_span`: on fewer than 512 cores, a
core's share is more and takes its place.

Differences: the polynomial ends at the run's last step, the source's a step later.
"""

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Model, Optimizer, Parallelism, Recipe, Schedule

LEARNING_RATE = 29.0

RECIPE = Recipe(
    model=Model(arch="resnet50", zero_init_residual=True),
    augmentation=Augmentation(crop_area=(0.05, 1.0), label_smoothing=0.1),
    preprocess=Preprocess(resize_px=256, crop_px=(224, 224)),
    optimizer=Optimizer(
        name="lars",
        learning_rate=LEARNING_RATE,
        momentum=0.929,
        trust_coefficient=1e-3,
        weight_decay=1e-4,
        decayed="kernels",  # the rest is not adapted either
    ),
    schedule=Schedule(
        kind="polynomial", power=2, warmup_epochs=18, final_factor=1e-4 / LEARNING_RATE
    ),
    parallelism=Parallelism(norm_batch=64),
    batch_size=32_768,
    epochs=64,
)
