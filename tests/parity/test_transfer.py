"""Keras's three steps of transfer learning and ours, in float64 on the same images and weights."""

import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import keras
import keras.src.applications.resnet as applications
import keras.src.backend.common.dtypes as dtypes
import numpy as np
import optax
import pytest

import resnetjax as rj
from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.preprocess import normalize
from resnetjax.errors import AssumptionWarning
from resnetjax.train.optimizer import make_optimizer, make_schedule
from resnetjax.train.recipe import Model, Optimizer, Recipe, Schedule
from resnetjax.train.state import by_path, create_state
from resnetjax.train.step import make_model, make_train_step

pytestmark = [
    pytest.mark.parity,
    # Of Keras and PyTorch: the legacy format, and arrays that are not writable.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

CLASSES, HIDDEN, EDGE_PX, BATCH, STEPS = 5, 7, 33, 6, 20
DENSE = ("hidden", "head")
TOLERANCE = 1e-6
RATE, MOMENTUM = 0.0625, 0.875  # exact in the float32 of our schedule
# Pixels that are exact in float32 once normalised.
EXACT = Preprocess(
    crop_px=(EDGE_PX, EDGE_PX), resize_mode="none", resize_px=None, divisor=1.0,
    mean=(64.0,) * 3, std=(64.0,) * 3,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    # Else batch norm computes in float32: Keras narrows what float64 and float32 promote to.
    narrowed = dtypes.BIT64_TO_BIT32_DTYPE.copy()
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    with jax.enable_x64(True):
        yield
    dtypes.BIT64_TO_BIT32_DTYPE.update(narrowed)
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


def build() -> keras.Model:
    """keras.applications' builder on narrow stages, with values that float32 holds."""

    def stages(x: object) -> object:
        x = applications.stack_residual_blocks_v1(x, 4, 1, stride1=1, name="conv2")
        x = applications.stack_residual_blocks_v1(x, 4, 1, name="conv3")
        x = applications.stack_residual_blocks_v1(x, 8, 1, name="conv4")
        return applications.stack_residual_blocks_v1(x, 8, 1, name="conv5")

    model = applications.ResNet(
        stages, preact=False, use_bias=True, weights=None, classes=3,
        input_shape=(EDGE_PX, EDGE_PX, 3), classifier_activation=None,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for layer in model.layers:
        values = layer.get_weights()
        if isinstance(layer, keras.layers.BatchNormalization):
            size = values[0].shape
            low = ((0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 2.0))
            values = [rng.uniform(*ends, size) for ends in low]
        layer.set_weights([np.float32(value).astype(np.float64) for value in values])
    return model


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        (
            rng.integers(0, 256, (BATCH, EDGE_PX, EDGE_PX, 3), np.uint8),
            rng.integers(0, CLASSES, BATCH, np.int32),
        )
        for _ in range(STEPS)
    ]


def head(*sizes: int) -> list[list[np.ndarray]]:
    """A kernel and a bias for each layer of a head."""
    rng = np.random.default_rng(2)
    pairs = itertools.pairwise(sizes)
    return [[rng.normal(0, 0.1, pair), rng.normal(0, 0.1, pair[1])] for pair in pairs]


class Inference(keras.Model):
    """A model that is always called as in inference, and trained all the same.

    `base(inputs, training=False)` within a functional model does not say so to Keras 3.15:
    `Functional` passes on what the whole is called with.
    """

    def __init__(self, inner: keras.Model) -> None:
        super().__init__()
        self.inner = inner

    def call(self, images: Any, training: bool | None = None) -> Any:
        return self.inner(images, training=False)


def headed(whole: keras.Model, weights: list[list[np.ndarray]]) -> tuple[keras.Model, keras.Model]:
    """The net without its head, and the same under a new one."""
    base = keras.Model(whole.inputs, whole.get_layer("avg_pool").output)
    inputs = keras.Input((EDGE_PX, EDGE_PX, 3))
    x = base(inputs)
    dense = [
        keras.layers.Dense(len(bias), activation=None if last else "relu")
        for (_, bias), last in zip(weights, [False] * (len(weights) - 1) + [True], strict=True)
    ]
    for layer in dense:
        x = layer(x)
    for layer, values in zip(dense, weights, strict=True):
        layer.set_weights(values)
    return base, keras.Model(inputs, x)


def train_keras(model: keras.Model, optimizer: keras.Optimizer) -> list[float]:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = []
    for images, labels in batches():
        model.reset_metrics()
        found.append(float(model.train_on_batch((images.astype(np.float64) - 64) / 64, labels)))
    return found


def load(whole: keras.Model, folder: Any) -> rj.Pretrained:
    whole.save_weights(folder / "net.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        return rj.load(folder / "net.weights.h5", num_classes=0)


def widened(variables: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)


def train_ours(pre: rj.Pretrained, weights: list[list[np.ndarray]], *frozen: str) -> Any:
    """Losses, and variables before and after."""
    *hidden, (kernel, bias) = weights
    widths = tuple(bias.size for _, bias in hidden)
    recipe = Recipe(
        model=Model(config=pre.config, num_classes=CLASSES, head_widths=widths, frozen=frozen),
        augmentation=Augmentation(crop="none", flip=False),
        preprocess=EXACT,
        optimizer=Optimizer(learning_rate=RATE, momentum=MOMENTUM, weight_decay=0.0),
        schedule=Schedule(kind="constant"),
        precision="float64",
        batch_size=BATCH,
    )
    model = make_model(recipe, recipe.model.resolve(num_classes=CLASSES))
    variables = widened(pre.variables)
    dense = {f"hidden{i}": {"kernel": k, "bias": b} for i, (k, b) in enumerate(hidden, start=1)}
    variables["params"]["head"] = widened({**dense, "kernel": kernel, "bias": bias})
    optimizer = make_optimizer(recipe, variables["params"], steps_per_epoch=STEPS)
    schedule = make_schedule(recipe, steps_per_epoch=STEPS)
    step = jax.jit(make_train_step(model, optimizer, recipe, schedule=schedule))
    state, losses = create_state(variables, optimizer, recipe), []
    for images, labels in batches():
        batch = {"images": images, "labels": labels, "weights": np.ones(BATCH, np.float32)}
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, variables, state.variables


class Classifier(nn.Module):
    """A head of two layers on a net that has none."""

    backbone: rj.ResNet
    hidden: int

    @nn.compact
    def __call__(self, images: Any, *, train: bool = False) -> Any:
        x = self.backbone(images, train=train)
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(CLASSES, name="head")(x)


def train_classifier(
    pre: rj.Pretrained,
    backbone: Any,
    weights: list[list[np.ndarray]],
    *frozen: str,
    optimizer: optax.GradientTransformation,
) -> Any:
    """Losses, and variables after, of a loop of one's own."""
    model = pre.model.clone(frozen=frozen, dtype=jnp.float64)
    classifier = Classifier(model, hidden=weights[0][1].size)
    dense = {n: {"kernel": k, "bias": b} for n, (k, b) in zip(DENSE, weights, strict=True)}
    params = {"backbone": backbone["params"], **widened(dense)}
    statistics = {"backbone": backbone["batch_stats"]}
    fixed = {f"backbone/{name}" for name in model.frozen_names}
    groups = by_path(lambda path, _: "frozen" if path in fixed else "trained", params)
    chosen = optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, groups)

    def loss_of(params: Any, statistics: Any, images: Any, labels: Any) -> Any:
        logits, updates = classifier.apply(
            {"params": params, "batch_stats": statistics}, normalize(images, EXACT),
            train=True, mutable=["batch_stats"],
        )  # fmt: skip
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, updates.get("batch_stats", statistics)

    @jax.jit
    def step(params: Any, statistics: Any, state: Any, images: Any, labels: Any) -> Any:
        (loss, statistics), grads = jax.value_and_grad(loss_of, has_aux=True)(
            params, statistics, images, labels
        )
        updates, state = chosen.update(grads, state, params)
        return optax.apply_updates(params, updates), statistics, state, loss

    state, losses = chosen.init(params), []
    for images, labels in batches():
        params, statistics, state, loss = step(params, statistics, state, images, labels)
        losses.append(float(loss))
    return losses, {"params": params, "batch_stats": statistics}


def flat(variables: Any) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(value)
        for tree in variables.values()
        for name, value in flax.traverse_util.flatten_dict(tree, sep="/").items()
    }


def assert_same_backbone(ours: Any, whole: keras.Model, folder: Any) -> None:
    """Within the tolerance, of which float32 takes a tenth: our reader makes that of a file."""
    theirs = flat(load(whole, folder).variables)
    for name, value in flat(ours).items():
        if not name.startswith("head/"):
            np.testing.assert_allclose(value, theirs[name], rtol=1e-7, atol=TOLERANCE, err_msg=name)


def assert_same_dense(ours: Any, model: keras.Model) -> None:
    """Of a head of two layers."""
    for name, layer in zip(DENSE, model.layers[-2:], strict=True):
        for leaf, value in zip(("kernel", "bias"), layer.get_weights(), strict=True):
            found = ours["params"][name][leaf]
            np.testing.assert_allclose(found, value, atol=TOLERANCE, rtol=0)


def layers_of(ours: Any) -> list[list[np.ndarray]]:
    """A kernel and a bias for each layer of the head."""
    last = ours["params"]["head"]
    hidden = [last[name] for name in sorted(last) if name.startswith("hidden")]
    return [[np.asarray(layer[leaf]) for leaf in ("kernel", "bias")] for layer in (*hidden, last)]


def headless(ours: Any) -> Any:
    params = {name: part for name, part in ours["params"].items() if name != "head"}
    return {**ours, "params": params}


def assert_same_head(ours: Any, model: keras.Model) -> None:
    found = layers_of(ours)
    for mine, layer in zip(found, model.layers[-len(found) :], strict=True):
        for value, expected in zip(mine, layer.get_weights(), strict=True):
            np.testing.assert_allclose(value, expected, atol=TOLERANCE, rtol=0)


def assert_moved(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray], moves: Callable[[str], bool]
) -> None:
    """Just these; but a bias that batch norm follows has a gradient of rounding, if any."""
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    certain = {name for name in before if not re.search(r"conv[^/]*/bias$", name)}
    assert moved & certain == {name for name in certain if moves(name)}
    assert all(map(moves, moved))


def snapshot(model: keras.Model) -> dict[str, np.ndarray]:
    return {w.path: keras.ops.convert_to_numpy(w).copy() for w in model.weights}


def sgd() -> keras.Optimizer:
    return keras.optimizers.SGD(RATE, momentum=MOMENTUM)


def test_a_head_on_frozen_features_learns_as_in_keras(tmp_path):
    whole, new = build(), head(32, CLASSES)
    pre = load(whole, tmp_path)
    base, model = headed(whole, new)
    base.trainable = False
    before = snapshot(base)
    theirs = train_keras(model, sgd())
    losses, start, end = train_ours(pre, new, "stem", "stage*")
    np.testing.assert_allclose(losses, theirs, atol=TOLERANCE, rtol=0)
    assert losses[-1] != losses[0]
    assert_moved(before, snapshot(base), lambda name: False)
    assert_moved(flat(start), flat(end), lambda name: name.startswith("head/"))
    for ours, layer in zip(("kernel", "bias"), model.layers[-1].get_weights(), strict=True):
        found = end["params"]["head"][ours]
        np.testing.assert_allclose(found, layer, atol=TOLERANCE, rtol=0)


def test_a_custom_head_on_frozen_features_learns_as_in_keras(tmp_path):
    whole, new = build(), head(32, HIDDEN, CLASSES)
    pre = load(whole, tmp_path)
    base, model = headed(whole, new)
    base.trainable = False
    theirs = train_keras(model, keras.optimizers.Adam(RATE, epsilon=1e-20))
    losses, end = train_classifier(
        pre, widened(pre.variables), new, "stem", "stage*",
        optimizer=optax.adam(RATE, eps=1e-20),
    )  # fmt: skip
    np.testing.assert_allclose(losses, theirs, atol=TOLERANCE, rtol=0)
    assert_same_dense(end, model)


def test_a_net_unfrozen_from_a_layer_on_learns_as_in_keras(tmp_path):
    whole, new = build(), head(32, CLASSES)
    pre = load(whole, tmp_path)
    base, model = headed(whole, new)
    first = next(i for i, layer in enumerate(base.layers) if layer.name.startswith("conv5"))
    for layer in base.layers[:first]:
        layer.trainable = False
    before = snapshot(base)
    theirs = train_keras(model, sgd())
    losses, start, end = train_ours(pre, new, "up to stage3")
    np.testing.assert_allclose(losses, theirs, atol=TOLERANCE, rtol=0)
    assert_same_backbone(end, whole, tmp_path)
    assert_moved(before, snapshot(base), lambda name: name.startswith("conv5"))
    assert_moved(flat(start), flat(end), lambda name: name.startswith(("stage4", "head/")))


def test_the_three_steps_as_one_workflow_learn_as_in_keras(tmp_path):
    whole, new = build(), head(32, CLASSES, HIDDEN, CLASSES)
    pre = load(whole, tmp_path)
    original = flat(pre.variables)

    # A dense layer on frozen features.
    base, model = headed(whole, new[:1])
    base.trainable = False
    before = snapshot(base)
    theirs = train_keras(model, sgd())
    losses, _, ours = train_ours(pre, new[:1], "stem", "stage*")
    np.testing.assert_allclose(losses, theirs, atol=TOLERANCE, rtol=0)

    # A custom head on them: that layer as it is now, and two others.
    base, model = headed(whole, [model.layers[-1].get_weights(), *new[1:]])
    base.trainable = False
    theirs = train_keras(model, sgd())
    losses, _, ours = train_ours(pre, [layers_of(ours)[-1], *new[1:]], "stem", "stage*")
    np.testing.assert_allclose(losses, theirs, atol=TOLERANCE, rtol=0)
    assert_same_head(ours, model)
    assert_moved(before, snapshot(base), lambda name: False)
    assert_moved(original, flat(headless(ours)), lambda name: False)

    # Unfrozen from a layer on.
    base.trainable = True
    begin = next(i for i, layer in enumerate(base.layers) if layer.name.startswith("conv5"))
    for layer in base.layers[:begin]:
        layer.trainable = False
    theirs = train_keras(model, sgd())
    losses, _, ours = train_ours(pre, layers_of(ours), "up to stage3")
    np.testing.assert_allclose(losses, theirs, atol=TOLERANCE, rtol=0)
    assert_same_head(ours, model)
    assert_same_backbone(ours, whole, tmp_path)
    assert_moved(before, snapshot(base), lambda name: name.startswith("conv5"))
    assert_moved(original, flat(headless(ours)), lambda name: name.startswith("stage4"))


def test_a_net_whose_norms_are_frozen_learns_as_in_keras(tmp_path):
    whole, new = build(), head(32, CLASSES)
    pre = load(whole, tmp_path)
    base, model = headed(whole, new)
    for layer in base.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    before = snapshot(base)
    theirs = train_keras(model, sgd())
    losses, start, end = train_ours(pre, new, "*norm*")
    np.testing.assert_allclose(losses, theirs, atol=TOLERANCE, rtol=0)
    assert_same_backbone(end, whole, tmp_path)
    assert_moved(before, snapshot(base), lambda name: "_bn/" not in name)
    assert_moved(flat(start), flat(end), lambda name: "norm" not in name)


def test_a_net_that_keeps_its_statistics_learns_as_keras_in_inference_mode(tmp_path):
    whole, new = build(), head(32, CLASSES)
    pre = load(whole, tmp_path)
    base, model = headed(whole, new)
    before = snapshot(base)
    theirs = train_keras(Inference(model), sgd())
    losses, start, end = train_ours(pre, new, "*/mean")
    np.testing.assert_allclose(losses, theirs, atol=TOLERANCE, rtol=0)
    assert_same_backbone(end, whole, tmp_path)
    assert_moved(before, snapshot(base), lambda name: "moving" not in name)
    assert_moved(flat(start), flat(end), lambda name: not name.endswith(("/mean", "/var")))
