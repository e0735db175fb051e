"""Argo, messages between domains: the arguments of HYPERVISOR_argo_op.

Source: public/argo.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, char, ptr, u16, u32, xen_struct

_HEADERS = ("argo.h",)
_PUBLIC = "argo.h"

XEN_ARGO_DOMID_ANY = 32756
XEN_ARGO_MAX_RING_SIZE = 0x1000000
XEN_ARGO_MAXIOV = 8
XEN_ARGO_MSG_SLOT_SIZE = 0x10

# xen_argo_ring_data_ent.flags
XEN_ARGO_RING_EXISTS = 1 << 0
XEN_ARGO_RING_SHARED = 1 << 1
XEN_ARGO_RING_EMPTY = 1 << 2
XEN_ARGO_RING_SUFFICIENT = 1 << 3
XEN_ARGO_RING_EMSGSIZE = 1 << 4
XEN_ARGO_RING_EBUSY = 1 << 5

# Commands of HYPERVISOR_argo_op.
XEN_ARGO_OP_register_ring = 1
XEN_ARGO_OP_unregister_ring = 2
XEN_ARGO_OP_sendv = 3
XEN_ARGO_OP_notify = 4
XEN_ARGO_REGISTER_FLAG_FAIL_EXIST = 0x1


@xen_struct("xen_argo_iov_t", header=_PUBLIC, size=16)
class XenArgoIov(XenStruct):
    """One part of a message."""

    iov_hnd: ptr = 0
    iov_len: u32 = 0
    pad: u32 = 0


@xen_struct("xen_argo_addr_t", header=_PUBLIC, size=8)
class XenArgoAddr(XenStruct):
    """A port of a domain."""

    aport: u32 = 0
    domain_id: u16 = 0
    pad: u16 = 0


@xen_struct("xen_argo_send_addr_t", header=_PUBLIC, size=16)
class XenArgoSendAddr(XenStruct):
    """From and to."""

    src: XenArgoAddr = XenArgoAddr()
    dst: XenArgoAddr = XenArgoAddr()


@xen_struct("xen_argo_ring_t", header=_PUBLIC, size=64)
class XenArgoRing(XenStruct):
    """Head of a ring; the messages follow."""

    rx_ptr: u32 = 0
    tx_ptr: u32 = 0
    reserved: Annotated[bytes, char(56)] = b""


@xen_struct("xen_argo_register_ring_t", header=_PUBLIC, size=12)
class XenArgoRegisterRing(XenStruct):
    """A ring to receive messages from one domain, or from any."""

    aport: u32 = 0
    partner_id: u16 = 0
    pad: u16 = 0
    len: u32 = 0


@xen_struct("xen_argo_unregister_ring_t", header=_PUBLIC, size=8)
class XenArgoUnregisterRing(XenStruct):
    """The ring to give back."""

    aport: u32 = 0
    partner_id: u16 = 0
    pad: u16 = 0


@xen_struct("xen_argo_ring_data_ent_t", header=_PUBLIC, size=20)
class XenArgoRingDataEnt(XenStruct):
    """Ask whether a ring has room; out: flags, max_message_size."""

    ring: XenArgoAddr = XenArgoAddr()
    flags: u16 = 0
    pad: u16 = 0
    space_required: u32 = 0
    max_message_size: u32 = 0


@xen_struct("xen_argo_ring_data_t", header=_PUBLIC, size=8)
class XenArgoRingData(XenStruct):
    """Header of an array of XenArgoRingDataEnt."""

    nent: u32 = 0
    pad: u32 = 0


@xen_struct("struct xen_argo_ring_message_header", header=_PUBLIC, size=16)
class XenArgoRingMessageHeader(XenStruct):
    """Stands before each message in a ring."""

    len: u32 = 0
    source: XenArgoAddr = XenArgoAddr()
    message_type: u32 = 0
