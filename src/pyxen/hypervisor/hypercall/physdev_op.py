"""HYPERVISOR_physdev_op: a DomU without devices has only its I/O privilege level.

Source: public/physdev.h.
"""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.physdev import (
    PHYSDEVOP_apic_read,
    PHYSDEVOP_apic_write,
    PHYSDEVOP_set_iobitmap,
    PHYSDEVOP_set_iopl,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu

_MAX_IO_PORTS = 65536


def physdev_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command."""
    if command == PHYSDEVOP_set_iopl:
        iopl = d.space.read_u32(argument)
        if iopl > 3:
            raise XenError(E.INVAL, f"iopl {iopl}")
        v.pv.iopl = iopl
        return 0
    if command == PHYSDEVOP_set_iobitmap:
        if d.space.read_u32(argument + 8) > _MAX_IO_PORTS:
            raise XenError(E.INVAL, "more than 65536 ports")
        return 0
    if command in (PHYSDEVOP_apic_read, PHYSDEVOP_apic_write):
        raise XenError(E.PERM, "only for domain 0")
    raise XenError(E.NOSYS, f"physdev_op {command}")
