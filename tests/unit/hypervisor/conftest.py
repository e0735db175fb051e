"""A PV guest for each test."""

from collections.abc import Iterator

import pytest
from pv_guest import PvGuest


@pytest.fixture
def guest() -> Iterator[PvGuest]:
    made = PvGuest()
    yield made
    made.close()
