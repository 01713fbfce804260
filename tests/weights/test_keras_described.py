"""What a Keras file describes is followed or refused; tests/parity has Keras itself write it."""

import numpy as np
import pytest

from resnetjax.config import ResNetConfig
from resnetjax.data.preprocess import normalize
from resnetjax.errors import WeightsMismatch
from resnetjax.presets import get
from resnetjax.weights import keras_dialects
from resnetjax.weights.keras_described import around, described, scaled
from resnetjax.weights.keras_graph import functional

NUMBERED = keras_dialects.KERAS_NUMBERED
NET = ResNetConfig(
    block="basic", depths=(2, 1, 1), widths=(8, 16, 32), strides=(1, 2, 2), dilations=(1, 1, 1),
    stem="conv3", stem_pool="none", stem_width=8, shortcut_norm=False, num_classes=5,
    **NUMBERED.base,
)  # fmt: skip


def read(model, config=NET, dialect=NUMBERED):
    return described(model, config, dialect, names={}, source="net.h5")


def model_of(config=NET):
    return functional(config, NUMBERED)[0]


def layer(model, name):
    return next(x for x in model["config"]["layers"] if x["name"] == name)


def tensor(name):
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}


def insert(model, before, kind, **settings):
    """A layer of its own, between another and what that reads."""
    behind = layer(model, before)
    nodes, behind["inbound_nodes"] = behind["inbound_nodes"], [{"args": [tensor("between")]}]
    config = {"name": "between", **settings}
    model["config"]["layers"].append(
        {"class_name": kind, "name": "between", "config": config, "inbound_nodes": nodes}
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "silu"},
        {"inner_activation": "gelu"},
        {"strides": (1, 1, 2)},
        {"strides": (1, 2, 1), "dilations": (1, 1, 2)},
        {"strides": (1, 2, 1), "dilations": (1, 1, 2), "dilation_rule": "uniform"},
        {"stride_block": "last", "strides": (2, 1, 1)},
        {"padding": "torch"},
        {"stem_pool": "max", "stem_pool_padding": "same"},
        {"stem_pool": "max", "stem_pool_value": "zero", "activation": "silu"},
        {"stem_pool": "max", "stem_pool_value": "zero", "order": "pre"},
        {"head_pool": "max"},
        {"head_widths": (9, 7), "activation": "silu"},
        {"order": "pre"},
    ],
)
def test_f14_what_layers_say_and_a_config_can_say_is_followed(changes):
    net = NET.replace(**changes)
    assert read(model_of(net), NET.replace(head_widths=net.head_widths)) == net


@pytest.mark.parametrize("arch", ["keras_resnet50", "keras_resnet50v2", "kerascv_resnet18v2"])
def test_f14_named_layers_are_followed_too(arch):
    dialect = keras_dialects.KERASCV_V2 if "cv" in arch else keras_dialects.KERAS
    dialect = keras_dialects.KERAS_V2 if arch == "keras_resnet50v2" else dialect
    net = get(arch).replace(head_pool="max", head_widths=(5,), activation="silu")
    model, _ = functional(net, dialect)
    assert read(model, get(arch).replace(head_widths=(5,)), dialect) == net


def test_f14_an_activation_without_a_field_is_refused():
    model = model_of()
    for x in model["config"]["layers"]:
        x["config"] |= {"activation": "elu"} if x["class_name"] == "Activation" else {}
    with pytest.raises(
        WeightsMismatch,
        match=r"net\.h5.*\n  conv2d_1 reads elu\(batch_normalization\), not relu\(batch_norm.*\n"
        r".*config=",
    ):
        read(model)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("conv2d", {"strides": [2, 2]}, "conv2d is a 3x3 convolution of stride 2.*not a 3x3"),
        ("conv2d_3", {"padding": "valid"}, "conv2d_3 is a .*padding 0, not a .*padding 1"),
        ("batch_normalization_2", {"epsilon": 1e-5}, "norm of epsilon 1e-05, not a .*0.001"),
        ("conv2d_4", {"activation": "tanh"}, r"reads tanh\(conv2d_4\), not conv2d_4"),
    ],
)
def test_f14_a_layer_that_does_something_else_is_refused(name, settings, said):
    model = model_of()
    layer(model, name)["config"] |= settings
    with pytest.raises(WeightsMismatch, match=said):
        read(model)


POOL = {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"}


@pytest.mark.parametrize(
    ("before", "kind", "settings", "said"),
    [
        ("conv2d_1", "MaxPooling2D", POOL, r"conv2d_1 reads \[2x2 max-pool of stride 2, .*relu\("),
        ("conv2d_2", "ReLU", {"max_value": 6.0}, r"conv2d_2 reads ReLU\(relu\(batch_n"),
        ("conv2d_3", "LayerNormalization", {}, "conv2d_3 reads LayerNormalization"),
        ("dense", "Multiply", {}, "dense reads Multiply"),
    ],
)
def test_f14_a_layer_that_no_net_has_is_refused(before, kind, settings, said):
    model = model_of()
    insert(model, before, kind, **settings)
    with pytest.raises(WeightsMismatch, match=said):
        read(model)


@pytest.mark.parametrize(
    ("before", "kind"),
    [("dense", "Dropout"), ("conv2d_2", "SpatialDropout2D"), ("conv2d", "Rescaling")],
)
def test_layers_of_training_and_of_preparation_are_no_part_of_the_net(before, kind):
    model = model_of()
    insert(model, before, kind)
    assert read(model) == NET


def test_probabilities_at_the_end_are_left_away():
    model = model_of()
    layer(model, "dense")["config"]["activation"] = "softmax"
    assert read(model) == NET


@pytest.mark.parametrize("ending", ["sigmoid", "softmax", "tanh", "linear"])
def test_what_is_behind_the_net_is_told(ending):
    model = model_of()
    layer(model, "dense")["config"]["activation"] = ending
    assert around(model) == ([], None if ending == "linear" else ending)
    assert around({"class_name": "Mine"}) == ([], None)


SCALED = {
    "Rescaling": [{"scale": 1 / 127.5, "offset": -1}],
    "Normalization": [{"mean": [[10.0, 20.0, 30.0]], "variance": [[4.0, 9.0, 16.0]]}],
    "both": [{"scale": 0.5}, {"mean": 3.0, "variance": 4.0, "invert": False}],
}


@pytest.mark.parametrize("name", SCALED)
def test_layers_that_scale_images_are_how_these_are_prepared(name):
    kinds = ("Rescaling", "Normalization") if name == "both" else (name,)
    layers = list(zip(kinds, SCALED[name], strict=True))
    model = model_of()
    if name != "both":
        insert(model, "conv2d", name, **layers[0][1])
        assert [(kind, x["mean" if "mean" in x else "scale"]) for kind, x in around(model)[0]]
    found = scaled(keras_dialects.KERAS.preprocess, layers)
    assert (found.channel_order, found.resize_mode) == ("rgb", "squash")
    pixels = np.arange(256.0)[:, None] * np.ones(3)
    expected = pixels
    for kind, settings in layers:
        if kind == "Rescaling":
            expected = expected * settings["scale"] + settings.get("offset", 0)
        else:
            deviation = np.sqrt(np.array(settings["variance"]))
            expected = (expected - np.array(settings["mean"])) / deviation
    np.testing.assert_allclose(normalize(pixels, found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layers",
    [
        [("GetItem", {})],
        [("Normalization", {"mean": None, "variance": None})],
        [("Normalization", {"mean": 1.0, "variance": 1.0, "invert": True})],
        [("Rescaling", {"scale": "x"})],
        [("Rescaling", {"scale": 0.0})],
        [("Rescaling", {"scale": [1.0, 2.0]})],
        [("Rescaling", {})],
    ],
)
def test_layers_that_do_other_things_to_images_leave_it_open(layers):
    assert scaled(keras_dialects.KERAS.preprocess, layers) is None


def test_f14_a_model_within_a_sequential_model_is_followed():
    model = model_of(NET.replace(activation="silu"))
    head = layer(model, "dense")
    model["config"]["layers"].remove(head)
    model["config"]["output_layers"] = ["avg_pool", 0, 0]
    outer = {"class_name": "Sequential", "config": {"layers": [model, head]}}
    assert read(outer) == NET.replace(activation="silu")


def test_the_lists_of_keras_2_say_the_same():
    model = model_of(NET.replace(activation="silu"))
    for x in model["config"]["layers"]:
        args = [y for node in x["inbound_nodes"] for y in node["args"]]
        args = args[0] if args and type(args[0]) is list else args
        reads = [[*y["config"]["keras_history"], {}] for y in args]
        x["inbound_nodes"] = [reads] if reads else []
    model["config"]["input_layers"] = [["input_layer", 0, 0]]
    model["config"]["output_layers"] = [["dense", 0, 0]]
    assert read(model) == NET.replace(activation="silu")


@pytest.mark.parametrize(
    "model", [None, 3, {}, {"config": []}, {"config": {"layers": []}}, {"config": {"layers": [1]}}]
)
def test_a_description_without_layers_leaves_it_open(model):
    assert read(model) is None


def test_a_description_that_goes_in_circles_leaves_it_open():
    model = model_of()
    layer(model, "conv2d_1")["inbound_nodes"] = [{"args": [tensor("conv2d_4")]}]
    assert read(model) is None


def test_models_within_models_without_end_leave_it_open():
    model = model_of()
    for _ in range(2000):
        model = {"class_name": "Sequential", "config": {"layers": [model]}}
    assert read(model) is None
