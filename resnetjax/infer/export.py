"""A net as a file that runs without its code, with what is needed around it."""

import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from resnetjax import __version__
from resnetjax.data.preprocess import ImageSource, normalize
from resnetjax.errors import ConfigError, UnsupportedFile
from resnetjax.infer import onnx_quantize, onnx_writer, saved_model
from resnetjax.infer.artifact import DESCRIPTION, FUNCTION
from resnetjax.infer.description import Description
from resnetjax.infer.fold import fold
from resnetjax.infer.onnx_graph import import_onnx
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained, flatten
from resnetjax.weights import files

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    pretrained: Pretrained,
    path: str | os.PathLike[str],
    *,
    platforms: Sequence[str] | None = None,
    calibration: Iterable[ImageSource] | None = None,
) -> None:
    """Writes a net from uint8 pixels to logits, for batches of any size; the path's end says how.

    The weights and the normalisation are in the function, which takes images resized and cropped;
    with it goes a JSON of the rest of the preprocessing, the labels, their activation and where the
    weights came from.

    - `.stablehlo`: a zip archive, uncompressed, of the function that `jax.export` serialised and
      the JSON.
    - `.onnx`: opset 17, in float32 or eight-bit integers, with the JSON in its `metadata_props`.
    - `.savedmodel`: TensorFlow's folder, with the JSON in `assets.extra`.

    `resnetjax.infer.artifact.load` runs the first two, without Flax.

    Args:
        pretrained: The net.
        path: A file or, for TensorFlow, a folder that is not there yet.
        platforms: Where StableHLO may run, by default everywhere.
        calibration: Some hundreds of images, over which an ONNX net's ranges are measured; it then
            computes in integers, which is faster on CPUs that have instructions for that, and less
            exact.

    Raises:
        UnsupportedFile: The path ends otherwise, or the weights are more than ONNX holds (2 GiB).
        ConfigError: There is no such platform, or an argument is for another kind of file.
        BadImage: An image for the calibration cannot be decoded.
        MissingExtra: A package is not installed: onnx, onnxruntime or TensorFlow.
        OSError: The path cannot be written.

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
    for name, value, suffix in (
        ("platforms", platforms, ".stablehlo"),
        ("calibration", calibration, ".onnx"),
    ):
        if value is not None and path.suffix != suffix:
            raise ConfigError(f"{name}= is not allowed with {path}: it is for {suffix}")
    match path.suffix:
        case ".stablehlo":
            files.write({path: _stablehlo(pretrained, platforms)})
        case ".onnx":
            files.write({path: _onnx(pretrained, calibration)})
        case ".savedmodel":
            described = describe(pretrained, {"jax": jax.__version__}).to_json()
            saved_model.write(pretrained, path, description=described)
        case _:
            raise UnsupportedFile(f"{path}: exported nets end in .stablehlo, .onnx or .savedmodel")


def _stablehlo(pretrained: Pretrained, platforms: Sequence[str] | None) -> bytes:
    platforms = PLATFORMS if platforms is None else tuple(platforms)
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ConfigError(f"platforms={platforms} is not allowed: use {PLATFORMS}")
    preprocess = pretrained.preprocess
    # Not `for_inference`: its forms are a CPU's, and one file serves every platform.
    model, variables = fold(pretrained.model, pretrained.variables)

    def run(pixels: jax.Array) -> Any:
        return model.apply(variables, normalize(pixels, preprocess), train=False)

    shape = (*jax.export.symbolic_shape("batch"), *preprocess.crop_px, preprocess.channels)
    exported = jax.export.export(jax.jit(run), platforms=platforms)(
        jax.ShapeDtypeStruct(shape, jnp.uint8)
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        described = describe(pretrained, {"jax": jax.__version__}, platforms=platforms)
        archive.writestr(DESCRIPTION, described.to_json())
        archive.writestr(FUNCTION, bytes(exported.serialize()))
    return buffer.getvalue()


def _onnx(pretrained: Pretrained, calibration: Iterable[ImageSource] | None) -> bytes:
    preprocess = pretrained.preprocess
    content = onnx_writer.write(
        pretrained.model.net or plan(pretrained.config),
        flatten(pretrained.variables),
        preprocess,
        description=describe(pretrained, {"onnx": import_onnx().__version__}).to_json(),
    )
    if calibration is None:
        return content
    return onnx_quantize.quantize(content, calibration, preprocess, pixels=onnx_writer.INPUT)


def describe(
    pretrained: Pretrained, versions: dict[str, str], *, platforms: Sequence[str] = ()
) -> Description:
    """What an exported file says of a net.

    Args:
        pretrained: The net.
        versions: Of the packages that write the file, beside this one.
        platforms: Where the function runs.
    """
    return Description(
        preprocess=pretrained.preprocess,
        labels=pretrained.labels,
        activation=pretrained.activation,
        num_classes=pretrained.config.num_classes,
        source=vars(pretrained.source),
        versions={"resnetjax": __version__, **versions},
        platforms=tuple(platforms),
    )
