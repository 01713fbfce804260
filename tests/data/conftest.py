"""What the tests of the data sets share."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNETJAX_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def photographs(shared_data) -> list[Path]:
    return sorted((shared_data / "imagenet-samples").iterdir())[::8]


@pytest.fixture
def jpeg():
    """Gives the JPEG file of a plain picture: another number, another file."""

    def encode(number: int = 0, *, width: int = 8, height: int = 8) -> bytes:
        file = io.BytesIO()
        pixels = np.full((height, width, 3), number * 7 % 256, np.uint8)
        Image.fromarray(pixels).save(file, "JPEG")
        return file.getvalue()

    return encode


@pytest.fixture
def write_tar():
    """Writes a tar archive of names and contents."""
    import tarfile

    def write(path, files, *, format=tarfile.GNU_FORMAT):
        with tarfile.open(path, "w", format=format) as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    return write
