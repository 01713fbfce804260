"""Data sets for training, in whatever layout they are published.

`open_dataset` recognises the layout; each has a module of its own, which says more.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from resnetjax.data.readers import splits as split_names
from resnetjax.data.readers.cifar_files import cifar_splits
from resnetjax.data.readers.digits import digits_splits
from resnetjax.data.readers.example import Dataset, Example
from resnetjax.data.readers.image_folder import ImageFolder, is_hidden, is_image
from resnetjax.data.readers.imagenet_tars import TARS, ImageNetTar
from resnetjax.data.readers.npz_files import npz_splits
from resnetjax.data.readers.parquet_files import parquet_splits
from resnetjax.data.readers.record_containers import is_tfrecord
from resnetjax.data.readers.record_files import INFO, is_record_file, plain_splits, tfds_splits
from resnetjax.data.readers.table import TABLE, Table, has_table, not_a_table
from resnetjax.data.readers.webdataset import WebDataset, expand_braces
from resnetjax.errors import UnsupportedFile

__all__ = ["Dataset", "Example", "open_dataset", "splits"]

DIGITS = "digits"
_LOOKED_FOR = f"""\
a folder for each class, with or without folders such as train and val above them;
{TARS["train"]} or {TARS["val"]}; WebDataset's *.tar; {INFO} of TensorFlow Datasets;
*.tfrecord* or *.array_record*; *.parquet; a file *.npz; CIFAR's binary version; {TABLE} beside the
images, with a row of values each; the name {DIGITS!r}"""

_Openers = Mapping[str, Callable[[], Dataset]]


def open_dataset(
    path: str | os.PathLike[str], *, split: str | None = None, cache: Path | None = None
) -> Dataset:
    """The examples at a path, in a fixed order, read at random.

    Args:
        path: A folder or a file; a pattern such as "train-{0000..0012}.tar"; or "digits", the
            handwritten digits of scikit-learn.
        split: Which part, as it is called on disk or by another common name: "train" is also
            "training", "val" also "validation", "valid" or "test". None where there is only one.
        cache: The folder for the indexes of tars and TFRecord files; None for `$RESNETJAX_HOME` or
            the platform's cache folder.

    Raises:
        FileNotFoundError: Nothing is at the path.
        UnknownName: There is no such split; the message lists those that exist.
        UnsupportedFile: No layout is recognised; the message says what was looked for and found.
        CorruptFile: A file is cut off, damaged or missing.
        MissingExtra: The layout needs an optional package that is not installed.

    Example:
        >>> digits = open_dataset("digits", split="test")
        >>> len(digits), digits[0].image.shape, digits[0].label
        (359, (8, 8, 1), 5)
    """
    openers = _openers(path, cache)
    return openers[split_names.choose(split, openers, os.fspath(path))]()


def splits(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the splits at a path; ("",) if it is one whole.

    Raises:
        FileNotFoundError: Nothing is at the path.
        UnsupportedFile: No layout is recognised.
        CorruptFile: A file is damaged or missing.

    Example:
        >>> splits("digits")
        ('train', 'test')
    """
    return tuple(_openers(path, None))


def _openers(path: str | os.PathLike[str], cache: Path | None) -> _Openers:
    where = Path(path)
    if os.fspath(path) == DIGITS and not where.exists():
        return digits_splits()
    files = expand_braces(where)
    if files != [where]:
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"{path}: of {len(files)} files, {len(missing)} are missing: "
                                    f"{missing[0]} and so on")  # fmt: skip
        return {"": lambda: WebDataset(files, cache=cache)}
    if not where.exists():
        raise FileNotFoundError(f"nothing is at {path}")
    return _of_folder(where, cache) if where.is_dir() else _of_file(where, cache)


def _of_file(path: Path, cache: Path | None) -> _Openers:
    if path.suffix == ".npz":
        return npz_splits(path)
    if path.name in TARS.values():
        return _imagenet(path.parent, cache, only=path.name)
    if path.suffix == ".tar":
        return {"": lambda: WebDataset([path], cache=cache)}
    if path.suffix == ".parquet":
        return {"": next(iter(parquet_splits([path]).values()))}
    if is_record_file(path) or is_tfrecord(path):
        return {"": next(iter(plain_splits([path], cache=cache).values()))}
    raise UnsupportedFile(f"{path} is no data set: looked for\n{_LOOKED_FOR}")


def _of_folder(root: Path, cache: Path | None) -> _Openers:
    files, folders = _list(root)
    described = [folder for folder in (root, *_below(root, folders)) if (folder / INFO).is_file()]
    if len(described) == 1:
        return tfds_splits(described[0], cache=cache)
    if described:
        listed = ", ".join(str(folder) for folder in described)
        raise UnsupportedFile(f"{root} has several data sets: open one of {listed}")
    if any((root / name).is_file() for name in TARS.values()):
        return _imagenet(root, cache)
    # Beside folders of splits, CIFAR's own is another data set, as a download leaves it.
    beside = split_names.WORDS.isdisjoint(folders)
    if cifar := cifar_splits(root, files, folders if beside else ()):
        return cifar
    for name in folders:
        if name in split_names.WORDS or name in ("data", "default"):
            inner, deeper = _list(root / name)
            files += inner
            for word in split_names.WORDS.intersection(deeper):  # of Hugging Face: default/train
                files += _list(root / name / word)[0]
    if found := _having(files, ".parquet"):
        return parquet_splits(found)
    if found := _having(files, ".tar"):
        groups = split_names.group(found)
        return {word: (lambda f=f: WebDataset(f, cache=cache)) for word, f in groups.items()}
    if found := [path for path in files if is_record_file(path)] or _unnamed_records(files):
        return plain_splits(found, cache=cache)
    if has_table(root):
        return {"": lambda: Table(root)}
    if tables := [name for name in folders if has_table(root / name)]:
        return {name: (lambda name=name: Table(root / name)) for name in tables}
    return _class_folders(root, files, folders)


def _class_folders(root: Path, files: list[Path], folders: list[str]) -> _Openers:
    parts = [name for name in folders if name in split_names.WORDS]
    flat = [name for name in parts if not _list(root / name)[1]]
    if not folders or flat:
        where = root / flat[0] if flat else root
        if (where / TABLE).is_file():
            raise not_a_table(where)
        if any(is_image(path.name) for path in files if path.parent == where):
            raise UnsupportedFile(
                f"{where} has images, but nothing says of which class: sort them into a folder for "
                f"each class, or, if they are those of ILSVRC-2012, open the folder that has "
                f"{TARS['val']} and its labels"
            )
    if flat or not folders:
        listed = sorted(path.name for path in files)[:10]
        raise UnsupportedFile(
            f"{root} is no data set: looked for\n{_LOOKED_FOR};\nfound {len(files)} files"
            + (f", such as {', '.join(listed)}" if listed else "")
            + (f", and the folders {', '.join(folders[:10])}" if folders else "")
        )
    for where in [root / name for name in parts] or [root]:
        if (where / TABLE).is_file() and len(_list(where)[1]) == 1:
            raise not_a_table(where)  # what it lists is in that folder, which is no class
    if parts:
        return {name: (lambda name=name: ImageFolder(root / name)) for name in parts}
    return {"": lambda: ImageFolder(root)}


def _imagenet(folder: Path, cache: Path | None, *, only: str | None = None) -> _Openers:
    present = {
        split: folder / name
        for split, name in TARS.items()
        if only in (None, name) and (folder / name).is_file()
    }
    return {
        split: (lambda split=split, path=path: ImageNetTar(path, split, cache=cache))
        for split, path in present.items()
    }


def _list(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of a folder and the names of its sub-folders, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        seen = sorted(
            (entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name)
        )
    return [folder / name for name, is_folder in seen if not is_folder], [
        name for name, is_folder in seen if is_folder
    ]


def _below(root: Path, folders: Iterable[str]) -> list[Path]:
    """The folders one level down, and two levels down where they are called by a version."""
    versions = re.compile(r"\d+\.\d+\.\d+")
    found = []
    for name in folders:
        found.append(root / name)
        if name not in split_names.WORDS and (root / name).is_dir():
            found += [root / name / n for n in os.listdir(root / name) if versions.fullmatch(n)]
    return found


def _having(files: Iterable[Path], suffix: str) -> list[Path]:
    return [path for path in files if path.suffix == suffix]


def _unnamed_records(files: Iterable[Path]) -> list[Path]:
    """TFRecord files as TF-Slim names them: train-00000-of-01024."""
    named = [path for path in files if re.search(r"-\d{5}-of-\d{5}$", path.name)]
    return named if named and is_tfrecord(named[0]) else []
