"""Every file in configs/: it loads, states its source's figures, and says how it is run."""

import ast
import dataclasses
import functools
import json
import operator
import re
from pathlib import Path

import pytest

from resnetjax.measure import parameter_count
from resnetjax.plan import plan
from resnetjax.presets import get
from resnetjax.train.optimizer import make_schedule, total_steps
from resnetjax.train.recipe import Recipe, read_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
PATHS = {path.stem: path for path in sorted(CONFIGS.glob("*.py"))}

RESNET50 = 25_557_032
IMAGENET, CIFAR, DIGITS = 1_281_167, 50_000, 1_438

# Parameters of the net; images; learning rate at the first step, after the warm-up, half-way from
# there to the end, and at the end.
RUNS = {
    "imagenet_resnet50": (RESNET50, IMAGENET, (0, 0.4, 0.2, 0)),
    "imagenet_resnet50_nvidia": (RESNET50, IMAGENET, (0, 2.048, 1.024, 0)),
    "imagenet_resnet50_torchvision_v2": (RESNET50, IMAGENET, (0.005, 0.5, 0.25, 0)),
    "imagenet_resnet50_rsb_a1": (RESNET50, IMAGENET, (1e-4, 5e-3, 2.5005e-3, 1e-6)),
    "imagenet_resnet50_rsb_a2": (RESNET50, IMAGENET, (1e-4, 5e-3, 2.5005e-3, 1e-6)),
    "imagenet_resnet50_rsb_a3": (RESNET50, IMAGENET, (1e-4, 8e-3, 4.0005e-3, 1e-6)),
    "imagenet_resnet50_lars": (RESNET50, IMAGENET, (0, 11, 2.750075, 1e-4)),
    "imagenet_resnet50_lars_32k": (RESNET50, IMAGENET, (0, 29, 7.250075, 1e-4)),
    "imagenet_resnetv2_50x1_bit": (25_549_352, IMAGENET, (0, 1.6, 0.8, 0)),
    "cifar10_resnet": (269_722, CIFAR, (0.1, 0.1, 0.01, 0.001)),
    "cifar10_resnetv2": (1_703_258, CIFAR, (0.01, 0.1, 0.01, 0.001)),
    "cifar10_fast": (8_238_666, CIFAR, (9 / 38.333333, 9 / 7.6666667, 4.5 / 7.6666667, 0)),
    # ResNet-50 of 10 classes; a thousand images.
    "finetune": (RESNET50 - 2049 * 990, 1_000, (0, 0.02, 0.01, 0)),
    "digits_resnet8": (77_754, DIGITS, (0, 0.1, 0.05, 0)),
}

_RSB = {
    "optimizer.name": "lamb",
    "optimizer.eps": 1e-6,
    "optimizer.decayed": "kernels",
    "optimizer.clip_norm": 1.0,
    "schedule.kind": "cosine",
    "schedule.warmup_epochs": 5,
    "loss": "binary_cross_entropy",
    "augmentation.policy": "rand",
    "augmentation.policy_magnitude_std": 0.5,
    "augmentation.policy_increasing": True,
    "augmentation.cutmix_alpha": 1.0,
    "augmentation.interpolation": "bicubic",
    "preprocess.interpolation": "bicubic",
    "preprocess.resize_px": 235,  # timm/data/transforms_factory.py: floor(224 / 0.95)
    "preprocess.crop_px": (224, 224),
    "model.zero_init_residual": True,
    "optimizer.ema_decay": None,
}
# Of table 2, in the paper's terms.
_RSB_A12 = {
    **_RSB,
    "optimizer.learning_rate": 5e-3,
    "batch_size": 2048,
    "parallelism.norm_batch": 2048 / 4,  # of GPUs
    "data.train_px": 224,
    "augmentation.repeats": 3,
    "augmentation.policy_magnitude": 7,
    "model.drop_path_rate": 0.05,
}
_LARS = {
    "optimizer.name": "lars",
    "optimizer.trust_coefficient": 1e-3,
    "optimizer.decayed": "kernels",
    "schedule.kind": "polynomial",
    "schedule.power": 2,
    "augmentation.label_smoothing": 0.1,
    "augmentation.crop_area": (0.05, 1.0),
    "augmentation.flip": True,
    "preprocess.resize_px": 256,
    "preprocess.crop_px": (224, 224),
    "model.zero_init_residual": True,
    "optimizer.ema_decay": None,
}
_HE_CIFAR = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.1,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.decayed": "all",
    "schedule.kind": "steps",
    "schedule.milestones": (32_000 / 64_000, 48_000 / 64_000),
    "schedule.milestone_factor": 0.1,
    "augmentation.crop": "pad",
    "augmentation.crop_padding": 4,
    "augmentation.flip": True,
    "batch_size": 128,
}
SOURCES = {
    "imagenet_resnet50": {
        "optimizer.name": "sgd",
        "optimizer.nesterov": True,
        "optimizer.momentum": 0.9,
        "optimizer.learning_rate": 0.1,
        "optimizer.learning_rate_batch": 256,
        "optimizer.weight_decay": 1e-4,
        "optimizer.decayed": "kernels",
        "schedule.kind": "cosine",
        "schedule.warmup_epochs": 5,
        "batch_size": 1024,
        "parallelism.norm_batch": 1024 / 8,  # of cores
        "epochs": 100,
        "augmentation.label_smoothing": 0,
        "augmentation.crop_area": (0.08, 1.0),
        "augmentation.flip": True,
        "augmentation.interpolation": "bicubic",
        "data.train_px": 224,
        "preprocess.resize_px": 224 / 0.875,
        "preprocess.crop_px": (224, 224),
        "model.zero_init_residual": True,
        "optimizer.ema_decay": None,
    },
    "imagenet_resnet50_nvidia": {
        "optimizer.name": "sgd",
        "optimizer.nesterov": False,
        "optimizer.momentum": 0.875,
        "optimizer.learning_rate": 0.256,
        "optimizer.learning_rate_batch": 256,
        "optimizer.weight_decay": 3.0517578125e-5,
        "optimizer.decayed": "not_norms",
        "schedule.kind": "cosine",
        "schedule.warmup_epochs": 8,
        "batch_size": 2048,
        "parallelism.norm_batch": 256,
        "epochs": 90,
        "augmentation.label_smoothing": 0.1,
        "augmentation.crop": "random_resized",
        "augmentation.flip": True,
        "augmentation.interpolation": "bilinear",
        "data.train_px": 224,
        "preprocess.resize_px": 256,
        "preprocess.crop_px": (224, 224),
        "model.zero_init_residual": False,
        "optimizer.ema_decay": None,
    },
    "imagenet_resnet50_torchvision_v2": {
        "optimizer.name": "sgd",
        "optimizer.nesterov": False,
        "optimizer.momentum": 0.9,
        "optimizer.learning_rate": 0.5,
        "optimizer.learning_rate_batch": None,
        "optimizer.weight_decay": 2e-5,
        "optimizer.decayed": "not_norms",
        "optimizer.ema_decay": 0.9989077,
        "optimizer.ema_every": 32,
        "schedule.kind": "cosine",
        "schedule.warmup_epochs": 5,
        "batch_size": 1024,
        "parallelism.norm_batch": 128,
        "epochs": 600,
        "augmentation.label_smoothing": 0.1,
        "augmentation.policy": "trivial",
        "augmentation.erase_probability": 0.1,
        "augmentation.mixup_alpha": 0.2,
        "augmentation.cutmix_alpha": 1.0,
        "augmentation.repeats": 4,
        "data.train_px": 176,
        "preprocess.resize_px": 232,
        "preprocess.crop_px": (224, 224),
        "preprocess.interpolation": "bilinear",
        "model.zero_init_residual": False,
    },
    "imagenet_resnet50_rsb_a1": {
        **_RSB_A12,
        "epochs": 600,
        "optimizer.weight_decay": 0.01,
        "augmentation.mixup_alpha": 0.2,
        "augmentation.label_smoothing": 0.1,
        "loss_threshold": None,
    },
    "imagenet_resnet50_rsb_a2": {
        **_RSB_A12,
        "epochs": 300,
        "optimizer.weight_decay": 0.02,
        "augmentation.mixup_alpha": 0.1,
        "augmentation.label_smoothing": 0,
        "loss_threshold": 0.2,
    },
    "imagenet_resnet50_rsb_a3": {
        **_RSB,
        "optimizer.learning_rate": 8e-3,
        "optimizer.weight_decay": 0.02,
        "batch_size": 2048,
        "epochs": 100,
        "data.train_px": 160,
        "augmentation.repeats": 1,
        "augmentation.policy_magnitude": 6,
        "augmentation.mixup_alpha": 0.1,
        "augmentation.label_smoothing": 0,
        "model.drop_path_rate": None,
    },
    "imagenet_resnet50_lars": {
        **_LARS,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 5e-5,
        "schedule.warmup_epochs": 2,
        "batch_size": 3200,
        "epochs": 37,
    },
    "imagenet_resnet50_lars_32k": {
        **_LARS,
        "optimizer.momentum": 0.929,
        "optimizer.weight_decay": 1e-4,
        "schedule.warmup_epochs": 18,
        "batch_size": 32_768,
        "parallelism.norm_batch": 64,
        "epochs": 64,
    },
    "imagenet_resnetv2_50x1_bit": {
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "optimizer.clip_norm": 1.0,
        "optimizer.decayed": "kernels",
        "schedule.kind": "cosine",
        "batch_size": 4096,
        "epochs": 90,
        "preprocess.mean": (0.5, 0.5, 0.5),
        "preprocess.std": (0.5, 0.5, 0.5),
        "augmentation.crop_area": (0.05, 1.0),
    },
    "cifar10_resnet": {**_HE_CIFAR, "schedule.warmup_epochs": 0},
    "cifar10_resnetv2": _HE_CIFAR,
    "cifar10_fast": {
        "batch_size": 1024,
        "epochs": 31,
        "optimizer.momentum": 0.85,
        "optimizer.nesterov": True,
        "augmentation.label_smoothing": 0.2,
        "augmentation.crop_padding": 4,
        "schedule.warmup_factor": 0.2,
    },
    "finetune": {
        "model.frozen": ("[!h]*/kernel", "[!h]*/scale", "[!h]*/bias"),
        "schedule.unfreezing_warmup_epochs": 2,
        "class_weights": "balanced",
        "data.held_out": 0.2,
        "precision": "float32",
    },
    "digits_resnet8": {
        "data.path": "digits",
        "data.train_px": 8,
        "augmentation.flip": False,
        "precision": "float32",
    },
}
# Steps that a source counts in place of epochs.
STEPS = {
    "cifar10_resnet": {"total": 64_000, "warmup": 0},
    "cifar10_resnetv2": {"total": 64_000, "warmup": 400},
    "imagenet_resnetv2_50x1_bit": {"total": 28_080, "warmup": 1000},
}


@pytest.fixture(params=PATHS)
def name(request) -> str:
    return request.param


@functools.cache
def _recipe(name: str) -> Recipe:
    return read_recipe(PATHS[name])


def _steps_per_epoch(name: str) -> int:
    return RUNS[name][1] // _recipe(name).batch_size


def test_every_config_is_described_here():
    assert set(PATHS) == set(RUNS) == set(SOURCES)


def test_it_states_the_figures_of_its_source(name):
    stated = {field: operator.attrgetter(field)(_recipe(name)) for field in SOURCES[name]}
    assert stated == {
        field: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        for field, value in SOURCES[name].items()
    }


def test_its_net_has_so_many_parameters_and_fits_its_images(name):
    recipe = _recipe(name)
    config = recipe.model.resolve(num_classes=1000 if name.startswith("imagenet") else 10)
    assert parameter_count(plan(config)) == RUNS[name][0]
    assert config.in_channels == recipe.preprocess.channels
    if recipe.preprocess.resize_mode == "none":
        assert recipe.preprocess.crop_px == (recipe.data.train_px,) * 2


def test_it_round_trips_through_json(name):
    recipe = _recipe(name)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_its_learning_rate_rises_and_falls_as_in_its_source(name):
    recipe, steps_per_epoch = _recipe(name), _steps_per_epoch(name)
    rate = make_schedule(recipe, steps_per_epoch=steps_per_epoch)
    warmup = round(recipe.schedule.warmup_epochs * steps_per_epoch)
    end = total_steps(recipe, steps_per_epoch)
    middle = (warmup + end) / 2
    found = [float(rate(step)) for step in (0, warmup, middle, end)]
    assert found == pytest.approx(RUNS[name][2], rel=1e-6, abs=1e-9)
    if expected := STEPS.get(name):
        assert {"total": end, "warmup": warmup} == expected


def test_its_docstring_gives_the_command_that_runs_it_and_its_source(name):
    text = ast.get_docstring(ast.parse(PATHS[name].read_text(encoding="utf-8")))
    assert text
    words = " ".join(text.replace("\\\n", " ").split())
    command = f"python scripts/train.py configs/{name}.py --workdir DIR"
    if name == "finetune":
        command = f"python scripts/train.py configs/{name}.py --model PATH"
        words = words.replace("--data FOLDER", "--data.path DATA")
    needs_data = not _recipe(name).data.path
    assert f"{command} --data.path DATA" in words if needs_data else command in words
    assert "Source: " in text or "Our own: " in text
    assert any(measure in text for measure in ("Top-1", "Test error"))


def test_on_batches_of_other_sizes_norms_take_as_many_images_or_all_of_fewer(name):
    recipe = _recipe(name)
    chosen = recipe.parallelism.norm_batch
    for size in (8, 64, 4096):
        changed = dataclasses.replace(recipe, batch_size=size)
        assert changed.norm_batch == (chosen if chosen and chosen < size else None)


def test_every_architecture_that_a_docstring_offers_exists(name):
    text = PATHS[name].read_text(encoding="utf-8").split('"""')[1]
    for arch in re.findall(r"`(?:--model\.arch )?((?:cifar_)?resne(?!t-)\w+)`", text):
        assert get(arch)


def test_the_deepest_cifar_net_can_begin_at_a_hundredth_for_400_steps():
    recipe = _recipe("cifar10_resnet")
    slow = dataclasses.replace(
        recipe.schedule, warmup_kind="constant", warmup_factor=0.1, warmup_epochs=1.0256
    )
    rate = make_schedule(dataclasses.replace(recipe, schedule=slow), steps_per_epoch=390)
    assert [float(rate(step)) for step in (0, 399, 400)] == pytest.approx([0.01, 0.01, 0.1])
