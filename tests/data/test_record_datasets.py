import base64
import contextlib
import json
import pickle
import struct
import threading
import zlib

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st

from resnetjax.data.datasets import open_dataset, splits
from resnetjax.data.readers import record_containers
from resnetjax.data.readers.tf_example import parse, serialize
from resnetjax.errors import CorruptFile, UnknownName, UnsupportedFile

# Written by tf.io.TFRecordWriter of tensorflow 2.15.1 from two tf.train.Example:
#   image=<png>, label=300, box=[.5, 1.], many=[-1, 1 << 40], file_name="a.png", empty=[]
#   image="x" * 200, label=0
GOLDEN = base64.b64decode(
    "ygAAAAAAAACszxPFCscBChMKA2JveBIMEgoKCAAAAD8AAIA/CgsKBWVtcHR5EgIKAAoWCglmaWxlX25hbWUSCQoHCgVh"
    "LnBuZwpcCgVpbWFnZRJTClEKT4lQTkcNChoKAAAADUlIRFIAAAACAAAAAggCAAAA/dSacwAAABZJREFUCJljZGBkYmZm"
    "ZmFjY2NmZgYAARcALUi+BMQAAAAASUVORK5CYIIKDwoFbGFiZWwSBhoECgKsAgocCgRtYW55EhQaEgoQ////////////"
    "AYCAgICAIO8iblnuAAAAAAAAAMen+48K6wEK2AEKBWltYWdlEs4BCssBCsgBeHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4"
    "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4"
    "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4"
    "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHgKDgoFbGFiZWwSBRoDCgEALJm2gA=="
)
# The same writer: image/encoded=<png>, image/class/label=1, image/class/synset="n01440764",
# image/filename="n01440764_10026.JPEG"
GOLDEN_SLIM = base64.b64decode(
    "1gAAAAAAAABNFRrfCtMBChoKEWltYWdlL2NsYXNzL2xhYmVsEgUaAwoBAQojChJpbWFnZS9jbGFzcy9zeW5zZXQSDQoL"
    "CgluMDE0NDA3NjQKZAoNaW1hZ2UvZW5jb2RlZBJTClEKT4lQTkcNChoKAAAADUlIRFIAAAACAAAAAggCAAAA/dSacwAA"
    "ABZJREFUCJljZGBkYmZmZmFjY2NmZgYAARcALUi+BMQAAAAASUVORK5CYIIKKgoOaW1hZ2UvZmlsZW5hbWUSGAoWChRu"
    "MDE0NDA3NjRfMTAwMjYuSlBFRxWFzhU="
)


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data):
    checksum = crc32c(data)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord(*records):
    framed = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        framed += length + masked(length) + record + masked(record)
    return framed


def example(number, **features):
    return serialize({"image": [b"image%d" % number], "label": [number], **features})


def write_array_record(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_tfds(folder, *, kind, counts, names=("cat", "dog", "fish")):
    """The files of TensorFlow Datasets: splits of so many examples in each shard."""
    folder.mkdir(parents=True)
    info = {"name": "pets", "fileFormat": kind, "version": "1.0.0", "splits": []}
    for split, lengths in counts.items():
        info["splits"].append({"name": split, "shardLengths": [str(n) for n in lengths]})
        for shard, length in enumerate(lengths):
            path = folder / f"pets-{split}.{kind}-{shard:05}-of-{len(lengths):05}"
            records = [example(shard * 10 + i) for i in range(length)]
            if kind == "array_record":
                write_array_record(path, records)
            else:
                path.write_bytes(tfrecord(*records))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "label.labels.txt").write_text("".join(f"{name}\n" for name in names))


def test_tensorflows_records_are_read(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(GOLDEN)
    first, second = open_dataset(tmp_path / "a.tfrecord")
    assert (first.label, second.label, second.image) == (300, 0, b"x" * 200)
    assert first.image[:4] == b"\x89PNG"
    assert first.name == "a.tfrecord@12 (a.png)"


def test_tensorflows_examples_are_parsed_but_for_floats():
    (size,) = struct.unpack("<Q", GOLDEN[:8])
    features = parse(GOLDEN[12 : 12 + size])
    assert sorted(features) == ["empty", "file_name", "image", "label", "many"]
    assert (features["many"], features["empty"]) == ([-1, 1 << 40], [])


def test_labels_of_slims_imagenet_count_from_1(tmp_path):
    (tmp_path / "train-00000-of-00001").write_bytes(GOLDEN_SLIM)
    (only,) = open_dataset(tmp_path, split="train")
    assert only.label == 0
    assert only.name == "train-00000-of-00001@12 (n01440764_10026.JPEG)"


def test_labels_of_slims_other_data_sets_count_from_0(tmp_path):
    record = serialize({"image/encoded": [b"jpeg"], "image/class/label": [0]})
    (tmp_path / "flowers_train.tfrecord").write_bytes(tfrecord(record))
    assert open_dataset(tmp_path)[0].label == 0


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
@pytest.mark.parametrize("depth", ["", "1.0.0", "pets/1.0.0"])
def test_folders_of_tensorflow_datasets_are_read(tmp_path, kind, depth):
    folder = tmp_path / "root" / depth
    write_tfds(folder, kind=kind, counts={"train": [3, 2], "test": [1]})
    dataset = open_dataset(tmp_path / "root", split="train")
    assert dataset.class_names == ("cat", "dog", "fish")
    assert [e.label for e in dataset] == [0, 1, 2, 10, 11]
    assert [e.image for e in dataset][3] == b"image10"
    assert splits(tmp_path / "root") == ("train", "test")
    assert len(open_dataset(tmp_path / "root", split="validation")) == 1
    with pytest.raises(UnknownName, match="no split 'all': it has train, test"):
        open_dataset(tmp_path / "root", split="all")


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_records_on_their_own_are_read(tmp_path, kind):
    records = [example(i) for i in range(3)]
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        path = tmp_path / split / f"0.{kind}"
        if kind == "array_record":
            write_array_record(path, records)
        else:
            path.write_bytes(tfrecord(*records))
    assert [e.label for e in open_dataset(tmp_path, split="val")] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_missing_files_and_records_are_noticed(tmp_path, kind):
    write_tfds(tmp_path / "a", kind=kind, counts={"train": [3, 2]})
    info = (tmp_path / "a" / "dataset_info.json").read_text()
    (tmp_path / "a" / "dataset_info.json").write_text(info.replace('"2"', '"4"'))
    with pytest.raises(CorruptFile, match=r"00001-of-00002 has 2 records, but .* says 4"):
        open_dataset(tmp_path / "a")
    (tmp_path / "a" / f"pets-train.{kind}-00001-of-00002").unlink()
    with pytest.raises(CorruptFile, match=r"names 1 files that are not there.*00001-of-00002"):
        open_dataset(tmp_path / "a")
    (tmp_path / "a" / "dataset_info.json").unlink()
    with pytest.raises(CorruptFile, match="of 2 files, those numbered 1 are missing"):
        open_dataset(tmp_path / "a")


@pytest.mark.parametrize(
    "damage",
    [
        lambda info: info[:-9],
        lambda info: info.replace("shardLengths", "shards"),
        lambda info: info.replace('"pets"', '"../pets"'),
        lambda info: "[]",
    ],
)
def test_a_damaged_dataset_info_is_corrupt(tmp_path, damage):
    write_tfds(tmp_path / "a", kind="tfrecord", counts={"train": [1]})
    path = tmp_path / "a" / "dataset_info.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(CorruptFile, match=r"dataset_info\.json is not"):
        open_dataset(tmp_path / "a")


def test_a_tfrecord_cut_off_anywhere_but_between_records_is_corrupt(tmp_path):
    path = tmp_path / "a.tfrecord"
    for size in set(range(1, len(GOLDEN), 7)) - {218}:
        path.write_bytes(GOLDEN[:size])
        with pytest.raises(CorruptFile, match=f"a.tfrecord is cut off at offset {size}"):
            open_dataset(path)


def test_every_flipped_bit_of_a_tfrecord_is_noticed(tmp_path):
    path = tmp_path / "a.tfrecord"
    records = tfrecord(example(1), example(2))
    for position in range(len(records)):
        damaged = bytearray(records)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match=r"a\.tfrecord"):
            list(open_dataset(path, cache=tmp_path / str(position)))


def test_a_damaged_record_spoils_only_itself(tmp_path):
    for damaged in (b"\x0a\xff", b"\x0b", b"\xff" * 11, example(1)[:-1], b"\x0a\x02\x0a\x00", b""):
        path = tmp_path / "a.tfrecord"
        path.write_bytes(tfrecord(example(0), damaged, example(2)))
        dataset = open_dataset(path)
        assert (dataset[0].label, dataset[2].label) == (0, 2)
        with pytest.raises(CorruptFile, match=r"a\.tfrecord@"):
            dataset[1]


def test_records_without_image_or_label_are_refused_with_their_features(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(tfrecord(serialize({"text": [b"cat"], "label": [1]})))
    with pytest.raises(UnsupportedFile, match="no feature image or image/encoded: it has text, la"):
        open_dataset(tmp_path / "a.tfrecord")


@pytest.mark.parametrize("kept", [0, 1_000, 70_000, -1])
def test_a_truncated_array_record_is_corrupt(tmp_path, kept):
    path = tmp_path / "a.array_record"
    images = np.random.default_rng(0).bytes(100_000)
    write_array_record(path, [serialize({"image": [images], "label": [1]})] * 2)
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    with pytest.raises(CorruptFile, match=r"a\.array_record is not a whole ArrayRecord file"):
        open_dataset(path)


def test_a_damaged_array_record_surfaces_when_it_is_read(tmp_path):
    path = tmp_path / "a.array_record"
    image = np.random.default_rng(0).bytes(100)
    images = [image, b"\0" + image[1:], image]
    records = [serialize({"image": [image], "label": [1]}) for image in images]
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    content = bytearray(path.read_bytes())
    content[content.index(images[1])] ^= 1
    path.write_bytes(content)
    dataset = open_dataset(path)
    assert dataset[0].image == dataset[2].image == image
    with pytest.raises(CorruptFile, match=r"a\.array_record: record 1: .*hash mismatch"):
        dataset[1]


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_threads_and_unpickled_copies_read_the_same(tmp_path, kind):
    write_tfds(tmp_path / "a", kind=kind, counts={"train": [9, 8]})
    dataset = open_dataset(tmp_path / "a")
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


def test_without_google_crc32c_a_damaged_length_is_still_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(record_containers, "_fast_crc32c", lambda: None)
    records = bytearray(tfrecord(example(1)))
    records[0] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(records)
    with pytest.raises(CorruptFile, match="at offset 0 is no length of a TFRecord"):
        open_dataset(tmp_path / "a.tfrecord")


VALUES = st.lists(st.binary(max_size=20)) | st.lists(st.integers(-(1 << 63), (1 << 63) - 1))


@given(st.dictionaries(st.text(max_size=9), VALUES, max_size=4))
def test_what_is_serialized_is_parsed(features):
    assert parse(serialize(features)) == features


@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_bytes_are_an_example_or_corrupt(noise, position):
    record = serialize({"image": [zlib.compress(b"a" * 300)] * 9, "label": [1]})
    for damaged in (noise, record[:position] + noise + record[position + len(noise) :]):
        with contextlib.suppress(CorruptFile):
            assert isinstance(parse(damaged), dict)
