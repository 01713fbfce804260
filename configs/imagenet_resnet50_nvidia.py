"""ResNet-50 v1.5 on ImageNet-1k in 90 epochs, by NVIDIA's recipe: the best of the plain ones.

    python scripts/train.py configs/imagenet_resnet50_nvidia.py --workdir DIR --data.path DATA

Source: NVIDIA/DeepLearningExamples `PyTorch/Classification/ConvNets/resnet50v1.5`.

Top-1 by its README, with mixed precision: 77.12 +- 0.11 % (8 A100 80 GB, 3 hours), 77.10 +- 0.06 %
(16 V100 32 GB). Its 250 epochs reach 78.4-78.6 %, with `--epochs 250 --augmentation.mixup_alpha
0.2`. Not measured here.

Batch norm takes its statistics over 256 images: its `configs.yml` gives each GPU as many, and none
sees another's.

Differences: activations are bfloat16, not float16 with a scaled loss (`--precision float16`).
"""

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Model, Optimizer, Parallelism, Recipe, Schedule

RECIPE = Recipe(
    model=Model(arch="resnet50", zero_init_residual=False),
    augmentation=Augmentation(label_smoothing=0.1),
    preprocess=Preprocess(resize_px=256, crop_px=(224, 224)),
    optimizer=Optimizer(
        learning_rate=0.256,
        learning_rate_batch=256,
        momentum=0.875,
        weight_decay=1 / 32768,
        # "not on batch norm trainable parameters": the head's bias does decay.
        decayed="not_norms",
    ),
    schedule=Schedule(kind="cosine", warmup_epochs=8),
    parallelism=Parallelism(norm_batch=256),
    batch_size=2048,
    epochs=90,
)
