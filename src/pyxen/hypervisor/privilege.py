"""What a guest may do with ports and flags: IOPL, the I/O bitmap, breakpoints on ports.

Source: public/physdev.h (set_iopl, set_iobitmap). There is no device behind any port of a domain
without hardware: what may be read reads as ones, what may be written is dropped.
"""

from __future__ import annotations

from pyxen.abi.arch_x86_traps import X86_EXC_DB
from pyxen.cpu.base import Trap
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu

CR4_DE = 1 << 3
_USER, _KERNEL = 3, 1
_DR7_TYPE_AT = 16
_DR7_PORT = 2
_LENGTHS = (1, 2, 8, 4)
DR6_STEP = 1 << 14


def iopl_allows(d: Domain, v: Vcpu) -> bool:
    """Whether the current mode's level is within IOPL. The guest kernel counts as level 1."""
    if d.engine.user_mode:
        return v.pv.iopl >= _USER
    return v.pv.iopl >= (0 if d.pv.architectural_iopl else _KERNEL)


def update_ports(d: Domain, v: Vcpu) -> None:
    """Tell the engine which mode needs no check; `v` is the vCPU that is selected.

    While there are breakpoints on ports every access is looked at.
    """
    watched = bool(v.arch.dr7_emul)
    kernel = v.pv.iopl >= (0 if d.pv.architectural_iopl else _KERNEL)
    d.engine.set_port_access(kernel=kernel and not watched, user=v.pv.iopl >= _USER and not watched)


def ports_allowed(d: Domain, v: Vcpu, port: int, size: int) -> bool:
    """Whether an access of 1, 2 or 4 bytes is permitted, by IOPL or by the bitmap."""
    if iopl_allows(d, v):
        return True
    if port + size > v.arch.io_ports:
        return False
    bits = 0
    for n in range(2):
        byte = d.space.try_read(v.arch.io_bitmap + (port >> 3) + n, 1)
        bits |= (0xFF if byte is None else byte[0]) << 8 * n
    return not bits & ((1 << size) - 1) << (port & 7)


def port_breakpoints(d: Domain, v: Vcpu, port: int, size: int) -> int:
    """The bits of DR6 for breakpoints on these ports."""
    if not v.arch.dr7_emul or not v.arch.cr4 & CR4_DE:
        return 0
    hit = 0
    dr7 = d.engine.debug_register(7)
    for n in range(4):
        if v.arch.dr7_emul >> 2 * n & 3 and dr7 >> _DR7_TYPE_AT + 4 * n & 3 == _DR7_PORT:
            start = d.engine.debug_register(n)
            width = _LENGTHS[dr7 >> _DR7_TYPE_AT + 4 * n + 2 & 3]
            if start < port + size and start + width > port:
                hit |= 1 << n
    return hit


def debug_trap(d: Domain, causes: int) -> Trap:
    """#DB for causes that the hypervisor found itself; they are added to DR6."""
    d.engine.set_debug_register(6, d.engine.debug_register(6) | causes)
    return Trap(X86_EXC_DB)
