"""A net as Keras describes its models: the JSON of a Functional model, layer by layer.

Layers are named as keras.applications names them where the dialect's names end as its do, else as
Keras names layers that nobody named. Written as Keras 3.15 writes it
(keras/src/models/functional.py: `get_config`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.plan import plan
from resnetjax.specs import Block, Conv, Norm, Pool
from resnetjax.weights.dialect import Dialect

_AUTOMATIC = {
    "Activation": "activation",
    "Add": "add",
    "MaxPooling2D": "max_pooling2d",
    "ZeroPadding2D": "zero_padding2d",
}


def functional(config: ResNetConfig, dialect: Dialect) -> tuple[dict[str, Any], list[str]]:
    """The JSON of a Functional model, and its layers' names in the order in which Keras lists them.

    It takes images of any size and gives logits, or pooled features where the net has no head.

    Args:
        config: A net that the dialect can express.
        dialect: Of Keras.

    Raises:
        ConfigError: Keras's layers cannot compute this net; the field is named.
    """
    graph = _Graph(config, dialect)
    output = graph.net()
    listed = _listed(graph.layers, output)
    layers = {layer.name: layer for layer in graph.layers}
    model = {
        "name": "resnet",
        "trainable": True,
        "layers": [_to_json(layers[name], layers) for name in listed],
        "input_layers": [graph.layers[0].name, 0, 0],
        "output_layers": [output, 0, 0],
    }
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": model,
        "registered_name": "Functional",
        "build_config": {"input_shape": None},
    }, listed


@dataclass(frozen=True)
class _Layer:
    """One layer; `shape` is that of its output, without the batch."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    shape: tuple[int | None, ...]
    settings: dict[str, Any]


@dataclass
class _Graph:
    """The layers of a net, each behind those that it reads."""

    config: ResNetConfig
    dialect: Dialect
    layers: list[_Layer] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def net(self) -> str:
        """Adds every layer; the name of the last."""
        net = plan(self.config)
        shape = (None, None, net.in_channels)
        self.layers.append(
            _Layer("InputLayer", "input_layer", (), shape, {"batch_shape": [None, *shape]})
        )
        x = "input_layer"
        for conv in net.stem.convs:
            x = self.conv(conv, "stem/", x)
            x = self.norm_and_activation(conv, "stem/", x)
        for pool in net.stem.pools:
            x = self.stem_pool(pool, x)
        for stage in net.stages:
            for block in stage.blocks:
                x = self.pre(block, x) if block.order == "pre" else self.post(block, x)
        if net.norm:
            x = self.activation(self.norm(net.norm, "", x), net.norm_activation)
        pool = {"average": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D"}[net.head_pool]
        name = "avg_pool" if net.head_pool == "average" else "max_pool"
        x = self.add(pool, name, [x], {}, shape=(net.features,))
        for dense in net.head:
            settings = {"units": dense.features, "activation": "linear", "use_bias": True}
            name = self.called(dense.name)
            x = self.add("Dense", name, [x], settings, shape=(dense.features,))
            x = self.activation(x, dense.activation)
        return x

    def post(self, block: Block, x: str) -> str:
        """A block of v1: convolution, norm, activation."""
        shortcut = self.pool(block.shortcut.pool, x)
        if conv := block.shortcut.conv:
            shortcut = self.conv(conv, f"{block.name}/shortcut/", shortcut)
            shortcut = self.norm_and_activation(conv, f"{block.name}/shortcut/", shortcut)
        for conv in block.convs:
            x = self.conv(conv, f"{block.name}/", x)
            x = self.norm_and_activation(conv, f"{block.name}/", x)
        x = self.add("Add", self.of_block(block, "add"), [shortcut, x], {})
        return self.activation(x, block.activation, name=self.of_block(block, "out"))

    def pre(self, block: Block, x: str) -> str:
        """A block of v2: norm, activation, convolution."""
        activated = self.norm_and_activation(block.convs[0], f"{block.name}/", x)
        if conv := block.shortcut.conv:
            shortcut = self.conv(conv, f"{block.name}/shortcut/", activated)
        else:
            shortcut = self.pool(block.shortcut.pool, x)
        for i, conv in enumerate(block.convs):
            x = self.norm_and_activation(conv, f"{block.name}/", x) if i else activated
            x = self.conv(conv, f"{block.name}/", x)
        return self.add("Add", self.of_block(block, "out"), [shortcut, x], {})

    def conv(self, conv: Conv, prefix: str, x: str) -> str:
        """A convolution, behind a layer that pads where its own padding cannot."""
        if conv.stride > 1 and conv.dilation > 1:
            raise ConfigError(
                f"dilations={self.config.dilations!r} is not allowed: Keras has no convolution "
                "with both a stride and a dilation"
            )
        name = self.called(prefix + conv.name)
        # With stride 1 SAME pads both sides alike; the v2 of keras.applications pads even so.
        same = conv.stride == 1 and self.config.order == "post" and conv.kernel > 1
        padding = "same" if conv.padding == "same" or same else "valid"
        if padding == "valid" and conv.padding:
            padded = _ending(name, "conv", "pad")
            x = self.add("ZeroPadding2D", padded, [x], {"padding": [[conv.padding] * 2] * 2})
        settings = {
            "filters": conv.features,
            "kernel_size": [conv.kernel] * 2,
            "strides": [conv.stride] * 2,
            "padding": padding,
            "dilation_rate": [conv.dilation] * 2,
            "groups": conv.groups,
            "activation": "linear",
            "use_bias": conv.bias,
        }
        return self.add("Conv2D", name, [x], settings, shape=(None, None, conv.features))

    def norm_and_activation(self, conv: Conv, prefix: str, x: str) -> str:
        """The norm and the activation that belong to a convolution."""
        if conv.norm:
            x = self.norm(conv.norm, prefix, x)
        return self.activation(x, conv.activation)

    def norm(self, norm: Norm, prefix: str, x: str) -> str:
        """A batch norm."""
        settings = {"axis": -1, "momentum": norm.decay, "epsilon": norm.eps}
        return self.add("BatchNormalization", self.called(prefix + norm.name), [x], settings)

    def activation(self, x: str, kind: str | None, *, name: str | None = None) -> str:
        """An activation, named after the norm that it follows if not otherwise."""
        if kind is None:
            return x
        return self.add("Activation", name or _ending(x, "bn", kind), [x], {"activation": kind})

    def stem_pool(self, pool: Pool, x: str) -> str:
        """The stem's max-pool, behind a layer that pads with zeros where it does."""
        config = self.config
        # Zeros are no more than any value behind a ReLU.
        rectified = config.order == "post" and config.activation == "relu"
        if not rectified and (pool.pad_value == "zero") == (pool.padding == "same"):
            raise ConfigError(
                f"stem_pool_value={config.stem_pool_value!r} is not allowed with order="
                f"{config.order!r} and stem_pool_padding={config.stem_pool_padding!r}: Keras pads "
                "with zeros in a layer before a pool, and with -inf in a pool of padding 'same'"
            )
        named = self.called("stem/conv1").endswith("_conv")
        if pool.padding != "same":
            padding = {"padding": [[pool.padding] * 2] * 2}
            x = self.add("ZeroPadding2D", "pool1_pad" if named else None, [x], padding)
        return self.pool(pool, x, name="pool1_pool" if named else None)

    def pool(self, pool: Pool | None, x: str, *, name: str | None = None) -> str:
        """A max-pool of what is already padded."""
        if pool is None:
            return x
        settings = {
            "pool_size": [pool.size] * 2,
            "strides": [pool.stride] * 2,
            "padding": "same" if pool.padding == "same" else "valid",
        }
        return self.add("MaxPooling2D", name, [x], settings)

    def add(
        self,
        kind: str,
        name: str | None,
        inputs: Sequence[str],
        settings: dict[str, Any],
        *,
        shape: tuple[int | None, ...] | None = None,
    ) -> str:
        """Adds a layer, of its input's shape if not otherwise; its name."""
        if name is None:
            number = f"_{self.counts[kind]}" if self.counts[kind] else ""
            name, self.counts[kind] = _AUTOMATIC[kind] + number, self.counts[kind] + 1
        of_input = next(x.shape for x in reversed(self.layers) if x.name == inputs[0])
        self.layers.append(_Layer(kind, name, tuple(inputs), shape or of_input, settings))
        return name

    def called(self, module: str) -> str:
        """The dialect's name for one of our modules."""
        named = self.dialect.translate(module, self.config)
        assert named is not None
        return named[0]

    def of_block(self, block: Block, part: str) -> str | None:
        """The name of a block's own layer, where its convolutions' names have the block's."""
        return _ending(self.called(f"{block.name}/conv1"), "1_conv", part)


def _ending(name: str, ending: str, other: str) -> str | None:
    """The name with another ending, None if it does not end so."""
    return name.removesuffix(ending) + other if name.endswith(f"_{ending}") else None


def _listed(layers: list[_Layer], output: str) -> list[str]:
    """The layers in the order of Keras: the farthest from the end first, then as they are met.

    From keras/src/ops/function.py: `map_graph`.
    """
    inputs = {layer.name: layer.inputs for layer in layers}
    distance = dict.fromkeys(inputs, 0)
    for layer in reversed(layers):
        for name in layer.inputs:
            distance[name] = max(distance[name], distance[layer.name] + 1)
    met: dict[str, int] = {}
    waiting = [output]
    while waiting:
        if (name := waiting.pop()) not in met:
            met[name] = len(met)
            waiting += reversed(inputs[name])
    return sorted(met, key=lambda name: (-distance[name], met[name]))


def _to_json(layer: _Layer, layers: dict[str, _Layer]) -> dict[str, Any]:
    inputs = [_tensor(layers[name]) for name in layer.inputs]
    read = [inputs] if layer.kind == "Add" else inputs
    return {
        "module": "keras.layers",
        "class_name": layer.kind,
        "config": {"name": layer.name, "dtype": "float32", **layer.settings},
        "registered_name": None,
        "name": layer.name,
        "inbound_nodes": [{"args": read, "kwargs": {}}] if inputs else [],
    }


def _tensor(layer: _Layer) -> dict[str, Any]:
    return {
        "class_name": "__keras_tensor__",
        "config": {
            "shape": [None, *layer.shape],
            "dtype": "float32",
            "keras_history": [layer.name, 0, 0],
        },
    }
