"""ImageNet (ILSVRC-2012) in the tars in which it is published, without unpacking them."""

import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnetjax.data import labels
from resnetjax.data.readers.cache import Index, cached_index
from resnetjax.data.readers.example import Example, checked_index
from resnetjax.data.readers.open_files import ByteFile, OpenFiles
from resnetjax.data.readers.tar_files import members
from resnetjax.errors import CorruptFile, UnsupportedFile

TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
SYNSET_LABELS = "imagenet_2012_validation_synset_labels.txt"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_MAX_DEVKIT_FILE = 1 << 24  # bytes; the real ones have less than 1 MB


class ImageNetTar:
    """The images of one of the two tars; the classes are the thousand WordNet ids, sorted.

    The training tar has a tar for each class, named by its id. The labels of the validation tar lie
    beside it, in `imagenet_2012_validation_synset_labels.txt` (an id in each line, as TensorFlow
    Models has it) or in the `ILSVRC2012_devkit_t12.tar.gz` that is published with the images.

    Args:
        path: The tar.
        split: "train" or "val".
        cache: The folder for the index; None for the usual one.

    Raises:
        CorruptFile: A tar is cut off or damaged, or the labels do not fit the images.
        UnsupportedFile: A tar in the training tar is not named by a class, or there are no labels.
    """

    def __init__(self, path: Path, split: str, *, cache: Path | None = None) -> None:
        self.class_names = _class_ids()
        self._files = OpenFiles([path], ByteFile)
        build = _build_train if split == "train" else _build_val
        kind = f"imagenet-{split}"
        self._index = cached_index(kind, [path], lambda: build(path), folder=cache)
        if not len(self._index["start"]):
            raise UnsupportedFile(f"{path} has no images")
        if split == "train":
            self._labels = self._index["label"]
        else:
            # Not in the index, which is about the tar alone.
            self._labels = _validation_labels(path.parent, count=len(self._index["start"]))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        start, size = (int(self._index[name][index]) for name in ("start", "size"))
        name = f"{self._files.paths[0].name}:{bytes(self._index['name'][index]).decode()}"
        image = self._files[0].read(start, size)
        return Example(image=image, label=int(self._labels[index]), name=name)


def _class_ids() -> tuple[str, ...]:
    ids = labels.get("imagenet_1k").ids
    assert ids is not None
    return ids


def _build_train(path: Path) -> Index:
    numbers = {wordnet_id: number for number, wordnet_id in enumerate(_class_ids())}
    file, rows = ByteFile(path), []
    for inner in members(file):
        wordnet_id = Path(inner.name).stem
        if wordnet_id not in numbers:
            raise UnsupportedFile(
                f"{path} has {inner.name!r:.80}, where a tar for a class of ILSVRC-2012 is "
                f"expected, such as n01440764.tar"
            )
        label, end = numbers[wordnet_id], inner.start + inner.size
        rows += [
            (member.start, member.size, label, Path(member.name).name)
            for member in members(file, start=inner.start, end=end)
        ]
    return _index(rows)


def _build_val(path: Path) -> Index:
    pattern = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
    rows = []
    for member in members(ByteFile(path)):
        name = Path(member.name).name
        match = pattern.fullmatch(name)
        if match is None:
            raise UnsupportedFile(
                f"{path} has {name!r:.80}, where ILSVRC2012_val_00000001.JPEG and so on are "
                f"expected"
            )
        rows.append((member.start, member.size, int(match[1]), name))
    rows.sort(key=lambda row: row[2])
    if [row[2] for row in rows] != list(range(1, len(rows) + 1)):
        raise CorruptFile(f"{path}: the images are not numbered from 1 to {len(rows)}")
    return _index(rows)


def _index(rows: Sequence[tuple[int, int, int, str]]) -> Index:
    starts, sizes, labels_, names = zip(*rows, strict=True) if rows else ((),) * 4
    return {
        "start": np.array(starts, np.int64),
        "size": np.array(sizes, np.int64),
        "label": np.array(labels_, np.int32),
        "name": np.array([name.encode() for name in names], np.bytes_),
    }


def _validation_labels(folder: Path, *, count: int) -> np.ndarray:
    if (folder / SYNSET_LABELS).is_file():
        source = folder / SYNSET_LABELS
        wordnet_ids = source.read_text(encoding="utf-8").split()
    elif (folder / DEVKIT).is_file():
        source = folder / DEVKIT
        wordnet_ids = _devkit_labels(source)
    else:
        raise UnsupportedFile(
            f"{folder} has the validation images but not their labels: put {DEVKIT} (from "
            f"image-net.org) or {SYNSET_LABELS} (from TensorFlow Models) there, or sort the images "
            f"into a folder for each class"
        )
    numbers = {wordnet_id: number for number, wordnet_id in enumerate(_class_ids())}
    unknown = sorted(set(wordnet_ids) - set(numbers))
    if unknown or len(wordnet_ids) != count:
        raise CorruptFile(
            f"{source} has {len(wordnet_ids)} labels for {count} images"
            + (f", of which {unknown[0]!r:.40} is no class of ILSVRC-2012" if unknown else "")
        )
    return np.array([numbers[wordnet_id] for wordnet_id in wordnet_ids], np.int32)


def _devkit_labels(path: Path) -> list[str]:
    # Its classes are numbered otherwise: meta.mat has the WordNet id of each number.
    import scipy.io  # comes with JAX

    try:
        with tarfile.open(path, "r:gz") as archive:
            root = path.name.removesuffix(".tar.gz")
            texts = [_devkit_file(archive, f"{root}/{file}") for file in
                     (_GROUND_TRUTH, "data/meta.mat")]  # fmt: skip
        synsets = scipy.io.loadmat(io.BytesIO(texts[1]), squeeze_me=True)["synsets"]
        ids = [int(number) for number in synsets["ILSVRC2012_ID"]]
        wordnet_ids = dict(zip(ids, map(str, synsets["WNID"]), strict=True))
        return [wordnet_ids[int(line)] for line in texts[0].split()]
    except Exception as error:  # scipy raises whatever its reader stumbles over
        raise CorruptFile(f"{path} is not the development kit: {error!r}") from error


def _devkit_file(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    content = file.read(_MAX_DEVKIT_FILE + 1) if file else b""
    if len(content) > _MAX_DEVKIT_FILE:
        raise ValueError(f"{name} has more than {_MAX_DEVKIT_FILE} bytes")
    return content
