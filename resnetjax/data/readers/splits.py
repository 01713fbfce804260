"""The splits of a data set: what they are called, and which files are whose."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from resnetjax.errors import CorruptFile, UnknownName

# What stands for what, best first: many data sets have a test split and no validation split, or
# call the one the other.
_ALIASES = (("train", "training"), ("val", "validation", "valid", "eval", "test"))
WORDS = frozenset(word for words in _ALIASES for word in words)

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?!\d)")


def choose(split: str | None, available: Iterable[str], where: object) -> str:
    """The name, as it is on disk, of the split that was asked for.

    Args:
        split: A split, or another common name of it; None where there is only one.
        available: The splits on disk. The only one may be "": it has no name.
        where: What the message calls the data set.

    Raises:
        UnknownName: There is no such split, or None was given for one of several.

    Example:
        >>> choose("val", ["train", "validation"], "flowers")
        'validation'
    """
    names = list(available)
    if split is None and len(names) == 1:
        return names[0]
    if names == [""]:
        raise UnknownName(f"{where} is not divided into splits: leave split={split!r} out")
    if split is None:
        raise UnknownName(f"{where} has several splits: pass split=, one of {', '.join(names)}")
    group = next((words for words in _ALIASES if split in words), ())
    for name in (split, *group):
        if name in names:
            return name
    raise UnknownName(f"{where} has no split {split!r}: it has {', '.join(names)}")


def group(paths: Iterable[Path]) -> Mapping[str, Sequence[Path]]:
    """The files of each split, sorted by path.

    A split's name is the last word for one in the file's name, or its folder's name if that is such
    a word, or else what precedes the number in the file's name.

    Raises:
        CorruptFile: Files are missing from a sequence such as "-00003-of-00010".

    Example:
        >>> list(group([Path("pets-test.tfrecord-00000-of-00001"), Path("pets/train/0000.tar")]))
        ['train', 'test']
    """
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths):
        groups.setdefault(_split_of(path), []).append(path)
    for files in groups.values():
        _check_complete(files)
    return groups


def _split_of(path: Path) -> str:
    words = [word for word in re.split(r"[-_.]", path.name) if word in WORDS]
    if words:
        return words[-1]
    if path.parent.name in WORDS:
        return path.parent.name
    stem = _SHARD.sub("", path.name).split(".")[0]
    return re.sub(r"[-_]?\d+$", "", stem)


def _check_complete(paths: Sequence[Path]) -> None:
    found: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        if match := _SHARD.search(path.name):
            series = str(path.parent / path.name[: match.start()])
            found.setdefault((series, int(match[2])), set()).add(int(match[1]))
    for (series, count), numbers in found.items():
        missing = sorted(set(range(count)) - numbers)
        if missing:
            listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise CorruptFile(f"{series}: of {count} files, those numbered {listed} are missing")
