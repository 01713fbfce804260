"""What every test has: JAX's and Hypothesis's settings, and where the large shared files are."""

import importlib.util
import os
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest

SHARED = Path(__file__).parents[2] / "shared"

# Shape annotations cost nothing at run time and are checked here, from the first import on.
# In nn only: elsewhere beartype would refuse a bad argument before the package's own error can.
CHECKER = "beartype.beartype" if importlib.util.find_spec("beartype") else None
jaxtyping.install_import_hook("resnetjax.nn", CHECKER)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)  # a stale entry must not decide a test

# A first call compiles, which says nothing about the example: no deadline.
hypothesis.settings.register_profile("resnetjax", deadline=None)
hypothesis.settings.load_profile("resnetjax")


def pytest_report_header() -> str:
    return f"shapes in resnetjax.nn: checked by {CHECKER or 'nothing, beartype is not installed'}"


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """The folder of published weights too large for the repository."""
    return _shared("weights")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of images and data sets too large for the repository."""
    return _shared("data")


def _shared(kind: str) -> Path:
    variable = f"RESNETJAX_TEST_{kind.upper()}"
    folder = Path(os.environ.get(variable) or SHARED / kind)
    if not folder.is_dir():
        missing = f"no shared {kind}: {folder} is not a folder; ${variable} names another"
        if os.environ.get("RESNETJAX_REQUIRE_SHARED"):
            pytest.fail(missing)
        pytest.skip(missing)
    return folder
