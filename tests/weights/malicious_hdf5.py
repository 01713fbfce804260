"""Hostile HDF5 files of Keras's three layouts, and hostile descriptions of models."""

import base64
import functools
import io
import json
import marshal
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from tests.weights.attack import SECRET, Attack
from tests.weights.malicious_torch import zeros

Fill = Callable[[h5py.Group, str], None]
HIDDEN = np.frombuffer(SECRET.encode(), "u1")


def legacy(fill: Fill, *, names=("x/kernel:0",), **attributes: str) -> bytes:
    """The legacy layout with one layer, whose variables `fill` makes."""
    with h5py.File(buffer := io.BytesIO(), "w") as file:
        file.attrs.update({"layer_names": ["x"], **attributes})
        group = file.create_group("x")
        group.attrs["weight_names"] = names
        fill(group, "x/kernel:0")
    return buffer.getvalue()


def numbered(fill: Fill) -> bytes:
    """The layout of `.weights.h5` with one layer."""
    with h5py.File(buffer := io.BytesIO(), "w") as file:
        fill(file.create_group("layers/conv2d/vars"), "0")
    return buffer.getvalue()


def archive(fill: Fill, config: Any = None, *, compression=zipfile.ZIP_STORED) -> bytes:
    """A `.keras` file."""
    config = described({"class_name": "Conv2D", "config": {}}) if config is None else config
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", compression) as packed:
        packed.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        packed.writestr("model.weights.h5", numbered(fill))
    return buffer.getvalue()


def archive_bomb() -> bytes:
    """A `.keras` file whose weights inflate without end."""
    packed, name = zeros(2**28), b"model.weights.h5"
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as made:
        made.writestr("config.json", "{}")
        made.writestr("model.weights.h5", packed)
    content = bytearray(buffer.getvalue())
    for place, method in ((content.index(name) - 30, 8), (content.rindex(name) - 46, 10)):
        struct.pack_into("<H", content, place + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", content, place + method + 14, 2**28)
    return bytes(content)


def plain(group, name):
    group[name] = np.zeros((3, 3, 3, 4), "f4")


def external_link(group, name):
    group[name] = h5py.ExternalLink("../secret.h5", "secret")


def soft_link(group, name):
    group["hidden"] = HIDDEN
    group[name] = h5py.SoftLink(f"{group.name}/hidden")


def external_storage(group, name):
    group.create_dataset(name, (len(HIDDEN),), "u1", external=[("secret", 0, len(HIDDEN))])


def virtual_dataset(group, name):
    layout = h5py.VirtualLayout((len(HIDDEN),), "u1")
    layout[:] = h5py.VirtualSource("../secret.h5", "secret", (len(HIDDEN),))
    group.create_virtual_dataset(name, layout)


def virtual_dataset_of_the_file(group, name):
    group["y"] = np.ones(2**18, "f4")
    layout = h5py.VirtualLayout((300, 2**18), "f4")
    for i in range(300):
        layout[i] = h5py.VirtualSource(".", f"{group.name}/y", (2**18,))
    group.create_virtual_dataset(name, layout)


def array_of_nothing(group, name):
    group.create_dataset(name, (2**36,), "f4")


def chunks_of_nothing(group, name):
    group.create_dataset(name, (2**36,), "f4", chunks=(2**20,), compression="gzip")


def array_of_one_chunk(group, name):
    chunks_of_nothing(group, name)
    group[name][0] = 1


def chunks_without_number(group, name):
    group.create_dataset(name, (2**22,), "u1", chunks=(1,))


def gzip_bomb(group, name):
    options = {"chunks": (2**20,), "compression": "gzip"}
    dataset = group.create_dataset(name, (2**26,), "f4", **options)
    chunk = zlib.compress(bytes(2**22))
    for i in range(64):
        dataset.id.write_direct_chunk((i * 2**20,), chunk)


def circle(group, name):
    group[name] = np.zeros(4, "f4")
    group.parent["more"] = group.file["layers"]


def nest(group, name):
    group[name] = np.zeros(4, "f4")
    for _ in range(1200):
        group = group.create_group("x")


def arrays_that_share_their_bytes() -> bytes:
    address: list[int] = []

    def fill(group, name):
        group["real"] = np.arange(2**20, dtype="f4")
        for i in range(60):
            group.create_dataset(f"x{i}", (2**20,), "f4")  # not written: at no address
        address.append(group["real"].id.get_offset())

    content = legacy(fill, names=[f"x{i}" for i in range(60)])
    nowhere = struct.pack("<BBQQ", 3, 1, 2**64 - 1, 2**22)
    assert content.count(nowhere) == 60
    return content.replace(nowhere, struct.pack("<BBQQ", 3, 1, address[0], 2**22))


def described(*layers: dict) -> dict:
    return {"class_name": "Functional", "config": {"name": "model", "layers": list(layers)}}


def code() -> str:
    function = (lambda x: __import__("os").system("touch canary")).__code__
    return base64.b64encode(marshal.dumps(function)).decode()


def module() -> dict:
    command = {"args": ["touch", "canary"]}
    return described({"module": "subprocess", "class_name": "run", "config": command})


def function_of_a_layer() -> dict:
    # keras/src/layers/core/lambda_layer.py: what Keras 3 writes of a Python lambda
    function = {"class_name": "__lambda__", "config": {"code": code()}}
    return described({"class_name": "Lambda", "config": {"function": function}})


def saved_model() -> dict:
    given = {"filepath": "../secret", "call_endpoint": "serve"}
    layer = {"module": "keras.layers", "class_name": "TFSMLayer", "config": given}
    return described(layer)


def legacy_function() -> str:
    function = [code(), None, None]  # Keras 2 and Keras 3's legacy loader
    return json.dumps(described({"class_name": "Lambda", "config": {"function": function}}))


FILLS = {
    "external link": (external_link, "external link", "leaks"),
    "soft link": (soft_link, "soft link", "leaks"),
    "external storage": (external_storage, "CVE-2026-1669", "leaks"),
    "virtual dataset of another file": (virtual_dataset, "CVE-2026-1669", "leaks"),
    "virtual dataset of its own": (virtual_dataset_of_the_file, "virtual dataset", "exhausts"),
    "array of nothing": (array_of_nothing, "CVE-2026-0897", "exhausts"),
    "chunks of nothing": (chunks_of_nothing, "CVE-2026-0897", "exhausts"),
    "array of one chunk": (array_of_one_chunk, "CVE-2026-0897", "exhausts"),
    "bomb of gzip": (gzip_bomb, "decompression bomb", "exhausts"),
}
# The same attacks in the other layouts; in a `.keras` file there is no folder to start from.
IN_WEIGHTS_H5 = ("external link", "soft link", "external storage", "array of nothing")
IN_KERAS = ("external storage", "array of nothing", "bomb of gzip")


def layouts() -> dict[str, Attack]:
    """Every array in the legacy layout, and some in the others."""
    made = {}
    for layout, suffix, names in (
        (legacy, "h5", FILLS),
        (numbered, "weights.h5", IN_WEIGHTS_H5),
        (archive, "keras", IN_KERAS),
    ):
        for name in names:
            fill, kind, harm = FILLS[name]
            make = functools.partial(layout, fill)
            made[f"{suffix}: {name}"] = Attack(
                kind, make, "UnsafeWeights", "hdf5", harm, file=f"weights.{suffix}"
            )
    return made


MALICIOUS = layouts() | {
    "h5: chunks without number": Attack(
        "chunk count", lambda: legacy(chunks_without_number), "UnsafeWeights", "hdf5", "exhausts",
        slow=True,
    ),
    "h5: arrays that share their bytes": Attack(
        "overlap", arrays_that_share_their_bytes, "UnsafeWeights", "hdf5", "exhausts"
    ),
    "weights.h5: model within itself": Attack(
        "hard link", lambda: numbered(circle), "UnsafeWeights", "hdf5", "exhausts"
    ),
    "weights.h5: groups of great depth": Attack(
        "nesting", lambda: numbered(nest), "CorruptFile", "hdf5", "exhausts"
    ),
    "keras: module in the configuration": Attack(
        "CVE-2025-1550", lambda: archive(plain, module()), "UnsafeWeights", "keras", "runs",
        file="net.keras",
    ),
    "keras: code of a Lambda layer": Attack(
        "marshal", lambda: archive(plain, function_of_a_layer()), "UnsafeWeights", "keras",
        "runs", file="net.keras",
    ),
    "keras: SavedModel of a TFSMLayer": Attack(
        "CVE-2026-1462", lambda: archive(plain, saved_model()), "UnsafeWeights", "keras",
        "leaks", file="net.keras",
    ),
    "h5: code of a Lambda layer": Attack(
        "CVE-2025-9905", lambda: legacy(plain, model_config=legacy_function()), "UnsafeWeights",
        "keras", "runs", file="net.h5",
    ),
    "h5: configuration of brackets": Attack(
        "nesting", lambda: legacy(plain, model_config='{"a":' + "[" * 60_000), "CorruptFile",
        "keras", "exhausts",
    ),
    "keras: configuration of brackets": Attack(
        "nesting", lambda: archive(plain, '{"a":' + "[" * 60_000), "CorruptFile",
        "keras", "exhausts", file="net.keras",
    ),
    "keras: bomb": Attack(
        "zip bomb", archive_bomb, "UnsafeWeights", "zip_members", "exhausts"
    ),
}  # fmt: skip
