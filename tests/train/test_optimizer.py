"""Learning rates against closed forms; optimisers against a few lines of NumPy, in float64."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnetjax.errors import ConfigError
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.presets import get
from resnetjax.train.optimizer import make_optimizer, make_schedule, total_steps
from resnetjax.train.recipe import Model, Optimizer, Recipe, Schedule

STEPS = 20
SHAPES = {
    "stem/conv1/kernel": (3, 3, 2, 4),
    "stem/norm1/scale": (4,),
    "stem/norm1/bias": (4,),
    "stage1_block1/conv1/kernel": (1, 1, 4, 8),
    "stage1_block1/conv1/bias": (8,),
    "stage1_block2/norm1/scale": (8,),
    "stage1_block2/norm1/bias": (8,),
    "stage2_block1/conv1/kernel": (3, 3, 8, 2),
    "norm/scale": (2,),
    "norm/bias": (2,),
    "head/kernel": (2, 3),
    "head/bias": (3,),
}
NORMS = {name for name in SHAPES if "norm" in name}
DECAYED = {
    "all": set(SHAPES),
    "kernels": {name for name in SHAPES if name.endswith("kernel")},
    "not_norms": set(SHAPES) - NORMS,
}
# A rate that float32 holds exactly, halved half-way, so that float64 trajectories can be compared.
RATE = 0.125
HALVING = Schedule(kind="steps", milestones=(0.5,), milestone_factor=0.5)


def _recipe(*, model: Model | None = None, **optimizer: object) -> Recipe:
    chosen = Optimizer(**{"learning_rate": RATE, "weight_decay": 0.01, **optimizer})
    return Recipe(
        optimizer=chosen, schedule=HALVING, model=model or Model(), epochs=STEPS, batch_size=8
    )


def _tree(flat: dict[str, np.ndarray]) -> dict:
    tree: dict = {}
    for name, value in flat.items():
        *modules, leaf = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), modules, tree)[leaf] = value
    return tree


def _flat(tree: dict) -> dict[str, np.ndarray]:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


def _start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return start | {"stage2_block1/conv1/kernel": np.zeros(SHAPES["stage2_block1/conv1/kernel"])}


def _gradient(step: int, name: str, weight: np.ndarray) -> np.ndarray:
    """Depends on the weight, so that an error in one step shows in all that follow."""
    rng = np.random.default_rng([step, sorted(SHAPES).index(name)])
    return weight + 0.5 * rng.standard_normal(weight.shape)


def _run(recipe: Recipe) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, _tree(_start()))
        optimizer = make_optimizer(recipe, params, steps_per_epoch=1)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for step in range(STEPS):
            gradients = {n: _gradient(step, n, np.asarray(w)) for n, w in _flat(params).items()}
            updates, state = update(_tree(gradients), state, params)
            params = optax.apply_updates(params, updates)
        return {name: np.asarray(leaf) for name, leaf in _flat(params).items()}


# ---- What each optimiser does to one array, with its state in `s`.


def _sgd(o, s, g, w, *, step, rate, decayed):
    g = g + o.weight_decay * w * decayed
    s["m"] = o.momentum * s.get("m", 0) + g
    return -rate * (g + o.momentum * s["m"] if o.nesterov else s["m"])


def _lars(o, s, g, w, *, step, rate, decayed):
    if decayed:
        w_norm, g_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        trust = o.trust_coefficient * w_norm / (g_norm + o.weight_decay * w_norm)
        g = (g + o.weight_decay * w) * (trust if w_norm else 1)
    s["m"] = o.momentum * s.get("m", 0) + rate * g
    return -s["m"]


def _adam(o, s, g, *, step, nesterov=False):
    b1, b2 = o.betas
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    m = s["m"] / (1 - b1 ** (step + 1))
    if nesterov:
        m = b1 * s["m"] / (1 - b1 ** (step + 2)) + (1 - b1) * g / (1 - b1 ** (step + 1))
    return m / (np.sqrt(s["v"] / (1 - b2 ** (step + 1))) + o.eps)


def _adamw(o, s, g, w, *, step, rate, decayed):
    return -rate * (_adam(o, s, g, step=step) + o.weight_decay * w * decayed)


def _lamb(o, s, g, w, *, step, rate, decayed):
    update = _adam(o, s, g, step=step) + o.weight_decay * w * decayed
    w_norm, u_norm = np.sqrt((w**2).sum()), np.sqrt((update**2).sum())
    return -rate * update * (w_norm / u_norm if decayed and w_norm else 1)


def _muon(o, s, g, w, *, step, rate, decayed):
    if w.ndim != 4:
        adam = _adam(o, s, g, step=step, nesterov=o.nesterov)
        return -rate * (adam + o.weight_decay * w * decayed)
    b = o.momentum
    m = s["m"] = b * s.get("m", 0) + (1 - b) * g
    if o.nesterov:
        m = b * m / (1 - b ** (step + 2)) + (1 - b) * g / (1 - b ** (step + 1))
    matrix = m.reshape(-1, w.shape[-1])
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    update = x.reshape(w.shape) * 0.2 * math.sqrt(max(x.shape))
    return -rate * (update + o.weight_decay * w * decayed)


def _unit_clip(g, w, limit):
    axes = tuple(range(g.ndim - 1)) if g.ndim > 1 else None
    norm = lambda x: np.sqrt((x**2).sum(axis=axes, keepdims=True))  # noqa: E731
    return g * np.minimum(1, limit * np.maximum(norm(w), 1e-3) / norm(g))


def _expected(rule, recipe: Recipe) -> dict[str, np.ndarray]:
    o, weights, states = recipe.optimizer, _start(), {name: {} for name in SHAPES}
    for step in range(STEPS):
        gradients = {name: _gradient(step, name, w) for name, w in weights.items()}
        if o.clip_adaptive:
            gradients = {
                n: g if n.startswith("head/") else _unit_clip(g, weights[n], o.clip_adaptive)
                for n, g in gradients.items()
            }
        if o.clip_norm:
            norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
            gradients = {n: g * min(1, o.clip_norm / norm) for n, g in gradients.items()}
        rate = RATE if step < STEPS / 2 else RATE / 2
        for name, w in weights.items():
            decayed = name in DECAYED[o.decayed]
            update = rule(o, states[name], gradients[name], w, step=step, rate=rate,
                          decayed=decayed)  # fmt: skip
            weights[name] = w + update
    return weights


CASES = {
    "sgd": (_sgd, {"decayed": "all"}),
    "sgd, Nesterov": (_sgd, {"nesterov": True, "decayed": "not_norms"}),
    "sgd without momentum": (_sgd, {"momentum": 0.0}),
    "sgd, clipped": (_sgd, {"clip_norm": 1.0}),
    "sgd, units clipped": (_sgd, {"clip_adaptive": 0.05}),
    "sgd, units clipped, then the whole": (_sgd, {"clip_adaptive": 0.5, "clip_norm": 1.0}),
    "lars": (_lars, {"name": "lars", "learning_rate": RATE, "trust_coefficient": 0.1}),
    "lamb": (_lamb, {"name": "lamb", "clip_norm": 1.0, "eps": 1e-6}),
    "adamw": (_adamw, {"name": "adamw", "betas": (0.8, 0.99)}),
    "adamw, norms decayed": (_adamw, {"name": "adamw", "decayed": "all"}),
    "muon": (_muon, {"name": "muon", "eps": 1e-30}),
    "muon, Nesterov": (_muon, {"name": "muon", "eps": 1e-30, "nesterov": True, "decayed": "all"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_trajectories_are_those_of_the_formulas(case):
    rule, fields = CASES[case]
    recipe = _recipe(**fields)
    got, expected = _run(recipe), _expected(rule, recipe)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert value.dtype == np.float64
        # Rounding alone: 20 steps of some ten operations, on values around 1. Newton-Schulz
        # enlarges it.
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-10, err_msg=name)


def test_decay_of_sgd_passes_through_momentum_and_that_of_adamw_does_not():
    with jax.enable_x64(True):
        weight = {"conv": {"kernel": jnp.ones((1, 1))}}
        zero = jax.tree.map(jnp.zeros_like, weight)
        norms = {}
        for name in ("sgd", "adamw"):
            optimizer = make_optimizer(_recipe(name=name), weight, steps_per_epoch=1)
            state, norms[name] = optimizer.init(weight), []
            for _ in range(2):
                updates, state = optimizer.update(zero, state, weight)
                norms[name].append(float(-updates["conv"]["kernel"][0, 0]))
    first = RATE * 0.01
    assert norms["sgd"] == pytest.approx([first, first * 1.9])
    assert norms["adamw"] == pytest.approx([first, first])


# torchvision's resnet50 has 161 arrays: 54 weights, a bias, and 53 norms of 26,560 channels in all.
@pytest.mark.parametrize(
    ("which", "arrays", "values"),
    [("all", 161, 25_557_032), ("not_norms", 55, 25_503_912), ("kernels", 54, 25_502_912)],
)
def test_so_many_parameters_of_a_resnet50_decay(which, arrays, values):
    found = leaves(plan(get("resnet50")))
    sizes = {name: leaf.size for name, leaf in found.items() if leaf.collection == "params"}
    ones, zeros = (_tree(dict.fromkeys(sizes, np.float32(value))) for value in (1, 0))
    recipe = _recipe(decayed=which, momentum=0.0, learning_rate=1.0, weight_decay=1.0)
    optimizer = make_optimizer(recipe, ones, steps_per_epoch=1)
    updates, _ = optimizer.update(zeros, optimizer.init(ones), ones)
    moved = [sizes[name] for name, update in _flat(updates).items() if update == -1]
    assert (len(moved), sum(moved)) == (arrays, values)
    assert sum(update == 0 for update in _flat(updates).values()) == 161 - arrays


@pytest.mark.parametrize(
    "name",
    ["lamb", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sgd", "lars", "adamw", "muon"))],
)
def test_frozen_parts_stay_without_state_and_count_for_no_norm(name):
    frozen = ("stem", "stage1", "norm")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _tree(_start()))
    recipe = _recipe(name=name, clip_norm=1.0, decayed="all", model=Model(frozen=frozen))
    optimizer = make_optimizer(recipe, params, steps_per_epoch=1)
    gradients = {n: np.ones(s, np.float32) for n, s in SHAPES.items()}
    gradients |= {n: np.full(SHAPES[n], np.nan, np.float32) for n in SHAPES if _is_frozen(n)}
    state = optimizer.init(params)
    updates, _ = optimizer.update(_tree(gradients), state, params)
    for leaf, update in _flat(updates).items():
        assert bool((update == 0).all()) == _is_frozen(leaf)
        assert np.isfinite(update).all()

    alone = {n: value for n, value in _flat(params).items() if not _is_frozen(n)}
    kept = {n: value for n, value in gradients.items() if not _is_frozen(n)}
    plain = dataclasses.replace(recipe, model=Model())
    smaller = make_optimizer(plain, _tree(alone), steps_per_epoch=1)
    small_state = smaller.init(_tree(alone))
    small, _ = smaller.update(_tree(kept), small_state, _tree(alone))
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes == sorted(leaf.size for leaf in jax.tree.leaves(small_state))
    for leaf, update in _flat(small).items():
        np.testing.assert_array_equal(_flat(updates)[leaf], update)


def _is_frozen(name: str) -> bool:
    return name.split("/")[0] in ("stem", "stage1_block1", "stage1_block2", "norm")


def test_a_frozen_part_that_the_net_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"frozen=\['stage9'\].*has head, norm, stage1_block1"):
        make_optimizer(_recipe(model=Model(frozen=("stem", "stage9"))), _tree(_start()),
                       steps_per_epoch=1)  # fmt: skip


def test_the_optimizer_is_made_from_shapes_alone():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, _tree(_start())))
    for name in ("sgd", "lars", "lamb", "adamw", "muon"):
        optimizer = make_optimizer(
            _recipe(name=name, model=Model(frozen=("stem",))), shapes, steps_per_epoch=1
        )
        assert jax.eval_shape(optimizer.init, shapes)


def _rates(schedule: Schedule, steps: list[int], **fields: object) -> list[float]:
    chosen = Optimizer(learning_rate=0.5, learning_rate_batch=256)
    recipe = Recipe(**{"optimizer": chosen, "schedule": schedule, "batch_size": 512, "epochs": 10,
                       **fields})  # fmt: skip
    rate = jax.jit(make_schedule(recipe, steps_per_epoch=100))
    assert rate(0).dtype == jnp.float32
    return [float(rate(step)) for step in steps]


@pytest.mark.parametrize("kind", ["cosine", "polynomial", "steps", "constant"])
def test_the_warmup_is_a_line_that_ends_at_the_peak(kind):
    schedule = Schedule(kind=kind, warmup_epochs=2, warmup_factor=0.25)
    assert _rates(schedule, [0, 100, 199, 200]) == pytest.approx([0.25, 0.625, 0.99625, 1.0])


def test_a_constant_warmup_jumps_to_the_peak():
    schedule = Schedule(kind="steps", warmup_epochs=4, warmup_factor=0.1, warmup_kind="constant")
    assert _rates(schedule, [0, 399, 400]) == pytest.approx([0.1, 0.1, 1.0])


CURVES = {
    # Quarters of the 800 steps after the warm-up.
    "cosine": (
        Schedule(kind="cosine", warmup_epochs=2, final_factor=0.2),
        [1, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.2],
    ),
    "quadratic": (
        Schedule(kind="polynomial", warmup_epochs=2, final_factor=0.2),
        [1, 0.2 + 0.8 * 9 / 16, 0.4, 0.25, 0.2],
    ),
    "linear": (
        Schedule(kind="polynomial", warmup_epochs=2, power=1),
        [1, 0.75, 0.5, 0.25, 0],
    ),
    "constant": (Schedule(kind="constant", warmup_epochs=2), [1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("name", CURVES)
def test_after_the_warmup_the_rate_falls_to_its_end_and_stays(name):
    schedule, expected = CURVES[name]
    rates = _rates(schedule, [200, 400, 600, 800, 1000, 5000])
    assert rates == pytest.approx([*expected, expected[-1]], abs=1e-7)


def test_milestones_are_shares_of_the_whole_run():
    schedule = Schedule(kind="steps", milestones=(0.3, 0.75), milestone_factor=0.1)
    assert _rates(schedule, [299, 300, 749, 750, 999]) == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    assert _rates(Schedule(kind="steps", milestones=()), [0, 999]) == [1, 1]


def test_a_run_has_as_many_steps_as_its_epochs_amount_to():
    assert total_steps(Recipe(epochs=64_000 / 390), 390) == 64_000
    assert total_steps(Recipe(epochs=2.5), 312) == 780
