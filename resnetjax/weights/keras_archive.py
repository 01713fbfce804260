"""Whole models as Keras 3 loads them: `.keras` archives (keras/src/saving/saving_lib.py).

A zip archive of the model's description and of its weights, in which the layers' groups are
numbered in the order of that description. And what of a preset of KerasHub's is like it.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.weights import keras_dialects, keras_graph, keras_writer, zip_archive
from resnetjax.weights.dialect import Dialect
from resnetjax.weights.files import KERASHUB_BACKBONE, KERASHUB_HEAD

VERSION = "3.15.0"  # whose form of descriptions this is
FLOAT32 = {
    "module": "keras",
    "class_name": "DTypePolicy",
    "config": {"name": "float32"},
    "registered_name": None,
}


def encode(arrays: Mapping[str, np.ndarray], config: ResNetConfig, dialect: Dialect) -> bytes:
    """The bytes of a `.keras` file: KerasHub's own classes, else a Functional model.

    Args:
        arrays: By `<layer>/<variable>`, in the order of the model's layers.
        config: A net that the dialect can express.
        dialect: Of Keras.

    Raises:
        ConfigError: Keras cannot compute this net; the field is named.
        MissingExtra: h5py is not installed.
    """
    if dialect is keras_dialects.KERASHUB:
        model = classifier(config) if config.num_classes else backbone(config)
        weights = encode_weights(arrays, config, dialect)
    else:
        model, listed = keras_graph.functional(config, dialect)
        places = {name: place for place, name in enumerate(listed)}
        in_order = sorted(arrays, key=lambda name: places[name.rpartition("/")[0]])
        weights = keras_writer.encode_numbered({name: arrays[name] for name in in_order})
    return zip_archive.encode(
        {
            "metadata.json": json.dumps({"keras_version": VERSION}).encode(),
            "config.json": json.dumps(model).encode(),
            "model.weights.h5": weights,
        }
    )


def encode_weights(
    arrays: Mapping[str, np.ndarray], config: ResNetConfig, dialect: Dialect
) -> bytes:
    """The bytes of a `.weights.h5` file; a classifier of KerasHub's has its backbone within.

    Raises:
        MissingExtra: h5py is not installed.
    """
    within = dialect is keras_dialects.KERASHUB and config.num_classes
    return keras_writer.encode_numbered(arrays, backbone="res_net_backbone" if within else None)


def encode_preset(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """The weight files of a preset of KerasHub's, which has the head in one of its own.

    Args:
        arrays: By `<layer>/<variable>`, in the order of the model's layers.

    Raises:
        MissingExtra: h5py is not installed.
    """
    files: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        head = name.startswith(f"{keras_dialects.KERASHUB.head}/")
        files.setdefault(KERASHUB_HEAD if head else KERASHUB_BACKBONE, {})[name] = array
    return {name: keras_writer.encode_numbered(part) for name, part in files.items()}


def classifier(config: ResNetConfig, preprocessor: dict[str, Any] | None = None) -> dict[str, Any]:
    """The description of a `ResNetImageClassifier`, which gives logits.

    Args:
        config: A net with a head that dialect `kerashub` can express.
        preprocessor: The description of what prepares its images.

    Raises:
        ConfigError: Its backbone takes no first stage of this width.
    """
    settings = {
        "name": "image_classifier",
        "backbone": backbone(config),
        "preprocessor": preprocessor,
        "num_classes": config.num_classes,
        "pooling": "avg",
        "activation": None,
        "dropout": config.dropout,
    }
    return registered("ResNetImageClassifier", "resnet_image_classifier", settings)


def backbone(config: ResNetConfig) -> dict[str, Any]:
    """The description of a `ResNetBackbone` (keras_hub/src/models/resnet/resnet_backbone.py).

    Raises:
        ConfigError: It takes no first stage of this width.
    """
    if config.widths[0] != 64:
        raise ConfigError(
            f"widths={config.widths} is not allowed: KerasHub has 64 in the first stage"
        )
    width, vd = config.stem_width, "_vd" * (config.shortcut == "avg_conv")
    settings = {
        "name": "res_net_backbone",
        "trainable": True,
        "dtype": FLOAT32,
        "input_conv_filters": [width] if config.stem == "conv7" else [width // 2] * 2 + [width],
        "input_conv_kernel_sizes": [7] if config.stem == "conv7" else [3] * 3,
        "stackwise_num_filters": list(config.widths),
        "stackwise_num_blocks": list(config.depths),
        "stackwise_num_strides": list(config.strides),
        "block_type": f"{config.block}_block{vd}",
        "use_pre_activation": config.order == "pre",
        "image_shape": [None, None, config.in_channels],
    }
    return registered("ResNetBackbone", "resnet_backbone", settings)


def registered(name: str, module: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The description of an object of one of KerasHub's classes of ResNets."""
    return {
        "module": f"keras_hub.src.models.resnet.{module}",
        "class_name": name,
        "config": settings,
        "registered_name": f"keras_hub>{name}",
    }
