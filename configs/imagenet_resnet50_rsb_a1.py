"""ResNet-50 on ImageNet-1k in 600 epochs: "ResNet strikes back", procedure A1.

    python scripts/train.py configs/imagenet_resnet50_rsb_a1.py --workdir DIR --data.path DATA

Source: Wightman, Touvron and Jegou 2021 (arXiv 2110.00476), table 2; trained with timm in 4.6 days
on 4 V100 32 GB.

Top-1 by the paper: 80.4 % (80.38 in timm's table). Not measured here.

Batch norm takes its statistics over 512 images: those of a GPU, without timm's `--sync-bn`.

Differences: the rate changes at every step, timm's at every epoch; the cosine begins where the
warm-up ends, timm's at step 0, under the warm-up; a batch is mixed by one method and strength,
timm's by one on each GPU.
"""

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Model, Optimizer, Parallelism, Recipe, Schedule

LEARNING_RATE = 5e-3

RECIPE = Recipe(
    model=Model(arch="resnet50", zero_init_residual=True, drop_path_rate=0.05),
    # A test crop ratio of 0.95: 235.8 pixels, which timm truncates (OpenMMLab's version rounds).
    preprocess=Preprocess(resize_px=235, crop_px=(224, 224), interpolation="bicubic"),
    augmentation=Augmentation(
        interpolation="bicubic",
        repeats=3,
        policy="rand",
        policy_magnitude=7,
        policy_magnitude_std=0.5,
        policy_increasing=True,
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
        label_smoothing=0.1,
    ),
    # No threshold, as in OpenMMLab's version: it would undo the smoothing.
    loss="binary_cross_entropy",
    optimizer=Optimizer(
        name="lamb",
        learning_rate=LEARNING_RATE,
        eps=1e-6,
        weight_decay=0.01,
        decayed="kernels",
        clip_norm=1.0,  # timm's Lamb clips by itself
    ),
    schedule=Schedule(
        kind="cosine",
        warmup_epochs=5,
        warmup_factor=1e-4 / LEARNING_RATE,
        final_factor=1e-6 / LEARNING_RATE,
    ),
    parallelism=Parallelism(norm_batch=512),
    batch_size=2048,
    epochs=600,
)
