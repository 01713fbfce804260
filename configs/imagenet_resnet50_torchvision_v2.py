r"""ResNet-50 on ImageNet-1k in 600 epochs: the recipe of torchvision's IMAGENET1K_V2 weights.

    python scripts/train.py configs/imagenet_resnet50_torchvision_v2.py --workdir DIR \
        --data.path DATA

Source: pytorch.org/blog "How to Train State-Of-The-Art Models Using TorchVision's Latest
Primitives" and pytorch/vision issue 3995, trained on 8 GPUs of 128 images each. The same recipe
serves `--model.arch resnet101`, `resnet152` and `resnext50_32x4d`.

Top-1 by torchvision: 80.858 % (81.886, 82.284 and 81.198 % for the other three). Not measured here.

Batch norm takes its statistics over 128 images: those of a GPU, without `--sync-bn`.

The average's decay, which torchvision scales by these, is that of a batch of 1,024 in 600 epochs.
With others pass 1 - 2e-5 * batch * 32 / epochs: `--batch_size 256 --optimizer.ema_decay 0.99973`.

Differences: the rate changes at every step, theirs at every epoch; activations are bfloat16, theirs
float32; a batch is mixed by one method and strength, theirs by one on each GPU.
"""

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Data, Model, Optimizer, Parallelism, Recipe, Schedule

BATCH_SIZE, EPOCHS, EMA_EVERY = 1024, 600, 32

RECIPE = Recipe(
    model=Model(arch="resnet50", zero_init_residual=False),
    # Objects look larger in training's crops than in evaluation's: FixRes, Touvron et al. 2019.
    data=Data(train_px=176),
    preprocess=Preprocess(resize_px=232, crop_px=(224, 224)),
    augmentation=Augmentation(
        policy="trivial",
        erase_probability=0.1,
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
        repeats=4,
        label_smoothing=0.1,
    ),
    optimizer=Optimizer(
        learning_rate=0.5,
        momentum=0.9,
        weight_decay=2e-5,
        decayed="not_norms",
        # --model-ema-decay 0.99998, whose complement train.py multiplies by batch * steps / epochs.
        ema_decay=1 - (1 - 0.99998) * BATCH_SIZE * EMA_EVERY / EPOCHS,
        ema_every=EMA_EVERY,
    ),
    # --lr-warmup-decay, by default 0.01, is where the line begins.
    schedule=Schedule(kind="cosine", warmup_epochs=5, warmup_factor=0.01),
    parallelism=Parallelism(norm_batch=128),
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
)
