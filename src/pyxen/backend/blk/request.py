"""What a front end asks for: a copy of a ring entry, parsed once into a typed request.

Source: public/io/blkif.h. Three layouts of an entry exist, one for each value of the `protocol`
key; they differ in the alignment of 64-bit fields. Parsing looks at the entry alone; whether the
storage can do it is the device's question.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final, TypeAlias

from pyxen.abi.io.blkif import (
    BLKIF_DISCARD_SECURE,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BlkifRequest,
    BlkifRequestDiscard,
    BlkifRequestIndirect,
    BlkifRequestSegment,
    BlkifX8632Request,
    BlkifX8632RequestDiscard,
    BlkifX8632RequestIndirect,
)
from pyxen.types import PAGE_SIZE

SECTOR_BYTES: Final = 512
"""The unit of all sector numbers, whatever the sector size of the disk is."""
SECTORS_PER_PAGE: Final = PAGE_SIZE // SECTOR_BYTES
SEGMENT_BYTES: Final = BlkifRequestSegment.SIZE
SEGMENTS_PER_PAGE: Final = PAGE_SIZE // SEGMENT_BYTES
MAX_INDIRECT_SEGMENTS: Final = 256
"""What the back end says in feature-max-indirect-segments; they lie in one page."""

_SEGMENT = Struct("<IBBxx")
_LAST_SECTOR: Final = SECTORS_PER_PAGE - 1


@dataclass(frozen=True, slots=True)
class Abi:
    """Where the fields of an entry lie.

    header: operation, a byte, 16 bits, id, sector_number; of every request. discard: nr_sectors.
    indirect: indirect_grefs.
    """

    entry_bytes: int
    header: Struct
    segments_at: int
    nr_sectors: Struct
    nr_sectors_at: int
    indirect_grefs: Struct
    indirect_grefs_at: int


def _abi(
    header: str,
    plain: type[BlkifRequest | BlkifX8632Request],
    discard: type[BlkifRequestDiscard | BlkifX8632RequestDiscard],
    indirect: type[BlkifRequestIndirect | BlkifX8632RequestIndirect],
) -> Abi:
    return Abi(
        entry_bytes=plain.SIZE,
        header=Struct(header),
        segments_at=plain.OFFSET["seg"],
        nr_sectors=Struct("<Q"),
        nr_sectors_at=discard.OFFSET["nr_sectors"],
        indirect_grefs=Struct("<8I"),
        indirect_grefs_at=indirect.OFFSET["indirect_grefs"],
    )


_X86_64 = _abi("<BBHxxxxQQ", BlkifRequest, BlkifRequestDiscard, BlkifRequestIndirect)
_X86_32 = _abi("<BBHQQ", BlkifX8632Request, BlkifX8632RequestDiscard, BlkifX8632RequestIndirect)

ABIS: Final = {"native": _X86_64, "x86_64-abi": _X86_64, "x86_32-abi": _X86_32}
"""By the front end's `protocol` key. A guest that does not set it has the host's own layout."""


@dataclass(slots=True)
class Transfer:
    """Read, write, barrier or flush.

    operation: BLKIF_OP_*, never BLKIF_OP_INDIRECT: what the answer repeats. sector: in 512 bytes.
    segments: nr_segments times SEGMENT_BYTES, or empty if they are in the granted pages
    indirect_grefs.
    """

    id: int
    operation: int
    sector: int
    nr_segments: int
    segments: bytes
    indirect_grefs: tuple[int, ...] = ()


@dataclass(slots=True)
class Discard:
    """Sectors whose contents are not needed any more; in units of 512 bytes."""

    id: int
    operation: int
    sector: int
    nr_sectors: int
    secure: bool


@dataclass(slots=True)
class Malformed:
    """No request that can be carried out: `status` is the answer, `why` does not vary."""

    id: int
    operation: int
    status: int
    why: str


Request: TypeAlias = Transfer | Discard | Malformed

_DIRECT: Final = {
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_OP_FLUSH_DISKCACHE,
}
_INDIRECT: Final = {BLKIF_OP_READ, BLKIF_OP_WRITE}
_MAY_BE_EMPTY: Final = {BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE}


def parse(entry: bytes, abi: Abi) -> Request:
    """The request in a copy of a ring entry (abi.entry_bytes long)."""
    operation, byte, half, id_, sector = abi.header.unpack_from(entry)
    if operation in _DIRECT:
        if byte > BLKIF_MAX_SEGMENTS_PER_REQUEST or (not byte and operation not in _MAY_BE_EMPTY):
            return Malformed(id_, operation, BLKIF_RSP_ERROR, "number of segments")
        at = abi.segments_at
        return Transfer(id_, operation, sector, byte, entry[at : at + byte * SEGMENT_BYTES])
    if operation == BLKIF_OP_INDIRECT:
        if byte not in _INDIRECT:
            return Malformed(id_, byte, BLKIF_RSP_ERROR, "indirect operation")
        if not 0 < half <= MAX_INDIRECT_SEGMENTS:
            return Malformed(id_, byte, BLKIF_RSP_ERROR, "number of indirect segments")
        pages = -(-half // SEGMENTS_PER_PAGE)
        grefs = abi.indirect_grefs.unpack_from(entry, abi.indirect_grefs_at)[:pages]
        return Transfer(id_, byte, sector, half, b"", grefs)
    if operation == BLKIF_OP_DISCARD:
        (count,) = abi.nr_sectors.unpack_from(entry, abi.nr_sectors_at)
        return Discard(id_, operation, sector, count, bool(byte & BLKIF_DISCARD_SECURE))
    return Malformed(id_, operation, BLKIF_RSP_EOPNOTSUPP, "operation")


@dataclass(slots=True)
class Segments:
    """The memory of a transfer.

    grefs: a granted page for each segment. spans: first byte and end in each; None: whole pages.
    """

    grefs: list[int]
    spans: list[tuple[int, int]] | None
    length_bytes: int


def parse_segments(data: bytes, sector_bytes: int) -> Segments | None:
    """The segments in a copy of their array; None if one is not possible.

    That is: it ends before it begins or outside of its page, or is no multiple of the sector size.
    """
    count = len(data) // SEGMENT_BYTES
    if data[4::SEGMENT_BYTES] == bytes(count) and data[5::SEGMENT_BYTES] == b"\7" * count:
        grefs = memoryview(data).cast("I")[::2].tolist()
        return Segments(grefs, None, count * PAGE_SIZE)
    grefs, spans, length = [], [], 0
    for gref, first, last in _SEGMENT.iter_unpack(data):
        nbytes = (last + 1 - first) * SECTOR_BYTES
        if not first <= last <= _LAST_SECTOR or nbytes % sector_bytes:
            return None
        grefs.append(gref)
        spans.append((first * SECTOR_BYTES, first * SECTOR_BYTES + nbytes))
        length += nbytes
    return Segments(grefs, spans, length)
