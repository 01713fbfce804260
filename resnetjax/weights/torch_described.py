"""The net that a torch module saved whole describes, followed where a config can say it."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError, WeightsMismatch
from resnetjax.plan import plan
from resnetjax.specs import Conv, Norm, Plan, Pool
from resnetjax.weights.dialect import Dialect

_Parts: TypeAlias = Mapping[str, Mapping[str, Any]]

# By the last word of a class's name; "" is of no config.
_ACTIVATIONS = {
    **dict.fromkeys(("ReLU",), "relu"),
    **dict.fromkeys(("SiLU", "SiLUActivation", "Swish"), "silu"),
    **dict.fromkeys(("GELU", "GELUActivation"), "gelu"),
    **dict.fromkeys(("GELUTanh", "GELUTanhActivation", "PytorchGELUTanh"), "gelu_tanh"),
    **dict.fromkeys(
        ("CELU", "ELU", "Hardswish", "Hardtanh", "LeakyReLU", "Mish", "ReLU6", "RReLU", "SELU",
         "Softplus", "Tanh"), ""
    ),
}  # fmt: skip
_POOLS = {
    "MaxPool2d": "max",
    "AvgPool2d": "average",
    "AvgPool2dSame": "average",
    "BlurPool2d": "blur",
}
_HEAD_POOLS = {"avg": "average", "max": "max"}  # of timm's SelectAdaptivePool2d
_HEADS = {"fc", "head", "classifier", "linear"}
_OVER_ALL = ("avgpool", "avg_pool", "global_pool", "pool")  # the last pool, whatever its class


def described(
    parts: _Parts, candidates: Iterable[ResNetConfig], dialect: Dialect, *, source: str
) -> tuple[ResNetConfig, set[str]]:
    """The net whose layers have the attributes that a file gives, and the fields that it tells.

    Args:
        parts: Every module's attributes by its path, as `torch_file.Module` says.
        candidates: Nets of the file's arrays.
        dialect: Whose names the arrays have.
        source: Named in errors.

    Raises:
        WeightsMismatch: No config has these layers; what differs from the nearest is named.
    """
    parts = {path.removeprefix(dialect.root): part for path, part in parts.items()}
    refused, nearest = "", list[str]()
    for config in candidates:
        told = _told(parts, config, dialect)
        for changes in _open(config):
            try:
                net = config.replace(**told, **changes)
            except ConfigError as error:
                refused = refused or str(error)
                continue
            differences = list(_differences(parts, net, dialect))
            if not differences:
                return net, {*told, *changes, "padding", "stem_pool"}
            if not nearest or len(differences) < len(nearest):
                nearest = differences
    raise WeightsMismatch(
        f"{source} describes a net that no config here is, though its arrays fit one "
        f"(dialect {dialect.name}):\n  {(nearest or [refused])[0]:.500}\nPass arch= or config= to "
        "load the arrays into that net all the same."
    )


def _open(config: ResNetConfig) -> Iterator[dict[str, str]]:
    """What no field that is told decides: where in a block its stride and its dilation are."""
    for stride_on, rule in itertools.product(
        dict.fromkeys((config.stride_on, "reduce", "spatial", "last_spatial")),
        dict.fromkeys((config.dilation_rule, "previous", "undilated", "uniform")),
    ):
        yield {"stride_on": stride_on, "dilation_rule": rule}


def _told(parts: _Parts, config: ResNetConfig, dialect: Dialect) -> dict[str, Any]:
    """The fields that the modules say by themselves."""
    net = plan(config)
    rates: dict[str, list[tuple[int, int]]] = {stage.name: [(1, 1)] for stage in net.stages}
    pools = {path: part for path, part in parts.items() if _pool(part) and path not in _OVER_ALL}
    inside: dict[str, int] = {}
    for path, part in pools.items():
        for block in _above(path):
            inside[block] = max(inside.get(block, 1), _edge(part, "stride"))
    blocks, eps = set(), set()
    for module, layer in _layers(net):
        path, part = _part(parts, module, config, dialect)
        if isinstance(layer, Norm):
            eps |= {part["eps"]} if "eps" in part else set()
        elif (stage := module.partition("_block")[0]) in rates and "/shortcut/" not in module:
            rates[stage].append((_edge(part, "stride"), _edge(part, "dilation")))
            blocks.add(block := path.rpartition(".")[0])
            rates[stage].append((inside.get(block, 1), 1))
    told: dict[str, Any] = {
        "strides": tuple(max(stride for stride, _ in found) for found in rates.values()),
        "dilations": tuple(max(dilation for _, dilation in found) for found in rates.values()),
        "head_pool": _head_pool(parts),
    }
    if len(eps) == 1:
        told["norm_eps"] = eps.pop()
    if config.stem_pool == "max" and all(blocks.intersection(_above(path)) for path in pools):
        told["stem_pool"] = "none"
    # The stem's comes first, and then that within a block.
    activations = list(dict.fromkeys(_activations(parts)))
    if activations:
        outer, *inner = activations
        told |= {"activation": outer, "inner_activation": inner[0] if inner else None}
    return told


def _differences(parts: _Parts, config: ResNetConfig, dialect: Dialect) -> Iterator[str]:
    """What the layers of a net have otherwise than those of the file."""
    net = plan(config)
    for module, layer in _layers(net):
        path, part = _part(parts, module, config, dialect)
        for name, value in _attributes(layer).items():
            if name in part and (found := _number(part, name)) != value:
                yield f"{path} has {name}={found}, not {value}"
    padded = any(_kind(part) == "ConstantPad2d" for part in parts.values())  # in the pool's place
    theirs = Counter[str]()
    for path, part in parts.items():
        if (kind := _pool(part)) and path not in _OVER_ALL:
            padding = 1 if padded else _number(part, "padding")
            size = _number(part, "filt_size" if kind == "blur" else "kernel_size")
            up = " and ceil_mode" if kind == "max" and part.get("ceil_mode") else ""
            theirs[_of_pool(kind, size, _edge(part, "stride"), padding) + up] += 1
    ours = Counter(_of_pool(x.kind, x.size, x.stride, x.padding) for x in _pools(net) if x.size > 1)
    yield from (f"{count} pools more are {pool}" for pool, count in (theirs - ours).items())
    yield from (f"{count} pools less are {pool}" for pool, count in (ours - theirs).items())
    for kind in set(_activations(parts)) - {config.activation, config.inner_activation}:
        yield f"an activation is {kind}"
    for kind in set(_activations(parts, in_head=True)) - {config.activation}:
        yield f"an activation between the layers of the head is {kind}, not {config.activation}"


def _of_pool(kind: str, size: Any, stride: int, padding: Any) -> str:
    padded = f", padding {padding}" if kind == "max" else ""  # of others it follows from the size
    return f"{kind} of {size}x{size}, stride {stride}{padded}"


def _attributes(layer: Conv | Norm) -> dict[str, Any]:
    """A layer's attributes as torch names them, those that its arrays do not tell."""
    if isinstance(layer, Norm):
        groups = {"num_groups": layer.groups} if layer.kind == "group" else {}
        return {"eps": layer.eps, **groups}
    found: dict[str, Any] = {"stride": layer.stride, "dilation": layer.dilation}
    if layer.padding != "same":
        found["padding"] = layer.padding
    if layer.standardize_eps is not None:
        found["eps"] = layer.standardize_eps
    return {**found, "groups": layer.groups, "padding_mode": "zeros"}


def _layers(net: Plan) -> Iterator[tuple[str, Conv | Norm]]:
    """Every convolution and norm by its path."""
    blocks = [block for stage in net.stages for block in stage.blocks]
    convs = [("stem/", conv) for conv in net.stem.convs]
    convs += [("stem/pool/", net.stem.pool_conv)] if net.stem.pool_conv else []
    convs += [(f"{block.name}/", conv) for block in blocks for conv in block.convs]
    convs += [(f"{x.name}/shortcut/", x.shortcut.conv) for x in blocks if x.shortcut.conv]
    for prefix, conv in convs:
        yield prefix + conv.name, conv
        if conv.norm:
            yield prefix + conv.norm.name, conv.norm
    if net.norm:
        yield net.norm.name, net.norm


def _pools(net: Plan) -> Iterator[Pool]:
    yield from net.stem.pools
    for stage in net.stages:
        for block in stage.blocks:
            pools = (block.shortcut.pool, *(conv.pool for conv in block.convs))
            yield from filter(None, pools)


def _above(path: str) -> Iterator[str]:
    """The paths of the modules that one is in, but for the whole."""
    words = path.split(".")
    return (".".join(words[:end]) for end in range(1, len(words)))


def _part(
    parts: _Parts, module: str, config: ResNetConfig, dialect: Dialect
) -> tuple[str, Mapping[str, Any]]:
    """The path of one of our modules in the file, and what is said of it: nothing if it lacks."""
    named = dialect.translate(module, config)
    path = named[0] if named else module
    return path, parts.get(path, {})


def _kind(part: Mapping[str, Any]) -> str:
    return part["class"].rpartition(".")[2]


def _pool(part: Mapping[str, Any]) -> str | None:
    return _POOLS.get(_kind(part))


def _head_pool(parts: _Parts) -> str:
    for path, part in parts.items():
        if _kind(part) == "SelectAdaptivePool2d":
            return _HEAD_POOLS.get(part.get("pool_type", ""), str(part.get("pool_type")))
        if _kind(part) == "AdaptiveMaxPool2d" and path in _OVER_ALL:
            return "max"
    return "average"


def _activations(parts: _Parts, *, in_head: bool = False) -> Iterator[str]:
    """Those of a head, or the others, in their order; channel attention has its own."""
    for path, part in parts.items():
        words = path.split(".")[:-1]
        if (kind := _ACTIVATIONS.get(_kind(part))) is None or "se" in words:
            continue
        if bool(_HEADS.intersection(words)) == in_head:
            tanh = kind == "gelu" and part.get("approximate") == "tanh"
            yield "gelu_tanh" if tanh else kind or _kind(part)


def _number(part: Mapping[str, Any], name: str) -> Any:
    """A number for both axes as one; `padding="same"` of a convolution as pixels."""
    value = part.get(name)
    if name == "padding" and value == "same":
        value = _edge(part, "dilation") * (_edge(part, "kernel_size") - 1) // 2
    return value[0] if isinstance(value, tuple) and len({*value}) == 1 else value


def _edge(part: Mapping[str, Any], name: str) -> int:
    """A number of pixels, 1 where nothing is said."""
    value = _number(part, name)
    return value if type(value) is int and value > 0 else 1
