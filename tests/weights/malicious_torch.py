"""Hostile files of torch.save: pickles, and the containers that they are in."""

import struct
import zipfile
import zlib

from tests.weights.attack import SECRET, Attack
from tests.weights.torch_bytes import (
    integer,
    legacy_bytes,
    mapping,
    tar_bytes,
    tensor,
    text,
    zip_bytes,
)

COMMAND = text("touch canary")
SYSTEM = b"cos\nsystem\n"
CALLED = SYSTEM + COMMAND + b"\x85R"

# Each runs the command in an unrestricted unpickler; by its opcodes.
PROGRAMS = {
    "GLOBAL os.system, REDUCE": CALLED,
    "GLOBAL posix.system, REDUCE": b"cposix\nsystem\n(" + COMMAND + b"tR",
    "GLOBAL subprocess.getoutput, REDUCE": b"csubprocess\ngetoutput\n(" + COMMAND + b"tR",
    "STACK_GLOBAL os.system": b"\x8c\x02os\x8c\x06system\x93" + COMMAND + b"\x85R",
    "STACK_GLOBAL of a dotted name": (
        b"\x80\4\x8c\x08argparse\x8c\x0a_os.system\x93" + COMMAND + b"\x85R"
    ),
    "INST": b"(" + COMMAND + b"ios\nsystem\n",
    "OBJ": b"(" + SYSTEM + COMMAND + b"o",
    "REDUCE of builtins.eval": (
        b"cbuiltins\neval\n" + text("__import__('os').system('touch canary')") + b"\x85R"
    ),
    "REDUCE of builtins.exec": (
        b"cbuiltins\nexec\n" + text("import os; os.system('touch canary')") + b"\x85R"
    ),
    "getattr chain from importlib": (
        b"cbuiltins\ngetattr\n(cimportlib\nimport_module\n("
        + text("os") + b"tR" + text("system") + b"tR" + COMMAND + b"\x85R"
    ),
    "getattr chain through __globals__": (
        b"cbuiltins\ngetattr\n(cargparse\nNamespace\n" + text("__init__") + b"tRq\x00"
        b"0cbuiltins\ngetattr\n(cbuiltins\ngetattr\n(h\x00" + text("__globals__") + b"tR"
        + text("get") + b"tR(" + text("_os") + b"tRq\x01"
        b"0cbuiltins\ngetattr\n(h\x01" + text("system") + b"tR" + COMMAND + b"\x85R"
    ),
    "REDUCE of functools.partial": (
        b"cfunctools\npartial\n(" + SYSTEM + b"tR" + COMMAND + b"\x85R"
    ),
    "REDUCE of a lazy map": (
        b"cbuiltins\nlist\n(cbuiltins\nmap\n(" + SYSTEM + b"](" + COMMAND + b"etRtR"
    ),
    "NEWOBJ": (
        b"cbuiltins\ntuple\n(cbuiltins\nmap\n(" + SYSTEM + b"](" + COMMAND + b"et\x81t\x81"
    ),
    "NEWOBJ_EX": b"cfunctools\npartial\n(" + SYSTEM + COMMAND + b"t}\x92)R",
    "BUILD with __setstate__": (
        b"cargparse\nNamespace\n)\x81}" + text("__setstate__") + SYSTEM + b"sb" + COMMAND + b"b"
    ),
    "SETITEMS of a state dict": (
        b"ccollections\nOrderedDict\n)R(" + text("weight") + CALLED + b"u"
    ),
    "popped again": CALLED + b"0}",
}  # fmt: skip
EXTENSIONS = {"EXT1": b"\x82\1", "EXT2": b"\x83\0\1", "EXT4": b"\x84\0\0\1\0"}
TAIL = SECRET.encode().ljust(40, b".")


def beside(pickled: bytes) -> bytes:
    """A file of two storages, of which only the first is the tensor's."""
    return zip_bytes(pickled, {"0": bytes(24), "1": TAIL})


def behind(pickled: bytes) -> bytes:
    """The same, and the tensor's is the second."""
    return zip_bytes(pickled, {"1": TAIL, "0": bytes(24)})


def doubled(depth: int) -> bytes:
    """Pairs of the pair before, twice: 2 ** depth leaves in 5 * depth bytes."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(depth))


def zeros(size: int, *, inner: int = 2**20) -> bytes:
    """So many zeros, deflated at once: one block, over and over."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflater.compress(bytes(inner)) + deflater.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    return block * (size // inner) + last


def zip_bomb(*, declared: int, actual: int) -> bytes:
    """A storage that is said to have one size and inflates to another."""
    packed = zeros(actual)
    content = bytearray(zip_bytes(mapping(w=tensor()), {"0": packed}))
    header = content.index(b"archive/data/0") - 30
    entry = content.rindex(b"archive/data/0") - 46
    for place, method, sizes in ((header, 8, 18), (entry, 10, 20)):
        struct.pack_into("<H", content, place + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<2I", content, place + sizes, len(packed), declared)
    return bytes(content)


def name_twice() -> bytes:
    """Two pickles of one name: the first is harmless, `zipfile` takes the second."""
    other = b"\x80\x02" + CALLED + b"."
    content = zip_bytes(mapping(w=tensor()), extra=[("archive/daTa.pkl", other)])
    return content.replace(b"daTa.pkl", b"data.pkl")


def programs() -> dict[str, Attack]:
    """Every program in a zip archive, and the first in all containers."""
    found = {
        f"torch-zip: {name}": Attack(
            name, lambda program=program: zip_bytes(program), "UnsafeWeights", "torch_zip", "runs"
        )
        for name, program in PROGRAMS.items()
    }
    found |= {
        f"torch-zip: {name}": Attack(
            name,
            lambda code=code: zip_bytes(code + COMMAND + b"\x85R"),
            "UnsafeWeights",
            "torch_zip_with_extensions",
            "runs",
        )
        for name, code in EXTENSIONS.items()
    }
    return found


def unsafe(kind, make, victim, harm="exhausts", error="UnsafeWeights", **options) -> Attack:
    return Attack(kind, make, error, victim, harm, **options)


def corrupt(kind, make, victim="torch_zip_tensor", harm="leaks") -> Attack:
    return Attack(kind, make, "CorruptFile", victim, harm)


OVERRUN = "CVE-2026-24747"
MALICIOUS = programs() | {
    "torch-legacy: os.system": unsafe(
        "GLOBAL, REDUCE", lambda: legacy_bytes(CALLED), "torch_legacy", "runs"
    ),
    "torch-legacy: os.system among the keys": unsafe(
        "GLOBAL, REDUCE",
        lambda: legacy_bytes(tensor(view=b"N")).replace(
            b"\x80\x02](" + text("0") + b"e.", b"\x80\x02" + CALLED + b"."
        ),
        "torch_legacy",
        "runs",
    ),
    "torch-tar: os.system": unsafe(
        "CVE-2025-32434", lambda: tar_bytes(CALLED), "torch_tar", "runs"
    ),
    "torch-tar: os.system among the storages": unsafe(
        "CVE-2025-32434",
        lambda: tar_bytes(integer(2) + b"Q", views=CALLED, content=b"", size=0),
        "torch_tar",
        "runs",
    ),
    "torch-zip: SETITEM of what is no dict": unsafe(
        f"{OVERRUN}, SETITEM",
        lambda: zip_bytes(b"cos\nenviron\n" + text("HIJACKED") + text(SECRET) + b"s"),
        "torch_zip_in_this_process",
        "leaks",
    ),
    "torch-zip: APPEND to what is no list": unsafe(
        "APPEND",
        lambda: zip_bytes(b"csys\npath\n" + text(SECRET) + b"a"),
        "torch_zip_in_this_process",
        "leaks",
    ),
    "torch-zip: PERSID": unsafe(
        "PERSID",
        lambda: zip_bytes(b"(](NN" + text("../secret") + b"NN" + b"etP../secret\n0"),
        "torch_zip_of_files",
        "leaks",
    ),
    "torch-zip: BINPERSID of a path": corrupt(
        "BINPERSID", lambda: zip_bytes(tensor(key="../secret")), "torch_zip_of_files"
    ),
    "torch-zip: memo bomb": unsafe(
        "LONG_BINPUT", lambda: zip_bytes(b"]r\0\0\0\x10"), "torch_zip"
    ),
    "torch-zip: memo bomb in digits": unsafe(
        "PUT", lambda: zip_bytes(b"]p268435456\n"), "torch_zip"
    ),
    "torch-legacy: text of a terabyte": unsafe(
        "BINUNICODE8",
        lambda: legacy_bytes(b"\x8d" + struct.pack("<Q", 2**40)),
        "torch_legacy",
        error="CorruptFile",
    ),
    "torch-legacy: bytes of a terabyte": unsafe(
        "BINBYTES8",
        lambda: legacy_bytes(b"\x8e" + struct.pack("<Q", 2**40)),
        "torch_legacy",
        error="CorruptFile",
    ),
    "torch-legacy: frame of a terabyte": unsafe(
        "FRAME",
        lambda: legacy_bytes(b"\x95" + struct.pack("<Q", 2**40)),
        "torch_legacy",
        error="CorruptFile",
    ),
    "torch-zip: bytearray of a terabyte": unsafe(
        "BYTEARRAY8", lambda: zip_bytes(b"\x96" + struct.pack("<Q", 2**40)), "torch_zip"
    ),
    "torch-zip: bytes made of a number": unsafe(
        "NEWOBJ",
        lambda: zip_bytes(b"cbuiltins\nbytes\n" + integer(2**40) + b"\x85\x81"),
        "torch_zip",
    ),
    "torch-zip: list that holds itself": unsafe(
        "APPEND, GET", lambda: zip_bytes(b"]q\0h\0a"), "torch_zip_walked"
    ),
    "torch-zip: tuple of great depth": unsafe(
        "TUPLE1", lambda: zip_bytes(b")" + b"\x85" * 200_000), "torch_zip_walked"
    ),
    "torch-zip: pair doubled often": unsafe(
        "TUPLE2, GET", lambda: zip_bytes(doubled(60)), "torch_zip_walked", slow=True
    ),
    "torch-zip: terabytes by a stride of zero": unsafe(
        "expanded tensor",
        lambda: zip_bytes(tensor(shape=(2**38,), strides=(0,))),
        "torch_zip_tensor",
    ),
    "torch-zip: storage larger than its record": corrupt(
        OVERRUN, lambda: beside(tensor(size=60, shape=(60,), strides=(1,)))
    ),
    "torch-zip: offset out of bounds": corrupt("storage offset", lambda: beside(tensor(offset=32))),
    "torch-zip: negative offset": corrupt("storage offset", lambda: behind(tensor(offset=-32))),
    "torch-zip: strides out of bounds": corrupt(
        "strides", lambda: beside(tensor(strides=(80, 1)))
    ),
    "torch-zip: shape out of bounds": corrupt(
        "shape", lambda: beside(tensor(shape=(90, 1), strides=(1, 1)))
    ),
    "zip: name that leaves the folder": unsafe(
        "path traversal",
        lambda: zip_bytes(tensor(), extra=[("archive/../../escaped", "x")]),
        "zip_members",
        "writes",
    ),
    "zip: absolute name": unsafe(
        "path traversal",
        lambda: zip_bytes(tensor(), extra=[("/proc/self/cwd/escaped", "x")]),
        "zip_members",
        "writes",
    ),
    "zip: name twice": unsafe("duplicate names", name_twice, "torch_zip", "runs"),
    "zip: bomb": unsafe(
        "zip bomb", lambda: zip_bomb(declared=2**28, actual=2**28), "zip_members"
    ),
    "zip: bomb of a small declared size": unsafe(
        "zip bomb",
        lambda: zip_bomb(declared=24, actual=2**28),
        "zip_inflated",
        error="CorruptFile",
    ),
}  # fmt: skip
