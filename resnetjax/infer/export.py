"""A net as one file that runs without its code, with what is needed around it."""

import importlib.metadata
import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from resnetjax import __version__
from resnetjax.data.preprocess import normalize
from resnetjax.errors import ConfigError, UnsupportedFile
from resnetjax.infer import onnx_writer
from resnetjax.infer.artifact import DESCRIPTION, FUNCTION
from resnetjax.infer.classify import activation_of
from resnetjax.infer.description import Description
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained, flatten
from resnetjax.weights import files

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    pretrained: Pretrained,
    path: str | os.PathLike[str],
    *,
    platforms: Sequence[str] | None = None,
) -> None:
    """Writes a net as StableHLO or ONNX, from uint8 pixels to logits, for batches of any size.

    The weights and the normalisation are in the function, which takes images resized and cropped.
    A `.stablehlo` file is a zip archive, uncompressed: the function that `jax.export` serialised,
    and a JSON with the rest of the preprocessing, the labels and where the weights came from. An
    `.onnx` file (opset 17, float32) has the same JSON in its `metadata_props`.
    `resnetjax.infer.artifact.load` runs both, without Flax.

    Args:
        pretrained: The net.
        path: A file ending in `.stablehlo` or `.onnx`.
        platforms: Where StableHLO may run, by default everywhere.

    Raises:
        UnsupportedFile: The path ends otherwise, or the weights are more than ONNX holds (2 GiB).
        ConfigError: There is no such platform, or some are named for ONNX.
        MissingExtra: ONNX is asked for, and the package `onnx` is not installed.

    Example:
        >>> import tempfile
        >>> import resnetjax as rj
        >>> from resnetjax.infer import artifact
        >>> model, variables = rj.create("cifar_resnet20")
        >>> small = rj.Preprocess(crop_px=(32, 32), resize_mode="none", resize_px=None)
        >>> pre = rj.Pretrained(model=model, variables=variables, preprocess=small)
        >>> path = tempfile.mkdtemp() + "/model.stablehlo"
        >>> rj.export(pre, path)
        >>> artifact.load(path)(jnp.zeros((2, 32, 32, 3), jnp.uint8)).shape
        (2, 10)
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise UnsupportedFile(f"{path}: exported models end in {' or '.join(WRITERS)}")
    if platforms is not None and path.suffix != ".stablehlo":
        raise ConfigError(f"platforms={tuple(platforms)} is not allowed: use it with .stablehlo")
    files.write({path: WRITERS[path.suffix](pretrained, platforms)})


def _stablehlo(pretrained: Pretrained, platforms: Sequence[str] | None) -> bytes:
    platforms = PLATFORMS if platforms is None else tuple(platforms)
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ConfigError(f"platforms={platforms} is not allowed: use {PLATFORMS}")
    preprocess = pretrained.preprocess

    def run(pixels: jax.Array) -> Any:
        images = normalize(pixels, preprocess)
        return pretrained.model.apply(pretrained.variables, images, train=False)

    shape = (*jax.export.symbolic_shape("batch"), *preprocess.crop_px, preprocess.channels)
    exported = jax.export.export(jax.jit(run), platforms=platforms)(
        jax.ShapeDtypeStruct(shape, jnp.uint8)
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        described = describe(pretrained, "jax", platforms=platforms)
        archive.writestr(DESCRIPTION, described.to_json())
        archive.writestr(FUNCTION, bytes(exported.serialize()))
    return buffer.getvalue()


def _onnx(pretrained: Pretrained, _: None) -> bytes:
    return onnx_writer.write(
        plan(pretrained.config),
        flatten(pretrained.variables),
        pretrained.preprocess,
        description=describe(pretrained, "onnx").to_json(),
    )


WRITERS = {".stablehlo": _stablehlo, ".onnx": _onnx}
"""For the end of a file's name, what gives its content."""


def describe(pretrained: Pretrained, *packages: str, platforms: Sequence[str] = ()) -> Description:
    """What an exported file says of a net.

    Args:
        pretrained: The net.
        packages: Those that write the file, beside this one.
        platforms: Where the function runs.
    """
    return Description(
        preprocess=pretrained.preprocess,
        labels=pretrained.labels,
        activation=activation_of(pretrained.labels),
        num_classes=pretrained.config.num_classes,
        source=vars(pretrained.source),
        versions={
            "resnetjax": __version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
        platforms=tuple(platforms),
    )
