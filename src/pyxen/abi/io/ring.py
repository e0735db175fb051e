"""The head of a shared ring, as every split driver with fixed-size slots lays it out.

Indices run freely and wrap at 2**32. The slots begin at Sring.SIZE; their number is the largest
power of two that fits the rest of the shared pages. Source: public/io/ring.h.
"""

from typing import Annotated

from pyxen.abi._struct import CPath, XenStruct, char, u32, xen_struct

_HEADERS = ("io/ring.h",)


@xen_struct("blkif_sring_t", header="io/blkif.h", size=64, until="ring")
class Sring(XenStruct):
    """The first 64 bytes of a ring.

    req_prod is the front end's, rsp_prod the back end's. Each side notifies the other only when
    it moves its index past the event index that the other one has left.
    """

    req_prod: u32 = 0
    req_event: u32 = 0
    rsp_prod: u32 = 0
    rsp_event: u32 = 0
    pvt: Annotated[bytes, char(4)] = b""
    pad: Annotated[bytes, char(44), CPath("__pad")] = b""
