"""Random nets whose statistics hide nothing: measured on images, then disturbed."""

import jax
import jax.numpy as jnp
import numpy as np

import resnetjax as rj
from resnetjax.data.preprocess import normalize


def noise(count: int, preprocess: rj.Preprocess) -> np.ndarray:
    """Pixels of structured noise, uint8[count, height, width, channels], each image another one."""
    (height, width), channels = preprocess.crop_px, preprocess.channels
    rng, images = np.random.default_rng(0), np.full((count, height, width, channels), 128.0)
    for cell in (1, 8, 32):  # pixels of three sizes
        coarse = rng.normal(0, 32, (count, -(-height // cell), -(-width // cell), channels))
        images += coarse.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    return images.clip(0, 255).astype(np.uint8)


def settled(
    config: rj.ResNetConfig, preprocess: rj.Preprocess, *, pixels: np.ndarray | None = None
) -> rj.Pretrained:
    """A net with random scales, biases and statistics.

    Given pixels, statistics are measured on these and disturbed: means are off by a fifth of a
    deviation, variances by a third. Deep nets need that, or their activations explode or fade.
    Residual branches end at a third of their size, as in trained nets: others amplify float32's
    rounding from block to block.
    """
    model, variables = rj.create(config, rng=0)
    rng = np.random.default_rng(1)
    ends = "conv" if config.order == "pre" else "norm"
    lasts = {f"{ends}{2 if kind == 'basic' else 3}" for kind in config.blocks}

    def draw(path: tuple[jax.tree_util.DictKey, ...], x: jax.Array) -> jax.Array:
        size = 0.3 if path[-2].key in lasts else 1.0
        values = {
            "scale": lambda: rng.uniform(0.5 * size, 1.5 * size, x.shape),
            "bias": lambda: rng.normal(0, 0.3 * size, x.shape),
            "mean": lambda: rng.normal(0, 0.3, x.shape),
            "var": lambda: rng.uniform(0.5, 1.5, x.shape),
        }
        drawn = values.get(path[-1].key)
        return jnp.asarray(drawn(), jnp.float32) if drawn else x * size

    variables = jax.tree_util.tree_map_with_path(draw, variables)
    if pixels is not None and config.norm == "batch":
        variables["batch_stats"] = _measured(config, variables, normalize(pixels, preprocess), rng)
    return rj.Pretrained(model=model, variables=variables, preprocess=preprocess)


def _measured(
    config: rj.ResNetConfig, variables: dict, images: np.ndarray, rng: np.random.Generator
) -> dict:
    # Of decay 0: the running statistics are then those of the batch.
    measuring = rj.ResNet(config.replace(norm_decay=0.0))
    run = jax.jit(lambda x: measuring.apply(variables, x, train=True, mutable=["batch_stats"])[1])

    def disturb(layer: dict) -> dict:
        if "var" not in layer:
            return {name: disturb(part) for name, part in layer.items()}
        mean, var = np.asarray(layer["mean"]), np.asarray(layer["var"])
        off = rng.normal(0, 0.2, mean.shape) * np.sqrt(var)
        return {
            "mean": jnp.asarray(mean + off, jnp.float32),
            "var": jnp.asarray(var * np.exp(rng.normal(0, 0.3, var.shape)), jnp.float32),
        }

    return disturb(run(jnp.asarray(images))["batch_stats"])
