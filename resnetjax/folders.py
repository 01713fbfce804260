"""Directories that say what they hold by a `config.json`: Transformers', timm's and ours."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resnetjax import presets
from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.data import labels as label_sets
from resnetjax.data import preprocess_formats
from resnetjax.errors import ConfigError, ResNetJAXError, UnsupportedFile
from resnetjax.weights import bounded_json, keras_config, tf_bundle
from resnetjax.weights.files import KERASHUB_HEAD

NATIVE = "resnetjax"
WEIGHT_FILES = (  # in the order in which they are looked for
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "model.weights.h5",
)
RUN_MODELS = ("best", "latest")  # of a training run, in the order in which they are looked for
# Transformers' names for the activations that it and we have (transformers/activations.py: ACT2FN).
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


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


def find_weights(folder: Path) -> Path:
    """The weight file of a directory.

    Raises:
        UnsupportedFile: There is none under any of the usual names.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    if (prefix := tf_bundle.prefix_of(folder)) is not None:
        return tf_bundle.index_path(prefix)
    expected = ", ".join(WEIGHT_FILES)
    raise UnsupportedFile(
        f"{folder}: no weights found: expected {expected}, or a TensorFlow checkpoint"
    )


def find_model(path: Path) -> Path:
    """The model to load at a path: of a training run its best, or its latest; else the path.

    A TensorFlow checkpoint may be given by its prefix, at which there is no file.
    """
    if not path.exists() and (prefix := tf_bundle.prefix_of(path)) is not None:
        return tf_bundle.index_path(prefix)
    is_model = (path / "config.json").is_file() or any((path / f).is_file() for f in WEIGHT_FILES)
    if path.is_dir() and not is_model:
        for name in RUN_MODELS:
            if (path / name / "config.json").is_file():
                return path / name
    return path


@dataclass(frozen=True)
class Wanted:
    """The parts of a description that are needed; the others are neither parsed nor refused."""

    net: bool = True
    preprocess: bool = True


def describe(path: Path, wanted: Wanted = Wanted()) -> Description | None:
    """What a directory says of its weights.

    The directory is given as itself, or as its weight file under a usual name. None where there is
    no `config.json`; one that lies beside a file of another name is not about it.

    Raises:
        UnsupportedFile: The `config.json` is of another kind of model, or of no known layout.
        ConfigError: It describes a net that cannot be.
        CorruptFile: It is not JSON.
    """
    if path.is_file() and path.name not in WEIGHT_FILES:
        return None
    folder = path if path.is_dir() else path.parent
    path = folder / "config.json"
    if not path.is_file():
        return None
    values = _read(path)
    for key, parse in _PARSERS.items():
        if key in values:
            with _naming(str(path)):
                return parse(values, folder, wanted)
    if not wanted.net:
        return None
    raise UnsupportedFile(
        f"{path}: expected the config.json of Transformers, timm, KerasHub or resnetjax"
    )


def describe_metadata(metadata: Mapping[str, Any], path: Path) -> Description | None:
    """What a native `.safetensors` file says of itself; None where it says nothing.

    Raises:
        ConfigError: It describes a net that cannot be.
        CorruptFile: It is not JSON.
    """
    if NATIVE not in metadata:
        return None
    what = f"{path}: its metadata"
    with _naming(what):
        values = bounded_json.loads(str(metadata[NATIVE]).encode(), what=what)
        return _native(values, path, Wanted())


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Says where a value that is not allowed was found, also one of another type than expected."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    except ResNetJAXError:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"{what}: malformed: {error!r}") from error


def to_text(described: Description) -> str:
    """A native `config.json`; a native `.safetensors` file carries it in its metadata too."""
    values = {
        "format": NATIVE,
        "arch": described.arch,
        "licence": described.licence,
        "config": described.config.to_json() if described.config else None,
        "preprocess": described.preprocess.to_json() if described.preprocess else None,
        "labels": described.labels.to_json() if described.labels else None,
    }
    return json.dumps(values, indent=1)


def _native(values: Mapping[str, Any], folder: Path, wanted: Wanted) -> Description:
    if values["format"] != NATIVE:
        raise UnsupportedFile(f"{folder}: config.json has format {values['format']!r}")
    return Description(
        layout=NATIVE,
        config=ResNetConfig.from_json(values["config"]) if wanted.net else None,
        arch=values.get("arch"),
        preprocess=Preprocess.from_json(values["preprocess"])
        if values.get("preprocess") and wanted.preprocess
        else None,
        labels=Labels.from_json(values["labels"]) if values.get("labels") else None,
        licence=values.get("licence"),
    )


def _transformers(values: Mapping[str, Any], folder: Path, wanted: Wanted) -> Description:
    if values["model_type"] != "resnet" and wanted.net:
        raise UnsupportedFile(
            f"{folder}: a Transformers model of type {values['model_type']!r}, not 'resnet'"
        )
    config = from_transformers(values) if wanted.net else None
    processor = folder / "preprocessor_config.json"
    preprocess = None
    if processor.is_file() and wanted.preprocess:
        preprocess = preprocess_formats.from_transformers(_read(processor))
    named = values.get("id2label") or {}
    names = tuple(named[key] for key in sorted(named, key=int))
    activations: dict[str | None, Any] = {
        "multi_label_classification": "sigmoid",
        "regression": "none",
    }
    activation = activations.get(values.get("problem_type"), "softmax")
    labels = _with_ids(Labels(names=names, activation=activation)) if names else None
    return Description(
        "transformers",
        config,
        architecture_of(config) if config else None,
        preprocess,
        labels,
    )


def from_transformers(values: Mapping[str, Any]) -> ResNetConfig:
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
            "num_classes": len(values.get("id2label") or ()) or 1000,
        }
    )


def _timm(values: Mapping[str, Any], folder: Path, wanted: Wanted) -> Description:
    arch = values["architecture"]
    given = values.get("pretrained_cfg") or values  # older files have its fields beside the others
    config = None
    count = values.get("num_classes", given.get("num_classes", 1000))
    if wanted.net:
        config = _with_timm_arguments(presets.get(arch), values.get("model_args") or {})
        config = config.replace(num_classes=count)
    names = next((v[k] for k in _TIMM_LABELS for v in (values, given) if v.get(k)), ())
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    described = values.get("label_descriptions") or given.get("label_descriptions") or {}
    labels = None
    if names and len(names) == count:
        readable = tuple(described.get(name, name) for name in names)
        synsets = all(re.fullmatch(r"n\d{8}", name) for name in names)
        labels = _with_ids(Labels(names=readable, ids=tuple(names) if synsets else None))
    return Description(
        layout="timm",
        config=config,
        arch=arch,
        preprocess=preprocess_formats.from_timm(given)
        if wanted.preprocess and _TIMM_TRANSFORM & set(given)
        else None,
        labels=labels,
        licence=given.get("license"),
    )


_TIMM_LABELS = ("label_names", "labels")  # the latter in older files
_TIMM_TRANSFORM = {"input_size", "crop_pct", "interpolation", "mean", "std"}

# timm's arguments by what they mean here; those that are None matter in training or elsewhere only.
_TIMM_ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]] | None] = {
    "num_classes": None,
    "global_pool": lambda kind: (
        {"head_pool": {"avg": "average", "": "average", "max": "max"}[kind]}
        if kind in ("avg", "", "max")
        else _refuse("global_pool", kind, "'avg' or 'max'")
    ),
    "in_chans": lambda channels: {"in_channels": channels},
    "output_stride": lambda stride: {} if stride == 32 else {"output_stride": stride},
    "act_layer": lambda name: {"activation": ACTIVATIONS.get(name, name)},
    "drop_rate": lambda rate: {"dropout": rate},
    "drop_path_rate": lambda rate: {"drop_path_rate": rate},
    "zero_init_last": lambda zero: {"zero_init_residual": zero},
    "pretrained": None,
    "features_only": None,
}


def _with_timm_arguments(config: ResNetConfig, arguments: Mapping[str, Any]) -> ResNetConfig:
    changes: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in _TIMM_ARGUMENTS:
            raise ConfigError(
                f"model_args has {name}={value!r}, which is not supported: pass config="
            )
        translate = _TIMM_ARGUMENTS[name]
        changes |= translate(value) if translate else {}
    return config.replace(**changes)


def _refuse(name: str, value: object, allowed: str) -> dict[str, Any]:
    raise ConfigError(f"{name}={value!r} is not supported: use {allowed}")


def _kerashub(values: Mapping[str, Any], folder: Path, wanted: Wanted) -> Description:
    classes = 0
    if (folder / KERASHUB_HEAD).is_file():
        classes = _read(folder / "task.json")["config"]["num_classes"]
    config = keras_config.from_kerashub(values, num_classes=classes) if wanted.net else None
    arch = architecture_of(config) if config else None
    return Description("kerashub", config, arch, preprocess=None, labels=None)


def architecture_of(config: ResNetConfig) -> str | None:
    """The architecture that is this net, its classes and input channels aside."""
    for name, known in presets.ARCHITECTURES.items():
        if known.replace(num_classes=config.num_classes, in_channels=config.in_channels) == config:
            return name
    return None


def _with_ids(labels: Labels) -> Labels:
    """ImageNet's labels with their WordNet ids, and readable where a file gives only the ids."""
    imagenet = label_sets.get("imagenet_1k")
    if labels.ids == imagenet.ids and labels.names == labels.ids:
        return replace(labels, names=imagenet.names)
    return replace(labels, ids=imagenet.ids) if labels.names == imagenet.names else labels


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return bounded_json.loads(file.read(bounded_json.MAX_BYTES + 1), what=str(path))


_PARSERS: dict[str, Callable[[Mapping[str, Any], Path, Wanted], Description]] = {
    "format": _native,
    "model_type": _transformers,
    "architecture": _timm,
    "registered_name": _kerashub,
}
