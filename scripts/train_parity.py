"""Our training step beside PyTorch's, on the same batches from the same weights.

Float32 trajectories of two correct programs part within some ten steps: rounding moves a few of the
millions of ReLU inputs across zero. So three things are compared: trajectories in float64;
gradients in float32 at states that both share; and the test accuracy of whole runs in float32.

Gradients at one state part for the same reason, at once. They are compared as they are; with the
ReLU inputs that count as positive shared as well, so that only the arithmetic differs; and with the
smooth SiLU.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import torch
from torch import nn

from resnetjax.config import ResNetConfig
from resnetjax.nn import functions
from resnetjax.pretrained import flatten
from resnetjax.train.optimizer import make_schedule
from resnetjax.train.recipe import Recipe, read_recipe
from resnetjax.train.setup import Setup
from resnetjax.train.step import losses, vary
from resnetjax.weights import torch_dialects
from resnetjax.weights.arrays import load_arrays, save_arrays

Activation = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": torch.relu, "silu": nn.functional.silu}
GRADIENTS = {"relu": ("relu", False), "relu_signs_shared": ("relu", True), "silu": ("silu", False)}
PARTS = ("trajectory", "gradients", "runs")
CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_resnet.py"


class Block(nn.Module):
    """A basic block with shortcut A of He et al. 2015, under the names of akamaster's files."""

    def __init__(self, features_in: int, features: int, stride: int, activate: Activation) -> None:
        super().__init__()
        self.activate = activate
        self.conv1 = nn.Conv2d(features_in, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.stride, self.padding = stride, (features - features_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        y = self.activate(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        x = x[:, :, :: self.stride, :: self.stride]
        return self.activate(y + nn.functional.pad(x, (0, 0, 0, 0, self.padding, self.padding)))


class ResNet20(nn.Module):
    """The net of `cifar_resnet20`."""

    def __init__(self, activate: Activation) -> None:
        super().__init__()
        self.activate = activate
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                Block(before, features, stride, activate),
                Block(features, features, 1, activate),
                Block(features, features, 1, activate),
            )
            for before, features, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        x = self.activate(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def compare(
    data: str, *, parts: Collection[str], epochs: int, seeds: Collection[int], out: Path | None
) -> dict[str, Any]:
    """Some of `PARTS`; each is written to `out` when it is done, beside what is there.

    So is each side of each seed's run, and none that is there is run again.
    """
    base = read_recipe(CONFIG)
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, path=data))
    result: dict[str, Any] = json.loads(out.read_text()) if out and out.exists() else {}
    result.update(recipe=CONFIG.name, batch_size=base.batch_size)

    def note(**found: Any) -> None:
        result.update(found)
        print(json.dumps(found, indent=1), flush=True)
        if out:
            out.write_text(json.dumps(result, indent=1) + "\n")

    if "trajectory" in parts:
        with jax.enable_x64(True):
            note(float64_trajectory=trajectory(base, steps=50))
    if "gradients" in parts:
        for name, (activation, shared) in GRADIENTS.items():
            found = gradients(base, activation, shared_signs=shared, states=10)
            note(**{f"float32_gradients_{name}": found})
    if "runs" not in parts:
        return result
    runs: list[dict[str, Any]] = result.get("float32_runs", {}).get("runs", [])
    recipe = dataclasses.replace(base, epochs=float(epochs))
    for seed, (side, train) in itertools.product(sorted(seeds), SIDES.items()):
        run = next((run for run in runs if run["seed"] == seed), None)
        if run is None:
            runs.append(run := {"seed": seed})
        if side in run:
            continue
        with Setup(dataclasses.replace(recipe, seed=seed)) as setup:
            run[side] = train(setup)
        schedule = f"{epochs} epochs, the rate divided by 10 after one half and three quarters"
        found: dict[str, Any] = {"schedule": schedule, "runs": runs}
        if whole := [run for run in runs if SIDES.keys() <= run.keys()]:
            means = {side: float(np.mean([run[side]["top1"] for run in whole])) for side in SIDES}
            difference = 100 * (means["resnetjax"] - means["torch"])
            found |= {"mean_top1": means, "difference_in_points": difference}
        note(float32_runs=found)
    return result


def trajectory(base: Recipe, *, steps: int) -> dict[str, float]:
    """Largest differences over `steps` of SGD in float64, without augmentation.

    At a tenth of the paper's rate: at the whole of it the first steps from random weights are so
    chaotic that differences grow by ten a step, and float64 lasts for five of them.
    """
    slow = dataclasses.replace(base.optimizer, learning_rate=base.optimizer.learning_rate / 10)
    plain = dataclasses.replace(base.augmentation, crop="none", flip=False)
    # Exact in float32, however the compiler orders it: else both would see other images.
    exact = dataclasses.replace(base.preprocess, divisor=256.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    recipe = dataclasses.replace(
        base, precision="float64", augmentation=plain, preprocess=exact, optimizer=slow
    )
    worst = {"loss": 0.0, "parameters": 0.0, "running_means": 0.0, "running_variances": 0.0}
    with Setup(recipe) as setup:
        state = setup.fresh_state()
        peer, optimizer = _peer(setup, state, torch.float64)
        rate = make_schedule(recipe, steps_per_epoch=setup.order.steps_per_epoch)
        for step, (batch, images, targets) in enumerate(_batches(setup, steps)):
            state, metrics = setup.train_step(state, batch)
            loss = _torch_step(peer, optimizer, images, targets, float(rate(step)))
            relative = abs(float(metrics["loss"]) - loss) / abs(loss)
            worst["loss"] = max(worst["loss"], relative)
            mine = flatten(state.variables)
            theirs = _as_ours(peer, setup.config)
            for path, values in mine.items():
                kind, other = "parameters", theirs[path]
                if path.endswith("/mean"):
                    kind = "running_means"
                elif path.endswith("/var"):
                    kind, other = "running_variances", _biased(other, path, setup, step + 1)
                worst[kind] = max(worst[kind], float(np.abs(values - other).max()))
    return {"steps": steps, "learning_rate": slow.learning_rate, **worst}


def gradients(
    base: Recipe, activation: str, *, states: int, shared_signs: bool = False, apart: int = 5
) -> dict[str, Any]:
    """Relative distances of float32 gradients, at states of a run of ours, `apart` steps apart.

    A distance is |a - b| / |b| of all arrays together ("whole"), and of the array where it is
    largest ("array"); listed are the greatest over the states. With `shared_signs` the float32
    sides let through what PyTorch's ReLUs do in float64; both are else what they are.
    """
    config = base.model.resolve(num_classes=10).replace(activation=activation)
    recipe = dataclasses.replace(
        base, model=dataclasses.replace(base.model, arch=None, config=config)
    )
    plain = ACTIVATIONS[activation]
    found: dict[str, list[tuple[float, float]]] = {}
    with Setup(recipe) as setup:

        def loss_of(params: Any, stats: Any, images: Any, targets: Any, signs: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            with _ours_obeying(signs) if shared_signs else contextlib.nullcontext():
                logits, _ = setup.model.apply(
                    variables, images, train=True, mutable=["batch_stats"]
                )
            return losses(logits, targets, recipe).mean()

        gradient = jax.jit(jax.grad(loss_of))
        state = setup.fresh_state()
        for step, (batch, images, targets) in enumerate(_batches(setup, states * apart)):
            if step % apart == 0:
                signs: list[torch.Tensor] = []
                noting, obeying = (
                    (_noting(signs), _obeying(signs)) if shared_signs else (plain,) * 2
                )
                exact = _torch_gradient(setup, state, images, targets, torch.float64, noting)
                theirs = _torch_gradient(setup, state, images, targets, torch.float32, obeying)
                masks = [sign.permute(0, 2, 3, 1).numpy() for sign in signs]
                mine = gradient(state.params, state.batch_stats, images, targets, masks)
                ours = flatten({"params": mine})
                for name, (a, b) in {
                    "resnetjax_to_torch": (ours, theirs),
                    "resnetjax_to_float64": (ours, exact),
                    "torch_to_float64": (theirs, exact),
                }.items():
                    found.setdefault(name, []).append(_distance(a, b))
            state, _ = setup.train_step(state, batch)
    return {
        "states": states,
        **{
            name: {"whole": max(d[0] for d in distances), "array": max(d[1] for d in distances)}
            for name, distances in found.items()
        },
    }


def _noting(signs: list[torch.Tensor]) -> Activation:
    """ReLU; call by call, which inputs it lets through goes to `signs`."""

    def activate(x: torch.Tensor) -> torch.Tensor:
        signs.append(x > 0)
        return torch.relu(x)

    return activate


def _obeying(signs: list[Any]) -> Callable[[Any], Any]:
    """Lets through what another net's ReLUs did, call by call."""
    calls = itertools.count()
    return lambda x: x * signs[next(calls)]


@contextlib.contextmanager
def _ours_obeying(signs: list[jax.Array]) -> Iterator[None]:
    obey, calls = _obeying(signs), itertools.count()

    def activate(x: jax.Array, activation: str | None) -> jax.Array:
        if activation is None:
            return x
        next(calls)
        return obey(x)

    with mock.patch.object(functions, "activate", activate):
        yield
    assert next(calls) == len(signs)


def _torch_gradient(
    setup: Setup, state: Any, images: Any, targets: Any, dtype: torch.dtype, activate: Activation
) -> dict[str, np.ndarray]:
    peer, _ = _peer(setup, state, dtype, activate)
    _torch_loss(peer, images, targets).backward()
    buffers = {name: buffer.numpy() for name, buffer in peer.named_buffers()}
    named = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    gradient = _arrays_as_ours({**buffers, **named}, setup.config)
    return {path: g for path, g in gradient.items() if not path.endswith(("/mean", "/var"))}


def _distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[float, float]:
    squares = {path: (np.sum((a[path] - b[path]) ** 2.0), np.sum(b[path] ** 2.0)) for path in b}
    whole = np.sqrt(sum(d for d, _ in squares.values()) / sum(n for _, n in squares.values()))
    return float(whole), float(max(np.sqrt(d / n) for d, n in squares.values()))


def train_ours(setup: Setup) -> dict[str, Any]:
    """A run of ours, evaluated at its end."""
    start = time.perf_counter()
    state = setup.fresh_state()
    for batch, _ in setup.batches(0):
        state, metrics = setup.train_step(state, batch)
        jax.block_until_ready(metrics)
    seconds = time.perf_counter() - start
    score = setup.evaluator(state.variables)
    return {"top1": score.top1, "examples": score.examples, "training_s": seconds}


def train_torch(setup: Setup) -> dict[str, Any]:
    """PyTorch's run on the same batches from the same weights."""
    start = time.perf_counter()
    peer, optimizer = _peer(setup, setup.fresh_state(), torch.float32)
    rate = make_schedule(setup.recipe, steps_per_epoch=setup.order.steps_per_epoch)
    for step, (_, images, targets) in enumerate(_batches(setup, setup.total_steps)):
        _torch_step(peer, optimizer, images, targets, float(rate(step)))
    seconds = time.perf_counter() - start
    peer.eval()
    right = count = 0
    with torch.no_grad():
        for batch in setup.test_batches():
            images = _normalized(setup, batch)
            best = peer(_to_torch(images, torch.float32)).argmax(1).numpy()
            weights = np.asarray(batch["weights"])
            right += int(((best == np.asarray(batch["labels"])) * weights).sum())
            count += int(weights.sum())
    return {"top1": right / count, "examples": count, "training_s": seconds}


SIDES = {"resnetjax": train_ours, "torch": train_torch}


def _batches(setup: Setup, steps: int) -> Iterator[tuple[Any, Any, Any]]:
    """Batches, and what the net sees of them: the same float32 images for both sides."""
    see = jax.jit(functools.partial(vary, setup.recipe, setup.config))
    for step, (batch, _) in enumerate(setup.batches(0)):
        if step == steps:
            return
        images, targets, _ = see(jax.random.key(0), batch)
        yield batch, images, targets


@functools.cache
def _normalizer(preprocess: Any) -> Any:
    from resnetjax.data.preprocess import normalize

    return jax.jit(lambda images: normalize(images, preprocess))


def _normalized(setup: Setup, batch: Any) -> Any:
    return _normalizer(setup.recipe.preprocess)(batch["images"])


def _peer(
    setup: Setup, state: Any, dtype: torch.dtype, activate: Activation = torch.relu
) -> tuple[ResNet20, torch.optim.SGD]:
    arrays = save_arrays(torch_dialects.AKAMASTER, flatten(state.variables), setup.config)
    peer = ResNet20(activate).to(dtype)
    missing, unexpected = peer.load_state_dict(
        {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, strict=False
    )
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    chosen = setup.recipe.optimizer
    optimizer = torch.optim.SGD(
        peer.parameters(),
        lr=chosen.learning_rate,
        momentum=chosen.momentum,
        weight_decay=chosen.weight_decay,
    )
    return peer, optimizer


def _torch_loss(peer: ResNet20, images: Any, targets: Any) -> torch.Tensor:
    dtype = peer.linear.weight.dtype
    logits = peer(_to_torch(images, dtype))
    return nn.functional.cross_entropy(logits, torch.from_numpy(np.array(targets)).argmax(1))


def _torch_step(
    peer: ResNet20, optimizer: torch.optim.SGD, images: Any, targets: Any, rate: float
) -> float:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    loss = _torch_loss(peer, images, targets)
    loss.backward()
    optimizer.step()
    return loss.item()


def _to_torch(images: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(dtype)


def _as_ours(peer: ResNet20, config: ResNetConfig) -> dict[str, np.ndarray]:
    return _arrays_as_ours({n: t.numpy() for n, t in peer.state_dict().items()}, config)


def _arrays_as_ours(arrays: dict[str, Any], config: ResNetConfig) -> dict[str, np.ndarray]:
    return load_arrays(torch_dialects.AKAMASTER, arrays, config, source="torch")[0]


def _biased(theirs: np.ndarray, path: str, setup: Setup, steps: int) -> np.ndarray:
    """PyTorch's running variance (of n / (n - 1) times the batch's) as ours is: the batch's own."""
    edge = setup.recipe.data.train_px
    stage = {"stem": 1, "stage1": 1, "stage2": 2, "stage3": 4}[path.split("/")[0].split("_")[0]]
    count = setup.recipe.batch_size * (edge // stage) ** 2
    first = setup.config.norm_decay**steps  # what is left of the ones that it began with
    return first + (theirs - first) * (count - 1) / count
