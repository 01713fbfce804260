"""Repositories on Hugging Face, through huggingface_hub."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

from resnetjax.errors import (
    ConfigError,
    CorruptFile,
    DownloadFailed,
    MissingExtra,
    UnknownName,
    UnsupportedFile,
)
from resnetjax.weights import bounded_json
from resnetjax.weights.archives import check_member
from resnetjax.weights.cached import Place, say
from resnetjax.weights.connection import timeout_seconds
from resnetjax.weights.digests import Digest
from resnetjax.weights.repositories import listing, main_file, unchanged, verified

# Of a repository, all that is there of the first and the first that is there of the second.
COMPANIONS = (
    "config.json",
    "preprocessor_config.json",
    "preprocessor.json",  # KerasHub's, as the next four; the last holds the head
    "image_converter.json",
    "metadata.json",
    "task.json",
    "task.weights.h5",
)
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "model.weights.h5",
)
_INDEX = ".index.json"


def fetch(address: str, given: tuple[Digest, ...], files: Sequence[str] | None) -> Path:
    """The folder of a repository's files, or the one file that the address names.

    Files lie in Hugging Face's own cache, where other programs find them; their digests are those
    that it publishes with the commit. Without a network the last commit that was fetched is used.

    Raises:
        As `download.fetch`.
    """
    match = re.fullmatch(r"hf://(\w[\w.-]*/\w[\w.-]*)(?:@([^@/]+))?(?:/([^@]+))?", address)
    if match is None or (match[3] and files is not None):
        raise ConfigError(
            f"address {address!r} is not allowed: use hf://owner/repository[@revision][/file], "
            "either with /file or with files="
        )
    repository, file = match[1], match[3]
    revision = unquote(match[2]) if match[2] else None
    asked = [check_member(name) for name in ([file] if file else files or ())]
    place = Place(address)
    pinned = re.fullmatch("[0-9a-f]{40}", revision or "") or (given and file)
    if pinned and (folder := unchanged(place, asked, given)):
        return folder / file if file else folder
    with place.locked():
        source = _HuggingFace(repository, revision, place)

        def take(name: str) -> Path:
            return verified(
                place, name, source.get(name), source.published(name), source.again(name)
            )

        paths = {name: take(name) for name in asked or source.usual()}
        for index in [name for name in paths if name.endswith(_INDEX)]:
            paths |= {shard: take(shard) for shard in _shards(paths[index], index)}
        if main := main_file(paths, given):
            expected = (*source.published(main), *given)
            paths[main] = verified(place, main, paths[main], expected, source.again(main))
        name, path = next(iter(paths.items()))
        folder = path.parents[name.count("/")]
        facts = {"asked": asked, "names": list(paths), "folder": str(folder)}
        place.save(**facts, commit=source.commit)
    return paths[file] if file else folder


class _HuggingFace:
    """A repository at one commit: online, or as far as it is cached."""

    def __init__(self, repository: str, revision: str | None, place: Place) -> None:
        try:
            import huggingface_hub
            from huggingface_hub.errors import HfHubHTTPError
        except ImportError as error:
            text = 'hf:// needs huggingface_hub: pip install "resnetjax[hub]"'
            raise MissingExtra(text) from error
        self._hub = huggingface_hub
        # The HTTPError of httpx or httpx2, as the version has it, for connections' errors go by it.
        http_error: type[Exception] = HfHubHTTPError.__bases__[0]
        self._faults = (http_error, OSError, ValueError, RuntimeError)  # the last is hf_xet's
        self._repository, self._revision, self._place = repository, revision, place
        self._failure: Exception | None = None
        self._siblings = {}
        try:
            info = huggingface_hub.HfApi().model_info(
                repository, revision=revision, files_metadata=True, timeout=timeout_seconds()
            )
            self._siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
            self.commit = info.sha
        except self._faults as error:
            self._failure = error
            self.commit = place.facts.get("commit") or revision

    def usual(self) -> list[str]:
        """The names of its weights and of what goes with them."""
        weights = next((name for name in WEIGHTS if self._has(name)), None)
        if weights is None:
            if self._failure is not None:
                raise self._failed(self._failure)
            raise UnsupportedFile(
                f"{self._place.address}: no weights found: expected {', '.join(WEIGHTS)}; it has "
                f"{listing(self._siblings)}: name one as hf://owner/repository/FILE"
            )
        return [*filter(self._has, COMPANIONS), weights]

    def get(self, name: str) -> Path:
        """A file's path in Hugging Face's cache."""
        cached = self._cached(name)
        if self._failure is not None:
            if cached is None:
                raise self._failed(self._failure)
            return cached
        if name not in self._siblings:
            raise UnknownName(f"{self._place.address}: no {name}; it has {listing(self._siblings)}")
        if cached is None:
            say(f"fetching {name} of hf://{self._repository}")
        try:
            return Path(
                self._hub.hf_hub_download(
                    self._repository, name, revision=self.commit, etag_timeout=timeout_seconds()
                )
            )
        except self._faults as error:
            raise self._failed(error) from error

    def again(self, name: str) -> Callable[[], Path] | None:
        """What fetches a file a second time; None without a network."""
        return (lambda: self.get(name)) if self._failure is None else None

    def published(self, name: str) -> tuple[Digest, ...]:
        """The digest that comes with the commit: of large files SHA-256, of others git's."""
        sibling = self._siblings.get(name)
        if sibling is None:
            return ()
        if sibling.lfs is not None:
            return (Digest("sha256", sibling.lfs.sha256),)
        return (Digest("git", sibling.blob_id),) if sibling.blob_id else ()

    def _has(self, name: str) -> bool:
        return name in self._siblings or (
            self._failure is not None and self._cached(name) is not None
        )

    def _cached(self, name: str) -> Path | None:
        found = self._hub.try_to_load_from_cache(self._repository, name, revision=self.commit)
        return Path(found) if isinstance(found, str) else None

    def _failed(self, reason: Exception) -> DownloadFailed:
        revision = f" --revision {self._revision}" if self._revision else ""
        text = " ".join(str(reason).split()) or type(reason).__name__
        return DownloadFailed(
            f"{self._place.address} cannot be fetched: {text:.400}\n"
            "Without it: where there is a network, run\n"
            f"  hf download {self._repository}{revision}\n"
            f"and copy the folder models--{self._repository.replace('/', '--')} to\n"
            f"  {self._hub.constants.HF_HUB_CACHE}\n"
            "($HF_HOME names another cache, $HF_ENDPOINT a mirror, $HF_TOKEN who may read what is "
            "private; $HF_HUB_OFFLINE forbids requests)."
        )


def _shards(path: Path, index: str) -> list[str]:
    """The files that an index lists, by their paths in the repository."""
    listed = bounded_json.loads(path.read_bytes(), what=index).get("weight_map")
    if type(listed) is not dict or not listed:
        raise CorruptFile(f"{path} lists no shards")
    names = sorted({str(name) for name in listed.values()})
    if wrong := next((name for name in names if not re.fullmatch(r"\w[^/\\:\0]*", name)), None):
        raise CorruptFile(f"{path} asks for a file outside its folder: {wrong!r:.80}")
    folder = index.rpartition("/")[0]
    return [f"{folder}/{name}" if folder else name for name in names]
