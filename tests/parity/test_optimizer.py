"""Thirty steps in float64 beside the optimisers, clipping and schedules of torch and timm.

Two differences are known and pinned here: timm's LARS keeps the learning rate outside its momentum
(MLPerf's, and so ours, inside), and torch's Nesterov Muon lacks the bias correction of optax's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import timm.optim
import timm.scheduler
import timm.utils
import torch

from resnetjax.train.optimizer import make_optimizer, make_schedule
from resnetjax.train.recipe import Optimizer, Recipe, Schedule

pytestmark = pytest.mark.parity

STEPS = 30
RATE = 0.125  # exact in float32
SHAPES = {
    "conv1": {"kernel": (3, 3, 2, 6)},
    "conv2": {"kernel": (1, 1, 6, 8)},
    "norm1": {"scale": (8,), "bias": (8,)},
    "head": {"kernel": (8, 5), "bias": (5,)},
}
NAMES = [(module, leaf) for module, shapes in SHAPES.items() for leaf in shapes]


def _start() -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(SHAPES[name[0]][name[1]]) for name in NAMES}


def _noise(step: int) -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng([1, step])
    return {name: 0.5 * rng.standard_normal(SHAPES[name[0]][name[1]]) for name in NAMES}


def _to_torch(array: np.ndarray) -> torch.Tensor:
    """Kernels as torch has them: outputs, inputs, height, width."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,))
    return torch.from_numpy(np.ascontiguousarray(array.transpose(order)))


def _from_torch(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, (0,)))


def _recipe(schedule: Schedule | None = None, **fields: object) -> Recipe:
    chosen = Optimizer(**{"learning_rate": RATE, "weight_decay": 0.01, **fields})
    schedule = schedule or Schedule(kind="constant")
    return Recipe(optimizer=chosen, schedule=schedule, epochs=STEPS, batch_size=8)


def _ours(recipe: Recipe) -> dict[tuple[str, str], np.ndarray]:
    with jax.enable_x64(True):
        params: dict = {module: {} for module in SHAPES}
        for (module, leaf), value in _start().items():
            params[module][leaf] = jnp.asarray(value)
        optimizer = make_optimizer(recipe, params, steps_per_epoch=1)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for step in range(STEPS):
            noise = _noise(step)
            gradients = {
                module: {leaf: value + noise[module, leaf] for leaf, value in leaves.items()}
                for module, leaves in params.items()
            }
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return {(m, leaf): np.asarray(params[m][leaf]) for m, leaf in NAMES}


def _theirs(make, *, decayed, decay=0.01, clip=None, rates=None):
    """The parameters after as many steps of a torch optimiser, in two groups: decayed or not."""
    tensors = {n: torch.nn.Parameter(_to_torch(v)) for n, v in _start().items()}
    groups = [
        {"params": [t for n, t in tensors.items() if n[1] in decayed], "weight_decay": decay},
        {"params": [t for n, t in tensors.items() if n[1] not in decayed], "weight_decay": 0.0},
    ]
    optimizer = make([group for group in groups if group["params"]])
    for step in range(STEPS):
        noise = _noise(step)
        for name, tensor in tensors.items():
            tensor.grad = tensor.detach() + _to_torch(noise[name])
        if clip:
            clip(tensors)
        for group in optimizer.param_groups:
            group["lr"] = rates[step] if rates else RATE
        optimizer.step()
    return {name: _from_torch(tensor) for name, tensor in tensors.items()}


def _assert_same(ours, theirs, *, rtol=1e-13):
    for name, value in ours.items():
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, theirs[name], rtol=rtol, atol=rtol, err_msg=str(name))


ALL = ("kernel", "bias", "scale")


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"momentum": 0.0}, {}),
        ({"momentum": 0.9}, {"momentum": 0.9}),
        ({"momentum": 0.875, "nesterov": True}, {"momentum": 0.875, "nesterov": True}),
    ],
)
@pytest.mark.parametrize("which", ["all", "kernels"])
def test_sgd_is_that_of_torch(fields, arguments, which):
    theirs = _theirs(
        lambda groups: torch.optim.SGD(groups, lr=RATE, **arguments),
        decayed=ALL if which == "all" else ("kernel",),
    )
    _assert_same(_ours(_recipe(decayed=which, **fields)), theirs)


def test_sgd_under_a_falling_rate_is_that_of_torch():
    schedule = Schedule(kind="steps", milestones=(0.5,), milestone_factor=0.5)
    rates = [RATE] * (STEPS // 2) + [RATE / 2] * (STEPS // 2)
    theirs = _theirs(
        lambda groups: torch.optim.SGD(groups, lr=RATE, momentum=0.9), decayed=ALL, rates=rates
    )
    _assert_same(_ours(_recipe(schedule, decayed="all")), theirs)


def test_adamw_is_that_of_torch():
    theirs = _theirs(
        lambda groups: torch.optim.AdamW(groups, lr=RATE, betas=(0.8, 0.99), eps=1e-6),
        decayed=("kernel",),
    )
    _assert_same(_ours(_recipe(name="adamw", betas=(0.8, 0.99), eps=1e-6)), theirs)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_lamb_is_that_of_timm(clip_norm):
    theirs = _theirs(
        lambda groups: timm.optim.Lamb(groups, lr=RATE, max_grad_norm=clip_norm),
        decayed=("kernel",),
    )
    ours = _ours(_recipe(name="lamb", eps=1e-6, clip_norm=clip_norm))
    _assert_same(ours, theirs)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_at_a_constant_rate_is_that_of_timm(nesterov):
    theirs = _theirs(
        lambda groups: timm.optim.Lars(
            groups, lr=RATE, momentum=0.9, nesterov=nesterov, trust_coeff=0.05, eps=0.0
        ),
        decayed=("kernel",),
    )
    ours = _ours(_recipe(name="lars", trust_coefficient=0.05, nesterov=nesterov))
    _assert_same(ours, theirs)


def test_lars_under_a_falling_rate_keeps_the_rate_in_its_momentum_and_timm_does_not():
    schedule = Schedule(kind="steps", milestones=(0.5,), milestone_factor=0.5)
    rates = [RATE] * (STEPS // 2) + [RATE / 2] * (STEPS // 2)
    theirs = _theirs(
        lambda groups: timm.optim.Lars(groups, lr=RATE, momentum=0.9, trust_coeff=0.05, eps=0.0),
        decayed=("kernel",),
        rates=rates,
    )
    ours = _ours(_recipe(schedule, name="lars", trust_coefficient=0.05))
    gaps = [np.abs(ours[name] - theirs[name]).max() for name in NAMES]
    assert min(gaps) > 1e-3


@pytest.fixture
def muon_in_float64(monkeypatch):
    """Lets torch orthogonalise in float64; it does so in bfloat16."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())


def _torch_muon(nesterov: bool) -> dict[tuple[str, str], np.ndarray]:
    """Of the convolutions, flattened by hand: torch's takes matrices only."""
    weights = {n: v for n, v in _start().items() if v.ndim == 4}
    matrices = {
        n: torch.nn.Parameter(torch.from_numpy(v.reshape(-1, v.shape[-1]).T.copy()))
        for n, v in weights.items()
    }
    optimizer = torch.optim.Muon(
        matrices.values(), lr=RATE, weight_decay=0.01, momentum=0.9, nesterov=nesterov,
        eps=1e-12, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    for step in range(STEPS):
        noise = _noise(step)
        for n, matrix in matrices.items():
            flat = noise[n].reshape(-1, weights[n].shape[-1]).T
            matrix.grad = matrix.detach() + torch.from_numpy(flat.copy())
        optimizer.step()
    return {n: m.detach().numpy().T.reshape(weights[n].shape) for n, m in matrices.items()}


def test_muon_is_that_of_torch(muon_in_float64):
    theirs = _torch_muon(nesterov=False)
    ours = _ours(_recipe(name="muon", eps=1e-12))
    # 30 x 5 Newton-Schulz steps, each of slope up to 3.4, enlarge rounding.
    _assert_same({name: ours[name] for name in theirs}, theirs, rtol=1e-9)


def test_nesterov_muon_has_a_bias_correction_that_torch_lacks(muon_in_float64):
    theirs = _torch_muon(nesterov=True)
    ours = _ours(_recipe(name="muon", eps=1e-12, nesterov=True))
    gaps = [np.abs(ours[name] - value).max() for name, value in theirs.items()]
    assert 1e-4 < max(gaps) < 0.2


def test_what_muon_leaves_is_adamw_as_in_timm():
    theirs = _theirs(
        lambda groups: timm.optim.AdamWLegacy(groups, lr=RATE, eps=1e-8), decayed=("kernel",)
    )
    ours = _ours(_recipe(name="muon", eps=1e-8))
    rest = [name for name in NAMES if len(SHAPES[name[0]][name[1]]) < 4]
    _assert_same({name: ours[name] for name in rest}, theirs)


def test_adaptive_clipping_is_that_of_timm_which_leaves_the_head_out():
    def clip(tensors):
        # timm/train.py: model_parameters(model, exclude_head=True) drops the last two.
        timm.utils.agc.adaptive_clip_grad(list(tensors.values())[:-2], clip_factor=0.05)

    theirs = _theirs(
        lambda groups: torch.optim.SGD(groups, lr=RATE, momentum=0.9),
        decayed=("kernel",),
        clip=clip,
    )
    _assert_same(_ours(_recipe(clip_adaptive=0.05)), theirs)
    unclipped = _ours(_recipe())
    assert np.abs(unclipped["conv1", "kernel"] - theirs["conv1", "kernel"]).max() > 1e-2


def test_norm_clipping_is_that_of_torch():
    theirs = _theirs(
        lambda groups: torch.optim.SGD(groups, lr=RATE, momentum=0.9),
        decayed=("kernel",),
        clip=lambda tensors: torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0),
    )
    # torch divides by the norm + 1e-6.
    _assert_same(_ours(_recipe(clip_norm=1.0)), theirs, rtol=2e-6)


# ---- Schedules. Ours is float32: two units in its last place of the peak.


def _rates(schedule: Schedule, *, steps_per_epoch: int, epochs: int) -> list[float]:
    recipe = Recipe(
        optimizer=Optimizer(learning_rate=0.5), schedule=schedule, epochs=epochs, batch_size=8
    )
    rate = jax.jit(make_schedule(recipe, steps_per_epoch=steps_per_epoch))
    return [float(rate(step)) for step in range(steps_per_epoch * epochs)]


def _torch_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


@pytest.mark.parametrize("final", [0.0, 0.01])
def test_warmup_and_cosine_are_those_of_torch_stepped_every_iteration(final):
    optimizer = _torch_optimizer()
    scheduler = torch.optim.lr_scheduler
    rise = scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=50)
    fall = scheduler.CosineAnnealingLR(optimizer, T_max=250, eta_min=0.5 * final)
    both = scheduler.SequentialLR(optimizer, [rise, fall], milestones=[50])
    theirs = []
    for _ in range(300):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    ours = _rates(
        Schedule(warmup_epochs=5, warmup_factor=0.01, final_factor=final),
        steps_per_epoch=10,
        epochs=30,
    )
    assert np.abs(np.subtract(ours, theirs)).max() < 1e-7


def test_warmup_and_cosine_are_those_of_timm_stepped_every_update():
    optimizer = _torch_optimizer()
    scheduler = timm.scheduler.CosineLRScheduler(
        optimizer, t_initial=250, lr_min=1e-6, warmup_t=50, warmup_lr_init=1e-4,
        warmup_prefix=True, t_in_epochs=False,
    )  # fmt: skip
    theirs = []
    for step in range(300):
        scheduler.step_update(step)
        theirs.append(optimizer.param_groups[0]["lr"])
    schedule = Schedule(warmup_epochs=5, warmup_factor=1e-4 / 0.5, final_factor=1e-6 / 0.5)
    ours = _rates(schedule, steps_per_epoch=10, epochs=30)
    assert np.abs(np.subtract(ours, theirs)).max() < 1e-7


def test_milestones_and_polynomial_are_those_of_torch():
    pairs = {
        Schedule(kind="steps", milestones=(0.5, 0.75)): lambda optimizer: (
            torch.optim.lr_scheduler.MultiStepLR(optimizer, [150, 225])
        ),
        Schedule(kind="polynomial"): lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(
            optimizer, total_iters=300, power=2.0
        ),
    }
    for schedule, make in pairs.items():
        optimizer = _torch_optimizer()
        scheduler, theirs = make(optimizer), []
        for _ in range(300):
            theirs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        ours = _rates(schedule, steps_per_epoch=10, epochs=30)
        assert np.abs(np.subtract(ours, theirs)).max() < 1e-7
