"""From any of the common systems to any other and back, nothing is lost to the bit."""

import itertools

import pytest

from resnetjax import saving, zoo
from resnetjax.config import ResNetConfig
from resnetjax.data import labels as label_sets
from resnetjax.presets import get
from resnetjax.weights import dialects
from tests.disturbed import disturbed

ENDINGS = {
    "torchvision": ".pth",
    "timm": ".safetensors",
    "transformers": ".bin",
    "kerashub": ".weights.h5",
}
NARROW = {"widths": (64, 12, 16, 24), "num_classes": 1000}
NETS = {
    "narrow resnet18": get("resnet18").replace(**NARROW),
    "narrow resnet50": get("resnet50").replace(**NARROW),
    "resnet18": get("resnet18"),
    "resnet50": get("resnet50"),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(config, id=name, marks=[] if name.startswith("narrow") else pytest.mark.slow)
        for name, config in NETS.items()
    ],
)
def written(request, tmp_path_factory):
    """A net's config, and its file in each system, written from one net."""
    folder = tmp_path_factory.mktemp("written")
    pre = disturbed(request.param)
    paths = {name: folder / f"{name}{ending}" for name, ending in ENDINGS.items()}
    for name, path in paths.items():
        saving.save(pre, path, dialect=name)
    return request.param, paths


def as_is(path, config: ResNetConfig, dialect: str):
    """The net of a file, of which nothing has to be assumed."""
    prepared = dialects.get(dialect).preprocess
    labels = label_sets.get("imagenet_1k")
    return zoo.load(path, config=config, preprocess=prepared, labels=labels)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(ENDINGS, 2)))
def test_a_conversion_gives_the_file_that_the_target_has_of_the_same_net(
    written, tmp_path, source, target
):
    # Both ways for every pair: what goes there and back is what it was.
    config, paths = written
    path = tmp_path / paths[target].name
    saving.save(as_is(paths[source], config, source), path, dialect=target)
    assert path.read_bytes() == paths[target].read_bytes()
