"""Examples in TFRecord and ArrayRecord files, as TensorFlow Datasets and TF-Slim write them.

TensorFlow Datasets puts `dataset_info.json` beside the records (which splits, how many records in
each file) and `label.labels.txt` (the names of the classes). Files on their own are read too.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnetjax.data.readers.example import Dataset, Example, checked_index
from resnetjax.data.readers.record_containers import ArrayRecordFiles, TFRecordFiles
from resnetjax.data.readers.splits import group
from resnetjax.data.readers.tf_example import Values, parse
from resnetjax.errors import CorruptFile, UnsupportedFile

INFO = "dataset_info.json"
_IMAGE_KEYS = ("image", "image/encoded")
_LABEL_KEYS = ("label", "image/class/label")
_NAME_KEYS = ("file_name", "image/filename")
# What only the records of TF-Slim's and the TPU's ImageNet have, and those of Inception's
# build_image_data.py; in these `image/class/label` is from 1, "where 0 is not used"
# (models/research/slim/datasets/build_imagenet_data.py). TF-Slim's other data sets, written with
# dataset_utils.image_to_tfexample, count from 0 and lack these.
_COUNTED_FROM_1 = ("image/class/synset", "image/class/text")
_MAX_INFO = 1 << 26  # bytes of a JSON file


class RecordDataset:
    """The examples of some record files.

    The image is the feature `image` or `image/encoded`, the label `label` or `image/class/label`.

    Args:
        paths: Files of one format.
        class_names: Names of the classes, or nothing.
        cache: The folder for the index of TFRecord files; None for the usual one.
        counts: How many records each file should have; None where nothing says so.

    Raises:
        CorruptFile: A file is cut off or damaged, or has another number of records.
        MissingExtra: The files are ArrayRecord, and array_record is not installed.
        UnsupportedFile: The first record has no image or label under these names.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        class_names: tuple[str, ...] = (),
        cache: Path | None = None,
        counts: Sequence[int] | None = None,
    ) -> None:
        self.class_names = class_names
        self._records = (
            ArrayRecordFiles(paths)
            if is_array_record(paths[0])
            else TFRecordFiles(paths, cache=cache)
        )
        for path, found, expected in zip(
            paths, self._records.counts, counts or self._records.counts, strict=True
        ):
            if found != expected:
                raise CorruptFile(f"{path} has {found} records, but {INFO} says {expected}")
        if not len(self._records):
            raise UnsupportedFile(f"{paths[0]} has no records")
        _check_features(*self._records.read(0))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record, name = self._records.read(checked_index(index, len(self)))
        try:
            features = parse(record)
        except CorruptFile as error:
            raise CorruptFile(f"{name}: {error}") from error
        given_name = _first(features, _NAME_KEYS)
        if isinstance(given_name, bytes):
            name = f"{name} ({given_name.decode('utf-8', 'replace')})"
        image, label = _first(features, _IMAGE_KEYS), _first(features, _LABEL_KEYS)
        if not isinstance(image, bytes) or not isinstance(label, int):
            raise CorruptFile(f"{name} has no image or no label")
        if "label" not in features and any(key in features for key in _COUNTED_FROM_1):
            label -= 1
        if label < 0:
            raise CorruptFile(f"{name} has the label {label}")
        return Example(image=image, label=label, name=name)


def is_record_file(path: Path) -> bool:
    """Whether a file's name says that it has records."""
    return "tfrecord" in path.name.lower() or is_array_record(path)


def is_array_record(path: Path) -> bool:
    """Whether a file's name says that it is ArrayRecord."""
    return re.search(r"array_?record", path.name.lower()) is not None


def tfds_splits(folder: Path, *, cache: Path | None) -> Mapping[str, Callable[[], Dataset]]:
    """The splits of a folder that TensorFlow Datasets wrote: what opens each.

    Raises:
        CorruptFile: `dataset_info.json` is damaged, or names files that are not there.
    """
    info = _read_json(folder / INFO)
    try:
        found = {
            str(split["name"]): _tfds_files(folder, info, split)
            for split in info["splits"]
            if any(map(int, split["shardLengths"]))
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile(f"{folder / INFO} is not what TensorFlow Datasets writes: {error!r}"
                          ) from error  # fmt: skip
    missing = [str(path) for files in found.values() for path in files if not path.is_file()]
    if missing:
        raise CorruptFile(
            f"{folder / INFO} names {len(missing)} files that are not there: {missing[0]}"
            + (", ..." if len(missing) > 1 else "")
        )
    labels_file = folder / "label.labels.txt"
    names: tuple[str, ...] = ()
    if labels_file.is_file():
        names = tuple(labels_file.read_text(encoding="utf-8").splitlines())

    def opener(files: Mapping[Path, int]) -> Callable[[], Dataset]:
        paths, counts = list(files), list(files.values())
        return lambda: RecordDataset(paths, class_names=names, cache=cache, counts=counts)

    return {name: opener(files) for name, files in found.items()}


def plain_splits(
    paths: Sequence[Path], *, cache: Path | None
) -> Mapping[str, Callable[[], Dataset]]:
    """The splits of files on their own, told by their names: what opens each.

    Raises:
        CorruptFile: Some of a numbered sequence are missing.
    """

    def opener(files: Sequence[Path]) -> Callable[[], Dataset]:
        return lambda: RecordDataset(files, cache=cache)

    return {name: opener(files) for name, files in group(paths).items()}


def _tfds_files(folder: Path, info: Any, split: Any) -> Mapping[Path, int]:
    lengths = [int(length) for length in split["shardLengths"]]
    # tensorflow_datasets/core/naming.py: ShardedFileTemplate
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    paths = []
    for number in range(len(lengths)):
        fields = {
            "DATASET": info["name"],
            "SPLIT": split["name"],
            "FILEFORMAT": info.get("fileFormat") or "tfrecord",
            "SHARD_X_OF_Y": f"{number:05}-of-{len(lengths):05}",
            "SHARD_INDEX": f"{number:05}",
            "NUM_SHARDS": f"{len(lengths):05}",
        }
        name = re.sub(r"\{(\w+)\}", lambda match, fields=fields: str(fields[match[1]]), template)
        if Path(name).name != name:
            raise ValueError(f"the file name {name!r} leaves the folder")
        paths.append(folder / name)
    return dict(zip(paths, lengths, strict=True))


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_INFO:
            raise ValueError(f"more than {_MAX_INFO} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} is not JSON: {error}") from error


def _check_features(record: bytes, name: str) -> None:
    try:
        features = parse(record)
    except CorruptFile:
        return  # a fault of one record, which comes up when it is read
    missing = [
        " or ".join(keys) for keys in (_IMAGE_KEYS, _LABEL_KEYS) if _first(features, keys) is None
    ]
    if missing:
        raise UnsupportedFile(
            f"{name} has no feature {', nor '.join(missing)}: it has "
            f"{', '.join(features) or 'none'}"
        )


def _first(features: Mapping[str, Values], keys: Sequence[str]) -> bytes | int | None:
    values = next((features[key] for key in keys if key in features), None)
    return values[0] if values else None
