"""`scripts/benchmark.py infer` and `train`: a grid of cases, every peer of each timed in turn."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

# Before JAX and Keras are imported, here and in the sides' processes: these share the device's
# memory, Keras runs on JAX, and JAX finds nothing compiled that an earlier run has left.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import jax.numpy as jnp
from speed_cases import Case
from speed_peers import PEERS, Peer
from speed_sides import Side
from timing import environment, is_installed, spread, timed_in_turn

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision", "timm", "keras",
    "onnxruntime", "openvino",
)  # fmt: skip
Grid = Literal["default", "full"]
Kind = Literal["infer", "train"]
LIMITS = {"infer": {"plain Flax": 1.3}, "train": {}}
# Rounds that are timed end with the first of these.
ROUNDS, SECONDS = 15, {"default": 25.0, "full": 60.0}
# Of a whole grid: no case is begun that would end later, if it took as long as the longest before.
MOST_S = {"default": 540.0, "full": float("inf")}


def cases(kind: Kind, grid: Grid, *, gpu: bool) -> list[Case]:
    """What is measured on a kind of device."""
    if gpu:
        # The most telling first, should the time run out.
        batches = (1, 512, 32, 128, 8) if kind == "infer" else (512, 64, 256)
        found = [Case(kind, "resnet50", batch, "bfloat16", gpu=True) for batch in batches]
        others = ("resnet18", "resnet101", "resnetv2_50")
        more = [Case(kind, net, 256, "bfloat16", gpu=True) for net in others]
    elif kind == "infer":
        found = [Case(kind, "resnet50", batch) for batch in (1, 8, 32)]
        nets = ("resnet18", "resnet101", "resnetv2_50")
        more = [Case(kind, net, batch) for net in nets for batch in (1, 8)]
    else:
        found = [Case(kind, "cifar_resnet20", 128)]
        more = [Case(kind, net, 16) for net in ("resnet18", "resnet50")]
    return found + (more if grid == "full" else [])


def compare(
    kind: Kind, grid: Grid, names: Sequence[str], limit_s: float | None = None
) -> Iterator[dict[str, Any]]:
    """The result so far, for JSON, after each case of a grid.

    Args:
        kind: What is measured.
        grid: Of which nets and batches.
        names: Of peers, beside ours; empty for all that the grid has.
        limit_s: After which a case begins no further round; None is the grid's own.
    """
    gpu = jax.default_backend() == "gpu"
    unknown = set(names) - set(PEERS)
    if unknown:
        raise SystemExit(f"no peers are called {sorted(unknown)}: use {list(PEERS)}")
    chosen = {
        name: peer
        for name, peer in PEERS.items()
        if name in ("resnetjax", *names)
        or (not names and (grid == "full" or not peer.full_only) and (peer.on_gpu or not gpu))
    }
    # On a machine with other work only the ratios say something.
    load, rows, left_out = os.getloadavg(), [], []
    begun, longest = time.perf_counter(), 0.0
    limit_s = SECONDS[grid] if limit_s is None else limit_s
    for case in cases(kind, grid, gpu=gpu):
        started = time.perf_counter()
        if started - begun + longest <= MOST_S[grid]:
            rows.append(_measured(case, chosen, limit_s))
            longest = max(longest, time.perf_counter() - started)
        else:
            left_out.append(f"{case.net}, batch {case.batch}")
            _tell(f"{left_out[-1]}: left out, it might end after {MOST_S[grid]:.0f} s")
        yield {
            "benchmark": {"infer": "inference", "train": "training steps"}[kind],
            "environment": environment(*PACKAGES),
            "device": jax.devices()[0].device_kind if gpu else "cpu",
            "load_average": {"before": load, "after": os.getloadavg()},
            "cases": list(rows),
            "left_out": list(left_out),
            "limits": LIMITS[kind],
        }


def _measured(case: Case, chosen: dict[str, Peer], limit_s: float) -> dict[str, Any]:
    sides: dict[str, Side] = {}
    peers: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        for name, peer in chosen.items():
            if case.kind not in peer.kinds or not getattr(case.names, peer.needs):
                continue
            missing = [package for package in peer.packages if not is_installed(package)]
            if missing:
                peers[name] = {"absent": f"{', '.join(missing)} not installed"}
                continue
            try:
                sides[name] = stack.enter_context(Side(name, case))
            except RuntimeError as error:
                if name == "resnetjax":
                    raise
                peers[name] = {"absent": str(error)}
                _tell(f"{case.net}, batch {case.batch}: {name} is absent: {error}")
                continue
            peers[name] = dict(sides[name].found)
            _tell(f"{case.net}, batch {case.batch}: {name} ready in {peers[name]['ready_s']:.1f} s")
        begun = time.perf_counter()
        calls = {name: side.run for name, side in sides.items()}
        seconds = timed_in_turn(calls, runs=ROUNDS, limit_s=limit_s, clock=lambda run: run())
        spent = time.perf_counter() - begun
    peak = _matmul_flops(case.dtype)
    for name, values in seconds.items():
        pairs = zip(values, seconds["resnetjax"], strict=True)
        rate = case.batch / spread(values)["median"]
        peers[name] |= {
            "seconds": spread(values),
            "images_per_second": rate,
            "flops_per_second": rate * case.flops / case.batch,
            "share_of_matmul": rate * case.flops / case.batch / peak,
            "ours_to_theirs": spread([theirs / ours for theirs, ours in pairs]),
        }
    rounds = len(seconds["resnetjax"])
    _tell(f"{case.net}, batch {case.batch}: {rounds} rounds timed in {spent:.0f} s")
    row = {"net": case.net, "batch": case.batch, "dtype": case.dtype, "peers": peers}
    return {**row, "matmul_flops_per_second": peak}


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _matmul_flops(dtype: str) -> float:
    """What the device does in a large matrix product: the peak that shares are taken of."""
    edge = 8192 if jax.default_backend() == "gpu" else 2048
    a = jnp.ones((edge, edge), dtype)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    seconds = timed_in_turn({"product": lambda: jax.block_until_ready(product(a))}, runs=7)
    return 2 * edge**3 / min(seconds["product"])
