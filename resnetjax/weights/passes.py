"""Exact rewritings of a net's arrays: the same function, spelled as another system spells it.

Each takes and gives arrays by path (float32, as `flatten` makes them) beside what describes them.
Sums are made in float64 and rounded once.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.weights.dialect import Dialect, base_config, inexpressible

Arrays = dict[str, np.ndarray]


def adapt(
    arrays: Mapping[str, np.ndarray], config: ResNetConfig, dialect: Dialect
) -> tuple[Arrays, ResNetConfig]:
    """The net as a dialect's system can have it, as far as rewriting it leaves its function."""
    adapted = dict(arrays)
    base = base_config(dialect, config.depths, (64,) * len(config.depths))
    lacking = {phrase.partition("=")[0] for phrase in inexpressible(dialect, config)}
    if "stem_pool_value" in lacking and (config.order, config.activation) == ("post", "relu"):
        # Nothing is below zero after a ReLU.
        config = config.replace(stem_pool_value=base.stem_pool_value)
    if config.norm == "batch" and "conv_bias" in lacking:
        adapted, config = fold_biases(adapted, config)
    if config.norm == "batch" and "norm_eps" in lacking:
        adapted, config = absorb_epsilon(adapted, config, base.norm_eps)
    return adapted, config


def fold_biases(
    arrays: Mapping[str, np.ndarray], config: ResNetConfig
) -> tuple[Arrays, ResNetConfig]:
    """The net without the convolutions' biases that a batch norm follows (CONVERSION F4).

    A bias shifts what the norm takes the mean off: `mean' = mean - bias`. Where no norm follows, as
    on bare shortcuts and at the end of a pre-activation block, biases stay.

    Raises:
        ConfigError: The norms are no batch norms, whose means are stored.
    """
    if config.bias_sites and config.norm != "batch":
        raise ConfigError(f"norm={config.norm!r} is not allowed: a bias folds into batch norm only")
    means = {path: _mean_behind(path, config) for path in arrays if re.search(_BIAS, path)}
    # A site's convolutions have a bias or not: of a deep stem before pre-activation blocks, the
    # last has no norm, and so all keep theirs.
    kept = {_site(path) for path, mean in means.items() if mean not in arrays}
    folded = dict(arrays)
    for path, mean in means.items():
        if _site(path) not in kept:
            folded[mean] = _float32(arrays[mean].astype(np.float64) - arrays[path])
            del folded[path]
    left = tuple(site for site in config.bias_sites if site in kept)
    return folded, config.replace(conv_bias=left or "none")


def absorb_epsilon(
    arrays: Mapping[str, np.ndarray], config: ResNetConfig, norm_eps: float
) -> tuple[Arrays, ResNetConfig]:
    """The net with another epsilon in its batch norms: `var' = var + eps - eps'` (CONVERSION F3).

    A variance may become negative, by at most the difference: what is divided by stays the same.

    Raises:
        ConfigError: The norms are no batch norms, whose variances are stored.
    """
    if config.norm != "batch":
        raise ConfigError(
            f"norm={config.norm!r} is not allowed: an epsilon is absorbed by batch norm only"
        )
    difference = config.norm_eps - norm_eps
    absorbed = {
        path: _float32(array.astype(np.float64) + difference) if path.endswith("/var") else array
        for path, array in arrays.items()
    }
    return absorbed, config.replace(norm_eps=norm_eps)


def reverse_channels(
    arrays: Mapping[str, np.ndarray], preprocess: Preprocess
) -> tuple[Arrays, Preprocess]:
    """The net for blue first if it took red first, and the reverse: the stem's kernel is turned."""
    kernel = np.ascontiguousarray(arrays["stem/conv1/kernel"][:, :, ::-1])
    return {**arrays, "stem/conv1/kernel": kernel}, reversed_order(preprocess)


def reversed_order(preprocess: Preprocess) -> Preprocess:
    """The same images with their channels the other way round."""
    return dataclasses.replace(
        preprocess,
        channel_order="rgb" if preprocess.channel_order == "bgr" else "bgr",
        mean=preprocess.mean[::-1],
        std=preprocess.std[::-1],
    )


def fold_scale(
    arrays: Mapping[str, np.ndarray], preprocess: Preprocess
) -> tuple[Arrays, Preprocess]:
    """The net for inputs that only had their means taken off: `(x / d - m) / s` is `(x - dm) / ds`.

    The stem's kernel is divided instead. Zeros that pad are zeros before and after: exact at the
    border too.
    """
    scale = preprocess.divisor * np.array(preprocess.std)
    means = tuple(float(preprocess.divisor * mean) for mean in preprocess.mean)
    kernel = _float32(arrays["stem/conv1/kernel"] / scale[:, None])
    plain = dataclasses.replace(
        preprocess, divisor=1.0, mean=means, std=(1.0,) * preprocess.channels
    )
    return {**arrays, "stem/conv1/kernel": kernel}, plain


def fold_mean(
    arrays: Mapping[str, np.ndarray], config: ResNetConfig, preprocess: Preprocess
) -> tuple[Arrays, Preprocess]:
    """The net for inputs whose means are still in, the stem's norm taking them off.

    Not exact at the border: the stem pads with zeros, which were the means before. So the outermost
    rows and columns that its kernel reaches beyond the image for (three, of 7x7) see black there.

    Raises:
        ConfigError: No batch norm follows the stem's first convolution.
    """
    if "stem/norm1/mean" not in arrays:
        raise ConfigError(
            f"order={config.order!r} is not allowed: no batch norm follows the stem's convolution"
        )
    kernel = arrays["stem/conv1/kernel"].astype(np.float64)
    shift = np.einsum("hwio,i->o", kernel, np.divide(preprocess.mean, preprocess.std))
    mean = _float32(arrays["stem/norm1/mean"] + shift)
    plain = dataclasses.replace(preprocess, mean=(0.0,) * preprocess.channels)
    return {**arrays, "stem/norm1/mean": mean}, plain


_BIAS = r"conv\d*/bias$"


def _site(path: str) -> str:
    """Where in the config's words a convolution is."""
    module = path.split("/")[-2]
    return "stem" if path.startswith("stem/") else "shortcut" if module == "conv" else module


def _mean_behind(path: str, config: ResNetConfig) -> str:
    """The mean of the norm that follows a convolution, if there is one."""
    prefix, number, _ = re.split(r"conv(\d*)/bias$", path)
    if config.order == "pre" and path.startswith("stage") and number:
        number = str(int(number) + 1)
    return f"{prefix}norm{number}/mean"


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)
