"""The block device protocol.

Source: public/io/blkif.h. Ring entries are 112 bytes for 64-bit front ends, 108 for 32-bit ones.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, array, s16, u8, u16, u32, u64, xen_struct

_HEADERS = ("io/blkif.h",)
_PUBLIC = "io/blkif.h"

# `operation` of a request.
BLKIF_OP_READ = 0
BLKIF_OP_WRITE = 1
BLKIF_OP_WRITE_BARRIER = 2
BLKIF_OP_FLUSH_DISKCACHE = 3
BLKIF_OP_RESERVED_1 = 4
BLKIF_OP_DISCARD = 5
BLKIF_OP_INDIRECT = 6

# Limits of a request, direct and indirect.
BLKIF_MAX_SEGMENTS_PER_REQUEST = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8

# blkif_request_discard.flag
BLKIF_DISCARD_SECURE = 1 << 0

# blkif_response.status
BLKIF_RSP_EOPNOTSUPP = -2
BLKIF_RSP_ERROR = -1
BLKIF_RSP_OKAY = 0

# Bits of the `info` key.
VDISK_CDROM = 0x1
VDISK_REMOVABLE = 0x2
VDISK_READONLY = 0x4


@xen_struct("struct blkif_request_segment", header=_PUBLIC, size=8)
class BlkifRequestSegment(XenStruct):
    """Sectors `first_sect` to `last_sect`, both included, of a granted page."""

    gref: u32 = 0
    first_sect: u8 = 0
    last_sect: u8 = 0


@xen_struct("blkif_request_t", header=_PUBLIC, size=112)
class BlkifRequest(XenStruct):
    """Read, write, barrier or flush. sector_number: in units of 512 bytes."""

    operation: u8 = 0
    nr_segments: u8 = 0
    handle: u16 = 0
    id: u64 = 0
    sector_number: u64 = 0
    seg: Annotated[tuple[BlkifRequestSegment, ...], array(BlkifRequestSegment, 11)] = ()


@xen_struct("blkif_request_discard_t", header=_PUBLIC, size=32)
class BlkifRequestDiscard(XenStruct):
    """BLKIF_OP_DISCARD."""

    operation: u8 = 0
    flag: u8 = 0
    handle: u16 = 0
    id: u64 = 0
    sector_number: u64 = 0
    nr_sectors: u64 = 0


@xen_struct("blkif_request_indirect_t", header=_PUBLIC, size=64)
class BlkifRequestIndirect(XenStruct):
    """BLKIF_OP_INDIRECT: the segments lie in granted pages, 512 in each."""

    operation: u8 = 0
    indirect_op: u8 = 0
    nr_segments: u16 = 0
    id: u64 = 0
    sector_number: u64 = 0
    handle: u16 = 0
    indirect_grefs: Annotated[tuple[int, ...], array(u32, 8)] = ()


@xen_struct("blkif_response_t", header=_PUBLIC, size=16)
class BlkifResponse(XenStruct):
    """The answer to any request; `id` is copied from it."""

    id: u64 = 0
    operation: u8 = 0
    status: s16 = 0


# The same as a 32-bit front end lays it out (protocol "x86_32-abi"): u64 is aligned to 4 bytes.


@xen_struct("struct blkif_x86_32_request", header="", size=108, max_align=4)
class BlkifX8632Request(XenStruct):
    """BlkifRequest of a 32-bit front end."""

    operation: u8 = 0
    nr_segments: u8 = 0
    handle: u16 = 0
    id: u64 = 0
    sector_number: u64 = 0
    seg: Annotated[tuple[BlkifRequestSegment, ...], array(BlkifRequestSegment, 11)] = ()


@xen_struct("struct blkif_x86_32_request_discard", header="", size=28, max_align=4)
class BlkifX8632RequestDiscard(XenStruct):
    """BlkifRequestDiscard of a 32-bit front end."""

    operation: u8 = 0
    flag: u8 = 0
    handle: u16 = 0
    id: u64 = 0
    sector_number: u64 = 0
    nr_sectors: u64 = 0


@xen_struct("struct blkif_x86_32_request_indirect", header="", size=56, max_align=4)
class BlkifX8632RequestIndirect(XenStruct):
    """BlkifRequestIndirect of a 32-bit front end."""

    operation: u8 = 0
    indirect_op: u8 = 0
    nr_segments: u16 = 0
    id: u64 = 0
    sector_number: u64 = 0
    handle: u16 = 0
    indirect_grefs: Annotated[tuple[int, ...], array(u32, 8)] = ()


@xen_struct("struct blkif_x86_32_response", header="", size=12, max_align=4)
class BlkifX8632Response(XenStruct):
    """BlkifResponse of a 32-bit front end."""

    id: u64 = 0
    operation: u8 = 0
    status: s16 = 0
