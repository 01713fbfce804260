import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetjax.data.datasets import open_dataset
from resnetjax.data.prepare import Encoding, prepare
from resnetjax.errors import BadImage, ConfigError

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_data.py"


@pytest.fixture
def folder(tmp_path, jpeg):
    """A training split of eleven images in two classes, and a validation split of one."""
    for number in range(11):
        path = tmp_path / "images" / "train" / ("cat" if number < 6 else "dog") / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, width=40, height=20 + number))
    for name in ("cat", "dog"):
        path = tmp_path / "images" / "val" / name / "0.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(jpeg(1))
    return tmp_path / "images"


def size_of(content):
    with Image.open(io.BytesIO(content)) as image:
        return image.format, image.size


def convert(source, target, **options):
    return prepare(str(source), target, progress=False, **options)


def test_what_is_prepared_reads_as_its_source(folder, tmp_path):
    prepared = convert(folder, tmp_path / "out", examples_per_shard=4)
    assert prepared.counts == {"train": 11, "val": 2}
    assert prepared.skipped == ()
    for split in ("train", "val"):
        before, after = (open_dataset(path, split=split) for path in (folder, tmp_path / "out"))
        assert [(e.image, e.label) for e in after] == [(e.image, e.label) for e in before]
        assert after.class_names == ("cat", "dog")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset_info.json",
        "features.json",
        "images-train.array_record-00000-of-00003",
        "images-train.array_record-00001-of-00003",
        "images-train.array_record-00002-of-00003",
        "images-val.array_record-00000-of-00001",
        "label.labels.txt",
    ]
    assert open_dataset(tmp_path / "out", split="train")[7].name.endswith("(07.jpg)")


def test_grain_reads_what_is_prepared(folder, tmp_path):
    from grain.sources import ArrayRecordDataSource

    convert(folder, tmp_path / "out", split=("val",))
    source = ArrayRecordDataSource(
        [str(path) for path in (tmp_path / "out").glob("*array_record*")]
    )
    assert len(source) == 2


def test_larger_images_are_resized_by_their_short_side(folder, tmp_path):
    encoding = Encoding(resize_px=25)
    convert(folder, tmp_path / "out", split=("train",), encoding=encoding)
    before, after = open_dataset(folder, split="train"), open_dataset(tmp_path / "out")
    for number in range(6):  # 20 to 25 px high
        assert after[number].image == before[number].image
    assert size_of(after[10].image) == ("JPEG", (33, 25))


def test_colour_is_subsampled_as_asked(folder, tmp_path):
    found = {}
    for subsampling in ("4:4:4", "4:2:0"):
        encoding = Encoding(resize_px=8, subsampling=subsampling)
        convert(folder, tmp_path / subsampling[2:].replace(":", ""), encoding=encoding)
        content = open_dataset(tmp_path / subsampling[2:].replace(":", ""), split="train")[0].image
        with Image.open(io.BytesIO(content)) as image:
            found[subsampling] = [part[1] for part in image.layer]
    assert found == {"4:4:4": [1, 1, 1], "4:2:0": [2, 1, 1]}


def test_pixels_become_png_files_without_loss(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(3, 5, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([2, 0, 1]))
    assert convert(tmp_path / "a.npz", tmp_path / "out").counts == {"train": 3}
    for before, example in zip(images, open_dataset(tmp_path / "out"), strict=True):
        with Image.open(io.BytesIO(example.image)) as image:
            np.testing.assert_array_equal(np.asarray(image), before)
    features = json.loads((tmp_path / "out" / "features.json").read_text())
    features = features["featuresDict"]["features"]
    assert features["image"]["image"]["shape"]["dimensions"] == ["-1", "-1", "1"]
    assert features["label"]["classLabel"]["numClasses"] == "3"


def test_a_bad_image_stops_it_and_leaves_nothing_behind(folder, tmp_path):
    (folder / "train" / "dog" / "06.jpg").write_bytes(b"<html>")
    with pytest.raises(BadImage, match=r"dog/06\.jpg: .*not a JPEG, PNG, WEBP"):
        convert(folder, tmp_path / "out", examples_per_shard=2)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_bad_images_are_skipped_and_listed_on_request(folder, tmp_path):
    (folder / "train" / "dog" / "06.jpg").write_bytes(b"<html>")
    prepared = convert(folder, tmp_path / "out", skip_bad=True)
    assert prepared.counts == {"train": 10, "val": 2}
    assert [Path(line.split(":")[0]).name for line in prepared.skipped] == ["06.jpg"]
    assert (tmp_path / "out" / "skipped.txt").read_text().splitlines() == list(prepared.skipped)
    assert len(open_dataset(tmp_path / "out", split="train")) == 10


def test_ctrl_c_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("resnetjax.data.tfds_writer.TFDSWriter.finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_what_exists_is_not_overwritten(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="out exists: choose another name"):
        convert(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../a"}, "name='../a' is not allowed: use small letters"),
        ({"examples_per_shard": 0}, "examples_per_shard=0 is not allowed"),
        ({"encoding": Encoding(resize_px=0)}, "resize_px=0 is not allowed"),
        ({"encoding": Encoding(quality=101)}, "quality=101 is not allowed"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(folder, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        convert(folder, tmp_path / "out", **options)


def test_the_script_says_what_it_made_or_what_is_wrong(folder, tmp_path):
    command = [sys.executable, "-W", "error", str(SCRIPT), str(folder), str(tmp_path / "out")]
    first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert first.stdout.splitlines()[0] == f"train: 11 examples in {tmp_path / 'out'}"
    assert (first.returncode, second.returncode) == (0, 1)
    assert second.stderr.startswith("error: ")
