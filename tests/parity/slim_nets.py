"""Nets of tf_slim: built, settled, run and saved. Runs in TensorFlow's environment only."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.python.autograph.core import ag_ctx

from tests.parity import recipe
from tests.parity.keras_nets import Outputs, Sizes, intercepted

# TensorFlow 2.15 looks for these under tf_keras, which moved them into tf_keras.src.
for layers in ("base", "convolutional", "core", "normalization", "pooling"):
    place = f"legacy_tf_layers.{layers}"
    sys.modules[f"tf_keras.{place}"] = importlib.import_module(f"tf_keras.src.{place}")

from tensorflow.python.layers.convolutional import Convolution2D  # noqa: E402
from tensorflow.python.layers.normalization import BatchNormalization  # noqa: E402
from tf_slim import arg_scope  # noqa: E402
from tf_slim.nets import resnet_v1, resnet_v2  # noqa: E402

NORM = ("gamma", "beta", "moving_mean", "moving_variance")


class Net:
    """One net of slim, in a graph and a session of its own.

    Attributes:
        arrays: By the variables' names.
    """

    def __init__(
        self, net: str, arguments: dict[str, Any], depths: Sizes, widths: Sizes, images: np.ndarray
    ) -> None:
        """Settled on the images (`torch_side.settle`)."""
        self._built = (net, arguments, depths, widths, images.shape[1:3])
        with tf.Graph().as_default(), tf.Session() as session:
            tf.set_random_seed(0)
            with self._settling():
                x, outputs = self._build()
            session.run(tf.global_variables_initializer())
            self.arrays: dict[str, np.ndarray] = session.run(_variables())
            for name in self.arrays:
                if name.endswith("/biases"):
                    self.arrays[name] = recipe.bias(name, self.arrays[name].size)
            self._names = {name.rpartition("/")[0] for name in self.arrays}
            _fill(session, self.arrays)
            session.run(outputs, {x: images})
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._x, self._outputs = self._build()
            self._saver = tf.train.Saver()
            self._session = tf.Session()
            _fill(self._session, self.arrays)

    @property
    def _scope(self) -> str:
        """Named by its layers with weights, as slim's own nets are."""
        net, _, depths, *_ = self._built
        return f"{net.rpartition('_')[0]}_{3 * sum(depths) + 2}" if depths else net

    def _build(self) -> tuple[Any, Outputs]:
        """The placeholder, and logits and feature maps by our names."""
        net, arguments, depths, widths, (height, width) = self._built
        module = resnet_v1 if "_v1_" in net else resnet_v2
        kind = module.__name__.rpartition(".")[2]
        classes, arguments = arguments["num_classes"], dict(arguments, is_training=False)
        del arguments["num_classes"]
        arguments["global_pool"] = not arguments.get("output_stride")
        x = tf.placeholder(tf.float32, (None, height, width, 3))
        # Rewriting each layer's code for AutoGraph would take most of the time.
        plain = ag_ctx.ControlStatusCtx(ag_ctx.Status.DISABLED)
        with plain, arg_scope(module.resnet_arg_scope()):
            if depths:
                block = getattr(module, f"{kind}_block")
                sizes = zip(depths, widths, (2, 2, 2, 1), strict=True)
                blocks = [
                    block(f"block{i}", base_depth=narrow, num_units=units, stride=stride)
                    for i, (units, narrow, stride) in enumerate(sizes, start=1)
                ]
                found = getattr(module, kind)(
                    x, blocks, classes or None, scope=self._scope, **arguments
                )
            else:
                found = getattr(module, net)(x, classes or None, **arguments)
        logits, points = found
        graph, scope = tf.get_default_graph(), self._scope
        stem = "Relu" if kind == "resnet_v1" else "BiasAdd"
        outputs = {
            "stem_conv": graph.get_tensor_by_name(f"{scope}/conv1/{stem}:0"),
            "stem": graph.get_tensor_by_name(f"{scope}/pool1/MaxPool:0"),
            **{f"stage{i}": points[f"{scope}/block{i}"] for i in range(1, 5)},
        }
        if kind == "resnet_v2":
            outputs["norm"] = graph.get_tensor_by_name(f"{scope}/postnorm/Relu:0")
        if classes:
            outputs["logits"] = tf.reduce_mean(logits, (1, 2))
        else:
            outputs["logits"] = tf.reduce_mean(outputs[list(outputs)[-1]], (1, 2))
        return x, outputs

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """What is built meanwhile changes `arrays` when it is run."""

        def through(function: Any, tensor: Any) -> Any:
            result = tf.numpy_function(function, [tensor], tf.float32)
            result.set_shape(tensor.shape)
            return result

        def conv(call: Any, layer: Any, x: Any, **options: Any) -> Any:
            name = layer.kernel.op.name.rpartition("/")[0]

            def rescale(output: np.ndarray) -> np.ndarray:
                gain = recipe.gain(output, name, size=recipe.size_of(name, self._names))
                self.arrays[f"{name}/weights"] = self.arrays[f"{name}/weights"] * gain
                bias = self.arrays.get(f"{name}/biases", np.float32(0))
                return (output - bias) * gain + bias

            output = call(layer, x, **options)
            return output if name.endswith("/logits") else through(rescale, output)

        def norm(call: Any, layer: Any, x: Any, **options: Any) -> Any:
            name = layer.gamma.op.name.rpartition("/")[0]

            def measure(inputs: np.ndarray) -> np.ndarray:
                values = recipe.norm(inputs, name, size=recipe.size_of(name, self._names))
                self.arrays |= {f"{name}/{kind}": x for kind, x in zip(NORM, values, strict=True)}
                scale, shift, mean, var = values
                return (inputs - mean) * (scale / np.sqrt(var + layer.epsilon)) + shift

            call(layer, x, **options)  # makes its variables
            return through(measure, x)

        with intercepted(Convolution2D, conv), intercepted(BatchNormalization, norm):
            yield

    def run(self, images: np.ndarray) -> Outputs:
        return self._session.run(self._outputs, {self._x: images})

    def save(self, layout: str, folder: Path) -> Path:
        """A bundle, or the same arrays by the same names as an npz."""
        if layout == "npz":
            np.savez(folder / "net.npz", **self.arrays)
            return folder / "net.npz"
        with self._graph.as_default():
            self._saver.save(
                self._session, str(folder / "net.ckpt"), write_meta_graph=False, write_state=False
            )
        return folder / "net.ckpt"

    def differences(self, saved: Path) -> list[str]:
        """The variables that are others in our npz, or that only one of both has."""
        with np.load(saved) as archive:
            found = dict(archive)
        same = {name for name in found if np.array_equal(self.arrays.get(name, ()), found[name])}
        return sorted({*self.arrays, *found} - same)


def _variables() -> dict[str, Any]:
    return {variable.op.name: variable for variable in tf.global_variables()}


def _fill(session: Any, arrays: dict[str, np.ndarray]) -> None:
    """Gives every variable of the graph its value, in one run."""
    variables = _variables()
    fed = {name: tf.placeholder(tf.float32, x.shape) for name, x in variables.items()}
    session.run(
        [variable.assign(fed[name]) for name, variable in variables.items()],
        {fed[name]: array for name, array in arrays.items()},
    )
