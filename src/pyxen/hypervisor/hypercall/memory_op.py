"""HYPERVISOR_memory_op: what a domain may know of its memory, and the dispatch of the rest.

Source: public/memory.h; xen/common/memory.c and xen/arch/x86/mm.c for the order of the checks.
Changing the reservation is in memory_reservation.py, exchanging frames in memory_exchange.py.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from pyxen.abi.errno import E
from pyxen.abi.memory import (
    E820_RAM,
    E820Entry,
    XenAddToPhysmap,
    XenAddToPhysmapBatch,
    XenForeignMemoryMap,
    XenMachphysMapping,
    XenMachphysMfnList,
    XENMAPSPACE_gmfn_foreign,
    XENMAPSPACE_gmfn_range,
    XENMEM_access_op,
    XENMEM_acquire_resource,
    XENMEM_add_to_physmap,
    XENMEM_add_to_physmap_batch,
    XENMEM_claim_pages,
    XENMEM_current_reservation,
    XENMEM_exchange,
    XENMEM_get_pod_target,
    XENMEM_get_sharing_freed_pages,
    XENMEM_get_sharing_shared_pages,
    XENMEM_get_vnumainfo,
    XENMEM_machine_memory_map,
    XENMEM_machphys_compat_mfn_list,
    XENMEM_machphys_mapping,
    XENMEM_machphys_mfn_list,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_remove_from_physmap,
    XENMEM_reserved_device_memory_map,
    XENMEM_set_memory_map,
    XENMEM_set_pod_target,
    XenMemoryDomain,
    XenMemoryMap,
    XenPodTarget,
    XenRemoveFromPhysmap,
    XenReservedDeviceMemoryMap,
    XenVnumaTopologyInfo,
)
from pyxen.abi.xen import DOMID_SELF, SharedInfo
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.continuation import work
from pyxen.hypervisor.hypercall.memory_exchange import exchange
from pyxen.hypervisor.hypercall.memory_reservation import (
    COMMAND_MASK,
    EXTENT_SHIFT,
    is_reservation_command,
    reservation,
)
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory import layout
from pyxen.types import PAGE_SHIFT, U16

E820_MAX = 128
_MFNS_PER_2MIB_OF_M2P = 512
_U64 = Struct("<Q")


def memory_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command; its upper bits are where a preempted one goes on."""
    number, start = command & COMMAND_MASK, command >> EXTENT_SHIFT
    if is_reservation_command(number):
        return reservation(d, number, start, argument)
    if number in (XENMEM_add_to_physmap, XENMEM_add_to_physmap_batch):
        return _add_to_physmap(d, number, start, argument)
    handler = _COMMANDS.get(number)
    if handler is None:
        raise XenError(E.NOSYS, f"memory_op {number}")
    if start:
        raise XenError(E.INVAL, f"memory_op {number} has no extents")
    return handler(d, argument)


def check_own(d: Domain, domid: int) -> None:
    """Raises: XenError(ESRCH) for a domain that there is not, XenError(EPERM) for domain 0."""
    if domid not in (DOMID_SELF, d.domid):
        raise XenError(E.SRCH if domid else E.PERM, f"memory of domain {domid}")


# --- how much there is --------------------------------------------------------------------------


def _domain_argument(d: Domain, argument: int) -> None:
    check_own(d, XenMemoryDomain.unpack(d.space.read(argument, XenMemoryDomain.SIZE)).domid)


def _current_reservation(d: Domain, argument: int) -> int:
    _domain_argument(d, argument)
    return d.reservation.pages


def _maximum_reservation(d: Domain, argument: int) -> int:
    _domain_argument(d, argument)
    return d.reservation.max_pages


def _maximum_gpfn(d: Domain, argument: int) -> int:
    """A PV guest says itself how many pseudo-physical pages it has."""
    _domain_argument(d, argument)
    at = d.shared_info + SharedInfo.OFFSET["arch"]
    return d.memory.read_u64(at) - 1


def _maximum_ram_page(d: Domain, argument: int) -> int:
    return d.memory.m2p_mfn - 1


# --- memory maps --------------------------------------------------------------------------------


def _memory_map(d: Domain, argument: int) -> int:
    """What the guest set itself, or one range of RAM from 0, as libxl gives it to PV guests."""
    op = XenMemoryMap.unpack(d.space.read(argument, XenMemoryMap.SIZE))
    whole = E820Entry(addr=0, size=d.reservation.max_pages << PAGE_SHIFT, type=E820_RAM)
    entries = whole.pack() if d.memory_map is None else d.memory_map
    if not entries:
        raise XenError(E.NOSYS, "the guest took its memory map away")
    op.nr_entries = min(op.nr_entries, len(entries) // E820Entry.SIZE)
    if op.nr_entries:
        d.space.write(op.buffer, entries[: op.nr_entries * E820Entry.SIZE])
    d.space.write(argument, op.pack())
    return 0


def _set_memory_map(d: Domain, argument: int) -> int:
    op = XenForeignMemoryMap.unpack(d.space.read(argument, XenForeignMemoryMap.SIZE))
    if op.map.nr_entries > E820_MAX:
        raise XenError(E.INVAL, f"{op.map.nr_entries} entries")
    check_own(d, op.domid)
    length = op.map.nr_entries * E820Entry.SIZE
    d.memory_map = d.space.read(op.map.buffer, length) if length else b""
    return 0


# --- the machine-to-physical table --------------------------------------------------------------


def _machphys_mapping(d: Domain, argument: int) -> int:
    entries = d.memory.m2p_mfn
    end = layout.M2P_VADDR + (d.memory.m2p_pages << PAGE_SHIFT)
    op = XenMachphysMapping(v_start=layout.M2P_VADDR, v_end=end, max_mfn=entries - 1)
    d.space.write(argument, op.pack())
    return 0


def _machphys_mfn_list(d: Domain, argument: int) -> int:
    """The first frame of each 2 MiB of the table, which is one piece here."""
    op = XenMachphysMfnList.unpack(d.space.read(argument, XenMachphysMfnList.SIZE))
    pieces = -(-d.memory.m2p_pages // _MFNS_PER_2MIB_OF_M2P)
    op.nr_extents = min(op.max_extents, pieces)
    for n in range(op.nr_extents):
        work(d)
        d.space.write_u64(op.extent_start + 8 * n, d.memory.m2p_mfn + n * _MFNS_PER_2MIB_OF_M2P)
    d.space.write(argument, op.pack())
    return 0


# --- what Xen refuses to a PV domain, or has nothing to say about -----------------------------


def _add_to_physmap(d: Domain, command: int, start: int, argument: int) -> int:
    """Only for domains whose physical addresses the hypervisor translates."""
    if start > U16:
        raise XenError(E.DOM, f"extent {start}")
    domid: int
    if command == XENMEM_add_to_physmap:
        one = XenAddToPhysmap.unpack(d.space.read(argument, XenAddToPhysmap.SIZE))
        if one.space == XENMAPSPACE_gmfn_foreign:
            raise XenError(E.NOSYS, "foreign frames one by one")
        domid = one.domid
    else:
        many = XenAddToPhysmapBatch.unpack(d.space.read(argument, XenAddToPhysmapBatch.SIZE))
        if many.space == XENMAPSPACE_gmfn_range:
            raise XenError(E.OPNOTSUPP, "ranges in a batch")
        domid = many.domid
    if domid not in (DOMID_SELF, d.domid, 0):
        raise XenError(E.SRCH, f"there is no domain {domid}")
    raise XenError(E.ACCES, "a PV domain has no physmap")


def _remove_from_physmap(d: Domain, argument: int) -> int:
    op = XenRemoveFromPhysmap.unpack(d.space.read(argument, XenRemoveFromPhysmap.SIZE))
    if op.domid not in (DOMID_SELF, d.domid, 0):
        raise XenError(E.SRCH, f"there is no domain {op.domid}")
    raise XenError(E.ACCES, "a PV domain has no physmap")


def _pod_target(d: Domain, argument: int) -> int:
    op = XenPodTarget.unpack(d.space.read(argument, XenPodTarget.SIZE))
    if op.domid not in (DOMID_SELF, d.domid, 0):
        raise XenError(E.SRCH, f"there is no domain {op.domid}")
    raise XenError(E.INVAL, "populate on demand is for HVM domains")


def _vnumainfo(d: Domain, argument: int) -> int:
    op = XenVnumaTopologyInfo.unpack(d.space.read(argument, XenVnumaTopologyInfo.SIZE))
    if op.pad:
        raise XenError(E.INVAL, f"padding {op.pad:#x}")
    check_own(d, op.domid)
    raise XenError(E.OPNOTSUPP, "the domain has no virtual NUMA")


def _reserved_device_memory(d: Domain, argument: int) -> int:
    """There is none."""
    op = XenReservedDeviceMemoryMap.unpack(d.space.read(argument, XenReservedDeviceMemoryMap.SIZE))
    if op.flags & ~1:
        raise XenError(E.INVAL, f"flags {op.flags:#x}")
    op.nr_entries = 0
    d.space.write(argument, op.pack())
    return 0


def _nothing_shared(d: Domain, argument: int) -> int:
    return 0


def _only_for_domain_0(d: Domain, argument: int) -> int:
    raise XenError(E.PERM, "only for domain 0")


def _compat_mfn_list(d: Domain, argument: int) -> int:
    raise XenError(E.OPNOTSUPP, "no 32-bit PV domains")


_COMMANDS: dict[int, Callable[[Domain, int], int]] = {
    XENMEM_exchange: exchange,
    XENMEM_current_reservation: _current_reservation,
    XENMEM_maximum_reservation: _maximum_reservation,
    XENMEM_maximum_gpfn: _maximum_gpfn,
    XENMEM_maximum_ram_page: _maximum_ram_page,
    XENMEM_memory_map: _memory_map,
    XENMEM_set_memory_map: _set_memory_map,
    XENMEM_machphys_mapping: _machphys_mapping,
    XENMEM_machphys_mfn_list: _machphys_mfn_list,
    XENMEM_machphys_compat_mfn_list: _compat_mfn_list,
    XENMEM_remove_from_physmap: _remove_from_physmap,
    XENMEM_set_pod_target: _pod_target,
    XENMEM_get_pod_target: _pod_target,
    XENMEM_get_vnumainfo: _vnumainfo,
    XENMEM_reserved_device_memory_map: _reserved_device_memory,
    XENMEM_get_sharing_freed_pages: _nothing_shared,
    XENMEM_get_sharing_shared_pages: _nothing_shared,
    XENMEM_machine_memory_map: _only_for_domain_0,
    XENMEM_access_op: _only_for_domain_0,
    XENMEM_claim_pages: _only_for_domain_0,
    XENMEM_acquire_resource: _only_for_domain_0,
}
