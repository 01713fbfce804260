import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnetjax as rj
from resnetjax.data.preprocess import crop, decode, normalize
from resnetjax.errors import ConfigError, CorruptFile, UnsupportedFile
from resnetjax.infer import artifact

CONFIG = rj.ResNetConfig(
    block="basic", depths=(1, 1), widths=(8, 16), strides=(1, 2), dilations=(1, 1), num_classes=4
)


@pytest.fixture(scope="module")
def pretrained():
    model, variables = rj.create(CONFIG, rng=1)
    noise = np.random.default_rng(0)
    variables["batch_stats"] = jax.tree.map(
        lambda x: jnp.asarray(noise.uniform(0.5, 1.5, x.shape), jnp.float32),
        variables["batch_stats"],
    )
    return rj.Pretrained(
        model=model,
        variables=variables,
        preprocess=rj.Preprocess(crop_px=(48, 40), resize_px=56),
        labels=rj.Labels(names=("a", "b", "c", "d"), activation="sigmoid"),
        source=rj.Source(arch="mine", sha256="0" * 64),
    )


@pytest.fixture(scope="module")
def exported(pretrained, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.stablehlo"
    rj.export(pretrained, path)
    return path


@pytest.mark.parametrize("batch", [1, 3])
def test_an_exported_net_gives_the_nets_logits_for_batches_of_any_size(pretrained, exported, batch):
    image = np.random.default_rng(batch).integers(0, 256, (batch, 90, 70, 3), np.uint8)
    pixels = np.stack([crop(decode(one), pretrained.preprocess) for one in image])
    images = normalize(jnp.asarray(pixels), pretrained.preprocess)
    expected = pretrained.model.apply(pretrained.variables, images)
    np.testing.assert_allclose(
        artifact.load(exported)(pixels), expected, rtol=1e-5, atol=1e-5
    )  # the compiler fuses the two in other ways


def test_an_exported_net_keeps_preprocessing_labels_and_source(pretrained, exported):
    loaded = artifact.load(exported)
    assert loaded.preprocess == pretrained.preprocess
    assert loaded.labels == pretrained.labels
    assert loaded.description.source["arch"] == "mine"
    assert loaded.description.source["sha256"] == "0" * 64


def test_other_sizes_than_the_crops_are_refused(exported):
    with pytest.raises(ValueError, match="48"):
        artifact.load(exported)(np.zeros((1, 64, 64, 3), np.uint8))


def test_what_is_no_exported_net_is_refused(exported, tmp_path):
    content = exported.read_bytes()
    for name, damaged in {
        "empty": b"",
        "text": b"<html>",
        "cut": content[: len(content) // 2],
        "flipped": content.replace(b'"preprocess"', b'"preprocezz"'),
    }.items():
        path = tmp_path / f"{name}.stablehlo"
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match=name):
            artifact.load(path)


def test_another_suffix_or_platform_is_refused(pretrained, tmp_path):
    with pytest.raises(UnsupportedFile, match=r"end in \.stablehlo"):
        rj.export(pretrained, tmp_path / "model.bin")
    with pytest.raises(ConfigError, match="abacus"):
        rj.export(pretrained, tmp_path / "model.stablehlo", platforms=("abacus",))
    assert list(tmp_path.iterdir()) == []


def test_running_an_exported_net_imports_neither_flax_nor_the_zoo(exported):
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from resnetjax.infer import artifact;"
        f"net = artifact.load({str(exported)!r});"
        "print(net(np.zeros((2, 48, 40, 3), np.uint8)).shape,"
        "[name for name in ('flax', 'resnetjax.zoo', 'resnetjax.nn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 4) []"
