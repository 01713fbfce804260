"""The presets of KerasHub: a backbone's `config.json`, and a `task.json` where it has a head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnetjax import presets
from resnetjax.layouts.description import Description, Wanted
from resnetjax.weights import bounded_json, keras_config
from resnetjax.weights.files import KERASHUB_HEAD


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
    return Description("kerashub", config, arch, preprocess=None, labels=None)
