"""The keyboard and pointer protocol: a shared page, and events to the guest.

Source: public/io/kbdif.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, array, s16, s32, u8, u32, union, xen_struct

_HEADERS = ("io/kbdif.h",)
_PUBLIC = "io/kbdif.h"

# Types of events.
XENKBD_TYPE_MOTION = 1
XENKBD_TYPE_RESERVED = 2
XENKBD_TYPE_KEY = 3
XENKBD_TYPE_POS = 4
XENKBD_TYPE_MTOUCH = 5

# xenkbd_mtouch.event_type
XENKBD_MT_EV_DOWN = 0
XENKBD_MT_EV_UP = 1
XENKBD_MT_EV_MOTION = 2
XENKBD_MT_EV_SYN = 3
XENKBD_MT_EV_SHAPE = 4
XENKBD_MT_EV_ORIENT = 5

# The two event rings lie in the shared page.
XENKBD_IN_EVENT_SIZE = 40
XENKBD_OUT_EVENT_SIZE = 40
XENKBD_IN_RING_SIZE = 2048
XENKBD_IN_RING_LEN = 51
XENKBD_IN_RING_OFFS = 1024
XENKBD_OUT_RING_SIZE = 1024
XENKBD_OUT_RING_LEN = 25
XENKBD_OUT_RING_OFFS = XENKBD_IN_RING_OFFS + XENKBD_IN_RING_SIZE


@xen_struct("struct xenkbd_motion", header=_PUBLIC, size=16)
class XenkbdMotion(XenStruct):
    """The pointer moved by this much."""

    type: u8 = 0
    rel_x: s32 = 0
    rel_y: s32 = 0
    rel_z: s32 = 0


@xen_struct("struct xenkbd_key", header=_PUBLIC, size=8)
class XenkbdKey(XenStruct):
    """A key or button; the codes are Linux's."""

    type: u8 = 0
    pressed: u8 = 0
    keycode: u32 = 0


@xen_struct("struct xenkbd_position", header=_PUBLIC, size=16)
class XenkbdPosition(XenStruct):
    """The pointer is here."""

    type: u8 = 0
    abs_x: s32 = 0
    abs_y: s32 = 0
    rel_z: s32 = 0


@xen_struct("struct xenkbd_mtouch.u.pos", header=_PUBLIC, size=8)
class XenkbdMtouchPos(XenStruct):
    """Where a contact is."""

    abs_x: s32 = 0
    abs_y: s32 = 0


@xen_struct("struct xenkbd_mtouch.u.shape", header=_PUBLIC, size=8)
class XenkbdMtouchShape(XenStruct):
    """How large a contact is."""

    major: u32 = 0
    minor: u32 = 0


@xen_struct("struct xenkbd_mtouch", header=_PUBLIC, size=16)
class XenkbdMtouch(XenStruct):
    """An event of a touch screen. u by event_type."""

    type: u8 = 0
    event_type: u8 = 0
    contact_id: u8 = 0
    reserved: Annotated[tuple[int, ...], array(u8, 5)] = ()
    u: Annotated[bytes, union(XenkbdMtouchPos, XenkbdMtouchShape, s16)] = b""


@xen_struct("struct xenkbd_page", header=_PUBLIC, size=16)
class XenkbdPage(XenStruct):
    """The shared page: free-running indices of the two rings."""

    in_cons: u32 = 0
    in_prod: u32 = 0
    out_cons: u32 = 0
    out_prod: u32 = 0
