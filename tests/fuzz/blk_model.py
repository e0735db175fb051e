"""What the block back end must answer: public/io/blkif.h, written down a second time.

It reads entries with the declarations of abi/, where the back end has its own offsets, and looks
at one request at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyxen.abi.grant_table import GTF_permit_access, GTF_readonly
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
    BlkifRequest,
    BlkifRequestDiscard,
    BlkifRequestIndirect,
    BlkifRequestSegment,
    BlkifX8632Request,
    BlkifX8632RequestDiscard,
    BlkifX8632RequestIndirect,
)
from pyxen.hypervisor.domain import Domain
from pyxen.memory.frames import FrameType
from pyxen.types import PAGE_SIZE

FEW_USES = 100
"""Beyond that a page may be in use too often."""


@dataclass(slots=True)
class Expected:
    """What a request should come to. parts: (maddr, bytes) of its data, if it has any."""

    id: int
    operation: int
    status: int
    offset: int = 0
    length: int = 0
    parts: list[tuple[int, int]] | None = None
    uses: tuple[int, ...] = ()
    is_indirect: bool = False


class Model:
    """The rules for one device."""

    def __init__(
        self, d: Domain, size: int, sector_size: int, *, is_32: bool, read_only: bool
    ) -> None:
        self.d = d
        self.size = size
        self.sector_size = sector_size
        self.is_32 = is_32
        self.read_only = read_only
        self.kept: dict[int, int] = {}
        """What the device goes on using, whatever became of its grant."""

    def frame(self, gref: int, *, write: bool) -> int | None:
        """The frame that the back end may use for a reference."""
        if gref in self.kept:
            return self.kept[gref]
        grants = self.d.grants
        if gref >= grants.entries.count:
            return None
        entry = grants.entries.read(gref)
        if entry.flags & 3 != GTF_permit_access or entry.domid or entry.flags & 0x100:
            return None
        if not self.d.frames.is_domains(entry.frame):
            return None
        if write:
            kind = self.d.frames.type(entry.frame)
            if entry.flags & GTF_readonly or kind not in (FrameType.NONE, FrameType.WRITABLE):
                return None
        return entry.frame

    def expect(self, entry: bytes) -> Expected:
        """The answer to one request."""
        operation = entry[0]
        if operation == BLKIF_OP_DISCARD:
            return self._discard(entry)
        if operation == BLKIF_OP_INDIRECT:
            return self._indirect(entry)
        request = (BlkifX8632Request if self.is_32 else BlkifRequest).unpack(entry)
        known = (BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE)
        if operation not in known:
            return Expected(request.id, operation, BLKIF_RSP_EOPNOTSUPP)
        if request.nr_segments > 11:
            return Expected(request.id, operation, BLKIF_RSP_ERROR)
        segments = request.seg[: request.nr_segments]
        if not segments:
            flushes = operation in (BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE)
            status = BLKIF_RSP_OKAY if flushes else BLKIF_RSP_ERROR
            return Expected(request.id, operation, status)
        return self._transfer(request.id, operation, request.sector_number, segments)

    def _discard(self, entry: bytes) -> Expected:
        kind = BlkifX8632RequestDiscard if self.is_32 else BlkifRequestDiscard
        request = kind.unpack(entry[: kind.SIZE])
        offset, length = request.sector_number * 512, request.nr_sectors * 512
        fine = not self.read_only and self._fits(offset, length)
        status = BLKIF_RSP_OKAY if fine else BLKIF_RSP_ERROR
        return Expected(request.id, BLKIF_OP_DISCARD, status, offset, length)

    def _indirect(self, entry: bytes) -> Expected:
        kind = BlkifX8632RequestIndirect if self.is_32 else BlkifRequestIndirect
        request = kind.unpack(entry[: kind.SIZE])
        operation, count = request.indirect_op, request.nr_segments
        refused = Expected(request.id, operation, BLKIF_RSP_ERROR, is_indirect=True)
        if operation not in (BLKIF_OP_READ, BLKIF_OP_WRITE) or not 1 <= count <= 256:
            return refused
        frame = self.frame(request.indirect_grefs[0], write=False)
        if frame is None:
            return refused
        data = self.d.memory.read(frame * PAGE_SIZE, count * 8)
        segments = tuple(
            BlkifRequestSegment.unpack(data[n : n + 8]) for n in range(0, len(data), 8)
        )
        expected = self._transfer(request.id, operation, request.sector_number, segments)
        expected.uses += (request.indirect_grefs[0],)
        expected.is_indirect = True
        return expected

    def _transfer(
        self, id_: int, operation: int, sector: int, segments: tuple[BlkifRequestSegment, ...]
    ) -> Expected:
        grefs = tuple(s.gref for s in segments)
        refused = Expected(id_, operation, BLKIF_RSP_ERROR, uses=grefs)
        if operation != BLKIF_OP_READ and self.read_only:
            return refused
        parts = []
        for s in segments:
            frame = self.frame(s.gref, write=operation == BLKIF_OP_READ)
            nbytes = (s.last_sect - s.first_sect + 1) * 512
            if s.first_sect > s.last_sect or s.last_sect > 7 or nbytes % self.sector_size:
                return refused
            if frame is None:
                return refused
            parts.append((frame * PAGE_SIZE + s.first_sect * 512, nbytes))
        length = sum(nbytes for _, nbytes in parts)
        if not self._fits(sector * 512, length):
            return refused
        return Expected(id_, operation, BLKIF_RSP_OKAY, sector * 512, length, parts, grefs)

    def _fits(self, offset: int, length: int) -> bool:
        return (
            offset % self.sector_size == 0
            and length % self.sector_size == 0
            and offset + length <= self.size
        )
