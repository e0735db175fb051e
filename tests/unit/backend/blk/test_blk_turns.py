"""Events, turns, quiescence: when the device looks, answers, tells, and stops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from front_end import FIRST_DATA, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, FrontEnd, HeldStorage
from pv_guest import PvGuest

from pyxen.abi.io.blkif import BLKIF_OP_READ, BLKIF_OP_WRITE_BARRIER
from pyxen.backend.blk.storage.raw import RawStorage
from pyxen.backend.blk.storage.workers import Workers
from pyxen.types import U32

Connect = Callable[..., FrontEnd]
READ = BLKIF_OP_READ
PAGE = (0, 0, 7)


def read(front: FrontEnd, count: int = 1) -> list[bytes]:
    return [front.transfer(READ, 0, [PAGE]) for _ in range(count)]


@pytest.mark.parametrize("at", [0, 1, U32 - 1, U32, 1 << 31])
def test_the_device_asks_for_an_event_for_the_next_request(connect: Connect, at: int) -> None:
    disk = HeldStorage()
    front = connect(disk, at=at)
    ring = front.rings[0]
    front.send(*read(front, 3))
    assert ring.get(REQ_EVENT) == at + 4 & U32
    ring.put(read(front)[0])
    assert ring.publish(), "the next one is told"
    ring.put(read(front)[0])
    assert not ring.publish(), "those behind it are not"
    front.device.notified(0)
    assert len(disk.held) == 5
    assert ring.get(REQ_EVENT) == at + 6 & U32
    for _ in range(5):
        disk.end()
    assert len(front.answers()) == 5
    assert ring.get(RSP_PROD) == at + 5 & U32


@pytest.mark.parametrize("at", [0, U32 - 1, U32])
@pytest.mark.parametrize("wanted, events", [(1, 1), (2, 0), (3, 0)])
def test_an_event_for_answers_only_if_asked(
    connect: Connect, at: int, wanted: int, events: int
) -> None:
    disk = HeldStorage()
    front = connect(disk, at=at)
    front.rings[0].set(RSP_EVENT, at + wanted)
    front.send(*read(front, 3))
    disk.end()
    assert front.events == [events]
    disk.end()
    disk.end()
    assert front.events == [1]
    assert len(front.answers()) == 3


def test_one_event_for_a_batch(
    connect: Connect, storage: RawStorage, workers: Workers, settle: Callable[[FrontEnd], None]
) -> None:
    """Answers that come between two looks are shown together."""
    disk = HeldStorage()
    front = connect(disk, defer=workers.completions.post)
    front.send(*read(front, 8))
    for _ in range(8):
        disk.end()
    assert (front.events, front.rings[0].get(RSP_PROD)) == ([0], 0)
    workers.completions.drain()
    assert (front.events, len(front.answers())) == ([1], 8)
    workers.completions.drain()
    assert front.events == [1]
    other = connect(storage, defer=workers.completions.post)
    other.send(*read(other, 32))
    settle(other)
    workers.completions.drain()
    assert len(other.answers()) == 32


def test_all_requests_of_a_full_ring(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk)
    front.send(*read(front, 32))
    assert len(disk.held) == 32
    front.device.notified(0)
    assert len(disk.held) == 32, "the ring is full of requests under way"
    while disk.held:
        disk.end(n=len(disk.held) // 2)
        front.send(*(read(front) if front.device.rd_req < 100 else []))
    assert len(front.answers()) == front.device.rd_req == 100


def test_a_turn_has_an_end(connect: Connect, workers: Workers) -> None:
    disk = HeldStorage(4 << 20)
    front = connect(disk, defer=workers.completions.post)
    many = [(n, 0, 7) for n in range(256)]
    front.send(*[front.indirect(READ, 0, many) for _ in range(32)])
    assert 0 < len(disk.held) < 32
    assert front.rings[0].get(REQ_EVENT) == 1, "no event is needed to go on"
    for _ in range(10):
        workers.completions.drain()
    assert len(disk.held) == 32
    assert front.device.oo_req > 0
    while disk.held:
        disk.end()
    workers.completions.drain()
    assert len(front.answers()) == 32


def test_rings_take_turns(connect: Connect, workers: Workers) -> None:
    disk = HeldStorage(4 << 20)
    front = connect(disk, rings=2, defer=workers.completions.post)
    entries = [front.indirect(READ, 0, [(n, 0, 7) for n in range(256)]) for _ in range(32)]
    for ring in (0, 1):
        for entry in entries:
            front.rings[ring].put(entry)
        front.rings[ring].publish()
    front.device.notified(0)
    front.device.notified(1)
    first = len(disk.held)
    workers.completions.drain()
    assert first < len(disk.held) < 64
    in_flight = [ring.unanswered for ring in front.device._rings]
    assert min(in_flight) > 0
    while front.device.in_flight:
        while disk.held:
            disk.end()
        workers.completions.drain()
    assert [len(front.answers(ring)) for ring in (0, 1)] == [32, 32]


def test_requests_that_were_there_before(connect: Connect) -> None:
    """A new device goes on behind the last response."""
    disk = HeldStorage()
    front = connect(disk)
    front.send(*read(front, 5))
    disk.end()
    front.device.close()
    while disk.held:
        disk.end()
    front.device = front.attach(disk)
    assert not disk.held
    front.device.notified(0)
    assert len(disk.held) == 4
    while disk.held:
        disk.end()
    assert len(front.answers()) == 5


# --- quiescence and the end -------------------------------------------------------------------


def test_quiesce(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk)
    done: list[str] = []
    front.send(*read(front, 2))
    front.device.quiesce(lambda: done.append("first"))
    front.send(*read(front, 2))
    assert (len(disk.held), done) == (2, [])
    disk.end()
    disk.end()
    assert (done, front.device.in_flight) == (["first"], 0)
    assert len(front.answers()) == 2
    front.device.quiesce(lambda: done.append("second"))
    assert done == ["first", "second"]
    front.device.resume()
    assert len(disk.held) == 2, "nothing is lost"
    disk.end()
    disk.end()
    assert done == ["first", "second"]


def test_quiesce_ends_a_barrier_that_waits(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk)
    done: list[None] = []
    front.send(*read(front), front.transfer(BLKIF_OP_WRITE_BARRIER, 0, [PAGE]), *read(front))
    front.device.quiesce(lambda: done.append(None))
    for _ in range(4):
        assert not done
        disk.end()
    assert done
    assert len(front.answers()) == 2
    assert front.rings[0].get(REQ_PROD) == 3


@pytest.mark.parametrize("persistent", [False, True])
def test_close_with_requests_under_way(guest: PvGuest, connect: Connect, persistent: bool) -> None:
    disk = HeldStorage()
    front = connect(disk, persistent=persistent)
    barrier = front.transfer(BLKIF_OP_WRITE_BARRIER, 0, [(5, 0, 7)])
    front.send(front.transfer(READ, 0, [(1, 0, 7)]), front.transfer(READ, 0, [(2, 0, 7)]), barrier)
    front.device.close()
    used = guest.domain.grants.uses
    assert {FIRST_DATA + 1, FIRST_DATA + 2} <= set(used)
    assert 16 not in used, "the ring is let go at once"
    ring = guest.memory.page(front.rings[0].pages[0]).tobytes()
    disk.end()
    disk.end()
    assert guest.domain.grants.uses == {}
    assert guest.memory.page(front.rings[0].pages[0]).tobytes() == ring, "not touched any more"
    front.device.notified(0)
    front.device.close()
    assert not disk.held
