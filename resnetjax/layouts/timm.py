"""timm's directories: a `config.json` that names an architecture, its arguments and its images."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resnetjax import presets
from resnetjax.config import Labels, ResNetConfig
from resnetjax.data.preprocess_formats.timm import from_timm, to_timm
from resnetjax.errors import ConfigError
from resnetjax.layouts.description import Description, Wanted, preprocess_by, with_ids
from resnetjax.plan import plan
from resnetjax.weights import torch_dialects
from resnetjax.weights.dialect import Dialect

_LABELS = ("label_names", "labels")  # the latter in older files
_TRANSFORM = {"input_size", "crop_pct", "interpolation", "mean", "std"}


def parse(values: Mapping[str, Any], folder: Path, wanted: Wanted) -> Description:
    """What a `config.json` of timm's says.

    Raises:
        UnknownName: No architecture is called as it says.
        ConfigError: It describes what cannot be, or what is not supported.
    """
    arch = values["architecture"]
    given = values.get("pretrained_cfg") or values  # older files have its fields beside the others
    config = None
    count = values.get("num_classes", given.get("num_classes", 1000))
    if wanted.net:
        config = _with_arguments(presets.get(arch), values.get("model_args") or {})
        config = config.replace(num_classes=count)
    names = next((v[k] for k in _LABELS for v in (values, given) if v.get(k)), ())
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    described = values.get("label_descriptions") or given.get("label_descriptions") or {}
    labels = None
    if names and len(names) == count:
        readable = tuple(described.get(name, name) for name in names)
        synsets = all(re.fullmatch(r"n\d{8}", name) for name in names)
        labels = with_ids(Labels(names=readable, ids=tuple(names) if synsets else None))
    return Description(
        layout="timm",
        config=config,
        arch=arch,
        preprocess=preprocess_by(from_timm, given, name="pretrained_cfg")
        if wanted.preprocess and _TRANSFORM & set(given)
        else None,
        labels=labels,
        licence=given.get("license"),
    )


def compose(described: Description) -> dict[str, dict[str, Any]]:
    """The JSON values of the files with which timm has this net, by their names.

    Args:
        described: A net that dialect `timm` or `timm_v2` can express.

    Raises:
        ConfigError: No architecture of timm's is this net, or it has no such images or labels; the
            message names the fields.
    """
    config, labels = described.config, described.labels
    assert config is not None
    dialect = torch_dialects.TIMM_V2 if config.order == "pre" else torch_dialects.TIMM
    arch, arguments = _entry_point(config, dialect, described.arch)
    values: dict[str, Any] = {
        "architecture": arch,
        "num_classes": config.num_classes,
        "num_features": plan(config).features,
        "global_pool": _POOLS[config.head_pool],
    }
    if labels:
        if labels.activation != "softmax":
            raise ConfigError(
                f"labels.activation={labels.activation!r} is not allowed: timm's config.json "
                "cannot say it, use 'softmax' or no labels"
            )
        values["label_names"] = list(labels.ids or labels.names)
        if labels.ids:
            values["label_descriptions"] = dict(zip(labels.ids, labels.names, strict=True))
    if arguments:
        values["model_args"] = arguments
    values["pretrained_cfg"] = pretrained = {
        "custom_load": False,  # BiT's architectures would else ask for Google's own files
        "num_classes": config.num_classes,
        "first_conv": _name("stem/conv1", dialect, config),
        "classifier": _name("head", dialect, config),
    }
    if described.licence:
        pretrained["license"] = described.licence
    if described.preprocess:
        stride = plan(config).stages[-1].stride
        pretrained |= to_timm(described.preprocess) | {
            "fixed_input_size": False,
            "pool_size": [-(-edge // stride) for edge in described.preprocess.crop_px],
        }
        values["pretrained_cfg"] = pretrained
    return {"config.json": values}


_POOLS = {"average": "avg", "max": "max"}

# timm's arguments by what they mean here; those that are None matter in training or elsewhere only.
_ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]] | None] = {
    "num_classes": None,
    "global_pool": lambda kind: (
        {"head_pool": {"avg": "average", "": "average", "max": "max"}[kind]}
        if kind in ("avg", "", "max")
        else _refuse("global_pool", kind, "'avg' or 'max'")
    ),
    "in_chans": lambda channels: {"in_channels": channels},
    "output_stride": lambda stride: {} if stride == 32 else {"output_stride": stride},
    "act_layer": lambda name: {"activation": "silu" if name == "swish" else name},
    "drop_rate": lambda rate: {"dropout": rate},
    "drop_path_rate": lambda rate: {"drop_path_rate": rate},
    "zero_init_last": lambda zero: {"zero_init_residual": zero},
    "cardinality": lambda groups: {"groups": groups},
    "base_width": lambda width: {"group_width": width},
    "avg_down": lambda averages: {"shortcut": "avg_conv" if averages else "conv"},
    "replace_stem_pool": lambda replaces: {"stem_pool": "conv" if replaces else "max"},
    "drop_block_rate": None,
    "pretrained": None,
    "features_only": None,
}


def _with_arguments(config: ResNetConfig, arguments: Mapping[str, Any]) -> ResNetConfig:
    changes: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in _ARGUMENTS:
            raise ConfigError(
                f"model_args has {name}={value!r}, which is not supported: pass config="
            )
        translate = _ARGUMENTS[name]
        changes |= translate(value) if translate else {}
    return config.replace(**changes)


def _refuse(name: str, value: object, allowed: str) -> dict[str, Any]:
    raise ConfigError(f"{name}={value!r} is not supported: use {allowed}")


def _entry_point(
    config: ResNetConfig, dialect: Dialect, arch: str | None
) -> tuple[str, dict[str, Any]]:
    """The architecture and the arguments with which timm builds a net.

    Raises:
        ConfigError: There are none; the fields in which the nearest differs are named.
    """
    names = dialect.architectures()
    differing: dict[str, list[str]] = {}
    for name in [arch, *names] if arch in names else names:
        for arguments in _arguments(config, presets.get(name)):
            built = _with_arguments(presets.get(name), arguments)
            differing.setdefault(name, _differences(config, built))
            # By their layers: dilations may be spelled as an output stride.
            if _same_layers(config, built):
                return name, arguments
    nearest = min(differing, key=lambda name: len(differing[name]))
    raise ConfigError(
        f"timm has no architecture that is this net; the nearest, {nearest}, has other\n  "
        + "\n  ".join(differing[nearest])
        + f"\nA .safetensors or .pth file may have dialect={dialect.name!r} even so."
    )


def _arguments(config: ResNetConfig, known: ResNetConfig) -> Iterator[dict[str, Any]]:
    """The arguments that may turn a known net into this one."""
    changed: dict[str, Any] = {
        "in_chans": config.in_channels,
        "act_layer": config.activation,
        "global_pool": _POOLS[config.head_pool],
        "drop_rate": config.dropout,
        "drop_path_rate": config.drop_path_rate,
        "zero_init_last": config.zero_init_residual,
    }
    plain = {
        name: value
        for name, value in changed.items()
        if known != _with_arguments(known, {name: value})
    }
    strided = config.output_stride and [config.output_stride]
    for output_stride in strided or (32, 16, 8):
        yield plain | ({} if output_stride == 32 else {"output_stride": output_stride})


# What timm always has otherwise matters in training only.
_UNSAID = ("num_classes", "norm_decay", "block_dropout")


def _differences(config: ResNetConfig, built: ResNetConfig) -> list[str]:
    theirs = built.to_json()
    return [
        f"{name}={theirs[name]!r}, not {value!r}"
        for name, value in config.to_json().items()
        if name not in _UNSAID and theirs[name] != value
    ]


def _same_layers(config: ResNetConfig, built: ResNetConfig) -> bool:
    unsaid = {name: getattr(config, name) for name in _UNSAID}
    return built.depths == config.depths and plan(built.replace(**unsaid)) == plan(config)


def _name(module: str, dialect: Dialect, config: ResNetConfig) -> str:
    named = dialect.translate(module, config)
    assert named is not None
    return named[0]
