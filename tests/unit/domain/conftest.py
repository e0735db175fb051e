"""A domain process for each test that asks for one; a domain without one for the others."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from domain_process import Process

sys.path.append(str(Path(__file__).parents[1] / "hypervisor"))

from pv_guest import PvGuest


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts a domain process with these arguments of `Process`."""
    started: list[Process] = []

    def start_one(**arguments: Any) -> Process:
        started.append(Process(tmp_path, **arguments))
        return started[-1]

    yield start_one
    for process in started:
        process.close()


@pytest.fixture
def guest() -> Iterator[PvGuest]:
    made = PvGuest()
    yield made
    made.close()
