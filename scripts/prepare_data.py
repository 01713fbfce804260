"""Any data set as ArrayRecord, which is the fastest to read at random.

    python scripts/prepare_data.py /data/imagenet /data/imagenet-256 --resize-px 256

Images whose short side is longer are resized; the others keep their bytes.
"""

import sys
from pathlib import Path

import tyro

from resnetjax.data.prepare import Encoding, prepare
from resnetjax.errors import ResNetJAXError


def main(
    source: tyro.conf.Positional[str],
    target: tyro.conf.Positional[Path],
    /,
    *,
    split: tuple[str, ...] = (),
    encoding: tyro.conf.OmitArgPrefixes[Encoding] = Encoding(),  # noqa: B008 - frozen
    name: str = "images",
    examples_per_shard: int = 10_000,
    skip_bad: bool = False,
    workers: int | None = None,
) -> None:
    """Write a data set as ArrayRecord, in the layout of TensorFlow Datasets.

    Args:
        source: A folder, a file, a pattern such as 'train-{0000..0012}.tar', or digits.
        target: The folder to make.
        split: Which splits; none for all of them.
        encoding: Whether and how images are resized.
        name: Name of the data set, which is part of the file names.
        examples_per_shard: Number of examples in each file but the last.
        skip_bad: Leave bad images out and list them in skipped.txt, rather than stop at one.
        workers: Number of threads; None for one for each core.
    """
    try:
        prepared = prepare(
            source,
            target,
            split=split,
            encoding=encoding,
            name=name,
            examples_per_shard=examples_per_shard,
            skip_bad=skip_bad,
            workers=workers,
        )
    except (ResNetJAXError, OSError) as error:
        sys.exit(f"error: {error}")
    for line in prepared.skipped:
        print(f"skipped {line}", file=sys.stderr)
    for word, count in prepared.counts.items():
        print(f"{word}: {count} examples in {prepared.folder}")


if __name__ == "__main__":
    tyro.cli(main)
