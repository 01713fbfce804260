"""Writes the files of torch.save without torch, and without its care: any field may be a lie."""

import io
import struct
import tarfile
import zipfile

import numpy as np

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."
STORAGES = {"float32": "FloatStorage", "int64": "LongStorage", "float64": "DoubleStorage"}


def text(x: str) -> bytes:
    return b"X" + struct.pack("<I", len(x.encode())) + x.encode()


def integer(x: int) -> bytes:
    if -(2**31) <= x < 2**31:
        return b"J" + struct.pack("<i", x)
    content = x.to_bytes(x.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def sequence(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def module(
    cls: str, parameters: bytes = b"}", modules: bytes = b"}", buffers: bytes = b"}", **more: bytes
) -> bytes:
    """An object of a class, as torch.nn.Module pickles itself; `cls` as "package.Name"."""
    attributes = mapping(_parameters=parameters, _buffers=buffers, _modules=modules, **more)
    return named(*cls.rsplit(".", 1)) + b")\x81" + attributes + b"b"


def storage(key="0", size=6, dtype="float32", view=None) -> bytes:
    """A persistent id; legacy files have a view (b"N" for none), zip files have no such field."""
    parts = [
        text("storage"),
        named("torch", STORAGES[dtype]),
        text(key),
        text("cpu"),
        integer(size),
    ]
    return sequence(*parts, *([] if view is None else [view])) + b"Q"


def tensor(
    key="0", size=6, shape=(2, 3), strides=(3, 1), offset=0, dtype="float32", view=None
) -> bytes:
    """A tensor of six float32 elements, unless a field says otherwise."""
    arguments = sequence(
        storage(key, size, dtype, view),
        integer(offset),
        sequence(*map(integer, shape)),
        sequence(*map(integer, strides)),
        b"\x89",
        named("collections", "OrderedDict") + b")R",
    )
    return named("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


SIX = np.arange(6, dtype="<f4").tobytes()


def zip_bytes(pickled: bytes, contents=None, *, folder="archive", compression=0, extra=()) -> bytes:
    """A zip container: `pickled` lacks PROTO and STOP; `contents` are the storages by key."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr(f"{folder}/byteorder", "little")
        for key, content in ({"0": SIX} if contents is None else contents).items():
            info = zipfile.ZipInfo(f"{folder}/data/{key}")
            info.compress_type = compression
            # torch pads the header so that a storage begins at a multiple of 64.
            padding = -(file.tell() + 34 + len(info.filename)) % 64
            info.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
            archive.writestr(info, content)
        for name, content in extra:
            archive.writestr(name, content)
    return file.getvalue()


def legacy_bytes(pickled: bytes, contents=None, *, keys=None) -> bytes:
    """A legacy container: `contents` maps a key to (declared number of elements, bytes)."""
    contents = {"0": (6, SIX)} if contents is None else contents
    keys = contents if keys is None else keys
    listed = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    info = b"\x80\x02" + mapping(little_endian=b"\x88") + b"."
    body = b"".join(struct.pack("<q", size) + content for size, content in contents.values())
    return MAGIC + PROTOCOL + info + b"\x80\x02" + pickled + b"." + listed + body


def tar_bytes(
    pickled: bytes, *, size=6, content=SIX, shape=(2, 3), strides=(3, 1), offset=0, views=b"]",
    kind="Float",
) -> bytes:  # fmt: skip
    """A tar container with storage 1 and tensor 2 of it; `pickled` refers to the ids."""
    described = sequence(integer(1), text("cpu"), named("torch", f"{kind}Storage"))
    storages = _pickle(integer(1)) + _pickle(described) + struct.pack("<q", size) + content
    tensors = _pickle(integer(1))
    tensors += _pickle(sequence(integer(2), integer(1), named("torch", f"{kind}Tensor")))
    tensors += struct.pack(f"<ii{2 * len(shape) + 1}q", len(shape), 0, *shape, *strides, offset)
    members = {
        "sys_info": _pickle(b"}"),
        "pickle": _pickle(pickled),
        "tensors": tensors,
        "storages": storages + _pickle(views),
    }
    return tar_of(members.items())


def tar_of(members) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1.5  # torch wrote times with fractions, which need an extended header
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _pickle(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."
