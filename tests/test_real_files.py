"""Checkpoints that other people trained, on photographs: from the file to the labels."""

import itertools
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import resnetjax as rj
from resnetjax import cli
from resnetjax.data import labels
from resnetjax.data.preprocess import preprocess
from resnetjax.errors import AssumptionWarning
from resnetjax.weights import connection, files, sources
from resnetjax.weights.cached import Place

CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}


@pytest.fixture(scope="module")
def cifar(shared_data):
    """The test images of CIFAR-10 as JPEG bytes, and the names of the classes."""
    with np.load(shared_data / "cifar10-jpeg.npz") as archive:
        stream, offsets = archive["test_jpeg"].tobytes(), archive["test_offsets"].tolist()
        classes = archive["classes"].tolist()
    return [stream[start:end] for start, end in itertools.pairwise(offsets)], classes


@pytest.fixture
def jpegs(cifar, tmp_path):
    """A dozen of them as files in their order."""
    for i, content in enumerate(cifar[0][:12]):
        (tmp_path / f"{i:02}.jpg").write_bytes(content)
    return tmp_path


def load(path: Path) -> rj.Pretrained:
    with pytest.warns(AssumptionWarning) as caught:
        pre = rj.load(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the caller's line, not one of ours
    return pre


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_checkpoint_needs_no_more_than_its_path(shared_weights, name):
    pre = load(shared_weights / CHECKPOINTS[name])
    assert pre.source.arch == f"cifar_{name}"
    assert (pre.source.format, pre.source.dialect) == ("torch-legacy", "akamaster")
    digest = CHECKPOINTS[name].partition("-")[2].removesuffix(".th")  # its author's, in its name
    assert pre.source.sha256.startswith(digest)
    assert len(pre.source.assumptions) == 3
    assert all(
        text in " ".join(pre.source.assumptions) for text in ("arch=", "preprocess=", "labels=")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_test_image_gets_the_class_that_pytorch_gives_it(shared_weights, cifar, name):
    contents, classes = cifar
    pre = load(shared_weights / CHECKPOINTS[name])
    with np.load(shared_weights / f"{name}-expected.npz") as archive:
        argmax, logits = archive["argmax"], archive["logits_first_200"]
    found = [row[0] for row in rj.predict(pre, contents, top=1, batch_size=256)]
    assert len(found) == len(argmax) == 10_000
    # Where two logits nearly tie, the order of additions may decide.
    assert (argmax != [prediction.index for prediction in found]).sum() <= 2
    assert {(p.index, p.label) for p in found} == set(enumerate(classes))
    inputs = jnp.stack([preprocess(content, pre.preprocess) for content in contents[:200]])
    np.testing.assert_allclose(pre.model.apply(pre.variables, inputs), logits, rtol=0, atol=1e-4)


def test_the_command_prints_what_is_on_real_photographs(shared_weights, cifar, jpegs):
    command = [sys.executable, "-m", "resnetjax", "predict", "--top", "1"]
    weights = shared_weights / CHECKPOINTS["resnet20"]
    done = subprocess.run([*command, weights, jpegs], capture_output=True, text=True, check=True)
    names = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert names == [str(jpegs / f"{i:02}.jpg") for i in range(12)]
    labels = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(" ")]
    assert labels == expected_labels(shared_weights, cifar)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("note:") == 1


def test_the_json_holds_the_same_labels_and_pytorchs_probabilities(
    shared_weights, cifar, jpegs, monkeypatch, capsys
):
    weights = shared_weights / CHECKPOINTS["resnet20"]
    arguments = ["resnetjax", "predict", "--json", "--top", "10", str(weights), str(jpegs)]
    monkeypatch.setattr(sys, "argv", arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("default", AssumptionWarning)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    labels = [row["predictions"][0]["label"] for row in rows]
    assert labels == expected_labels(shared_weights, cifar)
    with np.load(shared_weights / "resnet20-expected.npz") as archive:
        powers = np.exp(archive["logits_first_200"][:12].astype(np.float64))
    for row, expected in zip(rows, powers / powers.sum(1, keepdims=True), strict=True):
        found = {p["index"]: p["probability"] for p in row["predictions"]}
        np.testing.assert_allclose([found[i] for i in range(10)], expected, atol=1e-5)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_checkpoint_goes_to_our_format_and_back_bit_for_bit(
    shared_weights, tmp_path, name
):
    original = shared_weights / CHECKPOINTS[name]
    rj.save(load(original), tmp_path / "ours")
    back = tmp_path / "back.safetensors"
    rj.save(rj.load(tmp_path / "ours"), back, dialect="akamaster")  # ours assumes nothing
    expected, found = files.read(original).arrays, safetensors.numpy.load_file(back)
    assert len(expected) > 90
    counters = {key for key in found if key.endswith("num_batches_tracked")}
    assert set(expected) == set(found) - counters
    for key, array in expected.items():
        assert array.dtype == found[key].dtype
        np.testing.assert_array_equal(array, found[key], err_msg=key)


def expected_labels(shared_weights, cifar) -> list[str]:
    with np.load(shared_weights / "resnet20-expected.npz") as archive:
        return [cifar[1][index] for index in archive["argmax"][:12]]


@pytest.mark.slow
def test_mlperf_tinys_keras_file_gives_what_keras_gives(shared_weights, cifar):
    pre = load(shared_weights / "mlperf-tiny-resnet8.h5")
    assert pre.source.arch == "mlperf_tiny_resnet8"
    assert (pre.source.format, pre.source.dialect) == ("keras-h5", "keras_numbered")
    with np.load(shared_weights / "mlperf-tiny-resnet8-expected.npz") as archive:
        argmax, probabilities = archive["argmax"], archive["probabilities_first_200"]
    found = list(rj.predict(pre, cifar[0], top=10, batch_size=256))
    assert len(found) == len(argmax) == 10_000
    assert sum(row[0].index != index for row, index in zip(found, argmax, strict=True)) <= 2
    assert {(row[0].index, row[0].label) for row in found} == set(enumerate(cifar[1]))
    for row, expected in zip(found, probabilities, strict=False):
        ours = {p.index: p.probability for p in row}
        np.testing.assert_allclose([ours[i] for i in range(10)], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_a_slim_checkpoint_gives_what_tensorflow_gives(shared_weights, version):
    folder = shared_weights / f"slim_v{version}_tiny"
    pre = load(folder)
    assert (pre.source.format, pre.source.dialect) == ("tf-bundle", f"slim_v{version}")
    with np.load(folder / "io.npz") as archive:
        images, expected = archive["x"], archive["y"].reshape(2, 11)
    ours = np.asarray(pre.model.apply(pre.variables, jnp.asarray(images)))
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()
    (index,) = folder.glob("*.index")
    for path in (index, index.with_suffix("")):  # as TensorFlow's functions take it
        assert load_digest(path) == pre.source.sha256


def load_digest(path: Path) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        return rj.load(path).source.sha256


def test_a_published_name_stands_for_its_file_preprocessing_and_labels(
    shared_weights, cifar, tmp_path, monkeypatch
):
    monkeypatch.setenv("RESNETJAX_HOME", str(tmp_path))
    monkeypatch.setattr(connection, "connect", refuse)
    published = sources.find("cifar_resnet20.akamaster_cifar10")
    place = Place(published.address).folder  # where a download would end, or a person puts it
    place.mkdir(parents=True)
    shutil.copy(shared_weights / CHECKPOINTS["resnet20"], place)
    pre = rj.load(published.name)  # assumes nothing, so warns of nothing
    assert pre.source.arch == "cifar_resnet20"
    assert pre.source.licence == published.licence
    assert pre.preprocess == published.preprocess
    assert pre.labels == labels.get("cifar10")
    predictions = rj.predict(pre, cifar[0][:12], top=1)
    assert [row[0].label for row in predictions] == expected_labels(shared_weights, cifar)


def refuse(*_: object, **__: object) -> None:
    pytest.fail("the network was asked")
