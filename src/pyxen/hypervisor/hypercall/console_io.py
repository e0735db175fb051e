"""HYPERVISOR_console_io: the hypervisor's own console. Source: public/xen.h.

As in a release build of Xen it is refused to a DomU, so that Linux's early console uses the
domain's own. What the guest wanted to say is kept for the crash report: it may be its last words.
"""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.xen import CONSOLEIO_write
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import U32

MAX_BYTES = 1024


def console_io(d: Domain, v: Vcpu, command: int, count: int, buffer: int) -> int:
    """Always refused with EPERM: Xen asks who calls before it looks at the command."""
    if command & U32 == CONSOLEIO_write:
        words = d.space.try_read(buffer, min(count & U32, MAX_BYTES)) or b""
        d.last_words = (d.last_words + words)[-MAX_BYTES:]
    raise XenError(E.PERM, "only for domain 0")
