"""Reads, writes, flushes and discards: from ring entries to a file and back."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from front_end import DATA_PAGES, FIRST_DATA, FIRST_DATA_PFN, FrontEnd, HeldStorage
from pv_guest import PvGuest

from pyxen.abi.io.blkif import (
    BLKIF_DISCARD_SECURE,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
)
from pyxen.backend.blk.storage.base import Kind
from pyxen.backend.blk.storage.raw import RawStorage, open_raw
from pyxen.backend.blk.storage.workers import Workers
from pyxen.memory.machine import XEN_PAGES

Connect = Callable[..., FrontEnd]
Settle = Callable[[FrontEnd], None]
READ, WRITE, FLUSH, BARRIER = (
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_WRITE_BARRIER,
)


def sectors(first: int, count: int) -> bytes:
    """What the image has there at first."""
    return b"".join(n.to_bytes(4, "little") * 128 for n in range(first, first + count))


@pytest.fixture(params=["native", "x86_64-abi", "x86_32-abi"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[1, 2, 4, 8, 16])
def ring_pages(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_every_entry_of_every_ring(
    connect: Connect, storage: RawStorage, settle: Settle, protocol: str, ring_pages: int
) -> None:
    """Entries lie across the boundaries of pages that are not adjacent."""
    front = connect(storage, protocol=protocol, ring_pages=ring_pages, at=0xFFFF_FFF0)
    ring = front.rings[0]
    assert ring.size == 32 * ring_pages
    seen = []
    for n in range(3 * ring.size // 8):
        for m in range(8):
            front.send(front.transfer(READ, (8 * n + m) % 4096, [(m, 0, 7)]))
        settle(front)
        seen += front.answers()
        assert [front.data(m) for m in range(8)] == [
            sectors((8 * n + m) % 4096, 8) for m in range(8)
        ]
    assert [answer.status for answer in seen] == [0] * (3 * ring.size // 8 * 8)
    first = seen[0].id
    assert [answer.id - first for answer in sorted(seen)] == list(range(len(seen)))
    assert {answer.operation for answer in seen} == {READ}


def test_write_and_read_back(
    connect: Connect, storage: RawStorage, settle: Settle, image: Path, protocol: str
) -> None:
    front = connect(storage, protocol=protocol)
    for page in range(11):
        front.fill(page, os.urandom(4096))
    front.send(front.transfer(WRITE, 16, [(page, 0, 7) for page in range(11)]))
    settle(front)
    assert front.statuses() == [BLKIF_RSP_OKAY]
    written = b"".join(front.data(page) for page in range(11))
    content = image.read_bytes()
    assert content == sectors(0, 16) + written + sectors(104, len(content) // 512 - 104)
    front.send(front.transfer(READ, 16, [(20 + page, 0, 7) for page in range(11)]))
    settle(front)
    assert b"".join(front.data(20 + page) for page in range(11)) == written
    device = front.device
    assert (device.rd_req, device.rd_sect, device.wr_req, device.wr_sect) == (1, 88, 1, 88)
    assert (device.errors, device.io_errors, device.f_req, device.ds_req) == (0, 0, 0, 0)


def test_parts_of_pages(connect: Connect, storage: RawStorage, settle: Settle, image: Path) -> None:
    front = connect(storage)
    for page in range(4):
        front.fill(page, b"x" * 4096)
    front.send(front.transfer(READ, 100, [(0, 3, 3), (2, 0, 6), (2, 7, 7), (1, 6, 7)]))
    settle(front)
    assert front.statuses() == [BLKIF_RSP_OKAY]
    assert front.data(0) == b"x" * 1536 + sectors(100, 1) + b"x" * 2048
    assert front.data(2) == sectors(101, 8)
    assert front.data(1) == b"x" * 3072 + sectors(109, 2)
    assert front.data(3) == b"x" * 4096
    front.send(front.transfer(WRITE, 0, [(1, 6, 6), (3, 0, 0)]))
    settle(front)
    assert image.read_bytes()[:1536] == sectors(109, 1) + b"x" * 512 + sectors(2, 1)


@pytest.mark.parametrize("count", [1, 11, 12, 32, 33, 255, 256])
def test_indirect(
    connect: Connect, storage: RawStorage, settle: Settle, protocol: str, count: int
) -> None:
    front = connect(storage, protocol=protocol)
    order = [(7 * n % 256, 0, 7) for n in range(count)]
    front.send(front.indirect(READ, 80, order))
    settle(front)
    assert [(a.operation, a.status) for a in front.answers()] == [(READ, BLKIF_RSP_OKAY)]
    assert b"".join(front.data(page) for page, _, _ in order) == sectors(80, 8 * count)
    for page, _, _ in order:
        front.fill(page, os.urandom(4096))
    front.send(front.indirect(WRITE, 8, order))
    settle(front)
    assert [(a.operation, a.status) for a in front.answers()] == [(WRITE, BLKIF_RSP_OKAY)]
    written = b"".join(front.data(page) for page, _, _ in order)
    assert os.pread(storage._fd, len(written), 4096) == written
    assert front.device.rd_sect == front.device.wr_sect == 8 * count


def test_the_engine_hears_of_pages_that_were_read_into(
    guest: PvGuest, connect: Connect, storage: RawStorage, settle: Settle
) -> None:
    front = connect(storage)
    guest.engine.code_changes.clear()
    front.send(front.transfer(READ, 0, [(5, 0, 7), (6, 0, 7), (9, 1, 2)]))
    front.send(front.transfer(WRITE, 0, [(1, 0, 7)]))
    settle(front)
    assert guest.engine.code_changes == [(front.maddr(page), 4096) for page in (5, 6, 9)]


def test_a_write_uses_read_only_grants(
    guest: PvGuest, connect: Connect, storage: RawStorage, settle: Settle
) -> None:
    for persistent in (False, True):
        front = connect(storage, persistent=persistent)
        at = (guest.domain.grants.frame(FIRST_DATA >> 9) << 10) + (FIRST_DATA & 511) * 2
        guest.memory.dwords[at] |= 4  # GTF_readonly
        front.send(front.transfer(WRITE, 0, [(0, 0, 7), (1, 0, 7)]))
        front.send(front.transfer(READ, 0, [(0, 0, 7)]))
        settle(front)
        assert sorted(front.statuses()) == [BLKIF_RSP_ERROR, BLKIF_RSP_OKAY]
        front.device.close()


# --- persistent grants ------------------------------------------------------------------------


def test_persistent_grants_stay(
    guest: PvGuest, connect: Connect, storage: RawStorage, settle: Settle
) -> None:
    front = connect(storage, persistent=True)
    for _ in range(3):
        front.send(front.transfer(WRITE, 0, [(0, 0, 7), (1, 0, 7), (0, 0, 7)]))
        front.send(front.indirect(READ, 0, [(1, 0, 7), (2, 0, 7)]))
        settle(front)
        assert front.statuses() == [0, 0]
        data = {FIRST_DATA + n: (0, 1) for n in (0, 1, 2, DATA_PAGES - 1)}
        uses = guest.domain.grants.uses
        assert {gref: uses[gref] for gref in data} == data
        assert len(uses) == len(data) + 1, "each kept once, and the ring"


def test_kept_pages_are_bounded(
    guest: PvGuest, connect: Connect, storage: RawStorage, settle: Settle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pyxen.backend.blk.pages.MAX_PERSISTENT_PER_RING", 20)
    front = connect(storage, persistent=True)
    most = 0
    for n in range(0, 300, 10):
        front.send(front.transfer(READ, n, [(n + m, 0, 7) for m in range(10)]))
        settle(front)
        assert [front.data(n + m) for m in range(10)] == [sectors(n + 8 * m, 8) for m in range(10)]
        most = max(most, len(guest.domain.grants.uses))
    assert set(front.statuses()) == {0}
    assert most == 21


def test_without_persistence_nothing_stays(
    guest: PvGuest, connect: Connect, storage: RawStorage, settle: Settle
) -> None:
    front = connect(storage)
    front.send(front.transfer(READ, 0, [(n, 0, 7) for n in range(11)]))
    settle(front)
    assert len(guest.domain.grants.uses) == 1


# --- flushes and barriers ---------------------------------------------------------------------


def test_flush(connect: Connect, storage: RawStorage, settle: Settle, protocol: str) -> None:
    front = connect(storage, protocol=protocol)
    front.send(front.transfer(FLUSH, 0, []))
    settle(front)
    assert [answer[1:] for answer in front.answers()] == [(FLUSH, BLKIF_RSP_OKAY)]
    assert front.device.f_req == 1


def test_a_flush_with_data_flushes_first(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk)
    front.send(front.transfer(FLUSH, 0, [(0, 0, 7)]))
    assert disk.kinds() == [Kind.FLUSH]
    disk.end()
    assert disk.kinds() == [Kind.WRITE]
    assert front.statuses() == []
    disk.end()
    assert front.statuses() == [BLKIF_RSP_OKAY]


def test_a_flush_waits_for_nothing(connect: Connect) -> None:
    """What was not answered before may be durable or not."""
    disk = HeldStorage()
    front = connect(disk)
    front.send(front.transfer(WRITE, 0, [(0, 0, 7)]), front.transfer(FLUSH, 0, []))
    assert disk.kinds() == [Kind.WRITE, Kind.FLUSH]
    disk.end(n=1)
    assert [answer.operation for answer in front.answers()] == [FLUSH]
    disk.end()
    assert [answer.operation for answer in front.answers()] == [WRITE]


def test_a_barrier_waits_and_is_waited_for(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk, rings=2)
    front.send(front.transfer(WRITE, 0, [(0, 0, 7)]), front.transfer(READ, 0, [(0, 0, 7)]), ring=1)
    front.send(front.transfer(BARRIER, 0, [(1, 0, 7)]), front.transfer(READ, 0, [(2, 0, 7)]))
    front.send(front.transfer(READ, 0, [(3, 0, 7)]), ring=1)
    assert disk.kinds() == [Kind.WRITE, Kind.READ]
    disk.end(n=1)
    assert disk.kinds() == [Kind.WRITE]
    disk.end()
    for kind in (Kind.FLUSH, Kind.WRITE, Kind.FLUSH):
        assert disk.kinds() == [kind]
        assert front.statuses() == []
        disk.end()
    assert [answer.operation for answer in front.answers()] == [BARRIER]
    assert disk.kinds() == [Kind.READ, Kind.READ], "both rings go on"
    disk.end()
    disk.end()


def test_a_barrier_without_data_is_a_flush(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk)
    front.send(front.transfer(BARRIER, 0, []))
    assert disk.kinds() == [Kind.FLUSH]
    disk.end()
    assert front.statuses() == [BLKIF_RSP_OKAY]


def test_a_barrier_that_fails_lets_others_go_on(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk)
    front.send(front.transfer(BARRIER, 0, [(1, 0, 7)]), front.transfer(READ, 0, [(2, 0, 7)]))
    disk.end(5)
    assert front.statuses() == [BLKIF_RSP_ERROR]
    assert disk.kinds() == [Kind.READ]
    disk.end()


def test_many_barriers_in_a_row(
    connect: Connect, storage: RawStorage, settle: Settle, image: Path
) -> None:
    front = connect(storage)
    for n in range(30):
        front.fill(n, bytes([n]) * 4096)
    front.send(*[front.transfer(BARRIER, 0, [(n, 0, 7)]) for n in range(30)])
    settle(front)
    assert front.statuses() == [0] * 30
    assert image.read_bytes()[:4096] == bytes([29]) * 4096, "in their order"


# --- discards ---------------------------------------------------------------------------------


def test_discard_punches_a_hole(
    connect: Connect, storage: RawStorage, settle: Settle, image: Path, protocol: str
) -> None:
    if not storage.discard_granularity:
        pytest.skip("the file system of the temporary folder has no holes")
    front = connect(storage, protocol=protocol)
    os.fsync(storage._fd)
    before = image.stat()
    front.send(front.discard(2048, 2048))
    settle(front)
    assert [answer[1:] for answer in front.answers()] == [(BLKIF_OP_DISCARD, BLKIF_RSP_OKAY)]
    after = image.stat()
    assert before.st_blocks - after.st_blocks == 2048
    assert after.st_size == before.st_size
    content = image.read_bytes()
    assert content[1 << 20 : 2 << 20] == bytes(1 << 20)
    assert content[: 1 << 20] == sectors(0, 2048)
    assert front.device.ds_req == 1


def test_discard_of_nothing(connect: Connect) -> None:
    front = connect(HeldStorage())
    front.send(front.discard(8, 0))
    assert front.statuses() == [BLKIF_RSP_OKAY]


def test_secure_discards(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk)
    front.send(front.discard(8, 8, BLKIF_DISCARD_SECURE), front.discard(8, 8))
    assert disk.kinds() == [Kind.SECURE_DISCARD, Kind.DISCARD]
    disk.can_secure_discard = False  # then the flag is ignored: public/io/blkif.h
    front.send(front.discard(8, 8, BLKIF_DISCARD_SECURE))
    assert disk.kinds()[2] is Kind.DISCARD
    assert (disk.held[0].offset, disk.held[0].length) == (4096, 4096)
    while disk.held:
        disk.end()


# --- disks that fail --------------------------------------------------------------------------


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Limits how long this process may make a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full(
    connect: Connect, storage: RawStorage, settle: Settle, image: Path,
    small_files: Callable[[int], None],
) -> None:  # fmt: skip
    os.truncate(image, 4 << 20)
    front = connect(storage)
    for page in range(4):
        front.fill(page, b"y" * 4096)
    small_files((1 << 20) + 6144)
    segments = [(page, 0, 7) for page in range(4)]
    front.send(front.transfer(WRITE, 2048, segments), front.transfer(WRITE, 4096, segments))
    front.send(front.transfer(WRITE, 0, segments))
    settle(front)
    assert sorted(front.statuses()) == [BLKIF_RSP_ERROR, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY]
    assert front.reports == ["write: File too large"], "once for a kind"
    assert front.device.io_errors == 2
    assert image.read_bytes()[:16384] == b"y" * 16384


def test_a_file_truncated_under_a_request(
    connect: Connect, image: Path, settle: Settle, workers: Workers
) -> None:
    class Late(RawStorage):
        """Its length is asked for before it is truncated."""

        size = 4 << 20  # type: ignore[assignment]

    fd = os.open(image, os.O_RDWR)
    storage = Late(fd, workers, read_only=False, direct=False)
    front = connect(storage)
    os.truncate(image, 6144)
    front.send(front.transfer(READ, 0, [(0, 0, 7), (1, 0, 7)]))
    front.send(front.transfer(READ, 4096, [(2, 0, 7)]))
    settle(front)
    assert front.statuses() == [BLKIF_RSP_ERROR] * 2
    assert front.reports == ["read: Input/output error"]
    storage.close()


def test_a_file_truncated_between_requests(
    connect: Connect, storage: RawStorage, settle: Settle, image: Path
) -> None:
    front = connect(storage)
    os.truncate(image, 6144 + 100)
    front.send(front.transfer(READ, 5, [(0, 0, 7)]), front.transfer(READ, 5, [(0, 0, 6)]))
    front.send(front.transfer(WRITE, 12, [(0, 0, 0)]), front.transfer(READ, 8, [(1, 0, 3)]))
    settle(front)
    assert sorted(front.statuses()) == [BLKIF_RSP_ERROR] * 2 + [BLKIF_RSP_OKAY] * 2
    assert image.stat().st_size == 6244, "a write makes no file longer"


def test_what_the_storage_cannot(connect: Connect) -> None:
    disk = HeldStorage()
    front = connect(disk)
    front.send(front.discard(0, 8))
    disk.end(95)
    assert front.statuses() == [BLKIF_RSP_EOPNOTSUPP]


def test_media_come_and_go(
    connect: Connect, storage: RawStorage, settle: Settle, workers: Workers, tmp_path: Path
) -> None:
    front = connect(None)
    request = [(0, 0, 0)]
    front.send(front.transfer(READ, 0, request), front.transfer(FLUSH, 0, []), front.discard(0, 8))
    assert front.statuses() == [BLKIF_RSP_ERROR] * 3
    front.device.change_storage(storage)
    front.send(front.transfer(READ, 5, request))
    settle(front)
    assert (front.statuses(), front.data(0, 0, 512)) == ([0], sectors(5, 1))
    other = tmp_path / "other.img"
    other.write_bytes(b"other" * 2000)
    second = open_raw(other, workers, read_only=True)
    front.device.change_storage(second)
    front.send(front.transfer(READ, 0, request), front.transfer(WRITE, 0, request))
    settle(front)
    assert sorted(front.statuses()) == [BLKIF_RSP_ERROR, BLKIF_RSP_OKAY]
    assert front.data(0, 0, 5) == b"other"
    front.device.change_storage(None)
    second.close()
    front.send(front.transfer(READ, 0, request))
    assert front.statuses() == [BLKIF_RSP_ERROR]


def test_requests_end_on_the_medium_that_they_began_on(connect: Connect) -> None:
    first, second = HeldStorage(), HeldStorage()
    front = connect(first)
    front.send(front.transfer(FLUSH, 0, [(0, 0, 7)]))
    front.device.change_storage(second)
    first.end()
    assert (first.kinds(), second.kinds()) == ([Kind.WRITE], [])
    first.end()


def test_pages_are_where_the_front_end_says() -> None:
    assert FIRST_DATA_PFN + DATA_PAGES < XEN_PAGES
