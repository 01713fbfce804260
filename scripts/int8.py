"""What eight-bit integers cost and save: ONNX on a CPU, quantised and not, in interleaved pairs.

    python scripts/int8.py WEIGHTS CIFAR10 [--out benchmarks/results/int8-cpu.json]

Speed is that of a ResNet-50, which does not depend on its weights; accuracy that of a CIFAR net.
"""

import itertools
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from benchmark import environment, report, spread, timed_in_turn

import resnetjax as rj
from resnetjax.infer import artifact


def main(
    weights: tyro.conf.Positional[Path],
    cifar10: tyro.conf.Positional[Path],
    *,
    images: int = 512,
    runs: int = 15,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Measures both.

    Args:
        weights: Of a net for CIFAR-10.
        cifar10: An .npz with `train_jpeg`, `train_offsets`, `test_jpeg`, `test_offsets` and
            `test_labels`: the files end to end, and where each begins.
        images: Training images to calibrate on.
        runs: Pairs that are timed, after two that are not.
        out: Where the JSON goes, beside the terminal.
    """
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "benchmark": "ONNX in float32 and in eight-bit integers, by onnxruntime",
            "environment": environment("onnx", "onnxruntime", "numpy"),
            "resnet50": _speed(Path(folder), runs=runs),
            "cifar10": _accuracy(Path(folder), weights, cifar10, images=images),
        }
    report(result, out)


def _speed(folder: Path, *, runs: int) -> dict[str, Any]:
    model, variables = rj.create("resnet50", rng=0)
    net = rj.Pretrained(model=model, variables=variables)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    plain, small = _both(net, folder, list(pixels))
    found: dict[str, Any] = {"file_bytes": {"float32": plain[0], "int8": small[0]}}
    for batch in (1, 8):
        calls = {
            "float32": lambda size=batch: plain[1](pixels[:size]),
            "int8": lambda size=batch: small[1](pixels[:size]),
        }
        seconds = timed_in_turn(calls, runs=runs)
        pairs = zip(seconds["float32"], seconds["int8"], strict=True)
        found[f"batch_{batch}"] = {
            "seconds": {name: spread(values) for name, values in seconds.items()},
            "times_faster": spread([slow / fast for slow, fast in pairs]),
        }
    return found


def _accuracy(folder: Path, weights: Path, cifar10: Path, *, images: int) -> dict[str, Any]:
    with np.load(cifar10) as archive:
        train, test = (_files(archive, part) for part in ("train", "test"))
        labels = archive["test_labels"]
    chosen = np.random.default_rng(0).choice(len(train), images, replace=False)
    plain, small = _both(rj.load(weights), folder, [train[i] for i in chosen])
    top1, first = {}, {}
    for name, (_, net) in {"float32": plain, "int8": small}.items():
        rows = rj.predict(net, test, top=1, batch_size=256)
        first[name] = np.array([row[0].index for row in rows])
        top1[name] = float((first[name] == labels).mean())
    return {
        "weights": weights.name,
        "calibration_images": images,
        "test_images": len(test),
        "top1": top1,
        "same_class": float((first["float32"] == first["int8"]).mean()),
    }


def _both(
    net: rj.Pretrained, folder: Path, images: list[Any]
) -> tuple[tuple[int, artifact.Artifact], tuple[int, artifact.Artifact]]:
    """Size and net, in float32 and in integers."""
    made = []
    for name, calibration in (("float32", None), ("int8", images)):
        path = folder / f"{name}.onnx"
        rj.export(net, path, calibration=calibration)
        made.append((path.stat().st_size, artifact.load(path)))
    return made[0], made[1]


def _files(archive: Any, part: str) -> list[bytes]:
    stream, offsets = archive[f"{part}_jpeg"].tobytes(), archive[f"{part}_offsets"].tolist()
    return [stream[start:end] for start, end in itertools.pairwise(offsets)]


if __name__ == "__main__":
    tyro.cli(main)
