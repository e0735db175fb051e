"""A machine memory with one mapped gigabyte's worth of tables."""

from collections.abc import Iterator

import pytest
from mapped_memory import MappedMemory


@pytest.fixture
def mapped() -> Iterator[MappedMemory]:
    made = MappedMemory()
    yield made
    made.close()
