"""Weights and images that follow from an array's path alone: the golden files hold none."""

import math
import zlib

import numpy as np

SEED = 20260
CLASSES = 11
# Each feature map is kept as far as this channel: every channel of it depends on all before it.
CHANNELS = 8

# MLPerf Tiny's ResNet-8 by the names in its file.
MLPERF_LAYERS = {
    "conv2d": "stem/conv1", "batch_normalization": "stem/norm1",
    "conv2d_1": "stage1_block1/conv1", "batch_normalization_1": "stage1_block1/norm1",
    "conv2d_2": "stage1_block1/conv2", "batch_normalization_2": "stage1_block1/norm2",
    "conv2d_3": "stage2_block1/conv1", "batch_normalization_3": "stage2_block1/norm1",
    "conv2d_4": "stage2_block1/conv2", "batch_normalization_4": "stage2_block1/norm2",
    "conv2d_5": "stage2_block1/shortcut/conv",
    "conv2d_6": "stage3_block1/conv1", "batch_normalization_5": "stage3_block1/norm1",
    "conv2d_7": "stage3_block1/conv2", "batch_normalization_6": "stage3_block1/norm2",
    "conv2d_8": "stage3_block1/shortcut/conv",
    "dense": "head",
}  # fmt: skip
# Keras's names of a layer's arrays.
KERAS_ARRAYS = {
    "kernel": "kernel", "bias": "bias",
    "gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var",
}  # fmt: skip


def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array at a path of our tree, by the last part of its name.

    Half of each norm's channels have a variance of epsilon's size, and a scale that keeps their
    outputs near 1: a wrong epsilon changes them, and would be lost among variances near 1.
    """
    layer, _, kind = path.rpartition("/")
    if kind == "kernel":
        bound = math.sqrt(6 / math.prod(shape[:-1]))  # of a uniform distribution with He's variance
        return _uniform(path, shape, -bound, bound)
    if kind in ("bias", "mean"):
        return _uniform(path, shape, -0.5, 0.5)
    var = _uniform(f"{layer}/var", shape, 0.05, 2)
    var *= np.where(_uniform(f"{layer}/pruned", shape, 0, 1) < 0.5, 1e-5, 1).astype(np.float32)
    if kind == "var":
        return var
    return _uniform(path, shape, 0.5, 1.5) * np.sqrt(var + np.float32(1e-5))


def image(size: str) -> np.ndarray:
    """A batch of one random image of a size such as "65x49" (height x width)."""
    height, width = map(int, size.split("x"))
    return _uniform(f"image/{size}", (1, height, width, 3), -1, 2)


def _uniform(path: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    # NumPy promises to keep a bit generator's raw stream, and not what `Generator` makes of it.
    raw = np.random.PCG64([SEED, zlib.crc32(path.encode())]).random_raw(math.prod(shape))
    return (
        (low + (high - low) * (raw >> np.uint64(11)) * 2.0**-53).astype(np.float32).reshape(shape)
    )
