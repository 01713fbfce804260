"""A plan and its arrays as an ONNX graph, layer by layer; nothing is traced.

What `resnetjax.nn` computes on [batch, height, width, channels] in float32, on
[batch, channels, height, width] here. Sizes are known, so SAME becomes the pads that it means.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import comb

import jax.numpy as jnp
import numpy as np
from jax import lax

from resnetjax.config import Activation, Preprocess
from resnetjax.infer.onnx_graph import Graph
from resnetjax.nn import functions
from resnetjax.specs import Attention, Block, Conv, Norm, Padding, Plan, Pool, Shortcut

INPUT, OUTPUT = "pixels", "logits"


@dataclass(frozen=True)
class _Maps:
    """A value of the graph: float32[batch, channels, *size]."""

    name: str
    channels: int
    size: tuple[int, int]


def write(
    plan: Plan, arrays: Mapping[str, np.ndarray], preprocess: Preprocess, *, description: str
) -> bytes:
    """An ONNX file from uint8[batch, height, width, channels] pixels to logits.

    Args:
        plan: The net.
        arrays: Its arrays by path.
        preprocess: Its crop is the input's size; the normalisation is in the graph.
        description: Kept in `metadata_props` under "resnetjax".

    Raises:
        MissingExtra: The package `onnx` is not installed.
        UnsupportedFile: The weights are more than an ONNX file holds.
    """
    writer = _Writer(arrays)
    writer.net(plan, preprocess)
    height, width = preprocess.crop_px
    return writer.graph.serialize(
        inputs=(INPUT, np.uint8, ("batch", height, width, preprocess.channels)),
        outputs=(OUTPUT, np.float32, ("batch", plan.num_classes or plan.features)),
        metadata={"resnetjax": description},
    )


class _Writer:
    """Adds the nodes of each element of a plan, named by the path of its arrays."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.graph = Graph()
        self._arrays = arrays

    def net(self, plan: Plan, preprocess: Preprocess) -> None:
        x = self._images(preprocess)
        for conv in plan.stem.convs:
            x = self._conv_norm_act(x, conv, "stem")
        for i, pool in enumerate(plan.stem.pools, start=1):
            x = self._pool(x, pool, f"stem/pool{i}")
        if plan.stem.pool_conv:
            x = self._conv_norm_act(x, plan.stem.pool_conv, "stem/pool")
        for stage in plan.stages:
            for block in stage.blocks:
                x = self._post(x, block) if block.order == "post" else self._pre(x, block)
        if plan.norm:
            x = self._norm(x, plan.norm, "norm")
            x = self._activate(x, plan.norm_activation, "norm")
        kind = "GlobalAveragePool" if plan.head_pool == "average" else "GlobalMaxPool"
        pooled = self.graph.node(kind, x.name, name="pool")
        if not plan.num_classes:
            self.graph.node("Flatten", pooled, name=OUTPUT)
            return
        x = replace(x, name=self.graph.node("Flatten", pooled, name="pool/flat"))
        for layer in plan.head:
            parameters = self._parameters(layer.name, "kernel", "bias")
            name = OUTPUT if layer is plan.head[-1] else layer.name
            x = replace(x, name=self.graph.node("Gemm", x.name, *parameters, name=name))
            x = self._activate(x, layer.activation, layer.name)

    def _images(self, preprocess: Preprocess) -> _Maps:
        """The pixels normalised, in the order of operations of `data.preprocess.normalize`."""
        graph, channels = self.graph, preprocess.channels
        name = graph.node("Transpose", INPUT, name="images/planes", perm=[0, 3, 1, 2])
        if preprocess.channel_order == "bgr":
            order = graph.constant("images/order", np.arange(channels)[::-1], np.int64)
            name = graph.node("Gather", name, order, name="images/bgr", axis=1)
        name = graph.node("Cast", name, name="images/float", to=1)  # TensorProto.FLOAT
        for operator, key, value in (
            ("Div", "divisor", preprocess.divisor),
            ("Sub", "mean", np.reshape(preprocess.mean, (-1, 1, 1))),
            ("Div", "std", np.reshape(preprocess.std, (-1, 1, 1))),
        ):
            constant = graph.constant(f"preprocess/{key}", value)
            name = graph.node(operator, name, constant, name=f"images/{key}")
        return _Maps(name, channels, preprocess.crop_px)

    def _post(self, x: _Maps, block: Block) -> _Maps:
        y = x
        for conv in block.convs:
            y = self._conv_norm_act(y, conv, block.name)
        y = self._attend(y, block.attention, f"{block.name}/attention")
        added = self._add(y, self._shortcut(x, x, block.shortcut, block.name), block.name)
        return self._activate(added, block.activation, block.name)

    def _pre(self, x: _Maps, block: Block) -> _Maps:
        y = activated = x
        for i, conv in enumerate(block.convs):
            if conv.norm:
                y = self._norm(y, conv.norm, f"{block.name}/{conv.norm.name}")
            y = self._activate(y, conv.activation, f"{block.name}/{conv.name}/input")
            activated = y if i == 0 else activated
            y = self._convolve(y, conv, f"{block.name}/{conv.name}")
        y = self._attend(y, block.attention, f"{block.name}/attention")
        return self._add(y, self._shortcut(x, activated, block.shortcut, block.name), block.name)

    def _shortcut(self, x: _Maps, activated: _Maps, shortcut: Shortcut, block: str) -> _Maps:
        path = f"{block}/shortcut"
        x = activated if shortcut.conv else x
        if shortcut.pool:
            x = self._pool(x, shortcut.pool, f"{path}/pool")
        if shortcut.conv:
            x = self._conv_norm_act(x, shortcut.conv, path)
        if extra := shortcut.pad_features:
            x = self._pad(x, ((extra // 2, extra - extra // 2), (0, 0), (0, 0)), f"{path}/pad")
        return x

    def _add(self, y: _Maps, x: _Maps, path: str) -> _Maps:
        return replace(y, name=self.graph.node("Add", y.name, x.name, name=f"{path}/sum"))

    def _conv_norm_act(self, x: _Maps, conv: Conv, scope: str) -> _Maps:
        path = f"{scope}/{conv.name}"
        x = self._convolve(x, conv, path)
        if conv.norm:
            x = self._norm(x, conv.norm, f"{scope}/{conv.norm.name}")
        x = self._activate(x, conv.activation, path)
        return self._pool(x, conv.pool, f"{path}/pool") if conv.pool else x

    def _convolve(self, x: _Maps, conv: Conv, path: str) -> _Maps:
        kernel = self._arrays[f"{path}/kernel"]
        if conv.standardize_eps is not None:
            standard = functions.standardize(jnp.asarray(kernel), conv.standardize_eps)
            kernel = np.asarray(standard)
        inputs = [self.graph.constant(f"{path}/kernel", kernel.transpose(3, 2, 0, 1))]
        if conv.bias:
            inputs += self._parameters(path, "bias")
        pads, size = _window(x.size, conv.kernel, conv.stride, conv.padding, conv.dilation)
        name = self.graph.node(
            "Conv",
            x.name,
            *inputs,
            name=path,
            kernel_shape=[conv.kernel] * 2,
            strides=[conv.stride] * 2,
            dilations=[conv.dilation] * 2,
            group=conv.groups,
            pads=pads,
        )
        return _Maps(name, conv.features, size)

    def _norm(self, x: _Maps, norm: Norm, path: str) -> _Maps:
        graph = self.graph
        if norm.kind == "batch":
            inputs = self._parameters(path, "scale", "bias", "mean", "var")
            name = graph.node("BatchNormalization", x.name, *inputs, name=path, epsilon=norm.eps)
            return replace(x, name=name)
        name = self._grouped(x, norm, path) if norm.kind == "group" else x.name
        for operator, key in (("Mul", "scale"), ("Add", "bias")):
            array = self._arrays[f"{path}/{key}"].reshape(-1, 1, 1)
            constant = graph.constant(f"{path}/{key}", array)
            name = graph.node(operator, name, constant, name=f"{path}/{operator.lower()}")
        return replace(x, name=name)

    def _grouped(self, x: _Maps, norm: Norm, path: str) -> str:
        """Each group of channels with mean 0 and variance 1."""
        graph = self.graph
        # GroupNormalization is right from opset 21 on only: before, its scale was one a group.
        whole = graph.constant(f"{path}/shape", (0, x.channels, *x.size), np.int64)
        parts = graph.constant(f"groups/{norm.groups}", (0, norm.groups, -1), np.int64)
        ones = graph.constant(f"groups/{norm.groups}/one", np.ones(norm.groups))
        zeros = graph.constant(f"groups/{norm.groups}/zero", np.zeros(norm.groups))
        name = graph.node("Reshape", x.name, parts, name=f"{path}/groups")
        name = graph.node(
            "InstanceNormalization", name, ones, zeros, name=f"{path}/normal", epsilon=norm.eps
        )
        return graph.node("Reshape", name, whole, name=f"{path}/channels")

    def _activate(self, x: _Maps, activation: Activation | None, path: str) -> _Maps:
        graph = self.graph

        def node(operator: str, *inputs: str, part: str = "") -> str:
            return graph.node(operator, *inputs, name=f"{path}/{activation}{part and '/' + part}")

        def number(value: float) -> str:
            return graph.constant(f"number/{value}", value)

        match activation:
            case None:
                return x
            case "relu":
                name = node("Relu", x.name)
            case "silu":
                name = node("Mul", x.name, node("Sigmoid", x.name, part="gate"))
            case "gelu":  # x / 2 * (1 + erf(x / sqrt 2)): the operator Gelu came with opset 20
                scaled = node("Div", x.name, number(math.sqrt(2)), part="scaled")
                gate = node("Add", node("Erf", scaled, part="erf"), number(1), part="gate")
                half = node("Mul", x.name, number(0.5), part="half")
                name = node("Mul", half, gate)
            case "gelu_tanh":  # x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
                square = node("Mul", x.name, x.name, part="square")
                cube = node("Mul", square, x.name, part="cube")
                small = node("Mul", cube, number(0.044715), part="small")
                sum_ = node("Add", x.name, small, part="sum")
                scaled = node("Mul", sum_, number(math.sqrt(2 / math.pi)), part="scaled")
                gate = node("Add", node("Tanh", scaled, part="tanh"), number(1), part="gate")
                half = node("Mul", x.name, number(0.5), part="half")
                name = node("Mul", half, gate)
        return replace(x, name=name)

    def _pool(self, x: _Maps, pool: Pool, path: str) -> _Maps:
        if pool.kind == "blur":
            return self._blur(x, pool, path)
        pads, size = _window(x.size, pool.size, pool.stride, pool.padding)
        counts = {} if pool.kind == "max" else {"count_include_pad": int(pool.count_padding)}
        name = self.graph.node(
            "MaxPool" if pool.kind == "max" else "AveragePool",
            x.name,
            name=path,
            kernel_shape=[pool.size] * 2,
            strides=[pool.stride] * 2,
            pads=pads,
            **counts,
        )
        if pool.kind == "max" and pool.pad_value == "zero" and any(pads):
            # Not by Pad: onnxruntime 1.31 fuses that into MaxPool, whose own pads are -inf.
            least = np.where(
                _touches_padding(x.size, size, pads, pool), 0, np.finfo(np.float32).min
            )
            name = self.graph.node(
                "Max", name, self.graph.constant(f"{path}/least", least), name=f"{path}/zeros"
            )
        return _Maps(name, x.channels, size)

    def _blur(self, x: _Maps, pool: Pool, path: str) -> _Maps:
        """Zhang 2019: a binomial filter on reflected borders, subsampled."""
        _, size = _window(x.size, pool.size, pool.stride, pool.padding)
        side = int(pool.padding)
        x = self._pad(x, ((0, 0), (side, side), (side, side)), f"{path}/border", mode="reflect")
        row = np.array([comb(pool.size - 1, k) for k in range(pool.size)]) / 2 ** (pool.size - 1)
        kernel = np.broadcast_to(np.outer(row, row), (x.channels, 1, pool.size, pool.size))
        name = self.graph.node(
            "Conv",
            x.name,
            self.graph.constant(f"blur/{pool.size}/{x.channels}", kernel),
            name=path,
            kernel_shape=[pool.size] * 2,
            strides=[pool.stride] * 2,
            group=x.channels,
        )
        return _Maps(name, x.channels, size)

    def _pad(
        self, x: _Maps, sides: tuple[tuple[int, int], ...], path: str, mode: str = "constant"
    ) -> _Maps:
        """Padded by (before, after) channels, rows and columns."""
        before, after = zip((0, 0), *sides, strict=True)
        pads = self.graph.constant(f"pads/{before + after}", before + after, np.int64)
        name = self.graph.node("Pad", x.name, pads, name=path, mode=mode)
        channels, height, width = (
            length + sum(side) for length, side in zip((x.channels, *x.size), sides, strict=True)
        )
        return _Maps(name, channels, (height, width))

    def _attend(self, x: _Maps, attention: Attention | None, path: str) -> _Maps:
        if attention is None:
            return x
        graph = self.graph
        y = graph.node("GlobalAveragePool", x.name, name=f"{path}/pool")
        if attention.kind == "eca":
            row = graph.constant("attention/row", (0, 1, -1), np.int64)
            column = graph.constant("attention/column", (0, -1, 1, 1), np.int64)
            kernel = self._arrays[f"{path}/conv/kernel"].reshape(1, 1, -1)
            y = graph.node("Reshape", y, row, name=f"{path}/row")
            y = graph.node(
                "Conv",
                y,
                graph.constant(f"{path}/conv/kernel", kernel),
                name=f"{path}/conv",
                kernel_shape=[attention.kernel],
                pads=[attention.kernel // 2] * 2,
            )
            y = graph.node("Reshape", y, column, name=f"{path}/column")
        else:
            y = self._dense(y, f"{path}/reduce")
            y = self._dense(graph.node("Relu", y, name=f"{path}/relu"), f"{path}/expand")
        gate = graph.node("Sigmoid", y, name=f"{path}/gate")
        return replace(x, name=graph.node("Mul", x.name, gate, name=path))

    def _dense(self, y: str, path: str) -> str:
        """A dense layer on [batch, channels, 1, 1]."""
        kernel = self._arrays[f"{path}/kernel"].T[:, :, None, None]
        inputs = [self.graph.constant(f"{path}/kernel", kernel), *self._parameters(path, "bias")]
        return self.graph.node("Conv", y, *inputs, name=path, kernel_shape=[1, 1])

    def _parameters(self, path: str, *names: str) -> list[str]:
        """Arrays that the graph takes as they are."""
        return [
            self.graph.constant(f"{path}/{name}", self._arrays[f"{path}/{name}"]) for name in names
        ]


def _window(
    size: tuple[int, int], kernel: int, stride: int, padding: Padding, dilation: int = 1
) -> tuple[list[int], tuple[int, int]]:
    """Pads in ONNX's order (top, left, bottom, right), and the size that comes out."""
    reach = dilation * (kernel - 1) + 1
    sides = (
        [(padding, padding)] * 2
        if isinstance(padding, int)
        else lax.padtype_to_pads(size, (reach, reach), (stride, stride), "SAME")
    )
    height, width = (
        (pixels + sum(side) - reach) // stride + 1 for pixels, side in zip(size, sides, strict=True)
    )
    return [int(side[i]) for i in (0, 1) for side in sides], (height, width)


def _touches_padding(
    size: tuple[int, int], pooled: tuple[int, int], pads: list[int], pool: Pool
) -> np.ndarray:
    """For each window of a pool, whether it reaches beyond the image: bool[*pooled]."""
    rows, columns = (
        (starts < 0) | (starts + pool.size > pixels)
        for pixels, starts in (
            (pixels, np.arange(count) * pool.stride - before)
            for pixels, count, before in zip(size, pooled, pads[:2], strict=True)
        )
    )
    return rows[:, None] | columns[None]
