"""Runs what `resnetjax.export` wrote; this module needs JAX, and neither Flax nor the zoo."""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.export
from jaxtyping import Array, Float, UInt8

from resnetjax.config import Labels, Preprocess
from resnetjax.errors import ConfigError, CorruptFile

SUFFIX = ".stablehlo"
FUNCTION, DESCRIPTION = "function.bin", "description.json"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported net; called with uint8[batch, height, width, channels] it gives logits.

    Attributes:
        function: From pixels, resized and cropped, to logits.
        preprocess: How an image becomes such pixels; the normalisation is in the function.
        labels: What the outputs mean, or None where that is unknown.
        source: Where the weights came from.
    """

    function: Callable[[UInt8[Any, "batch height width channels"]], Float[Array, "batch classes"]]
    preprocess: Preprocess
    labels: Labels | None
    source: dict[str, Any]

    def __call__(
        self, pixels: UInt8[Any, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """The logits."""
        return self.function(pixels)


def load(path: str | os.PathLike[str]) -> Artifact:
    """An exported net from its file.

    The function in it is compiled and run: load only files from where you would load code.

    Raises:
        CorruptFile: It is no exported net, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read(DESCRIPTION))
            exported = jax.export.deserialize(bytearray(archive.read(FUNCTION)))
        labels = described["labels"]
        return Artifact(
            function=jax.jit(exported.call),
            preprocess=Preprocess.from_json(described["preprocess"]),
            labels=labels and Labels.from_json(labels),
            source=described["source"],
        )
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, ConfigError) as error:
        raise CorruptFile(f"{os.fspath(path)}: not an exported net: {error}") from error
