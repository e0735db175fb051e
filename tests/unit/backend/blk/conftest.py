"""A guest, workers and images for the block back end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "hypervisor"))

from front_end import FrontEnd
from pv_guest import PvGuest

from pyxen.backend.blk.storage.raw import RawStorage, open_raw
from pyxen.backend.blk.storage.workers import Completions, Workers
from pyxen.hypervisor.page_audit import audit

IMAGE_BYTES = 4 << 20


@pytest.fixture
def guest() -> Iterator[PvGuest]:
    made = PvGuest()
    yield made
    assert audit(made.domain) == []
    made.close()


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(Completions())
    yield made
    made.close()
    made.completions.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file in which each sector has its number."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(n.to_bytes(4, "little") * 128 for n in range(IMAGE_BYTES // 512)))
    return path


@pytest.fixture
def storage(image: Path, workers: Workers) -> Iterator[RawStorage]:
    made = open_raw(image, workers)
    yield made
    made.close()


@pytest.fixture
def connect(guest: PvGuest) -> Iterator[Callable[..., FrontEnd]]:
    """Makes front ends; when the test ends they give back all that they used."""
    made: list[FrontEnd] = []

    def connect(storage: Any, **settings: Any) -> FrontEnd:
        made.append(FrontEnd(guest.memory, guest.domain.grants, storage, **settings))
        return made[-1]

    yield connect
    for front in made:
        front.device.close()
        assert front.device.in_flight == 0, "the test ends all requests"
    assert guest.domain.grants.uses == {}


@pytest.fixture
def settle(workers: Workers) -> Callable[[FrontEnd], None]:
    """Wait until all requests are answered."""

    def settle(front: FrontEnd) -> None:
        while front.device.in_flight:
            workers.completions.wait()

    return settle
