"""What the tests of whole runs share."""

import pytest

from tests.train import lives


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Where runs in processes of their own are started, to be killed."""
    with lives.nursery(tmp_path_factory.mktemp("nursery")) as opened:
        yield opened
