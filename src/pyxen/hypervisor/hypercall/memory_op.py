"""HYPERVISOR_memory_op: what memory a domain has, and ballooning. Source: public/memory.h."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from pyxen.abi.errno import E
from pyxen.abi.memory import (
    XenMachphysMapping,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_increase_reservation,
    XENMEM_machphys_mapping,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_populate_physmap,
    XenMemoryDomain,
    XenMemoryMap,
    XenMemoryReservation,
)
from pyxen.abi.xen import DOMID_SELF
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory import layout
from pyxen.types import PAGE_SHIFT

_E820_ENTRY = Struct("<QQI")
_E820_RAM = 1
_COMMAND_MASK = (1 << 6) - 1
MAX_EXTENTS = 1 << 20


def memory_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command; its upper bits are where a preempted one goes on."""
    handler = _COMMANDS.get(command & _COMMAND_MASK)
    if handler is None:
        raise XenError(E.NOSYS, f"memory_op {command & _COMMAND_MASK}")
    return handler(d, argument)


def _own(d: Domain, domid: int) -> None:
    if domid not in (DOMID_SELF, d.domid):
        raise XenError(E.PERM, f"memory of domain {domid}")


def _current_reservation(d: Domain, argument: int) -> int:
    _own(d, XenMemoryDomain.unpack(d.space.read(argument, XenMemoryDomain.SIZE)).domid)
    return d.reservation.pages


def _maximum_reservation(d: Domain, argument: int) -> int:
    _own(d, XenMemoryDomain.unpack(d.space.read(argument, XenMemoryDomain.SIZE)).domid)
    return d.reservation.max_pages


def _maximum_ram_page(d: Domain, argument: int) -> int:
    return d.memory.m2p_mfn - 1


def _memory_map(d: Domain, argument: int) -> int:
    """One range of RAM from 0, as libxl gives a PV guest without e820_host."""
    op = XenMemoryMap.unpack(d.space.read(argument, XenMemoryMap.SIZE))
    if op.nr_entries < 1:
        raise XenError(E.INVAL, "no room for an entry")
    end = d.reservation.max_pages << PAGE_SHIFT
    d.space.write(op.buffer, _E820_ENTRY.pack(0, end, _E820_RAM))
    op.nr_entries = 1
    d.space.write(argument, op.pack())
    return 0


def _machphys_mapping(d: Domain, argument: int) -> int:
    entries = d.memory.m2p_mfn
    end = layout.M2P_VADDR + (d.memory.m2p_pages << PAGE_SHIFT)
    op = XenMachphysMapping(v_start=layout.M2P_VADDR, v_end=end, max_mfn=entries - 1)
    d.space.write(argument, op.pack())
    return 0


def _reservation(d: Domain, argument: int) -> XenMemoryReservation:
    op = XenMemoryReservation.unpack(d.space.read(argument, XenMemoryReservation.SIZE))
    _own(d, op.domid)
    if op.nr_extents > MAX_EXTENTS:
        raise XenError(E.INVAL, f"{op.nr_extents} extents at once")
    if op.extent_order:
        raise XenError(E.PERM, "extents of more than one page")
    return op


def _decrease_reservation(d: Domain, argument: int) -> int:
    """Give frames back. Returns how many extents were done."""
    op = _reservation(d, argument)
    for done in range(op.nr_extents):
        mfn = d.space.try_read(op.extent_start + 8 * done, 8)
        if mfn is None:
            return done
        try:
            d.reservation.release(int.from_bytes(mfn, "little"))
        except XenError:
            return done
    return op.nr_extents


def _increase_reservation(d: Domain, argument: int) -> int:
    """Get frames; their numbers go into the extent list."""
    op = _reservation(d, argument)
    for done in range(op.nr_extents):
        if op.extent_start:
            d.space.check_writable(op.extent_start + 8 * done, 8)
        try:
            mfn = d.reservation.allocate()
        except XenError:
            return done
        if op.extent_start:
            d.space.write_u64(op.extent_start + 8 * done, mfn)
    return op.nr_extents


def _populate_physmap(d: Domain, argument: int) -> int:
    """Get frames for the pfns in the extent list, which are replaced by the frames' numbers."""
    op = _reservation(d, argument)
    for done in range(op.nr_extents):
        at = op.extent_start + 8 * done
        raw = d.space.try_read(at, 8)
        if raw is None:
            return done
        d.space.check_writable(at, 8)
        try:
            mfn = d.reservation.allocate()
        except XenError:
            return done
        d.reservation.set_m2p(mfn, int.from_bytes(raw, "little"))
        d.space.write_u64(at, mfn)
    return op.nr_extents


_COMMANDS: dict[int, Callable[[Domain, int], int]] = {
    XENMEM_current_reservation: _current_reservation,
    XENMEM_maximum_reservation: _maximum_reservation,
    XENMEM_maximum_ram_page: _maximum_ram_page,
    XENMEM_memory_map: _memory_map,
    XENMEM_machphys_mapping: _machphys_mapping,
    XENMEM_decrease_reservation: _decrease_reservation,
    XENMEM_increase_reservation: _increase_reservation,
    XENMEM_populate_physmap: _populate_physmap,
}
