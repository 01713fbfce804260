"""Comparisons with the real frameworks: `make parity` builds the environment that has them."""

import importlib.util

import pytest

if importlib.util.find_spec("torch"):
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
