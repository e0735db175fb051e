"""The framebuffer protocol: a shared page, and events in both directions.

Source: public/io/fbif.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, array, s32, u8, u32, u64, xen_struct

_HEADERS = ("io/fbif.h",)
_PUBLIC = "io/fbif.h"

# Events from the guest.
XENFB_TYPE_UPDATE = 2
XENFB_TYPE_RESIZE = 3
XENFB_OUT_EVENT_SIZE = 40

# Events to the guest.
XENFB_TYPE_REFRESH_PERIOD = 1
XENFB_NO_REFRESH = 0
XENFB_IN_EVENT_SIZE = 40

# The two event rings lie in the shared page.
XENFB_IN_RING_SIZE = 1024
XENFB_IN_RING_LEN = 25
XENFB_IN_RING_OFFS = 1024
XENFB_OUT_RING_SIZE = 2048
XENFB_OUT_RING_LEN = 51
XENFB_OUT_RING_OFFS = XENFB_IN_RING_OFFS + XENFB_IN_RING_SIZE


@xen_struct("struct xenfb_update", header=_PUBLIC, size=20)
class XenfbUpdate(XenStruct):
    """Pixels of this rectangle changed."""

    type: u8 = 0
    x: s32 = 0
    y: s32 = 0
    width: s32 = 0
    height: s32 = 0


@xen_struct("struct xenfb_resize", header=_PUBLIC, size=24)
class XenfbResize(XenStruct):
    """The framebuffer has a new form."""

    type: u8 = 0
    width: s32 = 0
    height: s32 = 0
    stride: s32 = 0
    depth: s32 = 0
    offset: s32 = 0


@xen_struct("struct xenfb_refresh_period", header=_PUBLIC, size=8)
class XenfbRefreshPeriod(XenStruct):
    """How often (ms) updates are useful; XENFB_NO_REFRESH: never."""

    type: u8 = 0
    period: u32 = 0


@xen_struct("struct xenfb_page", header=_PUBLIC, size=2088)
class XenfbPage(XenStruct):
    """The shared page; `pd` are the frames of the page directory of the framebuffer."""

    in_cons: u32 = 0
    in_prod: u32 = 0
    out_cons: u32 = 0
    out_prod: u32 = 0
    width: s32 = 0
    height: s32 = 0
    line_length: u32 = 0
    mem_length: u32 = 0
    depth: u8 = 0
    pd: Annotated[tuple[int, ...], array(u64, 256)] = ()
