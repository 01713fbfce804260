"""BiT's ResNet-50x1 on ImageNet-1k in 90 epochs: v2, group norm and weight standardisation.

    python scripts/train.py configs/imagenet_resnetv2_50x1_bit.py --workdir DIR --data.path DATA

Source: google-research/big_vision `configs/bit_i1k.py`, after Kolesnikov et al. 2019 (arXiv
1912.11370); 32 minutes on a TPU v3-128. Wider and deeper: `--model.arch resnetv2_101x1_bit`.

Top-1: the source states none. Not measured here.

Differences: big_vision trains on 99 % of the training images, starts the head at zero and keeps the
momentum in bfloat16.
"""

from resnetjax.config import HALF_MEAN, HALF_STD, Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Model, Optimizer, Recipe, Schedule

RECIPE = Recipe(
    model=Model(arch="resnetv2_50x1_bit"),
    augmentation=Augmentation(crop_area=(0.05, 1.0)),
    preprocess=Preprocess(resize_px=256, crop_px=(224, 224), mean=HALF_MEAN, std=HALF_STD),
    optimizer=Optimizer(
        learning_rate=0.1,
        learning_rate_batch=256,
        momentum=0.9,
        # big_vision subtracts 1.6e-3 of the weights a step, at a rate of 1.6. Through a momentum of
        # 0.9, which sums ten gradients, 1e-4 amounts to the same: 1.6 * 1e-4 * 10.
        weight_decay=1e-4,
        decayed="kernels",
        clip_norm=1.0,
    ),
    # 1,000 steps, of which an epoch has 1,281,167 // 4,096.
    schedule=Schedule(kind="cosine", warmup_epochs=1000 / 312),
    batch_size=4096,
    epochs=90,
)
