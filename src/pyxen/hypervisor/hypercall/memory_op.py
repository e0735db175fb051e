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
from pyxen.hypervisor.hypercall.continuation import Continue, exhausted, work
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory import layout
from pyxen.types import PAGE_SHIFT, U32, U64, Mfn

_E820_ENTRY = Struct("<QQI")
_E820_RAM = 1
_EXTENT_SHIFT = 6
_COMMAND_MASK = (1 << _EXTENT_SHIFT) - 1
MAX_EXTENTS = U32 >> _EXTENT_SHIFT


def memory_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command; its upper bits are where a preempted one goes on."""
    if command & _COMMAND_MASK in _EXTENT_COMMANDS:
        return _change_reservation(d, command, argument)
    handler = _COMMANDS.get(command & _COMMAND_MASK)
    if handler is None:
        raise XenError(E.NOSYS, f"memory_op {command & _COMMAND_MASK}")
    return handler(d, argument)


def _own(d: Domain, domid: int) -> None:
    if domid not in (DOMID_SELF, d.domid):
        # Domain 0 is the only other one that a guest can know of.
        raise XenError(E.SRCH if domid else E.PERM, f"memory of domain {domid}")


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


def _change_reservation(d: Domain, command: int, argument: int) -> int:
    """The three commands with a list of extents: returns how many were done, never an error.

    The upper bits of the command say where the list goes on.
    """
    start = command >> _EXTENT_SHIFT
    raw = d.space.try_read(argument, XenMemoryReservation.SIZE)
    if raw is None:
        return start
    op = XenMemoryReservation.unpack(raw)
    foreign = op.domid not in (DOMID_SELF, d.domid)
    if foreign or op.extent_order or not start < op.nr_extents <= MAX_EXTENTS:
        return start
    act = _EXTENT_COMMANDS[command & _COMMAND_MASK]
    for n in range(start, op.nr_extents):
        if n > start and exhausted(d):
            raise Continue(command & _COMMAND_MASK | n << _EXTENT_SHIFT, argument)
        work(d)
        if not act(d, op.extent_start, op.extent_start + 8 * n & U64):
            return n
    return op.nr_extents


def _decrease(d: Domain, extents: int, at: int) -> bool:
    """Give a frame back. False if it cannot be done."""
    mfn = d.space.try_read(at, 8)
    if mfn is None:
        return False
    try:
        d.reservation.release(int.from_bytes(mfn, "little"))
    except XenError:
        return False
    return True


def _increase(d: Domain, extents: int, at: int) -> bool:
    """Get a frame; its number goes into the extent list, if there is one."""
    if extents and not d.space.is_writable(at, 8):
        return False
    mfn = _allocate(d)
    if mfn is not None and extents:
        d.space.write_u64(at, mfn)
    return mfn is not None


def _populate(d: Domain, extents: int, at: int) -> bool:
    """Get a frame for the pfn in the extent list, where the frame's number replaces it."""
    pfn = d.space.try_read(at, 8)
    if pfn is None or not d.space.is_writable(at, 8):
        return False
    mfn = _allocate(d)
    if mfn is None:
        return False
    d.reservation.set_m2p(mfn, int.from_bytes(pfn, "little"))
    d.space.write_u64(at, mfn)
    return True


def _allocate(d: Domain) -> Mfn | None:
    try:
        return d.reservation.allocate()
    except XenError:
        return None


_EXTENT_COMMANDS: dict[int, Callable[[Domain, int, int], bool]] = {
    XENMEM_decrease_reservation: _decrease,
    XENMEM_increase_reservation: _increase,
    XENMEM_populate_physmap: _populate,
}
_COMMANDS: dict[int, Callable[[Domain, int], int]] = {
    XENMEM_current_reservation: _current_reservation,
    XENMEM_maximum_reservation: _maximum_reservation,
    XENMEM_maximum_ram_page: _maximum_ram_page,
    XENMEM_memory_map: _memory_map,
    XENMEM_machphys_mapping: _machphys_mapping,
}
