"""Memory reservations and maps: the arguments of HYPERVISOR_memory_op.

The low six bits of the command argument are XENMEM_*; the rest are where to go on after a
preemption. Source: public/memory.h.
"""

from typing import Annotated

from pyxen.abi._struct import CPath, XenStruct, ptr, u16, u32, u64, xen_struct
from pyxen.abi.physdev import PhysdevPciDevice

_HEADERS = ("memory.h",)
_PUBLIC = "memory.h"

# Commands of HYPERVISOR_memory_op.
XENMEM_increase_reservation = 0
XENMEM_decrease_reservation = 1
XENMEM_maximum_ram_page = 2
XENMEM_current_reservation = 3
XENMEM_maximum_reservation = 4
XENMEM_machphys_mfn_list = 5
XENMEM_populate_physmap = 6
XENMEM_add_to_physmap = 7
XENMEM_memory_map = 9
XENMEM_machine_memory_map = 10
XENMEM_exchange = 11
XENMEM_machphys_mapping = 12
XENMEM_set_memory_map = 13
XENMEM_maximum_gpfn = 14
XENMEM_remove_from_physmap = 15
XENMEM_set_pod_target = 16
XENMEM_get_pod_target = 17
XENMEM_get_sharing_freed_pages = 18
XENMEM_get_sharing_shared_pages = 19
XENMEM_paging_op = 20
XENMEM_sharing_op = 22
XENMEM_add_to_physmap_batch = 23
XENMEM_claim_pages = 24
XENMEM_machphys_compat_mfn_list = 25
XENMEM_get_vnumainfo = 26
XENMEM_reserved_device_memory_map = 27
XENMEM_acquire_resource = 28

# xen_memory_reservation.mem_flags; the low byte is the address width, bits 8-15 the node.
XENMEMF_populate_on_demand = 1 << 16
XENMEMF_exact_node_request = 1 << 17
XENMEMF_vnode = 1 << 18

# xen_add_to_physmap.space
XENMAPSPACE_shared_info = 0
XENMAPSPACE_grant_table = 1
XENMAPSPACE_gmfn = 2
XENMAPSPACE_gmfn_range = 3
XENMAPSPACE_gmfn_foreign = 4
XENMAPSPACE_dev_mmio = 5

# Bit of xen_add_to_physmap.idx.
XENMAPIDX_grant_table_status = 0x80000000

# Of paging, access and sharing, which belong to control domains; no structures here.
XENMEM_paging_op_nominate = 0
XENMEM_paging_op_evict = 1
XENMEM_paging_op_prep = 2
XENMEM_access_op = 21
XENMEM_access_op_set_access = 0
XENMEM_access_op_get_access = 1
XENMEM_access_op_set_access_multi = 4
XENMEM_access_n = 0
XENMEM_access_r = 1
XENMEM_access_w = 2
XENMEM_access_rw = 3
XENMEM_access_x = 4
XENMEM_access_rx = 5
XENMEM_access_wx = 6
XENMEM_access_rwx = 7
XENMEM_access_rx2rw = 8
XENMEM_access_n2rwx = 9
XENMEM_access_default = 10
XENMEM_sharing_op_nominate_gfn = 0
XENMEM_sharing_op_nominate_gref = 1
XENMEM_sharing_op_share = 2
XENMEM_sharing_op_debug_gfn = 3
XENMEM_sharing_op_debug_mfn = 4
XENMEM_sharing_op_debug_gref = 5
XENMEM_sharing_op_add_physmap = 6
XENMEM_sharing_op_audit = 7
XENMEM_sharing_op_range_share = 8
XENMEM_sharing_op_fork = 9
XENMEM_sharing_op_fork_reset = 10
XENMEM_SHARING_OP_S_HANDLE_INVALID = -10
XENMEM_SHARING_OP_C_HANDLE_INVALID = -9
XENMEM_SHARING_OP_FIELD_IS_GREF_FLAG = 1 << 62
XENMEM_FORK_WITH_IOMMU_ALLOWED = 1 << 0
XENMEM_FORK_BLOCK_INTERRUPTS = 1 << 1
XENMEM_FORK_RESET_STATE = 1 << 2
XENMEM_FORK_RESET_MEMORY = 1 << 3

# xen_reserved_device_memory_map.flags
XENMEM_RDM_ALL = 1

# xen_mem_acquire_resource.type and .id
XENMEM_resource_ioreq_server = 0
XENMEM_resource_grant_table = 1
XENMEM_resource_vmtrace_buf = 2
XENMEM_resource_grant_table_id_shared = 0
XENMEM_resource_grant_table_id_status = 1
XENMEM_resource_ioreq_server_frame_bufioreq = 0

# Types of an E820 entry, as in the ACPI specification.
E820_RAM = 1
E820_RESERVED = 2
E820_ACPI = 3
E820_NVS = 4
E820_UNUSABLE = 5

_E820 = "firmware interface, not Xen's: ACPI specification, system address map"
_NOT_IN_HEADER = {
    "E820_RAM": _E820,
    "E820_RESERVED": _E820,
    "E820_ACPI": _E820,
    "E820_NVS": _E820,
    "E820_UNUSABLE": _E820,
}


@xen_struct("xen_memory_reservation_t", header=_PUBLIC, size=32)
class XenMemoryReservation(XenStruct):
    """`nr_extents` extents of 2**extent_order pages, their frame numbers an array of u64."""

    extent_start: ptr = 0
    nr_extents: u64 = 0
    extent_order: u32 = 0
    mem_flags: u32 = 0
    domid: u16 = 0


@xen_struct("xen_memory_exchange_t", header=_PUBLIC, size=72)
class XenMemoryExchange(XenStruct):
    """Swap extents for others of the same total size. Out: nr_exchanged."""

    in_: XenMemoryReservation = XenMemoryReservation()
    out: XenMemoryReservation = XenMemoryReservation()
    nr_exchanged: u64 = 0


@xen_struct("struct xen_memory_domain", header=_PUBLIC, size=2)
class XenMemoryDomain(XenStruct):
    """Argument of the questions about a domain; the answer is the return value."""

    domid: u16 = 0


@xen_struct("xen_machphys_mfn_list_t", header=_PUBLIC, size=24)
class XenMachphysMfnList(XenStruct):
    """Frames of the M2P table, one for each 2 MiB of it. Out: nr_extents."""

    max_extents: u32 = 0
    extent_start: ptr = 0
    nr_extents: u32 = 0


@xen_struct("xen_machphys_mapping_t", header=_PUBLIC, size=24)
class XenMachphysMapping(XenStruct):
    """Where the M2P table is mapped in a PV guest. All out; max_mfn is the last valid index."""

    v_start: u64 = 0
    v_end: u64 = 0
    max_mfn: u64 = 0


@xen_struct("xen_add_to_physmap_t", header=_PUBLIC, size=24)
class XenAddToPhysmap(XenStruct):
    """Put a page of Xen into a translated guest."""

    domid: u16 = 0
    size: u16 = 0
    space: u32 = 0
    idx: u64 = 0
    gpfn: u64 = 0


@xen_struct("xen_add_to_physmap_batch_t", header=_PUBLIC, size=32)
class XenAddToPhysmapBatch(XenStruct):
    """The same for arrays of u64 indices and frames; one s32 error each."""

    domid: u16 = 0
    space: u16 = 0
    size: u16 = 0
    foreign_domid: Annotated[u16, CPath("u.foreign_domid")] = 0
    idxs: ptr = 0
    gpfns: ptr = 0
    errs: ptr = 0


@xen_struct("xen_remove_from_physmap_t", header=_PUBLIC, size=16)
class XenRemoveFromPhysmap(XenStruct):
    """Take a page out of a translated guest."""

    domid: u16 = 0
    gpfn: u64 = 0


@xen_struct("xen_memory_map_t", header=_PUBLIC, size=16)
class XenMemoryMap(XenStruct):
    """The memory map: an array of E820Entry. Out: nr_entries."""

    nr_entries: u32 = 0
    buffer: ptr = 0


@xen_struct("struct e820entry", header="", size=20, max_align=4)
class E820Entry(XenStruct):
    """One range of a memory map."""

    addr: u64 = 0
    size: u64 = 0
    type: u32 = 0


@xen_struct("xen_foreign_memory_map_t", header=_PUBLIC, size=24)
class XenForeignMemoryMap(XenStruct):
    """Set another domain's memory map."""

    domid: u16 = 0
    map: XenMemoryMap = XenMemoryMap()


@xen_struct("xen_pod_target_t", header=_PUBLIC, size=40)
class XenPodTarget(XenStruct):
    """Populate-on-demand numbers of a domain."""

    target_pages: u64 = 0
    tot_pages: u64 = 0
    pod_cache_pages: u64 = 0
    pod_entries: u64 = 0
    domid: u16 = 0


@xen_struct("xen_reserved_device_memory_t", header=_PUBLIC, size=16)
class XenReservedDeviceMemory(XenStruct):
    """A range that a device needs at fixed addresses."""

    start_pfn: u64 = 0
    nr_pages: u64 = 0


@xen_struct("xen_reserved_device_memory_map_t", header=_PUBLIC, size=24)
class XenReservedDeviceMemoryMap(XenStruct):
    """Argument of XENMEM_reserved_device_memory_map."""

    flags: u32 = 0
    nr_entries: u32 = 0
    buffer: ptr = 0
    pci: Annotated[PhysdevPciDevice, CPath("dev.pci")] = PhysdevPciDevice()


@xen_struct("xen_mem_acquire_resource_t", header=_PUBLIC, size=32)
class XenMemAcquireResource(XenStruct):
    """Map frames of a domain's resource, or learn how many there are."""

    domid: u16 = 0
    type: u16 = 0
    id: u32 = 0
    nr_frames: u32 = 0
    pad: u32 = 0
    frame: u64 = 0
    frame_list: ptr = 0


@xen_struct("xen_vmemrange_t", header=_PUBLIC, size=24)
class XenVmemrange(XenStruct):
    """A range of guest memory and its virtual NUMA node."""

    start: u64 = 0
    end: u64 = 0
    flags: u32 = 0
    nid: u32 = 0


@xen_struct("xen_vnuma_topology_info_t", header=_PUBLIC, size=40)
class XenVnumaTopologyInfo(XenStruct):
    """Argument of XENMEM_get_vnumainfo: counts in and out, and where to write."""

    domid: u16 = 0
    pad: u16 = 0
    nr_vnodes: u32 = 0
    nr_vcpus: u32 = 0
    nr_vmemranges: u32 = 0
    vdistance: ptr = 0
    vcpu_to_vnode: ptr = 0
    vmemrange: ptr = 0
