import errno
import json
import multiprocessing
import os
import pickle
import re
import sys
import threading

import numpy as np
import pytest

from resnetjax.cache import cache_folder
from resnetjax.data.datasets import open_dataset, splits
from resnetjax.errors import (
    BadImage,
    CorruptFile,
    MissingExtra,
    UnknownName,
    UnsupportedFile,
)


def write(path, content=b"image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def first_bytes(dataset, index):
    return bytes(dataset[index].image)[:3]


def test_image_folders_have_the_order_of_torchvision(tmp_path):
    # What torchvision.datasets.ImageFolder gives for these files: capitals first, a file of the
    # folder before those of its sub-folders, however they are called.
    for name in ("b/2.png", "b/10.JPEG", "b/a/1.jpg", "B/x.webp", "B/x.txt", "b/z.jpeg", "c/1.bmp"):
        write(tmp_path / name, name.encode())
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("B", "b", "c")
    assert [(example.image, example.label) for example in dataset] == [
        (b"B/x.webp", 0),
        (b"b/10.JPEG", 1),
        (b"b/2.png", 1),
        (b"b/z.jpeg", 1),
        (b"b/a/1.jpg", 1),
        (b"c/1.bmp", 2),
    ]
    assert dataset[0].name == str(tmp_path / "B" / "x.webp")


def test_what_file_browsers_and_archives_leave_behind_is_no_class_and_no_image(tmp_path):
    for name in ("cat/1.jpg", "cat/._1.jpg", ".cache/1.jpg", "__MACOSX/cat/._1.jpg", "dog/1.jpg"):
        write(tmp_path / name)
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert [example.name for example in dataset] == [
        str(tmp_path / name / "1.jpg") for name in ("cat", "dog")
    ]


@pytest.mark.parametrize("name", ["valid", "eval"])
def test_splits_of_image_folders_go_by_their_common_names(tmp_path, name):
    write(tmp_path / "training" / "cat" / "1.jpg", b"train")
    write(tmp_path / name / "cat" / "1.jpg", b"val")
    assert set(splits(tmp_path)) == {"training", name}
    assert open_dataset(tmp_path, split="train")[0].image == b"train"
    assert open_dataset(tmp_path, split="val")[0].image == b"val"
    with pytest.raises(UnknownName, match=r"no split 'extra': it has .*training"):
        open_dataset(tmp_path, split="extra")
    with pytest.raises(UnknownName, match=r"several splits: pass split=, one of .*training"):
        open_dataset(tmp_path)


def test_a_whole_is_not_taken_for_the_split_that_was_asked_for(tmp_path):
    write(tmp_path / "cat" / "1.jpg")
    assert splits(tmp_path) == ("",)
    with pytest.raises(UnknownName, match="not divided into splits: leave split='train' out"):
        open_dataset(tmp_path, split="train")


def test_a_validation_split_is_preferred_to_a_test_split(tmp_path):
    for name in ("train", "test", "validation"):
        write(tmp_path / name / "cat" / "1.jpg", name.encode())
    assert open_dataset(tmp_path, split="val")[0].image == b"validation"
    assert open_dataset(tmp_path, split="test")[0].image == b"test"


def test_class_folders_without_images_are_refused_by_name(tmp_path):
    write(tmp_path / "cat" / "1.jpg")
    write(tmp_path / "dog" / "notes.txt")
    with pytest.raises(UnsupportedFile, match="no images in dog, of 2 class folders"):
        open_dataset(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write(tmp_path / "cat" / "old" / "1.jpg")
    write(tmp_path / "cat" / "2.jpg")
    scandir = os.scandir

    def refuse(path):  # root may list all folders, whatever their mode
        if os.path.basename(path) == "old":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UnsupportedFile, match=r"cat/old cannot be listed: Permission denied"):
        open_dataset(tmp_path)


def test_images_without_classes_are_refused_with_what_to_do(tmp_path):
    write(tmp_path / "train" / "n01440764" / "1.JPEG")
    write(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UnsupportedFile, match=r"val has images.*ILSVRC2012_img_val.tar and its"):
        open_dataset(tmp_path, split="val")


def test_an_unreadable_image_is_a_bad_image(tmp_path):
    write(tmp_path / "cat" / "1.jpg")
    write(tmp_path / "cat" / "2.jpg")
    dataset = open_dataset(tmp_path)
    (tmp_path / "cat" / "2.jpg").unlink()
    assert dataset[0].image == b"image"
    with pytest.raises(BadImage, match=r"cat/2\.jpg: No such file"):
        dataset[1]


def test_what_is_no_data_set_is_refused_with_what_was_looked_for_and_found(tmp_path):
    write(tmp_path / "notes.txt")
    with pytest.raises(UnsupportedFile, match=r"(?s)looked for.*\.parquet.*found 1 .*notes\.txt"):
        open_dataset(tmp_path)
    with pytest.raises(UnsupportedFile, match=r"(?s)notes\.txt is no data set: looked for"):
        open_dataset(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="nothing is at"):
        open_dataset(tmp_path / "absent")


@pytest.mark.parametrize("index", [-1, 359])
def test_an_index_out_of_range_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"example {index} of 359"):
        open_dataset("digits", split="test")[index]


def test_digits_keep_every_image_once_and_a_fifth_of_each_class_apart():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    train, test = (open_dataset("digits", split=split) for split in ("train", "test"))
    found = sorted((e.image.tobytes(), e.label) for dataset in (train, test) for e in dataset)
    scaled = [np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in images]
    assert found == sorted(zip(scaled, labels.tolist(), strict=True))
    held_out = np.bincount([example.label for example in test])
    np.testing.assert_array_equal(held_out, np.rint(np.bincount(labels) / 5))
    assert test.class_names == tuple("0123456789")


def test_the_held_out_digits_never_change():
    # Recorded when they were first drawn: another choice makes results incomparable.
    test = open_dataset("digits", split="test")
    assert sum(int(e.image.sum()) * (i + 1) for i, e in enumerate(test)) == 321_320_196


def test_the_shared_cifar10_is_read_as_jpeg_files(shared_data):
    path = shared_data / "cifar10-jpeg.npz"
    train, test = (open_dataset(path, split=split) for split in ("train", "val"))
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.class_names[:2] == ("airplane", "automobile")
    with np.load(path) as arrays:
        assert [test[i].label for i in range(100)] == arrays["test_labels"][:100].tolist()
    assert {first_bytes(train, i) for i in range(0, 50_000, 499)} == {b"\xff\xd8\xff"}
    assert train[49_999].image[-2:] == b"\xff\xd9"
    assert train[7].name == "cifar10-jpeg.npz:7"


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("x_train", "y_train"), "train"),
        (("val_images", "val_labels"), "validation"),
        (("images", "labels"), None),
    ],
)
def test_npz_files_are_read_by_the_names_of_their_members(tmp_path, names, split):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.savez_compressed(
        tmp_path / "a.npz", **{names[0]: images, names[1]: np.array([[1], [0]], np.uint8)}
    )
    dataset = open_dataset(tmp_path / "a.npz", split=split)
    assert (len(dataset), dataset[0].label) == (2, 1)
    np.testing.assert_array_equal(dataset[1].image, images[1][..., np.newaxis])


def test_npz_members_of_other_names_or_types_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=np.zeros(3))
    with pytest.raises(UnsupportedFile, match=r"looked for x_train.*found pictures"):
        open_dataset(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 3, 3)), labels=np.zeros(2, int))
    with pytest.raises(UnsupportedFile, match=r"b.npz: the images are float64\[2, 3, 3\]"):
        open_dataset(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", images=np.zeros((2, 3, 3), np.uint8), labels=np.zeros(3, int))
    with pytest.raises(UnsupportedFile, match=r"labels are int64\[3\].*shape \[2\]"):
        open_dataset(tmp_path / "c.npz")


def test_a_pickle_in_an_npz_file_is_not_run(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([os.getcwd], object), labels=np.zeros(1, int))
    with pytest.raises(CorruptFile, match=r"a.npz is not a whole npz file: images.npy says object"):
        open_dataset(tmp_path / "a.npz")


def test_an_npz_header_that_asks_for_more_than_there_is_takes_no_memory(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 4, 4), np.uint8), labels=np.zeros(1, int))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content.replace(b"(1, 4, 4), }   ", b"(1<<40,4,4),}  "))
    (tmp_path / "b.npz").write_bytes(content.replace(b"(1, 4, 4), }      ", b"(9999999, 4, 4), }"))
    for name in ("a.npz", "b.npz"):
        assert (tmp_path / name).read_bytes() != content
        with pytest.raises(CorruptFile, match=f"{name} is not a whole npz file"):
            open_dataset(tmp_path / name)


@pytest.mark.parametrize("offsets", [[0, 4, 2, 6], [0, 2, 4, 5], [1, 2, 4, 6], [0, 2, 4, 7]])
def test_offsets_that_do_not_fit_the_files_are_refused(tmp_path, offsets):
    np.savez(
        tmp_path / "a.npz",
        train_jpeg=np.zeros(6, np.uint8),
        train_offsets=np.array(offsets),
        train_labels=np.zeros(3, int),
    )
    with pytest.raises(CorruptFile, match="the offsets do not rise from 0 to the end"):
        open_dataset(tmp_path / "a.npz")


@pytest.mark.parametrize("kept", [0, 50, 99])
def test_a_truncated_npz_file_is_corrupt(tmp_path, kept):
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 9, 9), np.uint8), labels=np.zeros(9, int))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) * kept // 100])
    with pytest.raises(CorruptFile, match=r"a.npz is not a whole npz file"):
        open_dataset(tmp_path / "a.npz")


@pytest.fixture
def parquet(tmp_path, jpeg):
    """A folder as the hub has it: two files of two row groups each."""
    import pyarrow as pa
    import pyarrow.parquet

    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "data").mkdir()
    for file in range(2):
        rows = [{"bytes": jpeg(file * 5 + row), "path": f"{row}.jpg"} for row in range(5)]
        labels = pa.array([row % 2 for row in range(5)], pa.int64())
        table = pa.table({"image": rows, "label": labels}).replace_schema_metadata(metadata)
        path = tmp_path / "data" / f"train-{file:05}-of-00002.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=3, write_page_checksum=True)
    return tmp_path


def test_parquet_files_are_read_with_their_class_names(parquet, jpeg):
    dataset = open_dataset(parquet, split="train")
    assert (len(dataset), dataset.class_names) == (10, ("cat", "dog"))
    assert [example.image for example in dataset] == [jpeg(i) for i in range(10)]
    assert [example.label for example in dataset] == [0, 1, 0, 1, 0] * 2
    assert dataset[9].name == "train-00001-of-00002.parquet:4.jpg"


def test_a_missing_parquet_file_is_noticed(parquet):
    (parquet / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(CorruptFile, match="of 2 files, those numbered 0 are missing"):
        open_dataset(parquet)


def test_a_truncated_parquet_file_is_corrupt(parquet):
    path = parquet / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=r"00001-of-00002.parquet is not a whole parquet file"):
        open_dataset(parquet)


def test_a_damaged_parquet_page_surfaces_when_its_rows_are_read(parquet):
    path = parquet / "data" / "train-00001-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[content.index(b"JFIF")] ^= 1
    path.write_bytes(content)
    dataset = open_dataset(parquet)
    assert dataset[4].label == 0
    with pytest.raises(CorruptFile, match=r"train-00001-of-00002.parquet.*CRC"):
        dataset[5]


def test_parquet_columns_of_other_names_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UnsupportedFile, match=r"no column is an image.*found text"):
        open_dataset(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("package", "name"), [("pyarrow", "a.parquet"), ("array_record", "a.array_record")]
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package, name):
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    write(tmp_path / name)
    message = re.escape(f'needs {package}: pip install "resnetjax[data]"')
    with pytest.raises(MissingExtra, match=message):
        open_dataset(tmp_path / name)


def test_another_process_reads_a_pickled_data_set(parquet, jpeg):
    dataset = open_dataset(parquet)
    dataset[0]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(first_label_and_image, (dataset,)) == (1, jpeg(6))


def first_label_and_image(dataset):
    return dataset[6].label, dataset[6].image


def test_pickled_data_sets_carry_no_images(parquet, tmp_path, shared_data):
    np.savez(tmp_path / "a.npz", images=np.zeros((99, 99, 9), np.uint8), labels=np.zeros(99, int))
    npz = open_dataset(tmp_path / "a.npz")
    for dataset in (npz, open_dataset(parquet), open_dataset(shared_data / "cifar10-jpeg.npz",
                                                             split="test")):  # fmt: skip
        dataset[0]
        copy = pickle.dumps(dataset)
        assert len(copy) < 2_000
        assert pickle.loads(copy)[3].name == dataset[3].name


def test_threads_read_the_same_as_one(parquet):
    dataset = open_dataset(parquet)
    expected = [example.image for example in dataset]
    found = {}

    def read(thread):
        order = np.random.default_rng(thread).permutation(10)
        found[thread] = {int(i): dataset[i].image for i in order}

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[n] == dict(enumerate(expected)) for n in range(8))


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "home"
    monkeypatch.delenv("RESNETJAX_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "resnetjax"
