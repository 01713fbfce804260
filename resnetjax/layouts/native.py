"""Our own `config.json`, which a `.safetensors` file carries in its metadata too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.errors import UnsupportedFile
from resnetjax.layouts.description import Description, Wanted

NAME = "resnetjax"


def parse(values: Mapping[str, Any], folder: Path, wanted: Wanted) -> Description:
    """What our own description says.

    Raises:
        UnsupportedFile: It is of another format.
        ConfigError: It describes what cannot be.
    """
    if values["format"] != NAME:
        raise UnsupportedFile(f"{folder}: config.json has format {values['format']!r}")
    return Description(
        layout=NAME,
        config=ResNetConfig.from_json(values["config"]) if wanted.net else None,
        arch=values.get("arch"),
        preprocess=Preprocess.from_json(values["preprocess"])
        if values.get("preprocess") and wanted.preprocess
        else None,
        labels=Labels.from_json(values["labels"]) if values.get("labels") else None,
        licence=values.get("licence"),
    )


def compose(described: Description) -> dict[str, dict[str, Any]]:
    """The JSON values of the files that say this, by their names."""
    values = {
        "format": NAME,
        "arch": described.arch,
        "licence": described.licence,
        "config": described.config.to_json() if described.config else None,
        "preprocess": described.preprocess.to_json() if described.preprocess else None,
        "labels": described.labels.to_json() if described.labels else None,
    }
    return {"config.json": values}


def to_text(described: Description) -> str:
    """Our `config.json`, as it stands in a directory and in the metadata of a file."""
    return json.dumps(compose(described)["config.json"], indent=1)
