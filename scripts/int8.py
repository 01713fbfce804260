"""What eight-bit integers cost and save on a CPU, in interleaved pairs with float32.

    python scripts/int8.py onnx WEIGHTS CIFAR10 [--out benchmarks/results/int8-cpu.json]
    python scripts/int8.py xla [--out benchmarks/results/int8-xla-cpu.json]

Speed is that of a ResNet-50, which does not depend on its weights; accuracy that of a CIFAR net.
"""

import dataclasses
import functools
import itertools
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from timing import environment, report, spread, timed_in_turn

import resnetjax as rj
from resnetjax.infer import artifact
from resnetjax.infer.compiled import for_inference
from resnetjax.nn import functions, winograd
from resnetjax.specs import Conv, Plan


def onnx(
    weights: tyro.conf.Positional[Path],
    cifar10: tyro.conf.Positional[Path],
    *,
    images: int = 512,
    runs: int = 15,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """ONNX, quantised and not, by onnxruntime.

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


def xla(
    *, runs: int = 15, out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
) -> None:
    """ResNet-50's convolutions by XLA, each with its bias, its activation and its rounding.

    In float32 in the form that `rj.compile_inference` gives them; in integers from int8 by int32 to
    int8, 1x1 convolutions as matrix products.

    Args:
        runs: Pairs that are timed for each layer, after two that are not.
        out: Where the JSON goes, beside the terminal.
    """
    net, _ = for_inference(*rj.create("resnet50", rng=0))
    assert net.net is not None
    counts = Counter(_layers(net.net, edge_px=224))
    result: dict[str, Any] = {
        "benchmark": "ResNet-50's convolutions in float32 and in eight-bit integers, by XLA",
        "environment": environment("jax", "jaxlib", "numpy"),
        "load_average": os.getloadavg()[0],  # of a machine with other work the figures say little
    }
    for batch in (1, 8):
        rows, totals = [], {name: np.zeros(runs) for name in ("float32", "int8", "faster of both")}
        for (conv, edge_px), count in counts.items():
            seconds = timed_in_turn(_both_dtypes(conv, batch, edge_px), runs=runs)
            found = {name: np.array(values) for name, values in seconds.items()}
            faster = min(found, key=lambda name: float(np.median(found[name])))
            for name, values in {**found, "faster of both": found[faster]}.items():
                totals[name] += count * values
            rows.append(
                {
                    "layer": f"{conv.kernel}x{conv.kernel}/{conv.stride}, {edge_px} px, "
                    f"{conv.in_features} to {conv.features}",
                    "float32_form": conv.form,
                    "count": count,
                    "seconds": {name: spread(values) for name, values in seconds.items()},
                    "times_faster": spread(list(found["float32"] / found["int8"])),
                }
            )
        result[f"batch_{batch}"] = {
            "seconds": {name: spread(list(values)) for name, values in totals.items()},
            "times_faster": {
                name: spread(list(totals["float32"] / totals[name]))
                for name in ("int8", "faster of both")
            },
            "layers": rows,
        }
    report(result, out)


def _layers(net: Plan, *, edge_px: int) -> Iterator[tuple[Conv, int]]:
    """Each convolution, without its name, and the edge of its images; they halve as strides say."""
    (stem,) = net.stem.convs
    yield dataclasses.replace(stem, name=""), edge_px
    edge_px //= 4
    for block in (block for stage in net.stages for block in stage.blocks):
        inner = edge_px
        for conv in block.convs:
            yield dataclasses.replace(conv, name="", activation="relu"), inner
            inner //= conv.stride
        if block.shortcut.conv:
            yield dataclasses.replace(block.shortcut.conv, name="", activation="relu"), edge_px
        edge_px = inner


def _both_dtypes(conv: Conv, batch: int, edge_px: int) -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, (batch, edge_px, edge_px, conv.in_features), np.int8)
    shape = (conv.kernel, conv.kernel, conv.in_features, conv.features)
    kernel = rng.integers(-127, 128, shape, np.int8)
    vector = rng.random((1, 1, 1, conv.features), np.float32)
    wide = kernel.astype(np.float32)
    if conv.form == "winograd":
        wide = winograd.transform(wide)

    def in_float32(x: jax.Array) -> jax.Array:
        return jax.nn.relu(functions.convolve(x, jnp.asarray(wide), conv) + vector)

    def in_int8(x: jax.Array) -> jax.Array:
        sums = _sums(x, jnp.asarray(kernel), conv)
        scaled = jax.nn.relu(sums.astype(jnp.float32) * (vector / 2**14) + vector)
        return jnp.minimum(jnp.round(scaled), 127).astype(jnp.int8)

    calls = {}
    for name, function in (("float32", in_float32), ("int8", in_int8)):
        given = jax.device_put(x.astype(name))
        calls[name] = functools.partial(_run, jax.jit(function).lower(given).compile(), given)
    return calls


def _run(function: Any, x: jax.Array) -> None:
    jax.block_until_ready(function(x))


def _sums(x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """What a convolution of int8 adds up to, in int32."""
    if conv.kernel == 1:
        pixels = x[:, :: conv.stride, :: conv.stride]
        return lax.dot_general(
            pixels, kernel[0, 0], (((3,), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
    assert isinstance(conv.padding, int)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(conv.stride, conv.stride),
        padding=[(conv.padding, conv.padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.int32,
    )


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
    tyro.extras.subcommand_cli_from_dict({"onnx": onnx, "xla": xla})
