"""`resnetjax train` and `resnetjax evaluate`, on a net so small that a run takes seconds."""

import contextlib
import errno
import io
import itertools
import json
import operator
import os
import re
import signal
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

import resnetjax as rj
from resnetjax import cli
from resnetjax.data.datasets import open_dataset
from resnetjax.train import loop
from resnetjax.train.metrics_log import read_metrics
from resnetjax.train.preview import draw_grid
from resnetjax.train.setup import Setup
from resnetjax.train.signals import StopSignals
from resnetjax.train.step import draw_keys, vary
from tests.train.tiny import CONFIG, batch_of, tiny_recipe

RECIPE = """
from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.data.augmentation import Augmentation
from resnetjax.train.recipe import Checkpointing, Data, Model, Optimizer, Recipe

RECIPE = Recipe(
    model=Model(
        config=ResNetConfig(
            block="basic", depths=(1,), widths=(8,), strides=(1,), dilations=(1,), stem="conv3",
            stem_width=8, stem_pool="none", in_channels=1, num_classes=10,
        )
    ),
    data=Data(path="digits", train_split="train", test_split="test", train_px=8, threads=1),
    augmentation=Augmentation(crop="pad", crop_padding=1, flip=False),
    preprocess=Preprocess(
        crop_px=(8, 8), resize_mode="none", resize_px=None, mean=(0.305,), std=(0.376,)
    ),
    optimizer=Optimizer(learning_rate=0.1),
    checkpoint=Checkpointing(asynchronous=False),
    precision="float32",
    batch_size=64,
    epochs=1,
)
"""


class Result(NamedTuple):
    code: int | str | None
    out: str
    err: str


def run(*arguments: object) -> Result:
    """Runs the command in this process, as someone whose stdout and stderr are files."""
    out, err = io.StringIO(), io.StringIO()
    shown = warnings.showwarning
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        cli.main([str(argument) for argument in arguments])
    warnings.showwarning = shown
    return Result(stopped.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> tuple[Path, Result]:
    """The folder of a whole run, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return workdir, run("train", recipe, "--workdir", workdir, "--tensorboard", "--profile")


def test_a_run_ends_with_the_digest_of_its_state_alone_on_stdout(finished):
    _, result = finished
    assert result.code == 0, result.err
    assert re.fullmatch(r"state sha256 [0-9a-f]{64}\n", result.out)
    assert result.err.startswith(
        "training on 1,438 images of 10 classes (0, 1, 2, ...), "
        "evaluating on the split test, 359 images\n"
    )
    assert re.search(r"epoch 1 · step 22 · test top-1 [\d.]+%, top-5 [\d.]+% of 359", result.err)


def test_a_run_leaves_log_curves_models_trace_and_events(finished):
    workdir, _ = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, 23), 22]
    with Image.open(workdir / "curves.png") as image:
        assert image.size == (1200, 480)
    assert list((workdir / "trace").rglob("*.xplane.pb"))
    events = list((workdir / "tensorboard").glob("events*"))
    assert len(events) == 1
    content = events[0].read_bytes()
    assert all(name in content for name in (b"loss", b"learning_rate", b"test_top1"))
    assert not (workdir / "bad_images.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "steps"), [("0.1", 1), ("0.3", 4)])
def test_a_run_of_few_steps_leaves_a_trace_too(recipe, tmp_path, epochs, steps):
    result = run("train", recipe, "--workdir", tmp_path, "--epochs", epochs, "--profile")
    assert result.code == 0, result.err
    assert f"trace of {steps} steps: " in result.err
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_the_same_command_again_trains_no_further(finished, recipe):
    workdir, first = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    again = run("train", recipe, "--workdir", workdir)
    assert (again.code, again.out) == (0, first.out)
    assert "resumed at step 22 of 22" in again.err
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_recipe_is_refused_in_the_folder_of_a_run(finished, recipe):
    result = run("train", recipe, "--workdir", finished[0], "--seed", 5, "--epochs", "1")
    assert (result.code, result.out) == (2, "")
    assert "holds a run with another recipe:\n  seed: 0 -> 5\n" in result.err
    assert "epochs" not in result.err


def test_a_run_is_loaded_and_predicts_as_it_scored(finished):
    workdir, _ = finished
    pretrained = rj.load(workdir)
    data = open_dataset("digits", split="test")
    images = np.stack([data[i].image for i in range(len(data))])
    found = rj.predict(pretrained, images, top=1, batch_size=len(data))
    right = [row[0].index == data[i].label for i, row in enumerate(found)]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["top1"] == pytest.approx(np.mean(right), abs=1e-9)
    assert found[0][0].label in "0123456789"


def test_evaluate_prints_the_score_of_a_run(finished):
    workdir, _ = finished
    result = run("evaluate", workdir, "digits", "--split", "test", "--batch-size", 50)
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    top1, top5 = lines[-1]["top1"], lines[-1]["top5"]
    assert result.out == f"top-1 {top1:.3%}, top-5 {top5:.3%} of 359 images\n"


def test_evaluate_shows_how_far_it_is_to_someone_who_looks(finished, monkeypatch):
    arguments = ("evaluate", finished[0], "digits", "--split", "test")
    assert run(*arguments).err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run(*arguments)
    assert "evaluating" in result.err
    assert "359/359" in result.err
    assert result.out.endswith(" of 359 images\n")


def test_evaluate_writes_json_even_where_there_is_no_loss(finished, tmp_path):
    labels = tmp_path / "real.json"
    labels.write_text(json.dumps([[i % 10] for i in range(358)] + [[]]))
    result = run(
        "evaluate", finished[0], "digits", "--split", "test", "--real-labels", labels, "--json"
    )
    assert result.code == 0, result.err
    found = json.loads(result.out, parse_constant=pytest.fail)
    assert (found["examples"], found["loss"], found["bad"]) == (358, None, [])
    assert found["data"] == "digits"


def test_evaluate_names_the_split_whose_labels_are_none_of_the_nets(finished, tmp_path):
    images = np.zeros((10, 8, 8), np.uint8)
    np.savez(tmp_path / "some.npz", x_test=images, y_test=np.arange(1, 11))
    result = run("evaluate", finished[0], tmp_path / "some.npz", "--split", "test")
    assert (result.code, result.out) == (2, "")
    assert "label 10 of the split test is not allowed: of 10 classes" in result.err


def test_images_that_cannot_be_read_are_named_and_make_evaluate_fail(finished, tmp_path):
    for digit in "01":
        (tmp_path / digit).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / digit / "good.png")
    (tmp_path / "1" / "bad.png").write_bytes(b"no image")
    result = run("evaluate", finished[0], tmp_path)
    assert result.code == 2
    assert "bad.png" in result.err
    assert result.out.endswith(" of 2 images\n")


# ---- Saves that fail.


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def evaluations(workdir: Path) -> list[int]:
    return [line["step"] for line in read_metrics(workdir / "metrics.jsonl")[1]]


@pytest.mark.parametrize(
    ("name", "what", "saved"),
    [
        ("checkpoint._write_arrays", "step 22 was not saved in ", 0),
        ("loop.MetricsLog.flush", "metrics.jsonl of step 22: ", 0),
        ("loop.saving.save", "model of step 22: ", 22),
    ],
)
@pytest.mark.slow
def test_a_run_whose_last_save_fails_says_so_and_is_completed_by_the_same_command(
    finished, recipe, tmp_path, name, what, saved
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"resnetjax.train.{name}", no_space)
        result = run("train", recipe, "--workdir", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert re.search(rf"not all of it .*:\n  {what}.*No space left", result.err), result.err
    assert f"goes on from step {saved}.\n" in result.err
    again = run("train", recipe, "--workdir", tmp_path)
    assert (again.code, again.out) == (0, finished[1].out)
    assert evaluations(tmp_path) == [22]
    assert {"best", "latest", "checkpoints"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saving.save", "MetricsLog.flush"])
@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_save_that_fails_once_ends_a_run_only_by_its_recipe(
    recipe, tmp_path, monkeypatch, name, policy
):
    original, failing = operator.attrgetter(name)(loop), iter([no_space])
    monkeypatch.setattr(
        f"resnetjax.train.loop.{name}", lambda *args: next(failing, original)(*args)
    )
    arguments = ("--workdir", tmp_path, "--epochs", 2, "--checkpoint.failed-save", policy)
    result = run("train", recipe, *arguments)
    assert result.code == (2 if policy == "stop" else 0), result.err
    assert " of step 22: [Errno 28] No space left" in result.err
    if policy == "continue":
        assert len(read_metrics(tmp_path / "metrics.jsonl")[0]) == 44
        assert rj.load(tmp_path)


def test_a_signal_whose_save_fails_promises_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("resnetjax.train.checkpoint._write_arrays", no_space)
    asked = itertools.count()
    monkeypatch.setattr(
        StopSignals, "agreed", lambda _: signal.SIGTERM if next(asked) > 5 else None
    )
    result = run("train", recipe, "--workdir", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert re.search(r"was stopped by signal 15 after step \d, and not all", result.err)
    assert "goes on from step 0.\n" in result.err


# ---- Dry runs.


def test_a_dry_run_prints_sizes_and_draws_the_first_batch_and_leaves_nothing_else(recipe, tmp_path):
    workdir = tmp_path / "run"
    result = run("train", recipe, "--workdir", workdir, "--dry-run", "--epochs", 3)
    assert result.code == 0, result.err
    parameters = 9 * 8 + 2 * 9 * 64 + 3 * 16 + 90  # convolutions, norms, head
    assert f"of its own config, {parameters:,} parameters, 48 running statistics" in result.out
    assert "1,438 images to train on, 359 to evaluate on" in result.out
    assert "66 steps, 22 an epoch, batches of 64, learning rate up to 0.1" in result.out
    assert re.search(r"memory +[\d.]+ MiB a device: ", result.out)
    assert [path.name for path in workdir.iterdir()] == ["first_batch.png"]
    with Image.open(workdir / "first_batch.png") as image:
        assert image.size == (8 * 10 * 8, 8 * 10 * 8)  # 8 by 8 images of 8 pixels, 8 times as large
        assert image.mode == "L"


def test_the_picture_is_of_what_the_first_step_sees(tmp_path):
    recipe = tiny_recipe(batch_size=4)
    images, _, _ = vary(recipe, CONFIG, draw_keys(recipe, 0)[0], jax.device_put(batch_of(0, 4)))
    grid = np.asarray(draw_grid(np.asarray(images), recipe.preprocess))[::8, ::8]
    pixels = batch_of(0, 4)["images"][..., 0]
    np.testing.assert_array_equal(grid[:8, :8], pixels[0])
    np.testing.assert_array_equal(grid[:8, 10:18], pixels[1])
    np.testing.assert_array_equal(grid[10:18, :8], pixels[2])


# ---- Arguments.


def test_without_a_recipe_the_help_is_shown():
    result = run("train")
    assert result.code == 0
    assert "RECIPE.py" in result.out
    assert "--optimizer.learning-rate" in result.out


def test_flags_without_a_recipe_do_not_pass_for_a_run(tmp_path):
    result = run("train", "--workdir", tmp_path / "run")
    assert (result.code, result.out) == (2, "")
    assert "resnetjax: error: name a recipe before all flags: resnetjax train" in result.err


def test_a_misspelt_flag_brings_up_the_right_one(recipe, tmp_path):
    result = run("train", recipe, "--workdir", tmp_path / "run", "--optimizer.learning-rte", 1)
    assert result.code == 2
    assert "--optimizer.learning-rate" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "batch_size=0 is not allowed"),
        (["--data.path", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--parallelism.model", "3"], "parallelism.model=3 is not allowed"),
        (["--model.frozen", "stem", "tail"], "tail"),
        (["--coordinator", "localhost:1"], "given together or not at all"),
        (["--data.train-split", "nope"], "nope"),
        (["--workdir", __file__], "test_command.py is a file; name a folder"),
        (["--workdir", __file__, "--dry-run"], "test_command.py is a file; name a folder"),
        (["--model.arch", "resnet50"], "model.arch='resnet50' is not allowed here: the recipe"),
    ],
)
def test_bad_values_are_one_message_and_exit_code_2(recipe, tmp_path, flags, message):
    result = run("train", recipe, "--workdir", tmp_path / "run", *flags)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_no_run_is_begun_in_the_folder_of_a_model(recipe, finished, tmp_path):
    model = tmp_path / "net"
    rj.save(rj.load(finished[0]), model)
    before = sorted(path.name for path in model.iterdir())
    result = run("train", recipe, "--workdir", model)
    assert (result.code, result.out) == (2, "")
    assert "it holds a model (config.json, model.safetensors)" in result.err
    assert sorted(path.name for path in model.iterdir()) == before


def test_a_missing_recipe_and_a_missing_model_are_exit_code_2(tmp_path):
    for arguments in (("train", tmp_path / "no.py"), ("evaluate", tmp_path / "no", "digits")):
        result = run(*arguments)
        assert (result.code, result.out) == (2, "")
        assert "no" in result.err


def test_flags_override_the_fields_of_the_file(recipe, tmp_path, monkeypatch):
    seen = []

    def note(chosen):
        seen.append(chosen)
        raise KeyboardInterrupt

    monkeypatch.setattr("resnetjax.train.command.Setup", note)
    result = run(
        "train",
        recipe,
        *("--workdir", tmp_path, "--dry-run", "--batch-size", 32, "--epochs", 2),
        *("--optimizer.name", "lamb", "--optimizer.ema-decay", 0.5, "--model.frozen", "stem"),
        *("--schedule.milestones", 0.1, 0.2, "--model.remat", "--precision", "bfloat16"),
        *("--preprocess.mean", 0.5, "--data.test-split", "train"),
    )
    assert result.code == 130, result.err
    (chosen,) = seen
    assert (chosen.batch_size, chosen.epochs, chosen.precision) == (32, 2, "bfloat16")
    assert (chosen.optimizer.name, chosen.optimizer.ema_decay) == ("lamb", 0.5)
    assert (chosen.model.frozen, chosen.model.remat) == (("stem",), True)
    assert chosen.schedule.milestones == (0.1, 0.2)
    assert (chosen.preprocess.mean, chosen.data.test_split) == ((0.5,), "train")
    assert chosen.optimizer.learning_rate == 0.1
    assert chosen.model.config == CONFIG


def test_a_run_on_other_data_is_another_run(tmp_path):
    with Setup(tiny_recipe(batch_size=64)) as setup:
        facts = setup.facts
        setup.class_names = ("a", *setup.class_names[1:])
        renamed = setup.facts
    names = "digest of the classes' names"
    assert facts.pop(names) != renamed.pop(names)
    expected = {"training examples": 1438, "test examples": 359, "classes": 10}
    assert facts == renamed == {**expected, "initial weights": None}
