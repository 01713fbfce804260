"""A net as an NNX module: what flax.nnx.bridge makes of it computes what the linen module does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

import resnetjax as rj
from resnetjax.errors import BatchNormError

SMALL = rj.ResNetConfig(
    depths=(1,), widths=(8,), strides=(2,), dilations=(1,), stem="conv3", stem_pool="none",
    stem_width=8, num_classes=3,
)  # fmt: skip
BASIC, PRE = {"block": "basic"}, {"order": "pre", "shortcut_norm": False}
DROPS = {
    "depths": (2,),
    "widths": (8,),
    "drop_path_rate": 0.4,
    "block_dropout": 0.3,
    "dropout": 0.2,
}
KINDS = {
    "v1 basic": BASIC,
    "v1 bottleneck, every drop": DROPS,
    "v2 basic, every drop": {**BASIC, **PRE, **DROPS},
    "v2 bottleneck": PRE,
    "squeeze-excite": {**BASIC, "attention": "se"},
    "eca": {**BASIC, "attention": "eca"},
    "group norm, standardised": {
        **PRE, "norm": "group", "norm_groups": 4, "weight_standardization_eps": 1e-8,
    },
}  # fmt: skip
CASES = [pytest.param(kind, marks=[] if kind == "v1 basic" else pytest.mark.slow) for kind in KINDS]
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 9, 3)), jnp.float32)
KEY = jax.random.key(7)


def linen(**fields):
    """A net of which every array was drawn."""
    model, variables = rj.create(SMALL.replace(**fields), rng=0)
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    drawn = [x + jnp.asarray(rng.uniform(0.1, 0.5, x.shape), jnp.float32) for x in leaves]
    return model, jax.tree.unflatten(tree, drawn)


def as_nnx(model, variables) -> nnx.Module:
    """As docs/features.md says, but with shapes alone initialised, in a tenth of the time."""
    module = nnx.eval_shape(lambda: nnx.bridge.ToNNX(model).lazy_init(IMAGES, rngs=nnx.Rngs(0)))
    arrays = {}
    for tree in variables.values():
        arrays |= flatten_dict(tree)
    both = unflatten_dict(arrays)
    state = nnx.to_pure_dict(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, both)
    nnx.update(module, both)
    return module


def statistics(module: nnx.Module) -> dict:
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


@pytest.mark.parametrize("kind", CASES)
def test_evaluation_and_training_are_those_of_the_linen_module(kind):
    model, variables = linen(**KINDS[kind])
    module = as_nnx(model, variables)
    run = nnx.jit(lambda module, x: module(x))
    expected = jax.jit(model.apply)(variables, IMAGES)
    np.testing.assert_allclose(run(module, IMAGES), expected, rtol=1e-5, atol=1e-5)

    before = statistics(module)
    train = nnx.jit(
        lambda module, x, key: module(
            x, train=True, mutable=["batch_stats"], rngs=nnx.Rngs(dropout=key)
        )
    )
    logits = train(module, IMAGES, KEY)
    # What the stream "dropout" of nnx.Rngs gives at its first call.
    drop = nnx.Rngs(dropout=KEY).dropout()
    expected, updated = jax.jit(model.apply, static_argnames=("train", "mutable"))(
        variables, IMAGES, train=True, mutable=("batch_stats",), rngs={"dropout": drop}
    )
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    after = statistics(module)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
        after,
        updated.get("batch_stats", {}),
    )
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before, after))
    assert all(moved)
    assert bool(moved) == (model.config.norm == "batch")


@pytest.mark.slow
def test_dropping_follows_the_key():
    module = as_nnx(*linen(**DROPS))
    run = nnx.jit(
        lambda module, x, key: module(
            x, train=True, mutable=["batch_stats"], rngs=nnx.Rngs(dropout=key)
        )
    )
    one, same, other = (np.asarray(run(module, IMAGES, jax.random.key(i))) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_without_mutable_statistics_training_says_what_is_missing():
    module = as_nnx(*linen(**BASIC))
    with pytest.raises(BatchNormError, match=r'mutable=\["batch_stats"\]'):
        module(IMAGES, train=True, rngs=nnx.Rngs(dropout=0))


@pytest.mark.slow
def test_feature_maps_are_a_method_of_the_module_too():
    model, variables = linen(**BASIC)
    module = as_nnx(model, variables)
    found = module.features(IMAGES, stages=("stage1", "pooled"))
    expected = model.apply(variables, IMAGES, stages=("stage1", "pooled"), method="features")
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_nnx_optimizer_moves_parameters_and_not_statistics():
    model, variables = rj.create(SMALL.replace(**BASIC), rng=0)
    module = as_nnx(model, variables)
    optimizer = nnx.Optimizer(module, optax.sgd(0.01), wrt=nnx.Param)
    before, running = nnx.to_pure_dict(nnx.state(module, nnx.Param)), statistics(module)

    @nnx.jit
    def step(module, optimizer, images):
        loss, grads = nnx.value_and_grad(lambda module: (module(images) ** 2).mean())(module)
        optimizer.update(module, grads)
        return loss

    losses = [float(step(module, optimizer, IMAGES)) for _ in range(3)]
    assert losses[2] < losses[0]
    slope = jax.grad(
        lambda params: (model.apply({**variables, "params": params}, IMAGES) ** 2).mean()
    )(variables["params"])
    module = as_nnx(model, variables)
    step(module, nnx.Optimizer(module, optax.sgd(0.01), wrt=nnx.Param), IMAGES)
    jax.tree.map(
        lambda new, old, grad: np.testing.assert_allclose(
            new, old - 0.01 * grad, rtol=1e-4, atol=1e-5
        ),
        nnx.to_pure_dict(nnx.state(module, nnx.Param)),
        before,
        slope,
    )
    jax.tree.map(np.testing.assert_array_equal, statistics(module), running)
