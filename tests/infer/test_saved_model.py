"""Nets as TensorFlow's SavedModel; they run where TensorFlow is: `make savedmodel`."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnetjax as rj
from resnetjax.data.preprocess import normalize
from resnetjax.errors import MissingExtra
from tests.infer.settled import noise, settled

PREPROCESS = rj.Preprocess(crop_px=(33, 24), resize_mode="squash", resize_px=(33, 24))
CONFIG = rj.ResNetConfig(
    block="basic", depths=(1, 1), widths=(8, 16), strides=(1, 2), dilations=(1, 1), num_classes=4
)


@pytest.fixture(scope="module")
def net():
    return settled(CONFIG, PREPROCESS)


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    pytest.importorskip("tensorflow", reason="needs TensorFlow", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("saved") / "net.savedmodel"
    rj.export(net, folder)
    return folder


@pytest.mark.parametrize("batch", [1, 3])
def test_tensorflow_gives_the_nets_logits_without_jax(net, folder, tmp_path, batch):
    pixels = noise(batch, PREPROCESS)
    np.save(tmp_path / "pixels.npy", pixels)
    code = (
        "import sys; sys.modules['jax'] = None\n"  # TensorFlow would take it where it is
        "import numpy as np, tensorflow as tf\n"
        f"net = tf.saved_model.load({str(folder)!r}).signatures['serving_default']\n"
        f"pixels = tf.constant(np.load({str(tmp_path / 'pixels.npy')!r}))\n"
        f"np.save({str(tmp_path / 'logits.npy')!r}, net(pixels=pixels)['logits'].numpy())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    images = normalize(jnp.asarray(pixels), PREPROCESS)
    expected = jax.jit(net.model.apply)(net.variables, images)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-5, atol=1e-5)


def test_the_description_is_among_the_extra_assets(folder):
    described = json.loads((folder / "assets.extra" / "description.json").read_text())
    assert described["preprocess"]["crop_px"] == [33, 24]
    assert described["activation"] == "softmax"


def test_a_folder_that_is_there_is_left_alone(net, folder):
    before = sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(FileExistsError, match=r"net\.savedmodel exists"):
        rj.export(net, folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == before


def test_without_tensorflow_the_error_names_the_extra(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtra, match=r"resnetjax\[savedmodel\]"):
        rj.export(net, tmp_path / "net.savedmodel")
    assert list(tmp_path.iterdir()) == []
