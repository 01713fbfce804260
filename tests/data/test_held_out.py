"""What is held out of a data set that is not split itself, and images with rows of values."""

import numpy as np
import pytest
from PIL import Image

from resnetjax.data.datasets import open_dataset, splits
from resnetjax.data.held_out import hold_out, labels_of, open_both, outputs_of
from resnetjax.data.readers.arrays import ArrayDataset
from resnetjax.errors import BadImage, ConfigError, CorruptFile, UnknownName, UnsupportedFile


def of_classes(*counts: int) -> ArrayDataset:
    labels = np.repeat(np.arange(len(counts)), counts)
    return ArrayDataset(np.zeros((len(labels), 2, 2), np.uint8), labels, name="some")


def test_of_each_class_the_share_is_held_out_and_nothing_twice():
    rest, held = hold_out(of_classes(40, 10, 2, 1), share=0.25, seed=0)
    assert np.bincount(rest.labels).tolist() == [30, 8, 1, 1]
    assert np.bincount(held.labels, minlength=4).tolist() == [10, 2, 1, 0]
    assert sorted([*rest.indices, *held.indices]) == list(range(53))


def test_what_is_held_out_of_a_class_follows_from_the_seed_the_class_and_the_place_alone():
    def held(counts, seed, label):
        data = of_classes(*counts)
        indices = hold_out(data, share=0.3, seed=seed)[1].indices
        first = int(np.flatnonzero(data.labels == label)[0])
        return [i - first for i in indices if data.labels[i] == label]

    assert held((20, 30), 0, 1) == held((5, 30, 7), 0, 1)
    assert held((30, 30), 0, 0) != held((30, 30), 0, 1)
    assert held((30, 30), 0, 0) != held((30, 30), 1, 0)


@pytest.mark.parametrize("counts", [(1, 1), (1,)])
def test_a_share_that_takes_nothing_is_refused(counts):
    with pytest.raises(ConfigError, match=r"held_out=0\.25 .* to evaluate on"):
        hold_out(of_classes(*counts), share=0.25, seed=0)


@pytest.fixture
def photos(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    return tmp_path


NAMES = {"train_split": "train", "test_split": "validation"}


def test_a_folder_of_class_folders_is_split_by_class(photos):
    train, test = open_both(str(photos), **NAMES, held_out=0.25, seed=1)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert sorted(test[i].label for i in range(len(test))) == [0, 1]
    assert {train[i].name for i in range(6)} | {test[i].name for i in range(2)} == {
        str(path) for path in photos.glob("*/*.png")
    }


def test_a_split_of_its_own_goes_before(photos):
    for split in ("train", "test"):
        (photos / split).mkdir()
    (photos / "cat").rename(photos / "train" / "cat")
    (photos / "dog").rename(photos / "test" / "dog")
    train, test = open_both(str(photos), **NAMES, held_out=0.25)
    assert (len(train), len(test)) == (4, 4)


def test_what_is_evaluated_on_may_be_elsewhere_and_either_may_be_a_whole(photos, tmp_path):
    np.savez(tmp_path / "some.npz", x_test=np.zeros((3, 4, 4, 3), np.uint8), y_test=np.arange(3))
    apart = {"test_path": str(tmp_path / "some.npz"), "held_out": 0.25}
    train, test = open_both(str(photos), **NAMES, **apart)
    assert (len(train), len(test)) == (8, 3)
    with pytest.raises(UnknownName, match="has no split 'train'"):
        open_both(apart["test_path"], **NAMES, test_path=str(photos))


def test_without_a_share_a_missing_split_is_missing(photos):
    with pytest.raises(UnknownName, match="not divided"):
        open_both(str(photos), **NAMES)


# ---- Rows of values.


def write(folder, text: str):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.csv").write_text(text)
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    return folder


def test_a_table_gives_each_image_its_row_and_the_columns_are_the_names(tmp_path):
    folder = write(tmp_path, "file_name,round,\u00e4ge\na.png,1,2.5\nb.png,0,-1e3\n")
    data = open_dataset(folder)
    assert data.class_names == ("round", "\u00e4ge")
    assert labels_of(data).tolist() == [[1.0, 2.5], [0.0, -1000.0]]
    assert (outputs_of(data), data[0].label.tolist()) == (2, [1.0, 2.5])
    assert data[0].image == (folder / "a.png").read_bytes()
    with pytest.raises(BadImage, match=r"b\.png: No such file"):
        data[1]


def test_a_table_in_each_split_is_found(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / split, "file_name,x\na.png,1\n")
    assert set(splits(tmp_path)) == {"train", "validation"}
    assert len(open_dataset(tmp_path, split="val")) == 1


def test_a_metadata_file_of_another_kind_leaves_class_folders_as_they_are(photos):
    (photos / "metadata.csv").write_text("id,breed\n1,pug\n")
    assert open_dataset(photos).class_names == ("cat", "dog")


@pytest.mark.parametrize("split", ["", "train"])
def test_the_only_folder_beside_a_table_is_not_taken_for_a_class(tmp_path, split):
    folder = tmp_path / split
    (folder / "images").mkdir(parents=True)
    write(folder, "filename,x\nimages/a.png,1\n")
    (folder / "a.png").rename(folder / "images" / "a.png")
    with pytest.raises(UnsupportedFile, match=r"is no table of images.*found 'filename', 'x'"):
        open_dataset(tmp_path, split=split or None)


@pytest.mark.parametrize("header", ["file_name;x", "File_Name,x", "file_name\tx"])
def test_a_table_beside_class_folders_is_not_passed_over_for_its_spelling(photos, header):
    (photos / "metadata.csv").write_text(f"{header}\n")
    with pytest.raises(UnsupportedFile, match=r"metadata\.csv is no table of images"):
        open_dataset(photos)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("file_name\na.png\n", UnsupportedFile, "no values"),
        ("file_name,x\n", UnsupportedFile, r"metadata\.csv has no rows"),
        ("", UnsupportedFile, r"metadata\.csv is no table.*'file_name' and.*found none"),
        ("picture,x\na.png,1\n", UnsupportedFile, r"csv is no table.*found 'picture', 'x'"),
        ("file_name;x\na.png;1\n", UnsupportedFile, "by commas.*found 'file_name;x'"),
        ("file_name,x\na.png,cat\n", CorruptFile, "line 2: .*'cat'"),
        ("file_name,x\na.png,1\nb.png\n", CorruptFile, "line 3"),
        ("file_name,x\na.png,nan\n", CorruptFile, "line 2: .*not finite"),
        ("file_name,x\n../a.png,1\n", CorruptFile, r"'\.\./a\.png' is no file below"),
        ("file_name,x\n/etc/hosts,1\n", CorruptFile, "is no file below"),
    ],
)
def test_a_table_that_cannot_be_taken_is_refused_by_line(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        open_dataset(write(tmp_path, text))


class Rows:
    class_names = ("a", "b")

    def __init__(self, labels) -> None:
        self.labels = np.asarray(labels)

    def __len__(self) -> int:
        return len(self.labels)


def test_equal_rows_of_values_are_held_out_as_a_class():
    rows = Rows(np.repeat([[0, 1], [1, 1]], [8, 4], axis=0))
    _, held = hold_out(rows, share=0.25, seed=0)
    assert held.labels.tolist() == [[0, 1], [0, 1], [1, 1]]


def test_rows_too_rare_for_the_share_are_held_out_together():
    rng = np.random.default_rng(0)
    for labels in (rng.integers(0, 2, (500, 40)), rng.random((500, 1)), np.arange(500)[:, None]):
        rest, held = hold_out(Rows(labels), share=0.2, seed=0)
        assert (len(rest), len(held)) == (400, 100)
        spread = labels.std(0) / 100**0.5
        assert (np.abs(held.labels.mean(0) - labels.mean(0)) < 4 * spread).all()
