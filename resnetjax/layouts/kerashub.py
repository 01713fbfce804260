"""The presets of KerasHub: a backbone's `config.json`, and files of its head and of its images."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnetjax import presets
from resnetjax.config import Preprocess
from resnetjax.data.preprocess_formats.kerashub import from_kerashub, to_kerashub
from resnetjax.layouts.description import Description, Wanted, preprocess_by
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.weights import bounded_json, keras_archive, keras_config
from resnetjax.weights.files import KERASHUB_HEAD

TASK, TASK_PREPROCESSOR, IMAGE_CONVERTER = "task.json", "preprocessor.json", "image_converter.json"

_VERSION = "0.32.0"  # whose form of presets this is


def parse(values: Mapping[str, Any], folder: Path, wanted: Wanted) -> Description:
    """What a preset says.

    Raises:
        ConfigError: It is of another backbone, or a net that cannot be.
    """
    classes = 0
    if (folder / KERASHUB_HEAD).is_file():
        classes = bounded_json.read(folder / TASK)["config"]["num_classes"]
    config = keras_config.from_kerashub(values, num_classes=classes) if wanted.net else None
    arch = presets.architecture_of(config) if config else None
    preprocess = _preprocess(folder) if wanted.preprocess else None
    return Description("kerashub", config, arch, preprocess, labels=None)


def compose(described: Description) -> dict[str, dict[str, Any]]:
    """The JSON values of the files with which KerasHub has this net, by their names.

    Labels and the licence have no place there.

    Args:
        described: A net that dialect `kerashub` can express.

    Raises:
        ConfigError: KerasHub has no first stage of this width, or cannot prepare images so; the
            message names the field.
    """
    config = described.config
    assert config is not None
    backbone = leaves(plan(config.replace(num_classes=0)))
    files = {
        "config.json": keras_archive.backbone(config),
        "metadata.json": {
            "keras_version": keras_archive.VERSION,
            "keras_hub_version": _VERSION,
            "parameter_count": sum(leaf.size for leaf in backbone.values()),
            "tasks": ["ImageClassifier"],
        },
    }
    preprocessor = None
    if described.preprocess:
        settings = to_kerashub(described.preprocess)
        files[IMAGE_CONVERTER] = _layer("ResNetImageConverter", settings)
        settings = {"image_converter": files[IMAGE_CONVERTER], "config_file": TASK_PREPROCESSOR}
        preprocessor = _layer("ResNetImageClassifierPreprocessor", settings)
    if config.num_classes:
        files[TASK] = keras_archive.classifier(config, preprocessor)
        if preprocessor:
            files[TASK_PREPROCESSOR] = preprocessor
    return files


def _preprocess(folder: Path) -> Preprocess | None:
    """As KerasHub does, the preprocessor of a task before that of the backbone."""
    for name in (TASK_PREPROCESSOR, IMAGE_CONVERTER):
        if (folder / name).is_file():
            found = bounded_json.read(folder / name)
            converter = (
                found["config"].get("image_converter") if name == TASK_PREPROCESSOR else found
            )
            if converter:
                parse = from_kerashub
                return preprocess_by(parse, converter["config"], name=name)
            break
    return None


def _layer(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    module = re.sub("(?<=[a-z])(?=[A-Z])", "_", name.replace("ResNet", "Resnet")).lower()
    named = {"name": module.replace("resnet", "res_net"), "trainable": True}
    return keras_archive.registered(
        name, module, {**named, "dtype": keras_archive.FLOAT32, **settings}
    )
