import io
import json
import os
import pickle
import tarfile
import threading

import numpy as np
import pytest
import scipy.io

from resnetjax.data.datasets import open_dataset, splits
from resnetjax.data.readers import tar_files
from resnetjax.errors import CorruptFile, UnknownName, UnsupportedFile

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def samples(jpeg, numbers):
    files = {}
    for number in numbers:
        files[f"a/{number:04}.jpg"] = jpeg(number)
        files[f"a/{number:04}.cls"] = b"%d" % (number % 10)
    return files


def indexes(tmp_path):
    return sorted((tmp_path / "home" / "indexes").iterdir())


@pytest.fixture
def shard(tmp_path, jpeg, write_tar):
    return write_tar(tmp_path / "train-000000.tar", samples(jpeg, range(12)))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_webdataset_shards_are_read_in_every_tar_format(tmp_path, jpeg, write_tar, format):
    long = "é" * 40 + "/" + "é" * (40 if format == tarfile.USTAR_FORMAT else 120)
    files = {
        f"{long}.jpeg": jpeg(1),
        f"{long}.cls": b"7\n",
        "b.json": json.dumps({"label": 3, "text": "cat"}).encode(),
        "b.mask.png": b"mask",
        "b.png": b"png",
        "c.photo.WEBP": b"webp",
        "c.json": b'{"label": 9}',
        "c.cls": b"4",
    }
    write_tar(tmp_path / "a.tar", files, format=format)
    dataset = open_dataset(tmp_path / "a.tar")
    assert [(example.image, example.label) for example in dataset] == [
        (jpeg(1), 7),
        (b"png", 3),
        (b"webp", 4),
    ]
    assert dataset[0].name == f"a.tar:{long}.jpeg"


def test_members_are_where_tarfile_finds_them(shard):
    from resnetjax.data.readers.open_files import ByteFile

    with tarfile.open(shard) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive]
    assert [tuple(member) for member in tar_files.members(ByteFile(shard))] == expected


def test_links_and_folders_in_a_tar_are_no_files(tmp_path, jpeg):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("a", tarfile.DIRTYPE), ("a/9.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name, content in samples(jpeg, [1]).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert [example.label for example in open_dataset(tmp_path / "a.tar")] == [1]


def test_brace_patterns_name_several_shards(tmp_path, jpeg, write_tar):
    for number in range(3):
        numbers = range(number * 2, number * 2 + 2)
        write_tar(tmp_path / f"train-{number:04}.tar", samples(jpeg, numbers))
    dataset = open_dataset(tmp_path / "train-{0000..0002}.tar")
    assert [example.label for example in dataset] == list(range(6))
    assert len(open_dataset(tmp_path / "train-{0000..0000}.tar")) == 2
    with pytest.raises(FileNotFoundError, match=r"of 4 files, 1 are missing: .*train-0003.tar"):
        open_dataset(tmp_path / "train-{0000..0003}.tar")


@pytest.mark.parametrize("pattern", ["pets-{}-00.tar", "{}/00.tar", "{}.tar"])
def test_webdataset_splits_are_told_by_file_or_folder(tmp_path, jpeg, write_tar, pattern):
    for number, split in enumerate(("train", "validation")):
        path = tmp_path / pattern.format(split)
        path.parent.mkdir(exist_ok=True)
        write_tar(path, samples(jpeg, [number]))
    assert splits(tmp_path) == ("train", "validation")
    assert [example.label for example in open_dataset(tmp_path, split="val")] == [1]


def test_a_sample_without_label_spoils_only_itself(tmp_path, jpeg, write_tar):
    files = {
        "0.jpg": jpeg(0),
        "1.cls": b"1",
        "2.jpg": jpeg(2),
        "2.cls": b"two",
        "3.jpg": jpeg(3),
        "3.json": b'{"label": -1}',
        "4.jpg": jpeg(4),
        "4.cls": b"4",
    }
    dataset = open_dataset(write_tar(tmp_path / "a.tar", files))
    faults = ("0.jpg has no label", "1 has no image", "2.jpg has the label b'two'", "3.jpg has the")
    for index, fault in enumerate(faults):
        with pytest.raises(CorruptFile, match=f"a.tar:{fault}"):
            dataset[index]
    assert dataset[4].label == 4


def test_a_tar_without_labels_is_refused(tmp_path, jpeg, write_tar):
    write_tar(tmp_path / "a.tar", {"cat/0.jpg": jpeg(0), "cat/1.jpg": jpeg(1)})
    with pytest.raises(UnsupportedFile, match="no name has both an image"):
        open_dataset(tmp_path / "a.tar")


def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(UnsupportedFile, match=r"a.tar is compressed.*decompress it first"):
        open_dataset(tmp_path / "a.tar")


def test_a_tar_cut_off_anywhere_is_corrupt(shard):
    content = shard.read_bytes()
    end = len(content.rstrip(b"\0"))
    for size in (0, 100, 512, 700, end // 2, end // 512 * 512, end):
        shard.write_bytes(content[:size])
        with pytest.raises(CorruptFile, match=f"the archive is cut off at offset {size}"):
            open_dataset(shard)


def test_a_damaged_header_is_corrupt_where_tarfile_sees_the_end(shard):
    content = bytearray(shard.read_bytes())
    position = content.index(b"a/0005.jpg")
    content[position + 3] ^= 1
    shard.write_bytes(content)
    with tarfile.open(shard) as archive:
        assert len(archive.getmembers()) == 10
    with pytest.raises(CorruptFile, match=f"at offset {position} is no header of a tar archive"):
        open_dataset(shard)


def test_an_index_is_kept_and_used(tmp_path, shard, monkeypatch):
    expected = list(open_dataset(shard))
    assert len(indexes(tmp_path)) == 1
    monkeypatch.setattr(tar_files.tarfile.TarInfo, "frombuf", None)  # no header can be read
    assert list(open_dataset(shard)) == expected


def test_an_index_goes_stale_with_its_file(tmp_path, shard, jpeg, write_tar):
    open_dataset(shard)
    write_tar(shard, samples(jpeg, range(5)))
    assert len(open_dataset(shard)) == 5
    os.utime(shard, ns=(0, 0))
    old = indexes(tmp_path)[0].read_bytes()
    open_dataset(shard)
    (new,) = indexes(tmp_path)
    assert new.read_bytes() != old


@pytest.mark.parametrize("damage", [lambda old: old[:-30], lambda old: b"", lambda old: old[::-1]])
def test_a_corrupt_index_is_built_again(tmp_path, shard, damage):
    expected = list(open_dataset(shard))
    (index,) = indexes(tmp_path)
    good = index.read_bytes()
    index.write_bytes(damage(good))
    assert list(open_dataset(shard)) == expected
    assert indexes(tmp_path) == [index]
    assert len(index.read_bytes()) == len(good)


def test_a_bit_flipped_anywhere_in_an_index_changes_no_example(tmp_path, shard):
    expected = list(open_dataset(shard))
    (index,) = indexes(tmp_path)
    good = index.read_bytes()
    for position in np.random.default_rng(0).integers(len(good), size=200).tolist():
        index.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        assert list(open_dataset(shard)) == expected


def test_an_index_that_cannot_be_kept_gives_a_warning(tmp_path, shard):
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="train-000000.tar is built each time"):
        assert len(open_dataset(shard, cache=tmp_path / "file")) == 12


def test_more_shards_than_may_be_open_are_read(tmp_path, jpeg, write_tar, monkeypatch):
    monkeypatch.setattr("resnetjax.data.readers.open_files.MAX_OPEN", 2)
    for number in range(5):
        write_tar(tmp_path / f"{number}.tar", samples(jpeg, [number]))
    dataset = open_dataset(tmp_path / "{0..4}.tar")
    before = len(os.listdir("/proc/self/fd"))
    assert [dataset[i].label for i in (0, 4, 2, 1, 3, 0, 4)] == [0, 4, 2, 1, 3, 0, 4]
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_threads_and_unpickled_copies_read_the_same(shard):
    dataset = open_dataset(shard)
    expected = list(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    found = []
    threads = [
        threading.Thread(target=lambda which=which: found.append(list(which)))
        for which in [dataset, copy] * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def test_a_file_that_shrinks_after_opening_is_a_corrupt_example(shard):
    dataset = open_dataset(shard)
    os.truncate(shard, 9_000)
    assert dataset[0].label == 0
    with pytest.raises(CorruptFile, match=r"train-000000.tar: .* bytes were expected at offset"):
        dataset[11]


def tar_bytes(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, file in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(file)
            archive.addfile(member, io.BytesIO(file))
    return content.getvalue()


@pytest.fixture
def imagenet(tmp_path, jpeg, write_tar):
    """Three images of two classes to train with, three to validate with, without labels."""
    inner = {
        "n01443537.tar": tar_bytes({"n01443537_2.JPEG": jpeg(1)}),
        "n01440764.tar": tar_bytes({"n01440764_1.JPEG": jpeg(2), "n01440764_7.JPEG": jpeg(3)}),
    }
    write_tar(tmp_path / TRAIN, inner)
    names = (2, 1, 3)
    write_tar(tmp_path / VAL, {f"ILSVRC2012_val_{n:08}.JPEG": jpeg(n) for n in names})
    return tmp_path


def test_the_tar_of_tars_of_imagenet_is_read_in_place(imagenet, jpeg):
    dataset = open_dataset(imagenet, split="train")
    assert [(example.image, example.label) for example in dataset] == [
        (jpeg(1), 1),
        (jpeg(2), 0),
        (jpeg(3), 0),
    ]
    assert len(dataset.class_names) == 1000
    assert dataset.class_names[1] == "n01443537"
    assert dataset[2].name == f"{TRAIN}:n01440764_7.JPEG"
    assert list(open_dataset(imagenet / TRAIN)) == list(dataset)
    with pytest.raises(UnknownName, match="has no split 'val': it has train"):
        open_dataset(imagenet / TRAIN, split="val")


def test_validation_labels_are_read_from_tensorflows_list(imagenet, jpeg):
    lines = "n01443537\nn01440764\nn15075141\n"
    (imagenet / "imagenet_2012_validation_synset_labels.txt").write_text(lines)
    dataset = open_dataset(imagenet, split="validation")
    assert [(e.image, e.label) for e in dataset] == [(jpeg(1), 1), (jpeg(2), 0), (jpeg(3), 999)]


def test_validation_labels_are_read_from_the_development_kit(imagenet):
    wordnet_ids = ["n15075141", "n01440764", "n01443537", "n00001740"]  # the last is no leaf
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    synsets = np.array([(i + 1, w, i // 3) for i, w in enumerate(wordnet_ids)], fields)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = b"2\n1\n3\n"
    files = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }
    import gzip

    path = imagenet / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(files)))
    assert [e.label for e in open_dataset(imagenet, split="val")] == [0, 999, 1]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CorruptFile, match=r"t12.tar.gz is not the development kit"):
        open_dataset(imagenet, split="val")


def test_validation_images_without_or_with_other_labels_are_refused(imagenet):
    with pytest.raises(UnsupportedFile, match=r"not their labels: put ILSVRC2012_devkit_t12"):
        open_dataset(imagenet, split="val")
    (imagenet / "imagenet_2012_validation_synset_labels.txt").write_text("n01443537\ncat\n")
    with pytest.raises(CorruptFile, match="has 2 labels for 3 images, of which 'cat' is no class"):
        open_dataset(imagenet, split="val")


def test_a_training_tar_cut_off_inside_a_class_is_corrupt(imagenet):
    content = (imagenet / TRAIN).read_bytes()
    (imagenet / TRAIN).write_bytes(content[: content.rindex(b"n01440764_7.JPEG")])
    with pytest.raises(CorruptFile, match=r"img_train.tar: the archive is cut off at offset"):
        open_dataset(imagenet, split="train")


def test_a_training_tar_of_other_classes_is_refused(imagenet, write_tar):
    write_tar(imagenet / TRAIN, {"n00001740.tar": tar_bytes({})})
    with pytest.raises(UnsupportedFile, match=r"has 'n00001740.tar', where a tar for a class"):
        open_dataset(imagenet, split="train")
