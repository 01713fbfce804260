"""What a Keras model computes, step by step, as its own description tells it (CONVERSION F14).

Models that compute the same have the same steps: padding belongs to the convolution behind it, a
layer that does nothing in inference is none, and whatever happens to an image before the net's own
layers is preparation. Descriptions are data, never objects.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

MAX_DEPTH = 50  # of models within models

_IDENTITY = re.compile(
    "Identity|(Spatial|Alpha|Gaussian)?Dropout(2D)?|GaussianNoise|ActivityRegularization|Random.+"
)
# Layers, and what Keras 3 and TensorFlow make of calls of plain functions.
_ACTIVATIONS = {
    **{name: name.lower() for name in ("ReLU", "Relu", "relu", "Silu", "silu", "ELU", "Elu")},
    **{name: name.lower() for name in ("Softmax", "softmax", "Sigmoid", "sigmoid", "Tanh", "tanh")},
}
_POOLS = {"AveragePooling2D": "average", "MaxPooling2D": "max"}
_GLOBAL = {"GlobalAveragePooling2D": "average", "GlobalMaxPooling2D": "max"}
# What begins a net; before it an image is only prepared.
_OF_THE_NET = ("Conv2D", "BatchNormalization", "ZeroPadding2D", "Dense", *_POOLS, *_GLOBAL)
_IMAGE = 0
# What a description of another form runs into.
_WRONG = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)

_Place: TypeAlias = tuple[tuple[str, ...], str]  # the models that a layer is in, and its name
_Call: TypeAlias = tuple[_Place, int]  # a layer, and which of its calls
_INPUT: _Call = (((), ""), 0)


class Unclear(Exception):
    """The description lists no layers, or does not say how they are wired."""


class Step(NamedTuple):
    """What is done to the results of which other steps; with arrays it has its layer's name."""

    does: str
    layer: str
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A model by the numbers of its steps.

    Attributes:
        layers: Of those with arrays, by their layers' names, inputs first.
        outputs: Of its outputs.
        steps: What each does, in the order of computation.
        rates: Stride and dilation of the convolutions, by their layers' names.
        preparing: The layers that only prepare an image, and their settings.
    """

    layers: dict[str, int] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    rates: dict[str, tuple[int, int]] = field(default_factory=dict)
    preparing: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)


class _Layer(NamedTuple):
    kind: str
    settings: Mapping[str, Any]
    calls: list[list[_Call]]  # what each call of it reads


class Steps:
    """The steps of several models: equal ones, on equal inputs, have one number."""

    def __init__(self) -> None:
        self.listed = [Step("image", "", ())]
        self._numbers = {self.listed[0]: _IMAGE}

    def model(self, description: Any, names: Mapping[str, str]) -> Model:
        """The steps of a model.

        Args:
            description: The JSON of a Functional or Sequential model of Keras 2 or 3.
            names: What layers are called here, where it is otherwise there.

        Raises:
            Unclear: The layers and their wiring are not all there.
        """
        try:
            wired = {_INPUT[0]: _Layer("InputLayer", {}, [])}
            outputs = _wire(description, (), [_INPUT], wired)
            model, done = Model(), dict[_Call, int]()
            for output in outputs:
                self._compute(output, wired, done, model, names)
            model.outputs.extend(done[output] for output in outputs)
            return model
        except _WRONG as error:
            raise Unclear from error

    def describe(self, number: int, *, depth: int = 2) -> str:
        """A step in words, down to the layers that have arrays."""
        does, layer, inputs = self.listed[number]
        if layer or not inputs:
            return layer or does
        within = (self.describe(x, depth=depth - 1) for x in inputs) if depth else ("...",)
        return f"{does if does.isidentifier() else f'[{does}]'}({', '.join(within)})"

    def _compute(
        self,
        wanted: _Call,
        wired: Mapping[_Place, _Layer],
        done: dict[_Call, int],
        model: Model,
        names: Mapping[str, str],
    ) -> None:
        """Numbers a call and all that it reads, inputs first."""
        waiting, opened = [wanted], set[_Call]()
        while waiting:
            place, index = call = waiting[-1]
            layer = wired[place]
            # One that is called once goes by any number: Keras 2 counts calls outside the model.
            reads = layer.calls[index if len(layer.calls) > 1 else 0] if layer.calls else []
            lacking = [x for x in reads if x not in done]
            if lacking and call in opened:
                raise Unclear
            if lacking:
                opened.add(call)
                waiting += reversed(lacking)
                continue
            waiting.pop()
            if call not in done:
                name = str(layer.settings.get("name", place[1]))
                inputs = [done[x] for x in reads]
                done[call] = self._step(layer, names.get(name, name), inputs, model)

    def _number(self, model: Model, does: str, layer: str, inputs: list[int]) -> int:
        step = Step(does, layer, tuple(inputs))
        if step not in self._numbers:
            self._numbers[step] = len(self.listed)
            self.listed.append(step)
        model.steps.append(does)
        if layer:
            model.layers[layer] = self._numbers[step]
        return self._numbers[step]

    def _step(self, layer: _Layer, name: str, inputs: list[int], model: Model) -> int:
        kind, settings = layer.kind, layer.settings
        if not inputs or (set(inputs) == {_IMAGE} and kind not in _OF_THE_NET):
            if inputs and not _IDENTITY.fullmatch(kind):
                model.preparing.append((kind, settings))
            return _IMAGE
        if _IDENTITY.fullmatch(kind):
            return inputs[0]
        if kind == "Activation":
            return self._activate(settings["activation"], inputs[0], model)
        if kind == "Conv2D":
            kernel, stride, dilation = (
                _pair(settings[key]) for key in ("kernel_size", "strides", "dilation_rate")
            )
            reach = (dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1))
            padding, read = self._padding(settings, inputs[0], reach, even=stride == (1, 1))
            rates = f"stride {_short(stride)}, dilation {_short(dilation)}"
            does = f"{kernel[0]}x{kernel[1]} convolution of {rates}, padding {padding}"
            x = self._number(model, does, name, [read])
            model.rates[name] = max(stride), max(dilation)
            return self._activate(settings.get("activation"), x, model)
        if kind == "BatchNormalization":
            return self._number(model, f"norm of epsilon {settings['epsilon']}", name, inputs)
        if kind == "Dense":
            x = self._number(model, "dense layer", name, inputs)
            return self._activate(settings.get("activation"), x, model)
        return self._number(model, *self._weightless(kind, settings, inputs))

    def _weightless(
        self, kind: str, settings: Mapping[str, Any], inputs: list[int]
    ) -> tuple[str, str, list[int]]:
        """What a layer without arrays does, no name, and what it reads."""
        before = self.listed[inputs[0]]
        if kind in ("Add", "add") and len(inputs) > 1:
            return "add", "", sorted(inputs)
        if kind == "ZeroPadding2D":
            rows, columns = settings["padding"]
            return f"zeros around of {_short((*_pair(rows), *_pair(columns)))}", "", inputs
        if kind in _POOLS:
            size = _pair(settings["pool_size"])
            stride = _pair(settings.get("strides") or settings["pool_size"])
            reach = (size[0] - 1, size[1] - 1)
            padding, read = self._padding(settings, inputs[0], reach, even=False)
            window = f"of stride {_short(stride)}, padding {padding}"
            return f"{size[0]}x{size[1]} {_POOLS[kind]}-pool {window}", "", [read]
        if kind in _GLOBAL:
            return f"{_GLOBAL[kind]} over all pixels", "", inputs
        if kind in ("Flatten", "Reshape"):
            # Of as many values as there are channels: nothing is left to do, or one pool did it.
            if "over all pixels" in before.does:
                return before.does, "", list(before.inputs)
            pooled = re.match(r"\d+x\d+ (\w+)-pool", before.does)
            how = pooled[1] if pooled else "average"
            return f"{how} over all pixels", "", list(before.inputs) if pooled else inputs
        plain = not (settings.get("max_value") or settings.get("negative_slope"))
        if kind in _ACTIVATIONS and plain and not settings.get("threshold"):
            return _ACTIVATIONS[kind], "", inputs
        return kind, "", inputs

    def _padding(
        self, settings: Mapping[str, Any], read: int, reach: tuple[int, int], *, even: bool
    ) -> tuple[str, int]:
        """How a window pads, together with a layer before it that does, and what both read.

        Args:
            settings: Of the window's layer.
            read: What it reads.
            reach: How far the window goes beyond one pixel.
            even: Whether SAME puts as many zeros on both sides.
        """
        same = settings["padding"] == "same" and reach != (0, 0)
        own = "same" if same else "0"
        if same and even and reach[0] == reach[1] and reach[0] % 2 == 0:
            own = str(reach[0] // 2)
        padded = re.fullmatch("zeros around of (.*)", self.listed[read].does)
        if padded is None:
            return own, read
        return padded[1] if own == "0" else f"{own} and {padded[1]}", self.listed[read].inputs[0]

    def _activate(self, kind: Any, x: int, model: Model) -> int:
        if type(kind) is dict:  # a function by its name, or an object of a class
            config = kind.get("config")
            kind = config if type(config) is str else kind.get("class_name")
        kind = str(kind or "linear").lower()
        kind = "silu" if kind == "swish" else kind
        return x if kind == "linear" else self._number(model, kind, "", [x])


def _wire(
    description: Any, scope: tuple[str, ...], given: list[_Call], wired: dict[_Place, _Layer]
) -> list[_Call]:
    """Adds a model's layers, and those of models within it; the calls that are its outputs."""
    if len(scope) > MAX_DEPTH:
        raise Unclear
    settings = description["config"]
    listed, functional = settings["layers"], "output_layers" in settings
    starts = {name for name, _ in _references(settings.get("input_layers"))}
    reads = given
    for position, layer in enumerate(listed):
        config = layer["config"]
        if functional:
            name = str(layer.get("name") or config["name"])
            nodes = layer["inbound_nodes"]
            calls = [[((scope, x), i) for x, i in _references(node)] for node in nodes]
            if name in starts:
                calls = [given]
        else:
            name, calls = str(position), [reads]
            reads = [((scope, name), 0)]
        kind = str(layer["class_name"])
        if kind == "InputLayer":
            kind = "Identity"
        elif kind == "TFOpLambda":
            kind = str(config["function"]).rpartition(".")[2]
        if "layers" in config:
            # It is called once, or is no part of a ResNet: then its first call will not fit.
            inner = _wire(layer, (*scope, name), calls[0], wired)
            if len(inner) != 1:
                raise Unclear
            kind, config, calls = "Identity", {}, [inner]
        wired[scope, name] = _Layer(kind, config, calls)
    if functional:
        return [((scope, x), i) for x, i in _references(settings["output_layers"])]
    return reads


def _references(value: Any) -> Iterator[tuple[str, int]]:
    """The layers, and which of their calls, that a node reads: of Keras 2 and of Keras 3."""
    if type(value) is dict and value.get("class_name") == "__keras_tensor__":
        name, index, _ = value["config"]["keras_history"]
        yield str(name), int(index)
    elif type(value) is dict:
        for inner in value.values():
            yield from _references(inner)
    elif type(value) is list:
        if [type(x) for x in value[:3]] == [str, int, int]:
            yield value[0], value[1]
            value = value[3:]
        for inner in value:
            yield from _references(inner)


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if type(value) is list else (value, value)
    return int(first), int(second)


def _short(values: tuple[int, ...]) -> str:
    """Equal values as one."""
    return str(values[0]) if len(set(values)) == 1 else str(values)
