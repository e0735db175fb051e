"""HYPERVISOR_console_io: the hypervisor's own console. Source: public/xen.h.

As in a release build of Xen it is refused to a DomU, so that Linux's early console uses the
domain's own. What the guest wanted to say is kept for the crash report: it may be its last words.
"""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.xen import CONSOLEIO_read, CONSOLEIO_write
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu

MAX_BYTES = 1024


def console_io(d: Domain, v: Vcpu, command: int, count: int, buffer: int) -> int:
    """Always refused: EPERM for the commands that exist."""
    if command == CONSOLEIO_write:
        words = d.space.try_read(buffer, min(count, MAX_BYTES)) or b""
        d.last_words = (d.last_words + words)[-MAX_BYTES:]
    if command in (CONSOLEIO_write, CONSOLEIO_read):
        raise XenError(E.PERM, "only for domain 0")
    raise XenError(E.NOSYS, f"console_io {command}")
