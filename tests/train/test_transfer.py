"""Runs that start from a pretrained net: what is frozen when, rates, ends, and what is left."""

import dataclasses
import json
import signal
import warnings
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import resnetjax as rj
from resnetjax.errors import AssumptionWarning, ConfigError
from resnetjax.train.groups import frozen_at, rate_factors, training_groups
from resnetjax.train.loop import train
from resnetjax.train.optimizer import make_optimizer
from resnetjax.train.recipe import Data, Model, Optimizer, Recipe, Schedule
from resnetjax.train.setup import Setup
from resnetjax.train.transfer import initial_variables, starting_from
from tests.train.lives import leaves, metrics
from tests.train.tiny_finetune import NAMES, finetune, write_images, write_weights

PARAMETERS = (
    "stem/conv1/kernel",
    "stem/norm1/scale",
    "stem/norm1/bias",
    "stage1_block1/conv1/kernel",
    "stage1_block2/conv1/kernel",
    "stage2_block1/conv1/kernel",
    "norm/scale",
    "head/kernel",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "net")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def flat(variables) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(value)
        for tree in variables.values()
        for name, value in flax.traverse_util.flatten_dict(tree, sep="/").items()
    }


# ---- What is trained when, and how fast.


def test_groups_follow_from_the_patterns_before_and_after_unfreezing():
    model = Model(
        frozen=("up to stage2", "norm"), unfreeze_after_epochs=2, still_frozen=("stem", "*/mean")
    )
    groups = training_groups(Recipe(model=model), PARAMETERS)
    assert groups == {
        name: "frozen" if name.startswith("stem") else "trained" if name == "head/kernel"
        else "thawed" for name in PARAMETERS
    }  # fmt: skip
    at = [frozen_at(Recipe(model=model), step, steps_per_epoch=3) for step in (0, 5, 6, 99)]
    assert at == [model.frozen, model.frozen, model.still_frozen, model.still_frozen]


def test_what_was_trained_cannot_be_frozen_later():
    model = Model(frozen=("stem",), unfreeze_after_epochs=1, still_frozen=("stem", "head"))
    with pytest.raises(ConfigError, match=r"still_frozen=\['stem', 'head'\].*head/kernel"):
        training_groups(Recipe(model=model), PARAMETERS)


def test_the_rate_falls_by_the_layer_and_the_first_pattern_scales_it():
    chosen = Optimizer(
        layer_decay=0.5, learning_rate_scales=(("*/bias", 3.0), ("stem", 2.0), ("stage*", 1.0))
    )
    assert rate_factors(chosen, PARAMETERS) == {
        "stem/conv1/kernel": 2 / 16,
        "stem/norm1/scale": 2 / 16,
        "stem/norm1/bias": 3 / 16,
        "stage1_block1/conv1/kernel": 1 / 8,
        "stage1_block2/conv1/kernel": 1 / 4,
        "stage2_block1/conv1/kernel": 1 / 2,
        "norm/scale": 1,
        "head/kernel": 1,
    }
    with pytest.raises(ConfigError, match=r"learning_rate_scales='tail' .* head, norm, stage1_bl"):
        rate_factors(Optimizer(learning_rate_scales=(("tail", 1.0),)), PARAMETERS)


@pytest.mark.parametrize("name", [pytest.param("sgd", marks=pytest.mark.slow), "adamw"])
def test_what_is_unfrozen_later_begins_as_a_new_optimiser_would_at_that_rate(name):
    thaw = 3
    recipe = Recipe(
        model=Model(frozen=("stem",), unfreeze_after_epochs=thaw),
        optimizer=Optimizer(
            name=name, learning_rate=1.0, weight_decay=0.5, learning_rate_scales=(("stem", 0.25),)
        ),
        schedule=Schedule(kind="steps", milestones=(0.5,), milestone_factor=0.5),
        epochs=8,
        batch_size=8,
    )
    params = {part: {"kernel": jnp.arange(1.0, 4)} for part in ("stem", "head")}
    optimizer = make_optimizer(recipe, params, steps_per_epoch=1)
    # The same weights and gradients from the third step on, by an optimiser of their own.
    plain = dataclasses.replace(recipe.optimizer, learning_rate_scales=(), learning_rate=0.25)
    alone = make_optimizer(
        dataclasses.replace(recipe, model=Model(), optimizer=plain,
                            schedule=Schedule(kind="steps", milestones=(0.2,),
                                              milestone_factor=0.5), epochs=5),
        {"stem": params["stem"]}, steps_per_epoch=1)  # fmt: skip
    state, own = optimizer.init(params), alone.init({"stem": params["stem"]})
    update, update_alone = jax.jit(optimizer.update), jax.jit(alone.update)
    expected = params["stem"]
    for step in range(8):
        rng = np.random.default_rng(step)
        gradient = {"kernel": jnp.asarray(rng.normal(size=3), jnp.float32)}
        now = {"stem": gradient if step >= thaw else {"kernel": jnp.zeros(3)}, "head": gradient}
        updates, state = update(now, state, params)
        params = optax.apply_updates(params, updates)
        if step >= thaw:
            updates, own = update_alone({"stem": gradient}, own, {"stem": expected})
            expected = optax.apply_updates({"stem": expected}, updates)["stem"]
        np.testing.assert_allclose(params["stem"]["kernel"], expected["kernel"], rtol=1e-6)


def test_what_is_unfrozen_rises_to_the_rate_of_all_else_from_the_unfreezing_on():
    recipe = Recipe(
        model=Model(frozen=("stem",), unfreeze_after_epochs=1),
        optimizer=Optimizer(learning_rate=0.5, momentum=0.0, weight_decay=0.0),
        schedule=Schedule(kind="constant", unfreezing_warmup_epochs=2),
        epochs=9,
        batch_size=8,
    )
    params = {part: {"kernel": jnp.zeros(())} for part in ("stem", "head")}
    optimizer = make_optimizer(recipe, params, steps_per_epoch=2)
    state, steps = optimizer.init(params), []
    for _ in range(8):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        steps.append([-float(updates[part]["kernel"]) for part in ("stem", "head")])
    stem, head = zip(*steps, strict=True)
    assert stem == (0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5)
    assert head == (0.5,) * 8


# ---- Starting from weights.


def test_a_recipe_takes_the_nets_architecture_preprocessing_and_size(weights):
    recipe = starting_from(Recipe(epochs=3.0), weights)
    pre = rj.load(weights)
    assert (recipe.model.config, recipe.preprocess) == (pre.config, pre.preprocess)
    assert (recipe.model.weights, recipe.data.train_px, recipe.epochs) == (str(weights), 8, 3.0)
    named = starting_from(Recipe(model=Model(arch="resnet18")), weights)
    assert named.model.resolve(num_classes=3) == pre.config


def test_what_the_weights_leave_open_is_said_once(data, shared_weights):
    recipe = Recipe(data=Data(path=str(data), held_out=0.25), batch_size=8, epochs=1)
    recipe = starting_from(recipe, shared_weights / "resnet20-12fca82f.th")
    with pytest.warns(AssumptionWarning, match="resnet20-12fca82f.th does not say everything"):
        Setup(recipe)


def test_images_that_the_weights_leave_as_they_are_are_brought_to_their_size(weights, tmp_path):
    as_they_are = rj.Preprocess(crop_px=(8, 8), resize_mode="none", resize_px=None)
    rj.save(dataclasses.replace(rj.load(weights), preprocess=as_they_are), tmp_path / "net")
    preprocess = starting_from(Recipe(), tmp_path / "net").preprocess
    assert (preprocess.resize_mode, preprocess.resize_px) == ("squash", (8, 8))


def test_a_run_starts_from_the_weights_but_for_the_head_or_with_it(weights):
    pre = rj.load(weights)
    for keep_head in (False, True):
        found = initial_variables(pre.config, pre, keep_head=keep_head, seed=0)
        for name, value in flat(found).items():
            same = np.array_equal(value, flat(pre.variables)[name])
            assert same == (keep_head or name != "head/kernel"), name


def test_weights_of_another_net_are_refused_with_what_differs(weights):
    pre = rj.load(weights)
    wider = pre.config.replace(widths=(16,))
    with pytest.raises(ConfigError, match=r"stage1_block1/conv1/kernel \(3, 3, 8, 8\) -> \(3, 3"):
        initial_variables(wider, pre, seed=0)
    other = pre.config.replace(num_classes=5)
    with pytest.raises(ConfigError, match=r"head/kernel \(8, 3\) -> \(8, 5\)"):
        initial_variables(other, pre, keep_head=True, seed=0)


def test_the_outputs_of_a_head_that_is_kept_go_by_the_names_of_the_datas_classes(weights):
    pre = rj.load(weights)
    pre = dataclasses.replace(pre, labels=rj.Labels(names=("c", "a", "b")))
    head = pre.variables["params"]["head"]
    for names, order in (("abc", [1, 2, 0]), ("cab", [0, 1, 2]), ((), [0, 1, 2]), ("b", [2, 0, 1])):
        found = initial_variables(pre.config, pre, keep_head=True, class_names=tuple(names), seed=0)
        for name, value in found["params"]["head"].items():
            np.testing.assert_array_equal(value, np.asarray(head[name])[..., order])
    unnamed = dataclasses.replace(pre, labels=None)
    found = initial_variables(unnamed.config, unnamed, keep_head=True, class_names=("z",), seed=0)
    np.testing.assert_array_equal(found["params"]["head"]["kernel"], head["kernel"])


def test_a_head_of_other_classes_is_not_kept(weights, data, tmp_path):
    pre = rj.load(weights, num_classes=2)
    rj.save(dataclasses.replace(pre, labels=rj.Labels(names=("dim", "light"))), tmp_path / "net")
    recipe = finetune(tmp_path / "net", data)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, keep_head=True))
    with pytest.raises(ConfigError, match=r"keep_head=True .*net's 2: dark; only the net has dim"):
        Setup(recipe)


def test_a_frozen_net_without_weights_is_refused(weights, data):
    recipe = finetune(weights, data)
    model = Model(config=recipe.model.config, frozen=("[!h]*",))
    with pytest.raises(ConfigError, match=r"without weights.*--model PATH"):
        Setup(dataclasses.replace(recipe, model=model))


# ---- Whole runs.


@pytest.fixture(scope="module")
def run(weights, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(finetune(weights, data), folder)


def test_frozen_parts_and_their_statistics_have_every_bit_of_the_weights(run, weights):
    before, after = flat(rj.load(weights).variables), flat(rj.load(run[0] / "latest").variables)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    kept = {n for n in before if n.startswith(("stem/", "stage1_block1/norm1/"))}
    assert same == kept


@pytest.mark.slow
def test_nothing_but_the_head_moves_before_the_net_is_unfrozen(weights, data):
    recipe = finetune(weights, data)
    with Setup(recipe) as setup:
        state, before = setup.fresh_state(), flat(rj.load(weights).variables)
        steps = setup.order.steps_per_epoch
        for step, (batch, _) in enumerate(setup.batches(0)):
            assert (step < steps) == (setup.train_step_at(step) is setup.train_step)
            state, _ = setup.train_step_at(step)(state, batch)
            moved = {
                name for name, value in flat(jax.device_get(state.variables)).items()
                if not name.startswith("head/") and not np.array_equal(value, before[name])
            }  # fmt: skip
            assert bool(moved) == (step >= steps)
            if step == steps:
                break


def test_a_new_head_of_several_layers_learns_alone_while_the_net_is_frozen(weights, data):
    recipe = finetune(weights, data)
    model = dataclasses.replace(
        recipe.model, head_widths=(6, 5), frozen=("[!h]*",), unfreeze_after_epochs=None,
        still_frozen=(),
    )  # fmt: skip
    with Setup(dataclasses.replace(recipe, model=model)) as setup:
        state = setup.fresh_state()
        before = flat(jax.device_get(state.variables))
        for _, (batch, _) in zip(
            range(2), setup.batches(0), strict=False
        ):  # the first is at rate 0
            state, _ = setup.train_step(state, batch)
        after = flat(jax.device_get(state.variables))
    head = {f"head/{layer}{leaf}" for layer in ("hidden1/", "hidden2/", "") for leaf in
            ("kernel", "bias")}  # fmt: skip
    assert {name for name in after if not np.array_equal(after[name], before[name])} == head
    pretrained = flat(rj.load(weights).variables)
    kept = {name for name in before if np.array_equal(before[name], pretrained.get(name, 0))}
    assert kept == before.keys() - head


def test_a_run_ends_when_it_is_none_the_better_and_keeps_the_best(run, weights, data):
    folder, outcome = run
    lines = [line for line in metrics(folder) if "test_loss" in line]
    scores = [line["top1"] for line in lines]
    assert outcome.finished
    assert outcome.step == lines[-1]["step"] < 20 * 5
    assert len(scores) - 1 - scores.index(max(scores)) == 3
    report = json.loads((folder / "report.json").read_text())
    assert (report["step"], report["top1"]) == (lines[-4]["step"], max(scores))
    again = train(finetune(weights, data), folder)
    assert (again.step, again.digest, again.finished) == (outcome.step, outcome.digest, True)


def test_the_best_model_is_reported_class_by_class_and_drawn(run):
    folder, _ = run
    report = json.loads((folder / "report.json").read_text())
    assert [row["name"] for row in report["classes"]] == list(NAMES)
    assert [row["support"] for row in report["classes"]] == [10, 5]
    assert [sum(row) for row in report["confusion"]] == [10, 5]
    right = sum(report["confusion"][i][i] for i in range(2))
    assert report["accuracy"] == pytest.approx(right / 15)
    assert "precision" in (folder / "report.txt").read_text()
    with Image.open(folder / "confusion.png") as picture:
        assert min(picture.size) > 200


def test_the_saved_model_predicts_with_the_labels_of_the_folders(run, data):
    pre = rj.load(run[0])
    assert pre.labels is not None
    assert (pre.labels.names, pre.labels.activation) == (NAMES, "softmax")
    found = rj.predict(pre, sorted((data / "light").iterdir()), top=1)
    assert {top[0].label for top in found} <= set(NAMES)


def test_other_weights_are_another_run(run, weights, data, tmp_path):
    pre = rj.load(weights)
    changed = jax.tree.map(lambda x: x + 1, pre.variables)
    rj.save(dataclasses.replace(pre, variables=changed), tmp_path / "other")
    with pytest.raises(ConfigError, match="initial weights: "):
        train(finetune(tmp_path / "other", data), run[0])


@pytest.mark.slow
def test_a_fine_tune_killed_in_each_phase_ends_bit_identical(nursery, weights, data, tmp_path):
    recipe = Path(__file__).with_name("tiny_finetune.py")
    environment = {"RESNETJAX_TINY_WEIGHTS": str(weights), "RESNETJAX_TINY_DATA": str(data)}
    whole = nursery.start("--workdir", tmp_path / "whole", recipe=recipe, environment=environment)
    digest = whole.finish()
    last = metrics(tmp_path / "whole")[-1]["step"]
    # While frozen, at the step of unfreezing, after it, in the last evaluations.
    for event, count in (("step 2", 1), ("step 5", 1), ("step 8", 1),
                         ("evaluation begins", 2), (f"step {last - 1}", 1)):  # fmt: skip
        life = nursery.start(
            "--workdir", tmp_path / "killed", recipe=recipe, environment=environment
        )
        life.until(event, count=count)
        life.send(signal.SIGKILL)
        life.wait()
    end = nursery.start("--workdir", tmp_path / "killed", recipe=recipe, environment=environment)
    assert end.finish() == digest
    assert leaves(tmp_path / "killed") == leaves(tmp_path / "whole")
    for name in ("metrics.jsonl", "report.json"):
        killed, undisturbed = (tmp_path / run / name for run in ("killed", "whole"))
        assert killed.read_bytes() == undisturbed.read_bytes()


# ---- By command.


@pytest.mark.slow
def test_the_command_fine_tunes_a_folder_and_predict_uses_its_labels(
    shared_weights, data, tmp_path
):
    from tests.train.test_command import run as command

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        result = command(
            "train", Path(__file__).parents[2] / "configs" / "finetune.py",
            "--model", shared_weights / "resnet20-12fca82f.th", "--data", data,
            "--workdir", tmp_path / "run", "--epochs", 2, "--model.unfreeze-after-epochs", 1,
            "--batch-size", 16, "--model.head-widths", 12, 8,
        )  # fmt: skip
        assert result.code == 0, result.err
        assert "support" in result.err
        assert rj.load(tmp_path / "run").config.head_widths == (12, 8)
        image = next((data / "light").iterdir())
        result = command("predict", tmp_path / "run", image, "--json", "--top", 2)
    assert result.code == 0, result.err
    assert all(name in result.out for name in NAMES)
