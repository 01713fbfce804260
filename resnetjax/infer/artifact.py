"""Runs what `resnetjax.export` wrote: StableHLO by JAX, ONNX by onnxruntime; neither needs Flax."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, UInt8

from resnetjax.config import Labels, Preprocess
from resnetjax.errors import ConfigError, CorruptFile, MissingExtra, UnsupportedFile
from resnetjax.infer.description import Description

FUNCTION, DESCRIPTION = "function.bin", "description.json"  # in a .stablehlo archive
METADATA = "resnetjax"  # the description's key in an ONNX file's metadata_props

_Pixels = UInt8[Any, "batch height width channels"]
_Function = Callable[[_Pixels], Any]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported net; called with uint8[batch, height, width, channels] it gives logits.

    `resnetjax.predict` takes it in place of a `Pretrained`.

    Attributes:
        function: From pixels, resized and cropped, to logits.
        description: What else the file says: preprocessing, labels, source, versions.
    """

    function: _Function = field(repr=False)
    description: Description

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the pixels."""
        return self.description.preprocess

    @property
    def labels(self) -> Labels | None:
        """What the outputs mean, or None where that is unknown."""
        return self.description.labels

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 where the net has no head."""
        return self.description.num_classes

    def __call__(self, pixels: _Pixels) -> Float32[np.ndarray, "batch classes"]:
        """The logits; without a head, the pooled features.

        Raises:
            ConfigError: The pixels are of another size or type.
        """
        expected = (*self.preprocess.crop_px, self.preprocess.channels)
        if pixels.shape[1:] != expected or pixels.dtype != np.uint8:
            raise ConfigError(
                f"{pixels.dtype}{list(pixels.shape)} does not fit: expected "
                f"uint8[batch, {', '.join(map(str, expected))}]"
            )
        if not len(pixels):  # StableHLO's batch is 1 or more
            return np.asarray(self.function(np.zeros((1, *expected), np.uint8)))[:0]
        return np.asarray(self.function(pixels))

    def top(
        self, pixels: _Pixels, count: int
    ) -> tuple[Float32[np.ndarray, "batch top"], Int[np.ndarray, "batch top"]]:
        """The scores of the likeliest classes of each image, likeliest first, and these."""
        scores = self(pixels)
        if self.description.activation == "softmax":
            scores = np.exp(scores - scores.max(1, keepdims=True))
            scores /= scores.sum(1, keepdims=True)
        elif self.description.activation == "sigmoid":
            scores = np.exp(-np.logaddexp(0, -scores))
        # Stable, as `jax.lax.top_k` is: of equals the first comes first.
        indices = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, indices, 1), indices


def load(path: str | os.PathLike[str]) -> Artifact:
    """An exported net from its file, which ends in `.stablehlo` or `.onnx`.

    StableHLO runs on JAX's default device, ONNX on the CPU. The function is compiled and run: load
    only files from where you would load code.

    Raises:
        UnsupportedFile: The file ends otherwise.
        CorruptFile: It is no exported net, or is damaged.
        MissingExtra: It is an ONNX file, and onnxruntime is not installed.
        OSError: There is no such file, or it cannot be read.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UnsupportedFile(f"{path}: exported nets that run here end in {', '.join(READERS)}")
    path.open("rb").close()  # onnxruntime's own error would be no OSError
    try:
        function, described = READERS[path.suffix](path)
        return Artifact(function=function, description=Description.from_json(described))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise CorruptFile(f"{path}: not an exported net: {error}") from error


def _stablehlo(path: Path) -> tuple[_Function, bytes]:
    import jax
    import jax.export

    with zipfile.ZipFile(path) as archive:
        exported = jax.export.deserialize(bytearray(archive.read(FUNCTION)))
        return jax.jit(exported.call), archive.read(DESCRIPTION)


def _onnx(path: Path) -> tuple[_Function, str]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra('ONNX needs onnxruntime: pip install "resnetjax[onnx]"') from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no base class of their own
        raise ValueError(error) from error
    (pixels,) = (value.name for value in session.get_inputs())
    described = session.get_modelmeta().custom_metadata_map[METADATA]
    return lambda images: session.run(None, {pixels: np.asarray(images)})[0], described


READERS = {".stablehlo": _stablehlo, ".onnx": _onnx}
"""For the end of a file's name, what gives its function and its description."""
