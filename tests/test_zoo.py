"""From what people have to a net, and back; what is assumed is said."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import warnings

import flax.serialization
import flax.traverse_util
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from resnetjax import saving, zoo
from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.data import labels as label_sets
from resnetjax.errors import (
    AssumptionWarning,
    ConfigError,
    CorruptFile,
    ResNetJAXError,
    UnknownName,
    UnsupportedFile,
    WeightsMismatch,
)
from resnetjax.measure import leaves
from resnetjax.nn.init import initialize
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES
from resnetjax.pretrained import Pretrained, Source, flatten
from resnetjax.weights import dialects, files
from resnetjax.weights.arrays import save_arrays
from resnetjax.weights.dialect import base_config

CLASSES = 5
TINY = ResNetConfig(
    block="basic",
    depths=(1, 1),
    widths=(8, 16),
    strides=(1, 2),
    dilations=(1, 1),
    stem_width=8,
    num_classes=CLASSES,
)
LABELS = Labels(names=("ant", "bee", "cat", "dog", "emu"), activation="sigmoid")
PREPROCESS = Preprocess(crop_px=(32, 32), resize_mode="squash", resize_px=(32, 32), std=(0.5,) * 3)


def arrays_of(config: ResNetConfig) -> dict[str, np.ndarray]:
    """Arrays by our paths, of which even the norms and statistics are unlike any other's."""
    rng = np.random.default_rng(0)
    fresh = initialize(leaves(plan(config)), 0)
    return {
        path: array if array.std() > 0 else rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
        for path, array in fresh.items()
    }


def flat(pre: Pretrained) -> dict[str, np.ndarray]:
    found = {}
    for tree in pre.variables.values():
        found |= flax.traverse_util.flatten_dict(tree, sep="/")
    return {path: np.asarray(array) for path, array in found.items()}


def assert_bit_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == array.dtype, path
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
    return model.apply(variables, images)


def logits(pre: Pretrained, images) -> np.ndarray:
    return np.asarray(apply(pre.model, pre.variables, jnp.asarray(images, jnp.float32)))


def pretrained(config: ResNetConfig = TINY, **fields) -> Pretrained:
    model, _ = zoo.create(config)
    nested = {"params": {}, "batch_stats": {}}
    arrays = arrays_of(config)
    for path, leaf in leaves(plan(config)).items():
        nested[leaf.collection][path] = jnp.asarray(arrays[path])
    variables = {
        name: flax.traverse_util.unflatten_dict(tree, sep="/") for name, tree in nested.items()
    }
    return Pretrained(model=model, variables=variables, **fields)


@pytest.fixture
def write(tmp_path):
    """A `.safetensors` file of a dialect; `config` is written beside it as config.json."""

    def write(dialect, config=TINY, *, name="net.safetensors", described=None, drop=(), **extra):
        found = save_arrays(dialects.get(dialect), arrays_of(config), config)
        found = {key: array for key, array in found.items() if key not in drop}
        path = tmp_path / name
        safetensors.numpy.save_file({**found, **extra}, path)
        if described is not None:
            (tmp_path / "config.json").write_text(json.dumps(described))
        return path

    return write


@pytest.fixture
def load():
    """Loads without the warnings of what was assumed, which have tests of their own."""

    def load(path, **arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AssumptionWarning)
            return zoo.load(path, **arguments)

    return load


# Our own form.


@pytest.mark.parametrize("name", ["net", "net.safetensors"])
def test_a_saved_net_comes_back_whole_and_nothing_is_assumed(tmp_path, name):
    source = Source(arch="my_net", licence="mit")
    saved = pretrained(preprocess=PREPROCESS, labels=LABELS, source=source)
    saving.save(saved, tmp_path / name)
    found = zoo.load(tmp_path / name)  # a warning would be an error
    assert found.config == TINY
    assert_bit_equal(flat(found), flat(saved))
    assert (found.preprocess, found.labels) == (PREPROCESS, LABELS)
    assert (found.source.arch, found.source.licence) == ("my_net", "mit")
    assert (found.source.dialect, found.source.assumptions) == ("resnetjax", ())


def test_what_names_and_shapes_cannot_tell_survives_saving(tmp_path):
    config = TINY.replace(
        norm_eps=1e-3, stem_pool_value="zero", padding="same", activation="silu", antialias="blur"
    )
    saving.save(pretrained(config, labels=LABELS), tmp_path / "net")
    assert zoo.load(tmp_path / "net").config == config


def test_a_net_without_batch_statistics_is_saved_and_loaded(tmp_path):
    config = TINY.replace(norm="group", norm_groups=4)
    saved = zoo.create(config)
    saving.save(Pretrained(model=saved[0], variables=saved[1], labels=LABELS), tmp_path / "net")
    found = zoo.load(tmp_path / "net")
    assert found.variables.keys() == {"params"}
    assert jax.tree.structure(found.variables) == jax.tree.structure(saved[1])


def test_the_source_has_the_digest_of_the_file(tmp_path):
    saving.save(pretrained(labels=LABELS), tmp_path / "net.safetensors")
    digest = hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    assert zoo.load(tmp_path / "net.safetensors").source.sha256 == digest


def test_loaded_arrays_do_not_change_with_the_file(load, tmp_path):
    # A mapped file that is truncated while in use would end the process. JAX keeps arrays that
    # happen to lie on 64 bytes, so the header is made longer, by eight bytes at a time.
    arrays = save_arrays(dialects.get("timm"), arrays_of(TINY), TINY)
    for padding in range(0, 64, 8):
        path = tmp_path / f"{padding}.safetensors"
        safetensors.numpy.save_file(arrays, path, {"padding": "x" * padding})
        found = load(path)
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
        assert_bit_equal(flat(found), arrays_of(TINY))


def test_an_array_that_is_not_float32_is_loaded_as_float32(write, load):
    arrays = save_arrays(dialects.get("timm"), arrays_of(TINY), TINY)
    path = write("timm", **{name: a.astype(np.float16) for name, a in arrays.items()})
    found = flat(load(path))
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}
    expected = arrays_of(TINY)["head/kernel"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found["head/kernel"], expected)


# Other systems' folders.

TRANSFORMERS = {
    "model_type": "resnet",
    "layer_type": "basic",
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "embedding_size": 8,
    "hidden_act": "gelu",
    "id2label": {str(i): name for i, name in enumerate(LABELS.names)},
    "problem_type": "multi_label_classification",
}
CONVNEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "crop_pct": 0.875,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 2,
    "size": {"shortest_edge": 64},
}


def test_a_folder_of_transformers_needs_no_more_than_its_path(write, tmp_path):
    config = TINY.replace(activation="gelu", inner_activation="relu")
    write("transformers", config, name="model.safetensors", described=TRANSFORMERS)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONVNEXT))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = zoo.load(path)
        assert found.config == config
        assert_bit_equal(flat(found), arrays_of(config))
        assert found.labels == LABELS
        assert (found.preprocess.crop_px, found.preprocess.resize_px) == ((64, 64), 73)
        assert (found.source.dialect, found.source.assumptions) == ("transformers", ())


def test_labels_of_a_description_that_are_not_as_many_as_the_outputs_are_left_out(write, load):
    described = {**TRANSFORMERS, "hidden_act": "relu", "id2label": {"0": "cat", "1": "dog"}}
    path = write("transformers", name="model.safetensors", described=described)
    found = load(path)
    assert found.config.num_classes == CLASSES
    assert found.labels is None


def test_a_folder_of_timm_is_its_architecture_with_its_arguments(write, tmp_path):
    config = ARCHITECTURES["test_resnet"].replace(in_channels=1, num_classes=CLASSES)
    described = {
        "architecture": "test_resnet",
        "num_classes": CLASSES,
        "label_names": list(LABELS.names),
        "model_args": {"in_chans": 1},
        "pretrained_cfg": {"input_size": [1, 160, 160], "mean": [0.5], "std": [0.5]},
    }
    write("timm", config, name="model.safetensors", described=described)
    found = zoo.load(tmp_path)
    assert found.config == config
    assert_bit_equal(flat(found), arrays_of(config))
    assert found.labels.names == LABELS.names
    assert found.preprocess.channels == 1
    assert (found.source.arch, found.source.dialect) == ("test_resnet", "timm")


def test_a_folder_of_another_model_is_refused(write, tmp_path):
    write("timm", name="model.safetensors", described={"model_type": "vit"})
    with pytest.raises(UnsupportedFile, match="'vit'"):
        zoo.load(tmp_path)


def test_a_folder_whose_config_is_broken_is_refused_even_by_its_weight_file(write, tmp_path):
    path = write("timm", name="model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": ')
    for source in (tmp_path, path):
        with pytest.raises(CorruptFile, match=r"config\.json"):
            zoo.load(source)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TRANSFORMERS))
    with pytest.raises(UnsupportedFile, match="no weights found"):
        zoo.load(tmp_path)


def test_a_config_that_describes_another_net_is_a_mismatch_with_both_names(write, tmp_path):
    described = {**TRANSFORMERS, "hidden_act": "relu", "depths": [2, 1]}
    write("transformers", name="model.safetensors", described=described)
    with pytest.raises(
        WeightsMismatch, match=r"missing +encoder.stages.0.layers.1.* -> stage1_block2"
    ):
        zoo.load(tmp_path)


def test_what_is_not_there_is_refused_by_its_path(tmp_path):
    with pytest.raises(UnknownName, match=r"no file or directory '.*absent.pth'"):
        zoo.load(tmp_path / "absent.pth")


# What is assumed is said once, and can be decided.


def assumptions(path, **arguments) -> tuple[str, ...]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = zoo.load(path, **arguments).source.assumptions
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == bool(found)
    assert all(line in texts[0] for line in found)
    assert {warning.category for warning in caught} <= {AssumptionWarning}
    return found


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """Torchvision's ResNet-18, which looks like three others."""
    config = ARCHITECTURES["resnet18"].replace(num_classes=1000)
    arrays = {path: np.zeros(leaf.shape, np.float16) for path, leaf in leaves(plan(config)).items()}
    path = tmp_path_factory.mktemp("resnet18") / "resnet18.safetensors"
    safetensors.numpy.save_file(save_arrays(dialects.get("torchvision"), arrays, config), path)
    return path


def test_a_bare_file_says_neither_architecture_nor_images_nor_labels(resnet18):
    architecture, images, classes = assumptions(resnet18)
    assert architecture.startswith("architecture resnet18, with its strides, ")
    assert "resnetblur18" in architecture
    assert "as by torchvision (preprocess= decides)" in images
    assert "256" in images
    assert classes == "1000 classes are those of imagenet_1k (labels= decides)"


@pytest.mark.parametrize(("classes", "known"), [(11_821, "imagenet_12k"), (21_843, "imagenet_21k")])
def test_the_large_imagenets_are_known_by_their_number_of_classes(write, load, classes, known):
    path = write("timm", TINY.replace(num_classes=classes))
    assert assumptions(path)[-1] == f"{classes} classes are those of {known} (labels= decides)"
    assert load(path).labels == label_sets.get(known)


def test_the_warning_points_at_the_callers_line(resnet18):
    with pytest.warns(AssumptionWarning, match="does not say everything") as caught:
        zoo.load(resnet18)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({"arch": "resnetblur18"}, 2),
        ({"config": ARCHITECTURES["resnetblur18"]}, 2),
        ({"preprocess": PREPROCESS}, 2),
        ({"labels": label_sets.get("imagenet_1k")}, 2),
        ({"num_classes": 0}, 2),
    ],
)
def test_each_argument_silences_the_assumption_that_it_decides(resnet18, arguments, left):
    assert len(assumptions(resnet18, **arguments)) == left


def test_nothing_is_assumed_where_everything_is_given(resnet18):
    imagenet = label_sets.get("imagenet_1k")
    found = zoo.load(resnet18, arch="resnetblur18", preprocess=PREPROCESS, labels=imagenet)
    assert found.config == ARCHITECTURES["resnetblur18"]
    assert (found.source.arch, found.source.assumptions) == ("resnetblur18", ())
    assert (found.preprocess, found.labels) == (PREPROCESS, imagenet)


def test_a_net_of_no_known_architecture_is_said_to_be_read_as_its_dialects(write):
    first, images = assumptions(write("timm"))
    assert "no known architecture" in first
    assert "config= decides" in first
    assert "timm" in images


def test_arch_takes_classes_and_channels_from_the_file(write, load):
    config = ARCHITECTURES["test_resnet"].replace(num_classes=3, in_channels=2)
    found = load(write("timm", config), arch="test_resnet")
    assert found.config == config


def test_a_config_of_ones_own_decides_what_shapes_cannot_tell(write, load):
    mine = TINY.replace(norm_eps=1e-3, activation="silu", num_classes=77)
    found = load(write("timm"), config=mine)
    assert found.config == mine.replace(num_classes=CLASSES)


def test_arch_and_config_together_are_refused(resnet18):
    with pytest.raises(ConfigError, match="arch='resnet18' and config are both given"):
        zoo.load(resnet18, arch="resnet18", config=TINY)


def test_a_misspelt_architecture_is_answered_with_the_nearest(resnet18):
    with pytest.raises(UnknownName, match=r"did you mean .*resnet18"):
        zoo.load(resnet18, arch="resent18")


def test_an_architecture_that_does_not_fit_is_a_mismatch(resnet18, load):
    with pytest.raises(WeightsMismatch, match=r"missing +layer1.2.conv1.weight"):
        load(resnet18, arch="resnet34")


def test_labels_of_another_number_than_the_outputs_are_refused(resnet18, load):
    with pytest.raises(ConfigError, match="labels has 5 names, but the net 1000 outputs"):
        load(resnet18, labels=LABELS)


# Another head.


def test_a_new_head_is_drawn_and_everything_else_is_the_files(write, load):
    path = write("timm")
    found = load(path, num_classes=3, rng=1)
    assert found.config == load(path).config.replace(num_classes=3)
    assert found.labels is None
    arrays, expected = flat(found), arrays_of(TINY)
    assert arrays["head/kernel"].shape == (16, 3)
    assert arrays["head/kernel"].std() > 0
    for head in ("head/kernel", "head/bias"):
        del arrays[head], expected[head]
    assert_bit_equal(arrays, expected)


def test_a_new_head_follows_its_seed(write, load):
    path = write("timm")
    heads = [flat(load(path, num_classes=3, rng=rng))["head/kernel"] for rng in (1, 1, 2)]
    np.testing.assert_array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])
    by_key = flat(load(path, num_classes=3, rng=jax.random.key(1)))["head/kernel"]
    assert by_key.shape == (16, 3)


def test_a_new_head_may_have_hidden_layers_and_is_saved_with_them(write, load, tmp_path):
    found = load(write("timm"), num_classes=3, head_widths=(5, 4))
    shapes = {name: array.shape for name, array in flat(found).items() if name.startswith("head")}
    assert shapes == {
        "head/hidden1/kernel": (16, 5), "head/hidden1/bias": (5,),
        "head/hidden2/kernel": (5, 4), "head/hidden2/bias": (4,),
        "head/kernel": (4, 3), "head/bias": (3,),
    }  # fmt: skip
    saving.save(found, tmp_path / "net")
    again = zoo.load(tmp_path / "net")
    assert again.config == found.config
    assert_bit_equal(flat(again), flat(found))
    # Named alone, or without what a directory says.
    weights = next((tmp_path / "net").glob("*.safetensors"))
    assert load(weights.rename(tmp_path / "bare.safetensors")).config.head_widths == (5, 4)
    saving.save(found, tmp_path / "net")
    plain = zoo.load(tmp_path / "net", head_widths=())
    assert flat(plain)["head/kernel"].shape == (16, 3)
    same = zoo.load(tmp_path / "net", head_widths=(5, 4), num_classes=3)
    assert_bit_equal(flat(same), flat(found))
    # In torch a Sequential of dense layers and activations in turn.
    saving.save(found, tmp_path / "theirs.pth", dialect="timm")
    assert_bit_equal(flat(load(tmp_path / "theirs.pth")), flat(found))
    assert {"fc.0.weight", "fc.2.weight", "fc.4.bias"} < files.read(
        tmp_path / "theirs.pth"
    ).arrays.keys()
    with pytest.raises(ConfigError, match=r"head_widths=\(5, 4\) \(transformers has \(\)\)"):
        saving.save(found, tmp_path / "theirs.safetensors", dialect="transformers")
    with pytest.raises(ConfigError, match=r"head_widths=\(\), not \(5, 4\)"):
        saving.save(found, tmp_path / "theirs", dialect="timm")


def test_as_many_classes_as_the_file_has_keep_its_head_and_labels(tmp_path):
    saving.save(pretrained(labels=LABELS), tmp_path / "net")
    found = zoo.load(tmp_path / "net", num_classes=CLASSES)
    assert_bit_equal(flat(found), arrays_of(TINY))
    assert found.labels == LABELS


def test_no_classes_drop_the_head_and_give_pooled_features(write, load):
    found = load(write("timm"), num_classes=0)
    assert not any(path.startswith("head") for path in flat(found))
    assert logits(found, np.zeros((1, 32, 32, 3))).shape == (1, 16)


def test_a_headless_file_is_loaded_without_and_with_a_new_head(write, load):
    path = write("timm", TINY.replace(num_classes=0))
    assert load(path).config.num_classes == 0
    assert flat(load(path, num_classes=3))["head/kernel"].shape == (16, 3)


def test_labels_may_be_given_for_a_new_head(write, load):
    labels = Labels(names=("cat", "dog"))
    assert load(write("timm"), num_classes=2, labels=labels).labels == labels


# Other channels.


def test_one_channel_gives_what_three_equal_ones_gave(write, load):
    path = write("timm")
    grey = np.random.default_rng(0).standard_normal((2, 32, 32, 1), np.float32)
    one, three = load(path, in_channels=1), load(path)
    np.testing.assert_allclose(
        logits(one, grey), logits(three, np.repeat(grey, 3, axis=3)), rtol=1e-3, atol=1e-4
    )  # the three channels are added up in another order
    assert one.preprocess.mean == pytest.approx((np.mean(three.preprocess.mean),))
    assert one.preprocess.channels == 1


def test_four_channels_repeat_the_three_and_keep_their_sum(write, load):
    found = load(write("timm"), in_channels=4)
    kernel, original = flat(found)["stem/conv1/kernel"], arrays_of(TINY)["stem/conv1/kernel"]
    np.testing.assert_array_equal(kernel, original[:, :, [0, 1, 2, 0]] * np.float32(0.75))
    mean = found.preprocess.mean
    assert (len(mean), mean[3]) == (4, mean[0])


def test_folding_leaves_all_other_arrays_alone(write, load):
    arrays, expected = flat(load(write("timm"), in_channels=1)), arrays_of(TINY)
    del arrays["stem/conv1/kernel"], expected["stem/conv1/kernel"]
    assert_bit_equal(arrays, expected)


def test_a_file_of_one_channel_cannot_be_unfolded(write, load):
    path = write("timm", TINY.replace(in_channels=1))
    with pytest.raises(ConfigError, match=r"in_channels=3 is not allowed: the file has 1"):
        load(path, in_channels=3)


# Not strict.


def test_what_does_not_fit_is_an_error_unless_it_may_be_skipped(write, load):
    path = write("timm", drop=("layer2.0.bn2.weight",), extra=np.zeros(3, np.float32))
    with pytest.raises(
        WeightsMismatch, match=r"missing +layer2.0.bn2.weight -> stage2_block1/norm2/scale"
    ):
        load(path)
    found = load(path, strict=False)
    assert [line.split()[:2] for line in found.source.skipped] == [
        ["missing", "layer2.0.bn2.weight"],
        ["unexpected", "extra"],
    ]
    arrays, expected = flat(found), arrays_of(TINY)
    np.testing.assert_array_equal(arrays.pop("stage2_block1/norm2/scale"), np.ones(16, np.float32))
    del expected["stage2_block1/norm2/scale"]
    assert_bit_equal(arrays, expected)


@pytest.mark.parametrize(
    ("lacking", "ours"),
    [
        ("conv1.0.weight", "stem/conv1/kernel"),
        ("layer1.0.conv2.weight", "stage1_block1/conv2/kernel"),
    ],
)
def test_a_file_that_lacks_what_detection_looks_at_is_still_a_mismatch(write, load, lacking, ours):
    path = write("timm", ARCHITECTURES["test_resnet"], drop=(lacking,))
    with pytest.raises(WeightsMismatch, match=rf"missing +{lacking} -> {ours} ") as caught:
        load(path)
    assert str(caught.value).count("\n") == 2  # this alone, between headline and advice


def test_a_stem_that_was_skipped_is_drawn_for_the_channels_asked_for(write, load):
    path = write("timm", **{"conv1.weight": np.zeros((9, 3, 7, 7), np.float32)})
    found = load(path, config=TINY, strict=False, in_channels=1)
    assert flat(found)["stem/conv1/kernel"].shape == (7, 7, 1, 8)


# Saving as another system's.


def test_weights_go_back_to_where_they_came_from_to_the_bit(write, load, tmp_path):
    path = write("timm")
    saving.save(load(path), tmp_path / "back.safetensors", dialect="timm")
    before = safetensors.numpy.load_file(path)
    assert_bit_equal(safetensors.numpy.load_file(tmp_path / "back.safetensors"), before)


def test_a_file_for_torch_says_so_as_transformers_demands(write, load, tmp_path):
    saving.save(load(write("timm")), tmp_path / "back.safetensors", dialect="timm")
    with safetensors.safe_open(tmp_path / "back.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_net_that_a_system_cannot_have_is_refused_field_by_field(tmp_path):
    config = TINY.replace(padding="same", stem_pool_padding="same")
    with pytest.raises(
        ConfigError,
        match=r"timm cannot express(.|\n)*stem_pool_padding='same'(.|\n)*padding='same'",
    ):
        saving.save(pretrained(config, labels=LABELS), tmp_path / "x.safetensors", dialect="timm")
    assert list(tmp_path.iterdir()) == []


def test_a_net_may_always_go_back_to_the_dialect_that_it_came_from(write, load, tmp_path):
    mine = TINY.replace(padding="same")
    path = write("transformers")
    found = load(path, config=mine)
    saving.save(found, tmp_path / "back.safetensors", dialect="transformers")
    before = safetensors.numpy.load_file(path)
    assert_bit_equal(safetensors.numpy.load_file(tmp_path / "back.safetensors"), before)
    with pytest.raises(ConfigError, match="timm cannot express"):
        saving.save(found, tmp_path / "other.safetensors", dialect="timm")


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.bin"])
@pytest.mark.parametrize("dialect", ["timm", "transformers"])
def test_a_state_dict_comes_back_bit_for_bit(tmp_path, name, dialect):
    before = pretrained(labels=LABELS)
    saving.save(before, tmp_path / name, dialect=dialect)
    with pytest.warns(AssumptionWarning):
        after = zoo.load(tmp_path / name, config=TINY)
    assert (after.source.format, after.source.dialect) == ("torch-zip", dialect)
    assert_bit_equal(flatten(after.variables), flatten(before.variables))


def plainest(dialect: str) -> ResNetConfig:
    """A small net as the dialect's system has it."""
    base = base_config(dialects.get(dialect), (1, 1, 1, 1), (8, 16, 32, 64))
    return base.replace(num_classes=CLASSES)


@pytest.mark.parametrize("dialect", ["slim_v1", "keras", "kerashub", "transformers_flax"])
def test_an_npz_comes_back_bit_for_bit(tmp_path, dialect):
    prepared = dialects.get(dialect).preprocess
    before = pretrained(plainest(dialect), labels=LABELS, preprocess=prepared)
    saving.save(before, tmp_path / "net.npz", dialect=dialect)
    with pytest.warns(AssumptionWarning):
        after = zoo.load(tmp_path / "net.npz")
    assert (after.source.format, after.source.dialect) == ("npz", dialect)
    assert after.config == before.config
    assert_bit_equal(flatten(after.variables), flatten(before.variables))


@pytest.mark.parametrize("name", ["net.h5", "net.weights.h5"])
@pytest.mark.parametrize("dialect", ["keras", "keras_v2", "kerascv", "kerascv_v2", "kerashub"])
def test_a_keras_file_comes_back_bit_for_bit(tmp_path, name, dialect):
    prepared = dialects.get(dialect).preprocess
    before = pretrained(plainest(dialect), labels=LABELS, preprocess=prepared)
    saving.save(before, tmp_path / name, dialect=dialect)
    with pytest.warns(AssumptionWarning):
        after = zoo.load(tmp_path / name)
    container = "keras-h5" if name == "net.h5" else "keras-weights-h5"
    assert (after.source.format, after.source.dialect) == (container, dialect)
    assert after.config == before.config
    assert_bit_equal(flatten(after.variables), flatten(before.variables))


@pytest.mark.parametrize("dialect", ["keras", "keras_v2", "kerascv", "kerascv_v2", "kerashub"])
def test_a_keras_archive_says_the_net_that_it_is(tmp_path, dialect):
    config = plainest(dialect).replace(widths=(64, 16, 32, 64))  # the first is KerasHub's
    prepared = dialects.get(dialect).preprocess
    before = pretrained(config, labels=LABELS, preprocess=prepared)
    saving.save(before, tmp_path / "net.keras", dialect=dialect)
    after = zoo.load(tmp_path / "net.keras", preprocess=prepared, config=config)
    assert (after.source.format, after.source.dialect) == ("keras-zip", dialect)
    with pytest.warns(AssumptionWarning):
        assert zoo.load(tmp_path / "net.keras").config == config
    assert_bit_equal(flatten(after.variables), flatten(before.variables))


@pytest.mark.parametrize("name", ["net.weights.h5", "net.keras", "net.safetensors"])
def test_kerashubs_v2_with_a_deep_stem_does_not_average_in_shortcuts(tmp_path, name):
    config = plainest("kerashub").replace(
        widths=(64, 16, 32, 64), order="pre", shortcut_norm=False, stem="deep", stem_width=64
    )
    saving.save(pretrained(config), tmp_path / name, dialect="kerashub")
    with pytest.warns(AssumptionWarning):
        assert zoo.load(tmp_path / name).config == config


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_f6_a_stem_for_blue_first_is_folded_red_first(tmp_path, channels):
    before = pretrained(plainest("keras"), preprocess=CAFFE)
    saving.save(before, tmp_path / "net.weights.h5", dialect="keras")
    with pytest.warns(AssumptionWarning):
        after = zoo.load(tmp_path / "net.weights.h5", in_channels=channels)
    mean = (123.68, 116.779, 103.939)
    expected = np.resize(mean, channels) if channels > 1 else [np.mean(mean)]
    np.testing.assert_allclose(after.preprocess.mean, expected, rtol=1e-6)
    assert after.preprocess.channel_order == "rgb"
    red_first = flat(before)["stem/conv1/kernel"][:, :, ::-1]
    np.testing.assert_array_equal(
        flat(after)["stem/conv1/kernel"], zoo.fold_channels(red_first, channels)
    )


def test_variables_that_are_not_those_of_the_config_are_not_saved(tmp_path):
    pre = pretrained(TINY)
    wider = dataclasses.replace(
        pre, labels=None, model=pre.model.clone(config=TINY.replace(num_classes=9))
    )
    for path, dialect in (("net", None), ("net.pth", "timm")):
        with pytest.raises(
            ConfigError, match=r"variables: head/kernel has \(.*where the config has"
        ):
            saving.save(wider, tmp_path / path, dialect=dialect)
        assert not (tmp_path / path).exists()


def test_names_alone_are_labels(write):
    names = [f"class {i}" for i in range(CLASSES)]
    with pytest.warns(AssumptionWarning):
        assert zoo.load(write("timm"), labels=names).labels == Labels(names=tuple(names))


def test_a_net_is_made_with_other_fields():
    model, variables = zoo.create("cifar_resnet20", num_classes=3)
    assert model.config == ARCHITECTURES["cifar_resnet20"].replace(num_classes=3)
    assert variables["params"]["head"]["bias"].shape == (3,)
    with pytest.raises(ConfigError, match="classes"):
        zoo.create("cifar_resnet20", classes=3)


@pytest.mark.parametrize("classes", [CLASSES, 0])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_preset_of_kerashub_comes_back_bit_for_bit(tmp_path, order, classes):
    changes = {"order": order, "shortcut_norm": order == "post", "num_classes": classes}
    config = plainest("kerashub").replace(widths=(64, 16, 32, 64), **changes)
    window = {"crop_px": (96, 80), "resize_px": (96, 80), "resize_mode": "squash"}
    before = pretrained(config, preprocess=Preprocess(**window, antialias=False))
    saving.save(before, tmp_path / "preset", dialect="kerashub")
    files = {"config.json", "image_converter.json", "metadata.json", "model.weights.h5"}
    files |= {"preprocessor.json", "task.json", "task.weights.h5"} if classes else set()
    assert contents(tmp_path / "preset").keys() == files
    after = zoo.load(tmp_path / "preset")
    assert (after.source.dialect, after.config) == ("kerashub", config)
    assert {name: getattr(after.preprocess, name) for name in window} == window
    assert_bit_equal(flatten(after.variables), flatten(before.variables))


def test_a_preset_of_kerashub_says_how_images_are_prepared_or_is_refused(tmp_path):
    config = plainest("kerashub").replace(widths=(64, 16, 32, 64))
    with pytest.raises(ConfigError, match="no transform with resize_mode='short_edge'"):
        saving.save(pretrained(config), tmp_path / "preset", dialect="kerashub")
    assert not (tmp_path / "preset").exists()


def test_a_keras_archive_must_say_the_net_even_where_it_came_from(tmp_path, load):
    config = plainest("keras_v2")
    saving.save(pretrained(config), tmp_path / "net.h5", dialect="keras_v2")
    found = load(tmp_path / "net.h5", config=config.replace(stem_pool_value="-inf"))
    with pytest.raises(ConfigError, match="stem_pool_value='-inf'"):
        saving.save(found, tmp_path / "net.keras", dialect="keras_v2")


@pytest.mark.parametrize(
    "dialect", ["transformers_flax", "flax_example", "jax_resnet", "flaxmodels_tree"]
)
def test_a_msgpack_is_restored_by_flax_and_comes_back_bit_for_bit(tmp_path, dialect):
    prepared = dialects.get(dialect).preprocess
    before = pretrained(plainest(dialect), labels=LABELS, preprocess=prepared)
    saving.save(before, tmp_path / "net.msgpack", dialect=dialect)
    restored = flax.serialization.msgpack_restore((tmp_path / "net.msgpack").read_bytes())
    assert restored.keys() == {"params", "batch_stats"}
    theirs = {}
    for collection, statistic in (("params", False), ("batch_stats", True)):
        tree = flax.traverse_util.flatten_dict(restored[collection], sep="/")
        assert {name.rpartition("/")[2] in ("mean", "var") for name in tree} == {statistic}
        theirs |= tree
    config, target = before.config, dialects.get(dialect)
    assert_bit_equal(theirs, save_arrays(target, flatten(before.variables), config))
    after = zoo.load(tmp_path / "net.msgpack", config=config, labels=LABELS, preprocess=prepared)
    assert (after.source.format, after.source.dialect) == ("flax-msgpack", dialect)
    assert_bit_equal(flatten(after.variables), flatten(before.variables))


def test_a_training_state_of_flax_is_read_without_its_optimizer(tmp_path):
    before = pretrained(plainest("flax_example"), labels=LABELS)
    saving.save(before, tmp_path / "net.msgpack", dialect="flax_example")
    variables = flax.serialization.msgpack_restore((tmp_path / "net.msgpack").read_bytes())
    state = {
        "step": np.int32(250_200),
        "opt_state": {"0": {"trace": variables["params"]}, "1": {"count": np.int32(1)}},
        "dynamic_scale": None,
        **variables,
    }
    path = tmp_path / "checkpoint_250200"
    path.write_bytes(flax.serialization.msgpack_serialize(state))
    after = zoo.load(path, config=before.config, labels=LABELS, preprocess=before.preprocess)
    assert after.source.dialect == "flax_example"
    assert_bit_equal(flatten(after.variables), flatten(before.variables))


@pytest.mark.parametrize("name", ["net", "net.safetensors", "net.v2"])
def test_f06_a_net_for_blue_first_gives_the_same_logits_once_it_is_ours(tmp_path, name):
    before = pretrained(
        plainest("keras"), labels=LABELS, preprocess=dialects.get("keras").preprocess
    )
    assert before.preprocess.channel_order == "bgr"
    saving.save(before, tmp_path / name)
    after = zoo.load(tmp_path / name)
    red_first = jax.random.normal(jax.random.key(0), (1, 33, 33, 3))

    def logits(net: Pretrained) -> np.ndarray:
        blue = net.preprocess.channel_order == "bgr"
        return np.asarray(
            net.model.apply(net.variables, red_first[..., ::-1] if blue else red_first)
        )

    np.testing.assert_array_equal(logits(after), logits(before))
    assert after.preprocess == before.preprocess
    assert_bit_equal(flatten(after.variables), flatten(before.variables))


def test_a_grey_net_goes_to_a_dialect_of_blue_first(tmp_path):
    grey = plainest("keras").replace(in_channels=1)
    prepared = Preprocess(mean=(0.5,), std=(0.5,))
    before = pretrained(grey, labels=LABELS, preprocess=prepared)
    saving.save(before, tmp_path / "net.h5", dialect="keras")
    with pytest.warns(AssumptionWarning):
        after = zoo.load(tmp_path / "net.h5", preprocess=prepared)
    assert_bit_equal(flatten(after.variables), flatten(before.variables))


def test_f09_a_projection_is_written_where_keras_lists_it(tmp_path):
    before = pretrained(plainest("keras"), preprocess=dialects.get("keras").preprocess)
    saving.save(before, tmp_path / "net.h5", dialect="keras")
    with h5py.File(tmp_path / "net.h5") as file:
        layers = np.asarray(file.attrs["layer_names"]).astype(str).tolist()
        weights = np.asarray(file["conv1_bn"].attrs["weight_names"]).astype(str).tolist()
    # As keras.applications.ResNet50().layers has them (Keras 3.15).
    parts = ("1_conv", "1_bn", "2_conv", "2_bn", "0_conv", "3_conv", "0_bn", "3_bn")
    block = [f"conv2_block1_{part}" for part in parts]
    assert layers[:10] == ["conv1_conv", "conv1_bn", *block]
    norms = ("gamma", "beta", "moving_mean", "moving_variance")
    assert weights == [f"conv1_bn/{name}" for name in norms]


def test_a_torch_file_has_a_torch_dialect(tmp_path):
    for dialect in (None, "slim_v1"):
        with pytest.raises(UnsupportedFile, match="is one of akamaster"):
            saving.save(pretrained(labels=LABELS), tmp_path / "net.pth", dialect=dialect)
    with pytest.raises(UnsupportedFile, match="is one of akamaster"):
        saving.save(pretrained(labels=LABELS), tmp_path / "net.npz")
    with pytest.raises(UnsupportedFile, match="is one of keras"):
        saving.save(pretrained(labels=LABELS), tmp_path / "net.weights.h5", dialect="timm")


@pytest.mark.slow
def test_what_keras_spells_otherwise_is_rewritten_for_transformers(tmp_path):
    config = plainest("keras")
    assert (config.conv_bias, config.norm_eps, config.stem_pool_value) == ("all", 1.001e-5, "zero")
    keras = pretrained(config, labels=LABELS, preprocess=dialects.get("keras").preprocess)
    saving.save(keras, tmp_path / "net.safetensors", dialect="transformers")
    plain = config.replace(conv_bias="none", norm_eps=1e-5, stem_pool_value="-inf")
    with pytest.warns(AssumptionWarning):
        found = zoo.load(tmp_path / "net.safetensors", config=plain)
    bgr = jax.random.normal(jax.random.key(0), (2, 33, 33, 3))
    theirs = keras.model.apply(keras.variables, bgr)
    ours = found.model.apply(found.variables, bgr[..., ::-1])  # red first
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(jnp.abs(theirs).max()))
    with pytest.raises(ConfigError, match=r"timm cannot express(.|\n)*stride_on='reduce'"):
        saving.save(keras, tmp_path / "net.pth", dialect="timm")


@pytest.mark.parametrize("name", ["net.ckpt", "net.onnx", "net.th"])
def test_a_form_that_is_not_written_is_refused_with_those_that_are(tmp_path, name):
    with pytest.raises(UnsupportedFile, match=r"is not written: use .safetensors"):
        saving.save(pretrained(labels=LABELS), tmp_path / name)


# Directories as other systems have them.

RESNET18 = ARCHITECTURES["resnet18"].replace(num_classes=CLASSES)
CAFFE = dialects.get("keras").preprocess


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        TINY.replace(num_classes=0, in_channels=1),
        TINY.replace(activation="gelu_tanh", inner_activation="relu", strides=(2, 2)),
        ResNetConfig(depths=(1, 2), widths=(8, 12), strides=(1, 2), dilations=(1, 1),
                     stride_on="reduce", num_classes=CLASSES),
    ],
    ids=["basic", "headless", "gelu", "bottleneck"],
)  # fmt: skip
def test_a_directory_for_transformers_comes_back_whole(tmp_path, config):
    channels = config.in_channels
    prepared = Preprocess(
        crop_px=(64, 64), resize_px=73, crop_rounding="floor",
        mean=(0.5,) * channels, std=(0.25,) * channels,
    )  # fmt: skip
    labels = LABELS if config.num_classes else None
    before = pretrained(config, labels=labels, preprocess=prepared)
    saving.save(before, tmp_path / "net", dialect="transformers")
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert contents(tmp_path / "net").keys() == names
    after = zoo.load(tmp_path / "net")  # a warning would be an error
    assert after.config == config
    assert (after.labels, after.preprocess) == (labels, prepared)
    assert_bit_equal(flat(after), flat(before))


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("test_resnet", {"in_channels": 1, "dropout": 0.5, "drop_path_rate": 0.1}),
        ("test_resnet", {"activation": "silu", "head_pool": "max", "num_classes": 0}),
        ("resnetv2_18d", {"output_stride": 16, "zero_init_residual": True}),
    ],
)
def test_a_directory_for_timm_comes_back_whole(tmp_path, arch, changes):
    config = ARCHITECTURES[arch].replace(**{"num_classes": CLASSES, **changes})
    prepared = Preprocess(
        crop_px=(160, 128), resize_mode="squash", resize_px=(160, 128), interpolation="bicubic",
        mean=(0.5,) * config.in_channels, std=(0.25,) * config.in_channels,
    )  # fmt: skip
    labels = Labels(names=LABELS.names) if config.num_classes else None
    source = Source(arch=arch, licence="mit")
    before = pretrained(config, labels=labels, preprocess=prepared, source=source)
    dialect = "timm_v2" if config.order == "pre" else "timm"
    saving.save(before, tmp_path / "net", dialect=dialect)
    assert contents(tmp_path / "net").keys() == {"config.json", "model.safetensors"}
    after = zoo.load(tmp_path / "net")
    assert after.config == config
    assert (after.labels, after.preprocess) == (labels, prepared)
    assert (after.source.arch, after.source.licence) == (arch, "mit")
    assert_bit_equal(flat(after), flat(before))


def test_imagenets_labels_go_to_timm_by_their_wordnet_ids(tmp_path):
    imagenet = label_sets.get("imagenet_1k")
    config = ARCHITECTURES["test_resnet"].replace(num_classes=1000)
    saving.save(pretrained(config, labels=imagenet), tmp_path / "net", dialect="timm")
    written = json.loads((tmp_path / "net" / "config.json").read_text())
    assert written["label_names"][285] == "n02124075"
    assert written["label_descriptions"]["n02124075"] == "Egyptian cat"
    assert zoo.load(tmp_path / "net").labels == imagenet


def test_classes_without_names_are_numbered_as_transformers_does(tmp_path):
    saving.save(pretrained(), tmp_path / "net", dialect="transformers")
    written = json.loads((tmp_path / "net" / "config.json").read_text())
    assert written["id2label"]["4"] == "LABEL_4"
    assert written["label2id"]["LABEL_4"] == 4
    after = zoo.load(tmp_path / "net")
    assert (after.config.num_classes, after.labels) == (CLASSES, None)


def test_of_placeholders_for_a_thousand_classes_nothing_is_assumed(tmp_path):
    config = plainest("transformers").replace(num_classes=1000)
    saving.save(pretrained(config), tmp_path / "net", dialect="transformers")
    after = zoo.load(tmp_path / "net")
    assert (after.labels, after.source.assumptions) == (None, ())


def test_dilations_that_an_output_stride_gives_are_said_as_one_to_timm(tmp_path):
    dilated = RESNET18.replace(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    saving.save(pretrained(dilated), tmp_path / "net", dialect="timm")
    after = zoo.load(tmp_path / "net")
    assert after.config.output_stride == 8
    assert plan(after.config) == plan(dilated)


def test_a_net_that_is_no_architecture_of_timms_is_refused_with_what_the_nearest_has(tmp_path):
    config = RESNET18.replace(widths=(8, 16, 24, 32))
    nearest = r"resnet18, has other\n  widths=\(64, 128, 256, 512\), not \(8, 16, 24, 32\)"
    with pytest.raises(ConfigError, match=nearest):
        saving.save(pretrained(config, labels=LABELS), tmp_path / "net", dialect="timm")
    assert not (tmp_path / "net").exists()


def test_what_a_description_cannot_say_of_labels_and_images_is_refused_by_its_field(tmp_path):
    config = ARCHITECTURES["test_resnet"].replace(num_classes=CLASSES)
    with pytest.raises(ConfigError, match=r"labels\.activation='sigmoid'"):
        saving.save(pretrained(config, labels=LABELS), tmp_path / "net", dialect="timm")
    uncropped = Preprocess(resize_mode="none", resize_px=None)
    with pytest.raises(ConfigError, match="resize_mode='none'"):
        saving.save(pretrained(config, preprocess=uncropped), tmp_path / "net", dialect="timm")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_must_say_the_net_even_where_it_came_from(write, load, tmp_path):
    found = load(write("transformers"), config=TINY.replace(padding="same"))
    with pytest.raises(ConfigError, match="padding='same'"):
        saving.save(found, tmp_path / "net", dialect="transformers")


def test_f6_a_net_for_blue_first_is_turned_with_its_mean_for_transformers(tmp_path):
    saving.save(
        pretrained(TINY, labels=LABELS, preprocess=CAFFE), tmp_path / "net", dialect="transformers"
    )
    after = zoo.load(tmp_path / "net")
    assert (after.preprocess.channel_order, after.preprocess.divisor) == ("rgb", 1.0)
    assert after.preprocess.mean == (123.68, 116.779, 103.939)
    blue_first = flat(after)["stem/conv1/kernel"][:, :, ::-1]
    np.testing.assert_array_equal(blue_first, arrays_of(TINY)["stem/conv1/kernel"])


def test_a_directory_keeps_no_description_of_the_model_that_it_held(tmp_path):
    folder = tmp_path / "net"
    saving.save(pretrained(labels=LABELS), folder, dialect="transformers")
    for name in ("image_converter.json", "task.json", "README.md", "other.safetensors"):
        (folder / name).write_bytes(b"old")
    net = pretrained(TEST_RESNET, labels=Labels(names=tuple("abcdefghij")))
    for dialect in ("timm", None):
        saving.save(net, folder, dialect=dialect)
        kept = {"config.json", "model.safetensors", "README.md", "other.safetensors"}
        assert contents(folder).keys() == kept
        assert zoo.load(folder).config == net.config


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
     "flax_model.msgpack", "model.weights.h5", "task.weights.h5"],
)  # fmt: skip
def test_a_directory_that_holds_other_weights_is_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_bytes(b"old")
    (tmp_path / "preprocessor_config.json").write_bytes(b"{}")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"the weights of another model \\({name}\\): save"):
        saving.save(pretrained(), tmp_path)
    assert contents(tmp_path) == before


def test_a_training_run_is_left_as_it_is(tmp_path):
    saving.save(pretrained(), tmp_path / "run" / "best")
    with pytest.raises(ConfigError, match="run is a training run, whose model is in best"):
        saving.save(pretrained(), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["best"]


@pytest.mark.parametrize("name", ["net.safetensor", "net.pthx", "net.keros", "net.stablehlo"])
def test_an_ending_that_is_nearly_one_of_a_file_is_no_directory(tmp_path, name):
    with pytest.raises(UnsupportedFile, match=f"{name}: .* is not written: use .safetensors"):
        saving.save(pretrained(), tmp_path / name)
    saving.save(pretrained(), tmp_path / "resnet50.a1_in1k")
    assert (tmp_path / "resnet50.a1_in1k" / "config.json").is_file()


def test_a_directory_has_the_dialect_of_a_system_that_describes_its_nets(tmp_path):
    with pytest.raises(UnsupportedFile, match="of a directory is one of resnetjax, transformers"):
        saving.save(pretrained(labels=LABELS), tmp_path / "net", dialect="torchvision")


def test_an_unknown_dialect_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UnknownName, match="did you mean timm"):
        saving.save(pretrained(labels=LABELS), tmp_path / "net", dialect="tim")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing_write", [1, 2])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path, monkeypatch, failing_write
):
    folder = tmp_path / "net"
    saving.save(pretrained(labels=LABELS), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls, fsync = [], os.fsync

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == failing_write:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    other = pretrained(TINY.replace(norm_eps=1e-3), preprocess=PREPROCESS)
    with pytest.raises(OSError, match="No space left"):
        saving.save(other, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Random weights.


def test_created_weights_follow_their_seed_or_key():
    trees = [zoo.create(TINY, rng=rng)[1] for rng in (0, 0, 1, jax.random.key(0))]
    kernels = [tree["params"]["head"]["kernel"] for tree in trees]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert kernels[3].shape == (16, CLASSES)


def test_a_seed_may_be_of_numpy(write, load):
    trees = [zoo.create(TINY, rng=seed)[1] for seed in (3, np.int64(3), np.uint8(3))]
    heads = [flat(load(write("timm"), num_classes=3, rng=seed)) for seed in (3, np.int64(3))]
    for tree in trees[1:]:
        jax.tree.map(np.testing.assert_array_equal, tree, trees[0])
    assert_bit_equal(*heads)


@pytest.mark.parametrize("seed", [-1, np.int64(-3), 1.5, "3"])
def test_what_is_no_seed_is_refused(write, load, seed):
    message = re.escape(f"rng={seed!r} is not allowed: use a seed of 0 or more")
    with pytest.raises(ConfigError, match=message):
        zoo.create(TINY, rng=seed)
    with pytest.raises(ConfigError, match=message):
        load(write("timm"), num_classes=3, rng=seed)


def test_a_net_is_created_by_name_alias_or_config():
    assert zoo.create("cifar_resnet20")[0].config == ARCHITECTURES["cifar_resnet20"]
    assert zoo.create(TINY)[0].config == TINY
    with pytest.raises(UnknownName, match="did you mean"):
        zoo.create("resnet5O")


def test_the_dtype_is_of_the_model_and_the_variables_stay_float32():
    model, variables = zoo.create(TINY, dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


# What a file leaves open is said even where one architecture fits; what is given is obeyed.

TEST_RESNET = ARCHITECTURES["test_resnet"].replace(num_classes=10)
CIFAR = ARCHITECTURES["cifar_resnet20b"]


def test_one_fitting_architecture_is_still_an_assumption(write):
    config = ARCHITECTURES["resnet34"].replace(num_classes=3)
    first, *_ = assumptions(write("torchvision", config))
    assert first.startswith("architecture resnet34, with its strides, ")
    assert "activation and epsilon (arch= or config= decides)" in first
    assert " too" not in first


def test_a_cifar_net_of_another_width_is_read_in_its_own_dialect(write, load):
    config = ARCHITECTURES["cifar_resnet20b"].replace(widths=(64, 128, 256), stem_width=64)
    found = load(write("akamaster", config))
    assert found.config == config
    assert found.source.dialect == "akamaster"
    assert found.preprocess.crop_px == (32, 32)


def test_a_cifar_net_under_torchvisions_names_keeps_its_stem_and_projections(write, load):
    found = load(write("torchvision", CIFAR))
    assert found.config == CIFAR
    assert found.source.dialect in ("torchvision", "timm")  # whose names these are alike
    assert found.preprocess.crop_px == (32, 32)


def test_a_moving_average_is_said_to_be_one(write, monkeypatch):
    path = write("timm")
    plain = zoo.files.read(path)
    averaged = dataclasses.replace(plain, metadata={"ema": "state_dict_ema"})
    monkeypatch.setattr(zoo.files, "read", lambda _: averaged)
    assert "the weights are those of state_dict_ema, a moving average" in assumptions(path)


def test_a_config_whose_sizes_are_not_the_files_is_told_so(write):
    said = assumptions(
        write("timm", TEST_RESNET), config=TEST_RESNET.replace(num_classes=77, in_channels=5)
    )
    assert "num_classes=10 as in the file, not 77 as in config (num_classes= decides)" in said
    assert "in_channels=3 as in the file, not 5 as in config (in_channels= decides)" in said


def test_what_is_skipped_is_warned_of(write):
    path = write("timm", TEST_RESNET, drop=("layer1.0.bn1.bias",))
    with pytest.warns(AssumptionWarning, match=r"1 arrays do not fit(.|\n)*layer1\.0\.bn1\.bias"):
        zoo.load(path, arch="test_resnet", preprocess=PREPROCESS, strict=False)


def test_a_tiny_file_cannot_have_gigabytes_drawn(tmp_path):
    huge = TEST_RESNET.replace(widths=(32, 48, 48, 12_000))
    described = {"format": "resnetjax", "config": huge.to_json()}
    stem = {"stem/norm1/bias": np.zeros(16, np.float32)}
    safetensors.numpy.save_file(stem, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(WeightsMismatch, match="MB of arrays are absent"):
        zoo.load(tmp_path, strict=False)


def test_a_config_json_that_contradicts_its_weights_is_refused(tmp_path):
    saving.save(pretrained(), tmp_path / "net")
    path = tmp_path / "net" / "config.json"
    values = json.loads(path.read_text())
    values["config"]["activation"] = "gelu"
    path.write_text(json.dumps(values))
    with pytest.raises(CorruptFile, match="another net than the weights"):
        zoo.load(tmp_path / "net")


@pytest.mark.parametrize("described", [
    {"architecture": "resnet9000"},
    {"architecture": "resnet18", "model_args": {"stem_width": 5}},
    {"model_type": "clip"},
    {"anything": "else"},
])  # fmt: skip
def test_a_net_that_is_given_needs_no_description(write, load, described):
    path = write("timm", TEST_RESNET, name="model.safetensors", described=described)
    with pytest.raises(ResNetJAXError):
        load(path)
    assert load(path, config=TEST_RESNET).config == TEST_RESNET
    assert load(path, arch="test_resnet").source.arch == "test_resnet"


def test_older_timm_descriptions_have_their_fields_at_the_top(write, load):
    described = {
        "architecture": "test_resnet", "num_classes": 10, "input_size": [3, 288, 288],
        "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3,
        "labels": [f"thing {i}" for i in range(10)],
    }  # fmt: skip
    found = load(write("timm", TEST_RESNET, name="model.safetensors", described=described))
    assert found.preprocess.crop_px == (288, 288)
    assert found.preprocess.mean == (0.5,) * 3
    assert found.labels is not None
    assert found.labels.names[3] == "thing 3"


def test_a_timm_description_without_transforms_leaves_them_open(write):
    path = write(
        "timm", TEST_RESNET, name="model.safetensors", described={"architecture": "test_resnet"}
    )
    assert any("images prepared" in line for line in assumptions(path))


def test_the_architecture_that_is_recorded_is_that_of_the_config_that_was_given(write, load):
    described = {"architecture": "test_resnet"}
    path = write("timm", TEST_RESNET, name="model.safetensors", described=described)
    assert load(path).source.arch == "test_resnet"
    assert load(path, config=TEST_RESNET.replace(activation="silu")).source.arch is None
