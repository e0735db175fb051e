"""The network device protocol: transmit, receive and control rings.

A packet takes one slot, then extra slots while their MORE flag is set, then one slot for each
further part. Source: public/io/netif.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, array, char, s16, u8, u16, u32, union, xen_struct

_HEADERS = ("io/netif.h",)
_PUBLIC = "io/netif.h"

# Slots that a back end must accept for one packet.
XEN_NETIF_NR_SLOTS_MIN = 18

# Hashing, by which a front end spreads packets over its queues.
XEN_NETIF_CTRL_HASH_TYPE_IPV4 = 1 << 0
XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP = 1 << 1
XEN_NETIF_CTRL_HASH_TYPE_IPV6 = 1 << 2
XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP = 1 << 3
XEN_NETIF_CTRL_HASH_ALGORITHM_NONE = 0
XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ = 1

# xen_netif_ctrl_request.type
XEN_NETIF_CTRL_TYPE_INVALID = 0
XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS = 1
XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS = 2
XEN_NETIF_CTRL_TYPE_SET_HASH_KEY = 3
XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE = 4
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE = 5
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING = 6
XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM = 7
XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE = 8
XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING = 9
XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING = 10

# xen_netif_ctrl_response.status
XEN_NETIF_CTRL_STATUS_SUCCESS = 0
XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED = 1
XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER = 2
XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW = 3

# xen_netif_gref.flags
XEN_NETIF_CTRLF_GREF_readonly = 1 << 0

# netif_tx_request.flags
NETTXF_csum_blank = 1 << 0
NETTXF_data_validated = 1 << 1
NETTXF_more_data = 1 << 2
NETTXF_extra_info = 1 << 3

XEN_NETIF_MAX_TX_SIZE = 0xFFFF

# netif_extra_info.type
XEN_NETIF_EXTRA_TYPE_NONE = 0
XEN_NETIF_EXTRA_TYPE_GSO = 1
XEN_NETIF_EXTRA_TYPE_MCAST_ADD = 2
XEN_NETIF_EXTRA_TYPE_MCAST_DEL = 3
XEN_NETIF_EXTRA_TYPE_HASH = 4
XEN_NETIF_EXTRA_TYPE_MAX = 5

# netif_extra_info.flags
XEN_NETIF_EXTRA_FLAG_MORE = 1 << 0

# netif_extra_info.u.gso.type
XEN_NETIF_GSO_TYPE_NONE = 0
XEN_NETIF_GSO_TYPE_TCPV4 = 1
XEN_NETIF_GSO_TYPE_TCPV6 = 2

# netif_rx_response.flags
NETRXF_data_validated = 1 << 0
NETRXF_csum_blank = 1 << 1
NETRXF_more_data = 1 << 2
NETRXF_extra_info = 1 << 3
NETRXF_gso_prefix = 1 << 4

# `status` of a response; a receive response has a length where it is positive.
NETIF_RSP_DROPPED = -2
NETIF_RSP_ERROR = -1
NETIF_RSP_OKAY = 0
NETIF_RSP_NULL = 1


@xen_struct("struct xen_netif_ctrl_request", header=_PUBLIC, size=16)
class XenNetifCtrlRequest(XenStruct):
    """A request on the control ring."""

    id: u16 = 0
    type: u16 = 0
    data: Annotated[tuple[int, ...], array(u32, 3)] = ()


@xen_struct("struct xen_netif_ctrl_response", header=_PUBLIC, size=12)
class XenNetifCtrlResponse(XenStruct):
    """Its answer: XEN_NETIF_CTRL_STATUS_*."""

    id: u16 = 0
    type: u16 = 0
    status: u32 = 0
    data: u32 = 0


@xen_struct("struct xen_netif_gref", header=_PUBLIC, size=8)
class XenNetifGref(XenStruct):
    """One entry of a grant mapping request."""

    ref: u32 = 0
    flags: u16 = 0
    status: u16 = 0


@xen_struct("netif_tx_request_t", header=_PUBLIC, size=12)
class NetifTxRequest(XenStruct):
    """Part of a packet to send; in its first slot `size` is that of the whole packet."""

    gref: u32 = 0
    offset: u16 = 0
    flags: u16 = 0
    id: u16 = 0
    size: u16 = 0


@xen_struct("netif_extra_info_t.u.gso", header=_PUBLIC, size=6)
class NetifExtraInfoGso(XenStruct):
    """Segment this packet into pieces of `size` bytes."""

    size: u16 = 0
    type: u8 = 0
    pad: u8 = 0
    features: u16 = 0


@xen_struct("netif_extra_info_t.u.mcast", header=_PUBLIC, size=6)
class NetifExtraInfoMcast(XenStruct):
    """A multicast address to add or remove."""

    addr: Annotated[bytes, char(6)] = b""


@xen_struct("netif_extra_info_t.u.hash", header=_PUBLIC, size=6)
class NetifExtraInfoHash(XenStruct):
    """The hash of a packet."""

    type: u8 = 0
    algorithm: u8 = 0
    value: Annotated[tuple[int, ...], array(u8, 4)] = ()


@xen_struct("netif_extra_info_t", header=_PUBLIC, size=8)
class NetifExtraInfo(XenStruct):
    """An extra slot. u by type: NetifExtraInfoGso, NetifExtraInfoMcast, NetifExtraInfoHash."""

    type: u8 = 0
    flags: u8 = 0
    u: Annotated[
        bytes, union(NetifExtraInfoGso, NetifExtraInfoMcast, NetifExtraInfoHash, array(u16, 3))
    ] = b""


@xen_struct("netif_tx_response_t", header=_PUBLIC, size=4)
class NetifTxResponse(XenStruct):
    """A slot was sent."""

    id: u16 = 0
    status: s16 = 0


@xen_struct("netif_rx_request_t", header=_PUBLIC, size=8)
class NetifRxRequest(XenStruct):
    """A granted page to receive into."""

    id: u16 = 0
    pad: u16 = 0
    gref: u32 = 0


@xen_struct("netif_rx_response_t", header=_PUBLIC, size=8)
class NetifRxResponse(XenStruct):
    """Part of a packet received: `status` bytes at `offset`."""

    id: u16 = 0
    offset: u16 = 0
    flags: u16 = 0
    status: s16 = 0
