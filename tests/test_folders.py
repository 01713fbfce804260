"""What Transformers', timm's and our own `config.json` say, from files as people have them."""

import json
import re

import pytest

from resnetjax import folders, identify, presets
from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.data import labels as label_sets
from resnetjax.errors import ConfigError, CorruptFile, UnknownName, UnsupportedFile
from resnetjax.layouts import native
from resnetjax.layouts.description import Description, Wanted
from resnetjax.presets import ARCHITECTURES
from resnetjax.weights import dialects, sources
from resnetjax.weights.detect import Detection

# microsoft/resnet-50 and its preprocessor, shortened
TRANSFORMERS = {
    "architectures": ["ResNetForImageClassification"],
    "depths": [3, 4, 6, 3],
    "downsample_in_first_stage": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": [256, 512, 1024, 2048],
    "id2label": {"0": "cat", "1": "dog", "10": "emu", "2": "cow"},
    "layer_type": "bottleneck",
    "model_type": "resnet",
    "num_channels": 3,
    "torch_dtype": "float32",
}
CONVNEXT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}
# timm/resnet50d.ra2_in1k, shortened
TIMM = {
    "architecture": "resnet50d",
    "num_classes": 1000,
    "num_features": 2048,
    "pretrained_cfg": {
        "tag": "ra2_in1k",
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "license": "apache-2.0",
        "classifier": "fc",
    },
}


@pytest.fixture
def describe(tmp_path):
    """What a folder says that has these files (JSON values, or text as it is)."""

    def describe(config, **others):
        for name, content in {"config": config, **others}.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.json").write_text(text)
        return folders.describe(tmp_path)

    return describe


# Transformers.


def test_transformers_hidden_sizes_are_four_times_the_widths_of_bottlenecks(describe):
    found = describe(TRANSFORMERS)
    assert found.layout == "transformers"
    assert found.config == ARCHITECTURES["resnet50"].replace(num_classes=4)
    assert found.arch == "resnet50"


def test_transformers_defaults_are_those_of_its_resnet_config(describe):
    assert describe({"model_type": "resnet"}).config == ARCHITECTURES["resnet50"]


def test_transformers_basic_layers_have_their_hidden_sizes_as_widths(describe):
    sizes = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    found = describe({**TRANSFORMERS, **sizes})
    assert found.config == ARCHITECTURES["resnet18"].replace(num_classes=4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"downsample_in_first_stage": True}, {"strides": (2, 2, 2, 2)}),
        ({"downsample_in_bottleneck": True}, {"stride_on": "reduce"}),
        ({"downsample_in_bottleneck": True, "layer_type": "basic"}, {"stride_on": "spatial"}),
        ({"num_channels": 1}, {"in_channels": 1}),
        ({"embedding_size": 32}, {"stem_width": 32}),
        ({"depths": [1, 2], "hidden_sizes": [64, 128]}, {"strides": (1, 2), "widths": (16, 32)}),
    ],
)
def test_each_field_of_transformers_has_its_counterpart(describe, given, expected):
    config = describe({**TRANSFORMERS, **given}).config
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("hidden_act", "ours"),
    [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("silu", "silu"), ("swish", "silu")],
)
def test_f12_hidden_act_leaves_the_inner_activations_relu(describe, hidden_act, ours):
    config = describe({**TRANSFORMERS, "hidden_act": hidden_act}).config
    assert (config.activation, config.inner_activation) == (ours, "relu")


def test_f12_selu_is_refused_with_what_is_known(describe, tmp_path):
    message = rf"^{re.escape(str(tmp_path))}.config.json: hidden_act='selu' is not supported.*gelu"
    with pytest.raises(ConfigError, match=message):
        describe({**TRANSFORMERS, "hidden_act": "selu"})


def test_transformers_labels_are_in_the_order_of_their_numbers(describe):
    labels = describe(TRANSFORMERS).labels
    assert labels == Labels(names=("cat", "dog", "cow", "emu"))


@pytest.mark.parametrize(
    ("problem_type", "activation"),
    [
        ("multi_label_classification", "sigmoid"),
        ("single_label_classification", "softmax"),
        ("regression", "none"),
        (None, "softmax"),
    ],
)
def test_the_problem_type_decides_what_turns_logits_into_predictions(
    describe, problem_type, activation
):
    found = describe({**TRANSFORMERS, "problem_type": problem_type})
    assert found.labels.activation == activation


@pytest.mark.parametrize("name", ["imagenet_1k", "imagenet_12k", "imagenet_21k"])
def test_labels_that_are_imagenets_get_their_wordnet_ids(describe, name):
    imagenet = label_sets.get(name)
    names = {str(i): name for i, name in enumerate(imagenet.names)}
    assert describe({**TRANSFORMERS, "id2label": names}).labels == imagenet


def test_f06_the_preprocessor_beside_a_transformers_config_is_read(describe):
    found = describe(TRANSFORMERS, preprocessor_config=CONVNEXT)
    assert found.preprocess == Preprocess(interpolation="bicubic", crop_rounding="floor")


def test_without_a_preprocessor_nothing_is_said_of_images(describe):
    assert describe(TRANSFORMERS).preprocess is None


def test_another_model_type_is_refused_by_name(describe):
    with pytest.raises(UnsupportedFile, match="type 'vit', not 'resnet'"):
        describe({**TRANSFORMERS, "model_type": "vit"})


# timm.


def test_a_timm_config_names_its_architecture_preprocessing_and_licence(describe):
    found = describe(TIMM)
    assert (found.layout, found.arch, found.licence) == ("timm", "resnet50d", "apache-2.0")
    assert found.config == ARCHITECTURES["resnet50d"]
    assert found.preprocess == Preprocess(interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3)


def test_timms_preprocessing_is_that_of_training_size_and_not_of_the_test_size(describe):
    assert describe(TIMM).preprocess.crop_px == (224, 224)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"in_chans": 1}, {"in_channels": 1}),
        ({"output_stride": 8}, {"output_stride": 8}),
        ({"output_stride": 32}, {"output_stride": None}),
        ({"act_layer": "silu"}, {"activation": "silu"}),
        ({"act_layer": "gelu"}, {"activation": "gelu"}),
        ({"drop_rate": 0.2, "drop_path_rate": 0.1}, {"dropout": 0.2, "drop_path_rate": 0.1}),
        ({"zero_init_last": True}, {"zero_init_residual": True}),
        ({"cardinality": 32, "base_width": 4}, {"groups": 32, "group_width": 4}),
        ({"avg_down": False, "replace_stem_pool": True}, {"shortcut": "conv", "stem_pool": "conv"}),
        ({"drop_block_rate": 0.1}, {}),
        ({"num_classes": 10, "global_pool": "avg", "pretrained": True}, {}),
    ],
)
def test_timms_model_arguments_change_the_architecture(describe, arguments, expected):
    config = describe({**TIMM, "model_args": arguments}).config
    assert config == ARCHITECTURES["resnet50d"].replace(**expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"block_args": {}},
        {"global_pool": "catavgmax"},
        {"act_layer": "mish"},
        {"output_stride": 4},
    ],
)
def test_a_model_argument_that_is_not_supported_is_refused_by_name_and_value(describe, arguments):
    ((name, value),) = arguments.items()
    field = "activation" if name == "act_layer" else name
    message = rf"config\.json: .*{field}={value!r},? .*(is not|not supported)"
    with pytest.raises(ConfigError, match=message):
        describe({**TIMM, "model_args": arguments})


def test_timms_number_of_classes_and_labels_go_together(describe):
    labels = {"label_names": ["cat", "dog"], "label_descriptions": {"dog": "a hound"}}
    found = describe({**TIMM, "num_classes": 2, **labels})
    assert found.config.num_classes == 2
    assert found.labels == Labels(names=("cat", "a hound"))


def test_timms_labels_may_be_inside_its_pretrained_config_and_be_wordnet_ids(describe):
    given = {**TIMM["pretrained_cfg"], "label_names": ["n02123045", "n02124075"]}
    given["label_descriptions"] = {"n02123045": "tabby"}
    labels = describe({**TIMM, "num_classes": 2, "pretrained_cfg": given}).labels
    assert labels == Labels(names=("tabby", "n02124075"), ids=("n02123045", "n02124075"))


def test_timms_labels_of_another_number_than_the_classes_are_left_out(describe):
    assert describe({**TIMM, "label_names": ["cat", "dog"]}).labels is None


def test_an_architecture_of_timm_that_is_not_known_is_refused_by_name(describe):
    with pytest.raises(UnknownName, match="'convnext_base'"):
        describe({**TIMM, "architecture": "convnext_base"})


# Ours.


def test_our_own_config_comes_back_whole(describe):
    written = Description(
        layout="resnetjax",
        config=ResNetConfig(depths=(1, 1, 1, 1), num_classes=2, conv_bias=("stem",)),
        arch="my_net",
        preprocess=Preprocess(resize_mode="none", resize_px=None, divisor=1.0),
        labels=Labels(names=("cat", "dog"), activation="sigmoid"),
        licence="mit",
    )
    assert describe(native.to_text(written)) == written


def test_our_own_config_may_know_neither_images_nor_labels(describe):
    written = Description("resnetjax", ARCHITECTURES["resnet18"], None, None, None)
    assert describe(native.to_text(written)) == written


def test_another_format_than_ours_is_refused(describe):
    with pytest.raises(UnsupportedFile, match="has format 'onnx'"):
        describe({"format": "onnx"})


# What is wrong or hostile.


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"depths": ', "\x00", "null", '"resnet"'])
def test_a_config_that_is_no_json_object_is_corrupt(describe, text):
    with pytest.raises(CorruptFile, match=r"config\.json"):
        describe(text)


def test_a_config_of_no_known_layout_is_refused_with_those_that_are(describe):
    with pytest.raises(UnsupportedFile, match="Transformers, timm, KerasHub or resnetjax"):
        describe({"hello": "world"})


@pytest.mark.parametrize(
    "config",
    [
        {**TRANSFORMERS, "depths": 5},
        {**TRANSFORMERS, "depths": [3, "4", 6, 3]},
        {**TRANSFORMERS, "depths": [1, 1, 1, 10**12]},
        {**TRANSFORMERS, "hidden_sizes": 64},
        {**TRANSFORMERS, "hidden_sizes": ["a", "b", "c", "d"]},
        {**TRANSFORMERS, "hidden_sizes": [258, 512, 1024, 2048]},
        {**TRANSFORMERS, "hidden_sizes": [256, 512]},
        {**TRANSFORMERS, "hidden_act": ["relu"]},
        {**TRANSFORMERS, "id2label": ["cat", "dog"]},
        {**TRANSFORMERS, "id2label": {"cat": "0"}},
        {**TRANSFORMERS, "id2label": {"0": 7}},
        {**TRANSFORMERS, "problem_type": []},
        {**TRANSFORMERS, "embedding_size": 0},
        {**TIMM, "architecture": ["resnet50"]},
        {**TIMM, "pretrained_cfg": "none"},
        {**TIMM, "pretrained_cfg": {"input_size": "big"}},
        {**TIMM, "model_args": ["in_chans"]},
        {**TIMM, "num_classes": "many"},
        {**TIMM, "label_names": 5},
        {"format": "resnetjax"},
        {"format": "resnetjax", "config": None},
        {"format": "resnetjax", "config": {"depths": [1, 1, 1, 1], "stem": "conv9"}},
        {"format": "resnetjax", "config": {"depths": [1, 1, 1, 1]}, "labels": [1]},
        {"format": "resnetjax", "config": {"depths": [1, 1, 1, 1]}, "preprocess": {"std": 5}},
    ],
)
def test_a_malformed_config_is_refused_as_such_and_by_its_path(describe, tmp_path, config):
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "config.json"))):
        describe(config)


# Where it looks.


def test_a_folder_without_a_config_says_nothing(tmp_path):
    assert folders.describe(tmp_path) is None


def test_a_weight_file_of_a_usual_name_is_described_by_the_config_beside_it(describe, tmp_path):
    expected = describe(TRANSFORMERS)
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).touch()
        assert folders.describe(tmp_path / name) == expected


def test_a_file_of_another_name_is_not_described_by_its_neighbours(describe, tmp_path):
    describe(TRANSFORMERS)
    (tmp_path / "other.safetensors").touch()
    assert folders.describe(tmp_path / "other.safetensors") is None


def test_safetensors_come_before_pickles_and_whole_files_before_shards(tmp_path):
    for name in reversed(folders.WEIGHT_FILES):
        (tmp_path / name).touch()
        assert folders.find_weights(tmp_path).name == name


def test_a_folder_without_weights_is_refused_with_the_names_looked_for(tmp_path):
    with pytest.raises(UnsupportedFile, match=r"no weights found: expected model.safetensors, "):
        folders.find_weights(tmp_path)


def test_the_only_weight_file_of_a_folder_may_have_any_name(tmp_path):
    (tmp_path / "resnet50_v2.pth").touch()
    assert folders.find_weights(tmp_path).name == "resnet50_v2.pth"
    (tmp_path / "other.h5").touch()
    with pytest.raises(UnsupportedFile, match=r"name one of them: other.h5, resnet50_v2.pth"):
        folders.find_weights(tmp_path)


# What KerasHub 0.32 writes of its 18 layers, but for what its models have in common.
KERASHUB = {
    "registered_name": "keras_hub>ResNetBackbone",
    "config": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 128, 256, 512],
        "stackwise_num_blocks": [2, 2, 2, 2],
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": "basic_block",
        "use_pre_activation": False,
        "image_shape": [None, None, 3],
    },
}
CONVERTER = {"config": {"image_size": [64, 32], "scale": 0.5}}


@pytest.mark.parametrize(
    ("neighbours", "crop_px"),
    [
        ({}, None),
        ({"image_converter.json": CONVERTER}, (64, 32)),
        ({"preprocessor.json": {"config": {"image_converter": CONVERTER}}}, (64, 32)),
        ({"preprocessor.json": {"config": {"name": "without"}}}, None),
        ({"preprocessor.json": {"config": {"image_converter": None}}}, None),
        ({"image_converter.json": {"config": {"image_size": None}}}, None),
    ],
)
def test_a_preset_of_kerashub_prepares_images_as_its_converter_says(tmp_path, neighbours, crop_px):
    for name, values in {"config.json": KERASHUB, **neighbours}.items():
        (tmp_path / name).write_text(json.dumps(values))
    found = folders.describe(tmp_path)
    assert (found.layout, found.arch) == ("kerashub", "resnet18")
    assert (found.preprocess and found.preprocess.crop_px) == crop_px
    # It is nearer to the weights than what is written of them elsewhere.
    published = sources.find("resnet18.kerashub_in1k")
    seen = Detection(dialects.get("kerashub"), found.config, found.arch, ())
    assert identify.preprocess_of(seen, found, published) == (
        found.preprocess or published.preprocess,
        (),
    )


def test_a_converter_of_kerashub_that_cannot_be_followed_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(KERASHUB))
    values = {"config": CONVERTER["config"] | {"pad_to_aspect_ratio": True}}
    (tmp_path / "image_converter.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"image_converter.json: pad_to.*\(preprocess= decides"):
        folders.describe(tmp_path)
    assert folders.describe(tmp_path, Wanted(preprocess=False)).preprocess is None


def test_an_architecture_is_recognised_whatever_its_classes_and_channels():
    for name in ("resnet50", "keras_resnet50v2", "cifar_wrn28_10"):
        config = ARCHITECTURES[name].replace(num_classes=3, in_channels=1)
        assert presets.architecture_of(config) == name
    assert presets.architecture_of(ARCHITECTURES["resnet50"].replace(norm_eps=1e-4)) is None
