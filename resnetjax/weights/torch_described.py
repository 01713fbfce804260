"""The net that a torch module saved whole describes, followed where a config can say it.

Every part has to be of a class that is known at its place: what any other computes is not in the
file. A module's own `forward` is not either, which `others` tells.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError, WeightsMismatch
from resnetjax.plan import plan
from resnetjax.specs import Conv, Norm, Plan, Pool
from resnetjax.weights.dialect import Dialect

_Parts: TypeAlias = Mapping[str, Mapping[str, Any]]

# All by the last word of a class's name.
_ACTIVATIONS = {
    "ReLU": "relu",
    **dict.fromkeys(("SiLU", "SiLUActivation", "Swish"), "silu"),
    **dict.fromkeys(("GELU", "GELUActivation"), "gelu"),
    **dict.fromkeys(("GELUTanh", "FastGELUActivation", "NewGELUActivation"), "gelu_tanh"),
}
_ENDINGS = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "softmax"}
_CONVS = ("Conv2d", "StdConv2d", "StdConv2dSame")  # the last two standardise their kernels
_NORMS: dict[str, tuple[str, ...]] = {
    "batch": ("BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d", "BatchNormAct2d",
              "SyncBatchNormAct"),
    "group": ("GroupNorm", "GroupNormAct"),
}  # fmt: skip
_POOLS = {
    "MaxPool2d": "max",
    "AvgPool2d": "average",
    "AvgPool2dSame": "average",
    "BlurPool2d": "blur",
}
_IDLE = ("Identity", "Dropout", "Dropout2d", "DropPath", "DropBlock2d", "Flatten", "ModuleList",
         "Sequential")  # fmt: skip
_KNOWN_CODE = ("torch", "torchvision", "timm", "transformers")
_HEADS = {"fc", "head", "classifier", "linear"}
_HEAD_POOLS = {"avg": "average", "max": "max"}  # of timm's SelectAdaptivePool2d
# The last pool: as itself, or as a part of these. It is over all pixels, whatever its class.
_OVER_ALL = re.compile(r"(head\.)?(avgpool|avg_pool|global_pool|pooler|pool)(\.pool)?")
_ACTIVATED = ("relu", "act", "act1", "act2", "act3")


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
    unknown = list(_unknown(parts))
    refused, nearest = "", list[str]()
    for config in candidates:
        told = _told(parts, config, dialect)
        for changes in _open(config):
            try:
                net = config.replace(**told, **changes)
            except ConfigError as error:
                refused = refused or str(error)
                continue
            differences = unknown or list(_differences(parts, net, dialect))
            if not differences:
                return net, {*told, *changes, "padding", "stem_pool"}
            if not nearest or len(differences) < len(nearest):
                nearest = differences
    raise WeightsMismatch(
        f"{source} describes a net that no config here is, though its arrays fit one "
        f"(dialect {dialect.name}):\n  {(nearest or [refused])[0]:.500}\nPass arch= or config= to "
        "load the arrays into that net all the same."
    )


def others(parts: _Parts, wrappers: Iterable[str]) -> list[str]:
    """The classes of other people's modules that have parts, whose code is not in the file.

    Args:
        parts: As of `described`.
        wrappers: The classes of the modules that the net is in.
    """
    kinds = (part["class"] for path, part in parts.items() if not _is_leaf(parts, path))
    kinds = (*wrappers, *kinds)
    return [x for x in dict.fromkeys(kinds) if x.partition(".")[0] not in _KNOWN_CODE]


def ending(parts: _Parts) -> str | None:
    """What a head makes of the logits in its last layer, if it has one that does something."""
    _, last = _of_head(parts)
    return _ENDINGS.get(last[-1]) if last else None


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
    pools = {path: part for path, part in parts.items() if _pool(path, part)}
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
    outer, inner = _activations(parts)
    if outer:
        first, within = next(iter(outer.values())), next(iter(inner.values()), None)
        told |= {"activation": first, "inner_activation": within if within != first else None}
    return told


def _unknown(parts: _Parts) -> Iterator[str]:
    """Parts of classes that are not known at their places."""
    before, last = _of_head(parts)
    if len(last) > 1 or (last and last[0] not in _ENDINGS):
        yield f"the head ends in {', '.join(last)}"
    for path, part in parts.items():
        kind, words = _kind(part), path.split(".")
        if "_hooks" in part:
            yield f"{path or 'the net'} has hooks, which may compute anything"
        if not _is_leaf(parts, path):
            continue
        of_head = bool(_HEADS.intersection(words[:-1])) or words[-1] in _HEADS
        known: tuple[str, ...] = (*_IDLE, *_ACTIVATIONS)
        if "se" in words[:-1]:
            known = ("Conv2d", "Conv1d", "Identity")
            known += {"gate": ("Sigmoid",), "act": ("ReLU",)}.get(words[-1], ())
        elif _OVER_ALL.fullmatch(path):
            known += ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d")
        elif of_head:
            known += ("Linear", "Conv2d", *_ENDINGS)
        elif words[-1] in _ACTIVATED:
            known = tuple(_ACTIVATIONS)
        else:
            known += (*_CONVS, *_NORMS["batch"], *_NORMS["group"], *_POOLS, "ConstantPad2d")
        if kind not in known or part["class"].partition(".")[0] not in _KNOWN_CODE:
            yield f"{path or 'the net'} is a {part['class']:.200}"
        elif kind.startswith("Adaptive") and _number(part, "output_size") != 1:
            yield f"{path} has output_size={part.get('output_size')}, not 1"
        elif kind == "ConstantPad2d" and (_number(part, "padding"), part.get("value")) != (1, 0):
            yield f"{path} pads by {part.get('padding')} with {part.get('value')}, not by 1 with 0"
    for place, kind in before.items():
        if kind not in _ACTIVATIONS:
            yield f"{place} is a {kind} where an activation between linear layers is"


def _differences(parts: _Parts, config: ResNetConfig, dialect: Dialect) -> Iterator[str]:
    """What the layers of a net have otherwise than those of the file."""
    net = plan(config)
    for module, layer in _layers(net):
        path, part = _part(parts, module, config, dialect)
        for name, value in _attributes(layer).items():
            if part and (found := _number(part, name)) != value:
                yield f"{path} has {name}={found}, not {value}"
        if part and _kind(part) not in (kinds := _kinds(layer, config)):
            yield f"{path} is a {part['class']:.200}, not a {kinds[0]}"
    padded = any(_kind(part) == "ConstantPad2d" for part in parts.values())  # in the pool's place
    theirs = {path: _of_pool(part, padded) for path, part in parts.items() if _pool(path, part)}
    ours = Counter(_as_words(x.kind, x.size, x.stride, x.padding) for x in _pools(net))
    for path, pool in theirs.items():
        if not ours[pool]:
            yield f"{path} is a {pool}"
        ours[pool] -= 1
    yield from (f"there is no {pool}" for pool, count in ours.items() if count > 0)
    outer, inner = _activations(parts)
    within = config.inner_activation or config.activation
    of_head = {x: _ACTIVATIONS[y] for x, y in _of_head(parts)[0].items() if y in _ACTIVATIONS}
    for wanted, places in (
        (config.activation, outer),
        (within, inner),
        (config.activation, of_head),
    ):
        yield from (
            f"{x} is a {kind}, not a {wanted}" for x, kind in places.items() if kind != wanted
        )


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


def _kinds(layer: Conv | Norm, config: ResNetConfig) -> tuple[str, ...]:
    """The classes that a layer may be of."""
    if isinstance(layer, Norm):
        activated = config.order == "pre"  # in v1 an activation of a norm's own is one more
        return tuple(x for x in _NORMS[layer.kind] if activated or "Act" not in x)
    return _CONVS[:1] if layer.standardize_eps is None else _CONVS[1:]


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
    """Those that torch has a layer for: a window of one pixel is a stride."""
    blocks = [block for stage in net.stages for block in stage.blocks]
    pools = [pool for x in blocks for pool in (x.shortcut.pool, *(conv.pool for conv in x.convs))]
    return (pool for pool in (*net.stem.pools, *pools) if pool and pool.size > 1)


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


def _is_leaf(parts: _Parts, path: str) -> bool:
    """Whether a module has no parts of its own."""
    return not parts[path].get("parts")


def _kind(part: Mapping[str, Any]) -> str:
    return part["class"].rpartition(".")[2]


def _pool(path: str, part: Mapping[str, Any]) -> str | None:
    """The kind of a pool within the net."""
    return None if _OVER_ALL.fullmatch(path) else _POOLS.get(_kind(part))


def _of_pool(part: Mapping[str, Any], padded: bool) -> str:
    kind = _POOLS[_kind(part)]
    size = _number(part, "filt_size" if kind == "blur" else "kernel_size")
    words = _as_words(kind, size, _edge(part, "stride"), 1 if padded else _number(part, "padding"))
    for name, plain in (("ceil_mode", False), ("dilation", 1)) if kind == "max" else ():
        if (value := _number(part, name)) not in (plain, None):
            words += f", {name}={value}"
    return words


def _as_words(kind: str, size: Any, stride: int, padding: Any) -> str:
    padded = f", padding {padding}" if kind == "max" else ""  # of others it follows from the size
    return f"{kind} pool of {size}x{size}, stride {stride}{padded}"


def _head_pool(parts: _Parts) -> str:
    for path, part in parts.items():
        if _kind(part) == "SelectAdaptivePool2d":
            return _HEAD_POOLS.get(part.get("pool_type", ""), str(part.get("pool_type")))
        if _kind(part) == "AdaptiveMaxPool2d" and _OVER_ALL.fullmatch(path):
            return "max"
    return "average"


def _activations(parts: _Parts) -> tuple[dict[str, str], dict[str, str]]:
    """The activations by their paths, and those within Transformers' blocks, which are others."""
    outer, inner = dict[str, str](), dict[str, str]()
    for path, part in parts.items():
        words = path.split(".")
        kind = _ACTIVATIONS.get(_kind(part))
        if kind is None or "se" in words or _HEADS.intersection(words[:-1]):
            continue
        within = re.search(r"\.layer\.\d+\.activation$", path)
        tanh = kind == "gelu" and part.get("approximate") == "tanh"
        (inner if within else outer)[path] = "gelu_tanh" if tanh else kind
    return outer, inner


def _of_head(parts: _Parts) -> tuple[dict[str, str], list[str]]:
    """What of a head's leaves is between linear layers, by its path, and what is behind the last.

    Between two of them is the activation; the second itself stands for none.
    """
    between, pending, behind = dict[str, str](), list[tuple[str, str]](), list[str]()
    linear = False
    for path, part in parts.items():
        words, kind = path.split("."), _kind(part)
        if not _HEADS.intersection(words) or not _is_leaf(parts, path) or kind in _IDLE:
            continue
        if kind in ("Linear", "Conv2d"):
            if linear:
                between |= dict(pending or [(path, "Linear")])
            linear, pending, behind = True, [], []
        elif linear:
            pending.append((path, kind))
            behind.append(kind)
    return between, behind


def _number(part: Mapping[str, Any], name: str) -> Any:
    """A number for both axes as one; `padding="same"` of a convolution as pixels."""
    value = part.get(name)
    if name == "padding" and value == "same":
        value = _edge(part, "dilation") * (_edge(part, "kernel_size") - 1) // 2
    return value[0] if isinstance(value, tuple) and value and len({*value}) == 1 else value


def _edge(part: Mapping[str, Any], name: str) -> int:
    """A number of pixels, 1 where nothing is said."""
    value = _number(part, name)
    return value if type(value) is int and value > 0 else 1
