"""HYPERVISOR_physdev_op: what is left of it for a domain without devices.

Source: public/physdev.h; the order of checks from xen/arch/x86/physdev.c.
"""

from __future__ import annotations

from pyxen.abi._struct import XenStruct
from pyxen.abi.errno import E
from pyxen.abi.physdev import (
    MAP_PIRQ_TYPE_GSI,
    MAP_PIRQ_TYPE_MULTI_MSI,
    PHYSDEVOP_IRQ_UNMASK_NOTIFY,
    PhysdevApic,
    PhysdevEoi,
    PhysdevGetFreePirq,
    PhysdevIrq,
    PhysdevIrqStatusQuery,
    PhysdevManagePci,
    PhysdevManagePciExt,
    PhysdevMapPirq,
    PhysdevOp,
    PHYSDEVOP_alloc_irq_vector,
    PHYSDEVOP_apic_read,
    PHYSDEVOP_apic_write,
    PHYSDEVOP_dbgp_op,
    PHYSDEVOP_eoi,
    PHYSDEVOP_get_free_pirq,
    PHYSDEVOP_irq_status_query,
    PHYSDEVOP_manage_pci_add,
    PHYSDEVOP_manage_pci_add_ext,
    PHYSDEVOP_manage_pci_remove,
    PHYSDEVOP_map_pirq,
    PHYSDEVOP_pci_device_add,
    PHYSDEVOP_pci_device_remove,
    PHYSDEVOP_pci_mmcfg_reserved,
    PHYSDEVOP_pirq_eoi_gmfn_v1,
    PHYSDEVOP_pirq_eoi_gmfn_v2,
    PHYSDEVOP_prepare_msix,
    PHYSDEVOP_release_msix,
    PHYSDEVOP_restore_msi,
    PHYSDEVOP_restore_msi_ext,
    PHYSDEVOP_set_iobitmap,
    PHYSDEVOP_set_iopl,
    PHYSDEVOP_setup_gsi,
    PHYSDEVOP_unmap_pirq,
    PhysdevPciDevice,
    PhysdevPciDeviceAdd,
    PhysdevPirqEoiGmfn,
    PhysdevRestoreMsi,
    PhysdevSetIobitmap,
    PhysdevSetupGsi,
    PhysdevUnmapPirq,
    XENIRQSTAT_needs_eoi,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.domid import peer_domid
from pyxen.hypervisor.privilege import update_ports
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.pagetable import is_guest_vaddr
from pyxen.types import U32

NR_GSIS = 24
"""Of a host with one I/O APIC."""
NR_PIRQS = NR_GSIS + 32
"""Xen gives each DomU 32 more than the host has GSIs (extra_guest_irqs)."""
_FIRST_FREE_GSI = 16
_MAX_IO_PORTS = 65536
_COMPAT_ARGUMENT = PhysdevOp.OFFSET["u"]


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
    command &= U32
    handler = _COMMANDS.get(command)
    if handler is not None:
        return handler(d, argument)
    if command in _UNPRIVILEGED:
        return _refuse(d, command, argument)
    raise XenError(E.NOSYS, f"physdev_op {command}")


def physdev_op_compat(d: Domain, v: Vcpu, argument: int) -> int:
    """HYPERVISOR_physdev_op_compat: command and structure in one."""
    op = PhysdevOp.unpack(d.space.read(argument, PhysdevOp.SIZE))
    return physdev_op(d, v, op.cmd, argument + _COMPAT_ARGUMENT)


def _eoi(d: Domain, argument: int) -> int:
    op = PhysdevEoi.unpack(d.space.read(argument, PhysdevEoi.SIZE))
    if op.irq not in d.pirqs:
        raise XenError(E.INVAL, f"interrupt {op.irq} is not the domain's")
    return 0


def _irq_status_query(d: Domain, argument: int) -> int:
    op = PhysdevIrqStatusQuery.unpack(d.space.read(argument, PhysdevIrqStatusQuery.SIZE))
    if op.irq >= NR_PIRQS:
        raise XenError(E.INVAL, f"there is no interrupt {op.irq}")
    op.flags = XENIRQSTAT_needs_eoi
    d.space.write(argument, op.pack())
    return 0


def _irq_unmask_notify(d: Domain, argument: int) -> int:
    return 0


def _pirq_eoi_gmfn(d: Domain, argument: int) -> int:
    """A page with a bit for each interrupt that needs an EOI; none does, so it stays as it is."""
    op = PhysdevPirqEoiGmfn.unpack(d.space.read(argument, PhysdevPirqEoiGmfn.SIZE))
    if not d.memory.is_guest_frame(op.gmfn):
        raise XenError(E.INVAL, f"frame {op.gmfn:#x} is not the domain's")
    if d.pirq_eoi_mfn:
        raise XenError(E.BUSY, "there is such a page")
    d.types.hold(op.gmfn, writable=True)
    # COMMIT
    d.pirq_eoi_mfn = op.gmfn
    return 0


def _map_pirq(d: Domain, argument: int) -> int:
    op = PhysdevMapPirq.unpack(d.space.read(argument, PhysdevMapPirq.SIZE))
    if op.type == MAP_PIRQ_TYPE_MULTI_MSI and op.table_base:
        raise XenError(E.INVAL, "a table of several MSIs")
    d.space.check_writable(argument, PhysdevMapPirq.SIZE)
    peer_domid(d, op.domid)
    raise XenError(E.PERM, "only for domain 0")


def _unmap_pirq(d: Domain, argument: int) -> int:
    peer_domid(d, PhysdevUnmapPirq.unpack(d.space.read(argument, PhysdevUnmapPirq.SIZE)).domid)
    raise XenError(E.PERM, "only for domain 0")


def _manage_pci_add_ext(d: Domain, argument: int) -> int:
    op = PhysdevManagePciExt.unpack(d.space.read(argument, PhysdevManagePciExt.SIZE))
    if op.is_extfn > 1 or op.is_virtfn > 1:
        raise XenError(E.INVAL, "neither 0 nor 1")
    raise XenError(E.PERM, "only for domain 0")


def _setup_gsi(d: Domain, argument: int) -> int:
    op = PhysdevSetupGsi.unpack(d.space.read(argument, PhysdevSetupGsi.SIZE))
    if not 0 <= op.gsi < NR_GSIS:
        raise XenError(E.INVAL, f"there is no GSI {op.gsi}")
    raise XenError(E.PERM, "only for domain 0")


def _get_free_pirq(d: Domain, argument: int) -> int:
    """A number for an interrupt that a DomU can do nothing with; Xen gives it all the same."""
    op = PhysdevGetFreePirq.unpack(d.space.read(argument, PhysdevGetFreePirq.SIZE))
    numbers = list(range(NR_PIRQS - 1, NR_GSIS - 1, -1))
    if op.type == MAP_PIRQ_TYPE_GSI:
        numbers = [*range(_FIRST_FREE_GSI, NR_GSIS), *numbers]
    free = next((number for number in numbers if number not in d.pirqs), None)
    if free is None:
        raise XenError(E.NOSPC, "all interrupt numbers are in use")
    d.space.check_writable(argument, PhysdevGetFreePirq.SIZE)
    # COMMIT
    d.pirqs.add(free)
    op.pirq = free
    d.space.write(argument, op.pack())
    return 0


def _refuse(d: Domain, command: int, argument: int) -> int:
    """Read the argument as Xen does, then say what Xen says."""
    structure, errno = _UNPRIVILEGED[command]
    if structure is not None:
        d.space.read(argument, structure.SIZE)
    raise XenError(errno, f"physdev_op {command}: only for domain 0")


_COMMANDS = {
    PHYSDEVOP_IRQ_UNMASK_NOTIFY: _irq_unmask_notify,
    PHYSDEVOP_irq_status_query: _irq_status_query,
    PHYSDEVOP_eoi: _eoi,
    PHYSDEVOP_map_pirq: _map_pirq,
    PHYSDEVOP_unmap_pirq: _unmap_pirq,
    PHYSDEVOP_pirq_eoi_gmfn_v1: _pirq_eoi_gmfn,
    PHYSDEVOP_pirq_eoi_gmfn_v2: _pirq_eoi_gmfn,
    PHYSDEVOP_manage_pci_add_ext: _manage_pci_add_ext,
    PHYSDEVOP_setup_gsi: _setup_gsi,
    PHYSDEVOP_get_free_pirq: _get_free_pirq,
}
_UNPRIVILEGED: dict[int, tuple[type[XenStruct] | None, E]] = {
    PHYSDEVOP_apic_read: (PhysdevApic, E.PERM),
    PHYSDEVOP_apic_write: (PhysdevApic, E.PERM),
    PHYSDEVOP_alloc_irq_vector: (PhysdevIrq, E.PERM),
    PHYSDEVOP_manage_pci_add: (PhysdevManagePci, E.PERM),
    PHYSDEVOP_manage_pci_remove: (PhysdevManagePci, E.PERM),
    PHYSDEVOP_restore_msi: (PhysdevRestoreMsi, E.NODEV),
    PHYSDEVOP_pci_mmcfg_reserved: (None, E.PERM),
    PHYSDEVOP_pci_device_add: (PhysdevPciDeviceAdd, E.PERM),
    PHYSDEVOP_pci_device_remove: (PhysdevPciDevice, E.PERM),
    PHYSDEVOP_restore_msi_ext: (PhysdevPciDevice, E.NODEV),
    PHYSDEVOP_dbgp_op: (None, E.PERM),
    PHYSDEVOP_prepare_msix: (PhysdevPciDevice, E.PERM),
    PHYSDEVOP_release_msix: (PhysdevPciDevice, E.PERM),
}
"""What Xen lets domain 0 do: the structure that it copies first, and its answer to all others."""
