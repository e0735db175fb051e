"""A little machine memory for rings."""

from collections.abc import Iterator

import pytest

from pyxen.memory.machine import MachineMemory


@pytest.fixture
def memory() -> Iterator[MachineMemory]:
    made = MachineMemory(16)
    yield made
    made.close()
