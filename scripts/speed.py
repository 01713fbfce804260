"""`scripts/benchmark.py infer` and `train`: a grid of cases, every peer of each timed in turn."""

import gc
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

# Before JAX and Keras are imported: PyTorch needs memory on the same device, and Keras JAX.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
from speed_peers import PEERS, Case, Peer, Run
from timing import environment, extra_peak, is_installed, spread, timed_in_turn

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision", "timm", "keras",
    "onnxruntime", "openvino",
)  # fmt: skip
Grid = Literal["default", "full"]
Kind = Literal["infer", "train"]
LIMITS = {"infer": {"plain Flax": 1.3}, "train": {}}
# Rounds that are timed end with the first of these.
ROUNDS, SECONDS = 15, {"default": 25.0, "full": 60.0}


def cases(kind: Kind, grid: Grid, *, gpu: bool) -> list[Case]:
    """What is measured on a kind of device."""
    if gpu:
        batches = (1, 8, 32, 128, 512) if kind == "infer" else (64, 256, 512)
        found = [Case(kind, "resnet50", batch, "bfloat16") for batch in batches]
        others = ("resnet18", "resnet101", "resnetv2_50")
        more = [Case(kind, net, 256, "bfloat16") for net in others]
    elif kind == "infer":
        found = [Case(kind, "resnet50", batch) for batch in (1, 8, 32)]
        nets = ("resnet18", "resnet101", "resnetv2_50")
        more = [Case(kind, net, batch) for net in nets for batch in (1, 8)]
    else:
        found = [Case(kind, "cifar_resnet20", 128)]
        more = [Case(kind, net, 16) for net in ("resnet18", "resnet50")]
    return found + (more if grid == "full" else [])


def compare(kind: Kind, grid: Grid, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The result so far, for JSON, after each case of a grid.

    Args:
        kind: What is measured.
        grid: Of which nets and batches.
        names: Of peers, beside ours; empty for all that the grid has.
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
    load, rows = os.getloadavg(), []
    for case in cases(kind, grid, gpu=gpu):
        rows.append(_measured(case, chosen, SECONDS[grid], gpu=gpu))
        yield {
            "benchmark": {"infer": "inference", "train": "training steps"}[kind],
            "environment": environment(*PACKAGES),
            "device": jax.devices()[0].device_kind if gpu else "cpu",
            "load_average": {"before": load, "after": os.getloadavg()},
            "cases": list(rows),
            "limits": LIMITS[kind],
        }


def _measured(case: Case, chosen: dict[str, Peer], limit_s: float, *, gpu: bool) -> dict[str, Any]:
    runs: dict[str, Run] = {}
    peers: dict[str, dict[str, Any]] = {}
    for name, peer in chosen.items():
        if case.kind not in peer.kinds or not getattr(case.names, peer.needs):
            continue
        missing = [package for package in peer.packages if not is_installed(package)]
        if missing:
            peers[name] = {"absent": f"{', '.join(missing)} not installed"}
            continue
        start = time.perf_counter()
        try:
            run = peer.make(case)
            run()
        except Exception as error:  # what one peer cannot do must not end the others' measurement
            if name == "resnetjax":
                raise
            lines = str(error).strip().splitlines() or [""]
            peers[name] = {"absent": f"{type(error).__name__}: {lines[0][:200]}"}
            continue
        peers[name] = {"ready_s": time.perf_counter() - start}
        peers[name]["peak_extra_bytes"] = _peak(run, gpu=gpu, torch="torch" in peer.packages)
        runs[name] = run
        print(f"{case.net} {case.batch} {name}: ready", flush=True)
    seconds = timed_in_turn(runs, runs=ROUNDS, limit_s=limit_s)
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
    row = {"net": case.net, "batch": case.batch, "dtype": case.dtype, "peers": peers}
    runs.clear()
    jax.clear_caches()
    gc.collect()
    return {**row, "matmul_flops_per_second": peak}


def _peak(run: Run, *, gpu: bool, torch: bool) -> int | None:
    """Bytes that one call takes beyond what was held before it; None where nobody counts them."""
    if not gpu:
        return extra_peak(run)
    if torch:
        import torch as library

        library.cuda.reset_peak_memory_stats()
        before = library.cuda.memory_allocated()
        run()
        return library.cuda.max_memory_allocated() - before
    statistics = jax.devices()[0].memory_stats() or {}
    # Of all JAX programs until now, which only grows: cases are ordered by size.
    return statistics.get("peak_bytes_in_use")


def _matmul_flops(dtype: str) -> float:
    """What the device does in a large matrix product: the peak that shares are taken of."""
    edge = 8192 if jax.default_backend() == "gpu" else 2048
    a = jnp.ones((edge, edge), dtype)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    seconds = timed_in_turn({"product": lambda: jax.block_until_ready(product(a))}, runs=7)
    return 2 * edge**3 / min(seconds["product"])
