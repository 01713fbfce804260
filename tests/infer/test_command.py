"""`resnetjax features` and `resnetjax explain`; `push` is in test_push.py."""

import errno
import os
import re
import warnings

import numpy as np
import pytest
from PIL import Image

import resnetjax as rj
from resnetjax import cli
from resnetjax.data.preprocess import decode, preprocess
from resnetjax.infer.command import image_files

CONFIG = rj.ResNetConfig(
    block="basic", depths=(1, 1), widths=(8, 16), strides=(1, 2), dilations=(1, 1), stem="conv3",
    stem_width=8, stem_pool="none", num_classes=3,
)  # fmt: skip
SMALL = rj.Preprocess(crop_px=(16, 16), resize_px=20)


@pytest.fixture(scope="module")
def pre():
    model, variables = rj.create(CONFIG, rng=0)
    labels = rj.Labels(names=("cat", "dog", "bird"))
    return rj.Pretrained(model=model, variables=variables, preprocess=SMALL, labels=labels)


@pytest.fixture(scope="module")
def net(pre, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "net"
    rj.save(pre, folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Three images, in a folder and below it."""
    for i, name in enumerate(("photos/b.png", "photos/a.png", "photos/deep/c.webp")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (24, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path, lossless=True)
    return tmp_path / "photos"


@pytest.fixture
def run(capsys):
    def run_main(*arguments: object) -> tuple[int, str, str]:
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        return (stopped.value.code, *capsys.readouterr())

    return run_main


def expected_vectors(pre, paths, stage: str) -> np.ndarray:
    """Of each image alone, by one plain application."""
    found = [
        rj.features(pre, preprocess(path, pre.preprocess)[None], stages=(stage,))[stage][0]
        for path in paths
    ]
    return np.stack([np.asarray(x if x.ndim == 1 else x.mean((0, 1))) for x in found])


@pytest.mark.parametrize(("stage", "channels"), [("pooled", 16), ("stage1", 8)])
def test_features_writes_a_named_row_for_each_image(run, net, pre, photos, stage, channels):
    out = photos.parent / "vectors.npz"
    code, said, err = run("features", net, photos, "--out", out, "--stage", stage)
    assert (code, err) == (0, "")
    assert said == f"{out}: 3 vectors of {channels} ({stage})\n"
    with np.load(out, allow_pickle=False) as found:
        names, vectors = found["names"].tolist(), found["vectors"]
    paths = [photos / "a.png", photos / "b.png", photos / "deep/c.webp"]
    assert names == [str(path) for path in paths]
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected_vectors(pre, paths, stage), rtol=1e-4, atol=1e-5)


def test_a_bad_image_is_said_and_the_others_keep_their_rows(run, net, pre, photos):
    (photos / "aa.jpg").write_bytes(b"no image")
    out = photos.parent / "vectors.npz"
    code, said, err = run("features", net, photos, "--out", out)
    assert code == 2
    assert err.count("resnetjax: error:") == 1
    assert "aa.jpg" in err
    assert "3 vectors" in said
    paths = [photos / "a.png", photos / "b.png", photos / "deep/c.webp"]
    with np.load(out) as found:
        assert found["names"].tolist() == [str(path) for path in paths]
        vectors = found["vectors"]
    np.testing.assert_allclose(
        vectors, expected_vectors(pre, paths, "pooled"), rtol=1e-4, atol=1e-5
    )


def test_where_all_are_bad_there_are_no_rows(run, net, photos):
    bad = photos / "aa.jpg"
    bad.write_bytes(b"no image")
    out = photos.parent / "vectors.npz"
    assert run("features", net, bad, bad, "--out", out)[0] == 2
    with np.load(out) as found:
        assert found["names"].shape == (0,)
        assert found["vectors"].shape[0] == 0


def test_an_image_given_twice_has_two_rows(run, net, photos):
    out = photos.parent / "vectors.npz"
    assert run("features", net, photos / "a.png", photos / "a.png", "--out", out)[0] == 0
    with np.load(out) as found:
        np.testing.assert_array_equal(found["vectors"][0], found["vectors"][1])


def test_on_a_terminal_there_is_a_bar(run, net, photos, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    code, said, err = run("features", net, photos, "--out", photos / "v.npz")
    assert (code, "3 vectors" in said) == (0, True)
    assert "computing features" in err


def test_every_format_that_is_decoded_is_found_in_a_folder(tmp_path):
    kinds = "bmp", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"
    for kind in kinds:
        Image.new("L", (4, 4), 7).save(tmp_path / f"a.{kind}")
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    found = image_files((tmp_path,))
    assert [path.suffix[1:] for path in found] == list(kinds)
    assert {decode(path).getpixel((0, 0)) for path in found} == {(7, 7, 7)}


def test_what_macos_writes_beside_an_image_is_none(photos):
    (photos / "._a.png").write_bytes(b"\0\5\x16\7 Mac OS X")
    assert [path.name for path in image_files((photos,))] == ["a.png", "b.png", "c.webp"]


def test_a_folder_below_that_cannot_be_read_is_an_error(run, net, photos, monkeypatch):
    scan = os.scandir

    def refuse(path):  # not by chmod, which root may pass over
        if os.fspath(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, said, err = run("predict", net, photos)
    assert (code, said) == (2, "")
    assert re.search(r"error: .*Permission denied: '.*/photos/deep'", err), err


def test_explain_draws_a_picture_and_says_of_what(run, net, pre, photos):
    out = photos.parent / "cam.png"
    code, said, err = run("explain", net, photos / "a.png", "--out", out, "--label", "dog")
    assert (code, err) == (0, "")
    expected = rj.explain(pre, photos / "a.png", label="dog")
    assert said.startswith(f"{out}: dog (1), {expected.prediction.probability:.4f}; stage2, 8x8")
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(expected.draw()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("features", "{photos}", "--out", "v.npy"), "--out v.npy is not allowed: use .* .npz"),
        (("features", "{photos}", "--out", "no/v.npz"), "there is no folder no"),
        (("features", "{photos}", "--out", "v.npz", "--stage", "stage9"), "stage9.* use stem_conv"),
        (("features", "--out", "v.npz"), "no images are given"),
        (("features", "nothing", "--out", "v.npz"), "no file or directory 'nothing'"),
        (("features", "{photos}", "--out", "v.npz", "--batch-size", "0"), "batch_size=0"),
        (("explain", "{photos}/a.png", "--out", "cam.jpg"), "use a file ending in .png"),
        (("explain", "{photos}", "--out", "cam.png"), "there is no file"),
        (("explain", "{photos}/a.png", "--out", "cam.png", "--label", "cow"), "no label .* 'cow'"),
        (("explain", "{photos}/a.png", "--out", "cam.png", "--stage", "stem_conv"), "use stem,"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    run, net, photos, arguments, words, monkeypatch
):
    monkeypatch.chdir(photos.parent)
    verb, *others = (argument.format(photos=photos) for argument in arguments)
    before = sorted(photos.parent.rglob("*"))
    code, said, err = run(verb, net, *others)
    assert (code, said) == (2, "")
    assert err.count("resnetjax: error:") == 1
    assert re.search(words, err), err
    assert sorted(photos.parent.rglob("*")) == before
