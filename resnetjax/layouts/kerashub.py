"""The presets of KerasHub: a backbone's `config.json`, and files of its head and of its images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnetjax import presets
from resnetjax.config import Preprocess
from resnetjax.data import preprocess_formats
from resnetjax.layouts.description import Description, Wanted, preprocess_by
from resnetjax.weights import bounded_json, keras_config
from resnetjax.weights.files import KERASHUB_HEAD

TASK_PREPROCESSOR, IMAGE_CONVERTER = "preprocessor.json", "image_converter.json"


def parse(values: Mapping[str, Any], folder: Path, wanted: Wanted) -> Description:
    """What a preset says.

    Raises:
        ConfigError: It is of another backbone, or a net that cannot be.
    """
    classes = 0
    if (folder / KERASHUB_HEAD).is_file():
        classes = bounded_json.read(folder / "task.json")["config"]["num_classes"]
    config = keras_config.from_kerashub(values, num_classes=classes) if wanted.net else None
    arch = presets.architecture_of(config) if config else None
    preprocess = _preprocess(folder) if wanted.preprocess else None
    return Description("kerashub", config, arch, preprocess, labels=None)


def _preprocess(folder: Path) -> Preprocess | None:
    """As KerasHub does, the preprocessor of a task before that of the backbone."""
    for name in (TASK_PREPROCESSOR, IMAGE_CONVERTER):
        if (folder / name).is_file():
            found = bounded_json.read(folder / name)
            converter = (
                found["config"].get("image_converter") if name == TASK_PREPROCESSOR else found
            )
            if converter:
                parse = preprocess_formats.from_kerashub
                return preprocess_by(parse, converter["config"], name=name)
            break
    return None
