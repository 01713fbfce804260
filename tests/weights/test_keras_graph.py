"""The JSON of Keras models; tests/parity/test_keras.py has Keras itself load it."""

import pytest

from resnetjax.errors import ConfigError
from resnetjax.presets import get
from resnetjax.weights import keras_dialects
from resnetjax.weights.keras_graph import functional
from resnetjax.weights.numbered import in_order

# MLPerf Tiny's pretrainedResnet.h5, as its layer_names list the layers that have weights.
MLPERF = (
    "conv2d batch_normalization conv2d_1 batch_normalization_1 conv2d_2 batch_normalization_2 "
    "conv2d_3 batch_normalization_3 conv2d_4 conv2d_5 batch_normalization_4 "
    "conv2d_6 batch_normalization_5 conv2d_7 conv2d_8 batch_normalization_6 dense"
)


def test_layers_are_listed_as_keras_lists_them():
    _, listed = functional(get("mlperf_tiny_resnet8"), keras_dialects.KERAS_NUMBERED)
    assert [name for name in listed if name in MLPERF.split()] == MLPERF.split()


def test_a_bare_projection_is_written_where_keras_lists_it():
    dialect, config = keras_dialects.KERAS_NUMBERED, get("mlperf_tiny_resnet8")
    names = [dialect.translate(module, config) for module in in_order(config, "aligned")]
    assert [name[0] for name in names] == MLPERF.split()


def test_the_parts_of_a_block_are_named_as_keras_applications_does():
    model, _ = functional(get("keras_resnet50"), keras_dialects.KERAS)
    layers = {layer["name"]: layer for layer in model["config"]["layers"]}
    add = layers["conv3_block1_add"]
    read = [tensor["config"]["keras_history"][0] for tensor in add["inbound_nodes"][0]["args"][0]]
    assert (add["class_name"], read) == ("Add", ["conv3_block1_0_bn", "conv3_block1_3_bn"])
    assert layers["conv1_conv"]["config"]["strides"] == [2, 2]
    assert layers["conv1_pad"]["config"]["padding"] == [[3, 3], [3, 3]]
    assert layers["conv1_bn"]["config"]["epsilon"] == 1.001e-5
    assert layers["conv3_block1_1_conv"]["config"]["strides"] == [2, 2]
    assert layers["conv3_block1_2_conv"]["config"]["padding"] == "same"
    assert model["config"]["output_layers"] == ["predictions", 0, 0]


@pytest.mark.parametrize(
    ("arch", "changes", "field"),
    [
        ("keras_resnet50v2", {"stem_pool_value": "-inf"}, "stem_pool_value='-inf'"),
        ("kerascv_resnet50v2", {"stem_pool_value": "zero"}, "stem_pool_value='zero'"),
        ("keras_resnet50", {"dilations": (1, 1, 2, 2)}, r"dilations=\(1, 1, 2, 2\)"),
    ],
)
def test_what_keras_has_no_layer_for_is_refused_by_its_field(arch, changes, field):
    dialect = keras_dialects.KERAS_V2 if "v2" in arch else keras_dialects.KERAS
    # On the reduce convolution a stride and a dilation are apart.
    config = get(arch).replace(**changes, stride_on="spatial")
    with pytest.raises(ConfigError, match=rf"{field} is not allowed.*Keras"):
        functional(config, dialect)
