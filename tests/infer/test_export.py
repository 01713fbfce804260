import dataclasses
import importlib.metadata
import json
import subprocess
import sys
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import resnetjax as rj
from resnetjax.data.preprocess import crop, decode, normalize
from resnetjax.errors import ConfigError, CorruptFile, MissingExtra, UnsupportedFile
from resnetjax.infer import artifact, onnx_graph
from tests.infer.settled import noise, settled

CONFIG = rj.ResNetConfig(
    block="basic", depths=(1, 1), widths=(8, 16), strides=(1, 2), dilations=(1, 1), num_classes=4
)


@pytest.fixture(scope="module")
def pretrained():
    return dataclasses.replace(
        settled(CONFIG, rj.Preprocess(crop_px=(48, 40), resize_px=56)),
        labels=rj.Labels(names=("a", "b", "c", "d"), activation="sigmoid"),
        source=rj.Source(arch="mine", sha256="0" * 64),
    )


@pytest.fixture(scope="module", params=["stablehlo", "onnx"])
def exported(request, pretrained, tmp_path_factory):
    if request.param == "onnx":
        pytest.importorskip("onnx", reason="needs onnx")
    path = tmp_path_factory.mktemp("export") / f"model.{request.param}"
    rj.export(pretrained, path)
    return path


@pytest.fixture(scope="module")
def photographs():
    """Another size than the crop, one of them in grey."""
    colour = list(noise(2, rj.Preprocess(crop_px=(90, 70))))
    return [colour[0], noise(1, rj.Preprocess(crop_px=(60, 100)))[0, ..., 0], colour[1]]


@pytest.mark.parametrize("batch", [1, 3])
def test_an_exported_net_gives_the_nets_logits_for_batches_of_any_size(pretrained, exported, batch):
    images = noise(batch, rj.Preprocess(crop_px=(90, 70)))
    pixels = np.stack([crop(decode(image), pretrained.preprocess) for image in images])
    images = normalize(jnp.asarray(pixels), pretrained.preprocess)
    expected = pretrained.model.apply(pretrained.variables, images)
    assert batch == 1 or np.ptp(expected, axis=0).min() > 0.01  # or any image would do
    # The compiler fuses the two in other ways.
    np.testing.assert_allclose(artifact.load(exported)(pixels), expected, rtol=1e-5, atol=1e-5)


def test_an_exported_net_gives_no_logits_for_no_images(exported):
    loaded, none = artifact.load(exported), np.zeros((0, 48, 40, 3), np.uint8)
    assert (loaded(none).shape, loaded(none).dtype) == ((0, 4), np.float32)
    assert [found.shape for found in loaded.top(none, 2)] == [(0, 2)] * 2


def test_an_exported_net_keeps_preprocessing_labels_and_source(pretrained, exported):
    loaded = artifact.load(exported)
    assert loaded.preprocess == pretrained.preprocess
    assert loaded.labels == pretrained.labels
    assert loaded.description.source["arch"] == "mine"
    assert loaded.description.source["sha256"] == "0" * 64
    assert loaded.description.activation == "sigmoid"
    assert loaded.num_classes == 4


def test_the_versions_that_wrote_a_file_are_in_it(exported):
    versions = artifact.load(exported).description.versions
    writer = "jax" if exported.suffix == ".stablehlo" else "onnx"
    assert versions == {"resnetjax": rj.__version__, writer: importlib.metadata.version(writer)}


def test_a_stablehlo_file_is_a_plain_archive_for_every_platform(pretrained, tmp_path):
    path = tmp_path / "net.stablehlo"
    rj.export(dataclasses.replace(pretrained, labels=None), path)
    with zipfile.ZipFile(path) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        described = json.loads(archive.read("description.json"))
        function = jax.export.deserialize(bytearray(archive.read("function.bin")))
    assert function.platforms == ("cpu", "cuda", "rocm", "tpu")
    assert described["platforms"] == ["cpu", "cuda", "rocm", "tpu"]
    (pixels,), (logits,) = function.in_avals, function.out_avals
    assert (str(pixels), str(logits)) == ("uint8[batch,48,40,3]", "float32[batch,4]")
    assert described["preprocess"]["resize_px"] == 56
    assert described["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    assert described["labels"] is None
    assert described["activation"] == "softmax"


def test_a_stablehlo_file_holds_plain_convolutions_and_no_batch_norms(pretrained, tmp_path):
    rj.export(pretrained, tmp_path / "net.stablehlo", platforms=("cpu",))
    with zipfile.ZipFile(tmp_path / "net.stablehlo") as archive:
        function = jax.export.deserialize(bytearray(archive.read("function.bin")))
    program = function.mlir_module()
    assert "rsqrt" not in program
    # The stem's, and two and the shortcut's a block; the only product is the head's.
    assert program.count("stablehlo.convolution(") == 7
    assert program.count("stablehlo.dot_general ") == 1


def test_an_onnx_file_says_the_same_in_its_metadata(pretrained, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    rj.export(pretrained, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    described = json.loads({prop.key: prop.value for prop in model.metadata_props}["resnetjax"])
    assert described["labels"] == {
        "names": ["a", "b", "c", "d"], "ids": None, "activation": "sigmoid",
    }  # fmt: skip
    assert described["preprocess"]["crop_px"] == [48, 40]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    (pixels,), (logits,) = model.graph.input, model.graph.output
    for value, name, shape in (
        (pixels, "pixels", ["batch", 48, 40, 3]),
        (logits, "logits", ["batch", 4]),
    ):
        dims = value.type.tensor_type.shape.dim
        assert value.name == name
        assert [dim.dim_param or dim.dim_value for dim in dims] == shape
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_predictions_of_an_exported_net_are_the_nets(pretrained, exported, photographs):
    found = rj.predict(artifact.load(exported), photographs, top=3, batch_size=2)
    expected = rj.predict(pretrained, photographs, top=3, batch_size=2)
    assert [[p.label for p in row] for row in found] == [[p.label for p in row] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        scores = [[p.probability for p in row] for row in (ours, theirs)]
        np.testing.assert_allclose(*scores, rtol=1e-5)  # float32, in another order
        assert [type(value) for value in vars(ours[0]).values()] == [str, int, float]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_scores_are_what_the_activation_makes_of_the_logits(exported, activation):
    net = artifact.load(exported)
    logits = np.array([[-100.0, 3.0, 3.0, 90.0]], np.float32)
    fixed = dataclasses.replace(
        net,
        function=lambda _: logits,
        description=dataclasses.replace(net.description, activation=activation),
    )
    scores, indices = fixed.top(np.zeros((1, 48, 40, 3), np.uint8), 4)
    assert indices.tolist() == [[3, 1, 2, 0]]  # of equals the first comes first
    expected = {
        "softmax": np.exp([0.0, -87.0, -87.0, -190.0]),
        "sigmoid": [1, 1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-3)), np.exp(-100)],
        "none": [90, 3, 3, -100],
    }[activation]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6, atol=1e-44)


def test_an_exported_net_without_a_head_is_not_asked_for_classes(pretrained, tmp_path):
    params = {name: x for name, x in pretrained.variables["params"].items() if name != "head"}
    headless = rj.Pretrained(
        model=rj.ResNet(CONFIG.replace(num_classes=0)),
        variables={**pretrained.variables, "params": params},
        preprocess=pretrained.preprocess,
    )
    rj.export(headless, tmp_path / "net.stablehlo", platforms=("cpu",))
    net = artifact.load(tmp_path / "net.stablehlo")
    pixels = np.zeros((2, 48, 40, 3), np.uint8)
    assert net(pixels).shape == (2, 16)
    with pytest.raises(ConfigError, match="no head"):
        rj.predict(net, list(pixels))


def test_other_sizes_than_the_crops_are_refused(exported):
    net = artifact.load(exported)
    for wrong in (np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 48, 40, 3), np.float32)):
        with pytest.raises(ConfigError, match=r"expected uint8\[batch, 48, 40, 3\]"):
            net(wrong)


def test_what_is_no_exported_net_is_refused(exported, tmp_path):
    content = exported.read_bytes()
    for name, damaged in {
        "empty": b"",
        "text": b"<html>",
        "cut": content[: len(content) // 2],
        "renamed": content.replace(b'"preprocess"', b'"preprocezz"'),
        "unsaid": content.replace(b'"sigmoid"', b'"sigmoit"'),
    }.items():
        path = tmp_path / f"{name}{exported.suffix}"
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match=name):
            artifact.load(path)


def test_another_suffix_or_platform_is_refused(pretrained, tmp_path):
    with pytest.raises(UnsupportedFile, match=r"end in \.stablehlo, \.onnx or \.savedmodel"):
        rj.export(pretrained, tmp_path / "model.bin")
    with pytest.raises(UnsupportedFile, match=r"end in \.stablehlo, \.onnx"):
        artifact.load(tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError):
        artifact.load(tmp_path / "absent.onnx")
    with pytest.raises(ConfigError, match="abacus"):
        rj.export(pretrained, tmp_path / "model.stablehlo", platforms=("abacus",))
    with pytest.raises(ConfigError, match=r"platforms= is not allowed .*: it is for \.stablehlo"):
        rj.export(pretrained, tmp_path / "model.onnx", platforms=("cpu",))
    with pytest.raises(ConfigError, match=r"calibration= is not allowed .*: it is for \.onnx"):
        rj.export(pretrained, tmp_path / "model.stablehlo", calibration=[])
    assert list(tmp_path.iterdir()) == []


def test_predicting_by_an_exported_net_imports_no_flax_and_onnx_no_jax(exported, tmp_path):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(picture)
    code = (
        "import sys\n"
        "from resnetjax import cli\n"
        f"try: cli.main(['predict', {str(exported)!r}, {str(picture)!r}])\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "names = ('flax', 'jax', 'optax', 'onnx', 'resnetjax.zoo', 'resnetjax.nn')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *rows, imported = done.stdout.splitlines()
    assert first == str(picture)
    assert len(rows) == 4
    assert imported == ("['jax']" if exported.suffix == ".stablehlo" else "[]")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_a_package_the_error_names_the_extra(pretrained, tmp_path, monkeypatch, package):
    pytest.importorskip("onnx", reason="needs onnx")
    path = tmp_path / "net.onnx"
    if package == "onnxruntime":
        rj.export(pretrained, path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"resnetjax\[onnx\]"):
        artifact.load(path) if path.exists() else rj.export(pretrained, path)


def test_more_weights_than_an_onnx_file_holds_are_refused(monkeypatch, pretrained, tmp_path):
    pytest.importorskip("onnx", reason="needs onnx")
    monkeypatch.setattr(onnx_graph, "_MAX_BYTES", 2**24 + 1000)
    with pytest.raises(UnsupportedFile, match="at most 2 GiB, and the weights are"):
        rj.export(pretrained, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_calibrated_net_computes_in_integers_and_says_nearly_the_same(pretrained, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    images = list(noise(20, rj.Preprocess(crop_px=(60, 60))))
    rj.export(pretrained, tmp_path / "plain.onnx")
    rj.export(pretrained, tmp_path / "small.onnx", calibration=iter(images))
    plain, small = (artifact.load(tmp_path / f"{name}.onnx") for name in ("plain", "small"))
    assert small.description == plain.description
    pixels = np.stack([crop(decode(image), pretrained.preprocess) for image in images])
    spread = np.abs(plain(pixels) - plain(pixels).mean(0)).max()
    error = np.abs(small(pixels) - plain(pixels)).max() / spread
    assert 1e-4 < error < 0.2  # of eight bits, through four convolutions
    kernels = [x for x in onnx.load(tmp_path / "small.onnx").graph.initializer if len(x.dims) == 4]
    assert {x.data_type for x in kernels} == {onnx.TensorProto.INT8}
    with pytest.raises(ConfigError, match="no images"):
        rj.export(pretrained, tmp_path / "none.onnx", calibration=[])
