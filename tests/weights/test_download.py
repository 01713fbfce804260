import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from resnetjax.errors import (
    ConfigError,
    CorruptFile,
    DigestMismatch,
    DownloadFailed,
    MissingExtra,
    UnknownName,
    UnsafeWeights,
    UnsupportedFile,
)
from resnetjax.weights import transfer
from resnetjax.weights.cached import Place
from resnetjax.weights.download import fetch
from tests.weights.local_server import Page, running, serve_repository
from tests.weights.malicious_archives import bomb, link, tar_of

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT, NEWER = "c" * 40, "d" * 40
FETCH = """
import sys
from resnetjax.weights.download import fetch
print(fetch(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "RESNETJAX_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv("RESNETJAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(transfer, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    return tmp_path / "home"


@pytest.fixture
def server():
    with running() as server:
        yield server


def left_in(folder):
    """Files in the cache that somebody could take for weights, or that were left by mistake."""
    kept = {".record.json", ".lock"}
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.name not in kept)


def test_a_file_is_fetched_once(server, home, capsys):
    server.pages["/a/resnet50-0676ba61.pth"] = Page(BODY)
    path = fetch(server.url("/a/resnet50-0676ba61.pth"))
    assert path.name == "resnet50-0676ba61.pth"
    assert path.is_relative_to(home)
    assert path.read_bytes() == BODY
    assert fetch(server.url("/a/resnet50-0676ba61.pth")) == path
    assert len(server.seen) == 1
    assert left_in(home) == [path.name]
    assert capsys.readouterr().err == "resnetjax: fetching resnet50-0676ba61.pth (0.3 MB)\n"


@pytest.mark.parametrize(
    "digest",
    [
        f"sha256:{SHA256}",
        f"sha256:{SHA256[:8].upper()}",
        f"md5:{hashlib.md5(BODY).hexdigest()}",
    ],
)
def test_a_published_digest_is_checked(server, home, digest):
    server.pages["/right"] = Page(BODY)
    server.pages["/wrong"] = Page(b"not the weights")
    assert fetch(server.url("/right"), digest=digest).read_bytes() == BODY
    with pytest.raises(DigestMismatch) as caught:
        fetch(server.url("/wrong"), digest=digest)
    kind, value = digest.lower().split(":")
    found = hashlib.new(kind, b"not the weights").hexdigest()
    assert f"expected {kind}:{value}, found {kind}:{found}" in str(caught.value)
    assert server.url("/wrong") in str(caught.value)
    assert left_in(home) == ["right"]


@pytest.mark.parametrize(
    "digest", ["", SHA256, "sha256:0123", "sha1:" + "0" * 40, "md5:" + "g" * 32]
)
def test_a_digest_that_is_none_is_refused_before_any_request(server, digest):
    with pytest.raises(ConfigError, match="is not allowed: use sha256"):
        fetch(server.url("/right"), digest=digest)
    assert server.seen == []


def test_a_cut_download_is_resumed_within_a_call(server):
    server.pages["/file"] = [Page(BODY, cut_after=100_000), Page(BODY)]
    assert fetch(server.url("/file")).read_bytes() == BODY
    assert [seen.status for seen in server.seen] == [200, 206]
    assert server.seen[1].headers["Range"] == "bytes=100000-"
    assert server.seen[1].headers["If-Range"] == '"1"'
    assert server.seen[1].sent_bytes == len(BODY) - 100_000


def test_a_cut_download_is_resumed_by_the_next_call(server, home):
    server.pages["/file"] = [Page(BODY, cut_after=100_000), Page(status=404)]
    with pytest.raises(DownloadFailed, match="404"):
        fetch(server.url("/file"))
    assert left_in(home) == [".partial", ".partial.json"]
    server.pages["/file"] = Page(BODY)
    assert fetch(server.url("/file")).read_bytes() == BODY
    assert server.seen[-1].sent_bytes == len(BODY) - 100_000
    assert left_in(home) == ["file"]


def test_slow_progress_is_no_failure(server):
    cuts = [Page(BODY, cut_after=50_000) for _ in range(5)]
    server.pages["/file"] = [*cuts, Page(BODY)]
    assert fetch(server.url("/file")).read_bytes() == BODY
    assert sum(seen.sent_bytes for seen in server.seen) == len(BODY)


def test_a_body_that_stays_too_short_is_refused(server, home):
    server.pages["/file"] = Page(BODY, cut_after=1000, ranges=False)
    with pytest.raises(DownloadFailed, match="ended after 1,000 of 300,000 bytes"):
        fetch(server.url("/file"))
    assert "file" not in left_in(home)


def test_a_server_that_ignores_ranges_sends_all_again(server):
    server.pages["/file"] = [Page(BODY, cut_after=100_000), Page(BODY, ranges=False)]
    assert fetch(server.url("/file")).read_bytes() == BODY
    assert [seen.status for seen in server.seen] == [200, 200]


def test_a_file_that_changes_between_its_parts_is_fetched_anew(server):
    other = BODY[::-1]
    server.pages["/file"] = [Page(BODY, cut_after=100_000), Page(other, etag='"2"')]
    assert fetch(server.url("/file")).read_bytes() == other
    assert [seen.status for seen in server.seen] == [200, 200]


def test_a_part_of_another_file_is_not_joined(server):
    """A server that sends the range of a newer file, though If-Range forbids it."""
    wrong = Page(BODY[::-1], etag='"2"', if_range=False)
    server.pages["/file"] = [Page(BODY, cut_after=100_000), wrong, Page(BODY[::-1], etag='"2"')]
    assert fetch(server.url("/file")).read_bytes() == BODY[::-1]
    assert "Range" not in server.seen[2].headers


def test_what_is_known_of_a_part_does_not_outlive_it(server, monkeypatch):
    """A kill just after a changed file has begun to replace a part, and then the file of before."""
    server.pages["/file"] = [Page(BODY, cut_after=100_000), Page(status=404)]
    with pytest.raises(DownloadFailed):
        fetch(server.url("/file"))
    server.pages["/file"] = Page(BODY[::-1], etag='"2"')
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_sync", lambda *args: sys.exit("killed"))
        with pytest.raises(SystemExit):
            fetch(server.url("/file"))
    server.pages["/file"] = Page(BODY)
    assert fetch(server.url("/file")).read_bytes() == BODY


def test_without_a_validator_nothing_is_resumed(server):
    server.pages["/file"] = [Page(BODY, cut_after=100_000, etag=None), Page(BODY, etag=None)]
    assert fetch(server.url("/file")).read_bytes() == BODY
    assert "Range" not in server.seen[1].headers


def test_parts_that_do_not_make_the_published_file_are_fetched_anew(server, home):
    """A server whose ETag stays though the file has changed."""
    server.pages["/file"] = [Page(BODY[::-1], cut_after=100_000), Page(BODY)]
    assert fetch(server.url("/file"), digest=f"sha256:{SHA256}").read_bytes() == BODY
    assert [seen.status for seen in server.seen] == [200, 206, 200]


def test_a_length_must_be_known_unless_a_digest_is(server):
    server.pages["/file"] = Page(BODY, length=False)
    with pytest.raises(DownloadFailed, match="does not say how long"):
        fetch(server.url("/file"))
    assert fetch(server.url("/file"), digest=f"sha256:{SHA256[:8]}").read_bytes() == BODY


def test_errors_of_the_server_are_tried_again(server):
    server.pages["/file"] = [Page(status=500), Page(status=503), Page(BODY)]
    assert fetch(server.url("/file")).read_bytes() == BODY
    server.pages["/other"] = Page(status=500)
    with pytest.raises(DownloadFailed, match=r"the server answers 500 .*4 times in a row"):
        fetch(server.url("/other"))


def chunks(body, *, cut=False):
    size = len(body) // 2
    parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:size], body[size:], b"")]
    return b"".join(parts[:1] if cut else parts)


def test_a_body_in_chunks_is_whole_once_its_end_is_there(server):
    headers = {"Transfer-Encoding": "chunked"}
    cut = Page(chunks(BODY, cut=True), headers=headers, length=False, ranges=False)
    server.pages["/file"] = cut
    with pytest.raises(DownloadFailed, match="the connection broke"):
        fetch(server.url("/file"))
    whole = Page(chunks(BODY), headers=headers, length=False, ranges=False)
    server.pages["/file"] = [cut, whole]
    assert fetch(server.url("/file")).read_bytes() == BODY


def test_a_part_longer_than_the_file_is_given_up(server):
    """A server whose ETag stays though the file has become shorter."""
    server.pages["/file"] = [Page(BODY, cut_after=100_000), Page(BODY[:1000])]
    assert fetch(server.url("/file")).read_bytes() == BODY[:1000]
    assert [seen.status for seen in server.seen] == [200, 416, 200]


def test_on_a_terminal_there_is_a_bar(server, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    server.pages["/resnet50.pth"] = Page(BODY)
    fetch(server.url("/resnet50.pth"))
    printed = capsys.readouterr()
    assert "resnet50.pth" in printed.err
    assert "300.0/300.0 kB" in re.sub(r"\x1b\[[\d;?]*\w", "", printed.err)
    assert "resnetjax: fetching" not in printed.err
    assert printed.out == ""


def test_an_absent_file_is_not_tried_again(server):
    with pytest.raises(DownloadFailed, match="/absent cannot be fetched: the server answers 404"):
        fetch(server.url("/absent"))
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_followed(server, status):
    location = {"Location": "{address}/moved"}
    server.pages["/file"] = Page(status=status, headers=location)
    server.pages["/moved"] = [Page(BODY, cut_after=100_000), Page(BODY)]
    path = fetch(server.url("/file"))
    assert path.read_bytes() == BODY
    assert path.name == "file"
    assert server.seen[-1].headers["Range"] == "bytes=100000-"


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("{address}/file", "redirected too often"),
        ("file:///etc/passwd", "'file:///etc/passwd' is not allowed"),
        ("ftp://127.0.0.1/file", "leads from http to ftp"),
        ("data:text/plain,weights", "is not allowed"),
    ],
)
def test_redirects_in_circles_and_elsewhere_are_refused(server, home, location, words):
    server.pages["/file"] = Page(status=302, headers={"Location": location})
    with pytest.raises(DownloadFailed, match=words):
        fetch(server.url("/file"))
    assert left_in(home) == []


def test_https_is_not_left_for_http():
    from urllib.error import HTTPError
    from urllib.request import Request

    from resnetjax.weights.connection import _Redirects

    request = Request("https://example.org/file")
    with pytest.raises(HTTPError, match="leads from https to http"):
        _Redirects().redirect_request(
            request, io.BytesIO(), 302, "Found", {}, "http://example.org/file"
        )


@pytest.mark.parametrize(
    "address",
    [
        "resnet50",
        "ftp://example.org/file",
        "file:///etc/passwd",
        "http://example.org/file",
        "https:///file",
        "https://user:secret@example.org/file",
        "https://example.org:port/file",
        "https://example.org/a file",
        "hf://owner",
        "hf://owner/repository/../../other/file",
        "hf://owner/repository@main@other",
        "kaggle://keras/resnetv2",
        "kaggle://../../../..",
    ],
)
def test_addresses_that_are_none_are_refused(address):
    with pytest.raises(ConfigError, match="not allowed") as caught:
        fetch(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/..%2f..%2f..%2fescaped", "escaped"),
        ("/a/..%5c..%5cescaped", "escaped"),
        ("/a/.record.json", "record.json"),
        ("/a/", "file"),
        ("/a/%2e%2e", "file"),
        ("/a/nul%00l%0Aine", "nul_l_ine"),
    ],
)
def test_no_name_leads_out_of_the_cache(server, home, path, name, tmp_path):
    from urllib.parse import unquote

    disposition = {"Content-Disposition": "attachment; filename=../../../../escaped"}
    server.pages[unquote(path)] = Page(BODY, headers=disposition)
    found = fetch(server.url(path))
    assert found.name == name
    assert found.resolve().parents[2] == home.resolve()
    assert left_in(tmp_path) == [name]


def start(address, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, address],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_fetch_one_body(server):
    gate = threading.Event()
    server.pages["/file"] = Page(BODY, gate=gate)
    processes = [start(server.url("/file")) for _ in range(2)]
    assert server.half_sent.wait(20)
    waiting = fetch_in_thread(server.url("/file"))  # a third, which certainly comes second
    gate.set()
    outputs = [process.communicate(timeout=20) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    paths = {output.strip() for output, _ in outputs} | {str(waiting())}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == BODY
    assert len(server.seen) == 1
    assert server.seen[0].sent_bytes == len(BODY)


def fetch_in_thread(address):
    found = []
    thread = threading.Thread(target=lambda: found.append(fetch(address)))
    thread.start()

    def result():
        thread.join(20)
        return found[0]

    return result


def test_after_a_kill_the_next_process_goes_on(server, home):
    gate = threading.Event()
    server.pages["/file"] = [Page(BODY, gate=gate), Page(BODY)]
    process = start(server.url("/file"))
    assert server.half_sent.wait(20)
    process.kill()
    process.communicate()
    gate.set()
    assert "file" not in left_in(home)
    assert fetch(server.url("/file")).read_bytes() == BODY
    assert left_in(home) == ["file"]


def test_what_was_synced_before_a_kill_is_not_fetched_again(server, monkeypatch):
    monkeypatch.setattr(transfer, "SYNC_BYTES", 1)
    states = []
    replace = Path.replace

    def record(self, target):
        if self.name == ".partial.new":
            states.append(json.loads(self.read_text())["synced"])
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", record)
    server.pages["/file"] = Page(BODY)
    path = fetch(server.url("/file"))
    assert len(states) > 2
    # As a kill after the first of these would have left it.
    part = path.with_name(".partial")
    part.write_bytes(BODY[: states[0]] + bytes(len(BODY)))  # more, but never synced
    state = {"validator": '"1"', "total": len(BODY), "synced": states[0]}
    part.with_name(".partial.json").write_text(json.dumps(state))
    path.unlink()
    assert fetch(server.url("/file")).read_bytes() == BODY
    assert server.seen[-1].sent_bytes == len(BODY) - states[0]


def test_the_network_is_not_needed_afterwards(home):
    with running() as server:
        server.pages["/file"] = Page(BODY)
        path = fetch(server.url("/file"))
    assert fetch(server.url("/file")) == path
    assert fetch(server.url("/file"), digest=f"sha256:{SHA256}") == path
    (path.parent / ".record.json").unlink()
    assert fetch(server.url("/file"), digest=f"sha256:{SHA256}") == path


def test_without_a_network_it_says_what_to_do(home):
    with running() as server:
        pass
    with pytest.raises(DownloadFailed) as caught:
        fetch(server.url("/resnet50.pth"))
    message = str(caught.value)
    assert message.startswith(
        f"{server.url('/resnet50.pth')} cannot be fetched: no connection to 127.0.0.1: "
    )
    assert "$HTTPS_PROXY" in message
    place = Path(next(line for line in message.splitlines() if line.startswith("  ")).strip())
    assert place.is_relative_to(home)
    # And that works.
    place.write_bytes(BODY)
    assert fetch(server.url("/resnet50.pth"), digest=f"sha256:{SHA256[:8]}") == place


def test_a_silent_server_is_left_after_the_timeout(server, monkeypatch):
    monkeypatch.setenv("RESNETJAX_TIMEOUT", "0.1")
    monkeypatch.setattr(transfer, "RETRY_SECONDS", ())
    gate = threading.Event()
    server.pages["/file"] = Page(BODY, gate=gate)
    with pytest.raises(DownloadFailed, match=r"the connection broke: .*timed out"):
        fetch(server.url("/file"))
    gate.set()
    monkeypatch.setenv("RESNETJAX_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="RESNETJAX_TIMEOUT='soon' is not allowed"):
        fetch(server.url("/file"))


def test_a_full_disk_leaves_nothing(server, home, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", **kwargs: opened(
            Path("/dev/full") if self.name == ".partial" else self, mode, **kwargs
        ),
    )
    server.pages["/file"] = Page(BODY)
    with pytest.raises(OSError, match=r"No space left on device.*partial") as caught:
        fetch(server.url("/file"))
    assert not isinstance(caught.value, DownloadFailed)
    assert left_in(home) == []


def change(path, *, keep_times):
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("keep_times", [False, True])
@pytest.mark.parametrize("digest", [None, f"sha256:{SHA256}", f"sha256:{SHA256[:8]}"])
def test_a_changed_file_is_noticed_and_fetched_again(server, keep_times, digest):
    server.pages["/file"] = Page(BODY)
    path = fetch(server.url("/file"), digest=digest)
    change(path, keep_times=keep_times)
    with pytest.warns(RuntimeWarning, match=f"not what it should be.*expected sha256:{SHA256[:8]}"):
        assert fetch(server.url("/file"), digest=digest).read_bytes() == BODY


def test_the_digest_of_first_use_binds(server, home):
    server.pages["/file"] = [Page(BODY), Page(BODY[::-1])]
    path = fetch(server.url("/file"))
    path.unlink()
    with pytest.raises(DigestMismatch, match=f"expected sha256:{SHA256} as at first use, found"):
        fetch(server.url("/file"))
    assert left_in(home) == []
    newer = hashlib.sha256(BODY[::-1]).hexdigest()
    assert fetch(server.url("/file"), digest=f"sha256:{newer}").read_bytes() == BODY[::-1]
    assert fetch(server.url("/file")).read_bytes() == BODY[::-1]


def test_a_touched_file_is_read_again_and_no_more(server, monkeypatch):
    server.pages["/file"] = Page(BODY)
    path = fetch(server.url("/file"))
    os.utime(path, (0, 0))
    assert fetch(server.url("/file")) == path
    monkeypatch.setattr(Place, "check", lambda *args: pytest.fail("read again"))
    assert fetch(server.url("/file")) == path
    assert len(server.seen) == 1


def test_a_cache_that_cannot_be_written_can_be_read(server, monkeypatch):
    server.pages["/file"] = Page(BODY)
    path = fetch(server.url("/file"))
    (path.parent / ".record.json").unlink()
    monkeypatch.setattr(os, "access", lambda *args: False)
    monkeypatch.setattr(Place, "locked", lambda *args: pytest.fail("wants to write"))
    assert fetch(server.url("/file"), digest=f"sha256:{SHA256}") == path
    with pytest.raises(DigestMismatch):
        fetch(server.url("/file"), digest="sha256:" + "0" * 64)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(MissingExtra, match=r"resnetjax\[hub\]"):
        fetch("hf://owner/repository")
    with pytest.raises(MissingExtra, match=r"resnetjax\[keras\]"):
        fetch("kaggle://keras/resnetv2/keras/resnet50_v2_imagenet")


ARCHIVE = tar_of(("./net.ckpt", BODY), ("train.graph", b"graph"), ("deep/data", b"data"))


@pytest.mark.parametrize("name", ["/net.tar.gz", "/net.tar"])
def test_members_are_taken_out_of_an_archive_once(server, home, name):
    plain = name.endswith(".tar")
    server.pages[name] = Page(gzip.decompress(ARCHIVE) if plain else ARCHIVE)
    folder = fetch(server.url(name), files=["net.ckpt", "deep/data"])
    assert (folder / "net.ckpt").read_bytes() == BODY
    assert left_in(folder) == ["data", "net.ckpt"]
    assert left_in(home) == ["data", "net.ckpt", name[1:]]
    (folder.parent / name[1:]).unlink()  # to save space
    assert fetch(server.url(name), files=["deep/data"]) == folder
    assert len(server.seen) == 1


def test_a_changed_member_is_taken_out_again(server):
    server.pages["/net.tgz"] = Page(ARCHIVE)
    digest = f"sha256:{hashlib.sha256(ARCHIVE).hexdigest()}"
    folder = fetch(server.url("/net.tgz"), digest=digest, files=["net.ckpt"])
    change(folder / "net.ckpt", keep_times=True)
    fetch(server.url("/net.tgz"), digest=digest, files=["net.ckpt"])
    assert (folder / "net.ckpt").read_bytes() == BODY
    with pytest.warns(RuntimeWarning), pytest.raises(DigestMismatch):
        fetch(server.url("/net.tgz"), digest="sha256:" + "0" * 64, files=["net.ckpt"])


def test_a_newer_archive_replaces_what_was_taken_out(server):
    newer = tar_of(("net.ckpt", BODY[::-1]))
    server.pages["/net.tgz"] = [Page(ARCHIVE), Page(newer)]
    folder = fetch(server.url("/net.tgz"), files=["net.ckpt"])
    digest = f"sha256:{hashlib.sha256(newer).hexdigest()}"
    with pytest.warns(RuntimeWarning, match="fetched again"):
        assert fetch(server.url("/net.tgz"), digest=digest, files=["net.ckpt"]) == folder
    assert (folder / "net.ckpt").read_bytes() == BODY[::-1]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (tar_of(("net.ckpt", b"1"), ("../../escaped", b"2")), UnsafeWeights),
        (tar_of(("other", b"1"), link("net.ckpt", "other")), UnsafeWeights),
        (tar_of(("other", b"1"), link("net.ckpt", "other", tarfile.LNKTYPE)), UnsafeWeights),
        (tar_of(link("net.ckpt", "", tarfile.CHRTYPE)), UnsafeWeights),
        (bomb(30, "zeros"), UnsafeWeights),
        (tar_of(("other", b"1")), UnknownName),
        (ARCHIVE[:100_000], CorruptFile),
        (gzip.compress(b"no archive" * 1000), CorruptFile),
        (b"<html>" * 1000, UnsupportedFile),
        (b"", UnsupportedFile),
    ],
    # Not by their bytes: gzip writes the time into them.
    ids=lambda value: getattr(value, "__name__", "archive"),
)
def test_archives_that_are_not_to_be_trusted_are_refused(server, home, tmp_path, content, error):
    server.pages["/net.tar.gz"] = Page(content)
    with pytest.raises(error, match=r"net\.tar\.gz: "):
        fetch(server.url("/net.tar.gz"), files=["net.ckpt"])
    assert left_in(tmp_path) == ["net.tar.gz"]


@pytest.mark.parametrize("name", ["../escaped", "/etc/passwd", "a/../../b", "", "..", "a\\b"])
def test_members_are_asked_for_by_names_inside(server, name):
    with pytest.raises(ConfigError, match="is not allowed: use names as in the archive"):
        fetch(server.url("/net.tar.gz"), files=[name])
    with pytest.raises(ConfigError, match="name members of an archive"):
        fetch(server.url("/net.pth"), files=["net.ckpt"])
    assert server.seen == []


WEIGHTS = save({"weight": np.arange(6, dtype=np.float32)})
FILES = {
    "README.md": b"# A net",
    "config.json": b'{"architecture": "resnet18"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same again",
}


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server as the hub, with a repository `timm/net`."""
    import huggingface_hub
    from huggingface_hub import constants

    # As $HF_ENDPOINT, $HF_HOME and $HF_HUB_OFFLINE make them, which are read at the first import.
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    serve_repository(server, "timm/net", FILES, commit=COMMIT)
    yield server
    huggingface_hub.utils.close_session()


def bodies(server):
    """The files that were sent."""
    return [
        seen.path.rpartition("/")[2]
        for seen in server.seen
        if seen.method == "GET" and "/resolve/" in seen.path
    ]


def test_of_a_repository_only_what_is_needed_is_fetched_and_once(hub):
    folder = fetch("hf://timm/net")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert fetch("hf://timm/net") == folder
    assert sorted(bodies(hub)) == ["config.json", "model.safetensors"]


def test_a_repository_is_there_without_a_network(hub, monkeypatch):
    from huggingface_hub import constants

    folder = fetch("hf://timm/net")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(hub.seen)
    assert fetch("hf://timm/net") == folder
    with pytest.raises(DownloadFailed, match=r"(?s)cannot be fetched.*hf download timm/other"):
        fetch("hf://timm/other")
    assert len(hub.seen) == requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.stop()
    assert fetch("hf://timm/net") == folder


def test_a_newer_commit_is_fetched(hub):
    folder = fetch("hf://timm/net")
    newer = FILES | {"model.safetensors": save({"weight": np.zeros(6, np.float32)})}
    serve_repository(hub, "timm/net", newer, commit=NEWER)
    again = fetch("hf://timm/net")
    assert again != folder
    assert (again / "model.safetensors").read_bytes() == newer["model.safetensors"]


def test_a_commit_or_a_digest_needs_no_second_request(hub):
    serve_repository(hub, "timm/net", FILES, commit=COMMIT, revision=COMMIT)
    digest = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    folder = fetch(f"hf://timm/net@{COMMIT}", digest=digest)
    file = fetch("hf://timm/net/model.safetensors", digest=digest)
    requests = len(hub.seen)
    assert fetch(f"hf://timm/net@{COMMIT}", digest=digest) == folder
    assert fetch("hf://timm/net/model.safetensors", digest=digest) == file
    assert file == folder / "model.safetensors"
    assert len(hub.seen) == requests


def test_one_file_of_a_repository_is_fetched_by_its_path(hub):
    serve_repository(hub, "timm/net", {"deep/net.pth": BODY}, commit=COMMIT, revision="v1")
    assert fetch("hf://timm/net@v1/deep/net.pth").read_bytes() == BODY
    folder = fetch("hf://timm/net@v1", files=["deep/net.pth"])
    assert (folder / "deep" / "net.pth").read_bytes() == BODY
    with pytest.raises(UnknownName, match=r"no absent; it has deep/net.pth"):
        fetch("hf://timm/net@v1/absent")
    with pytest.raises(UnsupportedFile, match=r"no weights found: .* it has deep/net.pth"):
        fetch("hf://timm/net@v1")


def test_the_head_of_a_keras_model_comes_with_it(hub):
    files = {"config.json": b"{}", "model.weights.h5": BODY, "task.weights.h5": b"head"}
    serve_repository(hub, "keras/net", files | {"assets.bin": b""}, commit=COMMIT)
    folder = fetch("hf://keras/net", digest=f"sha256:{SHA256[:8]}")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def sharded():
    shards = {f"model-0000{i}-of-00002.safetensors": save({f"w{i}": np.ones(i)}) for i in (1, 2)}
    weight_map = {f"w{i}": name for i, name in enumerate(shards, 1)}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return {"config.json": b"{}", "model.safetensors.index.json": index, **shards}


def test_the_shards_of_an_index_come_with_it(hub):
    files = sharded()
    serve_repository(hub, "timm/shards", files | {"model-other.safetensors": b""}, commit=COMMIT)
    folder = fetch("hf://timm/shards")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert fetch("hf://timm/shards/model.safetensors.index.json").parent == folder
    hub.stop()
    assert fetch("hf://timm/shards") == folder


@pytest.mark.parametrize("name", ["../escaped.safetensors", "/etc/passwd", "a\\b", ".."])
def test_an_index_leads_out_of_no_repository(hub, name):
    index = json.dumps({"weight_map": {"w": name}}).encode()
    serve_repository(hub, "timm/bad", {"model.safetensors.index.json": index}, commit=COMMIT)
    with pytest.raises(CorruptFile, match="a file outside its folder"):
        fetch("hf://timm/bad")


def test_an_absent_repository_is_named(hub):
    headers = {"X-Error-Code": "RepoNotFound"}
    hub.pages["/api/models/timm/absent"] = Page(status=404, headers=headers)
    with pytest.raises(DownloadFailed, match=r"hf://timm/absent cannot be fetched: .*404"):
        fetch("hf://timm/absent")


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub, tmp_path):
    path = f"/timm/net/resolve/{COMMIT}/model.safetensors"
    good = hub.pages[path]
    hub.pages[path] = Page(WEIGHTS[::-1], etag=good.etag, headers=good.headers)
    expected = hashlib.sha256(WEIGHTS).hexdigest()
    with (
        pytest.warns(RuntimeWarning, match="fetched again"),
        pytest.raises(DigestMismatch, match=f"expected sha256:{expected}, found sha256:"),
    ):
        fetch("hf://timm/net")
    assert not list(tmp_path.rglob("model.safetensors"))
    hub.pages[path] = good
    assert (fetch("hf://timm/net") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_changed_file_of_a_repository_is_noticed(hub):
    folder = fetch("hf://timm/net")
    for name in ("model.safetensors", "config.json"):
        path = folder / name
        path.write_bytes(path.read_bytes()[::-1])
        with pytest.warns(RuntimeWarning, match="fetched again"):
            assert fetch("hf://timm/net") == folder
        assert path.read_bytes() == FILES[name]
    path.write_bytes(b"{}")
    hub.stop()
    with pytest.raises(DigestMismatch, match="It is removed"):
        fetch("hf://timm/net")


def test_a_digest_of_a_repository_is_that_of_its_weights(hub):
    with pytest.warns(RuntimeWarning), pytest.raises(DigestMismatch):
        fetch("hf://timm/net", digest="sha256:" + "0" * 64)
    serve_repository(hub, "timm/shards", sharded(), commit=COMMIT)
    with pytest.raises(ConfigError, match="weights are model-00001"):
        fetch("hf://timm/shards", digest="sha256:" + "0" * 64)


def test_the_hubs_own_variables_are_honoured(server, tmp_path):
    serve_repository(server, "timm/net", FILES, commit=COMMIT)
    hub = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.address, "HF_TOKEN": "hf_secret"}
    process = start("hf://timm/net", **hub)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert Path(output.strip()).is_relative_to(tmp_path / "hf")
    asked = [seen for seen in server.seen if seen.path == "/api/models/timm/net"]
    assert asked[0].headers["authorization"] == "Bearer hf_secret"


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A kagglehub that has one model, and a list of what was asked of it."""

    def model_download(handle, *, force_download=False):
        calls.append((handle, force_download))
        if isinstance(state["answer"], Exception):
            raise state["answer"]
        folder = tmp_path / "kagglehub" / handle / state["answer"]
        if force_download or not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text("{}")
            content = BODY if folder.name == "1" else BODY[::-1]
            (folder / "model.weights.h5").write_bytes(content)
        return str(folder)

    import kagglehub

    calls, state = [], {"answer": "1"}
    module = types.SimpleNamespace(model_download=model_download, exceptions=kagglehub.exceptions)
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return types.SimpleNamespace(calls=calls, state=state)


KERAS = "kaggle://keras/resnetv2/keras/resnet50_v2_imagenet"


def test_a_model_on_kaggle_is_fetched_checked_and_kept(kaggle):
    folder = fetch(KERAS, digest=f"sha256:{SHA256[:8]}")
    assert (folder / "model.weights.h5").read_bytes() == BODY
    change(folder / "model.weights.h5", keep_times=True)
    with pytest.warns(RuntimeWarning, match="fetched again"):
        assert fetch(KERAS) == folder
    assert (folder / "model.weights.h5").read_bytes() == BODY
    (folder / "config.json").unlink()
    assert fetch(KERAS) == folder
    assert (folder / "config.json").exists()
    kaggle.state["answer"] = OSError("no network")
    assert fetch(KERAS) == folder
    kaggle.state["answer"] = "2"
    assert fetch(KERAS).name == "2"


def test_a_version_on_kaggle_is_asked_for_once(kaggle):
    folder = fetch(f"{KERAS}/2")
    assert fetch(f"{KERAS}/2") == folder
    assert len(kaggle.calls) == 1


def test_what_kaggle_refuses_is_said(kaggle):
    kaggle.state["answer"] = sys.modules["kagglehub"].exceptions.UnauthenticatedError()
    with pytest.raises(DownloadFailed, match=r"(?s)not authenticated.*KAGGLE_KEY"):
        fetch(KERAS)
    kaggle.state["answer"] = "1"
    with pytest.warns(RuntimeWarning), pytest.raises(DigestMismatch, match=r"model\.weights\.h5"):
        fetch(KERAS, digest="sha256:" + "0" * 64)
    with pytest.raises(ConfigError, match="no files="):
        fetch(KERAS, files=["config.json"])
