"""Writes tests/golden: what tiny nets of the real frameworks' own code make of seeded weights.

Run from the repository's root in an environment that has the framework (tests/golden/README.md):

    PYTHONPATH=. python scripts/make_golden.py keras tests/golden
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.weights import CHANNELS, CLASSES, KERAS_ARRAYS, MLPERF_LAYERS, draw, image

SIZES = ("64x64", "65x49")  # even at every stage; odd
Outputs = dict[str, np.ndarray]
Stages = tuple[int, ...]
Net = Callable[[np.ndarray], Outputs]
"""From an image to the logits and feature maps, by our names."""

# keras.applications and KerasCV: layer to place in our tree; {0}, {1}: stage and block.
KERAS_LAYERS = {
    r"conv1_conv": "stem/conv1",
    r"conv1_bn": "stem/norm1",
    r"STAGE_0_conv": "stage{0}_block{1}/shortcut/conv",
    r"STAGE_0_bn": "stage{0}_block{1}/shortcut/norm",
    r"STAGE_([123])_conv": "stage{0}_block{1}/conv{2}",
    r"STAGE_([123])_bn": "stage{0}_block{1}/norm{2}",
    r"STAGE_(?:use_)?preact(?:ivation)?_bn": "stage{0}_block{1}/norm1",
    r"post_bn": "norm",
    r"predictions": "head",
}
KERAS_FEATURES = {r"STAGE_out": "stage{0}", r"post_relu": "norm"}
MLPERF_FEATURES = {"activation_2": "stage1", "activation_4": "stage2", "activation_6": "stage3"}

# tf_slim: variable to path; in v2 the norm after a convolution is the next one's.
SLIM_UNIT = r"block(\d)/unit_(\d)/bottleneck_v\d"
SLIM_LAYERS = {
    r"conv1": "stem/conv1",
    r"conv1/BatchNorm": "stem/norm1",
    rf"{SLIM_UNIT}/shortcut": "stage{0}_block{1}/shortcut/conv",
    rf"{SLIM_UNIT}/shortcut/BatchNorm": "stage{0}_block{1}/shortcut/norm",
    rf"{SLIM_UNIT}/conv(\d)": "stage{0}_block{1}/conv{2}",
    rf"{SLIM_UNIT}/conv(\d)/BatchNorm": "stage{0}_block{1}/norm{2}",
    rf"{SLIM_UNIT}/preact": "stage{0}_block{1}/norm1",
    r"postnorm": "norm",
    r"logits": "head",
}
SLIM_ARRAYS = {**KERAS_ARRAYS, "weights": "kernel", "biases": "bias"}


def rename(name: str, table: dict[str, str], *, stage: int = 0, norm: int = 0) -> str | None:
    """A framework's name in our terms, or None; `stage` and `norm` shift its numbers of these."""
    for pattern, ours in table.items():
        found = re.fullmatch(pattern.replace("STAGE", r"(?:conv|v2_stack_)(\d)_block(\d+)"), name)
        if found:
            numbers = [int(number) for number in found.groups()]
            if numbers:
                numbers[0] += stage
            if "/norm{2}" in ours:
                numbers[2] += norm
            return ours.format(*numbers)
    return None


def keras_arrays(model: Any, place: Callable[[str], str | None]) -> None:
    """Gives every array of a Keras model its seeded value."""
    for layer in model.layers:
        if layer.weights:
            path = place(layer.name)
            assert path, layer.name
            names = [KERAS_ARRAYS[w.name.split("/")[-1].split(":")[0]] for w in layer.weights]
            layer.set_weights(
                [
                    draw(f"{path}/{n}", tuple(w.shape))
                    for n, w in zip(names, layer.weights, strict=True)
                ]
            )


def keras_net(keras: Any, model: Any, logits: Any, feature: Callable[[str], str | None]) -> Net:
    """Runs a Keras model, and reads its feature maps where `feature` names a layer's output."""
    outputs = {feature(layer.name): layer.output for layer in model.layers if feature(layer.name)}
    features = keras.Model(model.input, outputs)

    def run(x: np.ndarray) -> Outputs:
        found = {name: np.asarray(value) for name, value in features(x).items()}
        return {"logits": np.asarray(logits(x)), **found}

    return run


def keras_nets() -> Iterator[tuple[str, Net, tuple[str, ...]]]:
    """keras.applications, and MLPerf Tiny's net from the `model_config` in its file."""
    import keras
    from keras.src.applications import resnet

    def build(stack: Any, depths: Stages, widths: Stages, strides: Stages, **options: Any) -> Net:
        def stack_fn(x: Any) -> Any:
            for i, (depth, width, stride) in enumerate(zip(depths, widths, strides, strict=True)):
                x = stack(x, width, depth, stride1=stride, name=f"conv{i + 2}")
            return x

        model = resnet.ResNet(
            stack_fn, weights=None, use_bias=True, classes=CLASSES, classifier_activation=None,
            input_tensor=keras.Input((None, None, 3)), **options,
        )  # fmt: skip
        norm = 1 if options["preact"] else 0
        keras_arrays(model, lambda name: rename(name, KERAS_LAYERS, stage=-1, norm=norm))
        return keras_net(keras, model, model, lambda name: rename(name, KERAS_FEATURES, stage=-1))

    v1, v2 = resnet.stack_residual_blocks_v1, resnet.stack_residual_blocks_v2
    yield "keras_v1", build(v1, (2, 1, 2, 1), (8, 16, 32, 64), (1, 2, 2, 2), preact=False), SIZES
    # The second stage's width: its first block projects where the shape would not ask for it.
    yield "keras_v2", build(v2, (2, 3, 2, 2), (8, 8, 32, 64), (2, 2, 2, 1), preact=True), SIZES

    folder = Path(os.environ.get("RESNETJAX_TEST_WEIGHTS") or "../shared/weights")
    model = keras.models.load_model(folder / "mlperf-tiny-resnet8.h5", compile=False)
    model.layers[-1].activation = keras.activations.linear
    keras_arrays(model, MLPERF_LAYERS.get)
    yield "mlperf_resnet8", keras_net(keras, model, model, MLPERF_FEATURES.get), ("32x32",)


def kerascv_nets() -> Iterator[tuple[str, Net, tuple[str, ...]]]:
    """KerasCV's backbones under its `ImageClassifier`."""
    from keras_cv.models import ImageClassifier, ResNetBackbone, ResNetV2Backbone
    from keras_cv.src.backend import keras

    def build(backbone_class: Any, depths: Stages, block_type: str, **options: Any) -> Net:
        basic = block_type == "basic_block"
        backbone = backbone_class(
            # The first basic stage has no projection, so it is as wide as the stem: 64.
            stackwise_filters=(64, 8, 16, 32) if basic else (8, 16, 32, 64),
            stackwise_blocks=depths,
            stackwise_strides=(1, 2, 2, 2),
            include_rescaling=False,
            block_type=block_type,
            **options,
        )
        model = ImageClassifier(backbone, num_classes=CLASSES, activation="linear")
        norm = 1 if backbone_class is ResNetV2Backbone else 0
        for part in (backbone, keras.Sequential([model.get_layer("predictions")])):
            keras_arrays(part, lambda name: rename(name, KERAS_LAYERS, stage=1, norm=norm))
        return keras_net(keras, backbone, model, lambda name: rename(name, KERAS_FEATURES, stage=1))

    for suffix, block_type in (("", "block"), ("_basic", "basic_block")):
        yield f"kerascv_v1{suffix}", build(ResNetBackbone, (2, 1, 2, 1), block_type), SIZES
        for dilations in ((1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 2, 4)):
            net = build(ResNetV2Backbone, (2, 3, 3, 3), block_type, stackwise_dilations=dilations)
            rates = "" if max(dilations) == 1 else "_dilated" + "".join(map(str, dilations))
            yield f"kerascv_v2{suffix}{rates}", net, SIZES


def slim_nets() -> Iterator[tuple[str, Net, tuple[str, ...]]]:
    """tf_slim's v1 and v2, as they are and with an output stride."""
    for version in (1, 2):
        for output_stride in (None, 16, 8):
            suffix = f"_stride{output_stride}" if output_stride else ""
            yield f"slim_v{version}{suffix}", slim_net(version, output_stride), SIZES


def slim_net(version: int, output_stride: int | None) -> Net:
    """A net of tf_slim; with an output stride as for dense prediction, without global pooling."""
    import tensorflow.compat.v1 as tf

    # TensorFlow 2.15 looks for these under tf_keras, which moved them into tf_keras.src.
    for layers in ("base", "convolutional", "core", "normalization", "pooling"):
        place = f"legacy_tf_layers.{layers}"
        sys.modules[f"tf_keras.{place}"] = importlib.import_module(f"tf_keras.src.{place}")
    from tf_slim import arg_scope
    from tf_slim.nets import resnet_v1, resnet_v2

    module, name = ((resnet_v1, "resnet_v1"), (resnet_v2, "resnet_v2"))[version - 1]
    block = getattr(module, f"{name}_block")
    graph = tf.Graph()
    with graph.as_default(), arg_scope(module.resnet_arg_scope()):
        x = tf.placeholder(tf.float32, (1, None, None, 3))
        # The first two blocks are as wide as the stem (4 x 16), so slim gives them no projection.
        sizes = zip((16, 16, 32, 64), (2, 1, 3, 2), (2, 2, 2, 1), strict=True)
        blocks = [
            block(f"block{i}", base_depth=width, num_units=units, stride=stride)
            for i, (width, units, stride) in enumerate(sizes, start=1)
        ]
        logits, points = getattr(module, name)(
            x,
            blocks,
            CLASSES,
            is_training=False,
            output_stride=output_stride,
            global_pool=not output_stride,
        )
        outputs = {"logits": tf.reduce_mean(logits, (1, 2))}
        outputs |= {f"stage{i}": points[f"{name}/block{i}"] for i in range(1, 5)}
        if version == 2:
            outputs["norm"] = graph.get_tensor_by_name(f"{name}/postnorm/Relu:0")
        session = tf.Session()
        for variable in tf.global_variables():
            layer, _, kind = variable.op.name.removeprefix(f"{name}/").rpartition("/")
            path = rename(layer, SLIM_LAYERS, norm=version - 1)
            assert path, variable.op.name
            shape = tuple(variable.shape.as_list())
            shape = shape[-2:] if path == "head" else shape  # a 1x1 convolution
            variable.load(
                draw(f"{path}/{SLIM_ARRAYS[kind]}", shape).reshape(variable.shape), session
            )
    return lambda image: session.run(outputs, {x: image})


def main() -> None:
    """Writes one file for each net of a framework, of arrays such as "64x64/stage1"."""
    frameworks = {"keras": keras_nets, "kerascv": kerascv_nets, "slim": slim_nets}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("framework", choices=frameworks)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    for name, net, sizes in frameworks[arguments.framework]():
        arrays = {
            f"{size}/{output}": value[..., : None if output == "logits" else CHANNELS]
            for size in sizes
            for output, value in net(image(size)).items()
        }
        path = arguments.out / f"{name}.npz"
        # Its stub takes the arrays for `allow_pickle`.
        np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
