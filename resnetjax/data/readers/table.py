"""Images with a row of values each, in a `metadata.csv` beside them."""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from resnetjax.data.readers.example import Example, checked_index, image_bytes
from resnetjax.errors import CorruptFile, UnsupportedFile

TABLE = "metadata.csv"
_FILE_COLUMN = "file_name"


def has_table(folder: Path) -> bool:
    """Whether a folder has a table of its files; a `metadata.csv` of another kind is none.

    Raises:
        UnsupportedFile: It is meant to be one: it has the column under another spelling, or other
            separators than commas.
    """
    path = folder / TABLE
    if not path.is_file():
        return False
    columns = _columns(path)
    if _FILE_COLUMN in columns:
        return True
    words = (word.strip(" \"'").lower() for name in columns for word in re.split("[;\t|]", name))
    if any(re.fullmatch("file[_ -]name", word) for word in words):
        raise not_a_table(folder)
    return False


def not_a_table(folder: Path) -> UnsupportedFile:
    """The error of a folder whose `metadata.csv` is no table of its files."""
    path = folder / TABLE
    found = ", ".join(map(repr, _columns(path)[:10])) or "none"
    return UnsupportedFile(
        f"{path} is no table of images: looked for columns separated by commas, {_FILE_COLUMN!r} "
        f"and others of numbers; found {found}"
    )


def _columns(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return next(csv.reader(file), [])


class Table:
    """The images that a table lists, in its order; the other columns are the values to be found.

    The layout is that of Hugging Face's ImageFolder: a column `file_name`, relative to the table,
    and here only numbers beside it: 0 and 1 for several labels an image, any for a regression.

    Raises:
        UnsupportedFile: The table has no column of numbers, or no rows.
        CorruptFile: A row has other than numbers, or a file that is not below the folder.
    """

    def __init__(self, root: Path) -> None:
        path = root / TABLE
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = list(table.fieldnames or ())
            self.class_names = tuple(name for name in columns if name != _FILE_COLUMN)
            if not self.class_names:
                raise UnsupportedFile(f"{path} has the column {_FILE_COLUMN} alone, and no values")
            rows = list(_rows(table, self.class_names, path))
        if not rows:
            raise UnsupportedFile(f"{path} has no rows below the names of its columns")
        self._root = os.fspath(root)
        self._files = np.array([os.fsencode(name) for name, _ in rows])
        shape = (len(rows), len(self.class_names))
        self.labels = np.array([values for _, values in rows], np.float32).reshape(shape)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        path = os.path.join(self._root, os.fsdecode(bytes(self._files[index])))
        return Example(image=image_bytes(path), label=self.labels[index], name=path)


def _rows(
    table: "csv.DictReader[str]", columns: tuple[str, ...], path: Path
) -> Iterator[tuple[str, list[float]]]:
    for row in table:
        where = f"{path}, line {table.line_num}"
        name = row[_FILE_COLUMN] or ""
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CorruptFile(f"{where}: {name!r} is no file below {path.parent}")
        try:
            values = [float(row[column]) for column in columns]
        except (TypeError, ValueError) as error:
            raise CorruptFile(f"{where}: all but the file are numbers: {error}") from error
        if not np.isfinite(values).all():
            raise CorruptFile(f"{where}: a value is not finite")
        yield name, values
