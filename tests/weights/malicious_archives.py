"""Hostile tar archives, of which a checkpoint is to be taken out."""

import gzip
import io
import tarfile

from tests.weights.attack import Attack

NAME = "net.ckpt"


def tar_of(*members, zipped=True) -> bytes:
    """A tar archive of (name, content) pairs or of TarInfos."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz" if zipped else "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return stream.getvalue()


def link(name, target, kind=tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def bomb(megabytes: int, name=NAME) -> bytes:
    """Zeros: gzip allows for several streams behind each other."""
    info = tarfile.TarInfo(name)
    info.size = megabytes * 2**20
    zeros = gzip.compress(bytes(2**20))
    return gzip.compress(info.tobuf()) + zeros * megabytes + gzip.compress(bytes(1024))


def long_name() -> bytes:
    """A name that is said to have, and has, 256 MB."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**28
    return gzip.compress(info.tobuf()) + gzip.compress(bytes(2**20)) * 256


def sparse() -> bytes:
    """A file of a terabyte, all of it a hole (GNU tar, sparse format 0.1)."""
    info = tarfile.TarInfo(NAME)
    info.size = 512
    info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**40)}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(bytes(512)))
    return stream.getvalue()


def unsafe(kind, make, harm, victim="archive", **options) -> Attack:
    return Attack(kind, make, "UnsafeWeights", victim, harm, "net.tar.gz", "extract", **options)


MALICIOUS = {
    "tar: name that leaves the folder": unsafe(
        "path traversal", lambda: tar_of((NAME, b"1"), ("../escaped", b"2")), "writes"
    ),
    "tar: absolute name": unsafe(
        "path traversal",
        lambda: tar_of((NAME, b"1"), ("/proc/self/cwd/escaped", b"2")),
        "writes",
    ),
    "tar: file behind a link": unsafe(
        "symbolic link",
        lambda: tar_of((NAME, b"1"), link("deep", ".."), ("deep/escaped", b"2")),
        "writes",
    ),
    "tar: symbolic link": unsafe("symbolic link", lambda: tar_of(link(NAME, "../secret")), "leaks"),
    "tar: symbolic link within, to a link": unsafe(
        "symbolic link",
        lambda: tar_of(link("a", "../secret"), link(NAME, "a")),
        "leaks",
    ),
    "tar: hard link": unsafe(
        "hard link", lambda: tar_of(link(NAME, "../secret", tarfile.LNKTYPE)), "leaks"
    ),
    "tar: pipe": unsafe(
        "special file", lambda: tar_of(link(NAME, "", tarfile.FIFOTYPE)), "exhausts", slow=True
    ),
    "tar: bomb": unsafe("gzip bomb", lambda: bomb(256), "exhausts", "archive_in_memory", slow=True),
    "tar: long name": unsafe("header bomb", long_name, "exhausts"),
    "tar: sparse file": unsafe("sparse file", sparse, "exhausts", "archive_in_memory"),
}
