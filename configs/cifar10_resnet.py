"""The CIFAR-10 nets of "Deep Residual Learning": 20 to 110 layers, 64,000 iterations.

    python scripts/train.py configs/cifar10_resnet.py --workdir DIR --data.path DATA

Source: He et al. 2015 (arXiv 1512.03385), section 4.2, on two GPUs. The other depths are
`--model.arch cifar_resnet20`, `cifar_resnet32`, `cifar_resnet44`, `cifar_resnet56` and
`cifar_resnet110`. The last one trains at a rate of 0.01 until the training error is below 80 %,
"about 400 iterations": `--schedule.warmup_kind constant --schedule.warmup_factor 0.1
--schedule.warmup_epochs 1.0256`.

Test error by the paper: 8.75, 7.51, 7.17, 6.97 and 6.43 % (110 layers: the best of five runs, whose
mean is 6.61 +- 0.16). Not measured here.

Differences: the paper subtracts the mean of each pixel, here the channels are normalised; the
warm-up of 110 layers ends by the clock, not by the error.
"""

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Data, Model, Optimizer, Recipe, Schedule

STEPS_PER_EPOCH = 50_000 // 128

RECIPE = Recipe(
    model=Model(arch="cifar_resnet20"),
    data=Data(train_split="train", test_split="test", train_px=32),
    augmentation=Augmentation(crop="pad", crop_padding=4),
    preprocess=Preprocess(
        crop_px=(32, 32),
        resize_mode="none",
        resize_px=None,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    optimizer=Optimizer(learning_rate=0.1, momentum=0.9, weight_decay=1e-4, decayed="all"),
    schedule=Schedule(kind="steps", milestones=(32 / 64, 48 / 64), milestone_factor=0.1),
    precision="float32",
    batch_size=128,
    epochs=64_000 / STEPS_PER_EPOCH,
)
