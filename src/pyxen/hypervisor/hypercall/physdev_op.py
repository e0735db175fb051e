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
    PhysdevSetIobitmap,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.privilege import update_ports
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.pagetable import is_guest_vaddr

_MAX_IO_PORTS = 65536


def physdev_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command."""
    if command == PHYSDEVOP_set_iopl:
        iopl = d.space.read_u32(argument)
        if iopl > 3:
            raise XenError(E.INVAL, f"iopl {iopl}")
        v.pv.iopl = iopl
        update_ports(d, v)
        return 0
    if command == PHYSDEVOP_set_iobitmap:
        bitmap = PhysdevSetIobitmap.unpack(d.space.read(argument, PhysdevSetIobitmap.SIZE))
        if bitmap.nr_ports > _MAX_IO_PORTS or not is_guest_vaddr(
            bitmap.bitmap, bitmap.nr_ports + 7 >> 3
        ):
            raise XenError(E.INVAL, f"{bitmap.nr_ports} ports, bitmap at {bitmap.bitmap:#x}")
        v.arch.io_bitmap, v.arch.io_ports = bitmap.bitmap, bitmap.nr_ports
        return 0
    if command in (PHYSDEVOP_apic_read, PHYSDEVOP_apic_write):
        raise XenError(E.PERM, "only for domain 0")
    raise XenError(E.NOSYS, f"physdev_op {command}")
