"""Physical interrupts, I/O privilege, PCI: the arguments of HYPERVISOR_physdev_op.

Source: public/physdev.h.
"""

from typing import Annotated

from pyxen.abi._struct import CPath, XenStruct, ptr, s32, u8, u16, u32, u64, union, xen_struct

_HEADERS = ("physdev.h",)
_PUBLIC = "physdev.h"

# Commands of HYPERVISOR_physdev_op.
PHYSDEVOP_IRQ_UNMASK_NOTIFY = 4
PHYSDEVOP_irq_status_query = 5
PHYSDEVOP_set_iopl = 6
PHYSDEVOP_set_iobitmap = 7
PHYSDEVOP_apic_read = 8
PHYSDEVOP_apic_write = 9
PHYSDEVOP_alloc_irq_vector = 10
PHYSDEVOP_free_irq_vector = 11
PHYSDEVOP_eoi = 12
PHYSDEVOP_map_pirq = 13
PHYSDEVOP_unmap_pirq = 14
PHYSDEVOP_manage_pci_add = 15
PHYSDEVOP_manage_pci_remove = 16
PHYSDEVOP_pirq_eoi_gmfn_v1 = 17
PHYSDEVOP_restore_msi = 19
PHYSDEVOP_manage_pci_add_ext = 20
PHYSDEVOP_setup_gsi = 21
PHYSDEVOP_get_free_pirq = 23
PHYSDEVOP_pci_mmcfg_reserved = 24
PHYSDEVOP_pci_device_add = 25
PHYSDEVOP_pci_device_remove = 26
PHYSDEVOP_restore_msi_ext = 27
PHYSDEVOP_pirq_eoi_gmfn_v2 = 28
PHYSDEVOP_pirq_eoi_gmfn = PHYSDEVOP_pirq_eoi_gmfn_v2
PHYSDEVOP_dbgp_op = 29
PHYSDEVOP_prepare_msix = 30
PHYSDEVOP_release_msix = 31

# physdev_irq_status_query.flags
XENIRQSTAT_needs_eoi = 1 << 0
XENIRQSTAT_shared = 1 << 1

# physdev_map_pirq.type
MAP_PIRQ_TYPE_MSI = 0x0
MAP_PIRQ_TYPE_GSI = 0x1
MAP_PIRQ_TYPE_UNKNOWN = 0x2
MAP_PIRQ_TYPE_MSI_SEG = 0x3
MAP_PIRQ_TYPE_MULTI_MSI = 0x4

# physdev_pci_mmcfg_reserved.flags
XEN_PCI_MMCFG_RESERVED = 0x1

# physdev_pci_device_add.flags
XEN_PCI_DEV_EXTFN = 0x1
XEN_PCI_DEV_VIRTFN = 0x2
XEN_PCI_DEV_PXM = 0x4

# physdev_dbgp_op.op and .bus
PHYSDEVOP_DBGP_RESET_PREPARE = 1
PHYSDEVOP_DBGP_RESET_DONE = 2
PHYSDEVOP_DBGP_BUS_UNKNOWN = 0
PHYSDEVOP_DBGP_BUS_PCI = 1


@xen_struct("physdev_eoi_t", header=_PUBLIC, size=4)
class PhysdevEoi(XenStruct):
    """The guest has served this interrupt."""

    irq: u32 = 0


@xen_struct("physdev_pirq_eoi_gmfn_t", header=_PUBLIC, size=8)
class PhysdevPirqEoiGmfn(XenStruct):
    """A page with one bit for each pirq that needs an EOI."""

    gmfn: u64 = 0


@xen_struct("physdev_irq_status_query_t", header=_PUBLIC, size=8)
class PhysdevIrqStatusQuery(XenStruct):
    """Out: flags (XENIRQSTAT_*)."""

    irq: u32 = 0
    flags: u32 = 0


@xen_struct("physdev_set_iopl_t", header=_PUBLIC, size=4)
class PhysdevSetIopl(XenStruct):
    """I/O privilege level of the vCPU, 0 to 3."""

    iopl: u32 = 0


@xen_struct("physdev_set_iobitmap_t", header=_PUBLIC, size=16)
class PhysdevSetIobitmap(XenStruct):
    """Bitmap of the ports that guest user mode may use."""

    bitmap: ptr = 0
    nr_ports: u32 = 0


@xen_struct("physdev_apic_t", header=_PUBLIC, size=16)
class PhysdevApic(XenStruct):
    """Read or write a register of an I/O APIC."""

    apic_physbase: u64 = 0
    reg: u32 = 0
    value: u32 = 0


@xen_struct("physdev_irq_t", header=_PUBLIC, size=8)
class PhysdevIrq(XenStruct):
    """A vector for an interrupt."""

    irq: u32 = 0
    vector: u32 = 0


@xen_struct("physdev_map_pirq_t", header=_PUBLIC, size=40)
class PhysdevMapPirq(XenStruct):
    """Make a pirq of a GSI or an MSI. In and out: pirq."""

    domid: u16 = 0
    type: s32 = 0
    index: s32 = 0
    pirq: s32 = 0
    bus: s32 = 0
    devfn: s32 = 0
    entry_nr: s32 = 0
    table_base: u64 = 0


@xen_struct("physdev_unmap_pirq_t", header=_PUBLIC, size=8)
class PhysdevUnmapPirq(XenStruct):
    """Undo physdev_map_pirq."""

    domid: u16 = 0
    pirq: s32 = 0


@xen_struct("physdev_manage_pci_t", header=_PUBLIC, size=2)
class PhysdevManagePci(XenStruct):
    """A device came or went (segment 0)."""

    bus: u8 = 0
    devfn: u8 = 0


@xen_struct("physdev_restore_msi_t", header=_PUBLIC, size=2)
class PhysdevRestoreMsi(XenStruct):
    """Set up MSIs again after a resume (segment 0)."""

    bus: u8 = 0
    devfn: u8 = 0


@xen_struct("physdev_manage_pci_ext_t.physfn", header=_PUBLIC, size=2)
class PhysdevManagePciExtPhysfn(XenStruct):
    """The physical function of a virtual one."""

    bus: u8 = 0
    devfn: u8 = 0


@xen_struct("physdev_manage_pci_ext_t", header=_PUBLIC, size=16)
class PhysdevManagePciExt(XenStruct):
    """A device came, with more about it (segment 0)."""

    bus: u8 = 0
    devfn: u8 = 0
    is_extfn: u32 = 0
    is_virtfn: u32 = 0
    physfn: PhysdevManagePciExtPhysfn = PhysdevManagePciExtPhysfn()


@xen_struct("physdev_setup_gsi_t", header=_PUBLIC, size=8)
class PhysdevSetupGsi(XenStruct):
    """Trigger mode and polarity of a GSI."""

    gsi: s32 = 0
    triggering: u8 = 0
    polarity: u8 = 0


@xen_struct("physdev_get_free_pirq_t", header=_PUBLIC, size=8)
class PhysdevGetFreePirq(XenStruct):
    """Out: an unused pirq."""

    type: s32 = 0
    pirq: u32 = 0


@xen_struct("physdev_pci_mmcfg_reserved_t", header=_PUBLIC, size=16)
class PhysdevPciMmcfgReserved(XenStruct):
    """Whether the firmware reserves a range of PCI configuration space."""

    address: u64 = 0
    segment: u16 = 0
    start_bus: u8 = 0
    end_bus: u8 = 0
    flags: u32 = 0


@xen_struct("physdev_pci_device_add_t.physfn", header=_PUBLIC, size=2)
class PhysdevPciDeviceAddPhysfn(XenStruct):
    """The physical function of a virtual one."""

    bus: u8 = 0
    devfn: u8 = 0


@xen_struct("physdev_pci_device_add_t", header=_PUBLIC, size=12)
class PhysdevPciDeviceAdd(XenStruct):
    """A device came; with XEN_PCI_DEV_PXM its proximity domain follows."""

    seg: u16 = 0
    bus: u8 = 0
    devfn: u8 = 0
    flags: u32 = 0
    physfn: PhysdevPciDeviceAddPhysfn = PhysdevPciDeviceAddPhysfn()


@xen_struct("physdev_pci_device_t", header=_PUBLIC, size=4)
class PhysdevPciDevice(XenStruct):
    """A PCI device: segment, bus, device and function."""

    seg: u16 = 0
    bus: u8 = 0
    devfn: u8 = 0


@xen_struct("physdev_dbgp_op_t", header=_PUBLIC, size=6)
class PhysdevDbgpOp(XenStruct):
    """A reset of the USB controller of the debug port."""

    op: u8 = 0
    bus: u8 = 0
    pci: Annotated[PhysdevPciDevice, CPath("u.pci")] = PhysdevPciDevice()


@xen_struct("physdev_op_t", header=_PUBLIC, size=24)
class PhysdevOp(XenStruct):
    """Argument of HYPERVISOR_physdev_op_compat: a command and its structure."""

    cmd: u32 = 0
    u: Annotated[bytes, union(PhysdevIrqStatusQuery, PhysdevSetIobitmap, PhysdevApic)] = b""
