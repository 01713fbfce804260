"""ResNet-50 on ImageNet-1k in 100 epochs: Flax's own example.

    python scripts/train.py configs/imagenet_resnet50.py --workdir DIR --data.path DATA

Source: google/flax `examples/imagenet` (`configs/tpu.py`), after He et al. 2015 and Goyal et al.
2017. Other batch sizes scale the rate by themselves: `--batch_size 8192`.

Top-1 by its README: 76.37 % (TPU v3-8, 4.4 hours), 76.54 % (v3-32, batch 8,192, 2.1 hours), 76.72 %
(8 V100, batch 512, 13.2 hours). Not measured here.

Batch norm takes its statistics over 128 images: the share of each of the 8 cores of a v3-8, which
the example leaves apart. (256 in its run on a v3-32, 64 in that on V100s.)

Differences: the example pads as TensorFlow does ("same") and starts kernels from LeCun's normal;
this net is torchvision's, padded alike on both sides and started from He's.
"""

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Model, Optimizer, Parallelism, Recipe, Schedule

RECIPE = Recipe(
    model=Model(arch="resnet50", zero_init_residual=True),
    augmentation=Augmentation(interpolation="bicubic"),
    # The example crops 224/256 of the shorter edge, then resizes: the same pixels but for rounding.
    preprocess=Preprocess(resize_px=256, crop_px=(224, 224), interpolation="bicubic"),
    optimizer=Optimizer(
        learning_rate=0.1,
        learning_rate_batch=256,
        momentum=0.9,
        nesterov=True,
        # 0.5 * 1e-4 * |w|^2 in the loss, over arrays of two dimensions or more.
        weight_decay=1e-4,
        decayed="kernels",
    ),
    schedule=Schedule(kind="cosine", warmup_epochs=5),
    parallelism=Parallelism(norm_batch=128),
    batch_size=1024,
    epochs=100,
)
