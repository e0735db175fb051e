"""Bad requests and broken rings: answered or stopped, counted, never more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from front_end import FIRST_DATA, FrontEnd, HeldStorage, Segment
from pv_guest import L4, PvGuest

from pyxen.abi.errno import E
from pyxen.abi.io.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
)
from pyxen.backend.blk.device import BlockDevice, RingSettings
from pyxen.errors import XenError
from pyxen.types import DomId, GrantRef

Connect = Callable[..., FrontEnd]
READ, WRITE = BLKIF_OP_READ, BLKIF_OP_WRITE
PAGE: Segment = (0, 0, 7)
LAST = (1 << 20) // 512


@pytest.fixture(params=["x86_64-abi", "x86_32-abi"])
def front(connect: Connect, request: pytest.FixtureRequest) -> FrontEnd:
    return connect(HeldStorage(), protocol=request.param)


def refused(front: FrontEnd, entry: bytes, status: int = BLKIF_RSP_ERROR) -> None:
    """A request is refused, and the next one is carried out."""
    before = front.device.errors
    front.send(entry)
    answers = front.answers()
    assert [(a.status, a.id) for a in answers] == [(status, front._next_id)]
    assert front.device.errors == before + 1
    assert front.device.in_flight == 0
    front.send(front.transfer(READ, 0, [PAGE]))
    disk = front.device._storage
    assert isinstance(disk, HeldStorage)
    disk.end()
    assert front.statuses() == [BLKIF_RSP_OKAY]


@pytest.mark.parametrize("count", [0, 12, 255])
@pytest.mark.parametrize("operation", [READ, WRITE])
def test_number_of_segments(front: FrontEnd, operation: int, count: int) -> None:
    refused(front, front.transfer(operation, 0, [PAGE], count))


@pytest.mark.parametrize("operation", [BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE])
def test_number_of_segments_of_a_flush(front: FrontEnd, operation: int) -> None:
    refused(front, front.transfer(operation, 0, [PAGE], 12))


@pytest.mark.parametrize("count", [0, 257, 512, 513, 4096, 65535])
def test_number_of_indirect_segments(front: FrontEnd, count: int) -> None:
    refused(front, front.indirect(READ, 0, [PAGE], count=count))


@pytest.mark.parametrize("operation", [2, 3, 4, BLKIF_OP_DISCARD, BLKIF_OP_INDIRECT, 255])
def test_indirect_operations(front: FrontEnd, operation: int) -> None:
    refused(front, front.indirect(operation, 0, [PAGE]))


@pytest.mark.parametrize("operation", [4, 7, 8, 128, 255])
def test_unknown_operations(front: FrontEnd, operation: int) -> None:
    refused(front, front.transfer(operation, 0, [PAGE]), BLKIF_RSP_EOPNOTSUPP)


@pytest.mark.parametrize("span", [(1, 0), (7, 6), (0, 8), (8, 8), (3, 255), (255, 255), (255, 0)])
def test_sectors_of_a_segment(front: FrontEnd, span: tuple[int, int]) -> None:
    refused(front, front.transfer(READ, 0, [PAGE, (1, *span)]))
    refused(front, front.indirect(WRITE, 0, [(1, *span), PAGE]))


@pytest.mark.parametrize(
    "sector", [LAST - 7, LAST, LAST + 1, 1 << 32, (1 << 55) + 1, (1 << 64) - 1]
)
def test_beyond_the_end(front: FrontEnd, sector: int) -> None:
    refused(front, front.transfer(WRITE, sector, [PAGE]))
    refused(front, front.indirect(READ, sector, [PAGE]))
    refused(front, front.discard(sector, 8))


def test_a_discard_that_is_too_long(front: FrontEnd) -> None:
    refused(front, front.discard(0, LAST + 1))
    refused(front, front.discard(8, (1 << 64) - 8))


def test_the_very_last_sector(front: FrontEnd) -> None:
    front.send(front.transfer(READ, LAST - 8, [PAGE]), front.transfer(READ, LAST - 1, [(0, 0, 0)]))
    disk = front.device._storage
    assert isinstance(disk, HeldStorage)
    disk.end()
    disk.end()
    assert front.statuses() == [0, 0]


@pytest.mark.parametrize("sector, span", [(1, (0, 7)), (4, (0, 7)), (0, (0, 3)), (8, (7, 7))])
def test_large_sectors(connect: Connect, sector: int, span: tuple[int, int]) -> None:
    front = connect(HeldStorage(sector_size=4096))
    refused(front, front.transfer(READ, sector, [(0, *span)]))
    refused(front, front.discard(sector, span[1] + 1 - span[0]))


def test_pages_that_are_not_granted(guest: PvGuest, front: FrontEnd) -> None:
    grants = guest.domain.grants
    front.grants.seed(GrantRef(FIRST_DATA + 7), DomId(5), 0x1000 + 700)
    for gref in (0, FIRST_DATA + 7, 2047, 2048, 0xFFFF_FFFF):
        refused(front, front.transfer(READ, 0, [PAGE, (gref - FIRST_DATA, 0, 7)]))
        refused(front, front.indirect(READ, 0, [PAGE, (gref - FIRST_DATA, 0, 7), PAGE]))
        assert len(grants.uses) == 1, "all or none"


def test_a_list_that_is_not_granted(front: FrontEnd) -> None:
    entry = bytearray(front.indirect(READ, 0, [PAGE]))
    at = 24 if front.is_32 else 28
    entry[at : at + 4] = (4000).to_bytes(4, "little")
    refused(front, bytes(entry))


def test_a_page_table_is_not_read_into(guest: PvGuest, front: FrontEnd) -> None:
    front.grants.seed(GrantRef(FIRST_DATA + 3), DomId(0), L4)
    before = guest.memory.read(L4 << 12, 4096)
    refused(front, front.transfer(READ, 0, [(3, 0, 7)]))
    assert guest.memory.read(L4 << 12, 4096) == before


def test_a_disk_that_may_only_be_read(connect: Connect) -> None:
    for front in (connect(HeldStorage(), read_only=True), connect(HeldStorage())):
        disk = front.device._storage
        assert isinstance(disk, HeldStorage)
        disk.read_only = True
        refused(front, front.transfer(WRITE, 0, [PAGE]))
        refused(front, front.transfer(BLKIF_OP_WRITE_BARRIER, 0, [PAGE]))
        refused(front, front.transfer(BLKIF_OP_FLUSH_DISKCACHE, 0, [PAGE]))
        refused(front, front.discard(0, 8))
        front.send(front.transfer(BLKIF_OP_FLUSH_DISKCACHE, 0, []))
        disk.end()
        assert front.statuses() == [BLKIF_RSP_OKAY]
        front.device.close()


def test_a_disk_that_cannot_discard(front: FrontEnd) -> None:
    disk = front.device._storage
    assert isinstance(disk, HeldStorage)
    disk.discard_granularity = 0
    refused(front, front.discard(0, 8), BLKIF_RSP_EOPNOTSUPP)


def test_a_kind_of_bad_request_is_reported_once(front: FrontEnd) -> None:
    for sector in range(LAST, LAST + 20):
        front.send(front.transfer(READ, sector, [PAGE]))
        front.answers()
    assert front.reports == ["a request of the guest is refused: it is beyond the end of the disk"]
    assert front.device.errors == 20


def test_a_request_is_read_once(front: FrontEnd) -> None:
    """What the guest makes of an entry after it was taken changes nothing."""
    disk = front.device._storage
    assert isinstance(disk, HeldStorage)
    front.send(front.indirect(READ, 0, [PAGE, (1, 0, 7)]))
    ring = front.rings[0]
    for n in range(ring.entry_bytes):
        front.memory.bytes[ring.maddr(0, n)] = 0xFF
    front.fill(399, b"\xff" * 64)
    assert disk.held[0].length == 8192
    disk.end()
    assert front.answers() == [(front._next_id, READ, BLKIF_RSP_OKAY)]


# --- rings ------------------------------------------------------------------------------------


def test_a_producer_too_far_ahead(front: FrontEnd) -> None:
    ring = front.rings[0]
    disk = front.device._storage
    assert isinstance(disk, HeldStorage)
    front.send(front.transfer(READ, 0, [PAGE]))
    ring.set(0, ring.size + 1)
    front.device.notified(0)
    assert len(front.reports) == 1
    assert "ring 0 is broken" in front.reports[0]
    disk.end()
    assert front.statuses() == [BLKIF_RSP_OKAY], "what was taken before is answered"
    front.send(front.transfer(READ, 0, [PAGE]))
    front.device.notified(0)
    assert (len(front.reports), front.statuses(), disk.kinds()) == (1, [], [])


def test_a_producer_that_goes_back(front: FrontEnd) -> None:
    disk = front.device._storage
    assert isinstance(disk, HeldStorage)
    front.send(front.transfer(READ, 0, [PAGE]), front.transfer(READ, 0, [PAGE]))
    front.rings[0].set(0, 1)
    front.device.notified(0)
    assert "broken" in front.reports[0]
    disk.end()
    disk.end()
    assert front.statuses() == [0, 0]


def test_other_rings_go_on(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk, rings=3)
    front.rings[1].set(0, 1000)
    front.device.notified(1)
    front.send(front.transfer(READ, 0, [PAGE]), ring=2)
    disk.end()
    assert (front.statuses(2), front.events) == ([0], [0, 0, 1])


def rings_refused(guest: PvGuest, settings: RingSettings, errno: E) -> None:
    """The device cannot be made, and nothing is in use."""
    before = guest.domain.grants.uses
    with pytest.raises(XenError) as info:
        BlockDevice(guest.memory, guest.domain.grants, None, settings, [], print)
    assert info.value.errno is errno
    assert guest.domain.grants.uses == before


def test_rings_that_cannot_be_mapped(guest: PvGuest, connect: Connect) -> None:
    front = connect(None, ring_pages=2)
    good = [16, 17]
    rings_refused(guest, RingSettings([good, [16, 1999]]), E.INVAL)
    rings_refused(guest, RingSettings([good, []]), E.INVAL)
    rings_refused(guest, RingSettings([[16, 17, 16]]), E.INVAL)
    rings_refused(guest, RingSettings([good * 16]), E.INVAL)
    rings_refused(guest, RingSettings([good], "arm-abi"), E.INVAL)
    front.rings[0].set(0, 65)
    rings_refused(guest, RingSettings([good]), E.IO)
