"""What mmu_update and mmuext_op share: a list of records, how many are done, and whose frames.

Source: public/xen.h; xen/arch/x86/mm.c for the order of the checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyxen.abi.errno import E
from pyxen.abi.xen import DOMID_IO, DOMID_SELF, DOMID_XEN
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.continuation import Continue, exhausted, work
from pyxen.hypervisor.page_types import Restart
from pyxen.memory.pagetable import is_guest_vaddr
from pyxen.types import U16, U32, U64

MMU_UPDATE_PREEMPTED = 1 << 31


@dataclass(frozen=True, slots=True)
class Batch:
    """The arguments of the hypercall; `size` is that of a record."""

    vaddr: int
    count: int
    pdone: int
    foreigndom: int
    size: int


def check_page_owner(d: Domain, domid: int, *, io: bool = False) -> None:
    """Whether a domain may work on the frames of `domid`: only DOMID_SELF is its own.

    io: DOMID_IO is allowed, too (it owns nothing here).
    Raises: XenError(ESRCH) for a domain that there is not, and for the caller's own number, as
    Xen's get_pg_owner; XenError(EPERM) for domain 0.
    """
    domid &= U16
    if domid == DOMID_SELF or (io and domid == DOMID_IO):
        return
    if domid in (0, DOMID_IO, DOMID_XEN):
        raise XenError(E.PERM, f"the frames of domain {domid}")
    raise XenError(E.SRCH, f"there is no foreign domain {domid}")


def run(d: Domain, batch: Batch, act: Callable[[bytes], None]) -> int:
    """Do `act` on each of the guest's records; report how many were done, also on an error.

    Raises: Continue after a while; `done` then counts on from what it says.
    """
    count, before, done = batch.count & U32, 0, 0
    if count & MMU_UPDATE_PREEMPTED:
        count &= ~MMU_UPDATE_PREEMPTED
        before = int.from_bytes(d.space.try_read(batch.pdone, 4) or b"", "little")
    if count and not is_guest_vaddr(batch.vaddr, count * batch.size):
        raise XenError(E.FAULT, f"{count} records at {batch.vaddr:#x}")
    try:
        while done < count:
            at = batch.vaddr + done * batch.size & U64
            left = Continue(at, count - done | MMU_UPDATE_PREEMPTED, batch.pdone, batch.foreigndom)
            if done and exhausted(d):
                raise left
            try:
                act(d.space.read(at, batch.size))
            except Restart:
                raise left from None
            work(d)
            done += 1
    finally:
        if batch.pdone:
            # As in Xen, nobody hears of it if that cannot be written.
            d.space.try_write(batch.pdone, (before + done & U32).to_bytes(4, "little"))
    return 0
