"""HDF5 files: those that Keras loads into a model that it has built, and plain trees.

Keras goes by the order of the layers, which is that of the arrays here; names are for people, and
for `by_name=True`.
"""

import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnetjax.errors import MissingExtra

_KINDS = {
    "kernel": "conv2d",
    "depthwise_kernel": "depthwise_conv2d",
    "gamma": "batch_normalization",
}


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a legacy weights file (keras/src/legacy/saving/legacy_h5_format.py).

    Args:
        arrays: By `<layer>/<variable>`, in the order of the model's layers.

    Raises:
        MissingExtra: h5py is not installed.
    """

    def fill(file: Any) -> None:
        layers = _layers(arrays)
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["backend"] = b"jax"
        file.attrs["keras_version"] = b"3.0.0"
        for layer, variables in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}".encode() for name in variables]
            for name, array in variables.items():
                group.create_dataset(f"{layer}/{name}", data=array)

    return _write(fill)


def encode_numbered(arrays: Mapping[str, np.ndarray], *, backbone: str | None = None) -> bytes:
    """The bytes of a `.weights.h5` file of Keras 3 (keras/src/saving/saving_lib.py).

    Args:
        arrays: By `<layer>/<variable>`, in the order of the model's layers.
        backbone: Of a classifier, the model within it that has all layers but the dense one.

    Raises:
        MissingExtra: h5py is not installed.
    """

    def fill(file: Any) -> None:
        counts = Counter[str]()
        for layer, variables in _layers(arrays).items():
            first = next(iter(variables))
            kind = "dense" if variables[first].ndim == 2 else _KINDS[first]
            number = f"_{counts[kind]}" if counts[kind] else ""
            counts[kind] += 1
            model = f"layers/{backbone}/" if backbone and kind != "dense" else ""
            group = file.create_group(f"{model}layers/{kind}{number}/vars")
            group.attrs["name"] = layer
            for place, array in enumerate(variables.values()):
                group.create_dataset(str(place), data=array)

    return _write(fill)


def encode_tree(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a file of groups within groups, as the names of the arrays say.

    Raises:
        MissingExtra: h5py is not installed.
    """

    def fill(file: Any) -> None:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)

    return _write(fill)


def _layers(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        layer, _, variable = name.rpartition("/")
        layers.setdefault(layer, {})[variable] = array
    return layers


def _write(fill: Any) -> bytes:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra('HDF5 files need h5py: pip install "resnetjax[keras]"') from error
    written = io.BytesIO()
    with h5py.File(written, "w") as file:
        fill(file)
    return written.getvalue()
