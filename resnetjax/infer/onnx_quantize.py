"""An ONNX net in eight-bit integers, its ranges measured on images (post-training, static)."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from resnetjax.config import Preprocess
from resnetjax.data.preprocess import ImageSource, crop, decode
from resnetjax.errors import ConfigError, MissingExtra
from resnetjax.infer.onnx_graph import import_onnx

_BATCH = 8


def quantize(
    content: bytes, images: Iterable[ImageSource], preprocess: Preprocess, *, pixels: str
) -> bytes:
    """The same net with weights in int8, a scale a channel, and activations in uint8 (QDQ).

    Batch norms are folded into convolutions first. The file has the nodes QuantizeLinear and
    DequantizeLinear, which a runtime turns into integer arithmetic where it has any.

    Args:
        content: An ONNX file.
        images: Over which each activation's least and greatest values are taken: some hundreds of
            those that the net is for.
        preprocess: How they become the net's input.
        pixels: The input's name.

    Raises:
        BadImage: An image cannot be decoded.
        ConfigError: There are no images.
        MissingExtra: onnx or onnxruntime is not installed.
    """
    onnx = import_onnx()
    try:
        from onnxruntime.quantization import QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingExtra(
            'calibration needs onnxruntime: pip install "resnetjax[onnx]"'
        ) from error
    model = onnx.load_from_string(content)
    batches = _batches(images, preprocess)
    first = next(batches, None)
    if first is None:
        raise ConfigError("calibration= has no images: give some hundreds")
    reader: Any = _Reader(itertools.chain([first], batches), pixels)
    with tempfile.TemporaryDirectory() as folder:  # onnxruntime goes from file to file
        plain, prepared, done = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        plain.write_bytes(content)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            done,
            reader,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        found = onnx.load(done)
    kept = {prop.key: prop.value for prop in model.metadata_props}
    onnx.helper.set_model_props(found, kept)
    return found.SerializeToString()


class _Reader:
    """What onnxruntime asks for the images: one batch a call, then None."""

    def __init__(self, batches: Iterator[np.ndarray], pixels: str) -> None:
        self._batches, self._pixels = batches, pixels

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._pixels: batch}


def _batches(
    images: Iterable[ImageSource], preprocess: Preprocess
) -> Iterator[UInt8[np.ndarray, "batch height width channels"]]:
    remaining = iter(images)
    while sources := list(itertools.islice(remaining, _BATCH)):
        decoded = (decode(source, channels=preprocess.channels) for source in sources)
        yield np.stack([crop(image, preprocess) for image in decoded])
