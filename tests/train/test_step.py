"""The training step against one written out by hand, and what each field of a recipe changes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnetjax as rj
from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.errors import ConfigError
from resnetjax.train.optimizer import make_optimizer, make_schedule
from resnetjax.train.recipe import Data, Evaluation, Model, Optimizer, Recipe, Schedule
from resnetjax.train.setup import Setup
from resnetjax.train.state import LOSS_SCALE_STEPS, LossScale, create_state, watched
from resnetjax.train.statistics import exact_statistics
from resnetjax.train.step import draw_keys, losses, make_model, make_train_step, vary
from tests.train.tiny import CONFIG, EXACT, PLAIN, batch_of, tiny_recipe

GROUP = CONFIG.replace(norm="group", norm_groups=2)


def weighing(*weights: float) -> dict[str, np.ndarray]:
    return {"weights": np.asarray(weights, np.float32)}


class Run:
    """A recipe's step on a state of its own."""

    def __init__(self, recipe: Recipe, *, steps_per_epoch: int = 10, warmup_steps: int = 0):
        self.recipe = recipe
        self.config = recipe.model.resolve(num_classes=10)
        self.model = make_model(recipe, self.config)
        _, variables = rj.create(self.config, rng=0)
        if recipe.precision == "float64":
            variables = jax.tree.map(lambda x: x.astype(np.float64), variables)
        optimizer = make_optimizer(recipe, variables["params"], steps_per_epoch=steps_per_epoch)
        self.state = create_state(variables, optimizer, recipe)
        schedule = make_schedule(recipe, steps_per_epoch=steps_per_epoch)
        self.step = jax.jit(
            make_train_step(
                self.model, optimizer, recipe, schedule=schedule, warmup_steps=warmup_steps
            ),
            compiler_options={"xla_backend_optimization_level": 0},  # compiled in half the time
        )

    def after(self, *batches, state=None):
        """States and metrics after each batch."""
        state, found = state or self.state, []
        for batch in batches:
            state, metrics = self.step(state, batch)
            found.append((state, jax.device_get(metrics)))
        return found


@functools.cache
def run_of(recipe: Recipe, **options) -> Run:
    return Run(recipe, **options)


def assert_same(found, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close(found, expected, **tolerance) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def differs(a, b) -> bool:
    return any((np.asarray(x) != y).any() for x, y in zip(*map(jax.tree.leaves, (a, b))))  # noqa: B905


# ---- The net, its loss and SGD, written out.


def convolve_by_hand(x, kernel):
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    ]
    return functools.reduce(jnp.add, windows)


def norm_by_hand(x, norm, seen, name):
    seen[name] = x
    mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    over = (1, 1, 1, -1)
    return (x - mean) / jnp.sqrt(var + 1e-5) * norm["scale"].reshape(over) + norm["bias"].reshape(
        over
    )


def net_by_hand(params, images):
    """Logits, and what went into each norm."""
    seen: dict = {}
    x = (images.astype(params["head"]["bias"].dtype) - 64) / 64
    stem, block, head = params["stem"], params["stage1_block1"], params["head"]
    x = convolve_by_hand(x, stem["conv1"]["kernel"])
    x = jax.nn.relu(norm_by_hand(x, stem["norm1"], seen, "stem/norm1"))
    y = convolve_by_hand(x, block["conv1"]["kernel"])
    y = jax.nn.relu(norm_by_hand(y, block["norm1"], seen, "stage1_block1/norm1"))
    y = convolve_by_hand(y, block["conv2"]["kernel"])
    y = norm_by_hand(y, block["norm2"], seen, "stage1_block1/norm2")
    x = jax.nn.relu(x + y).mean((1, 2))
    return x @ head["kernel"] + head["bias"][None], seen


def loss_by_hand(params, batch):
    logits, seen = net_by_hand(params, batch["images"])
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][:, None], 1)
    return -picked.mean(), seen


gradient_by_hand = jax.jit(jax.value_and_grad(loss_by_hand, has_aux=True))


def norm_of(tree) -> float:
    return np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree)))


def test_steps_are_those_of_sgd_on_a_net_written_out_by_hand():
    with jax.enable_x64(True):
        optimizer = Optimizer(learning_rate=0.125, momentum=0.5, weight_decay=0.01)
        run = Run(tiny_recipe(precision="float64", optimizer=optimizer))
        params, stats = jax.device_get((run.state.params, run.state.batch_stats))
        momentum = jax.tree.map(np.zeros_like, params)
        batches = [batch_of(seed) for seed in range(3)]
        for batch, (state, metrics) in zip(batches, run.after(*batches), strict=True):
            (loss, seen), gradient = jax.device_get(gradient_by_hand(params, batch))
            decayed = jax.tree.map(lambda g, w: g + 0.01 * w * (w.ndim > 1), gradient, params)
            momentum = jax.tree.map(lambda m, g: 0.5 * m + g, momentum, decayed)
            params = jax.tree.map(lambda w, m: w - 0.125 * m, params, momentum)
            for name, x in seen.items():
                module, norm_name = name.split("/")
                old = stats[module][norm_name]
                now = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
                stats[module][norm_name] = {k: 0.9 * old[k] + 0.1 * now[k] for k in old}
            np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-12)
            np.testing.assert_allclose(metrics["grad_norm"], norm_of(gradient), rtol=1e-12)
            assert_close(state.params, params, rtol=0, atol=1e-12)
            assert_close(state.batch_stats, stats, rtol=0, atol=1e-12)


def test_the_loss_falls_on_eight_images():
    run = run_of(tiny_recipe(optimizer=Optimizer(learning_rate=0.5)))
    batch = batch_of(0) | {"labels": np.arange(8, dtype=np.int32)}
    found = [metrics for _, metrics in run.after(*[batch] * 20)]
    assert found[-1]["loss"] < found[0]["loss"] / 2
    assert found[-1]["accuracy"] == 1


# ---- Accumulation and weights.


def test_accumulated_gradients_are_the_whole_batchs_where_examples_do_not_meet():
    with jax.enable_x64(True):
        whole, parts = (
            Run(tiny_recipe(GROUP, precision="float64", optimizer=optimizer))
            for optimizer in (PLAIN, dataclasses.replace(PLAIN, accumulate=4))
        )
        batch = batch_of(0) | weighing(1, 0, 1, 1, 1, 1, 0, 1)
        (state, metrics), (split, split_metrics) = (r.after(batch)[0] for r in (whole, parts))
        assert_close(split.params, state.params, rtol=0, atol=1e-14)
        assert_close(split_metrics, metrics, rtol=1e-7)  # the accuracy is float32


def test_accumulation_moves_batch_statistics_one_part_after_the_other():
    run = run_of(tiny_recipe(optimizer=dataclasses.replace(PLAIN, accumulate=2)))
    batch = batch_of(0)
    state, _ = run.after(batch)[0]
    stats = run.state.batch_stats
    gradients = []
    train = jax.jit(functools.partial(run.model.apply, train=True, mutable=["batch_stats"]))
    for rows in (slice(0, None, 2), slice(1, None, 2)):  # every second example
        part = {name: values[rows] for name, values in batch.items()}
        images, _, _ = vary(run.recipe, run.config, jax.random.key(0), part)
        _, updates = train({"params": run.state.params, "batch_stats": stats}, images)
        stats = updates["batch_stats"]
        gradients.append(jax.device_get(gradient_by_hand(run.state.params, part)[1]))
    assert_close(state.batch_stats, stats, rtol=1e-5, atol=1e-6)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    expected = jax.tree.map(lambda w, g: w - 0.125 * g, run.state.params, mean)
    assert_close(state.params, expected, rtol=1e-4, atol=1e-6)  # float32


@functools.cache
def _group_run() -> Run:
    return Run(tiny_recipe(GROUP))


def test_an_example_of_weight_0_changes_nothing_whatever_it_is():
    run = _group_run()
    batch = batch_of(0) | weighing(1, 1, 0, 1, 1, 0, 1, 1)
    other = {name: values.copy() for name, values in batch.items()}
    other["labels"][[2, 5]] = 7, 9
    other["images"][2] = 0
    (state, metrics), (same, same_metrics) = run.after(batch)[0], run.after(other)[0]
    assert_same((state.params, metrics), (same.params, same_metrics))
    assert differs(run.after(batch_of(0))[0][0].params, state.params)


def test_the_loss_is_the_mean_over_the_examples_that_count():
    run = _group_run()
    batch = batch_of(0)
    first = batch | weighing(1, 1, 1, 1, 0, 0, 0, 0)
    last = batch | weighing(0, 0, 0, 0, 1, 1, 1, 1)
    whole, *halves = (run.after(b)[0][1]["loss"] for b in (batch, first, last))
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-5)


def test_a_batch_of_which_nothing_counts_leaves_the_parameters_alone():
    run = _group_run()
    state, metrics = run.after(batch_of(0) | weighing(*[0] * 8))[0]
    assert metrics["loss"] == 0
    assert metrics["bad_leaf"] == -1
    assert_same(state.params, run.state.params)


def test_a_mixed_example_counts_only_if_its_partner_does():
    recipe = tiny_recipe(augmentation=Augmentation(crop="none", flip=False, mixup_alpha=0.2))
    batch = batch_of(0, 4) | weighing(1, 1, 0, 1)
    _, _, weights = jax.jit(vary, static_argnums=(0, 1))(recipe, CONFIG, jax.random.key(0), batch)
    assert weights.tolist() == [1, 0, 0, 1]  # 1's partner is 2


# ---- Averages, frozen parts, drops.


def averaged(every: int) -> Run:
    ema = dataclasses.replace(PLAIN, ema_decay=0.75, ema_every=every)
    return run_of(tiny_recipe(optimizer=ema), warmup_steps=2)


def test_averages_follow_until_the_warm_up_is_over():
    found = averaged(1).after(*map(batch_of, range(4)))
    for state, _ in found[:2]:
        assert_same(state.ema, state.variables)
    for (before, _), (state, _) in itertools.pairwise(found[1:]):
        expected = jax.tree.map(
            lambda old, new: 0.75 * np.float64(old) + 0.25 * np.float64(new),
            before.ema,
            state.variables,
        )
        assert_close(state.ema, expected, rtol=1e-6, atol=1e-7)
        assert differs(state.ema, state.variables)
        assert state.best_variables is state.ema


@pytest.mark.slow
def test_averages_are_taken_at_every_nth_step_only():
    found = averaged(3).after(*map(batch_of, range(6)))
    emas = [averaged(3).state.ema, *(state.ema for state, _ in found)]
    changed = [differs(a, b) for a, b in itertools.pairwise(emas)]
    assert changed == [False, False, True, False, False, True]


@pytest.fixture(scope="module")
def frozen():
    optimizer = Optimizer(learning_rate=0.125, momentum=0.0, weight_decay=0.0, ema_decay=0.7)
    return run_of(tiny_recipe(model=Model(frozen=("stem",)), optimizer=optimizer))


def test_frozen_parts_keep_every_bit_of_parameters_statistics_and_averages(frozen):
    state, _ = frozen.after(*map(batch_of, range(5)))[-1]
    for tree in ("params", "batch_stats"):
        for found in (state.variables[tree], state.ema[tree]):
            assert_same(found["stem"], frozen.state.variables[tree]["stem"])
            assert differs(found["stage1_block1"], frozen.state.variables[tree]["stage1_block1"])


def test_the_logged_norm_is_that_of_the_gradient_of_what_is_trained(frozen):
    state, metrics = frozen.after(batch_of(0))[0]
    moved = jax.tree.map(np.subtract, *jax.device_get((state.params, frozen.state.params)))
    np.testing.assert_allclose(norm_of(moved), 0.125 * metrics["grad_norm"], rtol=1e-4)


@pytest.mark.slow
def test_what_is_dropped_depends_on_the_step_alone():
    two = CONFIG.replace(depths=(2,))
    run = run_of(tiny_recipe(two, model=Model(drop_path_rate=0.5)))
    loss = {
        step: [
            float(run.step(run.state.replace(step=jnp.int32(step)), batch_of(0))[1]["loss"])
            for _ in range(2)
        ]
        for step in range(4)
    }
    assert all(first == again for first, again in loss.values())
    assert len({first for first, _ in loss.values()}) == 4


@pytest.mark.slow
def test_parts_of_an_accumulated_batch_drop_otherwise():
    two = GROUP.replace(depths=(2,))
    optimizer = dataclasses.replace(PLAIN, accumulate=2)
    recipe = tiny_recipe(two, model=Model(drop_path_rate=0.5), optimizer=optimizer)
    # Both parts hold the same four examples, so that their losses differ by what is dropped alone.
    four = batch_of(0, 4)
    eight = {name: np.repeat(values, 2, axis=0) for name, values in four.items()}
    run = run_of(recipe)

    @jax.jit
    def loss_of(key):
        images, targets, _ = vary(recipe, two, key, four)
        variables = {"params": run.state.params}
        logits = run.model.apply(variables, jnp.asarray(images), train=True, rngs={"dropout": key})
        return losses(logits, targets, recipe).mean()

    found = [loss_of(key) for key in jax.random.split(draw_keys(recipe, 0)[1], 2)]
    assert found[0] != found[1]
    np.testing.assert_allclose(run.after(eight)[0][1]["loss"], np.mean(found), rtol=1e-5)


# ---- Precision, and steps that are skipped.


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw", "muon"])
def test_a_steps_output_has_the_types_of_its_input(precision, name):
    # Otherwise the second step would compile again; and parameters and statistics stay float32.
    optimizer = Optimizer(name=name, clip_norm=1.0, clip_adaptive=0.1, ema_decay=0.9, accumulate=2)
    run = Run(tiny_recipe(precision=precision, optimizer=optimizer))
    state, metrics = jax.eval_shape(run.step, run.state, batch_of(0))
    described = [
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree) for tree in (run.state, state)
    ]
    assert described[0] == described[1]
    kept = (state.params, state.batch_stats, state.ema)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype(np.float32)}
    assert {name: m.dtype for name, m in metrics.items() if name != "bad_leaf"} == dict.fromkeys(
        ("loss", "accuracy", "learning_rate", "grad_norm"), np.float32
    )


@pytest.mark.slow
def test_bfloat16_steps_are_those_of_float32_to_three_digits():
    found, expected = (
        run_of(tiny_recipe(precision=precision)).after(*[batch_of(0)] * 3)[-1]
        for precision in ("bfloat16", "float32")
    )
    assert differs(found[0].params, expected[0].params)
    np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=2e-2)
    assert_close(found[0].batch_stats, expected[0].batch_stats, rtol=2e-2, atol=1e-2)


def test_a_loss_scale_halves_after_an_overflow_and_doubles_after_two_thousand_steps():
    scale = LossScale(scale=jnp.float32(8), good_steps=jnp.int32(5))
    good, bad = scale.after(jnp.array(True)), scale.after(jnp.array(False))
    assert (good.scale, good.good_steps) == (8, 6)
    assert (bad.scale, bad.good_steps) == (4, 0)
    last = scale.replace(good_steps=jnp.int32(LOSS_SCALE_STEPS - 1)).after(jnp.array(True))
    assert (last.scale, last.good_steps) == (16, 0)
    assert scale.replace(scale=jnp.float32(1)).after(jnp.array(False)).scale == 1


def test_an_overflow_of_float16_skips_the_step_and_halves_the_scale():
    ema = dataclasses.replace(PLAIN, ema_decay=0.9)
    run = run_of(tiny_recipe(precision="float16", optimizer=ema))
    huge = LossScale(scale=jnp.float32(2.0**40), good_steps=jnp.int32(7))
    before = run.state.replace(loss_scale=huge)
    state, metrics = run.after(batch_of(0), state=before)[0]
    assert watched(before)[metrics["bad_leaf"]].startswith("gradient of ")
    assert np.isfinite(metrics["loss"])
    assert (state.step, state.skipped) == (1, 1)
    assert (state.loss_scale.scale, state.loss_scale.good_steps) == (2.0**39, 0)
    assert_same((state.variables, state.ema), (before.variables, before.ema))
    # From the usual scale it trains as float32 does, whatever the scale is.
    small = run.state.replace(loss_scale=huge.replace(scale=jnp.float32(2.0**8)))
    usual, less = run.after(batch_of(0))[0], run.after(batch_of(0), state=small)[0]
    assert usual[1]["bad_leaf"] == -1
    assert usual[0].skipped == 0
    np.testing.assert_allclose(usual[1]["grad_norm"], less[1]["grad_norm"], rtol=1e-2)


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("lars", "adamw", "muon")]
SPOILT = batch_of(1) | weighing(*[np.nan] * 8)


@pytest.mark.parametrize("name", ["sgd", "lamb", *SLOWER])
def test_a_skipped_step_leaves_all_but_counts_to_the_bit(name):
    optimizer = Optimizer(name=name, learning_rate=0.01, momentum=0.5, ema_decay=0.9)
    run = run_of(tiny_recipe(optimizer=optimizer))
    (before, good), (state, bad), (after, _) = run.after(batch_of(0), SPOILT, batch_of(2))
    assert good["bad_leaf"] == -1
    assert differs(before.params, run.state.params)
    assert np.isnan(bad["loss"])
    assert (state.step, state.skipped, after.skipped) == (2, 1, 0)
    assert_same((state.variables, state.ema), (before.variables, before.ema))
    pairs = zip(*map(jax.tree.leaves, (before.opt_state, state.opt_state)), strict=True)
    for old, new in pairs:
        counts = jnp.issubdtype(old.dtype, jnp.integer)
        np.testing.assert_array_equal(new, old + 1 if counts else old)
    assert differs(after.params, state.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.variables))


def test_an_update_that_overflows_is_skipped_and_its_parameter_named():
    run = run_of(tiny_recipe(optimizer=Optimizer(learning_rate=1e20, weight_decay=1e20)))
    state, metrics = run.after(batch_of(0))[0]
    assert watched(run.state)[metrics["bad_leaf"]].startswith("updated parameter ")
    assert_same(state.variables, run.state.variables)
    assert (state.step, state.skipped) == (1, 1)


def test_the_rate_that_is_used_after_a_skipped_step_is_the_logged_one():
    schedule = Schedule(kind="polynomial", warmup_epochs=0.2)
    run = run_of(tiny_recipe(schedule=schedule))
    before, rates = run.state, []
    for state, metrics in run.after(batch_of(0), batch_of(0), SPOILT, batch_of(1), batch_of(2)):
        if metrics["bad_leaf"] < 0:
            moved = jax.tree.map(np.subtract, *jax.device_get((state.params, before.params)))
            np.testing.assert_allclose(
                norm_of(moved), metrics["learning_rate"] * metrics["grad_norm"], rtol=1e-3
            )
            rates.append(float(metrics["learning_rate"]))
        before = state
    assert len(set(rates)) == 4


def test_what_is_not_finite_is_named():
    run = run_of(tiny_recipe())
    names = watched(run.state)
    assert len(set(names)) == len(names)

    def first(state):
        return names[run.after(batch_of(0), state=state)[0][1]["bad_leaf"]]

    spoilt = jax.tree.map(np.array, run.state.params)
    spoilt["head"]["bias"][0] = np.nan
    assert first(run.state.replace(params=spoilt)) == "parameter head/bias"
    stats = jax.tree.map(np.array, run.state.batch_stats)
    stats["stem"]["norm1"]["var"][3] = np.inf
    assert first(run.state.replace(batch_stats=stats)) == "statistic stem/norm1/var"


# ---- Losses.


def test_binary_cross_entropy_is_the_mean_over_classes_of_torchs_formula():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 5, (6, 10)), rng.uniform(0, 1, (6, 10))
    recipe = tiny_recipe(loss="binary_cross_entropy")
    p = 1 / (1 + np.exp(-logits))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(1)
    found = losses(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32), recipe)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_above_the_threshold_a_mixed_target_counts_as_one():
    recipe = tiny_recipe(loss="binary_cross_entropy", loss_threshold=0.2)
    plain = tiny_recipe(loss="binary_cross_entropy")
    logits = jnp.asarray([[2.0, -1.0, 0.5, 0.0]])
    found = losses(logits, jnp.asarray([[0.7, 0.25, 0.2, 0.05]]), recipe)
    np.testing.assert_array_equal(found, losses(logits, jnp.asarray([[1.0, 1, 0, 0]]), plain))


def test_cross_entropy_of_smoothed_labels_is_that_of_the_softened_target():
    recipe = tiny_recipe(augmentation=Augmentation(crop="none", flip=False, label_smoothing=0.1))
    batch = batch_of(0)
    _, targets, _ = vary(recipe, CONFIG, jax.random.key(0), batch)
    logits = np.random.default_rng(0).normal(0, 3, (8, 10))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    right = log_p[np.arange(8), np.asarray(batch["labels"])]
    expected = -(0.9 * right + 0.1 * log_p.mean(1))
    found = losses(jnp.asarray(logits, jnp.float32), targets, recipe)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---- Exact statistics.


def test_exact_statistics_of_equal_batches_are_those_of_all_their_examples():
    run = run_of(tiny_recipe())
    batches = [batch_of(seed) for seed in range(3)]
    batches[1]["images"] = batches[1]["images"] // 4 + 100  # another mean and spread
    found = exact_statistics(run.model, run.state.variables, batches, EXACT)
    assert_same(found["params"], run.state.params)
    inputs = [gradient_by_hand(run.state.params, batch)[0][1] for batch in batches]
    for name in inputs[0]:
        x = np.concatenate([np.float64(one[name]) for one in inputs]).reshape(-1, 8)
        module, norm = name.split("/")
        stats = found["batch_stats"][module][norm]
        np.testing.assert_allclose(stats["mean"], x.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stats["var"], x.var(0), rtol=1e-4, atol=1e-5)


def test_exact_statistics_of_a_part_that_is_frozen_are_its_own(frozen):
    state, _ = frozen.after(batch_of(0))[0]
    stats = jax.tree.map(lambda x: x + 0.25, state.batch_stats)
    variables = {"params": state.params, "batch_stats": stats}
    found = exact_statistics(frozen.model, variables, [batch_of(1), batch_of(2)], EXACT)
    assert_same(found["batch_stats"]["stem"], stats["stem"])
    # What reaches the block went through the stem by the stem's statistics, as in the net's use.
    use = frozen.model.clone(frozen=())
    images, _, _ = vary(frozen.recipe, frozen.config, jax.random.key(0), batch_of(1, 8))
    more, _, _ = vary(frozen.recipe, frozen.config, jax.random.key(0), batch_of(2, 8))
    stem = use.apply(
        variables,
        jnp.concatenate([images, more]),
        stages=("stem",),
        method=use.features,
    )["stem"]
    x = convolve_by_hand(stem, state.params["stage1_block1"]["conv1"]["kernel"])
    block = found["batch_stats"]["stage1_block1"]["norm1"]
    np.testing.assert_allclose(block["mean"], x.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block["var"], x.var((0, 1, 2)), rtol=1e-4, atol=1e-5)


def test_exact_statistics_drop_nothing_and_do_not_heed_the_parts_of_a_batch():
    two = CONFIG.replace(depths=(2,))
    recipe = tiny_recipe(two, model=Model(drop_path_rate=0.5))
    apart = dataclasses.replace(
        recipe, parallelism=dataclasses.replace(recipe.parallelism, norm_batch=2)
    )
    _, variables = rj.create(two, rng=0)
    found, expected = (
        exact_statistics(
            make_model(r, r.model.resolve(num_classes=10)), variables, [batch_of(0)], EXACT
        )
        for r in (apart, tiny_recipe(two))
    )
    assert_same(found, expected)


# ---- In a run.


@pytest.fixture(scope="module")
def setup():
    optimizer = Optimizer(learning_rate=0.1, ema_decay=0.9)
    # 22 steps an epoch: the warm-up is of 2 steps.
    schedule = Schedule(kind="constant", warmup_epochs=2.2 / 22)
    recipe = tiny_recipe(
        optimizer=optimizer, schedule=schedule, batch_size=64, precision="bfloat16"
    )
    with Setup(recipe) as opened:
        yield opened


def test_a_step_overwrites_its_state_and_compiles_once(setup):
    state = setup.fresh_state()
    for _, (batch, bad) in zip(range(3), setup.batches(0), strict=False):
        assert not bad
        before = jax.tree.leaves(state)
        state, _ = setup.train_step(state, batch)
        assert all(leaf.is_deleted() for leaf in before)
    assert setup.train_step._cache_size() == 1


def test_exact_statistics_compile_once_in_a_run(setup, caplog):
    variables = setup.fresh_state().best_variables
    setup.exact_statistics(variables, step=2, count=2)
    with jax.log_compiles(True):
        setup.exact_statistics(variables, step=4, count=2)
    assert not [r for r in caplog.records if "_moments" in r.getMessage()]


def test_a_fresh_state_is_a_function_of_the_seed(setup):
    assert_same(setup.fresh_state(), setup.fresh_state())


def test_the_averages_follow_for_as_long_as_the_rate_rises(setup):
    state, found = setup.fresh_state(), []
    for _, (batch, _) in zip(range(3), setup.batches(0), strict=False):
        state, metrics = setup.train_step(state, batch)
        rises = bool(metrics["learning_rate"] < np.float32(0.1))
        found.append((rises, differs(state.ema, state.variables)))
    assert found == [(True, False), (True, False), (False, True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": Data(train_px=8)}, r"data\.path is not given"),
        ({"precision": "float64"}, "JAX_ENABLE_X64"),
        ({"epochs": 0.01, "batch_size": 64}, "no step at all"),
        ({"batch_size": 2048}, "1438 examples"),
        ({"preprocess": Preprocess(crop_px=(8, 8))}, "3 channels.* takes 1"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_any_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        Setup(tiny_recipe(**changes))


def test_evaluations_come_at_least_every_step_if_any_are_asked_for():
    often, last = (
        list(filter(Setup(tiny_recipe(batch_size=64, evaluation=when)).evaluates_at, range(23)))
        for when in (Evaluation(every_epochs=0.001), Evaluation(every_epochs=0))
    )
    assert often == list(range(1, 23))
    assert last == [22]
