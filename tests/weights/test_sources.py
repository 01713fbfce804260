"""The table of published weights: well-formed, complete, and what its publishers say."""

import re
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatchcase

import pytest

from resnetjax import presets
from resnetjax.config import CAFFE_MEAN_BGR, HALF_MEAN, IMAGENET_MEAN
from resnetjax.errors import UnknownName
from resnetjax.weights import dialects
from resnetjax.weights.sources import (
    ACCURACY_SOURCES,
    PUBLISHERS,
    TABLE,
    WEIGHTS,
    PublishedWeights,
    find,
    tags,
)

ALL = list(WEIGHTS.values())
ADDRESSES = (
    r"https://[\w.-]+/[\w./%-]+(\?[\w=&-]+)?",
    r"hf://[\w.-]+/[\w.-]+(/[\w./-]+)?",
    r"kaggle://[\w-]+/[\w-]+/\w+/[\w-]+/\d+",
)
DIGITS = {"sha256": (8, 64), "md5": (32,)}  # of a SHA-256 the first eight may be all that is known
COUNTS = {
    "torchvision": 17,
    "timm": 156,
    "transformers": 6,
    "keras": 12,
    "keras_2017": 2,
    "kerascv": 3,
    "kerashub": 16,
    "slim": 6,
    "tfhub": 6,
    "bit": 22,
    "flax": 1,
    "akamaster": 6,
    "mlperf": 1,
}


def test_each_publisher_has_as_many_weights_as_it_published():
    assert Counter(weights.publisher for weights in ALL) == COUNTS
    assert list(COUNTS) == list(PUBLISHERS)


def test_names_are_unique_and_an_architecture_with_a_tag():
    names = [line.partition("\t")[0] for line in TABLE.read_text().splitlines()[1:]]
    assert len(set(names)) == len(names)
    for weights in ALL:
        assert weights.arch in presets.ARCHITECTURES, weights.name
        assert re.fullmatch(r"[a-z0-9_]+", weights.tag), weights.name
        assert weights.name == f"{weights.arch}.{weights.tag}"


def test_addresses_are_well_formed_and_no_two_weights_share_one():
    addresses = [weights.address for weights in ALL]
    assert len(set(addresses)) == len(addresses)
    for address in addresses + [weights.mirror for weights in ALL if weights.mirror]:
        assert any(re.fullmatch(pattern, address) for pattern in ADDRESSES), address


def test_digests_have_the_digits_of_their_algorithm():
    for weights in ALL:
        if weights.digest:
            algorithm, digits = weights.digest.split(":")
            assert re.fullmatch("[0-9a-f]+", digits), weights.name
            assert len(digits) in DIGITS[algorithm], weights.name


def test_every_file_of_torchvision_and_keras_has_a_digest():
    for weights in ALL:
        if weights.publisher in ("torchvision", "keras", "keras_2017", "akamaster"):
            assert weights.digest, weights.name


def test_every_dialect_exists_and_is_of_the_architectures_family():
    for weights in ALL:
        families = dialects.get(weights.dialect).families
        assert any(fnmatchcase(weights.arch, family) for family in families), weights.name


def test_every_transform_makes_three_channels_of_no_more_than_it_resizes():
    for weights in ALL:
        preprocess = weights.preprocess  # which validates itself
        assert preprocess.channels == 3
        resize_px = preprocess.resize_px
        assert resize_px is not None
        shortest = resize_px if isinstance(resize_px, int) else min(resize_px)
        assert shortest >= max(weights.image_px), weights.name


def test_f07_label_sets_have_as_many_classes_as_the_head():
    classes = {
        None: 0,
        "cifar10": 10,
        "imagenet_1k": 1000,
        "imagenet_1k_background": 1001,
        "imagenet_12k": 11821,
        "imagenet_21k": 21843,
    }
    for weights in ALL:
        assert weights.num_classes == classes[weights.labels], weights.name


def test_accuracies_are_percentages_with_a_source():
    for weights in ALL:
        assert (weights.top1 is None) == (weights.accuracy_from is None), weights.name
        if weights.top1 is None:
            continue
        assert weights.accuracy_from in ACCURACY_SOURCES, weights.name
        bounds = (90, 96) if weights.labels == "cifar10" else (60, 90)
        assert bounds[0] < weights.top1 < bounds[1], weights.name
        assert weights.labels, weights.name  # a net without a head has no accuracy
        if weights.top5 is not None:
            assert weights.top1 < weights.top5 < 100, weights.name


def test_no_cell_has_spaces_around_it():
    for line in TABLE.read_text().splitlines():
        assert all(cell == cell.strip() for cell in line.split("\t")), line


def test_torchvision_resnet50_v2_is_as_in_its_meta():
    weights = find("resnet50.tv2_in1k")  # torchvision 0.28: ResNet50_Weights.IMAGENET1K_V2
    assert weights.address == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    assert weights.mirror == "hf://timm/resnet50.tv2_in1k"
    assert weights.digest == "sha256:11ad3fa6"
    assert (weights.top1, weights.top5, weights.size_mib) == (80.858, 95.434, 97.79)
    assert (weights.preprocess.resize_px, weights.image_px) == (232, (224, 224))
    assert weights.preprocess.interpolation == "bilinear"


def test_timm_resnet50_a1_is_measured_at_its_test_size():
    weights = find("resnet50.a1_in1k")  # timm 1.0.31, resnet.py; results-imagenet.csv
    assert weights.address.endswith("/v0.1-rsb-weights/resnet50_a1_0-14fe96d1.pth")
    assert weights.mirror == "hf://timm/resnet50.a1_in1k"
    assert (weights.top1, weights.top5) == (81.214, 95.102)
    assert (weights.image_px, weights.preprocess.resize_px) == ((288, 288), 288)
    assert weights.preprocess.interpolation == "bicubic"


def test_timm_records_what_may_not_be_sold():
    # timm 1.0.31: semi-supervised, semi-weakly and weakly supervised ones of Facebook.
    names = {weights.name for weights in ALL if weights.licence == "cc-by-nc-4.0"}
    assert len(names) == 15
    assert all(".fb_" in name for name in names)


def test_keras_takes_blue_first_in_v1_and_half_range_at_299_pixels_in_v2():
    v1 = find("keras_resnet50.keras_in1k")  # keras 3.15.1, applications/resnet.py
    assert v1.digest == "md5:2cb95161c43110f7111970584f804107"
    assert v1.preprocess.channel_order == "bgr"
    assert v1.preprocess.mean == CAFFE_MEAN_BGR
    v2 = find("keras_resnet50v2.keras_in1k")  # keras-applications, README.md: Input 299
    assert (v2.top1, v2.top5, v2.image_px) == (75.960, 93.034, (299, 299))
    assert v2.preprocess.mean == HALF_MEAN
    bare = find("keras_resnet152v2.keras_in1k_notop")
    assert bare.digest == "md5:ed17cf2e0169df9d443503ef94b23b33"
    assert bare.num_classes == 0


def test_slim_v2_has_a_background_class_and_v1_has_not():
    v1, v2 = find("slim_resnet_v1_50.slim_in1k"), find("slim_resnet_v2_50.slim_in1k")
    assert (v1.num_classes, v2.num_classes) == (1000, 1001)
    assert (v1.top1, v2.top1) == (75.2, 75.6)  # tensorflow/models, research/slim/README.md
    assert v1.preprocess.mean == (123.68, 116.78, 103.94)  # vgg_preprocessing.py
    assert v2.image_px == (299, 299)


def test_big_transfer_has_six_nets_on_three_data_sets():
    # google-research/big_transfer, README.md; four more are distilled from or teach others.
    files = "https://storage.googleapis.com/bit_models"
    medium = find("resnetv2_152x4_bit.bit_m_in21k")
    assert medium.address == f"{files}/BiT-M-R152x4.npz"
    assert medium.num_classes == 21843
    tuned = find("resnetv2_152x4_bit.bit_m_in21k_ft_in1k")
    assert tuned.address == f"{files}/BiT-M-R152x4-ILSVRC2012.npz"
    assert tuned.image_px == (480, 480)
    counts = Counter(w.tag for w in ALL if w.publisher == "bit")
    assert [counts[t] for t in ("bit_s_in1k", "bit_m_in21k", "bit_m_in21k_ft_in1k")] == [6, 6, 6]


def test_akamasters_accuracies_are_the_complement_of_his_errors():
    weights = find("cifar_resnet20.akamaster_cifar10")
    assert weights.top1 == 91.73  # README.md: 8.27 % error
    assert weights.digest == "sha256:12fca82f"
    assert weights.preprocess.mean == IMAGENET_MEAN  # trainer.py


def test_the_default_is_torchvisions_newest_where_it_has_one():
    assert tags("resnet50")[:3] == ("tv2_in1k", "tv_in1k", "a1_in1k")
    assert tags("resnet50d")[0] == "ra2_in1k"  # timm's own
    assert tags("resnet200") == ()


def test_an_architectures_name_alone_lists_its_weights():
    with pytest.raises(UnknownName, match=r"resnet34\.tv_in1k, resnet34\.a1_in1k") as raised:
        find("resnet34")
    assert "'resnet34' is an architecture" in str(raised.value)


def test_a_misspelt_tag_gives_the_nearest_and_all_of_the_architecture():
    with pytest.raises(UnknownName) as raised:
        find("resnet18d.ra3_in1k")
    assert str(raised.value) == (
        "no published weight is called 'resnet18d.ra3_in1k': did you mean resnet18d.ra2_in1k, "
        "resnet18.a3_in1k, resnet18.a2_in1k? (resnet18d has resnet18d.ra2_in1k, "
        "resnet18d.ra4_e3600_r224_in1k)"
    )


def test_an_unknown_name_says_so():
    with pytest.raises(UnknownName, match=r"^no published weight is called 'vgg'$"):
        find("vgg")


def test_a_weight_cannot_be_changed():
    with pytest.raises(AttributeError):
        find("resnet50.a1_in1k").top1 = 99.0  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(find("resnet50.a1_in1k"), PublishedWeights)


def test_importing_and_using_the_table_needs_no_jax_numpy_or_pillow():
    code = (
        "import sys; from resnetjax.weights import sources; sources.find('resnet50.tv2_in1k'); "
        "sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'numpy', 'PIL')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
