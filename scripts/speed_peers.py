"""What `scripts/benchmark.py infer` and `train` compare: each peer a line of PEERS.

A peer makes, for a case, a function that runs one batch or one training step and returns when the
device is done.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import resnetjax as rj
from resnetjax import presets
from resnetjax.measure import flops
from resnetjax.plan import plan

ROOT = Path(__file__).parent.parent
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
Run = Callable[[], Any]


@dataclass(frozen=True)
class Net:
    """One architecture under the names that the peers have for it; None where one has it not."""

    ours: str
    plain: str | None
    torch: tuple[str, str, dict[str, Any]]
    keras: str | None
    edge_px: int = 224
    classes: int = 1000


NETS = {
    "resnet18": Net("resnet18", "resnet18", ("torchvision", "resnet18", {}), None),
    "resnet50": Net("resnet50", "resnet50", ("torchvision", "resnet50", {}), "ResNet50"),
    "resnet101": Net("resnet101", "resnet101", ("torchvision", "resnet101", {}), "ResNet101"),
    "resnetv2_50": Net("resnetv2_50", None, ("timm", "resnetv2_50", {}), "ResNet50V2"),
    "cifar_resnet20": Net("cifar_resnet20", "cifar_resnet20",
                          ("akamaster", "resnet20", {"option": "A"}), None, 32, 10),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is run: a net, the images of a batch, and the dtype of the arithmetic."""

    kind: Literal["infer", "train"]
    net: str
    batch: int
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def names(self) -> Net:
        """The net's names and sizes."""
        return NETS[self.net]

    @property
    def flops(self) -> int:
        """Floating-point operations of one call; a backward pass is twice a forward one."""
        edge = self.names.edge_px
        forward = flops(plan(presets.get(self.names.ours)), height=edge, width=edge)
        return forward * self.batch * (3 if self.kind == "train" else 1)

    def images(self) -> np.ndarray:
        """Noise, float32[batch, height, width, 3]."""
        edge = self.names.edge_px
        rng = np.random.default_rng(0)
        return rng.standard_normal((self.batch, edge, edge, 3), np.float32)

    def labels(self) -> np.ndarray:
        """One class an image."""
        return np.random.default_rng(1).integers(0, self.names.classes, self.batch)


@dataclass(frozen=True)
class Peer:
    """A library and how it is used.

    Attributes:
        make: The function that is timed, for a case.
        packages: All have to be installed.
        kinds: What it can do.
        needs: The field of `Net` that has to be there.
        on_gpu: Whether it runs there as well.
        full_only: Whether the default grid leaves it out.
    """

    make: Callable[[Case], Run]
    packages: tuple[str, ...]
    kinds: tuple[str, ...] = ("infer", "train")
    needs: str = "ours"
    on_gpu: bool = True
    full_only: bool = False


def _ours(case: Case) -> Run:
    model, variables = rj.create(case.names.ours, dtype=jnp.dtype(case.dtype))
    if case.kind == "infer":
        edge = case.names.edge_px
        call = rj.compile_inference(model, variables, batch_size=case.batch, image_px=(edge, edge))
        images = jax.device_put(case.images())
        return lambda: jax.block_until_ready(call(images))
    return _our_training(case, model, variables)


def _our_training(case: Case, model: Any, variables: Any) -> Run:
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
    return _repeated(jax.jit(step, donate_argnums=0).lower(state, batch).compile(), state, batch)


def _plain_flax(case: Case) -> Run:
    import plain_flax

    model = plain_flax.NETS[case.net].clone(dtype=jnp.dtype(case.dtype))
    images = jax.device_put(case.images())
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    if case.kind == "infer":
        call = jax.jit(model.apply).lower(variables, images).compile()
        return lambda: jax.block_until_ready(call(variables, images))
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
    return _repeated(jax.jit(step, donate_argnums=0).lower(state, batch).compile(), state, batch)


def _repeated(step: Any, state: Any, batch: Any) -> Run:
    """Training steps that go on from one another, on the same batch."""
    kept = [state]

    def call() -> None:
        kept[0], out = step(kept[0], batch)
        jax.block_until_ready((kept[0], out))

    return call


def _torch(case: Case, *, form: Literal["eager", "channels_last", "compile"]) -> Run:
    import torch

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    layout = torch.contiguous_format if form == "eager" else torch.channels_last
    model = _torch_model(case).to(device=device, memory_format=layout)
    images = torch.from_numpy(case.images().transpose(0, 3, 1, 2).copy())
    images = images.to(device=device, memory_format=layout)
    precision = (
        torch.autocast(device, torch.bfloat16)
        if case.dtype == "bfloat16"
        else contextlib.nullcontext()
    )
    if case.kind == "infer":
        forward = torch.compile(model.eval()) if form == "compile" else model.eval()

        def infer() -> None:
            with torch.inference_mode(), precision:
                forward(images)
            _synchronize(torch, device)

        return infer
    labels = torch.from_numpy(case.labels()).to(device)
    forward = torch.compile(model.train()) if form == "compile" else model.train()
    sgd = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )

    def train() -> None:
        sgd.zero_grad(set_to_none=True)
        with precision:
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        sgd.step()
        _synchronize(torch, device)

    return train


def _synchronize(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _torch_model(case: Case) -> Any:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]
    import torchvision_shim

    torchvision_shim.install()
    from tests.parity import nets

    library, name, arguments = case.names.torch
    return nets.build(library, name, arguments, ())


def _keras(case: Case) -> Run:
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
        return lambda: model.predict_on_batch(images)
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return lambda: model.train_on_batch(images, labels)


def _onnxruntime(case: Case) -> Run:
    import io

    import onnxruntime
    import torch

    images = np.ascontiguousarray(case.images().transpose(0, 3, 1, 2))
    file = io.BytesIO()
    program = torch.onnx.export(
        _torch_model(case).eval(), (torch.from_numpy(images),), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images}
    return lambda: session.run(None, feed)


def _openvino(case: Case) -> Run:
    import openvino
    import torch

    images = np.ascontiguousarray(case.images().transpose(0, 3, 1, 2))
    model = openvino.convert_model(
        _torch_model(case).eval(), example_input=torch.from_numpy(images), input=images.shape
    )
    # Its own default rounds to bfloat16 where the processor can.
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda: compiled(images)


PEERS = {
    "resnetjax": Peer(_ours, ("jax",)),
    "plain Flax": Peer(_plain_flax, ("flax",), needs="plain"),
    "PyTorch": Peer(functools.partial(_torch, form="eager"), ("torch",)),
    "PyTorch channels_last": Peer(functools.partial(_torch, form="channels_last"), ("torch",)),
    "torch.compile": Peer(functools.partial(_torch, form="compile"), ("torch",)),
    "Keras on JAX": Peer(_keras, ("keras",), needs="keras", full_only=True),
    "ONNX Runtime": Peer(_onnxruntime, ("onnxruntime", "onnxscript", "torch"), ("infer",),
                         on_gpu=False),
    "OpenVINO": Peer(_openvino, ("openvino", "torch"), ("infer",), on_gpu=False),
}  # fmt: skip
