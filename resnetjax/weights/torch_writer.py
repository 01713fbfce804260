"""State dicts as `torch.save` writes them since 1.6, for `torch.load(weights_only=True)`.

A zip archive of stored members: a pickle that names the storages, and the storages. The pickle is
put together from opcodes, since its functions are torch's, which is not at hand.
"""

import pickle
import struct
from collections.abc import Mapping

import numpy as np

from resnetjax.errors import UnsupportedFile
from resnetjax.weights import zip_archive

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}
_EMPTY_DICT = b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a `.pth` file.

    Args:
        arrays: By name, contiguous, float32 or int64.

    Raises:
        UnsupportedFile: An array is of another dtype.
    """
    entries = [
        _text(name) + _tensor(array, str(key)) for key, (name, array) in enumerate(arrays.items())
    ]
    content = pickle.PROTO + b"\2" + _EMPTY_DICT + pickle.MARK + b"".join(entries)
    members = {
        "data.pkl": content + pickle.SETITEMS + pickle.STOP,
        "byteorder": b"little",
        **{f"data/{key}": _little(array) for key, array in enumerate(arrays.values())},
        "version": b"3\n",
    }
    return zip_archive.encode({f"archive/{name}": content for name, content in members.items()})


def _tensor(array: np.ndarray, key: str) -> bytes:
    """A call of `torch._utils._rebuild_tensor_v2` on the whole of a storage."""
    if array.dtype.name not in _STORAGES:
        raise UnsupportedFile(f"arrays of dtype {array.dtype} are not written")
    storage = f"ctorch\n{_STORAGES[array.dtype.name]}\n".encode()
    strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
    arguments = (
        _tuple(_text("storage"), storage, _text(key), _text("cpu"), _int(array.size))
        + pickle.BINPERSID,
        _int(0),
        _tuple(*map(_int, array.shape)),
        _tuple(*map(_int, strides)),
        pickle.NEWFALSE,  # requires_grad
        _EMPTY_DICT,  # hooks
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _tuple(*arguments) + pickle.REDUCE


def _little(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _int(number: int) -> bytes:
    size = (number.bit_length() + 8) // 8
    return pickle.LONG1 + bytes([size]) + number.to_bytes(size, "little", signed=True)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
