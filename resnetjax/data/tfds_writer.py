"""ArrayRecord files in the layout of TensorFlow Datasets.

The JSON files are those that tensorflow-datasets 4.9.10 writes for the features `image`, `label`
and `file_name`; `tfds.builder_from_directory` reads them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnetjax.data.readers.record_files import INFO
from resnetjax.data.readers.tf_example import serialize
from resnetjax.errors import MissingExtra

# Grain wants groups of one record; compressed images do not get smaller.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_FEATURES = "tensorflow_datasets.core.features"


class TFDSWriter:
    """Writes the splits of one data set to a folder, one after the other.

    Args:
        folder: An empty folder.
        name: Name of the data set, which is part of the file names.
        examples_per_shard: Number of examples in each file but a split's last.

    Raises:
        MissingExtra: array_record is not installed.
    """

    def __init__(self, folder: Path, *, name: str, examples_per_shard: int) -> None:
        try:
            from array_record.python.array_record_module import ArrayRecordWriter
        except ImportError as error:
            raise MissingExtra(
                'writing ArrayRecord needs array_record: pip install "resnetjax[data]"'
            ) from error
        self._new_file = ArrayRecordWriter
        self._folder, self._name, self._per_shard = folder, name, examples_per_shard
        self._splits: list[dict[str, Any]] = []
        self._highest_label = -1
        self._start()

    def _start(self) -> None:
        self._lengths: list[int] = []
        self._bytes = 0
        self._file: Any = None

    def write(self, *, image: bytes, label: int, file_name: str) -> None:
        """Adds an example to the present split."""
        if self._file is None or self._lengths[-1] == self._per_shard:
            self._close_file()
            shard = str(self._folder / f"shard-{len(self._lengths)}")
            self._file = self._new_file(shard, _WRITER_OPTIONS)
            self._lengths.append(0)
        features = {"file_name": [file_name.encode("utf-8", "replace")]}
        record = serialize({**features, "image": [image], "label": [label]})
        self._file.write(record)
        self._lengths[-1] += 1
        self._bytes += len(record)
        self._highest_label = max(self._highest_label, label)

    def end_split(self, split: str) -> int:
        """Gives the present split its name, and says how many examples it has."""
        self._close_file()
        count = len(self._lengths)
        for number in range(count):
            final = f"{self._name}-{split}.array_record-{number:05}-of-{count:05}"
            (self._folder / f"shard-{number}").rename(self._folder / final)
        written = sum(self._lengths)
        self._splits.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(self._bytes),
                "shardLengths": [str(length) for length in self._lengths],
            }
        )
        self._start()
        return written

    def finish(self, *, class_names: Sequence[str], channels: int) -> None:
        """Writes what describes the splits."""
        classes = len(class_names) or self._highest_label + 1
        self._write_json(INFO, _info(self._name, self._splits))
        self._write_json("features.json", _features(classes=classes, channels=channels))
        if class_names:
            text = "".join(f"{name}\n" for name in class_names)
            (self._folder / "label.labels.txt").write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Closes the file that is open, if any."""
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_json(self, name: str, content: Any) -> None:
        (self._folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _info(name: str, splits: Sequence[Any]) -> Any:
    keys = [{"featureKey": "image"}, {"featureKey": "label"}]
    return {
        "fileFormat": "array_record",
        "moduleName": "resnetjax.data.prepare",
        "name": name,
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": keys}},
        "version": "1.0.0",
    }


def _features(*, classes: int, channels: int) -> Any:
    image = {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", str(channels)]}}
    features = {
        "file_name": {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}},
        "image": {"pythonClassName": f"{_FEATURES}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{_FEATURES}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(classes)},
        },
    }
    kind = f"{_FEATURES}.features_dict.FeaturesDict"
    return {"pythonClassName": kind, "featuresDict": {"features": features}}
