"""Keras's descriptions of a model are data that tell what arrays do not."""

import pytest

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError, UnsafeWeights
from resnetjax.presets import get
from resnetjax.weights.keras_config import from_kerashub, observed, refuse_code


def layer(kind: str, **config) -> dict:
    return {"class_name": kind, "config": config}


def conv(kernel: int, stride: int, padding: str) -> dict:
    return layer(
        "Conv2D", kernel_size=[kernel] * 2, strides=[stride] * 2, padding=padding, use_bias=True
    )


def norm(epsilon: float) -> dict:
    return layer("BatchNormalization", epsilon=epsilon, momentum=0.99)


def model(*layers: dict) -> dict:
    return layer("Functional", name="model", layers=list(layers))


def test_f14_epsilon_padding_and_stride_are_the_layers():
    found = observed(
        model(
            conv(7, 2, "valid"),
            norm(1.001e-5),
            layer("MaxPooling2D", pool_size=[3, 3], padding="valid"),
            conv(1, 2, "valid"),
            norm(1.001e-5),
            conv(3, 1, "same"),
            norm(1.001e-5),
        )
    )
    assert found == {
        "norm_eps": 1.001e-5,
        "norm_decay": 0.99,
        "padding": "torch",
        "stride_on": "reduce",
        "stem_pool_padding": "torch",
    }


def test_f14_layers_of_models_within_the_model_count_too():
    inner = model(conv(3, 1, "same"), norm(1e-3), conv(3, 2, "same"))
    assert observed(model(inner, layer("Dense", units=10))) == {
        "norm_eps": 1e-3,
        "norm_decay": 0.99,
        "padding": "same",
        "stride_on": "spatial",
    }


def test_f13_kerascv_drops_the_stride_of_a_stack_that_it_dilates():
    given = {"stackwise_strides": [1, 2, 2, 2], "stackwise_dilations": [1, 1, 2, 4]}
    given |= {"stackwise_blocks": [2, 2, 2, 2]}
    model_config = {"class_name": "ResNetV2Backbone", "config": given}
    assert observed(model_config) == {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}
    for wrong in (None, [1, 2], [1, 1, 1, "2"]):
        given["stackwise_dilations"] = wrong
        plain = {"strides": (1, 2, 2, 2), "dilations": (1,) * 4}
        assert observed(model_config) == ({} if wrong else plain)


@pytest.mark.parametrize(
    ("name", "block_type", "stride_on"),
    [
        ("ResNetBackbone", "block", "reduce"),
        ("ResNetBackbone", "basic_block", "spatial"),
        ("ResNetV2Backbone", "block", "spatial"),
        ("ResNetV2Backbone", "basic_block", "last_spatial"),
    ],
)
def test_f5_kerascv_says_by_its_class_which_convolution_strides(name, block_type, stride_on):
    given = {"stackwise_strides": [1, 2], "stackwise_blocks": [1, 1], "block_type": block_type}
    described = {"class_name": name, "config": given}
    assert observed(described)["stride_on"] == stride_on
    classifier = {"class_name": "ImageClassifier", "config": {"backbone": described}}
    assert observed(classifier) == observed(described)


def test_f14_what_layers_contradict_is_not_told():
    found = observed(model(norm(1e-3), norm(1e-5), conv(7, 2, "valid"), conv(3, 2, "same")))
    assert "norm_eps" not in found
    assert "padding" not in found


@pytest.mark.parametrize(
    "config",
    [None, 3, [], {}, {"class_name": "Functional"}, {"class_name": "Functional", "config": {}},
     {"class_name": 1, "config": {"layers": [None, 2, [], {"class_name": "Conv2D"}]}},
     model(layer("Conv2D", kernel_size={}, strides=None, padding=[])),
     model(layer("BatchNormalization", epsilon="1e-3", momentum=None))],
)  # fmt: skip
def test_anything_else_tells_nothing(config):
    assert observed(config) == {}


def test_models_within_models_without_end_are_left():
    config = model()
    for _ in range(2000):
        config = model(config)
    assert observed(config) == {}


def backbone(**fields) -> dict:
    config = {
        "input_conv_filters": [64], "input_conv_kernel_sizes": [7],
        "block_type": "bottleneck_block",
        "stackwise_num_filters": [64, 128, 256, 512], "stackwise_num_blocks": [3, 4, 6, 3],
        "stackwise_num_strides": [1, 2, 2, 2], "use_pre_activation": False,
        "image_shape": [None, None, 3],
    }  # fmt: skip
    return {"registered_name": "keras_hub>ResNetBackbone", "config": {**config, **fields}}


VD = {"input_conv_filters": [32, 32, 64], "input_conv_kernel_sizes": [3, 3, 3]}


@pytest.mark.parametrize(
    ("fields", "arch"),
    [
        ({}, "resnet50"),
        ({"use_pre_activation": True}, "resnetv2_50"),
        ({"block_type": "basic_block"}, "resnet34"),
        ({"block_type": "bottleneck_block_vd", **VD}, "resnet50d"),
    ],
)
def test_a_backbone_of_kerashub_is_one_of_the_architectures(fields, arch):
    assert from_kerashub(backbone(**fields), num_classes=1000) == get(arch)


def test_a_basic_vd_backbone_of_kerashub_projects_in_every_stage():
    config = from_kerashub(backbone(block_type="basic_block_vd", **VD), num_classes=7)
    assert config == get("resnet34d").replace(num_classes=7, projections=(True,) * 4)
    assert isinstance(config, ResNetConfig)


def test_another_backbone_of_kerashub_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="keras_hub>VGGBackbone"):
        from_kerashub({"registered_name": "keras_hub>VGGBackbone", "config": {}}, num_classes=0)


def test_names_that_keras_writes_of_functions_and_of_other_packages_are_no_code():
    activation = {"module": "builtins", "class_name": "function", "config": "relu"}
    own = {"module": "my_layers", "class_name": "MyConv2D", "config": {"activation": activation}}
    refuse_code(model(conv(3, 1, "same"), own | {"registered_name": "my>MyConv2D"}))


@pytest.mark.parametrize(
    "layer",
    [
        layer("Lambda", name="preprocess"),
        layer("TFSMLayer", filepath="model"),
        {"module": "builtins", "class_name": "eval", "config": {}},
        {"module": "os.path", "class_name": "exists", "config": {}},
    ],
)
def test_a_layer_that_is_code_is_refused_at_any_depth(layer):
    with pytest.raises(UnsafeWeights, match=layer["class_name"]):
        refuse_code(model(model(conv(3, 1, "same"), {"config": {"wrapped": [layer]}})))
