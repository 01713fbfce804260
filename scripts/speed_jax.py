"""Peers of `scripts/benchmark.py infer` and `train` that run in JAX, ours among them."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from speed_cases import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Case, Ready

import resnetjax as rj

ROOT = Path(__file__).parent.parent


def start_jax(case: Case) -> None:
    """Imports what ours and plain Flax run by, and compiles a product."""
    import resnetjax.train.step  # noqa: F401 - with what it imports, beside Flax

    x = jax.device_put(np.ones((8, 8), np.float32))
    jax.block_until_ready(jax.jit(jnp.matmul)(x, x))


def make_resnetjax(case: Case) -> Ready:
    """`rj.compile_inference`, or the step that `resnetjax train` takes."""
    model, variables = rj.create(case.names.ours, dtype=jnp.dtype(case.dtype))
    if case.kind == "train":
        return _our_training(case, model, variables)
    edge = case.names.edge_px
    images = jax.device_put(case.images())
    start = time.perf_counter()
    call = rj.compile_inference(model, variables, batch_size=case.batch, image_px=(edge, edge))
    return Ready(lambda: jax.block_until_ready(call(images)), time.perf_counter() - start)


def _our_training(case: Case, model: Any, variables: Any) -> Ready:
    """With all that training does in a step: uint8 images normalised, finiteness checked."""
    from resnetjax.train.optimizer import make_optimizer, make_schedule
    from resnetjax.train.recipe import read_recipe
    from resnetjax.train.state import create_state
    from resnetjax.train.step import make_train_step

    recipe = read_recipe(ROOT / "configs" / "cifar10_resnet.py")
    plain = dataclasses.replace(recipe.augmentation, crop="none", flip=False)
    recipe = dataclasses.replace(
        recipe, precision=case.dtype, batch_size=case.batch, augmentation=plain
    )
    optimizer = make_optimizer(recipe, variables["params"], steps_per_epoch=1000)
    schedule = make_schedule(recipe, steps_per_epoch=1000)
    step = make_train_step(model, optimizer, recipe, schedule=schedule)
    state = create_state(variables, optimizer, recipe)
    pixels = np.clip(case.images() * 64 + 128, 0, 255).astype(np.uint8)
    batch = jax.device_put(
        {
            "images": pixels,
            "labels": case.labels().astype(np.int32),
            "weights": np.ones(case.batch, np.float32),
        }
    )
    return _repeated(step, state, batch)


def make_plain_flax(case: Case) -> Ready:
    """The net as one writes it without a library, compiled ahead of time."""
    import plain_flax

    model = plain_flax.NETS[case.net].clone(dtype=jnp.dtype(case.dtype))
    images = jax.device_put(case.images())
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    if case.kind == "infer":
        start = time.perf_counter()
        call = jax.jit(model.apply).lower(variables, images).compile()
        compile_s = time.perf_counter() - start
        return Ready(lambda: jax.block_until_ready(call(variables, images)), compile_s)
    labels = jax.device_put(case.labels())
    sgd = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM))

    def step(state: Any, batch: Any) -> Any:
        params, stats, opt_state = state

        def loss_of(params: Any) -> Any:
            logits, updates = model.apply(
                {"params": params, "batch_stats": stats}, batch[0], train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
            return losses.mean(), updates["batch_stats"]

        (loss, new_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = sgd.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), new_stats, opt_state), loss

    params = variables["params"]
    state = (params, variables["batch_stats"], sgd.init(params))
    batch = (images, labels)
    return _repeated(step, state, batch)


def _repeated(step: Any, state: Any, batch: Any) -> Ready:
    """Training steps that go on from one another, on the same batch."""
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    compile_s = time.perf_counter() - start
    kept = [state]
    del state

    def call() -> None:
        kept[0], out = compiled(kept[0], batch)
        jax.block_until_ready((kept[0], out))

    return Ready(call, compile_s)


def start_keras(case: Case) -> None:
    """Imports Keras, and JAX with it."""
    import keras

    start_jax(case)
    keras.ops.matmul(np.ones((8, 8), np.float32), np.ones((8, 8), np.float32))


def make_keras(case: Case) -> Ready:
    """`keras.applications` on JAX, by `predict_on_batch` and `train_on_batch`."""
    import keras

    if keras.backend.backend() != "jax":
        raise RuntimeError("Keras runs on another backend: set KERAS_BACKEND=jax")
    keras.mixed_precision.set_global_policy(
        "float32" if case.dtype == "float32" else "mixed_bfloat16"
    )
    make = getattr(keras.applications, case.names.keras or "")
    model = make(weights=None, classifier_activation=None)
    images, labels = case.images(), case.labels()
    if case.kind == "infer":
        return Ready(lambda: model.predict_on_batch(images), "first call")
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return Ready(lambda: model.train_on_batch(images, labels), "first call")
