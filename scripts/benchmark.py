"""Speed in pairs: ours and theirs, interleaved in one run, medians and spread; results as JSON.

    python scripts/benchmark.py infer [--grid full] [--out benchmarks/results/infer-cpu.json]
    python scripts/benchmark.py train [--grid full] [--out benchmarks/results/train-cpu.json]
    python scripts/benchmark.py load [--out benchmarks/results/load-cpu.json]
    python scripts/benchmark.py pipeline PHOTOGRAPHS [--out benchmarks/results/pipeline-cpu.json]
    python scripts/benchmark.py loop CIFAR10 [--out benchmarks/results/loop-cpu.json]
    python scripts/benchmark.py train-parity CIFAR10 [--out FILE]

The peers (torch, torchvision) must be installed: `make parity-env` makes an environment that has
them, in .venv-parity.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tyro
from timing import environment, extra_peak, report, spread, timed_in_turn, write

ROOT = Path(__file__).parent.parent
IMAGES = (".jpg", ".jpeg")
LIMITS = {
    "time_ratio": 1.5,
    "peak_memory_over_file": 2.2,
    "import_added_s": 0.15,
    "h5_time_ratio": 3.0,
}


def main() -> None:
    """Runs one of the benchmarks."""
    from finetune_digits import finetune

    verbs = {
        "infer": functools.partial(compare, "infer"),
        "train": functools.partial(compare, "train"),
        "load": load,
        "pipeline": pipeline,
        "loop": loop,
        "train-parity": train_parity,
        "finetune": finetune,
    }
    children = {"memory-of": memory_of, "imports": imports}
    tyro.extras.subcommand_cli_from_dict({**verbs, **children})


def compare(
    kind: Literal["infer", "train"],
    *,
    grid: Literal["default", "full"] = "default",
    peers: tuple[str, ...] = (),
    seconds: float | None = None,
    out: Path | None = None,
) -> None:
    """Compare `rj.compile_inference`, or training steps, with the peers that are installed.

    Args:
        kind: Which of the two.
        grid: "full" takes more nets, and every peer.
        peers: These alone, by their names in the table.
        seconds: After which a case begins no further round, once three are timed; 25 by default,
            60 in the full grid.
        out: Where the JSON goes after each case, beside the terminal at the end; docs/benchmarks.md
            is renewed from it.
    """
    import speed
    import speed_tables

    result: dict[str, Any] = {}
    for result in speed.compare(kind, grid, peers, seconds):
        write(result, out)
        speed_tables.renew()
    report(result, out)


def load(*, runs: int = 15, out: Path | None = None) -> None:
    """Compare `rj.load` of a ResNet-50 `.pth` with building torchvision's model and filling it.

    And our reader of Keras's `.h5` with h5py, on a ResNet-50 of keras.applications.

    Args:
        runs: Pairs that are timed, after two that are not.
        out: Where the JSON goes, beside the table on the terminal.
    """
    _install_torchvision()
    import jax
    import torch
    import torchvision

    import resnetjax as rj

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.pth"
        torch.save(torchvision.models.resnet50().state_dict(), path)

        def ours() -> None:
            jax.block_until_ready(rj.load(path).variables)

        def theirs() -> None:
            model = torchvision.models.resnet50()
            model.load_state_dict(torch.load(path, weights_only=True))

        seconds = timed_in_turn({"resnetjax": ours, "torch": theirs}, runs=runs)
        keras_path = Path(folder) / "resnet50.h5"
        model, variables = rj.create("keras_resnet50")
        rj.save(rj.Pretrained(model=model, variables=variables), keras_path, dialect="keras")
        h5_seconds = timed_in_turn(_readers(keras_path), runs=runs)
        peaks = {name: _child("memory-of", name, str(path))["peak_bytes"] for name in seconds}
        size = path.stat().st_size
    imported = [_child("imports") for _ in range(7)]
    pairs = zip(seconds["resnetjax"], seconds["torch"], strict=True)
    result = {
        "benchmark": "load ResNet-50 from .pth, warm process",
        "environment": environment("jax", "jaxlib", "flax", "torch", "torchvision", "numpy"),
        "file_bytes": size,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "time_ratio": spread([mine / peer for mine, peer in pairs]),
        "extra_peak_over_file": {name: peak / size for name, peak in peaks.items()},
        "h5_seconds": {name: spread(values) for name, values in h5_seconds.items()},
        "h5_time_ratio": spread(
            [mine / peer for mine, peer in zip(*h5_seconds.values(), strict=True)]
        ),
        "import_added_s": spread([child["import_s"] for child in imported]),
        "import_and_loader_added_s": spread([child["with_loader_s"] for child in imported]),
        "limits": LIMITS,
    }
    report(result, out)


def _readers(path: Path) -> dict[str, Callable[[], object]]:
    """Two ways to have every array of an HDF5 file in memory."""
    import h5py
    import numpy as np

    from resnetjax.weights import files

    def theirs() -> None:
        arrays = {}
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item: (
                    arrays.update({name: np.asarray(item)})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )

    return {
        "resnetjax": lambda: [np.array(array) for array in files.read(path).arrays.values()],
        "h5py": theirs,
    }


def pipeline(
    photographs: tyro.conf.Positional[Path],
    *,
    images: int = 5000,
    cores: int = 2,
    runs: int = 5,
    out: Path | None = None,
) -> None:
    """Compare training's input with PyTorch's DataLoader: JPEG files to batches of uint8.

    Both crop at random, resize to 224 pixels with antialiasing, and mirror; both read files.

    Args:
        photographs: A folder of JPEG files.
        images: The files are repeated to so many.
        cores: Threads of ours, worker processes of PyTorch's.
        runs: Pairs that are timed, after two that are not.
        out: Where the JSON goes, beside the terminal.
    """
    _install_torchvision()
    import loaders

    paths = sorted(path for path in photographs.iterdir() if path.suffix.lower() in IMAGES)
    paths = [paths[i % len(paths)] for i in range(images)]
    with loaders.ours(paths, cores) as ours, loaders.theirs(paths, cores) as theirs:
        seconds = timed_in_turn({"resnetjax": ours, "torch": theirs}, runs=runs)
    rates = {name: [images / value for value in values] for name, values in seconds.items()}
    pairs = zip(rates["resnetjax"], rates["torch"], strict=True)
    result = {
        "benchmark": "JPEG files to batches of 128 x 224 x 224 x 3 uint8, cropped and mirrored",
        "environment": environment("jax", "pillow", "simplejpeg", "torch", "torchvision", "numpy"),
        "images": images,
        "cores_used": cores,
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "images_per_second_and_core": spread([rate / cores for rate in rates["resnetjax"]]),
        "ratio": spread([mine / peer for mine, peer in pairs]),
        "limits": {"images_per_second_and_core": 500, "ratio": 1.3},
    }
    report(result, out)


def loop(data: tyro.conf.Positional[str], *, steps: int = 100, out: Path | None = None) -> None:
    """Measure what a training loop spends outside XLA: CIFAR ResNet-20, batch 128, all of it on.

    Args:
        data: CIFAR-10, in any layout that training reads.
        steps: How many are timed, after one that compiles.
        out: Where the JSON goes, beside the terminal.
    """
    import dataclasses

    from resnetjax.train.loop import train
    from resnetjax.train.recipe import read_recipe

    recipe = read_recipe(ROOT / "configs" / "cifar10_resnet.py")
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, path=data),
        epochs=(steps + 1) / (50_000 // recipe.batch_size),
    )
    with tempfile.TemporaryDirectory() as folder:
        spent = train(recipe, folder).spent
    shares = spent.shares()
    result = {
        "benchmark": "the host's time in a training loop: CIFAR ResNet-20, batch 128, float32",
        "environment": environment("jax", "jaxlib", "flax", "numpy"),
        "steps": spent.steps,
        "ms_per_step": 1000 * spent.seconds / spent.steps,
        "images_per_second": recipe.batch_size * spent.steps / spent.seconds,
        "shares": shares,
        "outside_xla": shares["data"] + shares["other"],
        "limits": {"outside_xla": 0.05},
    }
    report(result, out)


def train_parity(
    data: tyro.conf.Positional[str],
    *,
    parts: tuple[str, ...] = ("trajectory", "gradients", "runs"),
    epochs: int = 5,
    seeds: tuple[int, ...] = (0, 1, 2),
    out: Path | None = None,
) -> None:
    """Train CIFAR ResNet-20 beside PyTorch: the same batches, the same initial weights.

    Args:
        data: CIFAR-10, in any layout that training reads.
        parts: Which comparisons: float64 trajectories, float32 gradients, whole float32 runs.
        epochs: Of the runs in float32.
        seeds: Of the runs; those that are in `out` already stay.
        out: Where the JSON goes, beside the terminal; parts that are there already stay.
    """
    import train_parity

    found = train_parity.compare(data, parts=parts, epochs=epochs, seeds=seeds, out=out)
    packages = environment("jax", "jaxlib", "flax", "optax", "torch", "numpy")
    name = "training of CIFAR ResNet-20 beside PyTorch"
    report({"benchmark": name, "environment": packages, **found}, out)


def memory_of(side: tyro.conf.Positional[str], path: tyro.conf.Positional[Path]) -> None:
    """Print the extra peak memory of one load in this process (a child of `load`)."""
    if side == "resnetjax":
        import jax

        import resnetjax as rj

        warnings.simplefilter("ignore")
        _, variables = rj.create("cifar_resnet20")
        jax.block_until_ready(variables)  # so that the backend is up
        peak = extra_peak(lambda: rj.load(path))
    else:
        _install_torchvision()
        import torch
        import torchvision

        def fill() -> Any:
            model = torchvision.models.resnet50()
            model.load_state_dict(torch.load(path, weights_only=True))
            return model

        torchvision.models.resnet18()
        peak = extra_peak(fill)
    print(json.dumps({"peak_bytes": peak}))


def imports() -> None:
    """Print what `import resnetjax` and its loader add to jax and flax (a child of `load`)."""
    import flax
    import jax

    jax.devices()
    start = time.perf_counter()
    import resnetjax

    bare = time.perf_counter() - start
    resnetjax.load  # noqa: B018 - names are imported when they are first used
    with_loader = time.perf_counter() - start
    print(json.dumps({"import_s": bare, "with_loader_s": with_loader, "flax": flax.__version__}))


def _child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _install_torchvision() -> None:
    """Makes torchvision importable where it was installed without its compiled operators."""
    sys.path.insert(0, str(ROOT / "tests" / "parity"))
    import torchvision_shim

    torchvision_shim.install()


if __name__ == "__main__":
    main()
