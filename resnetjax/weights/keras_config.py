"""What Keras's own descriptions of a model say of the net (CONVERSION F14): data, never objects."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError, UnsafeWeights

MAX_DEPTH = 50  # of models within models

_CONVOLUTIONS = ("Conv2D", "Convolution2D", "DepthwiseConv2D")
# Layers that hold marshalled code, or the path of a program to run in their place.
_CODE = ("Lambda", "__lambda__", "TFSMLayer")
# What Keras itself writes of functions, of which it then looks up the name.
_NAMED = ("function", "type")


def refuse_code(model_config: Any) -> None:
    """Refuses a description whose layers are code of their own.

    Nothing here would run it. But such a net computes what its arrays do not tell, and whoever
    hides `os.system` in a description (CVE-2025-1550, -9905, CVE-2026-1462) is not to be trusted
    with the rest.

    Raises:
        UnsafeWeights: It names Python code, a SavedModel, or a module of Python's own.
    """
    waiting = [model_config]
    while waiting:
        value = waiting.pop()
        if type(value) is list:
            waiting += value
        if type(value) is not dict:
            continue
        waiting += value.values()
        kind, module = str(value.get("class_name")), str(value.get("module")).partition(".")[0]
        if kind in _CODE or (module in sys.stdlib_module_names and kind not in _NAMED):
            raise UnsafeWeights(
                f"the model has a {kind:.80} of {module:.80}: a layer that is code of its own. "
                "It is not run, and what the net computes cannot be told without"
            )


def observed(model_config: Any) -> dict[str, Any]:
    """The config fields that a model's layers tell, of those that names and shapes do not.

    Args:
        model_config: The JSON of a Functional or Sequential model, as `.keras` and full `.h5` files
            hold it; of anything else nothing is told.
    """
    if (backbone := _kerascv_backbone(model_config)) is not None:
        return _kerascv(backbone["class_name"], backbone["config"])
    layers = list(_layers(model_config))
    norms = [config for kind, config in layers if kind == "BatchNormalization"]
    convs = [config for kind, config in layers if kind in _CONVOLUTIONS]
    pools = [config for kind, config in layers if kind == "MaxPooling2D"]
    found: dict[str, Any] = {}
    for field, key in (("norm_eps", "epsilon"), ("norm_decay", "momentum")):
        values = {config.get(key) for config in norms if type(config.get(key)) is float}
        if len(values) == 1:
            found[field] = values.pop()
    strided = [config for config in convs[1:] if config.get("strides") == [2, 2]]
    spatial = [config for config in strided if config.get("kernel_size") != [1, 1]]
    paddings = {str(config.get("padding")) for config in (*spatial, *convs[:1])}
    if len(paddings) == 1:
        found |= {"padding": _padding(paddings.pop())}
    if strided:
        found["stride_on"] = "spatial" if spatial else "reduce"
    windows = [pool.get("padding") for pool in pools if pool.get("pool_size") == [3, 3]]
    if windows:
        found["stem_pool_padding"] = _padding(windows[0])
    return {field: value for field, value in found.items() if value is not None}


def _padding(keras: object) -> str | None:
    # What is "valid" stands behind a layer that pads.
    return {"same": "same", "valid": "torch"}.get(str(keras))


def from_kerascv(model_config: Any) -> bool:
    """Whether it describes a ResNet of KerasCV's, whose layers it does not list."""
    return _kerascv_backbone(model_config) is not None


def _kerascv_backbone(model_config: Any) -> dict[str, Any] | None:
    """What describes KerasCV's backbone: all of it, or a part of its classifier's description.

    By its class and settings: a legacy `.h5` does not say where the class is from.
    """
    config = model_config.get("config") if type(model_config) is dict else None
    within = config.get("backbone") if type(config) is dict else None
    for found in (model_config, within):
        if type(found) is not dict or type(found.get("config")) is not dict:
            continue
        # KerasHub's class has the name too, and `stackwise_num_blocks`.
        named = found.get("class_name") in ("ResNetBackbone", "ResNetV2Backbone")
        if named and "stackwise_blocks" in found["config"]:
            return found
    return None


def _kerascv(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    strides, dilations = given.get("stackwise_strides"), given.get("stackwise_dilations")
    if type(strides) is not list or not all(type(stride) is int for stride in strides):
        return {}
    rates = dilations if type(dilations) is list else [1] * len(strides)
    if len(rates) != len(strides) or not all(type(rate) is int for rate in rates):
        return {}
    # Where it dilates it does not stride (F13).
    kept = (1 if rate > 1 else stride for stride, rate in zip(strides, rates, strict=True))
    placed = _KERASCV_STRIDE.get((name, str(given.get("block_type"))))
    return {
        "strides": tuple(kept),
        "dilations": tuple(rates),
        **({"stride_on": placed} if placed else {}),
    }


# By class and kind of block (resnet_v1_backbone.py, resnet_v2_backbone.py).
_KERASCV_STRIDE = {
    ("ResNetBackbone", "block"): "reduce",
    ("ResNetBackbone", "basic_block"): "spatial",
    ("ResNetV2Backbone", "block"): "spatial",
    ("ResNetV2Backbone", "basic_block"): "last_spatial",
}


def from_kerashub(values: Mapping[str, Any], *, num_classes: int) -> ResNetConfig:
    """The net that a KerasHub `ResNetBackbone` describes in a preset's `config.json`.

    Raises:
        ConfigError: It is another backbone, or a net that cannot be.
    """
    if values.get("registered_name") != "keras_hub>ResNetBackbone":
        raise ConfigError(
            f"registered_name={values.get('registered_name')!r} is not supported: "
            "use a preset of KerasHub's ResNetBackbone"
        )
    given = values["config"]
    kind, _, vd = given["block_type"].partition("_block")
    pre = given["use_pre_activation"]
    blocks, widths = tuple(given["stackwise_num_blocks"]), given["input_conv_filters"]
    return ResNetConfig.from_json(
        {
            "block": kind,
            "depths": blocks,
            "widths": given["stackwise_num_filters"],
            "strides": given["stackwise_num_strides"],
            "dilations": [1] * len(blocks),
            "order": "pre" if pre else "post",
            "shortcut_norm": not pre,
            "stem": {(7,): "conv7", (3, 3, 3): "deep"}[tuple(given["input_conv_kernel_sizes"])],
            "stem_width": widths[-1],
            "shortcut": "avg_conv" if vd else "conv",
            "projections": [True] * len(blocks) if vd and kind == "basic" else None,
            "in_channels": given["image_shape"][-1],
            "num_classes": num_classes,
        }
    )


def _layers(config: Any, depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class and config of every layer, those of models within the model too."""
    if type(config) is not dict or depth > MAX_DEPTH:
        return
    kind, inner = config.get("class_name"), config.get("config")
    if type(kind) is str and type(inner) is dict:
        layers = inner.get("layers")
        if type(layers) is not list:
            yield kind, {key: _plain(value) for key, value in inner.items()}
        for layer in layers if type(layers) is list else ():
            yield from _layers(layer, depth + 1)


def _plain(value: Any) -> Any:
    """One number for both axes, as Keras 1 wrote it, is a pair."""
    return [value, value] if type(value) is int else value
