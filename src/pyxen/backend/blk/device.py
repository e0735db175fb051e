"""The block back end: takes requests from a front end's rings, has them carried out, answers.

Source: public/io/blkif.h; what it leaves open is done as Linux's blkback does it.

    notified ─► turn: take ─► parse ─► check ─► map grants ─► Storage.submit
                                  └► refused                        │ (now, or later)
                turn: push, one event per ring ◄── answer ◄─────────┘

Everything happens on the domain's thread, in turns. A turn takes as many requests as its budget
allows, then shows all answers that came up meanwhile at once. Operations that end between turns
only note their answers and ask for a turn.

Requests under way are carried out in any order, as a disk may. A flush makes durable what was
answered before it was asked for. A barrier waits until all before it are done, and those behind
it wait for it. Nothing a guest puts into a ring ends more than that ring.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import EOPNOTSUPP
from functools import partial
from typing import Final

from pyxen.abi.errno import E
from pyxen.abi.io.blkif import (
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
)
from pyxen.backend.blk.pages import GrantedPages, Mapping, extents_of
from pyxen.backend.blk.request import (
    ABIS,
    SECTOR_BYTES,
    SEGMENT_BYTES,
    Discard,
    Malformed,
    Segments,
    Transfer,
    parse,
    parse_segments,
)
from pyxen.backend.blk.ring import BackRing, RingBroken
from pyxen.backend.blk.storage.base import Kind, Operation, Storage
from pyxen.errors import XenError
from pyxen.hypervisor.grant import GrantTable
from pyxen.memory.machine import MachineMemory

TURN_SEGMENTS: Final = 2048
"""How many segments are begun in one turn, about: then the guest and others get their chance."""

Callback = Callable[[], None]


@dataclass(frozen=True, slots=True)
class RingSettings:
    """What the front end said in xenstore, and what was agreed on.

    rings: the grant references of each ring's pages. protocol: a key of request.ABIS.
    persistent: both ends said feature-persistent. read_only: writes are refused.
    """

    rings: Sequence[Sequence[int]]
    protocol: str = "native"
    persistent: bool = False
    read_only: bool = False


class Refused(Exception):
    """A request that is not carried out."""

    def __init__(self, why: str, status: int = BLKIF_RSP_ERROR) -> None:
        super().__init__(why)
        self.status = status


@dataclass(slots=True, eq=False)
class Active:
    """A request under way: the operations that it still needs, and what it has in use."""

    ring: BackRing
    id: int
    operation: int
    storage: Storage
    steps: deque[Kind]
    offset: int = 0
    length: int = 0
    mapping: Mapping | None = None
    extents: list[tuple[int, int]] = field(default_factory=list)


_STEPS: Final = {
    BLKIF_OP_READ: (Kind.READ,),
    BLKIF_OP_WRITE: (Kind.WRITE,),
    BLKIF_OP_FLUSH_DISKCACHE: (Kind.FLUSH, Kind.WRITE),
    BLKIF_OP_WRITE_BARRIER: (Kind.FLUSH, Kind.WRITE, Kind.FLUSH),
}
"""What a transfer consists of; one without data has its first step only."""


class BlockDevice:
    """One virtual disk that a front end is connected to.

    Counters as Linux's blkback has them in sysfs: requests to read (rd_req), write (wr_req), flush
    (f_req) and discard (ds_req); sectors of 512 bytes read and written (rd_sect, wr_sect); how
    often there was more to do than one turn allows (oo_req). errors: requests refused for what is
    in them; io_errors: requests that the storage could not carry out.
    """

    def __init__(
        self,
        memory: MachineMemory,
        grants: GrantTable,
        storage: Storage | None,
        settings: RingSettings,
        raise_event: Sequence[Callback],
        report: Callable[[str], None],
        defer: Callable[[Callback], None] | None = None,
    ) -> None:
        """Map the rings. Call `notified` for each ring then: requests may be waiting.

        storage: None: there is no medium. raise_event: tells the guest, for each ring. report:
        gets a line for each kind of error. defer: calls a function soon, on this thread
        (Completions.post); without it answers are shown one by one, and turns have no end.
        Raises: XenError, with nothing mapped; as BackRing, and XenError(EINVAL) for a protocol
        that there is not.
        """
        abi = ABIS.get(settings.protocol)
        if abi is None:
            raise XenError(E.INVAL, f"protocol {settings.protocol!r}")
        self._abi = abi
        self._rings = _map_rings(memory, grants, settings.rings, abi.entry_bytes)
        self._pages = GrantedPages(
            memory, grants, persistent=settings.persistent, rings=len(self._rings)
        )
        self._storage = storage
        self._read_only = settings.read_only
        self._raise_event = dict(zip(self._rings, raise_event, strict=True))
        self._report = report
        self._reported: set[str] = set()
        self._defer = defer
        self._ready: deque[BackRing] = deque()
        """Rings that may have requests."""
        self._in_flight = 0
        """How many requests are neither refused nor ended."""
        self._barrier: Active | None = None
        """While there is one, nothing is taken from any ring."""
        self._barrier_waits = False
        self._in_turn = self._turn_asked = False
        self._quiesced = self._closed = False
        self._on_quiet: list[Callback] = []
        self.rd_req = self.wr_req = self.f_req = self.ds_req = 0
        self.rd_sect = self.wr_sect = 0
        self.oo_req = self.errors = self.io_errors = 0

    # --- for who wires it -------------------------------------------------------------------

    def notified(self, ring: int) -> None:
        """The front end sent an event for a ring."""
        back = self._rings[ring]
        if not back.is_broken and back not in self._ready:
            self._ready.append(back)
        self._ask_for_turn(now=True)

    def quiesce(self, done: Callback) -> None:
        """Take no more requests; `done` is called when all that were taken are answered."""
        self._quiesced = True
        self._on_quiet.append(done)
        self._ask_for_turn(now=True)

    def resume(self) -> None:
        """Take requests again, after a `quiesce` that is done."""
        self._quiesced = False
        for ring in range(len(self._rings)):
            self.notified(ring)

    def change_storage(self, storage: Storage | None) -> None:
        """Another medium, or none. Requests under way end on the one that they began on."""
        self._storage = storage

    def close(self) -> None:
        """Let the rings and all pages go; pages of requests under way when these end, unanswered.

        Before the storage is closed, which ends them.
        """
        if self._closed:
            return
        self._closed = True
        for ring in self._rings:
            ring.close()
        if self._barrier is not None and self._barrier_waits:
            self._let_go(self._barrier)
        self._pages.close_when_idle(self._in_flight)

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return self._in_flight

    # --- turns --------------------------------------------------------------------------------

    def _ask_for_turn(self, *, now: bool = False) -> None:
        if self._in_turn:
            return
        if now or self._defer is None:
            self._turn()
        elif not self._turn_asked:
            self._turn_asked = True
            self._defer(self._asked_turn)

    def _asked_turn(self) -> None:
        self._turn_asked = False
        self._turn()

    def _turn(self) -> None:
        if self._closed:
            return
        self._in_turn = True
        try:
            more = self._take()
            while more and self._defer is None:
                more = self._take()
        finally:
            self._in_turn = False
        self._push()
        if more:
            self.oo_req += 1
            self._ask_for_turn()
        if not self._in_flight:
            self._idle()

    def _take(self) -> bool:
        """Begin requests; whether there may be more that can be begun."""
        budget = TURN_SEGMENTS
        while budget > 0:
            if self._barrier is not None:
                if not self._barrier_waits or self._in_flight > 1:
                    return False
                self._barrier_waits = False
                self._step(self._barrier)
                continue
            if self._quiesced or not self._ready:
                return False
            ring = self._ready.popleft()
            entry = self._next(ring)
            if entry is not None:
                self._ready.append(ring)
                budget -= self._begin(ring, entry)
        return True

    def _next(self, ring: BackRing) -> bytes | None:
        try:
            return ring.take()
        except RingBroken as broken:
            number = self._rings.index(ring)
            self._report(f"ring {number} is broken, and not looked at any more: {broken}")
            return None

    def _push(self) -> None:
        for ring in self._rings:
            if ring.push():
                self._raise_event[ring]()

    def _idle(self) -> None:
        self._pages.trim()
        if self._quiesced:
            waiting, self._on_quiet = self._on_quiet, []
            for done in waiting:
                done()

    # --- one request --------------------------------------------------------------------------

    def _begin(self, ring: BackRing, entry: bytes) -> int:
        """Begin one request, or refuse it; how much work that was, in segments."""
        request = parse(entry, self._abi)
        try:
            match request:
                case Transfer():
                    active = self._transfer(ring, request)
                case Discard():
                    active = self._discard(ring, request)
                case Malformed(why=why, status=status):
                    raise Refused(why, status)
        except Refused as refused:
            self.errors += 1
            self._report_once(f"a request of the guest is refused: {refused}")
            ring.put(request.id, request.operation, refused.status)
            return 1
        self._in_flight += 1
        if active.operation == BLKIF_OP_WRITE_BARRIER:
            self._barrier, self._barrier_waits = active, True
        else:
            self._step(active)
        return 1 + (len(active.mapping.mfns) if active.mapping is not None else 0)

    def _transfer(self, ring: BackRing, request: Transfer) -> Active:
        """Check a transfer, and take its pages into use. Raises: Refused, with nothing in use."""
        operation, is_read = request.operation, request.operation == BLKIF_OP_READ
        self._count(operation)
        storage = self._medium(writes=not is_read and request.nr_segments > 0)
        steps = _STEPS[operation]
        if not request.nr_segments:
            return Active(ring, request.id, operation, storage, deque(steps[:1]))
        segments = self._segments(request, storage)
        offset = _checked_offset(storage, request.sector, segments.length_bytes)
        try:
            mapping = self._pages.begin(segments.grefs, write=is_read)
        except XenError as error:
            raise Refused("its pages are not granted") from error
        # COMMIT
        sectors = segments.length_bytes // SECTOR_BYTES
        if is_read:
            self.rd_sect += sectors
        else:
            self.wr_sect += sectors
        extents = extents_of(mapping.mfns, segments.spans)
        length = segments.length_bytes
        return Active(
            ring, request.id, operation, storage, deque(steps), offset, length, mapping, extents
        )

    def _segments(self, request: Transfer, storage: Storage) -> Segments:
        data = request.segments
        if request.indirect_grefs:
            try:
                mapping = self._pages.begin(list(request.indirect_grefs), write=False)
            except XenError as error:
                raise Refused("its list of segments is not granted") from error
            data = self._pages.copy(mapping, request.nr_segments * SEGMENT_BYTES)
            self._pages.end(mapping)
        segments = parse_segments(data, storage.sector_size)
        if segments is None:
            raise Refused("a segment is not possible")
        return segments

    def _discard(self, ring: BackRing, request: Discard) -> Active:
        """Check a discard. Raises: Refused."""
        self.ds_req += 1
        storage = self._medium(writes=True)
        if not storage.discard_granularity:
            raise Refused("the disk cannot discard", BLKIF_RSP_EOPNOTSUPP)
        length = request.nr_sectors * SECTOR_BYTES
        offset = _checked_offset(storage, request.sector, length)
        secure = request.secure and storage.can_secure_discard
        steps = [Kind.SECURE_DISCARD if secure else Kind.DISCARD] if length else []
        return Active(ring, request.id, request.operation, storage, deque(steps), offset, length)

    def _medium(self, *, writes: bool) -> Storage:
        storage = self._storage
        if storage is None:
            raise Refused("there is no medium")
        if writes and (self._read_only or storage.read_only):
            raise Refused("the disk is read-only")
        return storage

    def _count(self, operation: int) -> None:
        if operation == BLKIF_OP_READ:
            self.rd_req += 1
        elif operation == BLKIF_OP_WRITE:
            self.wr_req += 1
        else:
            self.f_req += 1

    # --- its operations -----------------------------------------------------------------------

    def _step(self, active: Active) -> None:
        """Submit the next operation of a request, or end it if there is none."""
        if not active.steps:
            self._end(active, BLKIF_RSP_OKAY)
            return
        kind = active.steps.popleft()
        done = partial(self._stepped, active, kind)
        if kind is Kind.FLUSH:
            operation = Operation(kind, 0, 0, (), done)
        else:
            buffers = self._pages.buffers(active.extents)
            operation = Operation(kind, active.offset, active.length, buffers, done)
        active.storage.submit(operation)

    def _stepped(self, active: Active, kind: Kind, errno: int) -> None:
        """An operation has ended."""
        if not errno:
            self._step(active)
            return
        self.io_errors += 1
        self._report_once(f"{kind.value}: {os.strerror(errno)}")
        unsupported = errno == EOPNOTSUPP
        self._end(active, BLKIF_RSP_EOPNOTSUPP if unsupported else BLKIF_RSP_ERROR)

    def _end(self, active: Active, status: int) -> None:
        """Answer a request, and let its pages go."""
        if not self._closed:
            active.ring.put(active.id, active.operation, status)
        self._let_go(active)
        self._ask_for_turn()

    def _let_go(self, active: Active) -> None:
        if active.mapping is not None:
            if active.mapping.write:
                self._pages.written(active.mapping)
            self._pages.end(active.mapping)
        if active is self._barrier:
            self._barrier = None
        self._in_flight -= 1
        if self._closed:
            self._pages.close_when_idle(self._in_flight)

    def _report_once(self, line: str) -> None:
        """The lines of a device are few: they contain no number that a guest chooses."""
        if line not in self._reported:
            self._reported.add(line)
            self._report(line)


def _map_rings(
    memory: MachineMemory, grants: GrantTable, rings: Sequence[Sequence[int]], entry_bytes: int
) -> list[BackRing]:
    """All rings or none. Raises: XenError."""
    with contextlib.ExitStack() as undo:
        mapped = []
        for grefs in rings:
            ring = BackRing(memory, grants, grefs, entry_bytes)
            undo.callback(ring.close)
            mapped.append(ring)
        undo.pop_all()
    return mapped


def _checked_offset(storage: Storage, sector: int, length_bytes: int) -> int:
    """Where a request begins, in bytes. Raises: Refused if it is not within the disk."""
    offset = sector * SECTOR_BYTES
    if offset % storage.sector_size or length_bytes % storage.sector_size:
        raise Refused("it is no multiple of the sector size")
    if offset + length_bytes > storage.size:
        raise Refused("it is beyond the end of the disk")
    return offset
