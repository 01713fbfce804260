"""Readers that believe what a file says: the controls for which hostile files are made.

Each does what a straightforward reader of its format does, with the format's usual library where
there is one, and returns what it read. They run confined (tests/weights/confined.py) only.
"""

import base64
import copyreg
import gzip
import importlib
import io
import json
import marshal
import os
import pickle
import re
import struct
import sys
import tarfile
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np

REGISTERED = {1: ("os", "system"), 256: ("posix", "system"), 65536: ("subprocess", "getoutput")}


class _Unpickler(pickle.Unpickler):
    """As torch.load(weights_only=False), but tensors are the arguments that would build them."""

    def find_class(self, module: str, name: str) -> Any:
        return (lambda *given: given) if module.startswith("torch") else super().find_class(
            module, name
        )  # fmt: skip

    def persistent_load(self, pid: Any) -> Any:
        return pid


def torch_legacy(path: str) -> Any:
    """Five pickles, one after the other."""
    with open(path, "rb") as file:
        return [_Unpickler(file).load() for _ in range(5)]


def torch_tar(path: str) -> None:
    """The pickles in each member (CVE-2025-32434: also with weights_only=True)."""
    with tarfile.open(path) as archive:
        for name in ("storages", "tensors", "pickle"):
            stream = io.BytesIO(archive.extractfile(name).read())
            while stream.tell() < len(stream.getvalue()):
                start = stream.tell()
                try:
                    _Unpickler(stream).load()
                except Exception:  # numbers in between, taken for opcodes
                    stream.seek(start + 1)


def torch_zip(path: str) -> None:
    """The pickle of the archive."""
    _zip_pickle(path)


def _zip_pickle(path: str) -> Any:
    with zipfile.ZipFile(path) as archive:
        return _Unpickler(io.BytesIO(archive.read("archive/data.pkl"))).load()


def torch_zip_with_extensions(path: str) -> None:
    """The same, in a process where a library has filled copyreg's registry."""
    for code, (module, name) in REGISTERED.items():
        copyreg.add_extension(module, name, code)
    _zip_pickle(path)


def torch_zip_in_this_process(path: str) -> str:
    """The same; what has become of the process."""
    _zip_pickle(path)
    return f"{os.environ.get('HIJACKED')} {sys.path[-1]}"


def torch_zip_walked(path: str) -> int:
    """How many tensors there are in what was pickled."""

    def count(value: Any) -> int:
        values = value.values() if isinstance(value, dict) else value
        return sum(map(count, values)) if isinstance(value, dict | list | tuple) else 1

    return count(_zip_pickle(path))


def torch_zip_of_files(path: str) -> str:
    """Storages by their names, as files beside an unpacked pickle."""
    (_, _, key, *_), *_ = _zip_pickle(path)
    return (Path(path).parent / key).read_text()


def torch_zip_tensor(path: str) -> str:
    """The bytes of one tensor, where size, shape, strides and offset say that they are."""
    (_, _, key, *_), offset, shape, strides, *_ = _zip_pickle(path)
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo(f"archive/data/{key}")
    content = Path(path).read_bytes()
    names = struct.unpack_from("<2H", content, record.header_offset + 26)
    start = record.header_offset + 30 + sum(names) + 4 * offset
    last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    found = content[start : start + 4 * (last + 1)]
    if 0 in strides:
        return np.ndarray(shape, "<f4", buffer=found, strides=strides).copy().shape
    return found.decode("latin-1")


def zip_members(path: str) -> list[str]:
    """Every member in a file of its name."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            target = Path("taken", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
        return archive.namelist()


def zip_inflated(path: str) -> int:
    """Storage 0, inflated to its end whatever its declared size."""
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo("archive/data/0")
    content = Path(path).read_bytes()
    start = (
        record.header_offset
        + 30
        + sum(struct.unpack_from("<2H", content, record.header_offset + 26))
    )
    return len(zlib.decompress(content[start : start + record.compress_size], -15))


def safetensors(path: str) -> str:
    """The header's arrays where their offsets are."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        arrays = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(8 + size + begin)
            arrays[name] = np.empty(entry["shape"], "u1" if entry["dtype"] == "U8" else "f4")
            arrays[name].fill(1)
            content = file.read(end - begin)
            arrays[name].reshape(-1).view("u1")[: len(content)] = np.frombuffer(content, "u1")
    return b"".join(array.tobytes()[:64] for array in arrays.values()).decode("latin-1")


def shards(path: str) -> str:
    """What the files of an index hold; one that is an index itself, by the same."""
    index = json.loads(Path(path).read_text())
    found = ""
    for name in sorted(set(index["weight_map"].values())):
        shard = Path(path).parent / name
        content = shard.read_bytes()
        found += shards(str(shard)) if content.startswith(b"{") else content.decode("latin-1")
    return found


def hdf5(path: str) -> str:
    """Every dataset, to h5py and through all groups."""
    opened: Any = path
    if path.endswith(".keras"):
        with zipfile.ZipFile(path) as archive:
            opened = io.BytesIO(archive.read("model.weights.h5"))
    arrays: list[np.ndarray] = []

    def walk(group: h5py.Group) -> None:
        for name in group:
            item = group[name]
            walk(item) if isinstance(item, h5py.Group) else arrays.append(item[()])

    with h5py.File(opened) as file:
        walk(file)
    return b"".join(np.asarray(array).tobytes()[:64] for array in arrays).decode("latin-1")


def keras(path: str) -> str | None:
    """The layers of a model's configuration, built as Keras did before it refused to."""
    if path.endswith(".keras"):
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    else:
        with h5py.File(path) as file:
            config = json.loads(file.attrs["model_config"])
    found = None
    for layer in config["config"]["layers"]:
        given = layer["config"]
        if layer["class_name"] == "TFSMLayer":
            found = Path(path).parent.joinpath(given["filepath"]).read_text()
        elif layer["class_name"] == "Lambda":
            function = given["function"]
            code = function["config"]["code"] if isinstance(function, dict) else function[0]
            types.FunctionType(marshal.loads(base64.b64decode(code)), globals())(None)
        elif "module" in layer:
            getattr(importlib.import_module(layer["module"]), layer["class_name"])(**given)
    return found


def npz(path: str) -> list[Any]:
    """np.load(allow_pickle=True)."""
    with np.load(path, allow_pickle=True) as file:
        return [file[name].shape for name in file]


def npz_by_eval(path: str) -> Any:
    """The header of the first member, as the Python literal that it is."""
    with zipfile.ZipFile(path) as archive:
        content = archive.read(archive.namelist()[0])
    return str(eval(content[10:].partition(b"\n")[0]))


def flax(path: str) -> int:
    """msgpack.unpackb, as flax.serialization.msgpack_restore."""
    return len(msgpack.unpackb(Path(path).read_bytes(), ext_hook=lambda kind, data: kind))


def msgpack_walked(path: str) -> int:
    """Maps within maps, by a function that calls itself; texts are read at their length."""
    with open(path, "rb") as file:

        def value() -> Any:
            kind = file.read(1)[0]
            if kind & 0xF0 == 0x80:
                return {value(): value() for _ in range(kind & 0xF)}
            if kind & 0xE0 == 0xA0:
                return file.read(kind & 0x1F)
            if kind & 0xF0 == 0x90:
                return [value() for _ in range(kind & 0xF)]
            if kind == 0xDD:
                values = [None] * struct.unpack(">I", file.read(4))[0]
                values[0] = value()
                return values
            if kind in (0xC6, 0xDB):
                return file.read(struct.unpack(">I", file.read(4))[0])
            if kind == 0xC9:
                size, _ = struct.unpack(">IB", file.read(5))
                return file.read(size)
            return kind

        return len(value())


def _varint(content: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place


def _message(content: bytes) -> dict[int, list[Any]]:
    fields: dict[int, list[Any]] = {}
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        if tag & 7 == 0:
            value, place = _varint(content, place)
        else:
            size, place = (4, place) if tag & 7 == 5 else _varint(content, place)
            value, place = content[place : place + size], place + size
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _block(content: bytes, handle: bytes) -> dict[bytes, bytes]:
    offset, place = _varint(handle, 0)
    size, _ = _varint(handle, place)
    stream = io.BytesIO(content)
    stream.seek(offset)
    block = bytearray(size)
    stream.readinto(block)
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    entries, place, key = {}, 0, b""
    while place < size - 4 - 4 * restarts:
        shared, place = _varint(block, place)
        more, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + bytes(block[place : place + more])
        entries[key] = bytes(block[place + more : place + more + length])
        place += more + length
    return entries


def bundle(path: str) -> str:
    """Every tensor of a TensorFlow checkpoint, checksums unread."""
    content = Path(path).read_bytes()
    data = Path(path.removesuffix(".index") + ".data-00000-of-00001").read_bytes()
    place = _varint(content, _varint(content, len(content) - 48)[1])[1]
    tensors = []
    for handle in _block(content, content[place:]).values():
        for key, entry in _block(content, handle).items():
            if key:
                fields = _message(entry)
                shape = [
                    _message(axis).get(1, [0])[0] for axis in _message(fields[2][0]).get(2, [])
                ]
                start, size = fields.get(4, [0])[0], fields.get(5, [0])[0]
                tensor = np.ones(shape, "f4")
                found = data[start : start + size]
                tensor.reshape(-1).view("u1")[: len(found)] = np.frombuffer(found, "u1")
                tensors.append(tensor)
    return b"".join(tensor.tobytes()[:64] for tensor in tensors).decode("latin-1")


def bundle_folder(path: str) -> str:
    """What the `checkpoint` file of a folder names."""
    text = Path(path, "checkpoint").read_text()
    return Path(path, re.search('model_checkpoint_path: "(.*)"', text)[1] + ".index").read_text()


def archive(path: str) -> str:
    """The member `net.ckpt`, once all has been extracted."""
    with tarfile.open(path) as tar:
        tar.extractall("taken", filter="fully_trusted")
    return Path("taken", "net.ckpt").read_bytes()[:64].decode("latin-1")


def archive_in_memory(path: str) -> int:
    """All of an archive, unpacked in memory."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(Path(path).read_bytes()))) as tar:
        return sum(len(tar.extractfile(member).read()) for member in tar)


def config_json(path: str) -> int:
    """The configuration beside the weights."""
    return len(json.loads(Path(path, "config.json").read_text()))
