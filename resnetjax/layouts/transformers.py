"""Transformers' directories: `config.json` of a `ResNetConfig`, `preprocessor_config.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnetjax import presets
from resnetjax.config import Labels, OutputActivation, ResNetConfig
from resnetjax.data.preprocess_formats.transformers import from_transformers, to_transformers
from resnetjax.errors import ConfigError, UnsupportedFile
from resnetjax.layouts.description import Description, Wanted, preprocess_by, with_ids
from resnetjax.weights import bounded_json

# Its names for the activations that it and we have (transformers/activations.py: ACT2FN); of
# several for one of ours the first is written.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
PROCESSOR = "preprocessor_config.json"

_PROBLEMS: dict[str | None, OutputActivation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}
_HEADLESS, _CLASSIFIER = "ResNetModel", "ResNetForImageClassification"


def parse(values: Mapping[str, Any], folder: Path, wanted: Wanted) -> Description:
    """What a `config.json` and the image processor beside it say.

    Raises:
        UnsupportedFile: It is of another model.
        ConfigError: It describes what cannot be, or what is not supported.
    """
    if values["model_type"] != "resnet" and wanted.net:
        raise UnsupportedFile(
            f"{folder}: a Transformers model of type {values['model_type']!r}, not 'resnet'"
        )
    config = to_config(values) if wanted.net else None
    preprocess = None
    if (folder / PROCESSOR).is_file() and wanted.preprocess:
        processor = bounded_json.read(folder / PROCESSOR)
        preprocess = preprocess_by(from_transformers, processor, name=PROCESSOR)
    return Description(
        "transformers",
        config,
        presets.architecture_of(config) if config else None,
        preprocess,
        _labels(values),
    )


def compose(described: Description) -> dict[str, dict[str, Any]]:
    """The JSON values of the files with which Transformers has this net, by their names.

    What matters in training alone, and the licence, have no place there.

    Args:
        described: A net that dialect `transformers` can express.

    Raises:
        ConfigError: Transformers cannot prepare images so; the message names the field.
    """
    config, labels = described.config, described.labels
    assert config is not None
    bottleneck = config.block == "bottleneck"
    names = labels.names if labels else _placeholders(config.num_classes)
    values = {
        "architectures": [_CLASSIFIER if config.num_classes else _HEADLESS],
        "model_type": "resnet",
        "num_channels": config.in_channels,
        "embedding_size": config.stem_width,
        "hidden_sizes": [width * (4 if bottleneck else 1) for width in config.widths],
        "depths": list(config.depths),
        "layer_type": config.block,
        "hidden_act": next(x for x, ours in ACTIVATIONS.items() if ours == config.activation),
        "downsample_in_first_stage": config.strides[0] == 2,
        "downsample_in_bottleneck": config.stride_on == "reduce",
        "dtype": "float32",
    }
    if config.num_classes:
        # Of equal names the last one's number stays, as in Transformers' own configs.
        values["id2label"] = {str(number): name for number, name in enumerate(names)}
        values["label2id"] = {name: number for number, name in enumerate(names)}
    if labels:
        values["problem_type"] = next(x for x, y in _PROBLEMS.items() if y == labels.activation)
    files = {"config.json": values}
    if described.preprocess:
        files[PROCESSOR] = to_transformers(described.preprocess)
    return files


def to_config(values: Mapping[str, Any]) -> ResNetConfig:
    """The net that a Transformers `ResNetConfig` describes; absent fields mean its defaults.

    Raises:
        ConfigError: An activation that is not supported, or sizes that cannot be.
    """
    bottleneck = values.get("layer_type", "bottleneck") == "bottleneck"
    depths = tuple(values.get("depths", (3, 4, 6, 3)))
    sizes = values.get("hidden_sizes", (256, 512, 1024, 2048))
    if bottleneck and any(size % 4 for size in sizes):
        raise ConfigError(
            f"hidden_sizes={sizes!r} is not allowed: use multiples of 4 with bottlenecks"
        )
    hidden_act = values.get("hidden_act", "relu")
    if hidden_act not in ACTIVATIONS:
        raise ConfigError(
            f"hidden_act={hidden_act!r} is not supported: use {', '.join(ACTIVATIONS)}"
        )
    activation = ACTIVATIONS[hidden_act]
    first = 2 if values.get("downsample_in_first_stage") else 1
    classes = 0 if values.get("architectures") == [_HEADLESS] else 1000
    return ResNetConfig.from_json(
        {
            "block": "bottleneck" if bottleneck else "basic",
            "depths": depths,
            "widths": [size // 4 if bottleneck else size for size in sizes],
            "strides": [first, *[2] * (len(depths) - 1)],
            "dilations": [1] * len(depths),
            "stride_on": "reduce"
            if bottleneck and values.get("downsample_in_bottleneck")
            else "spatial",
            "stem_width": values.get("embedding_size", 64),
            "activation": activation,
            # The other layers keep ResNetConvLayer's default.
            "inner_activation": None if activation == "relu" else "relu",
            "in_channels": values.get("num_channels", 3),
            "num_classes": len(values.get("id2label") or ()) or classes,
        }
    )


def _labels(values: Mapping[str, Any]) -> Labels | None:
    named = values.get("id2label") or {}
    names = tuple(named[key] for key in sorted(named, key=int))
    if not names or names == _placeholders(len(names)):
        return None
    activation = _PROBLEMS.get(values.get("problem_type"), "softmax")
    return with_ids(Labels(names=names, activation=activation))


def _placeholders(count: int) -> tuple[str, ...]:
    """What Transformers calls classes that have no names (its `PreTrainedConfig.num_labels`)."""
    return tuple(f"LABEL_{number}" for number in range(count))
