"""Kexec: the arguments of HYPERVISOR_kexec_op (Dom0 only).

Source: public/kexec.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, array, ptr, s32, u8, u16, u32, u64, xen_struct

_HEADERS = ("kexec.h",)
_PUBLIC = "kexec.h"

KEXEC_XEN_NO_PAGES = 17

# `type` of an image.
KEXEC_TYPE_DEFAULT = 0
KEXEC_TYPE_CRASH = 1

# Commands of HYPERVISOR_kexec_op.
KEXEC_CMD_kexec = 0
KEXEC_CMD_kexec_load_v1 = 1
KEXEC_CMD_kexec_unload_v1 = 2
KEXEC_CMD_kexec_get_range = 3
KEXEC_CMD_kexec_load = 4
KEXEC_CMD_kexec_unload = 5
KEXEC_CMD_kexec_status = 6

# xen_kexec_range.range
KEXEC_RANGE_MA_CRASH = 0
KEXEC_RANGE_MA_XEN = 1
KEXEC_RANGE_MA_CPU = 2
KEXEC_RANGE_MA_XENHEAP = 3
KEXEC_RANGE_MA_BOOT_PARAM = 4
KEXEC_RANGE_MA_EFI_MEMMAP = 5
KEXEC_RANGE_MA_VMCOREINFO = 6


@xen_struct("xen_kexec_image_t", header=_PUBLIC, size=152)
class XenKexecImage(XenStruct):
    """An image of the first version of this interface."""

    page_list: Annotated[tuple[int, ...], array(u64, 17)] = ()
    indirection_page: u64 = 0
    start_address: u64 = 0


@xen_struct("xen_kexec_exec_t", header=_PUBLIC, size=4)
class XenKexecExec(XenStruct):
    """Start the image of this type."""

    type: s32 = 0


@xen_struct("xen_kexec_load_v1_t", header=_PUBLIC, size=160)
class XenKexecLoadV1(XenStruct):
    """Load an image of the first version of this interface."""

    type: s32 = 0
    image: XenKexecImage = XenKexecImage()


@xen_struct("xen_kexec_range_t", header=_PUBLIC, size=24)
class XenKexecRange(XenStruct):
    """Ask for a range of machine memory."""

    range: s32 = 0
    nr: s32 = 0
    size: u64 = 0
    start: u64 = 0


@xen_struct("xen_kexec_segment_t", header=_PUBLIC, size=32)
class XenKexecSegment(XenStruct):
    """One segment of an image."""

    buf: ptr = 0
    buf_size: u64 = 0
    dest_maddr: u64 = 0
    dest_size: u64 = 0


@xen_struct("xen_kexec_load_t", header=_PUBLIC, size=24)
class XenKexecLoad(XenStruct):
    """Load an image."""

    type: u8 = 0
    _pad: u8 = 0
    arch: u16 = 0
    nr_segments: u32 = 0
    segments: ptr = 0
    entry_maddr: u64 = 0


@xen_struct("xen_kexec_unload_t", header=_PUBLIC, size=1)
class XenKexecUnload(XenStruct):
    """Unload the image of this type."""

    type: u8 = 0


@xen_struct("xen_kexec_status_t", header=_PUBLIC, size=1)
class XenKexecStatus(XenStruct):
    """Whether an image of this type is loaded."""

    type: u8 = 0
