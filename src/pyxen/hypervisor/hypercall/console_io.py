"""HYPERVISOR_console_io: a guest's lines in the hypervisor's log. Source: public/xen.h."""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.xen import CONSOLEIO_write
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu

MAX_BYTES = 4096
MAX_LINE = 1024


def console_io(d: Domain, v: Vcpu, command: int, count: int, buffer: int) -> int:
    """Writing appends to the log, whole lines at a time; reading is for domain 0."""
    if command != CONSOLEIO_write:
        raise XenError(E.PERM if command == 1 else E.NOSYS, f"console_io {command}")
    if count > 1 << 31:
        raise XenError(E.INVAL, f"{count} bytes")
    done = 0
    while done < count:
        chunk = min(MAX_BYTES, count - done)
        d.console_line += d.space.read(buffer + done, chunk)
        done += chunk
        _flush(d)
    return 0


def _flush(d: Domain) -> None:
    *lines, rest = d.console_line.split(b"\n")
    while len(rest) > MAX_LINE:
        lines.append(rest[:MAX_LINE])
        rest = rest[MAX_LINE:]
    d.console_line = rest
    for line in lines:
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        d.print("".join(c if c.isprintable() or c == "\t" else "?" for c in text))
