"""Writes numpy's archives, and what is nearly so."""

import io
import zipfile

import numpy as np

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)


def npz(*, save=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def npy(descr="'<f4'", *, shape="(2, 3)", fortran=False, body=None, version=1, size=None) -> bytes:
    """A member as numpy writes it, or nearly so."""
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    length = len(text) if size is None else size
    head = b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(2 if version == 1 else 4, "little")
    return head + text + (SIX.tobytes() if body is None else body)


def archive(compression=zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file.getvalue()


def one(content: bytes, **options) -> bytes:
    return archive(**{"w.npy": content}, **options)
