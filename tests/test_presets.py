"""Every architecture: exact counts from its publishers, and a tree that is what the plan lists."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import pytest

from resnetjax.config import ResNetConfig
from resnetjax.errors import UnknownName
from resnetjax.measure import feature_info, leaves, parameter_count, statistics_count
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan
from resnetjax.presets import ALIASES, ARCHITECTURES, get, names
from tests.cut import cut

# Trained values and running statistics. Read from timm 1.0.31 and torchvision 0.28 for the nets
# that they have; from akamaster's README and pytorchcv for CIFAR; the others' totals are tested
# below.
COUNTS = {
    "resnet18": (11_689_512, 9_600),
    "resnet34": (21_797_672, 17_024),
    "resnet26": (15_995_176, 30_848),
    "resnet50": (25_557_032, 53_120),
    "resnet101": (44_549_160, 105_344),
    "resnet152": (60_192_808, 151_424),
    "resnet200": (64_673_832, 176_000),
    "resnext50_32x4d": (25_028_904, 68_224),
    "resnext101_32x4d": (44_177_704, 137_856),
    "resnext101_32x8d": (88_791_336, 202_880),
    "resnext101_32x16d": (194_026_792, 332_928),
    "resnext101_32x32d": (468_530_472, 593_024),
    "resnext101_64x4d": (83_455_272, 202_880),
    "wide_resnet50_2": (68_883_240, 68_224),
    "wide_resnet101_2": (126_886_696, 137_856),
    "resnet50_v1": (25_557_032, 53_120),
    "resnet101_v1": (44_549_160, 105_344),
    "resnet152_v1": (60_192_808, 151_424),
    "resnet10t": (5_435_488, 5_872),
    "resnet14t": (10_081_632, 19_440),
    "resnet18d": (11_708_744, 9_728),
    "resnet34d": (21_816_904, 17_152),
    "resnet26t": (16_011_872, 30_960),
    "resnet26d": (16_014_408, 30_976),
    "resnet50c": (25_576_264, 53_248),
    "resnet50d": (25_576_264, 53_248),
    "resnet50s": (25_680_808, 53_504),
    "resnet50t": (25_573_728, 53_232),
    "resnet50_gn": (25_557_032, 0),
    "resnet101c": (44_568_392, 105_472),
    "resnet101d": (44_568_392, 105_472),
    "resnet101s": (44_672_936, 105_728),
    "resnet152c": (60_212_040, 151_552),
    "resnet152d": (60_212_040, 151_552),
    "resnet152s": (60_316_584, 151_808),
    "resnet200d": (64_693_064, 176_128),
    "resnext50d_32x4d": (25_048_136, 68_352),
    "ecaresnet26t": (16_011_916, 30_960),
    "ecaresnet50t": (25_573_814, 53_232),
    "ecaresnet50d": (25_576_350, 53_248),
    "ecaresnet50d_pruned": (19_939_713, 42_688),
    "ecaresnet101d": (44_568_563, 105_472),
    "ecaresnet101d_pruned": (24_876_040, 57_522),
    "ecaresnet200d": (64_693_400, 176_128),
    "ecaresnet269d": (102_093_077, 252_928),
    "ecaresnetlight": (30_162_046, 62_336),
    "ecaresnext26t_32x4d": (15_406_220, 38_640),
    "ecaresnext50t_32x4d": (25_045_686, 68_336),
    "seresnet18": (11_779_624, 9_600),
    "seresnet34": (21_960_416, 17_024),
    "seresnet50": (28_088_024, 53_120),
    "seresnet50t": (28_104_720, 53_232),
    "seresnet101": (49_326_872, 105_344),
    "seresnet152": (66_821_848, 151_424),
    "seresnet152d": (66_841_080, 151_552),
    "seresnet200d": (71_855_096, 176_128),
    "seresnet269d": (113_672_760, 252_928),
    "seresnext26d_32x4d": (16_809_512, 38_656),
    "seresnext26t_32x4d": (16_806_976, 38_640),
    "seresnext50_32x4d": (27_559_896, 68_224),
    "seresnext101_32x4d": (48_955_416, 137_856),
    "seresnext101_32x8d": (93_569_048, 202_880),
    "seresnext101d_32x8d": (93_588_280, 203_008),
    "seresnext101_64x4d": (88_232_984, 202_880),
    "senet154": (115_088_984, 247_552),
    "resnetblur18": (11_689_512, 9_600),
    "resnetblur50": (25_557_032, 53_120),
    "resnetblur50d": (25_576_264, 53_248),
    "resnetblur101d": (44_568_392, 105_472),
    "resnetaa34d": (21_816_904, 17_152),
    "resnetaa50": (25_557_032, 53_120),
    "resnetaa50d": (25_576_264, 53_248),
    "resnetaa101d": (44_568_392, 105_472),
    "seresnetaa50d": (28_107_256, 53_248),
    "seresnextaa101d_32x8d": (93_588_280, 203_008),
    "seresnextaa201d_32x8d": (149_394_904, 356_864),
    "resnetrs50": (35_691_912, 53_376),
    "resnetrs101": (63_618_696, 105_600),
    "resnetrs152": (86_621_576, 151_680),
    "resnetrs200": (93_209_992, 176_256),
    "resnetrs270": (129_861_448, 243_072),
    "resnetrs350": (163_956_168, 312_192),
    "resnetrs420": (191_891_656, 370_560),
    "test_resnet": (469_688, 2_080),
    "resnetv2_18": (11_687_720, 7_808),
    "resnetv2_18d": (11_706_952, 7_936),
    "resnetv2_34": (21_795_880, 15_232),
    "resnetv2_34d": (21_815_112, 15_360),
    "resnetv2_50": (25_549_352, 45_440),
    "resnetv2_50d": (25_568_584, 45_568),
    "resnetv2_50t": (25_566_048, 45_552),
    "resnetv2_50d_gn": (25_568_584, 0),
    "resnetv2_101": (44_541_480, 97_664),
    "resnetv2_101d": (44_560_712, 97_792),
    "resnetv2_152": (60_185_128, 143_744),
    "resnetv2_152d": (60_204_360, 143_872),
    "resnetv2_50x1_bit": (25_549_352, 0),
    "resnetv2_50x3_bit": (217_319_080, 0),
    "resnetv2_101x1_bit": (44_541_480, 0),
    "resnetv2_101x3_bit": (387_934_888, 0),
    "resnetv2_152x2_bit": (236_335_208, 0),
    "resnetv2_152x4_bit": (936_533_224, 0),
    "keras_resnet50": (25_583_592, 53_120),
    "keras_resnet101": (44_601_832, 105_344),
    "keras_resnet152": (60_268_520, 151_424),
    # keras_applications 1.0.8: 25,097,128 and 44,315,560 with the moving statistics
    "keras_resnext50": (25_028_904, 68_224),
    "keras_resnext101": (44_177_704, 137_856),
    "keras_resnet50v2": (25_568_360, 45_440),
    "keras_resnet101v2": (44_577_896, 97_664),
    "keras_resnet152v2": (60_236_904, 143_744),
    "kerascv_resnet18": (11_689_512, 9_600),
    "kerascv_resnet34": (21_797_672, 17_024),
    "kerascv_resnet50": (25_557_032, 53_120),
    "kerascv_resnet101": (44_549_160, 105_344),
    "kerascv_resnet152": (60_192_808, 151_424),
    "kerascv_resnet18v2": (11_688_680, 7_808),
    "kerascv_resnet34v2": (21_796_840, 15_232),
    "kerascv_resnet50v2": (25_568_360, 45_440),
    "kerascv_resnet101v2": (44_577_896, 97_664),
    "kerascv_resnet152v2": (60_236_904, 143_744),
    # keras_hub 0.32, resnet_presets.py: 11,722,824, 21,838,408 and 74,933,064 with the statistics
    "kerashub_resnet18_vd": (11_712_968, 9_856),
    "kerashub_resnet34_vd": (21_821_128, 17_280),
    "kerashub_resnet200_vd": (74_738_504, 194_560),
    "flax_resnet18": (11_689_512, 9_600),
    "flax_resnet34": (21_797_672, 17_024),
    "flax_resnet50": (25_557_032, 53_120),
    "flax_resnet101": (44_549_160, 105_344),
    "flax_resnet152": (60_192_808, 151_424),
    "flax_resnet200": (64_673_832, 176_000),
    "slim_resnet_v1_50": (25_557_032, 53_120),
    "slim_resnet_v1_101": (44_549_160, 105_344),
    "slim_resnet_v1_152": (60_192_808, 151_424),
    "slim_resnet_v1_200": (64_673_832, 176_000),
    "slim_resnet_v2_50": (25_570_409, 45_440),
    "slim_resnet_v2_101": (44_579_945, 97_664),
    "slim_resnet_v2_152": (60_238_953, 143_744),
    "slim_resnet_v2_200": (64_728_169, 168_320),
    "cifar_resnet20": (269_722, 1_376),
    "cifar_resnet32": (464_154, 2_272),
    "cifar_resnet44": (658_586, 3_168),
    "cifar_resnet56": (853_018, 4_064),
    "cifar_resnet110": (1_727_962, 8_096),
    "cifar_resnet164": (1_661_274, 24_224),
    "cifar_resnet1001": (10_285_722, 149_216),
    "cifar_resnet1202": (19_421_274, 89_632),
    "cifar_resnet20b": (272_474, 1_568),
    "cifar_resnet32b": (466_906, 2_464),
    "cifar_resnet44b": (661_338, 3_360),
    "cifar_resnet56b": (855_770, 4_256),
    "cifar_resnet110b": (1_730_714, 8_288),
    "cifar_resnet164b": (1_704_154, 25_120),
    "cifar_resnet1001b": (10_328_602, 150_112),
    "cifar_resnet1202b": (19_424_026, 89_824),
    "cifar_resnetv2_20": (272_282, 1_376),
    "cifar_resnetv2_32": (466_714, 2_272),
    "cifar_resnetv2_44": (661_146, 3_168),
    "cifar_resnetv2_56": (855_578, 4_064),
    "cifar_resnetv2_110": (1_730_522, 8_096),
    "cifar_resnetv2_164": (1_703_258, 24_224),
    "cifar_resnetv2_1001": (10_327_706, 149_216),
    "cifar_resnetv2_1202": (19_423_834, 89_632),
    "cifar_wrn28_10": (36_479_194, 17_952),
    "cifar_wrn40_4": (8_949_210, 10_784),
    "mlperf_tiny_resnet8": (78_186, 480),
}

# Values with their statistics and without the head, as Keras and KerasCV count.
HEADLESS_TOTALS = {
    "keras_resnet50": 23_587_712,
    "keras_resnet101": 42_658_176,
    "keras_resnet152": 58_370_944,
    "keras_resnet50v2": 23_564_800,
    "keras_resnet101v2": 42_626_560,
    "keras_resnet152v2": 58_331_648,
    "kerascv_resnet18": 11_186_112,
    "kerascv_resnet34": 21_301_696,
    "kerascv_resnet50": 23_561_152,
    "kerascv_resnet101": 42_605_504,
    "kerascv_resnet152": 58_295_232,
    "kerascv_resnet18v2": 11_183_488,
    "kerascv_resnet34v2": 21_299_072,
    "kerascv_resnet50v2": 23_564_800,
    "kerascv_resnet101v2": 42_626_560,
    "kerascv_resnet152v2": 58_331_648,
}

# Values with their statistics and the head, as keras.applications' and MLPerf Tiny's summaries say.
TOTALS = {
    "keras_resnet50": 25_636_712,
    "keras_resnet101": 44_707_176,
    "keras_resnet152": 60_419_944,
    "keras_resnet50v2": 25_613_800,
    "keras_resnet101v2": 44_675_560,
    "keras_resnet152v2": 60_380_648,
    "mlperf_tiny_resnet8": 78_666,
}

# Deeper nets take seconds each to trace, and are checked below with two blocks a stage.
MOST_BLOCKS = 8
WHOLE = [
    pytest.param(name, marks=[pytest.mark.slow] if sum(config.depths) > MOST_BLOCKS else [])
    for name, config in ARCHITECTURES.items()
]


def shortened(config: ResNetConfig) -> ResNetConfig:
    """The same with two blocks a stage at most."""
    return cut(config, [min(depth, 2) for depth in config.depths])


# Each net once: many differ in depth alone.
SHORTENED = {shortened(config): name for name, config in reversed(ARCHITECTURES.items())}


def test_every_architecture_has_a_pinned_count():
    assert list(COUNTS) == list(ARCHITECTURES)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_exactly_the_published_ones(name):
    planned = plan(ARCHITECTURES[name])
    assert (parameter_count(planned), statistics_count(planned)) == COUNTS[name]


@pytest.mark.parametrize("name", HEADLESS_TOTALS)
def test_headless_counts_with_statistics_are_those_of_keras(name):
    planned = plan(ARCHITECTURES[name].replace(num_classes=0))
    assert parameter_count(planned) + statistics_count(planned) == HEADLESS_TOTALS[name]


@pytest.mark.parametrize("name", TOTALS)
def test_counts_with_statistics_and_head_are_those_of_keras(name):
    planned = plan(ARCHITECTURES[name])
    assert parameter_count(planned) + statistics_count(planned) == TOTALS[name]


def assert_arrays_are_those_listed(config: ResNetConfig) -> None:
    images = jax.ShapeDtypeStruct((2, 32, 32, config.in_channels), jnp.float32)
    model = ResNet(config)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((2, config.num_classes), jnp.float32)
    found = {
        path: (collection, array.shape, str(array.dtype))
        for collection, tree in variables.items()
        for path, array in flax.traverse_util.flatten_dict(tree, sep="/").items()
    }
    listed = leaves(plan(config)).items()
    assert found == {path: (leaf.collection, leaf.shape, "float32") for path, leaf in listed}


@pytest.mark.parametrize("name", WHOLE)
def test_the_module_has_exactly_the_arrays_that_the_plan_lists(name):
    assert_arrays_are_those_listed(ARCHITECTURES[name])


@pytest.mark.parametrize(
    "config",
    [config for config in SHORTENED if config not in ARCHITECTURES.values()],
    ids=SHORTENED.get,
)
def test_a_deep_net_cut_to_two_blocks_a_stage_has_the_arrays_that_its_plan_lists(config):
    assert_arrays_are_those_listed(config)


def abstract_variables(config: ResNetConfig) -> dict:
    """Shapes alone, as the tests above have found them to be."""
    trees = {}
    for path, leaf in leaves(plan(config)).items():
        tree = trees.setdefault(leaf.collection, {})
        tree[tuple(path.split("/"))] = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    return {name: flax.traverse_util.unflatten_dict(tree) for name, tree in trees.items()}


@pytest.mark.parametrize("size", [(64, 96), (75, 61)], ids=["even", "odd"])
@pytest.mark.parametrize("config", SHORTENED, ids=SHORTENED.get)
def test_features_have_the_channels_and_rounded_up_strides_of_feature_info(config, size):
    infos = feature_info(plan(config))
    images = jax.ShapeDtypeStruct((2, *size, config.in_channels), jnp.float32)
    wanted = tuple(info.name for info in infos)
    run = functools.partial(ResNet(config).apply, stages=wanted, method="features")
    found = jax.eval_shape(run, abstract_variables(config), images)
    expected, (height, width), before = {}, size, 1
    for info in infos:
        # An average in the stem drops an odd row or column, as torch's AvgPool2d does.
        floor = config.antialias == "average" and info.name == "stem"
        for _ in range((info.stride // before).bit_length() - 1):
            height, width = (edge // 2 if floor else -(-edge // 2) for edge in (height, width))
        before = info.stride
        expected[info.name] = (2, height, width, info.channels)
    assert {name: array.shape for name, array in found.items()} == expected


# Names.


def test_names_filters_by_a_shell_pattern_in_the_order_of_the_table():
    assert names("resnet*18") == ("resnet18", "resnetblur18", "resnetv2_18")
    assert names("wide_resnet*_2") == ("wide_resnet50_2", "wide_resnet101_2")
    assert names() == tuple(ARCHITECTURES)


def test_a_pattern_matches_by_case_and_nothing_is_no_error():
    assert names("RESNET50") == ()


def test_a_pattern_may_have_sets_and_single_characters():
    assert names("cifar_resnet[35]?") == ("cifar_resnet32", "cifar_resnet56")


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_gives_the_architecture_it_stands_for(alias):
    assert get(alias) is ARCHITECTURES[ALIASES[alias]]
    assert alias not in ARCHITECTURES


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(
        UnknownName, match=r"no architecture is called 'resnet5O'.* did you mean .*resnet50"
    ):
        get("resnet5O")


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(UnknownName, match=r"'vgg16' \(names\(\) lists all\)"):
        get("vgg16")


# What the plain names mean.


def test_plain_names_are_v1_5_and_the_papers_net_says_v1():
    assert get("resnet50").stride_on == "spatial"
    assert get("resnet50_v1") == get("resnet50").replace(stride_on="reduce")


def test_f05_keras_and_kerascv_v2_have_equal_arrays_and_are_different_functions():
    ours, theirs = get("keras_resnet50v2"), get("kerascv_resnet50v2")
    assert leaves(plan(ours)) == leaves(plan(theirs))
    assert ours != theirs
    assert plan(ours).stages[0].stride != plan(theirs).stages[0].stride


def test_f07_slim_v1_has_a_thousand_classes_and_v2_one_more_for_the_background():
    assert {get(name).num_classes for name in names("slim_resnet_v1_*")} == {1000}
    assert {get(name).num_classes for name in names("slim_resnet_v2_*")} == {1001}


@pytest.mark.parametrize(
    ("name", "layers"),
    [("cifar_resnet20", 20), ("cifar_resnetv2_110", 110), ("cifar_resnet1202b", 1202),
     ("cifar_resnetv2_164", 164), ("cifar_resnet1001", 1001)],
)  # fmt: skip
def test_a_cifar_net_has_as_many_layers_as_its_name_says(name, layers):
    blocks = [block for stage in plan(get(name)).stages for block in stage.blocks]
    assert 2 + sum(len(block.convs) for block in blocks) == layers
