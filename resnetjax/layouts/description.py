"""What a directory says of the weights in it, whoever's layout it has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.data import labels as label_sets
from resnetjax.errors import ConfigError


@dataclass(frozen=True)
class Description:
    """What a `config.json` and its neighbours say of the weights beside them.

    Attributes:
        layout: Whose layout it is: "resnetjax", "transformers", "timm" or "kerashub".
        config: The net, or None where it was not asked for; the arrays decide on its classes and
            input channels.
        arch: The architecture's name, where it has one.
        preprocess: None where nothing is said.
        labels: None where nothing is said.
        licence: None where nothing is said.
    """

    layout: str
    config: ResNetConfig | None
    arch: str | None
    preprocess: Preprocess | None
    labels: Labels | None
    licence: str | None = None


@dataclass(frozen=True)
class Wanted:
    """The parts of a description that are needed; the others are neither parsed nor refused."""

    net: bool = True
    preprocess: bool = True


EVERYTHING = Wanted()


def with_ids(labels: Labels) -> Labels:
    """ImageNet's labels with their WordNet ids, and readable where a file gives only the ids."""
    name = label_sets.IMAGENETS.get(len(labels.names))
    if name is None:
        return labels
    imagenet = label_sets.get(name)
    if labels.ids == imagenet.ids and labels.names == labels.ids:
        return replace(labels, names=imagenet.names)
    return replace(labels, ids=imagenet.ids) if labels.names == imagenet.names else labels


def preprocess_by(
    parse: Callable[[Mapping[str, Any]], Preprocess | None], values: Mapping[str, Any], *, name: str
) -> Preprocess | None:
    """What a file says of images, or an error that names the file and the way round it.

    Raises:
        ConfigError: It is not supported.
    """
    try:
        return parse(values)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error} (preprocess= decides)") from error
