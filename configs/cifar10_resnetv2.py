"""The CIFAR-10 nets of "Identity Mappings": 110, 164 and 1001 layers, 64,000 iterations.

    python scripts/train.py configs/cifar10_resnetv2.py --workdir DIR --data.path DATA

Source: He et al. 2016 (arXiv 1603.05027), tables 2-5 and appendix. The other depths are
`--model.arch cifar_resnetv2_110` and `cifar_resnetv2_1001`; the latter on one device also wants
`--model.remat True`, and was trained at `--batch_size 64` too (here for as many epochs, so twice
the iterations).

Test error by the paper, the median of five runs: 6.37 (110), 5.46 (164), 4.92 (1001) and, at a
batch of 64, 4.62 %. Not measured here.

Differences: the paper subtracts the mean of each pixel, here the channels are normalised.
"""

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Data, Model, Optimizer, Recipe, Schedule

STEPS_PER_EPOCH = 50_000 // 128

RECIPE = Recipe(
    model=Model(arch="cifar_resnetv2_164"),
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
    schedule=Schedule(
        kind="steps",
        # 0.01 for 400 iterations, which the paper calls unnecessary for v2.
        warmup_kind="constant",
        warmup_factor=0.1,
        warmup_epochs=400 / STEPS_PER_EPOCH,
        milestones=(32 / 64, 48 / 64),
        milestone_factor=0.1,
    ),
    precision="float32",
    batch_size=128,
    epochs=64_000 / STEPS_PER_EPOCH,
)
