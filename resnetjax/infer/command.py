"""`resnetjax features`, `explain` and `push`: each imports what it needs when it runs."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from resnetjax.cache import keep_compiled
from resnetjax.data.readers.image_folder import EXTENSIONS, is_image
from resnetjax.errors import BadImage, ConfigError, UnsupportedFile

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Images = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME")]


def features(
    model: Model,
    images: Images,
    *,
    out: Path,
    stage: str = "pooled",
    batch_size: int = 32,
    arch: Name = None,
) -> int:
    """Write a vector of each image, as `names` and `vectors` of an .npz file.

    Args:
        model: A weight file, a directory, an address, or a published weight's name.
        images: JPEG, PNG, WEBP, BMP, TIFF, PPM or PGM files, or directories of them.
        out: The file to be written.
        stage: pooled is what the head sees; of stem, stage1, ... it is the mean over the pixels.
        batch_size: Images run at once.
        arch: Name of the architecture, where the file cannot tell.
    """
    import numpy as np

    from resnetjax import zoo
    from resnetjax.infer.vectors import vectors_each
    from resnetjax.weights import files, npz_file

    _check_ending(out, ".npz")
    paths = image_files(images)
    keep_compiled()
    pretrained = zoo.load(model, arch=arch)
    results = vectors_each(pretrained, paths, stage=stage, batch_size=batch_size)
    names, rows = [], []
    shown = with_progress(results, len(paths), doing="computing features")
    for path, result in zip(paths, shown, strict=True):
        if isinstance(result, BadImage):
            say(f"error: {result}")
            continue
        names.append(str(path))
        rows.append(result)
    vectors = np.stack(rows) if rows else np.zeros((0, 0), np.float32)
    arrays = {"names": np.array(names, np.str_), "vectors": vectors}
    files.write({out: npz_file.encode(arrays)})
    print(f"{out}: {len(rows)} vectors of {vectors.shape[1]} ({stage})")
    return 2 if len(rows) < len(paths) else 0


def explain(
    model: Model,
    image: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    label: Name = None,
    stage: Name = None,
    arch: Name = None,
) -> int:
    """Draw which places of an image speak for a class, by Grad-CAM.

    Args:
        model: A weight file, a directory, an address, or a published weight's name.
        image: A JPEG, PNG, WEBP, BMP, TIFF, PPM or PGM file.
        out: The .png file to be written: what the net sees, and the same under the heat.
        label: The class by name, id or index; the likeliest unless given.
        stage: stem, stage1, ..., and in v2 norm; the last unless given.
        arch: Name of the architecture, where the file cannot tell.
    """
    import io

    from resnetjax import zoo
    from resnetjax.infer import explain as grad_cam
    from resnetjax.weights import files

    _check_ending(out, ".png")
    if not image.is_file():
        raise BadImage(f"there is no file {str(image)!r}")
    keep_compiled()
    found = grad_cam.explain(zoo.load(model, arch=arch), image, label=label, stage=stage)
    buffer = io.BytesIO()
    found.draw().save(buffer, "PNG")
    files.write({out: buffer.getvalue()})
    of, (height, width) = found.prediction, found.heat.shape
    print(f"{out}: {of.label} ({of.index}), {of.probability:.4f}; {found.stage}, {height}x{width}")
    return 0


def push(
    model: Model,
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")],
    *,
    private: bool = False,
    dry_run: bool = False,
    message: Name = None,
    arch: Name = None,
) -> int:
    """Upload a net to Hugging Face, with a model card.

    Args:
        model: A weight file, a directory, an address, or a published weight's name.
        repository: Where it goes; made where it is absent.
        private: Make it so that only its owner sees it.
        dry_run: Upload nothing; print the card.
        message: Of the commit.
        arch: Name of the architecture, where the file cannot tell.
    """
    from resnetjax import zoo
    from resnetjax.infer import model_card
    from resnetjax.infer import push as pushing

    pushing.check_name(repository)
    token = None if dry_run else pushing.find_token()  # before the work, not after it
    keep_compiled()
    pretrained = zoo.load(model, arch=arch)
    known = {"origin": model, "metrics": model_card.known_metrics(model)}
    if dry_run:
        print(model_card.card(pretrained, repository, **known), end="")
        return 0
    address = pushing.push(
        pretrained, repository, private=private, message=message, token=token, **known
    )
    print(f"{address}: pushed; resnetjax.load('hf://{repository}') reads it")
    return 0


def image_files(given: tuple[Path, ...]) -> list[Path]:
    """The files themselves, and the images of directories and those below them, sorted.

    What macOS writes beside a file, under its name after "._", is no image.

    Raises:
        BadImage: None are given, one is not there, or a directory has none.
        OSError: A directory cannot be read.
    """
    if not given:
        raise BadImage("no images are given: name files or directories after the model")
    return [path for one in given for path in _image_files(one)]


def _image_files(given: Path) -> list[Path]:
    if not given.exists():
        raise BadImage(f"there is no file or directory {str(given)!r}")
    if not given.is_dir():
        return [given]
    # Not rglob, which passes over a folder that it cannot read.
    below = ((folder, name) for folder, _, names in _walk(given) for name in names)
    found = sorted(Path(folder, name) for folder, name in below if is_image(name))
    if not found:
        raise BadImage(f"{given}: no images in it (looked for {', '.join(EXTENSIONS)})")
    return found


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    def fail(error: OSError) -> None:
        raise error

    return os.walk(folder, onerror=fail)


def with_progress(results: Iterator[Any], total: int, *, doing: str) -> Iterator[Any]:
    """The results, with a bar on stderr while there are many and somebody looks."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if total < 2 or not console.is_terminal:
        yield from results
        return
    # Redirected, what is printed goes where the bar is, to stderr, and `> labels.txt` stays empty.
    redirect = sys.stdout.isatty()
    with Progress(console=console, transient=True, redirect_stdout=redirect) as bar:
        yield from bar.track(results, total=total, description=doing)


def say(message: str) -> None:
    """Prints a line on stderr."""
    print(f"resnetjax: {message}", file=sys.stderr)


def _check_ending(path: Path, ending: str) -> None:
    if path.suffix != ending:
        raise UnsupportedFile(f"--out {path} is not allowed: use a file ending in {ending}")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path} is not allowed: there is no folder {path.parent}")
