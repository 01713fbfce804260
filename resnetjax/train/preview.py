"""What a run would be, without a step of it: sizes, memory, and a picture of the first batch."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from resnetjax.config import Preprocess
from resnetjax.measure import parameter_count, statistics_count
from resnetjax.plan import plan
from resnetjax.train.setup import Setup
from resnetjax.train.sharding import batch_sharding
from resnetjax.train.step import draw_keys, vary

_SHOWN = 64
_GAP_PX = 2


def preview(setup: Setup, path: Path) -> list[str]:
    """Lines that describe a run; the step is compiled, and the first batch drawn.

    Args:
        setup: An open one.
        path: Of the PNG with the first augmented batch.
    """
    recipe, net = setup.recipe, plan(setup.config)
    batch, _ = next(setup.batches(0))
    compiled = setup.train_step.lower(setup.state_shapes, batch).compile()
    images, _, _ = jax.jit(vary, static_argnums=(0, 1), out_shardings=batch_sharding(setup.mesh))(
        recipe, setup.config, draw_keys(recipe, 0)[0], batch
    )
    # Of processes each draws its own rows.
    local = np.concatenate([shard.data for shard in images.addressable_shards])
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_grid(local[:_SHOWN], recipe.preprocess).save(path)
    return [
        f"net         {recipe.model.architecture or 'of its own config'}, "
        f"{parameter_count(net):,} parameters, {statistics_count(net):,} running statistics, "
        f"{setup.config.num_classes:,} classes",
        f"arithmetic  {setup.image_flops / 1e9:.3g} GFLOPs forward an image, "
        f"{3 * recipe.batch_size * setup.image_flops / 1e12:.3g} TFLOPs a step",
        f"data        {len(setup.train_data):,} images to train on, "
        f"{len(setup.test_data):,} to evaluate on",
        f"run         {setup.total_steps:,} steps, {setup.order.steps_per_epoch:,} an epoch, "
        f"batches of {recipe.batch_size:,}, learning rate up to {recipe.learning_rate:g}",
        f"devices     {setup.mesh.size} x {jax.devices()[0].device_kind}, "
        f"mesh {dict(setup.mesh.shape)}, {recipe.precision}",
        f"memory      {_memory(compiled)}",
        f"picture     {path}: the first {min(len(local), _SHOWN)} images, as the net sees them",
    ]


def draw_grid(
    images: Float[np.ndarray, "batch height width channels"], preprocess: Preprocess
) -> Image.Image:
    """Normalised images, side by side as they were before."""
    pixels = _denormalized(np.asarray(images), preprocess)
    count, height, width, channels = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    edge = (height + _GAP_PX, width + _GAP_PX)
    grid = np.full((rows * edge[0], columns * edge[1], channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * edge[0], i % columns * edge[1]
        grid[top : top + height, left : left + width] = image
    drawn = Image.fromarray(grid[..., 0] if channels == 1 else grid)
    scale = max(1, 64 // height)  # small pictures are hard to see
    return drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.NEAREST)


def _denormalized(
    images: Float[np.ndarray, "batch height width channels"], preprocess: Preprocess
) -> UInt8[np.ndarray, "batch height width channels"]:
    mean, std = (
        np.asarray(values, np.float32).reshape(1, 1, 1, -1)
        for values in (preprocess.mean, preprocess.std)
    )
    pixels = ((images * std + mean) * preprocess.divisor).round().clip(0, 255).astype(np.uint8)
    return pixels[..., ::-1] if preprocess.channel_order == "bgr" else pixels


def _memory(compiled: Any) -> str:
    """Per device, as XLA plans it."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return "not known on this backend"
    arguments = sizes.argument_size_in_bytes
    scratch = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return (
        f"{_bytes(arguments + scratch)} a device: {_bytes(arguments)} for state and batch, "
        f"{_bytes(scratch)} for a step"
    )


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
