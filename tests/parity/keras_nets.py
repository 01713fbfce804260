"""Nets of Keras 3 and of tf_keras: built, settled, run, saved and filled from our files.

One code for both: `keras` is the one or the other. KerasHub's are Keras 3's, KerasCV's tf_keras's.
Runs in TensorFlow's environment too, so it imports neither of them, nor this package.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity import recipe

Outputs = dict[str, np.ndarray]
Sizes = tuple[int, ...]


def build(
    keras: Any, framework: str, net: str, arguments: dict[str, Any], depths: Sizes, widths: Sizes
) -> Any:
    """The framework's own net; `depths` and `widths`, where given, make it smaller."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    return BUILDERS[framework](keras, net, dict(arguments), list(depths), list(widths))


def _application(keras: Any, net: str, arguments: Any, depths: Any, widths: Any) -> Any:
    """keras.applications' net, or its builder on other stages."""
    given = {"weights": None, "classifier_activation": None, **arguments}
    if not depths:
        return getattr(keras.applications, net)(**given)
    pre, three = net.endswith("V2"), keras.__name__ == "keras"
    module = importlib.import_module(f"{keras.__name__}.src.applications.resnet")
    stack = getattr(module, (f"stack_residual_blocks_v{1 + pre}" if three else f"stack{1 + pre}"))
    strides = (2, 2, 2, 1) if pre else (1, 2, 2, 2)

    def stages(x: Any) -> Any:
        for i, (depth, width, stride) in enumerate(zip(depths, widths, strides, strict=True)):
            x = stack(x, width, depth, stride1=stride, name=f"conv{i + 2}")
        return x

    images = keras.Input((None, None, 3))
    return module.ResNet(stages, preact=pre, use_bias=True, input_tensor=images, **given)


def _hub(keras: Any, net: str, arguments: Any, depths: Any, widths: Any) -> Any:
    """KerasHub's backbone, or the classifier on it."""
    import keras_hub

    classes = arguments.pop("num_classes")
    deep = arguments["block_type"].endswith("vd")
    plain = {
        "input_conv_filters": [32, 32, 64] if deep else [64],
        "input_conv_kernel_sizes": [3, 3, 3] if deep else [7],
        "stackwise_num_filters": [64, 128, 256, 512],
        "stackwise_num_strides": [1, 2, 2, 2],
    }
    sizes = {"stackwise_num_blocks": depths, "stackwise_num_filters": widths} if depths else {}
    backbone = getattr(keras_hub.models, net)(**{**plain, **arguments, **sizes})
    if not classes:
        return backbone
    return keras_hub.models.ImageClassifier(backbone=backbone, num_classes=classes)


def _cv(keras: Any, net: str, arguments: Any, depths: Any, widths: Any) -> Any:
    """KerasCV's backbone, or the classifier on it."""
    import keras_cv

    classes = arguments.pop("num_classes")
    plain = {
        "stackwise_filters": [64, 128, 256, 512],
        "stackwise_strides": [1, 2, 2, 2],
        "include_rescaling": False,
    }
    sizes = {"stackwise_blocks": depths, "stackwise_filters": widths} if depths else {}
    backbone = getattr(keras_cv.models, net)(**{**plain, **arguments, **sizes})
    if not classes:
        return backbone
    return keras_cv.models.ImageClassifier(backbone, num_classes=classes, activation="linear")


def _resnext(keras: Any, net: str, arguments: Any, depths: Any, widths: Any) -> Any:
    """ResNeXt as keras-applications built it: of its blocks, which tf_keras still has."""
    module = importlib.import_module(f"{keras.__name__}.src.applications.resnet")
    depths = depths or {"ResNeXt50": (3, 4, 6, 3), "ResNeXt101": (3, 4, 23, 3)}[net]

    def stages(x: Any) -> Any:
        for i, depth in enumerate(depths):
            x = module.stack3(x, 128 * 2**i, depth, stride1=2 if i else 1, name=f"conv{i + 2}")
        return x

    given = {"weights": None, "classifier_activation": None, **arguments}
    images = keras.Input((None, None, 3))
    return module.ResNet(stages, preact=False, use_bias=False, input_tensor=images, **given)


BUILDERS: dict[str, Callable[..., Any]] = {
    "keras": _application,
    "tf_keras": _application,
    "keras-applications": _resnext,
    "keras_hub": _hub,
    "keras_cv": _cv,
}


def backbone_of(model: Any) -> Any:
    """The net within a classifier, or the net itself."""
    return getattr(model, "backbone", model)


def layers(model: Any) -> list[Any]:
    """Those with arrays, in the model's order, the backbone's first."""
    inner = backbone_of(model)
    own = [] if inner is model else [x for x in model.layers if x is not inner and x.weights]
    return [layer for layer in inner.layers if layer.weights] + own


def settle(keras: Any, model: Any, images: np.ndarray) -> None:
    """Random values, and statistics measured in one pass and disturbed (`torch_side.settle`)."""
    names = {layer.name for layer in layers(model)}
    for layer in layers(model):
        values = layer.get_weights()
        if not isinstance(layer, keras.layers.BatchNormalization):
            values[1:] = [recipe.bias(layer.name, len(value)) for value in values[1:]]
            layer.set_weights(values)

    def conv(call: Any, layer: Any, x: Any, **options: Any) -> Any:
        size, (kernel, *bias) = recipe.size_of(layer.name, names), layer.get_weights()
        gain = recipe.gain(_array(call(layer, x, **options)), layer.name, size=size)
        layer.set_weights([kernel * gain, *bias])
        return call(layer, x, **options)

    def norm(call: Any, layer: Any, x: Any, **options: Any) -> Any:
        size = recipe.size_of(layer.name, names)
        layer.set_weights(recipe.norm(_array(x), layer.name, size=size))
        return call(layer, x, **options)

    with (
        intercepted(keras.layers.Conv2D, conv),
        intercepted(keras.layers.BatchNormalization, norm),
    ):
        model(images, training=False)


@contextmanager
def intercepted(kind: Any, instead: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, layers of a class are called through a function, which is given the call."""
    own, call = "call" in vars(kind), kind.call

    def called(layer: Any, x: Any, *_: Any, **options: Any) -> Any:
        return instead(call, layer, x, **options)

    kind.call = called
    try:
        yield
    finally:
        if own:
            kind.call = call
        else:
            del kind.call  # it was inherited


def run(keras: Any, model: Any, images: np.ndarray) -> Outputs:
    """Logits, or pooled features of a net without a head, and every feature map by our names."""
    inner = backbone_of(model)
    found = {"stem_conv": _before_pool(inner), "stem": inner.get_layer("pool1_pool").output}
    for layer in inner.layers:
        if stage := re.fullmatch(r"(conv|v2_stack_|stack)(\d)_block\d+_out", layer.name):
            number = int(stage[2]) + {"conv": -1, "v2_stack_": 1, "stack": 1}[stage[1]]
            found[f"stage{number}"] = layer.output
        elif layer.name == "post_relu":
            found["norm"] = layer.output
    maps = keras.Model(inner.input, found)(images, training=False)
    outputs = {name: _array(x) for name, x in maps.items()}
    headless = not any(layer.name == "predictions" for layer in model.layers)
    last = outputs[list(found)[-1]]
    logits = last.mean((1, 2)) if headless else _array(model(images, training=False))
    return {**outputs, "logits": logits}


def _before_pool(model: Any) -> Any:
    """The last output of a convolution, a norm or an activation before the stem's pool."""
    names = [layer.name for layer in model.layers]
    before = names[: names.index("pool1_pool")]
    last = [name for name in before if re.fullmatch(r"conv\d_(conv|bn|relu)", name)][-1]
    return model.get_layer(last).output


# By layout: the file's name, and the method that writes it.
FILES = {
    "h5 weights": ("net.h5", "save_weights"),
    "h5 model": ("net.h5", "save"),
    "weights.h5": ("net.weights.h5", "save_weights"),
    "keras": ("net.keras", "save"),
}


def save(model: Any, layout: str, folder: Path) -> Path:
    """The file that the model's own Keras writes."""
    name, method = FILES[layout]
    getattr(model, method)(str(folder / name))
    return folder / name


def differences(keras: Any, model: Any, saved: Path, *, whole: bool) -> list[str]:
    """The arrays that are others after the framework has read our file, strictly.

    Without `whole` the file is of the backbone alone. The model must be as it was, and is again.
    """
    net = model if whole else backbone_of(model)
    right = {layer.name: layer.get_weights() for layer in layers(net)}
    if saved.suffix == ".keras":
        read = keras.models.load_model(str(saved), compile=False)
    else:
        for layer in layers(net):
            layer.set_weights([np.full_like(value, np.nan) for value in layer.get_weights()])
        net.load_weights(str(saved))
        read = net
    found = {layer.name: layer.get_weights() for layer in layers(read)}
    different = [
        name
        for name, values in right.items()
        if name not in found or not all(map(np.array_equal, values, found[name]))
    ]
    for layer in layers(net):
        layer.set_weights(right[layer.name])
    return different + [name for name in found if name not in right]


def _array(x: Any) -> np.ndarray:
    return x.detach().numpy() if hasattr(x, "detach") else x.numpy()
