"""Grant tables: entries of versions 1 and 2, and the arguments of HYPERVISOR_grant_table_op.

Source: public/grant_table.h.
"""

from typing import Annotated

from pyxen.abi._struct import CPath, XenStruct, ptr, s16, u16, u32, u64, union, xen_struct

_HEADERS = ("grant_table.h",)
_PUBLIC = "grant_table.h"


# Entries that the tool stack fills in.
GNTTAB_NR_RESERVED_ENTRIES = 8
GNTTAB_RESERVED_CONSOLE = 0
GNTTAB_RESERVED_XENSTORE = 1

# `flags` of an entry: its type,
GTF_invalid = 0 << 0
GTF_permit_access = 1 << 0
GTF_accept_transfer = 2 << 0
GTF_transitive = 3 << 0
GTF_type_mask = 3 << 0

# of an access grant,
GTF_readonly = 1 << 2
GTF_reading = 1 << 3
GTF_writing = 1 << 4
GTF_PWT = 1 << 5
GTF_PCD = 1 << 6
GTF_PAT = 1 << 7

# of version 2,
GTF_sub_page = 1 << 8

# and of a transfer.
GTF_transfer_committed = 1 << 2
GTF_transfer_completed = 1 << 3

# Commands of HYPERVISOR_grant_table_op.
GNTTABOP_map_grant_ref = 0
GNTTABOP_unmap_grant_ref = 1
GNTTABOP_setup_table = 2
GNTTABOP_dump_table = 3
GNTTABOP_transfer = 4
GNTTABOP_copy = 5
GNTTABOP_query_size = 6
GNTTABOP_unmap_and_replace = 7
GNTTABOP_set_version = 8
GNTTABOP_get_status_frames = 9
GNTTABOP_get_version = 10
GNTTABOP_swap_grant_ref = 11
GNTTABOP_cache_flush = 12

# gnttab_copy.flags
GNTCOPY_source_gref = 1 << 0
GNTCOPY_dest_gref = 1 << 1

# gnttab_cache_flush.op
GNTTAB_CACHE_CLEAN = 1 << 0
GNTTAB_CACHE_INVAL = 1 << 1
GNTTAB_CACHE_SOURCE_GREF = 1 << 31

# gnttab_map_grant_ref.flags
GNTMAP_device_map = 1 << 0
GNTMAP_host_map = 1 << 1
GNTMAP_readonly = 1 << 2
GNTMAP_application_map = 1 << 3
GNTMAP_contains_pte = 1 << 4
GNTMAP_guest_avail_mask = 0xFFFF0000

# `status` of every operation.
GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
GNTST_bad_gntref = -3
GNTST_bad_handle = -4
GNTST_bad_virt_addr = -5
GNTST_bad_dev_addr = -6
GNTST_no_device_space = -7
GNTST_permission_denied = -8
GNTST_bad_page = -9
GNTST_bad_copy_arg = -10
GNTST_address_too_big = -11
GNTST_eagain = -12
GNTST_no_space = -13


@xen_struct("grant_entry_v1_t", header=_PUBLIC, size=8)
class GrantEntryV1(XenStruct):
    """`domid` may use `frame` as `flags` say."""

    flags: u16 = 0
    domid: u16 = 0
    frame: u32 = 0


@xen_struct("grant_entry_header_t", header=_PUBLIC, size=4)
class GrantEntryHeader(XenStruct):
    """First part of every entry of version 2."""

    flags: u16 = 0
    domid: u16 = 0


@xen_struct("gnttab_map_grant_ref_t", header=_PUBLIC, size=32)
class GnttabMapGrantRef(XenStruct):
    """Map a page that `dom` granted.

    host_addr: virtual address, or with GNTMAP_contains_pte machine address of the entry.
    Out: status, handle, dev_bus_addr.
    """

    host_addr: u64 = 0
    flags: u32 = 0
    ref: u32 = 0
    dom: u16 = 0
    status: s16 = 0
    handle: u32 = 0
    dev_bus_addr: u64 = 0


@xen_struct("gnttab_unmap_grant_ref_t", header=_PUBLIC, size=24)
class GnttabUnmapGrantRef(XenStruct):
    """Undo a mapping. Out: status."""

    host_addr: u64 = 0
    dev_bus_addr: u64 = 0
    handle: u32 = 0
    status: s16 = 0


@xen_struct("gnttab_setup_table_t", header=_PUBLIC, size=24)
class GnttabSetupTable(XenStruct):
    """Make a table of `nr_frames` pages; their frame numbers go to an array of u64. Out: status."""

    dom: u16 = 0
    nr_frames: u32 = 0
    status: s16 = 0
    frame_list: ptr = 0


@xen_struct("gnttab_dump_table_t", header=_PUBLIC, size=4)
class GnttabDumpTable(XenStruct):
    """Print a domain's table on Xen's console."""

    dom: u16 = 0
    status: s16 = 0


@xen_struct("gnttab_transfer_t", header=_PUBLIC, size=24)
class GnttabTransfer(XenStruct):
    """Give a page away for a transfer grant."""

    mfn: u64 = 0
    domid: u16 = 0
    ref: u32 = 0
    status: s16 = 0


@xen_struct("struct gnttab_copy_ptr", header=_PUBLIC, size=16)
class GnttabCopyPtr(XenStruct):
    """One end of a copy. u: a frame number; a grant reference (its low 32 bits) as flags say."""

    u: Annotated[u64, CPath("u.gmfn")] = 0
    domid: u16 = 0
    offset: u16 = 0


@xen_struct("gnttab_copy_t", header=_PUBLIC, size=40)
class GnttabCopy(XenStruct):
    """Copy `len` bytes within one page each. Out: status."""

    source: GnttabCopyPtr = GnttabCopyPtr()
    dest: GnttabCopyPtr = GnttabCopyPtr()
    len: u16 = 0
    flags: u16 = 0
    status: s16 = 0


@xen_struct("gnttab_query_size_t", header=_PUBLIC, size=16)
class GnttabQuerySize(XenStruct):
    """Out: nr_frames, max_nr_frames, status."""

    dom: u16 = 0
    nr_frames: u32 = 0
    max_nr_frames: u32 = 0
    status: s16 = 0


@xen_struct("gnttab_unmap_and_replace_t", header=_PUBLIC, size=24)
class GnttabUnmapAndReplace(XenStruct):
    """Undo a mapping, and put the page mapped at new_addr there."""

    host_addr: u64 = 0
    new_addr: u64 = 0
    handle: u32 = 0
    status: s16 = 0


@xen_struct("gnttab_set_version_t", header=_PUBLIC, size=4)
class GnttabSetVersion(XenStruct):
    """1 or 2. Out: the version in use."""

    version: u32 = 0


@xen_struct("gnttab_get_status_frames_t", header=_PUBLIC, size=16)
class GnttabGetStatusFrames(XenStruct):
    """Frame numbers of the status array (version 2) to an array of u64."""

    nr_frames: u32 = 0
    dom: u16 = 0
    status: s16 = 0
    frame_list: ptr = 0


@xen_struct("gnttab_get_version_t", header=_PUBLIC, size=8)
class GnttabGetVersion(XenStruct):
    """Out: version."""

    dom: u16 = 0
    pad: u16 = 0
    version: u32 = 0


@xen_struct("gnttab_swap_grant_ref_t", header=_PUBLIC, size=12)
class GnttabSwapGrantRef(XenStruct):
    """Exchange two entries. Out: status."""

    ref_a: u32 = 0
    ref_b: u32 = 0
    status: s16 = 0


@xen_struct("gnttab_cache_flush_t", header=_PUBLIC, size=16)
class GnttabCacheFlush(XenStruct):
    """Cache maintenance on a granted page. a: bus address (u64) or grant reference (u32)."""

    a: Annotated[bytes, union(u64, u32)] = b""
    offset: u16 = 0
    length: u16 = 0
    op: u32 = 0


@xen_struct("grant_entry_v2_t.full_page", header=_PUBLIC, size=16)
class GrantEntryV2FullPage(XenStruct):
    """A version 2 entry for a whole page. An entry of any kind takes 16 bytes."""

    hdr: GrantEntryHeader = GrantEntryHeader()
    pad0: u32 = 0
    frame: u64 = 0


@xen_struct("grant_entry_v2_t.sub_page", header=_PUBLIC, size=16)
class GrantEntryV2SubPage(XenStruct):
    """A version 2 entry with GTF_sub_page: `length` bytes at `page_off`, for copies only."""

    hdr: GrantEntryHeader = GrantEntryHeader()
    page_off: u16 = 0
    length: u16 = 0
    frame: u64 = 0


@xen_struct("grant_entry_v2_t.transitive", header=_PUBLIC, size=12)
class GrantEntryV2Transitive(XenStruct):
    """A version 2 entry of type GTF_transitive: pass on what `trans_domid` granted as `gref`."""

    hdr: GrantEntryHeader = GrantEntryHeader()
    trans_domid: u16 = 0
    pad0: u16 = 0
    gref: u32 = 0
