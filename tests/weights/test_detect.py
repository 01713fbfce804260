"""Names and shapes alone tell a file's dialect and net, as far as they can."""

import contextlib
import itertools
import random
import re

import numpy as np
import pytest

from resnetjax.config import ResNetConfig
from resnetjax.errors import UnsupportedFile, WeightsMismatch
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES, names
from resnetjax.weights.arrays import load_arrays
from resnetjax.weights.detect import detect
from resnetjax.weights.dialect import Depthwise, entries, inexpressible
from resnetjax.weights.dialects import DIALECTS, get
from resnetjax.weights.own_head import own_head

EXPRESSED = [
    (dialect.name, arch)
    for dialect in DIALECTS.values()
    for arch, config in ARCHITECTURES.items()
    if any(arch in names(family) for family in dialect.families)
    and not inexpressible(dialect, config)
]


def file_of(config: ResNetConfig, dialect: str) -> dict[str, np.ndarray]:
    """Arrays of the right names and shapes that take no memory."""
    found, named = {}, entries(get(dialect), config)
    for path, leaf in leaves(plan(config)).items():
        array, layout = np.broadcast_to(np.float32(0), leaf.shape), named[path].layout
        if isinstance(layout, Depthwise):
            height, width, each, channels = leaf.shape
            array = np.broadcast_to(np.float32(0), (height, width, channels, each))
        elif layout is not None:
            array = array.transpose(np.argsort(layout.permutation))
            array = np.expand_dims(array, layout.singletons)
        root = get(dialect).root if config.num_classes and not path.startswith("head/") else ""
        found[root + named[path].name] = array
    return found


PRUNED = (((47, 18, 19),), ((85, 37, 171), (107, 80, 171)), ((198, 126, 818),), ((492, 237, 2022),))


def net(**fields) -> ResNetConfig:
    return ResNetConfig(**{"depths": (1, 2, 1, 1), **fields})


@pytest.mark.parametrize(("dialect", "arch"), EXPRESSED)
def test_an_architecture_is_found_or_listed_among_those_that_look_the_same(dialect, arch):
    config = ARCHITECTURES[arch]
    arrays = file_of(config, dialect)
    found = detect(arrays, source="x")
    # torchvision's and timm's names of a plain net are the same
    assert [e.name for e in entries(found.dialect, config).values()] == [
        e.name for e in entries(get(dialect), config).values()
    ]
    assert arch in (found.arch, *found.alternatives)
    assert leaves(plan(found.config)) == leaves(plan(config))


@pytest.mark.parametrize("arch", ["resnet50", "resnetv2_50", "seresnet50", "cifar_resnetv2_20"])
def test_alternatives_have_the_same_arrays_and_are_other_functions(arch):
    found = detect(file_of(ARCHITECTURES[arch], "resnetjax"), source="x")
    for other in found.alternatives:
        config = ARCHITECTURES[other].replace(num_classes=found.config.num_classes)
        assert leaves(plan(config)) == leaves(plan(found.config)), other
        assert config != found.config, other


@pytest.mark.parametrize(
    ("dialect", "arch", "expected"),
    [
        ("torchvision", "resnet50", "resnet50"),
        ("torchvision", "resnet18", "resnet18"),
        ("torchvision", "wide_resnet50_2", "wide_resnet50_2"),
        ("timm", "resnet50d", "resnet50d"),
        ("timm", "resnetrs50", "resnetrs50"),
        ("timm_v2", "resnetv2_50x1_bit", "resnetv2_50x1_bit"),
        ("transformers", "resnet50", "resnet50"),
        ("akamaster", "cifar_resnet56", "cifar_resnet56"),
    ],
)
def test_the_commonest_reading_comes_first(dialect, arch, expected):
    found = detect(file_of(ARCHITECTURES[arch], dialect), source="x")
    assert found.arch == expected
    assert found.config == ARCHITECTURES[expected]


def test_a_resnet50_of_torchvision_may_also_be_anti_aliased_or_v1():
    found = detect(file_of(ARCHITECTURES["resnet50"], "torchvision"), source="x")
    assert {"resnet50_v1", "resnetblur50", "resnetaa50"} <= set(found.alternatives)
    assert "resnet50_gn" not in found.alternatives


@pytest.mark.parametrize(
    ("dialect", "config"),
    [
        ("torchvision", net(block="basic")),
        ("torchvision", net(widths=(24, 48, 96, 192))),
        ("torchvision", net(groups=8, group_width=16)),
        ("torchvision", net(group_width=96)),
        ("torchvision", net(depths=(2, 2, 2), widths=(64, 128, 256), strides=(1, 2, 2),
                            dilations=(1, 1, 1), block="basic")),
        ("torchvision", net(depths=(1,) * 5, widths=(8, 16, 32, 64, 96), strides=(1, 2, 2, 2, 2),
                            dilations=(1,) * 5)),
        ("timm", net(stem="deep", shortcut="avg_conv", attention="se")),
        ("timm", net(stem="tiered", stem_width=32, shortcut="avg_conv")),
        ("timm", net(attention="se", se_ratio=0.25, stem_pool="conv", stem="deep")),
        ("timm", net(attention="eca", block="basic")),
        ("timm", net(norm="group")),
        ("timm", net(block=("basic", "basic", "bottleneck", "basic"))),
        ("timm", net(attention="eca", pruned_features=PRUNED)),
        ("timm", net(block="basic", stem="deep", shortcut="avg_conv", pruned_features=(
            ((64, 64),), ((3, 120), (128, 120)), ((9, 200),), ((512, 5),)))),
        ("timm", net(depths=(1, 1, 1, 1), pruned_features=(
            ((47, 18, 100),), ((85, 37, 171),), ((198, 126, 818),), ((492, 237, 2022),)))),
        ("timm", net(depths=(2, 2, 2, 2), pruned_features=(
            ((48, 40, 256),) * 2, ((96, 80, 512),) * 2, ((192, 160, 1024),) * 2,
            ((384, 320, 2048),) * 2))),
        ("timm", net(depths=(2, 2, 2, 2), block="basic", pruned_features=(
            ((40, 64),) * 2, ((80, 128),) * 2, ((160, 256),) * 2, ((320, 512),) * 2))),
        ("timm_v2", net(order="pre", shortcut_norm=False, widths=(32, 64, 128, 256))),
        ("timm_v2", net(order="pre", shortcut_norm=False, block="basic", stem_width=32)),
        ("transformers", net(inner_activation="relu", stem_width=32)),
        ("akamaster", net(depths=(4, 4, 4), widths=(16, 32, 64), strides=(1, 2, 2), block="basic",
                          dilations=(1, 1, 1), stem="conv3", stem_width=16, stem_pool="none",
                          shortcut="pad")),
        ("resnetjax", net(conv_bias="all")),
        ("resnetjax", net(order="pre", shortcut_norm=False,
                          conv_bias=("stem", "conv3", "shortcut"))),
    ],
)  # fmt: skip
def test_a_net_without_a_name_is_read_off_its_arrays(dialect, config):
    found = detect(file_of(config, dialect), source="x")
    assert found.arch is None
    assert found.alternatives == ()
    assert leaves(plan(found.config)) == leaves(plan(config))
    assert found.config.stem_pool == config.stem_pool


def test_a_pruned_net_without_a_name_had_powers_of_two_before():
    found = detect(file_of(net(attention="eca", pruned_features=PRUNED), "timm"), source="x")
    assert (found.config.widths, found.config.pruned_features) == ((64, 128, 256, 512), PRUNED)


@pytest.mark.parametrize("arch", ["ecaresnet50d", "ecaresnet50d_pruned", "ecaresnet101d_pruned"])
def test_a_pruned_net_and_the_one_that_it_was_are_each_found_as_themselves(arch):
    for sizes in ({}, {"num_classes": 7, "in_channels": 1}, {"num_classes": 0}):
        config = ARCHITECTURES[arch].replace(**sizes)
        found = detect(file_of(config, "timm"), source="x")
        assert (found.dialect.name, found.arch, found.alternatives) == ("timm", arch, ())
        assert found.config == config


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("arch", ["resnet50", "ecaresnet50d"])
def test_one_kernel_of_a_wrong_shape_is_no_pruning(arch, axis):
    # so that the fault is reported against the net that was meant
    arrays = file_of(ARCHITECTURES[arch], "timm")
    name = "layer3.4.conv2.weight"
    arrays[name] = arrays[name].take(range(200), axis)
    assert detect(arrays, source="x").arch == arch


@pytest.mark.parametrize(("dialect", "arch"), [
    ("torchvision", "resnet18"), ("timm", "resnet26d"), ("timm_v2", "resnetv2_50"),
    ("transformers", "resnet50"), ("akamaster", "cifar_resnet20"), ("resnetjax", "resnet18"),
])  # fmt: skip
def test_classes_and_input_channels_are_those_of_the_file(dialect, arch):
    config = ARCHITECTURES[arch].replace(num_classes=7, in_channels=5)
    found = detect(file_of(config, dialect), source="x")
    assert (found.config.num_classes, found.config.in_channels) == (7, 5)
    assert found.arch == arch
    config = config.replace(num_classes=0)
    assert detect(file_of(config, dialect), source="x").config.num_classes == 0


def test_a_given_config_takes_the_files_classes_and_channels():
    arrays = file_of(ARCHITECTURES["resnet18"].replace(num_classes=7, in_channels=1), "torchvision")
    found = detect(arrays, source="x", known=ARCHITECTURES["resnetblur18"])
    assert found.config == ARCHITECTURES["resnetblur18"].replace(num_classes=7, in_channels=1)
    assert found.dialect.name == "timm"  # the names are torchvision's too, which does not blur


@pytest.mark.parametrize(("dialect", "arch"), [
    ("torchvision", "resnet50"), ("timm", "seresnet50"), ("timm_v2", "resnetv2_50"),
    ("transformers", "resnet50"), ("akamaster", "cifar_resnet20"), ("keras", "keras_resnet50"),
    ("flax_example", "flax_resnet50"), ("jax_resnet", "resnet50"),
    ("timm", "ecaresnet50d_pruned"),
])  # fmt: skip
def test_an_array_that_is_lacking_does_not_hide_the_architecture(dialect, arch):
    # so that the fault is reported against the net that was meant
    arrays = file_of(ARCHITECTURES[arch], dialect)
    root = get(dialect).root
    first = {
        entry.name
        for path, entry in entries(get(dialect), ARCHITECTURES[arch]).items()
        if path in ("stem/conv1/kernel", "stage2_block1/conv2/kernel", "stage1_block1/norm1/mean")
    }
    some = random.Random(0).sample(sorted(arrays), 2)
    for lacking in [name for name in arrays if name.removeprefix(root) in first] + some:
        rest = {name: array for name, array in arrays.items() if name != lacking}
        found = detect(rest, source="x")
        assert arch in (found.arch, *found.alternatives), lacking


def test_an_architecture_of_equal_names_and_other_shapes_is_not_taken_for_a_net_of_ones_own():
    config = net(depths=(3, 4, 6, 3), widths=(32, 64, 128, 256))
    arrays = {**file_of(config, "torchvision"), "attention.weight": np.zeros(3, np.float32)}
    found = detect(arrays, source="x")
    assert found.arch is None
    assert leaves(plan(found.config)) == leaves(plan(config))


def test_a_block_without_its_first_convolution_still_counts():
    arrays = file_of(ARCHITECTURES["resnet50"], "torchvision")
    del arrays["layer3.5.conv1.weight"]
    assert detect(arrays, source="x").arch == "resnet50"


def test_extra_arrays_do_not_hide_the_architecture():
    arrays = file_of(ARCHITECTURES["resnet18"], "torchvision")
    arrays |= {"attention.weight": np.zeros(3, np.float32), "layer9.0.conv1.weight": np.zeros(3)}
    assert detect(arrays, source="x").arch == "resnet18"


@pytest.mark.parametrize(("dialect", "arch"), [
    ("torchvision", "resnet50"), ("timm", "resnetrs50"), ("timm_v2", "resnetv2_18"),
    ("akamaster", "cifar_resnet20b"), ("resnetjax", "keras_resnet50"),
])  # fmt: skip
def test_the_order_of_arrays_does_not_matter(dialect, arch):
    arrays = file_of(ARCHITECTURES[arch], dialect)
    shuffled = list(arrays.items())
    random.Random(0).shuffle(shuffled)
    assert detect(dict(shuffled), source="x") == detect(arrays, source="x")


def test_a_known_net_is_looked_for_in_every_dialect_even_where_it_does_not_fit_quite():
    arrays = file_of(ARCHITECTURES["resnet34"], "transformers")
    found = detect(arrays, source="x", known=ARCHITECTURES["resnet18"])
    assert found.dialect.name == "transformers"
    assert found.config == ARCHITECTURES["resnet18"]


@pytest.mark.parametrize(
    ("dialect", "arch", "head"),
    [
        ("keras", "keras_resnet50", "dense"),
        ("keras", "keras_resnet50", "probs"),  # in keras_applications before TensorFlow 2.2
        ("keras_v2", "keras_resnet50v2", "logits"),
        ("keras_2017", "keras_resnet50", "dense_3"),
        ("keras_numbered", "mlperf_tiny_resnet8", "logits"),
    ],
)
def test_the_only_dense_layer_of_a_keras_file_is_the_head(dialect, arch, head):
    config = ARCHITECTURES[arch].replace(num_classes=7)
    arrays = file_of(config, dialect)
    renamed = {re.sub("^(predictions|fc1000|dense)/", f"{head}/", name): arrays[name]
               for name in arrays}  # fmt: skip
    assert renamed.keys() != arrays.keys()
    found = detect(renamed, source="x")
    assert (found.dialect.name, found.config.num_classes, found.arch) == (dialect, 7, arch)
    assert list(own_head(found.dialect, renamed)) == [head]
    loaded, _ = load_arrays(found.dialect, renamed, found.config, source="x")
    assert loaded["head/kernel"].shape == (config.widths[-1] * (4 if "50" in arch else 1), 7)
    assert not own_head(found.dialect, arrays)


@pytest.mark.parametrize(
    ("dialect", "arch", "layers"),
    [
        ("keras", "keras_resnet50", ["dense", "dense_1", "dense_2"]),
        ("keras_v2", "keras_resnet50v2", ["fc_b", "fc_a", "predictions"]),
        ("kerascv_v2", "kerascv_resnet18v2", ["dense_3", "dense_12", "dense_5"]),
        ("keras_numbered", "mlperf_tiny_resnet8", ["dense_3", "dense_12", "dense_13"]),
        ("keras_numbered", "mlperf_tiny_resnet8", ["one", "two", "three"]),
        ("torchvision", "resnet18", ["fc.0", "fc.3", "fc.6"]),
        ("timm", "resnet18d", ["fc.1", "fc.3", "fc.10"]),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_dense_layers_that_follow_one_another_are_the_head(dialect, arch, layers, turned):
    config = ARCHITECTURES[arch].replace(num_classes=0)
    arrays = file_of(config, dialect)
    features, separator = plan(config).features, get(dialect).separator
    widths, leaf = (features, 30, 20, 7), get(dialect).leaf_names["dense"]
    head = {}
    for layer, (before, after) in zip(layers, itertools.pairwise(widths), strict=True):
        shape = (after, before) if separator == "." else (before, after)
        head[f"{layer}{separator}{leaf}"] = np.full(shape, after, np.float32)
        head[f"{layer}{separator}bias"] = np.full(after, after, np.float32)
    arrays |= dict(reversed(head.items())) if turned else head
    found = detect(arrays, source="x")
    assert (found.dialect.name, found.config.head_widths) == (dialect, (30, 20))
    assert (found.arch, found.config.num_classes) == (arch, 7)
    loaded, _ = load_arrays(found.dialect, arrays, found.config, source="x")
    for path, width in {"head/hidden1": 30, "head/hidden2": 20, "head": 7}.items():
        assert np.unique(loaded[f"{path}/kernel"]) == np.unique(loaded[f"{path}/bias"]) == width
    known = detect(arrays, source="x", known=ARCHITECTURES[arch])
    assert (known.dialect, known.config) == (found.dialect, found.config)


def with_head(widths: dict[str, tuple[int, int]], **others: int) -> dict[str, np.ndarray]:
    """Torchvision's ResNet-18 with dense layers and vectors in place of `fc`."""
    arrays = file_of(ARCHITECTURES["resnet18"].replace(num_classes=0), "torchvision")
    for name, (before, after) in widths.items():
        arrays[f"{name}.weight"] = np.zeros((after, before), np.float32)
        arrays[f"{name}.bias"] = np.zeros(after, np.float32)
    for name, size in others.items():
        for leaf in ("weight", "bias"):
            arrays[f"{name.replace('_', '.')}.{leaf}"] = np.zeros(size, np.float32)
    return arrays


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        # Linear, ReLU, LayerNorm, Linear, and others whose names ours would be.
        (with_head({"fc.0": (512, 64), "fc.3": (64, 5)}, fc_2=64), r"fc\.2\.weight \(64,\)"),
        (with_head({"fc.1": (512, 64), "fc.3": (64, 5)}, fc_0=512), r"fc\.0\.weight \(512,\)"),
        (with_head({"fc.0": (512, 64), "fc.3": (64, 5)}, fc_1=64), r"fc\.1\.weight \(64,\)"),
        (with_head({"fc.0": (512, 64), "fc.2": (64, 5)}, fc_1=64), r"fc\.1\.weight \(64,\)"),
        (with_head({"fc.0": (512, 64), "fc.2": (64, 5)}, fc_3=5), r"fc\.3\.weight \(5,\)"),
        # No room for an activation, and layers in another order than the shapes'.
        (with_head({"fc.0": (512, 64), "fc.1": (64, 5)}), r"2 dense layers \(fc\.0, fc\.1\)"),
        (with_head({"fc.0": (64, 5), "fc.3": (512, 64)}), r"2 dense layers"),
        (with_head({"classifier": (512, 5)}), r"classifier\.weight"),
    ],
)
def test_a_head_that_no_config_has_is_refused(arrays, said):
    found = detect(arrays, source="x")
    assert found.dialect.name == "torchvision"
    with pytest.raises(WeightsMismatch, match=said):
        load_arrays(found.dialect, arrays, found.config, source="x")
    loaded, _ = load_arrays(
        found.dialect, arrays, found.config, source="x", new_head=True, strict=False
    )
    assert not any(path.startswith("head/") for path in loaded)


def test_a_new_head_takes_the_place_of_whatever_is_in_fc():
    arrays = with_head({"fc.0": (512, 64), "fc.3": (64, 5)}, fc_1=64)
    found = detect(arrays, source="x")
    loaded, skipped = load_arrays(found.dialect, arrays, found.config, source="x", new_head=True)
    assert skipped == ()
    assert loaded.keys() == leaves(plan(ARCHITECTURES["resnet18"].replace(num_classes=0))).keys()


@pytest.mark.parametrize("name", ["fc.{}", "dense_{}"])
def test_dense_layers_of_equal_shapes_are_in_the_order_of_their_numbers(name):
    arch, dialect = ("resnet18", "torchvision") if "." in name else ("keras_resnet50", "keras")
    arrays = file_of(ARCHITECTURES[arch].replace(num_classes=0), dialect)
    width, numbers = plan(ARCHITECTURES[arch]).features, (1, 4, 7, 10, 13, 16, 19)
    leaf = ".weight" if "." in name else "/kernel"
    for number in sorted(numbers, key=str):
        arrays[name.format(number) + leaf] = np.full((width, width), number, np.float32)
        arrays[name.format(number) + leaf[0] + "bias"] = np.zeros(width, np.float32)
    found = detect(arrays, source="x")
    assert found.config.head_widths == (width,) * 6
    loaded, _ = load_arrays(found.dialect, arrays, found.config, source="x")
    modules = (*(f"head/hidden{i}" for i in range(1, 7)), "head")
    assert tuple(loaded[f"{module}/kernel"].max() for module in modules) == numbers


def test_dense_layers_that_do_not_follow_one_another_are_no_head():
    arrays = file_of(ARCHITECTURES["keras_resnet50"].replace(num_classes=0), "keras")
    arrays |= {"dense/kernel": np.zeros((2048, 9)), "dense_1/kernel": np.zeros((2048, 5))}
    found = detect(arrays, source="x")
    with pytest.raises(WeightsMismatch, match=r"2 dense layers \(dense, dense_1\).*strict=False"):
        load_arrays(found.dialect, arrays, found.config, source="x")
    _, skipped = load_arrays(found.dialect, arrays, found.config, source="x", strict=False)
    assert len(skipped) == 2


@pytest.mark.parametrize("lost", ["hidden1/bias", "hidden1/kernel", "hidden2/kernel", "kernel"])
def test_a_head_of_ours_that_lacks_an_array_is_refused_with_its_name(lost):
    config = ARCHITECTURES["cifar_resnet20"].replace(head_widths=(30, 20))
    arrays = file_of(config, "resnetjax")
    del arrays[f"head/{lost}"]
    found = detect(arrays, source="x")
    with pytest.raises(WeightsMismatch, match="head/"):
        load_arrays(found.dialect, arrays, found.config, source="x")


def test_a_dense_layer_that_reads_more_than_pooled_features_is_no_head():
    arrays = file_of(ARCHITECTURES["keras_resnet50"].replace(num_classes=0), "keras")
    arrays |= {"dense/kernel": np.zeros((8192, 5)), "dense/bias": np.zeros(5)}
    found = detect(arrays, source="x")
    with pytest.raises(
        WeightsMismatch, match=r"\(8192, 5\) -> .*\(2048, 5\)\n.*dense, the only dense layer, was"
    ):
        load_arrays(found.dialect, arrays, found.config, source="x")


def test_names_of_no_dialect_are_refused_with_some_of_them_and_the_dialects():
    arrays = {f"transformer.{i}.weight": np.zeros((2, 2), np.float32) for i in range(9)}
    with pytest.raises(
        UnsupportedFile, match=r"vit.pth: .*transformer.0.weight, .*torchvision, timm"
    ):
        detect(arrays, source="vit.pth")


def test_an_empty_file_is_of_no_dialect():
    with pytest.raises(UnsupportedFile, match="of no dialect that is known"):
        detect({}, source="x")


@pytest.mark.parametrize("shape", [(), (0,), (0, 0, 0, 0), (64, 64, 3), (1, 1, 1, 1)])
def test_hostile_shapes_under_known_names_raise_nothing_foreign(shape):
    arrays = file_of(ARCHITECTURES["resnet50"], "torchvision")
    for name in ("layer1.0.conv2.weight", "layer2.0.conv3.weight", "conv1.weight", "fc.weight"):
        hostile = {**arrays, name: np.zeros(shape, np.float32)}
        with contextlib.suppress(UnsupportedFile):  # or it is detected in spite of it
            detect(hostile, source="x")


def test_numbers_in_names_with_leading_zeros_do_not_confuse_it():
    arrays = file_of(ARCHITECTURES["resnet18"], "torchvision")
    arrays["layer01.0.conv1.weight"] = np.zeros((64, 64, 3, 3), np.float32)
    assert detect(arrays, source="x").arch == "resnet18"


@pytest.mark.parametrize("arch", ["resnetv2_50", "resnetv2_101d", "resnetv2_50t"])
def test_an_unnamed_v2_net_has_the_shortcuts_of_those_with_its_stem(arch):
    config = ARCHITECTURES[arch].replace(depths=(1, 2, 1, 1))
    found = detect(file_of(config, "timm_v2"), source="x")
    assert found.arch is None
    assert found.config.shortcut == config.shortcut
