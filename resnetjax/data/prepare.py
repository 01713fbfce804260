"""Any data set as ArrayRecord in the layout of TensorFlow Datasets, the fastest to read at random.

TensorFlow Datasets (`tfds.builder_from_directory`) and Grain read it as well.
"""

import contextlib
import io
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnetjax.data.datasets import Dataset, Example, open_dataset, splits
from resnetjax.data.preprocess import decode
from resnetjax.data.tfds_writer import TFDSWriter
from resnetjax.errors import BadImage, ConfigError, CorruptFile, UnsupportedFile

SKIPPED = "skipped.txt"


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        folder: Where it is.
        counts: The number of examples in each split.
        skipped: What is wrong with each example that was left out.
    """

    folder: Path
    counts: dict[str, int]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Encoding:
    """How images are written.

    Attributes:
        resize_px: Length of the short side of what is larger; None leaves every image's bytes.
        interpolation: Pillow's filter.
        quality: Of the JPEG files that resized images become.
        subsampling: Of their colour: "4:4:4" keeps all of it.
    """

    resize_px: int | None = None
    interpolation: Literal["bicubic", "bilinear", "lanczos", "box"] = "bicubic"
    quality: int = 95
    subsampling: Literal["4:4:4", "4:2:0"] = "4:2:0"


def prepare(
    source: str,
    target: Path,
    *,
    split: tuple[str, ...] = (),
    encoding: Encoding = Encoding(),
    name: str = "images",
    examples_per_shard: int = 10_000,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
    cache: Path | None = None,
) -> Prepared:
    """Writes a data set as ArrayRecord, in the order that it has.

    Images that are resized become JPEG files, or PNG files if they came as pixels. All others keep
    their bytes. Everything is written to a folder of another name first, which is renamed at the
    end: `target` is complete or is not there.

    Args:
        source: What `open_dataset` opens.
        target: The folder to make.
        split: Which splits; none for all of them. One without a name is called "train".
        encoding: Whether and how images are resized.
        name: Name of the data set, which is part of the file names.
        examples_per_shard: Number of examples in each file but the last.
        skip_bad: Leave bad images out and list them in `skipped.txt`, rather than stop at one.
        workers: Number of threads; None for one for each core.
        progress: Whether to show a bar.
        cache: The folder for indexes; None for the usual one.

    Raises:
        BadImage: An image cannot be decoded; the message names it.
        CorruptFile: The source or an example in it is damaged.
        ConfigError: An argument is not allowed.
        FileExistsError: `target` exists.
        MissingExtra: array_record is not installed.
        UnsupportedFile: No example is left, or the splits have different classes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prepare("digits", Path(folder) / "digits", progress=False).counts
        {'train': 1438, 'test': 359}
    """
    _check(name, encoding, examples_per_shard)
    if target.exists():
        raise FileExistsError(f"{target} exists: choose another name, or remove it")
    datasets = {
        word or "train": open_dataset(source, split=word or None, cache=cache)
        for word in split or splits(source)
    }
    class_names = {dataset.class_names for dataset in datasets.values()}
    if len(class_names) != 1:
        raise UnsupportedFile(f"{source}: the splits have different classes: prepare them apart")
    counts: dict[str, int] = {}
    skipped: list[str] = []
    channels: set[int] = set()
    with _made_whole(target) as folder, ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        writer = TFDSWriter(folder, name=name, examples_per_shard=examples_per_shard)
        with contextlib.closing(writer), _bar(shown=progress) as bar:
            for word, dataset in datasets.items():
                task = bar.add_task(word, total=len(dataset))
                for result in _converted(dataset, encoding, pool):
                    bar.advance(task)
                    if isinstance(result, Exception):
                        if not skip_bad:
                            raise result
                        skipped.append(str(result))
                        continue
                    if not isinstance(result.example.label, int):
                        raise UnsupportedFile(
                            f"{source}: rows of values are not written, classes are"
                        )
                    channels.add(result.channels)
                    file_name = result.example.name.rsplit("/", 1)[-1]
                    writer.write(
                        image=result.image, label=result.example.label, file_name=file_name
                    )
                counts[word] = writer.end_split(word)
                if not counts[word]:
                    raise UnsupportedFile(f"{source}: no image of the split {word!r} is good")
        writer.finish(class_names=class_names.pop(), channels=max(channels))
        if skipped:
            (folder / SKIPPED).write_text("\n".join([*skipped, ""]), encoding="utf-8")
    return Prepared(folder=target, counts=counts, skipped=tuple(skipped))


@dataclass(frozen=True)
class _Converted:
    example: Example
    image: bytes
    channels: int


def _check(name: str, encoding: Encoding, examples_per_shard: int) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"name={name!r} is not allowed: use small letters, digits and _")
    if examples_per_shard < 1:
        raise ConfigError(f"examples_per_shard={examples_per_shard} is not allowed: use 1 or more")
    if encoding.resize_px is not None and encoding.resize_px < 1:
        raise ConfigError(f"resize_px={encoding.resize_px} is not allowed: use 1 or more")
    if not 1 <= encoding.quality <= 100:
        raise ConfigError(f"quality={encoding.quality} is not allowed: use 1 to 100")


@contextlib.contextmanager
def _made_whole(target: Path) -> Iterator[Path]:
    """A folder that becomes the target at the end, or is removed if there is none."""
    partial = target.with_name(f".{target.name}.incomplete-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial)
        raise


def _bar(*, shown: bool) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown)


def _converted(
    dataset: Dataset, encoding: Encoding, pool: ThreadPoolExecutor
) -> Iterator[_Converted | BadImage | CorruptFile]:
    """Every example in order, a few of them ahead; errors that concern one are its result."""
    ahead: deque[Future[_Converted | BadImage | CorruptFile]] = deque()
    try:
        for index in range(len(dataset)):
            ahead.append(pool.submit(_convert, dataset, index, encoding))
            if len(ahead) > 64:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def _convert(
    dataset: Dataset, index: int, encoding: Encoding
) -> _Converted | BadImage | CorruptFile:
    try:
        example = dataset[index]
    except (BadImage, CorruptFile) as error:
        return error
    pixels = example.image if isinstance(example.image, np.ndarray) else None
    channels = 1 if pixels is not None and pixels.shape[-1] == 1 else 3
    try:
        image = decode(example.image, channels=channels)
    except BadImage as error:
        return BadImage(f"{example.name}: {error}")
    short = min(image.size)
    if encoding.resize_px is not None and short > encoding.resize_px:
        width, height = (max(1, round(edge * encoding.resize_px / short)) for edge in image.size)
        filter_ = Image.Resampling[encoding.interpolation.upper()]
        image = image.resize((width, height), filter_)
    elif isinstance(example.image, bytes):
        return _Converted(example, example.image, channels)
    file = io.BytesIO()
    if pixels is not None:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=encoding.quality, subsampling=encoding.subsampling)
    return _Converted(example, file.getvalue(), channels)
