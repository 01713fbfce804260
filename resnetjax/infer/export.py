"""A net as one file that runs without its code: StableHLO, with what is needed around it."""

import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from resnetjax.data.preprocess import normalize
from resnetjax.errors import ConfigError, UnsupportedFile
from resnetjax.infer.artifact import DESCRIPTION, FUNCTION, SUFFIX
from resnetjax.pretrained import Pretrained
from resnetjax.weights import files

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    pretrained: Pretrained,
    path: str | os.PathLike[str],
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes a net as StableHLO, from uint8 pixels to logits, for batches of any size.

    The file is a zip archive, uncompressed: the function that `jax.export` serialised, its weights
    and the normalisation inside, and a JSON with the rest of the preprocessing, the labels and
    where the weights came from. `resnetjax.infer.artifact.load` runs it, without Flax.

    Args:
        pretrained: The net.
        path: A file ending in `.stablehlo`.
        platforms: Where it may run.

    Raises:
        UnsupportedFile: The path ends otherwise.
        ConfigError: There is no such platform.

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
    if path.suffix != SUFFIX:
        raise UnsupportedFile(f"{path}: exported models end in {SUFFIX}")
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ConfigError(f"platforms={tuple(platforms)} is not allowed: use {PLATFORMS}")
    preprocess = pretrained.preprocess

    def run(pixels: jax.Array) -> Any:
        images = normalize(pixels, preprocess)
        return pretrained.model.apply(pretrained.variables, images, train=False)

    shape = (*jax.export.symbolic_shape("batch"), *preprocess.crop_px, preprocess.channels)
    exported = jax.export.export(jax.jit(run), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct(shape, jnp.uint8)
    )
    description = {
        "preprocess": preprocess.to_json(),
        "labels": pretrained.labels and pretrained.labels.to_json(),
        "source": vars(pretrained.source),
        "platforms": list(platforms),
        "versions": {"jax": jax.__version__},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(DESCRIPTION, json.dumps(description, indent=1))
        archive.writestr(FUNCTION, bytes(exported.serialize()))
    files.write({path: buffer.getvalue()})
