"""What `resnetjax info` and `resnetjax verify` say of a net: facts, and how they are printed."""

from pathlib import Path
from typing import Any

from resnetjax import folders, presets, zoo
from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.infer.verify import fingerprint
from resnetjax.measure import feature_info, flops, leaves, parameter_count, statistics_count
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained
from resnetjax.weights.sources import WEIGHTS

# What two systems mean by the same names and shapes differs in these.
_CLAIMS = (
    "order", "padding", "stem_pool_padding", "stem_pool_value", "stride_on", "stride_block",
    "strides", "dilations", "dilation_rule", "antialias", "norm", "norm_eps",
    "weight_standardization_eps", "activation", "inner_activation", "head_pool",
)  # fmt: skip


def of_net(model: str, *, arch: str | None = None, tree: bool = False) -> dict[str, Any]:
    """What a net is: configuration, size, features, where it came from.

    Args:
        model: A file or directory, an address, or the name of an architecture.
        arch: Of a file that cannot tell.
        tree: Every array's shape too.
    """
    config, pretrained = _open(model, arch)
    net = plan(config)
    height, width = pretrained.preprocess.crop_px if pretrained else _default_side(config)
    facts: dict[str, Any] = {
        "architecture": pretrained.source.arch if pretrained else model,
        "parameters": parameter_count(net),
        "statistics": statistics_count(net),
        "flops": flops(net, height=height, width=width),
        "image": [height, width, config.in_channels],
        "features": [vars(feature) for feature in feature_info(net)],
        "config": config.to_json(),
    }
    if pretrained:
        labels = pretrained.labels
        facts["source"] = vars(pretrained.source)
        facts["preprocess"] = pretrained.preprocess.to_json()
        facts["labels"] = (
            {"classes": len(labels.names), "activation": labels.activation} if labels else None
        )
    if tree:
        facts["tree"] = {path: list(leaf.shape) for path, leaf in leaves(net).items()}
    return facts


def print_net(facts: dict[str, Any]) -> None:
    """Prints what `of_net` found."""
    height, width, channels = facts["image"]
    print(f"{facts['architecture'] or 'a net without a name'}")
    print(f"  parameters  {facts['parameters']:,} and {facts['statistics']:,} running statistics")
    print(f"  arithmetic  {facts['flops'] / 1e9:.2f} GFLOPs for {height}x{width}x{channels}")
    _print_parts(facts, "source", "preprocess", "labels", "config")
    print("  features                     channels  stride")
    for feature in facts["features"]:
        print(f"    {feature['name']:<24} {feature['channels']:>10} {feature['stride']:>7}")
    if "tree" in facts:
        print("  arrays")
        for path, shape in facts["tree"].items():
            print(f"    {path:<44} {tuple(shape)}")


def of_outputs(model: str, *, arch: str | None = None) -> dict[str, Any]:
    """What a net computes on the fixed probe, and what it claims to be."""
    pretrained = zoo.load(model, arch=arch)
    found = fingerprint(pretrained)
    config = pretrained.config.to_json()
    return {
        "probe": list(found.shape),
        "logits_sha256": found.digest,
        "largest": found.largest,
        "first": list(found.first),
        "claims": {name: config[name] for name in _CLAIMS},
        "preprocess": pretrained.preprocess.to_json(),
    }


def print_outputs(facts: dict[str, Any]) -> None:
    """Prints what `of_outputs` found."""
    print(f"logits sha256 {facts['logits_sha256']}")
    print(f"  of a probe of {'x'.join(map(str, facts['probe']))}, in float64, to six digits")
    print(f"  first       {' '.join(f'{value:.6g}' for value in facts['first'])}")
    print(f"  largest     {facts['largest']:.6g}")
    _print_parts(facts, "claims", "preprocess")


def _print_parts(facts: dict[str, Any], *names: str) -> None:
    for name in names:
        if facts.get(name):
            print(f"  {name}")
            for key, value in facts[name].items():
                print(f"    {key:<26} {value}")


def _open(model: str, arch: str | None) -> tuple[ResNetConfig, Pretrained | None]:
    """A file or directory, loaded, or an architecture by name."""
    if folders.find_model(Path(model)).exists() or "://" in model or model in WEIGHTS:
        pretrained = zoo.load(model, arch=arch)
        return pretrained.config, pretrained
    if arch is not None:
        raise ConfigError(f"--arch {arch} is not allowed: {model} is no file but an architecture")
    return presets.get(model), None


def _default_side(config: ResNetConfig) -> tuple[int, int]:
    return (32, 32) if config.stem == "conv3" else (224, 224)
