"""A recipe as JSON, as a digest, as a Python file, and with what it refuses."""

import dataclasses
import json
from pathlib import Path

import pytest

from resnetjax.config import ResNetConfig
from resnetjax.data.augmentation import Augmentation
from resnetjax.errors import ConfigError, UnknownName
from resnetjax.train.recipe import (
    Checkpointing,
    Data,
    Evaluation,
    Model,
    Optimizer,
    Parallelism,
    Recipe,
    Schedule,
    read_recipe,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
OWN = Recipe(
    model=Model(config=ResNetConfig(depths=(1,), widths=(8,), strides=(1,), dilations=(1,))),
    optimizer=Optimizer(ema_decay=0.5, betas=(0.8, 0.9)),
    schedule=Schedule(milestones=(0.25, 0.5)),
    loss_threshold=0.2,
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_comes_back_from_json(path):
    recipe = read_recipe(path)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_a_net_of_ones_own_comes_back_from_json():
    again = Recipe.from_json(json.loads(json.dumps(OWN.to_json())))
    assert again == OWN
    assert again.digest() == OWN.digest()
    assert hash(again) == hash(OWN)  # a static argument of jax.jit


# ---- Which runs are the same.


def leaves(value, prefix=()):
    """Path and value of each field of the tree."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, (*prefix, field.name))
        else:
            yield (*prefix, field.name), inner


def changed(recipe, path, value):
    name, *rest = path
    inner = changed(getattr(recipe, name), rest, value) if rest else value
    return dataclasses.replace(recipe, **{name: inner})


OTHERS = {
    "model.arch": "resnet18",
    "model.num_classes": 7,
    "model.zero_init_residual": True,
    "model.drop_path_rate": 0.1,
    "model.dropout": 0.1,
    "model.head_widths": (8,),
    "model.weights": "elsewhere",
    "model.frozen": ("stem",),
    "model.unfreeze_after_epochs": 3.0,
    "augmentation.crop": "none",
    "augmentation.crop_area": (0.5, 1.0),
    "augmentation.crop_ratio": (0.5, 1.0),
    "augmentation.interpolation": "bicubic",
    "augmentation.policy": "rand",
    "augmentation.erase_value": "noise",
    "augmentation.mix_switch_probability": 0.25,
    "evaluation.batch_size": 7,
    "preprocess.crop_px": (8, 8),
    "preprocess.resize_px": 300,
    "preprocess.interpolation": "bicubic",
    "preprocess.crop_rounding": "floor",
    "preprocess.mean": (0.1, 0.2, 0.3),
    "preprocess.std": (0.1, 0.2, 0.3),
    "preprocess.channel_order": "bgr",
    "loss": "binary_cross_entropy",
    "class_weights": "balanced",
    "optimizer.name": "lamb",
    "optimizer.learning_rate_batch": 256,
    "optimizer.betas": (0.8, 0.9),
    "optimizer.decayed": "all",
    "optimizer.accumulate": 2,
    "optimizer.learning_rate_scales": (("stem", 0.5),),
    "optimizer.layer_decay": 0.5,
    "evaluation.patience": 3,
    "schedule.kind": "steps",
    "schedule.warmup_kind": "constant",
    "schedule.milestones": (0.1,),
    "checkpoint.failed_save": "stop",
    "precision": "float32",
    "parallelism.norm_batch": 64,
    "parallelism.model": 2,
    "data.path": "elsewhere",
    "data.test_path": "elsewhere",
    "data.train_split": "a",
    "data.test_split": "b",
}
FREE = {
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.asynchronous",
    "checkpoint.failed_save",
    "checkpoint.max_skipped",
    "data.path",
    "data.test_path",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.bad_rate",
    "evaluation.batch_size",
    "evaluation.every_epochs",
    "model.remat",
    "model.weights",
    "parallelism.model",
}
# Allowed with others only.
NOT_ALONE = {
    ("model", "config"),
    ("evaluation", "patience"),
    ("model", "keep_head"),
    ("model", "still_frozen"),
    ("preprocess", "resize_mode"),
    ("problem_type",),
}


def other_value(name: str, value: object) -> object:
    """Another one that is allowed."""
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else (value or 0.0) / 2 + 0.25


@pytest.mark.parametrize(
    "path",
    [path for path, _ in leaves(Recipe()) if path not in NOT_ALONE],
    ids=".".join,
)
def test_every_field_but_the_free_ones_makes_another_run(path):
    recipe, name = Recipe(), ".".join(path)
    value = dict(leaves(recipe))[path]
    other = changed(recipe, path, other_value(name, value))
    same = other.digest() == recipe.digest()
    assert same == (name in FREE)
    assert len(recipe.differences(other)) == (0 if same else 1)


def test_with_patience_the_times_of_evaluations_make_another_run():
    waiting = Recipe(evaluation=Evaluation(patience=2))
    other = Recipe(evaluation=Evaluation(patience=2, every_epochs=2.0))
    assert waiting.differences(other) == ("evaluation.every_epochs: 1 -> 2",)
    assert Recipe().digest() != waiting.digest() != other.digest()


def test_the_net_of_ones_own_makes_another_run_field_by_field():
    wider = dataclasses.replace(
        OWN, model=dataclasses.replace(OWN.model, config=OWN.model.config.replace(widths=(16,)))
    )
    assert OWN.differences(wider) == ("model.config.widths: [8] -> [16]",)


def test_differences_are_said_in_order():
    other = Recipe(batch_size=256, loss="binary_cross_entropy", optimizer=Optimizer(ema_decay=0.5))
    assert Recipe().differences(other) == (
        "batch_size: 1024 -> 256",
        "loss: cross_entropy -> binary_cross_entropy",
        "optimizer.ema_decay: None -> 0.5",
    )


def test_a_whole_number_is_the_same_run_however_it_is_written():
    # `epochs=90` in a file, and `--epochs 90` after it, which is 90.0.
    optimizers = Optimizer(clip_norm=1, betas=(0, 0.5)), Optimizer(clip_norm=1.0, betas=(0.0, 0.5))
    as_int, as_float = (
        Recipe(epochs=number, optimizer=optimizer)
        for number, optimizer in zip((90, 90.0), optimizers, strict=True)
    )
    assert as_int.digest() == as_float.digest()
    assert as_int.differences(as_float) == ()


# ---- What is refused.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(batch_size=0), "batch_size=0 is not allowed: use 1 or more"),
        (lambda: Recipe(epochs=0.0), "epochs=0.0"),
        (lambda: Recipe(seed=2**32), "seed=4294967296"),
        (lambda: Recipe(seed=True), "seed=True"),
        (lambda: Recipe(precision="float8"), "precision='float8' .*'bfloat16', 'float16'"),
        (lambda: Recipe(loss="mse"), "loss='mse'"),
        (lambda: Model(frozen=["stem"]), "frozen"),
        (lambda: Model(still_frozen=("stem",)), "still_frozen=.*unfreeze_after_epochs is None"),
        (lambda: Model(keep_head=True), "keep_head=True .*no weights"),
        (lambda: Data(held_out=1.0), "held_out=1.0"),
        (lambda: Optimizer(layer_decay=0.0), "layer_decay=0.0"),
        (lambda: Optimizer(learning_rate_scales=(("stem", -1.0),)), "learning_rate_scales"),
        (lambda: Evaluation(patience=0), "patience=0"),
        (
            lambda: Recipe(problem_type="regression"),
            "loss='cross_entropy' .*'mean_squared_error' in regression",
        ),
        (
            lambda: Recipe(problem_type="multi_label_classification"),
            "loss='cross_entropy' .*'binary_cross_entropy' in multi",
        ),
        (lambda: Recipe(class_weights=(1.0, -1.0)), "class_weights"),
        (
            lambda: Recipe(
                problem_type="regression", loss="mean_squared_error", class_weights="balanced"
            ),
            "class_weights='balanced' .*None in a regression",
        ),
        (
            lambda: Recipe(
                problem_type="regression",
                loss="mean_squared_error",
                augmentation=Augmentation(label_smoothing=0.1),
            ),
            "label_smoothing=0.1",
        ),
        (lambda: Data(workers=-1), "workers=-1"),
        (lambda: Data(bad_rate=1.5), "bad_rate=1.5"),
        (lambda: Optimizer(name="adam"), "name='adam' .*'lars'"),
        (lambda: Optimizer(momentum=1.0), "momentum=1.0"),
        (lambda: Optimizer(ema_decay=1.0), "ema_decay=1.0"),
        (lambda: Optimizer(ema_every=0), "ema_every=0"),
        (lambda: Optimizer(clip_norm=0.0), "clip_norm=0.0"),
        (lambda: Optimizer(learning_rate=float("nan")), "learning_rate=nan"),
        (lambda: Optimizer(betas=(0.9,)), "betas"),
        (lambda: Optimizer(betas=(0.9, 1.0)), "betas"),
        (lambda: Optimizer(weight_decay=-0.1), "weight_decay=-0.1"),
        (lambda: Schedule(milestones=(0.7, 0.5)), "milestones=.* increasing"),
        (lambda: Schedule(milestones=(1.0,)), "milestones"),
        (lambda: Schedule(warmup_epochs=-1.0), "warmup_epochs=-1.0"),
        (lambda: Evaluation(batch_size=0), "batch_size=0"),
        (lambda: Checkpointing(keep=0), "keep=0"),
        (lambda: Parallelism(model=0), "model=0"),
        (lambda: Parallelism(norm_batch=0), "norm_batch=0"),
        (lambda: Augmentation(label_smoothing=1.0), "label_smoothing=1.0"),
        (
            lambda: Recipe(batch_size=10, optimizer=Optimizer(accumulate=4)),
            "batch_size=10 .*accumulate, which is 4",
        ),
        (
            lambda: Recipe(
                batch_size=12,
                optimizer=Optimizer(accumulate=2),
                parallelism=Parallelism(norm_batch=4),
            ),
            "norm_batch=4 .*divisor of batch_size=12 in 2 parts, which is 6, or None",
        ),
        (lambda: Recipe.from_json({"model": {"archh": "x"}}), "Model has no field archh"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_batch_norm_takes_no_more_than_there_is():
    def of(batch_size, accumulate=1):
        return Recipe(
            batch_size=batch_size,
            optimizer=Optimizer(accumulate=accumulate),
            parallelism=Parallelism(norm_batch=128),
        ).norm_batch

    assert [of(256), of(128), of(64), of(512, 2), of(256, 4)] == [128, None, None, 128, None]
    with pytest.raises(ConfigError, match=r"norm_batch=128 .*divisor of batch_size, which is 192"):
        of(192)


def test_the_learning_rate_grows_with_the_batch_where_it_is_given_for_one():
    assert Recipe(batch_size=512).learning_rate == 0.1
    scaled = Recipe(batch_size=512, optimizer=Optimizer(learning_rate_batch=256))
    assert scaled.learning_rate == pytest.approx(0.2)


def test_a_net_takes_the_datas_classes_and_the_recipes_changes():
    model = Model(arch="resnet18", drop_path_rate=0.25, zero_init_residual=True)
    config = model.resolve(num_classes=7)
    assert (config.num_classes, config.drop_path_rate, config.zero_init_residual) == (7, 0.25, True)
    assert Model(arch="resnet18", num_classes=9).resolve(num_classes=7).num_classes == 9
    with pytest.raises(UnknownName, match="resnet19"):
        Model(arch="resnet19").resolve(num_classes=7)


def test_a_net_is_named_or_described_and_not_both():
    config = Model(arch="resnet18").resolve(num_classes=7)
    assert Model(config=config).resolve(num_classes=7) == config
    assert Model().resolve(num_classes=7) == Model(arch="resnet50").resolve(num_classes=7)
    assert Recipe().digest() == Recipe(model=Model(arch="resnet50")).digest()
    with pytest.raises(ConfigError, match=r"model\.arch='resnet50' is not allowed here"):
        Model(arch="resnet50", config=config).resolve(num_classes=7)


# ---- Files.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no recipe"),
        ("recipe = 3", "defines no RECIPE"),
        ("RECIPE = {'epochs': 3}", "defines no RECIPE"),
        ("RECIPE = Recipe(", "cannot be run: SyntaxError"),
        ("import nowhere", "cannot be run: ModuleNotFoundError: .*nowhere"),
        (
            "from resnetjax.train.recipe import Recipe\nRECIPE = Recipe(epoch=3)",
            "cannot be run: TypeError: .*'epoch'",
        ),
        (
            "from resnetjax.train.recipe import Recipe\nRECIPE = Recipe(epochs=-3)",
            "cannot be run: ConfigError: epochs=-3",
        ),
    ],
)
def test_a_file_without_a_recipe_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_recipe(path)
    assert "mine.py" in str(raised.value)
