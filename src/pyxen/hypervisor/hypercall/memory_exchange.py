"""XENMEM_exchange: give frames back and get as many others, for instance contiguous ones.

Source: public/memory.h, struct xen_memory_exchange; memory_exchange of xen/common/memory.c.

A chunk is one extent of the larger order and as many of the smaller order as fit into it; each
chunk is exchanged whole or not at all. What Xen read and wrote unchecked after a wrong range check
was XSA-212: here each access checks its address.
"""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.memory import XenMemoryExchange
from pyxen.abi.xen import DOMID_SELF
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.continuation import Continue, exhausted, work
from pyxen.hypervisor.hypercall.memory_reservation import MAX_ORDER
from pyxen.hypervisor.page_types import Restart
from pyxen.memory.pagetable import is_guest_vaddr
from pyxen.types import U64, Mfn

_EXCHANGE = 11
_NR_EXCHANGED = XenMemoryExchange.OFFSET["nr_exchanged"]


def exchange(d: Domain, argument: int) -> int:
    """Exchange chunk by chunk; nr_exchanged says how many input extents were, also on an error."""
    op = XenMemoryExchange.unpack(d.space.read(argument, XenMemoryExchange.SIZE))
    done = op.nr_exchanged
    if done == op.in_.nr_extents and _matches(op):
        return 0
    try:
        _check(d, op)
        chunk = max(op.out.extent_order - op.in_.extent_order, 0)
        first = done >> chunk
        done = first << chunk
        for n in range(first, op.in_.nr_extents >> chunk):
            if n > first and exhausted(d):
                raise Continue(_EXCHANGE, argument)
            work(d, 4 << max(op.in_.extent_order, op.out.extent_order))
            _exchange_chunk(d, op, n)
            done = (n + 1) << chunk
    except Restart:
        raise Continue(_EXCHANGE, argument) from None
    finally:
        d.space.write_u64(argument + _NR_EXCHANGED, done)
    return 0


def _matches(op: XenMemoryExchange) -> bool:
    pages = [
        side.nr_extents << side.extent_order if side.extent_order <= MAX_ORDER else -1
        for side in (op.in_, op.out)
    ]
    same = op.in_.domid == op.out.domid and pages[0] == pages[1]
    return same and 0 <= pages[0] <= U64 and op.nr_exchanged <= op.in_.nr_extents


def _check(d: Domain, op: XenMemoryExchange) -> None:
    if max(op.in_.extent_order, op.out.extent_order) > MAX_ORDER:
        raise XenError(E.PERM, f"extents of order {op.in_.extent_order}, {op.out.extent_order}")
    if not _matches(op):
        raise XenError(E.INVAL, "extents that do not match")
    for side in (op.in_, op.out):
        if side.nr_extents and not is_guest_vaddr(side.extent_start, 8 * side.nr_extents):
            raise XenError(E.FAULT, f"extents at {side.extent_start:#x}")
    if op.in_.domid not in (DOMID_SELF, d.domid):
        raise XenError(E.SRCH if op.in_.domid else E.PERM, f"memory of domain {op.in_.domid}")


def _exchange_chunk(d: Domain, op: XenMemoryExchange, n: int) -> None:
    """Exchange the n-th chunk. Raises: XenError, with nothing exchanged; Restart."""
    ins = 1 << max(op.out.extent_order - op.in_.extent_order, 0)
    outs = 1 << max(op.in_.extent_order - op.out.extent_order, 0)
    given = [
        mfn + k
        for j in range(ins)
        for mfn in [d.space.read_u64(op.in_.extent_start + 8 * (n * ins + j))]
        for k in range(1 << op.in_.extent_order)
    ]
    at = [op.out.extent_start + 8 * (n * outs + j) for j in range(outs)]
    pfns = [d.space.read_u64(vaddr) for vaddr in at]
    for vaddr in at:
        d.space.check_writable(vaddr, 8)
    got = _swap(d, given, op.out.extent_order, outs)
    # COMMIT (the pages of the lists are not among the frames: these are mapped nowhere)
    for vaddr, pfn, mfn in zip(at, pfns, got, strict=True):
        for k in range(1 << op.out.extent_order):
            d.reservation.set_m2p(mfn + k, pfn + k & U64)
        d.space.write_u64(vaddr, mfn)


def _swap(d: Domain, given: list[int], order: int, count: int) -> list[Mfn]:
    """Frames of this order for those that are given. Raises: XenError, with nothing changed."""
    if len(set(given)) != len(given):
        raise XenError(E.INVAL, "a frame twice")
    for mfn in given:
        d.types.check_unreferenced(mfn)
    for mfn in given:
        d.reservation.release(mfn)
    got: list[Mfn] = []
    try:
        for _ in range(count):
            got.append(d.reservation.allocate(order))
    except XenError:
        for mfn in got:
            for k in range(1 << order):
                d.reservation.release(mfn + k)
        d.reservation.take_again(given)
        raise
    return got
