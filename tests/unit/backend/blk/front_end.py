"""A front end: writes ring entries into a guest's memory, and reads what is answered.

pfn 256 ..  the rings' pages, every other one, so that no two are adjacent
pfn 512 ..  DATA_PAGES pages of data, granted as gref FIRST_DATA + n
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from pyxen.abi.io.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_INDIRECT,
    BlkifRequest,
    BlkifRequestDiscard,
    BlkifRequestIndirect,
    BlkifRequestSegment,
    BlkifResponse,
    BlkifX8632Request,
    BlkifX8632RequestDiscard,
    BlkifX8632RequestIndirect,
    BlkifX8632Response,
)
from pyxen.backend.blk.device import BlockDevice, RingSettings
from pyxen.backend.blk.storage.base import Kind, Operation, Storage
from pyxen.hypervisor.grant import GrantTable
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.types import U32, DomId, GrantRef

FIRST_RING_PFN, FIRST_DATA_PFN = 256, 512
FIRST_RING, FIRST_DATA = 16, 512
DATA_PAGES = 400
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)

Segment = tuple[int, int, int]
"""Data page, first and last sector."""


class Answer(NamedTuple):
    id: int
    operation: int
    status: int


class FrontRing:
    """One ring, with the front end's private indices."""

    def __init__(self, memory: MachineMemory, pfns: Sequence[int], is_32: bool, at: int) -> None:
        self.memory = memory
        self.pages = [XEN_PAGES + pfn for pfn in pfns]
        self.entry_bytes = 108 if is_32 else 112
        self.response = BlkifX8632Response if is_32 else BlkifResponse
        self.size = 1
        while 64 + 2 * self.size * self.entry_bytes <= 4096 * len(pfns):
            self.size *= 2
        self.prod = self.rsp_cons = at
        for index, value in enumerate((at, at + 1, at, at + 1)):
            self.set(index, value)

    def get(self, index: int) -> int:
        return self.memory.dwords[(self.pages[0] << 10) + index]

    def set(self, index: int, value: int) -> None:
        self.memory.dwords[(self.pages[0] << 10) + index] = value & U32

    def maddr(self, index: int, byte: int) -> int:
        offset = 64 + (index % self.size) * self.entry_bytes + byte
        return (self.pages[offset >> 12] << 12) + (offset & 0xFFF)

    def put(self, entry: bytes) -> None:
        """Write a request, unseen yet."""
        for n, byte in enumerate(entry):
            self.memory.bytes[self.maddr(self.prod, n)] = byte
        self.prod = self.prod + 1 & U32

    def publish(self) -> bool:
        """Show the requests; whether the back end asked for an event."""
        old = self.get(REQ_PROD)
        self.set(REQ_PROD, self.prod)
        return self.prod - self.get(REQ_EVENT) & U32 < self.prod - old & U32

    def answers(self) -> list[Answer]:
        """Take all responses, and ask for an event for the next one."""
        found = []
        while self.rsp_cons != self.get(RSP_PROD):
            size = self.response.SIZE
            data = bytes(self.memory.bytes[self.maddr(self.rsp_cons, n)] for n in range(size))
            response = self.response.unpack(data)
            found.append(Answer(response.id, response.operation, response.status))
            self.rsp_cons = self.rsp_cons + 1 & U32
        self.set(RSP_EVENT, self.rsp_cons + 1)
        return found


class FrontEnd:
    """A front end with its device."""

    def __init__(
        self,
        memory: MachineMemory,
        grants: GrantTable,
        storage: Storage | None,
        *,
        protocol: str = "x86_64-abi",
        ring_pages: int = 1,
        rings: int = 1,
        persistent: bool = False,
        read_only: bool = False,
        defer: Callable[[Callable[[], None]], None] | None = None,
        at: int = 0,
    ) -> None:
        self.memory = memory
        self.grants = grants
        self.is_32 = protocol == "x86_32-abi"
        grants.grow(4)
        for n in range(DATA_PAGES):
            self.grant(FIRST_DATA + n, FIRST_DATA_PFN + n)
        self.rings, grefs = [], []
        for ring in range(rings):
            own = range(ring * ring_pages, (ring + 1) * ring_pages)
            pfns = [FIRST_RING_PFN + 2 * n for n in own]
            for n, pfn in zip(own, pfns, strict=True):
                self.grant(FIRST_RING + n, pfn)
            self.rings.append(FrontRing(memory, pfns, self.is_32, at))
            grefs.append([FIRST_RING + n for n in own])
        self.events = [0] * rings
        self.reports: list[str] = []
        self._settings = RingSettings(grefs, protocol, persistent, read_only)
        self._defer = defer
        self._next_id = 0x1234_5678_9ABC_0000
        self.device = self.attach(storage)

    def attach(self, storage: Storage | None) -> BlockDevice:
        """A device on the rings as they are."""
        raise_event = [partial(self._event, n) for n in range(len(self.rings))]
        report = self.reports.append
        return BlockDevice(
            self.memory, self.grants, storage, self._settings, raise_event, report, self._defer
        )

    def _event(self, ring: int) -> None:
        self.events[ring] += 1

    def grant(self, gref: int, pfn: int) -> None:
        self.grants.seed(GrantRef(gref), DomId(0), XEN_PAGES + pfn)

    def maddr(self, page: int) -> int:
        """Of a data page."""
        return XEN_PAGES + FIRST_DATA_PFN + page << 12

    def fill(self, page: int, data: bytes) -> None:
        at = self.maddr(page)
        self.memory.bytes[at : at + len(data)] = data

    def data(self, page: int, start: int = 0, end: int = 4096) -> bytes:
        return self.memory.read(self.maddr(page) + start, end - start)

    # --- requests -------------------------------------------------------------------------------

    def id(self) -> int:
        self._next_id += 1
        return self._next_id

    @staticmethod
    def segments(segments: Sequence[Segment]) -> tuple[BlkifRequestSegment, ...]:
        return tuple(
            BlkifRequestSegment(gref=FIRST_DATA + page, first_sect=first, last_sect=last)
            for page, first, last in segments
        )

    def transfer(
        self, operation: int, sector: int, segments: Sequence[Segment], count: int | None = None
    ) -> bytes:
        """A direct request; `count` if it is to lie about its number of segments."""
        kind = BlkifX8632Request if self.is_32 else BlkifRequest
        given = self.segments(segments)
        given += (BlkifRequestSegment(),) * (11 - len(given))
        number = len(segments) if count is None else count
        return kind(
            operation=operation,
            nr_segments=number,
            id=self.id(),
            sector_number=sector,
            seg=given,
        ).pack()

    def indirect(
        self,
        operation: int,
        sector: int,
        segments: Sequence[Segment],
        list_page: int = DATA_PAGES - 1,
        count: int | None = None,
    ) -> bytes:
        """An indirect request; its segments are written to a data page."""
        kind = BlkifX8632RequestIndirect if self.is_32 else BlkifRequestIndirect
        self.fill(list_page, b"".join(s.pack() for s in self.segments(segments)))
        number = len(segments) if count is None else count
        grefs = (FIRST_DATA + list_page, *range(1000, 1007))
        request = kind(
            operation=BLKIF_OP_INDIRECT,
            indirect_op=operation,
            nr_segments=number,
            id=self.id(),
            sector_number=sector,
            indirect_grefs=grefs,
        )
        return self._padded(request.pack())

    def discard(self, sector: int, count: int, flag: int = 0) -> bytes:
        kind = BlkifX8632RequestDiscard if self.is_32 else BlkifRequestDiscard
        request = kind(
            operation=BLKIF_OP_DISCARD,
            flag=flag,
            id=self.id(),
            sector_number=sector,
            nr_sectors=count,
        )
        return self._padded(request.pack())

    def _padded(self, entry: bytes) -> bytes:
        return entry.ljust(108 if self.is_32 else 112, b"\0")

    def send(self, *entries: bytes, ring: int = 0) -> None:
        """Put requests into a ring, and send an event if it is wanted."""
        for entry in entries:
            self.rings[ring].put(entry)
        if self.rings[ring].publish():
            self.device.notified(ring)

    def answers(self, ring: int = 0) -> list[Answer]:
        return self.rings[ring].answers()

    def statuses(self, ring: int = 0) -> list[int]:
        return [answer.status for answer in self.answers(ring)]


class HeldStorage:
    """A disk that ends an operation when it is told to."""

    def __init__(self, size: int = 1 << 20, sector_size: int = 512) -> None:
        self.size = size
        self.sector_size = self.physical_sector_size = sector_size
        self.read_only = False
        self.discard_granularity = 4096
        self.can_secure_discard = True
        self.held: deque[Operation] = deque()

    def submit(self, operation: Operation) -> None:
        self.held.append(operation)

    def kinds(self) -> list[Kind]:
        return [operation.kind for operation in self.held]

    def end(self, errno: int = 0, n: int = 0) -> None:
        """End one of the operations."""
        operation = self.held[n]
        del self.held[n]
        operation.done(errno)

    def close(self) -> None: ...
