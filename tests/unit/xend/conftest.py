import pytest
from xend_harness import Host


@pytest.fixture
def home(tmp_path):
    return tmp_path / "h"


@pytest.fixture
def host(home):
    """A running xend with stand-in domain processes."""
    host = Host(home).start()
    yield host
    host.close()
