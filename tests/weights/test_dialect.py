"""The engine: names and layouts both ways, and one message for each kind of fault."""

import functools

import ml_dtypes
import numpy as np
import pytest

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError, UnknownName, WeightsMismatch
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES, names
from resnetjax.weights.arrays import load_arrays, save_arrays, strip_root
from resnetjax.weights.dialect import Depthwise, base_config, entries, inexpressible
from resnetjax.weights.dialects import DIALECTS, get
from tests.cut import cut

EXPRESSED = [
    (dialect.name, arch)
    for dialect in DIALECTS.values()
    for arch, config in ARCHITECTURES.items()
    if any(arch in names(family) for family in dialect.families)
    and not inexpressible(dialect, config)
]
LARGEST = (
    3_000_000  # values that are worth copying; larger nets differ from these in depth and width
)


def numbered(config: ResNetConfig, *, whole: bool = True) -> dict[str, np.ndarray]:
    """Arrays of which no two have an element in common, or one element repeated over each shape."""
    found, start = {}, 0
    for number, (path, leaf) in enumerate(leaves(plan(config)).items()):
        if whole:
            found[path] = np.arange(start, start + leaf.size, dtype=np.float32).reshape(leaf.shape)
            start += leaf.size
        else:
            found[path] = np.broadcast_to(np.float32(number), leaf.shape)
    return found


def shortened(config: ResNetConfig) -> ResNetConfig:
    """Two blocks a stage and narrow, with the same kinds of arrays."""
    return cut(config, [min(depth, 2) for depth in config.depths], num_classes=5)


@functools.cache
def narrow(**fields) -> ResNetConfig:
    return ResNetConfig(
        depths=(2, 1), widths=(16, 32), strides=(1, 2), dilations=(1, 1), stem_width=16,
        **{"num_classes": 5, **fields},
    )  # fmt: skip


def test_every_dialect_expresses_architectures():
    counted = {name: sum(dialect == name for dialect, _ in EXPRESSED) for name in DIALECTS}
    assert counted["resnetjax"] == len(ARCHITECTURES)
    # torchvision's ten, and as many that differ from them in depth, stride or width
    assert counted["torchvision"] >= 13
    assert counted["timm"] >= 70
    assert counted["timm_v2"] == len(names("resnetv2_*"))
    assert counted["transformers"] >= 8
    assert counted["akamaster"] == 12  # six depths of basic blocks with options A and B


@pytest.mark.parametrize(("dialect", "arch"), EXPRESSED)
def test_every_array_has_exactly_one_foreign_name(dialect, arch):
    named = entries(get(dialect), ARCHITECTURES[arch])
    assert list(named) == list(leaves(plan(ARCHITECTURES[arch])))
    assert len({entry.name for entry in named.values()}) == len(named)


SMALL = [
    (dialect, arch)
    for dialect, arch in EXPRESSED
    if sum(leaf.size for leaf in leaves(plan(shortened(ARCHITECTURES[arch]))).values()) <= LARGEST
]


@pytest.mark.parametrize(("dialect", "arch"), SMALL)
def test_loading_what_was_saved_is_the_identity_to_the_bit(dialect, arch):
    config = shortened(ARCHITECTURES[arch])
    ours = numbered(config)
    saved = save_arrays(get(dialect), ours, config)
    loaded, skipped = load_arrays(get(dialect), saved, config, source="x")
    assert skipped == ()
    assert list(loaded) == list(ours)
    for path, array in loaded.items():
        np.testing.assert_array_equal(array, ours[path], err_msg=path)


@pytest.mark.parametrize(("dialect", "arch"), sorted(set(EXPRESSED) - set(SMALL)))
def test_each_layout_of_a_large_net_is_undone_on_loading(dialect, arch):
    config = shortened(ARCHITECTURES[arch])
    named = entries(get(dialect), config)
    for path, ours in numbered(config, whole=False).items():
        # one value repeated: the foreign array is a view, as saving would make it but for the copy
        layout = named[path].layout
        theirs = ours
        if isinstance(layout, Depthwise):
            theirs = layout.save(ours)
        elif layout is not None:
            theirs = ours.transpose(np.argsort(layout.permutation))
            theirs = np.expand_dims(theirs, layout.singletons)
        loaded = named[path].load(theirs)
        assert (loaded.shape, loaded.flat[0]) == (ours.shape, ours.flat[0]), path


# Names as the frameworks write them, from their own files.

KNOWN_NAMES = [
    ("torchvision", "resnet50", "stem/conv1/kernel", "conv1.weight", (64, 3, 7, 7)),
    ("torchvision", "resnet50", "stem/norm1/var", "bn1.running_var", (64,)),
    (
        "torchvision",
        "resnet50",
        "stage3_block1/conv2/kernel",
        "layer3.0.conv2.weight",
        (256, 256, 3, 3),
    ),
    (
        "torchvision",
        "resnet50",
        "stage1_block1/shortcut/conv/kernel",
        "layer1.0.downsample.0.weight",
        (256, 64, 1, 1),
    ),
    (
        "torchvision",
        "resnet50",
        "stage1_block1/shortcut/norm/mean",
        "layer1.0.downsample.1.running_mean",
        (256,),
    ),
    (
        "torchvision",
        "resnext50_32x4d",
        "stage1_block2/conv2/kernel",
        "layer1.1.conv2.weight",
        (128, 4, 3, 3),
    ),
    ("torchvision", "resnet50", "head/kernel", "fc.weight", (1000, 2048)),
    ("timm", "resnet50d", "stem/conv1/kernel", "conv1.0.weight", (32, 3, 3, 3)),
    ("timm", "resnet50d", "stem/norm1/scale", "conv1.1.weight", (32,)),
    ("timm", "resnet50d", "stem/conv3/kernel", "conv1.6.weight", (64, 32, 3, 3)),
    ("timm", "resnet50d", "stem/norm3/bias", "bn1.bias", (64,)),
    (
        "timm",
        "resnet50d",
        "stage2_block1/shortcut/conv/kernel",
        "layer2.0.downsample.1.weight",
        (512, 256, 1, 1),
    ),
    (
        "timm",
        "resnet50d",
        "stage2_block1/shortcut/norm/scale",
        "layer2.0.downsample.2.weight",
        (512,),
    ),
    (
        "timm",
        "seresnet50",
        "stage1_block1/attention/reduce/kernel",
        "layer1.0.se.fc1.weight",
        (16, 256, 1, 1),
    ),
    ("timm", "seresnet50", "stage1_block1/attention/expand/bias", "layer1.0.se.fc2.bias", (256,)),
    (
        "timm",
        "ecaresnet50t",
        "stage4_block1/attention/conv/kernel",
        "layer4.0.se.conv.weight",
        (1, 1, 7),
    ),
    ("timm", "resnetrs50", "stem/pool/conv/kernel", "maxpool.0.weight", (64, 64, 3, 3)),
    ("timm", "resnetrs50", "stem/pool/norm/scale", "maxpool.1.weight", (64,)),
    ("timm_v2", "resnetv2_50", "stem/conv1/kernel", "stem.conv.weight", (64, 3, 7, 7)),
    (
        "timm_v2",
        "resnetv2_50",
        "stage1_block2/norm1/scale",
        "stages.0.blocks.1.norm1.weight",
        (256,),
    ),
    (
        "timm_v2",
        "resnetv2_50",
        "stage1_block1/shortcut/conv/kernel",
        "stages.0.blocks.0.downsample.conv.weight",
        (256, 64, 1, 1),
    ),
    ("timm_v2", "resnetv2_50", "norm/mean", "norm.running_mean", (2048,)),
    ("timm_v2", "resnetv2_50", "head/kernel", "head.fc.weight", (1000, 2048, 1, 1)),
    ("timm_v2", "resnetv2_50", "head/bias", "head.fc.bias", (1000,)),
    ("timm_v2", "resnetv2_50d", "stem/conv2/kernel", "stem.conv2.weight", (32, 32, 3, 3)),
    (
        "transformers",
        "resnet50",
        "stem/conv1/kernel",
        "resnet.embedder.embedder.convolution.weight",
        (64, 3, 7, 7),
    ),
    (
        "transformers",
        "resnet50",
        "stage2_block1/conv3/kernel",
        "resnet.encoder.stages.1.layers.0.layer.2.convolution.weight",
        (512, 128, 1, 1),
    ),
    (
        "transformers",
        "resnet50",
        "stage2_block1/norm1/mean",
        "resnet.encoder.stages.1.layers.0.layer.0.normalization.running_mean",
        (128,),
    ),
    (
        "transformers",
        "resnet50",
        "stage1_block1/shortcut/norm/bias",
        "resnet.encoder.stages.0.layers.0.shortcut.normalization.bias",
        (256,),
    ),
    ("transformers", "resnet50", "head/kernel", "classifier.1.weight", (1000, 2048)),
    ("akamaster", "cifar_resnet20", "stem/norm1/scale", "bn1.weight", (16,)),
    ("akamaster", "cifar_resnet20", "head/kernel", "linear.weight", (10, 64)),
    (
        "akamaster",
        "cifar_resnet20b",
        "stage2_block1/shortcut/conv/kernel",
        "layer2.0.shortcut.0.weight",
        (32, 16, 1, 1),
    ),
    # jax-resnet 0.0.4, as its variables are after init; flaxmodels, as resnet.py opens its files
    (
        "jax_resnet",
        "resnet50",
        "stem/conv1/kernel",
        "layers_0/ConvBlock_0/Conv_0/kernel",
        (7, 7, 3, 64),
    ),
    ("jax_resnet", "resnet50d", "stem/norm3/mean", "layers_0/ConvBlock_2/BatchNorm_0/mean", (64,)),
    (
        "jax_resnet",
        "resnext50_32x4d",
        "stage2_block1/conv2/kernel",
        "layers_5/ConvBlock_1/Conv_0/kernel",
        (3, 3, 8, 256),
    ),
    (
        "jax_resnet",
        "resnet18",
        "stage2_block1/shortcut/conv/kernel",
        "layers_4/ResNetSkipConnection_0/ConvBlock_0/Conv_0/kernel",
        (1, 1, 64, 128),
    ),
    (
        "jax_resnet",
        "resnet50d",
        "stage1_block1/shortcut/norm/scale",
        "layers_2/ResNetDSkipConnection_0/ConvBlock_0/BatchNorm_0/scale",
        (256,),
    ),
    ("jax_resnet", "resnet50", "head/kernel", "layers_19/kernel", (2048, 1000)),
    ("flaxmodels", "resnet18", "stem/norm1/scale", "bn1/scale", (64,)),
    (
        "flaxmodels",
        "resnet18",
        "stage2_block2/conv1/kernel",
        "layer2/block1/conv1/weight",
        (3, 3, 128, 128),
    ),
    (
        "flaxmodels",
        "resnet50",
        "stage1_block1/shortcut/conv/kernel",
        "layer1/block0/downsample/conv/weight",
        (1, 1, 64, 256),
    ),
    (
        "flaxmodels",
        "resnet50",
        "stage1_block1/shortcut/norm/var",
        "layer1/block0/downsample/bn/var",
        (256,),
    ),
    ("flaxmodels", "resnet50", "head/kernel", "fc/weight", (2048, 1000)),
    ("flaxmodels_tree", "resnet18", "stem/norm1/var", "BatchNorm_0/var", (64,)),
    (
        "flaxmodels_tree",
        "resnet18",
        "stage2_block1/shortcut/conv/kernel",
        "BasicBlock_2/Conv_2/kernel",
        (1, 1, 64, 128),
    ),
    (
        "flaxmodels_tree",
        "resnet50",
        "stage2_block1/shortcut/norm/mean",
        "Bottleneck_3/BatchNorm_3/mean",
        (512,),
    ),
    (
        "resnetjax",
        "resnet50",
        "stage3_block1/conv2/kernel",
        "stage3_block1/conv2/kernel",
        (3, 3, 256, 256),
    ),
    ("resnetjax", "resnet50", "head/kernel", "head/kernel", (2048, 1000)),
]


@pytest.mark.parametrize(("dialect", "arch", "path", "name", "shape"), KNOWN_NAMES)
def test_f08_an_array_has_the_name_and_layout_of_the_frameworks_files(
    dialect, arch, path, name, shape
):
    config = ARCHITECTURES[arch]
    theirs = save_arrays(get(dialect), numbered(config, whole=False), config)
    ours = list(leaves(plan(config))).index(path)
    assert theirs[name].shape == shape
    assert theirs[name].flat[0] == ours


def test_f08_a_grouped_kernel_keeps_its_groups_apart():
    # OIHW to HWIO: output 3 of 4 groups of 4 reads inputs 12 to 15, whatever the layout calls them.
    theirs = {"w": np.arange(16 * 4 * 9, dtype=np.float32).reshape(16, 4, 3, 3)}["w"]
    entry = entries(get("torchvision"), ARCHITECTURES["resnext50_32x4d"])[
        "stage1_block1/conv2/kernel"
    ]
    ours = entry.load(theirs)
    assert ours.shape == (3, 3, 4, 16)
    assert ours[2, 1, 3, 13] == theirs[13, 3, 2, 1]


def test_f10_a_depthwise_kernel_and_its_sums_are_one_grouped_kernel():
    # keras_applications adds up products: out[g, m] = sum over a of x[g, a] * kernel[g, a, m]
    groups, each = 3, 2
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=(3, 3, groups * each, each)).astype(np.float32)
    window = rng.normal(size=(3, 3, groups * each)).astype(np.float32)
    products = np.einsum("hwi,hwim->im", window, theirs).reshape(groups, each, each)
    ours = Depthwise().load(theirs)
    assert ours is not None
    for out in range(groups * each):
        group = slice(out // each * each, (out // each + 1) * each)
        found = (window[:, :, group] * ours[..., out]).sum()
        np.testing.assert_allclose(found, products.sum(1).ravel()[out], rtol=1e-5)
    assert Depthwise().save(ours).tobytes() == theirs.tobytes()
    assert Depthwise().load(theirs[:, :, :5]) is None


def test_f08_a_head_kept_as_a_1x1_convolution_becomes_a_matrix():
    theirs = np.arange(15, dtype=np.float32).reshape(5, 3, 1, 1)
    entry = entries(get("timm_v2"), ARCHITECTURES["resnetv2_50"])["head/kernel"]
    assert entry.load(theirs)[2, 4] == theirs[4, 2, 0, 0]
    assert entry.load(theirs.reshape(5, 3)) is None
    assert entry.load(np.zeros((5, 3, 3, 3), np.float32)) is None


def test_saved_arrays_are_contiguous_as_files_want_them():
    config = narrow()
    for name, array in save_arrays(get("torchvision"), numbered(config), config).items():
        assert array.flags.c_contiguous, name


# Counters and roots.


def test_f09_a_counter_of_zero_goes_beside_each_batch_norm_and_is_no_weight():
    config = narrow()
    saved = save_arrays(get("torchvision"), numbered(config), config)
    counters = {
        name: array for name, array in saved.items() if name.endswith("num_batches_tracked")
    }
    norms = {name for name in saved if name.endswith("running_var")}
    assert {name.replace("num_batches_tracked", "running_var") for name in counters} == norms
    assert all((a.shape, a.dtype, a.item()) == ((), np.int64, 0) for a in counters.values())
    loaded, skipped = load_arrays(get("torchvision"), saved, config, source="x")
    assert skipped == ()
    assert loaded.keys() == leaves(plan(config)).keys()


def test_a_group_norm_has_no_counter():
    config = narrow(norm="group", norm_groups=8)
    saved = save_arrays(get("timm"), numbered(config), config)
    assert not any("num_batches_tracked" in name for name in saved)


def test_our_own_files_have_no_counter():
    assert set(save_arrays(get("resnetjax"), numbered(narrow()), narrow())) == set(
        leaves(plan(narrow()))
    )


def test_transformers_names_carry_their_root_with_a_head_and_none_without():
    # ResNetForImageClassification against ResNetModel
    whole, bare = narrow(), narrow(num_classes=0)
    with_head = save_arrays(get("transformers"), numbered(whole), whole)
    assert {name.partition(".")[0] for name in with_head} == {"resnet", "classifier"}
    headless = save_arrays(get("transformers"), numbered(bare), bare)
    assert {name.partition(".")[0] for name in headless} == {"embedder", "encoder"}


def test_transformers_names_are_read_with_and_without_their_root():
    config = narrow()
    saved = save_arrays(get("transformers"), numbered(config), config)
    rootless = {name.removeprefix("resnet."): array for name, array in saved.items()}
    for arrays in (saved, rootless):
        loaded, _ = load_arrays(get("transformers"), arrays, config, source="x")
        assert len(loaded) == len(leaves(plan(config)))
    assert (
        strip_root(get("transformers"), saved).keys()
        == strip_root(get("transformers"), rootless).keys()
    )


# Faults.


def torch_arrays(config: ResNetConfig) -> dict[str, np.ndarray]:
    return save_arrays(get("torchvision"), numbered(config), config)


def message_of(arrays, config: ResNetConfig, **arguments) -> list[str]:
    with pytest.raises(WeightsMismatch) as caught:
        load_arrays(get("torchvision"), arrays, config, source="some.pth", **arguments)
    return str(caught.value).splitlines()


def test_a_missing_array_is_named_both_ways_with_its_shape():
    arrays = torch_arrays(narrow())
    del arrays["layer2.0.downsample.0.weight"]
    first, problem, hint = message_of(arrays, narrow())
    assert first == "some.pth does not fit (dialect torchvision):"
    assert problem.split(maxsplit=1) == [
        "missing",
        "layer2.0.downsample.0.weight -> stage2_block1/shortcut/conv/kernel (1, 1, 64, 128)",
    ]
    assert "num_classes=" in hint
    assert "strict=False" in hint


def test_an_unexpected_array_is_named_with_its_shape():
    arrays = {**torch_arrays(narrow()), "attention.weight": np.zeros((2, 3), np.float32)}
    assert message_of(arrays, narrow())[1].split(maxsplit=1) == [
        "unexpected",
        "attention.weight (2, 3)",
    ]


@pytest.mark.parametrize(
    ("name", "shape", "path", "expected"),
    [
        ("layer1.0.conv1.weight", (16, 17, 1, 1), "stage1_block1/conv1/kernel", "(1, 1, 16, 16)"),
        ("layer1.0.conv1.weight", (16, 16), "stage1_block1/conv1/kernel", "(1, 1, 16, 16)"),
        ("fc.weight", (128, 5), "head/kernel", "(128, 5)"),
        ("bn1.weight", (16, 1), "stem/norm1/scale", "(16,)"),
        ("bn1.running_mean", (), "stem/norm1/mean", "(16,)"),
    ],
)
def test_a_misshapen_array_is_shown_as_theirs_and_as_ours(name, shape, path, expected):
    arrays = {**torch_arrays(narrow()), name: np.zeros(shape, np.float32)}
    assert message_of(arrays, narrow())[1].split(maxsplit=1) == [
        "shape",
        f"{name} {shape} -> {path} {expected}",
    ]


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool, np.complex64])
def test_an_array_that_is_not_of_real_numbers_is_refused_by_its_dtype(dtype):
    arrays = torch_arrays(narrow())
    arrays["fc.bias"] = arrays["fc.bias"].astype(dtype)
    assert message_of(arrays, narrow())[1].split(maxsplit=1) == [
        "dtype",
        f"fc.bias {np.dtype(dtype)} -> head/bias float32",
    ]


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_any_width_of_real_numbers_is_taken(dtype):
    arrays = torch_arrays(narrow())
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    loaded, skipped = load_arrays(
        get("torchvision"), {n: a.astype(kind) for n, a in arrays.items()}, narrow(), source="x"
    )
    assert skipped == ()
    assert {array.dtype for array in loaded.values()} == {kind}


def test_a_renamed_array_is_both_missing_and_unexpected():
    arrays = torch_arrays(narrow())
    arrays["classifier.bias"] = arrays.pop("fc.bias")
    problems = [line.split()[:2] for line in message_of(arrays, narrow())[1:-1]]
    assert problems == [["missing", "fc.bias"], ["unexpected", "classifier.bias"]]


def test_all_faults_are_reported_at_once():
    arrays = torch_arrays(narrow())
    del arrays["fc.bias"], arrays["bn1.weight"]
    arrays["conv1.weight"] = np.zeros((16, 3, 3, 3), np.float32)
    arrays["bn1.running_var"] = np.zeros(16, np.int64)
    arrays |= {"extra.a": np.zeros(1, np.float32), "extra.b": np.zeros(2, np.float32)}
    problems = sorted(tuple(line.split()[:2]) for line in message_of(arrays, narrow())[1:-1])
    assert problems == [
        ("dtype", "bn1.running_var"),
        ("missing", "bn1.weight"),
        ("missing", "fc.bias"),
        ("shape", "conv1.weight"),
        ("unexpected", "extra.a"),
        ("unexpected", "extra.b"),
    ]


def test_weights_of_another_depth_do_not_load():
    deep = narrow().replace(depths=(3, 1))
    problems = {line.split()[0] for line in message_of(torch_arrays(deep), narrow())[1:-1]}
    assert problems == {"unexpected"}
    problems = {line.split()[0] for line in message_of(torch_arrays(narrow()), deep)[1:-1]}
    assert problems == {"missing"}


def test_not_strict_loads_what_fits_and_lists_what_it_skipped():
    arrays = torch_arrays(narrow())
    del arrays["fc.bias"]
    arrays["extra"] = np.zeros(1, np.float32)
    loaded, skipped = load_arrays(get("torchvision"), arrays, narrow(), source="x", strict=False)
    assert set(leaves(plan(narrow()))) - set(loaded) == {"head/bias"}
    assert [line.split()[:2] for line in skipped] == [
        ["missing", "fc.bias"],
        ["unexpected", "extra"],
    ]


@pytest.mark.parametrize("present", [True, False])
def test_a_new_head_is_neither_looked_for_nor_unexpected(present):
    arrays = torch_arrays(narrow())
    if not present:
        del arrays["fc.weight"], arrays["fc.bias"]
    loaded, skipped = load_arrays(get("torchvision"), arrays, narrow(), source="x", new_head=True)
    assert skipped == ()
    assert not any(path.startswith("head") for path in loaded)


def test_f04_a_bias_that_the_net_has_no_place_for_is_unexpected():
    biased = narrow(conv_bias="all")
    arrays = torch_arrays(biased)
    problems = message_of(arrays, narrow())[1:-1]
    assert {line.split()[0] for line in problems} == {"unexpected"}
    assert any("layer1.0.conv1.bias" in line for line in problems)


# What a system can be.


@pytest.mark.parametrize(
    ("dialect", "fields", "field"),
    [
        ("torchvision", {"stem": "deep"}, "stem"),
        ("torchvision", {"padding": "same"}, "padding"),
        ("torchvision", {"norm_eps": 1.001e-5}, "norm_eps"),
        ("torchvision", {"stride_on": "reduce"}, "stride_on"),
        ("torchvision", {"conv_bias": "all"}, "conv_bias"),
        ("timm", {"stride_block": "last"}, "stride_block"),
        ("timm", {"weight_standardization_eps": 1e-8}, "weight_standardization_eps"),
        ("transformers", {"groups": 2}, "groups"),
        ("transformers", {"output_stride": 8}, "output_stride"),
        ("akamaster", {"block": "bottleneck"}, "block"),
    ],
)
def test_what_a_system_lacks_is_named_with_what_it_has(dialect, fields, field):
    config = base_config(get(dialect), (1, 1, 1, 1), (64, 128, 256, 512)).replace(**fields)
    (phrase,) = inexpressible(get(dialect), config)
    assert phrase.startswith(f"{field}={fields[field]!r} ({dialect} has ")


@pytest.mark.parametrize(
    "fields",
    [{"norm_decay": 0.5}, {"drop_path_rate": 0.1}, {"dropout": 0.1}, {"zero_init_residual": True},
     {"num_classes": 0}, {"in_channels": 1}, {"block_dropout": 0.1}],
)  # fmt: skip
def test_what_matters_in_training_only_or_is_a_size_is_free(fields):
    for dialect in DIALECTS.values():
        config = base_config(dialect, (1, 1), (32, 64)).replace(**fields)
        assert inexpressible(dialect, config) == [], dialect.name


def test_f12_transformers_inner_activation_is_always_relu():
    config = base_config(get("transformers"), (1, 1, 1, 1), (64, 128, 256, 512))
    assert inexpressible(get("transformers"), config.replace(activation="gelu")) == []
    assert inexpressible(get("transformers"), config.replace(inner_activation=None)) == []
    all_gelu = config.replace(activation="gelu", inner_activation=None)
    (phrase,) = inexpressible(get("transformers"), all_gelu)
    assert phrase.startswith("inner_activation=None")


def test_an_array_that_a_dialect_cannot_name_is_listed():
    config = narrow(attention="se")
    with pytest.raises(
        ConfigError, match=r"dialect torchvision has no name for .*attention/reduce/kernel"
    ):
        entries(get("torchvision"), config)


def test_a_misspelt_dialect_is_answered_with_the_nearest_and_all():
    with pytest.raises(
        UnknownName, match=r"'torchvison': did you mean torchvision.*\(there are .*timm_v2"
    ):
        get("torchvison")
