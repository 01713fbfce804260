import dataclasses
import gzip
import hashlib
import io
import tarfile

import numpy as np
import pytest

import resnetjax as rj
from resnetjax import presets
from resnetjax.errors import (
    CorruptFile,
    DigestMismatch,
    UnknownName,
    UnsafeWeights,
    UnsupportedFile,
)
from resnetjax.pretrained import flatten
from resnetjax.weights import dialects, sources, unpacked
from resnetjax.weights.arrays import save_arrays
from tests.weights.local_server import Page, running
from tests.weights.table_bytes import tensor, version1
from tests.weights.torch_bytes import integer, mapping, tar_bytes

NAME = "slim_resnet_v1_50.slim_in1k"
NARROW = presets.get("slim_resnet_v1_50").replace(widths=(4, 4, 4, 4), stem_width=4)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETJAX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def checkpoint():
    """A checkpoint of version 1 with a slim net, narrow but as deep as any, and its arrays."""
    _, variables = rj.create(NARROW, rng=0)
    arrays = flatten(variables)
    theirs = save_arrays(dialects.get("slim_v1"), arrays, NARROW)
    theirs["global_step"] = np.array(0)
    encoded = {name: tensor(name, np.asarray(theirs[name])) for name in sorted(theirs)}
    return version1(encoded), arrays


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as written:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                written.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            written.addfile(info, io.BytesIO(member[1]))
    return stream.getvalue()


def packed(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    return gzip.compress(tar(*members), compresslevel=1, mtime=0)


def equal(pretrained: rj.Pretrained, arrays: dict[str, np.ndarray]) -> bool:
    found = flatten(pretrained.variables)
    assert found.keys() == arrays.keys()
    return all(np.asarray(found[path]).tobytes() == arrays[path].tobytes() for path in arrays)


@pytest.fixture
def publish(monkeypatch):
    """Publishes an archive under the name of slim's, on a server of our own."""
    with running() as server:

        def publish_archive(content: bytes, *, digest: str | None = None):
            server.pages["/resnet_v1_50_2016_08_28.tar.gz"] = Page(content)
            address = server.url("/resnet_v1_50_2016_08_28.tar.gz")
            published = dataclasses.replace(sources.find(NAME), address=address, digest=digest)
            monkeypatch.setattr(sources, "WEIGHTS", {NAME: published})
            return server

        yield publish_archive


def test_a_published_archive_is_loaded_by_its_name(publish, checkpoint):
    content, arrays = checkpoint
    archive = packed(("resnet_v1_50.ckpt", content), ("train.graph", b"graph"))
    server = publish(archive, digest=f"sha256:{hashlib.sha256(archive).hexdigest()}")
    for _ in range(2):
        loaded = rj.load(NAME, config=NARROW)
        assert equal(loaded, arrays)
    assert len(server.seen) == 1
    assert loaded.preprocess == sources.find(NAME).preprocess
    assert loaded.source.path.endswith("/files/resnet_v1_50.ckpt")
    assert (loaded.source.format, loaded.source.dialect) == ("tf-version1", "slim_v1")
    assert loaded.source.assumptions == ()


def test_a_published_archive_of_another_digest_is_refused(publish, checkpoint, home):
    publish(packed(("net.ckpt", checkpoint[0])), digest="sha256:" + "0" * 64)
    with pytest.raises(DigestMismatch):
        rj.load(NAME, config=NARROW)
    assert not list(home.rglob("*.ckpt"))


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
@pytest.mark.filterwarnings("ignore::resnetjax.errors.AssumptionWarning")
def test_an_archive_on_this_machine_is_loaded(tmp_path, home, checkpoint, form):
    members = [("./deep/net.ckpt-12", checkpoint[0]), ("deep/._net.ckpt-12", b"of a Mac")]
    path = tmp_path / "called.anything"
    path.write_bytes(tar(*members) if form == "tar" else packed(*members))
    loaded = rj.load(path, config=NARROW)
    assert equal(loaded, checkpoint[1])
    assert [x.name for x in home.rglob("*") if "net" in x.name] == ["net.ckpt-12"]


def test_the_shards_of_a_checkpoint_come_with_its_index(tmp_path):
    (tmp_path / "hub.tar.gz").write_bytes(
        packed(
            ("saved_model.pb", b"graph"),
            ("variables/variables.data-00000-of-00001", b"data"),
            ("variables/variables.index", b"index"),
        )
    )
    path = unpacked.unpack(tmp_path / "hub.tar.gz")
    assert (path.name, path.read_bytes()) == ("variables.index", b"index")
    assert path.with_name("variables.data-00000-of-00001").read_bytes() == b"data"


def test_another_archive_in_its_place_is_taken_out_anew(tmp_path):
    path = tmp_path / "net.tar"
    path.write_bytes(tar(("net.ckpt", b"one")))
    assert unpacked.unpack(path).read_bytes() == b"one"
    path.write_bytes(tar(("other.ckpt", b"another")))
    assert unpacked.unpack(path).read_bytes() == b"another"
    unpacked.unpack(path).unlink()
    assert unpacked.unpack(path).read_bytes() == b"another"


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (packed(("train.graph", b"1")), UnknownName, "found none"),
        (packed(("a.ckpt", b"1"), ("b.ckpt", b"2")), UnknownName, "a.ckpt, b.ckpt"),
        (packed(("../a.ckpt", b"1")), UnsafeWeights, "not to be trusted"),
        (packed(("a.ckpt", b"1"), ("/tmp/escaped", b"2")), UnsafeWeights, "not to be trusted"),
        (packed(("b", b"1"), link("a.ckpt", "/etc/passwd")), UnsafeWeights, "not to be trusted"),
        (packed(("b", b"1"), link("a.ckpt", "b")), UnknownName, "found none"),
        (packed(("a.ckpt", bytes(50_000)))[:-20], CorruptFile, "damaged"),
        (gzip.compress(b"no archive", mtime=0), UnsupportedFile, "decompress it first"),
    ],
    ids=["none", "two", "outside", "absolute", "link-outside", "link", "cut", "no-archive"],
)
def test_what_is_no_archive_of_one_net_is_refused(tmp_path, home, content, error, words):
    path = tmp_path / "net.tar.gz"
    path.write_bytes(content)
    with pytest.raises(error, match=rf"net\.tar\.gz: .*{words}"):
        rj.load(path)
    left = {x.name for x in home.rglob("*") if x.is_file()}
    assert left <= {".lock", ".record.json"}


def test_torchs_own_archives_are_read_as_they_are(tmp_path, home):
    (tmp_path / "net.pth").write_bytes(tar_bytes(mapping(w=integer(2) + b"Q")))
    with pytest.raises(UnsupportedFile, match="names of its arrays"):
        rj.load(tmp_path / "net.pth")
    assert not home.exists()
