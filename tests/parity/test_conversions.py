"""One net, converted between the common systems, is the same net in each of them."""

import itertools
import shutil
import warnings

import keras
import keras_hub
import numpy as np
import pytest
import torch

from resnetjax import saving, zoo
from resnetjax.errors import AssumptionWarning
from resnetjax.presets import get
from tests.disturbed import disturbed
from tests.parity import torchvision_shim

torchvision_shim.install()

import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # Of Keras and PyTorch: the legacy format, and arrays that are not writable.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

NETS = {"resnet18": "basic", "resnet50": "bottleneck"}
ENDINGS = {
    "torchvision": ".pth",
    "timm": ".pth",
    "transformers": "",  # a directory
    "kerashub": ".keras",
}
IMAGES = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)


def of_torchvision(path, name):
    model = torchvision.models.get_model(name, weights=None)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def of_timm(path, name):
    model = timm.create_model(name)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def of_transformers(path, name):
    model = transformers.ResNetForImageClassification.from_pretrained(path)
    return lambda x: model.eval()(x).logits


def of_kerashub(path, name):
    model = keras.models.load_model(path)
    assert isinstance(model, keras_hub.models.ResNetImageClassifier)
    return lambda x: model(x.permute(0, 2, 3, 1), training=False)


OPEN = {
    "torchvision": of_torchvision,
    "timm": of_timm,
    "transformers": of_transformers,
    "kerashub": of_kerashub,
}


@pytest.fixture(scope="module", params=NETS)
def written(request, tmp_path_factory):
    """A net's name, its files, and its logits in torchvision."""
    folder = tmp_path_factory.mktemp("written")
    pre = disturbed(get(request.param))
    paths = {name: folder / f"{name}{ending}" for name, ending in ENDINGS.items()}
    for name, path in paths.items():
        saving.save(pre, path, dialect=name)
    yield request.param, paths, logits(of_torchvision(paths["torchvision"], request.param))
    shutil.rmtree(folder)


def logits(model) -> np.ndarray:
    with torch.no_grad():
        found = model(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()))
    return found.detach().numpy()


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(ENDINGS, 2)))
def test_every_system_computes_the_same_of_what_was_converted(written, tmp_path, source, target):
    name, paths, expected = written
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        pre = zoo.load(paths[source], arch=name)
    path = tmp_path / f"net{ENDINGS[target]}"
    saving.save(pre, path, dialect=target)
    found = logits(OPEN[target](path, name))
    # All but KerasHub are the same operators of PyTorch on the same numbers.
    tolerance = 1e-5 * np.abs(expected).max() if target == "kerashub" else 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
