import numpy as np
import pytest

from resnetjax.config import Labels
from resnetjax.data import labels
from resnetjax.errors import ConfigError, UnknownName


def test_imagenet_has_a_thousand_classes_in_the_order_of_their_wordnet_ids():
    imagenet = labels.get("imagenet_1k")
    assert imagenet.ids is not None
    assert len(set(imagenet.ids)) == len(imagenet.names) == 1000
    assert list(imagenet.ids) == sorted(imagenet.ids)


@pytest.mark.parametrize(
    ("index", "wordnet_id", "name"),
    [
        (0, "n01440764", "tench, Tinca tinca"),
        (134, "n02012849", "crane"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby, tabby cat"),
        (517, "n03126707", "crane"),
        (999, "n15075141", "toilet tissue, toilet paper, bathroom tissue"),
    ],
)
def test_imagenet_classes_are_where_every_framework_has_them(index, wordnet_id, name):
    imagenet = labels.get("imagenet_1k")
    assert imagenet.ids is not None
    assert (imagenet.ids[index], imagenet.names[index]) == (wordnet_id, name)


@pytest.mark.parametrize(("name", "count"), [("imagenet_12k", 11_821), ("imagenet_21k", 21_843)])
def test_the_large_imagenets_have_a_name_for_each_of_their_ids_in_order(name, count):
    found = labels.get(name)
    assert found.ids is not None
    assert len(set(found.ids)) == len(found.names) == count
    assert list(found.ids) == sorted(found.ids)
    assert all(name.strip() == name != "" for name in found.names)


def test_a_synset_has_one_name_in_all_imagenets():
    large, middle, small = (
        dict(zip(found.ids or (), found.names, strict=True))
        for found in map(labels.get, ("imagenet_21k", "imagenet_12k", "imagenet_1k"))
    )
    assert middle.items() <= large.items()
    # The teddy bear is not among Google's.
    assert small.items() - large.items() == {("n04399382", "teddy, teddy bear")}
    assert len(small.items() & middle.items()) == 993


def test_imagenet_samples_are_named_by_an_id_and_one_of_its_lemmas(shared_data):
    imagenet = labels.get("imagenet_1k")
    assert imagenet.ids is not None
    lemmas = dict(zip(imagenet.ids, imagenet.names, strict=True))
    samples = [path.stem.split("_", 1) for path in (shared_data / "imagenet-samples").iterdir()]
    unknown = [
        (wordnet_id, name)
        for wordnet_id, name in samples
        if name.replace("_", " ").lower() not in lemmas[wordnet_id].lower().split(", ")
    ]
    assert len(samples) == 100
    assert not unknown


def test_f07_background_shifts_every_class_by_one():
    imagenet, shifted = labels.get("imagenet_1k"), labels.get("imagenet_1k_background")
    assert shifted.names == ("background", *imagenet.names)
    assert shifted.ids is not None
    assert shifted.ids[1:] == imagenet.ids


def test_cifar10_names_are_those_of_its_images(shared_data):
    with np.load(shared_data / "cifar10-jpeg.npz") as arrays:
        assert labels.get("cifar10").names == tuple(arrays["classes"].tolist())


def test_cifar100_has_a_hundred_names_in_alphabetical_order():
    names = labels.get("cifar100").names
    assert len(set(names)) == 100
    assert list(names) == sorted(names)


def test_every_name_can_be_got_and_predicts_by_softmax():
    assert {labels.get(name).activation for name in labels.names()} == {"softmax"}


def test_unknown_labels_are_refused_with_the_known_ones():
    with pytest.raises(UnknownName, match=r"'imagenet'.*cifar10, cifar100, imagenet_1k"):
        labels.get("imagenet")


def test_labels_survive_json():
    original = Labels(names=("cat", "dog"), ids=("n1", "n2"), activation="sigmoid")
    assert Labels.from_json(original.to_json()) == original


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ()}, "names"),
        ({"names": ("cat", 1)}, "names"),
        ({"names": ("cat",), "ids": ("n1", "n2")}, "ids.*1 values"),
        ({"names": ("cat",), "activation": "relu"}, "activation='relu'.*softmax"),
        ({"names": ("cat",), "colour": "grey"}, "colour"),
        ({}, "names"),
    ],
)
def test_malformed_labels_are_refused_by_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        Labels.from_json(fields)
