"""The console ring.

The guest sends through `out`; indices run freely and wrap at 2**32. Source: public/io/console.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, char, u32, xen_struct

_HEADERS = ("io/console.h",)
_PUBLIC = "io/console.h"


@xen_struct("struct xencons_interface", header=_PUBLIC, size=3088)
class XenconsInterface(XenStruct):
    """The shared page: two byte rings, whose sizes are powers of two."""

    in_: Annotated[bytes, char(1024)] = b""
    out: Annotated[bytes, char(2048)] = b""
    in_cons: u32 = 0
    in_prod: u32 = 0
    out_cons: u32 = 0
    out_prod: u32 = 0
