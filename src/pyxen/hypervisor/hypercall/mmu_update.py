"""Page-table updates: mmu_update, update_va_mapping. Source: public/xen.h.

Each entry that the guest asks for is checked before it is written, on every path (also emulated
writes): hypervisor/page_types.py.
"""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.xen import (
    MMU_MACHPHYS_UPDATE,
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    UVMF_ALL,
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    MmuUpdate,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall import mmu_batch
from pyxen.hypervisor.hypercall.mmu_batch import check_page_owner
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.pagetable import entry_maddr, is_guest_vaddr
from pyxen.types import U32

_FOREIGN_TABLES_SHIFT = 16


def mmu_update(d: Domain, v: Vcpu, ureqs: int, count: int, pdone: int, foreigndom: int) -> int:
    """HYPERVISOR_mmu_update: `done` is how many requests were carried out, also on an error."""
    tables = (foreigndom & U32) >> _FOREIGN_TABLES_SHIFT
    if tables not in (0, d.domid + 1):
        raise XenError(E.PERM if tables == 1 else E.SRCH, f"page tables of domain {tables - 1}")
    check_page_owner(d, foreigndom, io=True)
    batch = mmu_batch.Batch(ureqs, count, pdone, foreigndom, MmuUpdate.SIZE)
    return mmu_batch.run(d, batch, lambda raw: _update(d, raw))


def _update(d: Domain, raw: bytes) -> None:
    request = MmuUpdate.unpack(raw)
    command, maddr = request.ptr & 7, request.ptr & ~7
    if command > MMU_PT_UPDATE_NO_TRANSLATE:
        raise XenError(E.NOSYS, f"update command {command}")
    if command == MMU_MACHPHYS_UPDATE:
        if not d.frames.is_domains(maddr >> 12):
            raise XenError(E.INVAL, f"frame {maddr >> 12:#x} is not the domain's")
        d.reservation.set_m2p(maddr >> 12, request.val)
    else:
        d.types.update(maddr, request.val, preserve_ad=command == MMU_PT_UPDATE_PRESERVE_AD)


def update_va_mapping(d: Domain, v: Vcpu, vaddr: int, value: int, flags: int) -> int:
    """HYPERVISOR_update_va_mapping: one L1 entry by the address it maps, with an optional flush."""
    maddr = entry_maddr(d.memory, d.space.cr3, vaddr) if is_guest_vaddr(vaddr) else None
    if maddr is None:
        raise XenError(E.INVAL, f"{vaddr:#x} has no page table")
    d.types.modify_l1(maddr, value)
    flush, which = flags & UVMF_FLUSHTYPE_MASK, flags & ~UVMF_FLUSHTYPE_MASK
    if flush in (UVMF_TLB_FLUSH, UVMF_INVLPG) and which not in (0, UVMF_ALL):
        d.space.read(which, 8)  # a bitmap of vCPUs; it is the same to us as all of them
    if flush == UVMF_TLB_FLUSH:
        d.flush_tlb(everywhere=which != 0)
    elif flush == UVMF_INVLPG:
        d.engine.flush_page(vaddr, everywhere=which != 0)
    return 0


def update_va_mapping_otherdomain(
    d: Domain, v: Vcpu, vaddr: int, value: int, flags: int, domid: int
) -> int:
    """HYPERVISOR_update_va_mapping_otherdomain: only for the domain's own frames."""
    check_page_owner(d, domid)
    return update_va_mapping(d, v, vaddr, value, flags)
