"""Comparisons with the real frameworks: `make parity` builds the environment that has them."""

import importlib.util
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parity import rows, table

TABLE = pytest.StashKey[table.Table]()

if importlib.util.find_spec("torch"):
    os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported
    import torch

    from tests.parity import torchvision_shim

    torchvision_shim.install()
    # One of several processes shares the cores with the others; threads that wait are busy.
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(item):
        """Frameworks fill their nets from global generators: every run has the same nets."""
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - timm draws from the global one
        torch.manual_seed(0)

else:

    class WithoutTorch(pytest.Module):
        """A test file that is not imported, for it would import torch."""

        def collect(self):
            pytest.skip("torch is not installed here; `make parity` makes an environment with it")

    def pytest_pycollect_makemodule(module_path, parent):
        return WithoutTorch.from_parent(parent, path=module_path)


def pytest_configure(config):
    config.stash[TABLE] = table.Table()


@pytest.fixture(scope="session")
def parity_table(pytestconfig):
    """What is printed at the end, and written to the file that $RESNETJAX_PARITY_TABLE names."""
    return pytestconfig.stash[TABLE]


@pytest.fixture(scope="session")
def samples(request, parity_table):
    """Four photographs; without the shared files none, and structured noise takes their place."""
    try:
        folder = request.getfixturevalue("shared_data") / "imagenet-samples"
    except pytest.skip.Exception:
        parity_table.images = "structured noise"
        return []
    return sorted(folder.glob("*.JPEG"))[::25]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of several processes, one takes a net in all its files, or else all tests of a file."""
    from xdist.scheduler import LoadScopeScheduling

    nets = rows.scopes()

    class ByNet(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, case = nodeid.partition("[")
            return nets.get(case.removesuffix("]"), file.partition("::")[0])

    return ByNet(config, log)


def pytest_sessionfinish(session):
    found = session.config.stash[TABLE]
    if side := sys.modules.get("tests.parity.tensorflow_side"):
        found.beside.update(side.PROCESS.versions)
    if hasattr(session.config, "workeroutput"):  # one of several processes
        session.config.workeroutput["parity"] = found.to_json()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    found = node.config.stash[TABLE]
    if hasattr(node, "workeroutput"):
        found.add(node.workeroutput["parity"])
    else:
        found.complete = False  # it crashed


def pytest_terminal_summary(terminalreporter, config):
    found = config.stash[TABLE]
    if not found.entries or hasattr(config, "workeroutput"):
        return
    terminalreporter.section("parity with the real frameworks")
    for line in (*found.lines(), "", found.summary()):
        terminalreporter.line(line)
    target = os.environ.get("RESNETJAX_PARITY_TABLE")
    if not found.complete:
        terminalreporter.line("Incomplete, and not written: a process crashed.")
    elif target:
        found.write(Path(target))


def pytest_unconfigure():
    if side := sys.modules.get("tests.parity.tensorflow_side"):
        side.PROCESS.stop()
