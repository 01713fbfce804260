"""The net that a Keras file describes, followed where a config can say it, refused where not."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from resnetjax.config import Activation, Preprocess, ResNetConfig
from resnetjax.errors import ConfigError, WeightsMismatch
from resnetjax.plan import plan
from resnetjax.weights.dialect import Dialect
from resnetjax.weights.keras_graph import functional
from resnetjax.weights.keras_steps import Model, Steps, Unclear

_POOLED = "over all pixels"


def described(
    model_config: Any,
    config: ResNetConfig,
    dialect: Dialect,
    *,
    names: Mapping[str, str],
    source: str,
) -> ResNetConfig | None:
    """The net whose layers are those that a file describes; None where it does not list them.

    Args:
        model_config: The file's description.
        config: The net of its arrays, with what names and shapes tell.
        dialect: Whose names the arrays have.
        names: The dialect's names of the file's layers.
        source: Named in errors.

    Raises:
        WeightsMismatch: No config computes what these layers do; the first that differs is named.
    """
    steps, nearest = Steps(), (-1, "")
    try:
        theirs = steps.model(model_config, names)
        for net, layers in _candidates(theirs, config, dialect):
            ours = steps.model(layers, {})
            if ours.layers.keys() != theirs.layers.keys():
                continue  # arrays are lacking or too many, which is for loading to say
            agreeing, difference = _difference(steps, theirs, ours)
            if not difference:
                return net
            nearest = max(nearest, (agreeing, difference), key=lambda x: x[0])
    except Unclear:
        return None
    if not nearest[1]:
        return None
    raise WeightsMismatch(
        f"{source} describes a net that no config here is, though its arrays fit one "
        f"(dialect {dialect.name}):\n  {nearest[1]:.500}\nPass arch= or config= to load the arrays "
        "into that net all the same."
    )


def around(model_config: Any) -> tuple[list[tuple[str, Mapping[str, Any]]], str | None]:
    """The layers of a file's model before the net, and the activation behind it, if it tells."""
    steps = Steps()
    try:
        model = steps.model(model_config, {})
    except Unclear:
        return [], None
    last = steps.listed[model.outputs[0]].does if model.outputs else ""
    return model.preparing, last if last.isidentifier() else None


def scaled(
    config: Preprocess, layers: Iterable[tuple[str, Mapping[str, Any]]]
) -> Preprocess | None:
    """How images are prepared where layers of the model scale them; None if these do other things.

    Args:
        config: What brings images to their size.
        layers: Keras's layers and their settings.
    """
    scale, offset = np.ones(3), np.zeros(3)
    try:
        with np.errstate(all="raise"):
            for kind, settings in layers:
                if kind == "Rescaling":
                    factor, shift = np.array(settings["scale"]), np.array(settings.get("offset", 0))
                elif kind == "Normalization" and not settings.get("invert"):
                    deviation = np.sqrt(np.array(settings["variance"], np.float64))
                    factor = 1 / deviation
                    shift = -np.array(settings["mean"], np.float64) / deviation
                else:
                    return None
                scale, offset = scale * factor.ravel(), offset * factor.ravel() + shift.ravel()
            mean, std = -offset / scale, 1 / scale
        numbers = {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}
        return replace(config, divisor=1.0, channel_order="rgb", **numbers)
    except (ArithmeticError, ConfigError, KeyError, TypeError, ValueError):
        return None


def _candidates(
    theirs: Model, config: ResNetConfig, dialect: Dialect
) -> Iterator[tuple[ResNetConfig, Any]]:
    """Nets of these layers' rates, activations and pools, in all ways that arrays do not tell."""
    config = config.replace(**_told(theirs, config, dialect))
    orders = [{}]
    if dialect.numbered:  # of other names the norms' tell
        orders.append({"order": "pre", "shortcut_norm": False})
    rest = {
        "dilation_rule": ("previous", "undilated", "uniform") if max(config.dilations) > 1 else (),
        "stride_block": ("first", "last"),
        "stride_on": ("reduce", "spatial", "last_spatial"),
        "padding": ("torch", "same", "same_blocks"),
    }
    choices = (dict.fromkeys((getattr(config, name), *rest[name])) for name in rest)
    for order, *values in itertools.product(orders, *choices):
        try:
            net = config.replace(**order, **dict(zip(rest, values, strict=True)))
            if net.stem_pool == "max" and (net.order == "pre" or net.activation != "relu"):
                # The only ways in which Keras's layers pad a pool.
                zeros = "-inf" if net.stem_pool_padding == "same" else "zero"
                net = net.replace(stem_pool_value=zeros)
            layers, _ = functional(net, dialect)
        except ConfigError:
            continue
        yield net, layers


def _told(theirs: Model, config: ResNetConfig, dialect: Dialect) -> dict[str, Any]:
    """The fields that the layers say by themselves."""
    strides, dilations = [], []
    for stage in plan(config).stages:
        modules = [f"{block.name}/{conv.name}" for block in stage.blocks for conv in block.convs]
        named = [dialect.translate(module, config) for module in modules]
        rates = [theirs.rates[name[0]] for name in named if name and name[0] in theirs.rates]
        strides.append(max((stride for stride, _ in rates), default=1))
        dilations.append(max((dilation for _, dilation in rates), default=1))
    told: dict[str, Any] = {
        "strides": tuple(strides),
        "dilations": tuple(dilations),
        "head_pool": "max" if f"max {_POOLED}" in theirs.steps else "average",
    }
    # The stem's comes first, or in v2 that of the first block; then one within that block.
    activations = [does for does in theirs.steps if does in get_args(Activation)]
    if len(activations) > 1:
        outer, inner, *_ = activations
        told |= {"activation": outer, "inner_activation": None if inner == outer else inner}
    pools = [re.match("3x3 max-pool of stride 2, padding (.*)", does) for does in theirs.steps]
    found = next((pool[1] for pool in pools if pool), None)
    told["stem_pool"] = "max" if found else "none"
    if found in ("1", "same"):
        told["stem_pool_padding"] = "same" if found == "same" else "torch"
    return told


def _difference(steps: Steps, theirs: Model, ours: Model) -> tuple[int, str]:
    """How many layers agree, and what of the first other one differs: nothing if all agree."""
    for agreeing, (name, number) in enumerate(ours.layers.items()):
        if theirs.layers[name] == number:
            continue
        found, wanted = (steps.listed[model.layers[name]] for model in (theirs, ours))
        if found.does != wanted.does:
            return agreeing, f"{name} is a {found.does}, not a {wanted.does}"
        reads, expected = (", ".join(map(steps.describe, x.inputs)) for x in (found, wanted))
        return agreeing, f"{name} reads {reads}, not {expected}"
    wanted = steps.listed[ours.outputs[0]]
    ends = {ours.outputs[0], *(wanted.inputs if _POOLED in wanted.does else ())}
    if any(end in ends for output in theirs.outputs for end in _ends(steps, output)):
        return len(ours.layers), ""
    found, expected = (steps.describe(model.outputs[0]) for model in (theirs, ours))
    return len(ours.layers), f"the output is {found}, not {expected}"


def _ends(steps: Steps, output: int) -> Iterator[int]:
    """An output's step, and what it was before activations and a pool over all pixels."""
    yield output
    step = steps.listed[output]
    while len(step.inputs) == 1 and (step.does.isidentifier() or _POOLED in step.does):
        yield step.inputs[0]
        step = steps.listed[step.inputs[0]]
