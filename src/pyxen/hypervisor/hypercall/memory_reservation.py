"""increase_reservation, decrease_reservation, populate_physmap: ballooning.

Source: public/memory.h, struct xen_memory_reservation; xen/common/memory.c. The three return how
many extents were done, never an error; the upper bits of the command say where a list goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from pyxen.abi.memory import (
    XENMEM_decrease_reservation,
    XENMEM_increase_reservation,
    XENMEM_populate_physmap,
    XENMEMF_populate_on_demand,
    XenMemoryReservation,
)
from pyxen.abi.xen import DOMID_SELF
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.continuation import Continue, exhausted, work
from pyxen.hypervisor.page_types import Restart
from pyxen.types import U32, U64, Mfn

EXTENT_SHIFT = 6
COMMAND_MASK = (1 << EXTENT_SHIFT) - 1
MAX_EXTENTS = U32 >> EXTENT_SHIFT
MAX_ORDER = 9
"""The largest extent that a DomU may ask for (CONFIG_DOMU_MAX_ORDER)."""


def is_reservation_command(command: int) -> bool:
    """Whether it is one of the three."""
    return command in _EXTENT_COMMANDS


def reservation(d: Domain, command: int, start: int, argument: int) -> int:
    """Carry out a list of extents from number `start` on; returns how many are done."""
    raw = d.space.try_read(argument, XenMemoryReservation.SIZE)
    if raw is None:
        return start
    op = XenMemoryReservation.unpack(raw)
    on_demand = op.mem_flags & XENMEMF_populate_on_demand
    if (
        op.domid not in (DOMID_SELF, d.domid)
        or op.extent_order > MAX_ORDER
        or not start < op.nr_extents <= MAX_EXTENTS
        or (on_demand and command == XENMEM_populate_physmap)
    ):
        return start
    act = _EXTENT_COMMANDS[command]
    for n in range(start, op.nr_extents):
        left = Continue(command | n << EXTENT_SHIFT, argument)
        if n > start and exhausted(d):
            raise left
        work(d, 1 << op.extent_order)
        try:
            if not act(d, op, op.extent_start + 8 * n & U64):
                return n
        except Restart:
            raise left from None
    return op.nr_extents


def _decrease(d: Domain, op: XenMemoryReservation, at: int) -> bool:
    """Give frames back. False if it cannot be done."""
    mfn = d.space.try_read(at, 8)
    if mfn is None:
        return False
    first = int.from_bytes(mfn, "little")
    try:
        for n in range(1 << op.extent_order):
            d.reservation.release(first + n)
    except XenError:
        return False
    return True


def _increase(d: Domain, op: XenMemoryReservation, at: int) -> bool:
    """Get frames; the number of the first goes into the extent list, if there is one."""
    if op.extent_start and not d.space.is_writable(at, 8):
        return False
    mfn = _allocate(d, op.extent_order)
    if mfn is not None and op.extent_start:
        d.space.write_u64(at, mfn)
    return mfn is not None


def _populate(d: Domain, op: XenMemoryReservation, at: int) -> bool:
    """Get frames for the pfns from that in the extent list on, where the first mfn replaces it."""
    raw = d.space.try_read(at, 8)
    if raw is None or not d.space.is_writable(at, 8):
        return False
    mfn = _allocate(d, op.extent_order)
    if mfn is None:
        return False
    pfn = int.from_bytes(raw, "little")
    for n in range(1 << op.extent_order):
        d.reservation.set_m2p(mfn + n, pfn + n & U64)
    d.space.write_u64(at, mfn)
    return True


def _allocate(d: Domain, order: int) -> Mfn | None:
    try:
        return d.reservation.allocate(order)
    except XenError:
        return None


_EXTENT_COMMANDS: dict[int, Callable[[Domain, XenMemoryReservation, int], bool]] = {
    XENMEM_decrease_reservation: _decrease,
    XENMEM_increase_reservation: _increase,
    XENMEM_populate_physmap: _populate,
}
