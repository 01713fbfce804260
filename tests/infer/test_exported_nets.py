"""Exported nets on photographs: full size, or with weights that other people trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnetjax as rj
from resnetjax import presets
from resnetjax.data.preprocess import crop, decode, normalize
from resnetjax.errors import AssumptionWarning
from resnetjax.infer import artifact
from tests.infer.settled import settled

pytestmark = pytest.mark.slow

# Of the spread max|f(x_i) - mean f|; both sides compute in float32.
TOLERANCE = 1e-4
FORMATS = ("stablehlo", "onnx")


@pytest.fixture(scope="module")
def photographs(shared_data):
    found = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))
    assert len(found) == 100
    return found


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_published_checkpoint_gives_the_same_five_labels_exported(
    shared_weights, photographs, tmp_path, suffix
):
    with pytest.warns(AssumptionWarning):
        pre = rj.load(shared_weights / "resnet32-d509ac18.th")
    path = tmp_path / f"net.{suffix}"
    rj.export(pre, path)
    net = artifact.load(path)
    assert net.labels == pre.labels
    found = [[p.label for p in row] for row in rj.predict(net, photographs)]
    assert found == [[p.label for p in row] for row in rj.predict(pre, photographs)]
    assert len({row[0] for row in found}) > 5  # else mixed-up images would go unnoticed


@pytest.mark.parametrize("arch", ["resnet50", "resnetv2_50"])
def test_a_full_size_net_gives_its_logits_exported(photographs, tmp_path, arch):
    config = rj.Preprocess()
    pixels = np.stack([crop(decode(path), config) for path in photographs[:4]])
    net = settled(presets.get(arch), config, pixels=pixels)
    run = jax.jit(lambda x: net.model.apply(net.variables, x))
    expected = np.asarray(run(normalize(jnp.asarray(pixels), config)))
    spread = np.abs(expected - expected.mean(0)).max()
    for suffix in FORMATS:
        path = tmp_path / f"net.{suffix}"
        rj.export(net, path)
        error = np.abs(artifact.load(path)(pixels) - expected).max() / spread
        print(f"{arch} {suffix}: {error:.1e} of a spread of {spread:.2f}")
        assert error < TOLERANCE
