"""The xenstore protocol.

Source: public/io/xs_wire.h and docs/misc/xenstore.txt.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, char, u32, xen_struct

_HEADERS = ("io/xs_wire.h",)
_PUBLIC = "io/xs_wire.h"

# xsd_sockmsg.type
XS_CONTROL = 0
XS_DEBUG = XS_CONTROL
XS_DIRECTORY = 1
XS_READ = 2
XS_GET_PERMS = 3
XS_WATCH = 4
XS_UNWATCH = 5
XS_TRANSACTION_START = 6
XS_TRANSACTION_END = 7
XS_INTRODUCE = 8
XS_RELEASE = 9
XS_GET_DOMAIN_PATH = 10
XS_WRITE = 11
XS_MKDIR = 12
XS_RM = 13
XS_SET_PERMS = 14
XS_WATCH_EVENT = 15
XS_ERROR = 16
XS_IS_DOMAIN_INTRODUCED = 17
XS_RESUME = 18
XS_SET_TARGET = 19
XS_RESET_WATCHES = 21
XS_DIRECTORY_PART = 22
XS_TYPE_COUNT = 23
XS_INVALID = 65535

# Flags of an old form of XS_WRITE.
XS_WRITE_NONE = "NONE"
XS_WRITE_CREATE = "CREATE"
XS_WRITE_CREATE_EXCL = "CREATE|EXCL"

# The strings of an XS_WATCH_EVENT, by index.
XS_WATCH_PATH = 0
XS_WATCH_TOKEN = 1

# Limits, in bytes.
XENSTORE_RING_SIZE = 1024
XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048

# xenstore_domain_interface.server_features
XENSTORE_SERVER_FEATURE_RECONNECTION = 1
XENSTORE_SERVER_FEATURE_ERROR = 2

# xenstore_domain_interface.connection
XENSTORE_CONNECTED = 0
XENSTORE_RECONNECT = 1

# xenstore_domain_interface.error
XENSTORE_ERROR_NONE = 0
XENSTORE_ERROR_COMM = 1
XENSTORE_ERROR_RINGIDX = 2
XENSTORE_ERROR_PROTO = 3

XSD_ERRORS = (
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
)
"""The text of an XS_ERROR is one of these names."""


@xen_struct("struct xsd_sockmsg", header=_PUBLIC, size=16)
class XsdSockmsg(XenStruct):
    """Header of every message; `len` bytes follow."""

    type: u32 = 0
    req_id: u32 = 0
    tx_id: u32 = 0
    len: u32 = 0


@xen_struct("struct xenstore_domain_interface", header=_PUBLIC, size=2076)
class XenstoreDomainInterface(XenStruct):
    """The shared page: a byte ring each way, indices run freely and wrap at 2**32."""

    req: Annotated[bytes, char(1024)] = b""
    rsp: Annotated[bytes, char(1024)] = b""
    req_cons: u32 = 0
    req_prod: u32 = 0
    rsp_cons: u32 = 0
    rsp_prod: u32 = 0
    server_features: u32 = 0
    connection: u32 = 0
    error: u32 = 0
