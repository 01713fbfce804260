"""Fine-tune any pretrained net on a folder of class folders.

    python scripts/train.py configs/finetune.py --model PATH --data FOLDER

Source: our own; the order of steps is that of Keras's guide to transfer learning
(keras.io/guides/transfer_learning): a new head on the frozen net first, then the whole net at a low
rate. BatchNorm's running statistics move from the beginning, for the unfreezing not to change what
the head was trained on; with `--model.frozen "[!h]*" --model.still-frozen "*/mean"` they stay those
of the pretrained net, as Keras's guide has it.

Top-1 on scikit-learn's digits from a CIFAR-10 ResNet-32 (akamaster's), 200
images to train on, 1,597 others to test, 64 steps: 87.2 % (89.2, 86.8, 85.8 of three seeds). The
same net from scratch in as many steps, at the best of four rates: 76.5 % (69.5, 79.4, 80.7). By
`scripts/benchmark.py finetune`, which shortens the run to a minute on two shared CPU cores;
`benchmarks/results/finetune-digits.json`.
"""

from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Data, Evaluation, Model, Optimizer, Recipe, Schedule

RECIPE = Recipe(
    model=Model(
        # What is learnt, but for the head ([!h] is any first letter other than h). Statistics move.
        frozen=("[!h]*/kernel", "[!h]*/scale", "[!h]*/bias"),
        unfreeze_after_epochs=2,
    ),
    data=Data(train_split="train", test_split="validation", held_out=0.2),
    augmentation=Augmentation(crop_area=(0.5, 1.0)),
    class_weights="balanced",
    optimizer=Optimizer(
        learning_rate=0.02,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        learning_rate_scales=(("head", 5.0),),
    ),
    schedule=Schedule(kind="cosine", warmup_epochs=1, unfreezing_warmup_epochs=2),
    evaluation=Evaluation(patience=10),
    precision="float32",
    batch_size=32,
    epochs=30,
)
