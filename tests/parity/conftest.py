"""Comparisons with the real frameworks: `make parity` builds the environment that has them."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from tests.parity import table

TABLE = pytest.StashKey[list[table.Entry]]()
IMAGES = pytest.StashKey[str]()

if importlib.util.find_spec("torch"):
    os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported
    import torch

    from tests.parity import torchvision_shim

    torchvision_shim.install()
    torch.set_num_threads(2)
else:

    class WithoutTorch(pytest.Module):
        """A test file that is not imported, for it would import torch."""

        def collect(self):
            pytest.skip("torch is not installed here; `make parity` makes an environment with it")

    def pytest_pycollect_makemodule(module_path, parent):
        return WithoutTorch.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def parity_table(pytestconfig):
    """What is printed at the end, and written to the file that $RESNETJAX_PARITY_TABLE names."""
    return pytestconfig.stash.setdefault(TABLE, [])


@pytest.fixture(scope="session")
def samples(request, pytestconfig):
    """Four photographs; without the shared files none, and structured noise takes their place."""
    try:
        folder = request.getfixturevalue("shared_data") / "imagenet-samples"
    except pytest.skip.Exception:
        pytestconfig.stash[IMAGES] = "structured noise"
        return []
    pytestconfig.stash[IMAGES] = "photographs"
    return sorted(folder.glob("*.JPEG"))[::25]


def pytest_terminal_summary(terminalreporter, config):
    entries = config.stash.get(TABLE, [])
    if not entries:
        return
    terminalreporter.section("parity with the real frameworks")
    for line in (*table.lines(entries), "", table.summary(entries)):
        terminalreporter.line(line)
    if target := os.environ.get("RESNETJAX_PARITY_TABLE"):
        beside = sys.modules["tests.parity.tensorflow_side"].PROCESS.versions
        table.write(Path(target), entries, images=config.stash[IMAGES], beside=beside)


def pytest_unconfigure():
    if side := sys.modules.get("tests.parity.tensorflow_side"):
        side.PROCESS.stop()
