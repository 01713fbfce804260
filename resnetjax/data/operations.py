"""Pillow's operations as data, so that every image of a batch may have its own.

`PRIMITIVES` says which primitive of `image_ops` does an operation, `setting` turns its argument
into numbers, and `transform` runs all three primitives, of which a setting leaves at least two
neutral: under `vmap`, that costs one pass of each primitive, not a branch for every operation.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from resnetjax.data import image_ops

Image = UInt8[Array, "height width channels"]

DEGENERATES = ("black", "grey", "mean", "smooth")
TABLES = ("identity", "invert", "posterize", "solarize", "solarize_add", "autocontrast", "equalize")
PRIMITIVES = {
    "Identity": ("table", "identity"),
    "ShearX": ("warp", "shear_x"),
    "ShearY": ("warp", "shear_y"),
    "TranslateX": ("warp", "translate_x"),
    "TranslateY": ("warp", "translate_y"),
    "Rotate": ("warp", "rotate"),
    "Brightness": ("blend", "black"),
    "Color": ("blend", "grey"),
    "Contrast": ("blend", "mean"),
    "Sharpness": ("blend", "smooth"),
    "Invert": ("table", "invert"),
    "Posterize": ("table", "posterize"),
    "Solarize": ("table", "solarize"),
    "SolarizeAdd": ("table", "solarize_add"),
    "AutoContrast": ("table", "autocontrast"),
    "Equalize": ("table", "equalize"),
}


class Setting(NamedTuple):
    """One operation as numbers or, with leading axes, several.

    Attributes:
        matrix: float[6] for bilinear interpolation, int32[6] of `image_ops.to_fixed` for nearest.
        factor: Of the blend; 1 leaves the image.
        degenerate: What it is blended with, by its place in `DEGENERATES`.
        argument: Of the table: bits, threshold or what is added.
        table: By its place in `TABLES`.
    """

    matrix: Any
    factor: Any
    degenerate: Any
    argument: Any
    table: Any


def setting(name: str, argument: Any, *, height: int, width: int) -> Setting:
    """The numbers by which `transform` does an operation.

    Args:
        name: One of `PRIMITIVES`, called as in torchvision and timm.
        argument: A float array of any shape, of NumPy or JAX, and so are the results: the factor
            of the shear or blend, the translation in pixels (positive moves the image left or up),
            degrees counter-clockwise, bits to keep (0 to 8), the threshold from which values are
            inverted, or what is added below 128. Without effect where there is nothing to say.
        height: Of the images, in pixels.
        width: Likewise.

    Example:
        >>> setting("ShearX", np.array(0.3), height=4, width=4).matrix.tolist()
        [1.0, 0.3, 0.0, 0.0, 1.0, 0.0]
    """
    primitive, kind = PRIMITIVES[name]
    xp = argument.__array_namespace__()
    first = xp.zeros_like(argument, dtype=np.int32)
    return Setting(
        matrix=_matrix(kind, argument, height / 2, width / 2),
        factor=argument if primitive == "blend" else xp.ones_like(argument),
        degenerate=first + (DEGENERATES.index(kind) if primitive == "blend" else 0),
        argument=argument,
        table=first + (TABLES.index(kind) if primitive == "table" else 0),
    )


def transform(image: Image, setting: Setting, *, fill: Any) -> Image:
    """The image after one operation.

    Args:
        image: The image.
        setting: What to do, without leading axes.
        fill: One value in 0..255 per channel, for what a warp brings in from outside the image.

    Example:
        >>> image = jnp.arange(12, dtype=jnp.uint8).reshape(2, 2, 3)
        >>> invert = setting("Invert", jnp.zeros(()), height=2, width=2)
        >>> run = jax.jit(transform, static_argnames="fill")
        >>> run(image, invert, fill=(0, 0, 0))[0, 0].tolist()
        [255, 254, 253]
    """
    nearest = jnp.issubdtype(setting.matrix.dtype, jnp.integer)
    warp = image_ops.warp_nearest if nearest else image_ops.warp_bilinear
    # The barriers keep XLA from computing a pixel anew for each of its many uses downstream.
    image = jax.lax.optimization_barrier(warp(image, setting.matrix, fill=fill))
    image = image_ops.blend(_degenerate(image, setting.degenerate), image, setting.factor)
    image = jax.lax.optimization_barrier(image)
    return image_ops.look_up(image, _tables(image, setting.argument)[setting.table])


def _matrix(kind: str, argument: Any, centre_y: float, centre_x: float) -> Any:
    xp = argument.__array_namespace__()
    one, zero = xp.ones_like(argument), xp.zeros_like(argument)
    rows = [one, zero, zero, zero, one, zero]
    places = {"shear_x": 1, "translate_x": 2, "shear_y": 3, "translate_y": 5}
    if kind in places:
        rows[places[kind]] = argument
    elif kind == "rotate":  # PIL/Image.py: rotate
        cosine = xp.cos(argument * (math.pi / 180))
        sine = xp.sin(argument * (-math.pi / 180))
        across = centre_x - cosine * centre_x - sine * centre_y
        down = centre_y + sine * centre_x - cosine * centre_y
        rows = [cosine, sine, across, -sine, cosine, down]
    return xp.stack(rows, axis=-1)


def _degenerate(image: Image, kind: Array) -> Array:
    shown = jnp.where(kind == DEGENERATES.index("mean"), image_ops.mean_grey(image), jnp.uint8(0))
    shown = jnp.where(kind == DEGENERATES.index("grey"), image_ops.grey(image), shown)
    return jnp.where(kind == DEGENERATES.index("smooth"), image_ops.smooth(image), shown)


def _tables(image: Image, argument: Array) -> UInt8[Array, "kinds 256 channels"]:
    values = jnp.arange(256, dtype=jnp.int32)[:, None]
    counts = image_ops.histogram(image)
    whole = argument.astype(jnp.int32)
    tables = {
        "identity": values,
        "invert": 255 - values,
        "posterize": (values >> (8 - whole)) << (8 - whole),
        "solarize": jnp.where(values < argument, values, 255 - values),
        "solarize_add": jnp.where(values < 128, jnp.minimum(values + whole, 255), values),
        "autocontrast": image_ops.autocontrast_tables(counts),
        "equalize": image_ops.equalize_tables(counts),
    }
    shape = (256, image.shape[-1])
    return jnp.stack([jnp.broadcast_to(tables[name].astype(jnp.uint8), shape) for name in TABLES])
