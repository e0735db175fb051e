"""Page-table updates: mmu_update, update_va_mapping, mmuext_op. Source: public/xen.h.

Each entry that the guest asks for is checked before it is written, on every path (also emulated
writes): it may only name frames that are the guest's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyxen.abi.errno import E
from pyxen.abi.xen import (
    DOMID_IO,
    DOMID_SELF,
    MMU_MACHPHYS_UPDATE,
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_FLUSH_CACHE,
    MMUEXT_INVLPG_ALL,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_INVLPG_MULTI,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_TLB_FLUSH_MULTI,
    MMUEXT_UNPIN_TABLE,
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    MmuextOp,
    MmuUpdate,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.continuation import Continue, exhausted, work
from pyxen.hypervisor.hypercall.descriptors import set_ldt
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.pagetable import (
    FIRST_XEN_SLOT,
    LAST_XEN_SLOT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PRESENT,
    entry_maddr,
    frame_of,
    is_guest_vaddr,
)
from pyxen.types import U16, U32, U64

MMU_UPDATE_PREEMPTED = 1 << 31
_FOREIGN_TABLES_SHIFT = 16


def check_entry(d: Domain, entry: int, maddr: int) -> None:
    """Whether the guest may have this page-table entry at this machine address.

    Raises: XenError(EINVAL) for a slot of the hypervisor, or a frame that is not the guest's.
    """
    slot = (maddr & 0xFFF) >> 3
    if FIRST_XEN_SLOT <= slot <= LAST_XEN_SLOT and d.frames.type(maddr >> 12) is FrameType.L4:
        raise XenError(E.INVAL, "an L4 slot of the hypervisor")
    if entry & PTE_PRESENT and not d.frames.is_domains(frame_of(entry)):
        raise XenError(E.INVAL, f"frame {frame_of(entry):#x} is not the domain's")


def mmu_update(d: Domain, v: Vcpu, ureqs: int, count: int, pdone: int, foreigndom: int) -> int:
    """HYPERVISOR_mmu_update: `done` is how many requests were carried out, also on an error."""
    tables = (foreigndom & U32) >> _FOREIGN_TABLES_SHIFT
    if foreigndom & U16 not in (DOMID_SELF, d.domid) or tables not in (0, d.domid + 1):
        raise XenError(E.PERM, "page tables of another domain")
    batch = _Batch(ureqs, count, pdone, foreigndom, MmuUpdate.SIZE)
    return _run(d, batch, lambda raw: _update(d, raw))


def _update(d: Domain, raw: bytes) -> None:
    request = MmuUpdate.unpack(raw)
    command, maddr = request.ptr & 7, request.ptr & ~7
    frame = maddr >> 12
    if command > MMU_PT_UPDATE_NO_TRANSLATE:
        raise XenError(E.NOSYS, f"update command {command}")
    _check_own(d, frame)
    if command == MMU_MACHPHYS_UPDATE:
        d.reservation.set_m2p(frame, request.val)
        return
    check_entry(d, request.val, maddr)
    # COMMIT
    value = request.val
    if command == MMU_PT_UPDATE_PRESERVE_AD:
        value |= d.memory.read_u64(maddr) & (PTE_ACCESSED | PTE_DIRTY)
    d.memory.write_u64(maddr, value)


def update_va_mapping(d: Domain, v: Vcpu, vaddr: int, value: int, flags: int) -> int:
    """HYPERVISOR_update_va_mapping: one L1 entry by the address it maps, with an optional flush."""
    maddr = entry_maddr(d.memory, d.space.cr3, vaddr) if is_guest_vaddr(vaddr) else None
    if maddr is None:
        raise XenError(E.INVAL, f"{vaddr:#x} has no page table")
    _check_own(d, maddr >> 12)
    check_entry(d, value, maddr)
    # COMMIT
    d.memory.write_u64(maddr, value)
    # The rest of the flags says on which vCPUs: UVMF_ALL, or where a list of them is.
    flush, everywhere = flags & UVMF_FLUSHTYPE_MASK, bool(flags & U64 & ~UVMF_FLUSHTYPE_MASK)
    if flush == UVMF_TLB_FLUSH:
        d.engine.flush_tlb(everywhere=everywhere)
    elif flush == UVMF_INVLPG:
        d.engine.flush_page(vaddr, everywhere=everywhere)
    return 0


def update_va_mapping_otherdomain(
    d: Domain, v: Vcpu, vaddr: int, value: int, flags: int, domid: int
) -> int:
    """HYPERVISOR_update_va_mapping_otherdomain: only for the domain itself."""
    if domid & U16 not in (DOMID_SELF, d.domid):
        raise XenError(E.PERM, "a mapping of another domain's frame")
    return update_va_mapping(d, v, vaddr, value, flags)


def mmuext_op(d: Domain, v: Vcpu, uops: int, count: int, pdone: int, foreigndom: int) -> int:
    """HYPERVISOR_mmuext_op."""
    if foreigndom & U16 not in (DOMID_SELF, d.domid, DOMID_IO):
        raise XenError(E.PERM, "operations on another domain")
    batch = _Batch(uops, count, pdone, foreigndom, MmuextOp.SIZE)
    return _run(d, batch, lambda raw: _extended(d, v, raw))


def _extended(d: Domain, v: Vcpu, raw: bytes) -> None:
    op = MmuextOp.unpack(raw)
    command = op.cmd
    if MMUEXT_PIN_L1_TABLE <= command <= MMUEXT_PIN_L4_TABLE:
        _check_own(d, op.arg1)
        d.frames.pin(op.arg1, FrameType(command - MMUEXT_PIN_L1_TABLE + 1))
        if command == MMUEXT_PIN_L4_TABLE:
            layout.set_xen_slots(d.memory, op.arg1)
    elif command == MMUEXT_UNPIN_TABLE:
        d.frames.unpin(op.arg1)
    elif command == MMUEXT_NEW_BASEPTR:
        _check_own(d, op.arg1)
        d.set_base_pointer(v, op.arg1)
    elif command == MMUEXT_NEW_USER_BASEPTR:
        if op.arg1:
            _check_own(d, op.arg1)
        v.pv.user_cr3 = op.arg1 << 12
    elif command in (MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_TLB_FLUSH_MULTI, MMUEXT_TLB_FLUSH_ALL):
        d.engine.flush_tlb(everywhere=command != MMUEXT_TLB_FLUSH_LOCAL)
    elif command in (MMUEXT_INVLPG_LOCAL, MMUEXT_INVLPG_MULTI, MMUEXT_INVLPG_ALL):
        d.engine.flush_page(op.arg1, everywhere=command != MMUEXT_INVLPG_LOCAL)
    elif command == MMUEXT_SET_LDT:
        set_ldt(d, v, op.arg1, op.arg2 & U32)
    elif command == MMUEXT_CLEAR_PAGE:
        _check_writable(d, op.arg1)
        d.memory.zero_page(op.arg1)
    elif command == MMUEXT_COPY_PAGE:
        _check_writable(d, op.arg1)
        _check_own(d, op.arg2)
        d.memory.copy_page(op.arg1, op.arg2)
    elif command == MMUEXT_FLUSH_CACHE:
        raise XenError(E.ACCES, "no device memory, so no cache to flush")
    else:
        raise XenError(E.NOSYS, f"mmuext_op {command}")


def _check_own(d: Domain, mfn: int) -> None:
    if not d.memory.is_guest_frame(mfn) or not d.frames.is_domains(mfn):
        raise XenError(E.INVAL, f"frame {mfn:#x} is not the domain's")


def _check_writable(d: Domain, mfn: int) -> None:
    _check_own(d, mfn)
    if d.frames.is_table(mfn):
        raise XenError(E.INVAL, f"frame {mfn:#x} is in use as {d.frames.type(mfn).name}")


@dataclass(frozen=True, slots=True)
class _Batch:
    """The arguments that mmu_update and mmuext_op share; `size` is that of a record."""

    vaddr: int
    count: int
    pdone: int
    foreigndom: int
    size: int


def _run(d: Domain, batch: _Batch, act: Callable[[bytes], None]) -> int:
    """Do `act` on each of the guest's records; report how many were done, also on an error.

    Raises: Continue after a while; `done` then counts on from what it says.
    """
    count, before, done = batch.count & U32, 0, 0
    if count & MMU_UPDATE_PREEMPTED:
        count &= ~MMU_UPDATE_PREEMPTED
        before = int.from_bytes(d.space.try_read(batch.pdone, 4) or b"", "little")
    try:
        while done < count:
            at = batch.vaddr + done * batch.size & U64
            if done and exhausted(d):
                left = count - done | MMU_UPDATE_PREEMPTED
                raise Continue(at, left, batch.pdone, batch.foreigndom)
            act(d.space.read(at, batch.size))
            work(d)
            done += 1
    finally:
        if batch.pdone:
            # As in Xen, nobody hears of it if that cannot be written.
            d.space.try_write(batch.pdone, (before + done & U32).to_bytes(4, "little"))
    return 0
