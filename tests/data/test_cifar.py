"""CIFAR in its authors' binary version: files of the layout that cs.toronto.edu describes."""

import io
import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from resnetjax.data.datasets import open_dataset, splits
from resnetjax.errors import CorruptFile, UnsupportedFile

# By the page: <1 x label><3072 x pixel>, or <1 x coarse label><1 x fine label><3072 x pixel>; 1024
# reds row by row, then as many greens and blues.
TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
NAMES = "airplane automobile bird cat deer dog frog horse ship truck"


def record(image, *labels) -> bytes:
    red, green, blue = (image[:, :, channel].tobytes() for channel in range(3))
    return bytes(labels) + red + green + blue


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (14, 32, 32, 3), np.uint8)


@pytest.fixture
def cifar10(tmp_path, images):
    """Two images a training file, four to test on; image i is of class i % 10."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = [record(image, i % 10) for i, image in enumerate(images)]
    for number, name in enumerate(TRAIN):
        (folder / name).write_bytes(b"".join(records[2 * number : 2 * number + 2]))
    (folder / "test_batch.bin").write_bytes(b"".join(records[10:]))
    (folder / "batches.meta.txt").write_text(NAMES.replace(" ", "\n") + "\n\n")
    (folder / "readme.html").write_text("<meta ...>")
    return folder


@pytest.fixture
def cifar100(tmp_path, images):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    records = [record(image, 19 - i, 99 - i) for i, image in enumerate(images)]
    (folder / "train.bin").write_bytes(b"".join(records[:10]))
    (folder / "test.bin").write_bytes(b"".join(records[10:]))
    return folder


@pytest.mark.parametrize("where", ["folder", "parent", "renamed"])
def test_cifar_10_is_read_file_by_file(cifar10, images, where):
    path = {
        "folder": lambda: cifar10,
        "parent": lambda: cifar10.parent,
        "renamed": lambda: cifar10.rename(cifar10.parent / "mine"),
    }[where]()
    assert splits(path) == ("train", "test")
    train, test = (open_dataset(path, split=split) for split in ("train", "val"))
    assert train.class_names == tuple(NAMES.split())
    for data, first, count in ((train, 0, 10), (test, 10, 4)):
        assert len(data) == count
        for i in range(count):
            np.testing.assert_array_equal(data[i].image, images[first + i])
            assert data[i].label == (first + i) % 10
    assert train[9].name == "data_batch_5.bin:1"


def test_cifar_100_has_its_fine_labels(cifar100, images):
    test = open_dataset(cifar100, split="test")
    assert [example.label for example in test] == [89, 88, 87, 86]
    assert (test.class_names[0], test.class_names[89]) == ("apple", "tractor")
    np.testing.assert_array_equal(test[3].image, images[13])


def test_photographs_look_as_they_did(tmp_path, shared_data):
    with np.load(shared_data / "cifar10-jpeg.npz") as arrays:
        ends, labels = arrays["test_offsets"][:9], arrays["test_labels"][:8]
        files = [arrays["test_jpeg"][a:b].tobytes() for a, b in itertools.pairwise(ends)]
    photos = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    content = b"".join(record(image, y) for image, y in zip(photos, labels, strict=True))
    for name in (*TRAIN, "test_batch.bin"):
        (tmp_path / name).write_bytes(content)
    test = open_dataset(tmp_path, split="test")
    assert [test[i].label for i in range(8)] == labels.tolist()
    np.testing.assert_array_equal([test[i].image for i in range(8)], photos)


@pytest.mark.parametrize("beside", ["cifar-10-batches-bin", "cifar-100-python"])
def test_beside_folders_of_splits_it_is_left_alone(cifar10, images, beside):
    root = cifar10.parent
    (root / beside).mkdir(exist_ok=True)
    for split in ("train", "val"):
        (root / split / "cat").mkdir(parents=True)
        Image.fromarray(images[0]).save(root / split / "cat" / "0.png")
    assert splits(root) == ("train", "val")
    assert open_dataset(root, split="train").class_names == ("cat",)


def test_pickled_it_carries_no_images(cifar10, images):
    copy = pickle.dumps(open_dataset(cifar10, split="train"))
    assert len(copy) < 3072
    np.testing.assert_array_equal(pickle.loads(copy)[7].image, images[7])


def test_files_that_are_missing_cut_off_or_of_other_labels_are_corrupt(cifar10, cifar100):
    whole = (cifar10 / TRAIN[1]).read_bytes()
    (cifar10 / TRAIN[1]).write_bytes(whole[:-1])
    with pytest.raises(CorruptFile, match=r"data_batch_2\.bin has 6,145 bytes.*of 3,073 is"):
        open_dataset(cifar10, split="train")
    (cifar10 / TRAIN[1]).write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(CorruptFile, match=r"data_batch_2\.bin: a label is 10, of 10 classes"):
        open_dataset(cifar10, split="train")
    (cifar10 / TRAIN[1]).unlink()
    with pytest.raises(CorruptFile, match=r"data_batch_2\.bin is missing"):
        open_dataset(cifar10, split="train")
    assert len(open_dataset(cifar10, split="test")) == 4
    with pytest.raises(UnsupportedFile, match=r"open one of .*-batches-bin, .*cifar-100-binary"):
        open_dataset(cifar10.parent, split="train")


@pytest.mark.parametrize(
    ("folder", "files", "binary"),
    [
        (
            "cifar-10-batches-py",
            ("batches.meta", *(name.removesuffix(".bin") for name in TRAIN), "test_batch"),
            "cifar-10-batches-bin",
        ),
        ("cifar-100-python", ("meta", "train", "test", "file.txt~"), "cifar-100-binary"),
    ],
)
def test_the_python_version_is_refused_with_what_to_unpack_instead(tmp_path, folder, files, binary):
    (tmp_path / folder).mkdir()
    for name in files:
        (tmp_path / folder / name).write_bytes(b"\x80\x02}.")
    for path in (tmp_path, tmp_path / folder):
        with pytest.raises(UnsupportedFile, match=rf"has {folder}, whose pickles .*{binary}"):
            open_dataset(path, split="train")
