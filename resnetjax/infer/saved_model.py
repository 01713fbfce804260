"""A net as TensorFlow's SavedModel: StableHLO, called by TensorFlow, which needs no JAX for it."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax

from resnetjax.data.preprocess import normalize
from resnetjax.errors import MissingExtra
from resnetjax.infer.artifact import DESCRIPTION
from resnetjax.infer.fold import fold
from resnetjax.pretrained import Pretrained

# Where TensorFlow Serving leaves what is not its own.
_EXTRA = "assets.extra"
INPUT, OUTPUT = "pixels", "logits"


def write(pretrained: Pretrained, folder: Path, *, description: str) -> None:
    """Writes a SavedModel whose signature "serving_default" takes `pixels` and gives `logits`.

    Weights are TensorFlow's variables, with batch norms folded into them; the description is
    `assets.extra/description.json`.

    Args:
        pretrained: The net.
        folder: Made here, whole or not at all.
        description: JSON.

    Raises:
        MissingExtra: TensorFlow is not installed.
        OSError: The folder exists, or cannot be written.
    """
    try:
        import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]
        from jax.experimental import jax2tf
    except ImportError as error:
        raise MissingExtra(
            'SavedModels need TensorFlow: pip install "resnetjax[savedmodel]"'
        ) from error
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it first, or name another")
    preprocess = pretrained.preprocess
    model, arrays = fold(pretrained.model, pretrained.variables)
    shape = (*preprocess.crop_px, preprocess.channels)

    def run(variables: Any, pixels: jax.Array) -> Any:
        return model.apply(variables, normalize(pixels, preprocess), train=False)

    batch = f"(batch, {', '.join(map(str, shape))})"
    function = jax2tf.convert(run, polymorphic_shapes=[None, batch], with_gradient=False)
    module: Any = tf.Module()
    module.net = jax.tree.map(lambda x: tf.Variable(x, trainable=False), arrays)

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec((None, *shape), tf.uint8, name=INPUT)]
    )
    def serve(pixels: Any) -> dict[str, Any]:
        return {OUTPUT: function(module.net, pixels)}

    module.serve = serve
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        tf.saved_model.save(module, beside, signatures={"serving_default": serve})
        (beside / _EXTRA).mkdir()
        (beside / _EXTRA / DESCRIPTION).write_text(description)
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
