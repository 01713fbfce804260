"""Where the weights are that are asked for: a path, an address, or a published name."""

import os
from pathlib import Path

from resnetjax import folders
from resnetjax.errors import UnknownName, UnsupportedFile
from resnetjax.weights import archives, sources
from resnetjax.weights.mapped import map_file
from resnetjax.weights.sources import PublishedWeights

_EXPORTED = (".stablehlo", ".onnx")  # what resnetjax.infer.artifact reads


def locate(source: str | os.PathLike[str]) -> tuple[Path, PublishedWeights | None]:
    """The file or folder of a source, fetched where it is not here, and what is published of it.

    Of a tar archive it is the one checkpoint in it, taken out into the cache folder.

    Raises:
        UnknownName: There is no such file, directory or published weight; the nearest are named.
        UnsupportedFile: It is an exported net, which has no weights to read.
        DownloadFailed, DigestMismatch, MissingExtra: It cannot be fetched.
        UnsafeWeights, CorruptFile: An archive is refused.
    """
    path = folders.find_model(Path(source))
    if path.suffix in _EXPORTED and path.is_file():
        raise UnsupportedFile(
            f"{path} is an exported net, which only `resnetjax predict` and "
            "resnetjax.infer.artifact.load take: give the weights that it was made from"
        )
    if path.exists():
        return _unpacked(path), None
    text = os.fspath(source)
    if "://" in text:
        return _fetch(text), None
    try:
        published = sources.find(text)
    except UnknownName as error:
        raise UnknownName(f"there is no file or directory {text!r}, and {error}") from None
    return _fetch(published.address, digest=published.digest), published


def _fetch(address: str, *, digest: str | None = None) -> Path:
    from resnetjax.weights.download import fetch  # takes a while to import, and is seldom needed

    return _unpacked(fetch(address, digest=digest))


def _unpacked(path: Path) -> Path:
    if not path.is_file() or not archives.detect(map_file(path)):
        return path
    from resnetjax.weights.unpacked import unpack

    return unpack(path)
