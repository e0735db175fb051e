"""HYPERVISOR_mmuext_op: pins, base pointers, flushes, LDT. Source: public/xen.h."""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.xen import (
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_FLUSH_CACHE,
    MMUEXT_FLUSH_CACHE_GLOBAL,
    MMUEXT_INVLPG_ALL,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_INVLPG_MULTI,
    MMUEXT_MARK_SUPER,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_TLB_FLUSH_MULTI,
    MMUEXT_UNMARK_SUPER,
    MMUEXT_UNPIN_TABLE,
    MmuextOp,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall import mmu_batch
from pyxen.hypervisor.hypercall.descriptors import map_ldt, set_ldt
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.frames import FrameType
from pyxen.memory.pagetable import is_guest_vaddr
from pyxen.types import U32


def mmuext_op(d: Domain, v: Vcpu, uops: int, count: int, pdone: int, foreigndom: int) -> int:
    """HYPERVISOR_mmuext_op: `done` is how many operations were carried out, also on an error."""
    mmu_batch.check_page_owner(d, foreigndom)
    batch = mmu_batch.Batch(uops, count, pdone, foreigndom, MmuextOp.SIZE)
    return mmu_batch.run(d, batch, lambda raw: _operation(d, v, MmuextOp.unpack(raw)))


def _operation(d: Domain, v: Vcpu, op: MmuextOp) -> None:
    command = op.cmd
    if MMUEXT_PIN_L1_TABLE <= command <= MMUEXT_PIN_L4_TABLE:
        d.types.pin(op.arg1, FrameType(command - MMUEXT_PIN_L1_TABLE + 1))
    elif command == MMUEXT_UNPIN_TABLE:
        d.types.unpin(op.arg1)
    elif command == MMUEXT_NEW_BASEPTR:
        d.set_base_pointer(v, op.arg1)
        if v.pv.ldt_entries:
            map_ldt(d, v)
    elif command == MMUEXT_NEW_USER_BASEPTR:
        d.set_user_base_pointer(v, op.arg1)
    elif command == MMUEXT_SET_LDT:
        set_ldt(d, v, op.arg1, op.arg2 & U32)
    elif command in (MMUEXT_CLEAR_PAGE, MMUEXT_COPY_PAGE):
        _fill_page(d, op)
    elif command in (MMUEXT_FLUSH_CACHE, MMUEXT_FLUSH_CACHE_GLOBAL):
        raise XenError(E.ACCES, "no device memory, so no cache to flush")
    elif command in (MMUEXT_MARK_SUPER, MMUEXT_UNMARK_SUPER):
        raise XenError(E.OPNOTSUPP, "superpages")
    else:
        _flush(d, op)


def _fill_page(d: Domain, op: MmuextOp) -> None:
    """CLEAR_PAGE, COPY_PAGE: arg1 is the frame to write, arg2 the one to read."""
    if op.cmd == MMUEXT_COPY_PAGE and not d.frames.is_domains(op.arg2):
        raise XenError(E.INVAL, f"frame {op.arg2:#x} is not the domain's")
    d.types.check_writable(op.arg1)
    # COMMIT
    if op.cmd == MMUEXT_CLEAR_PAGE:
        d.memory.zero_page(op.arg1)
    else:
        d.memory.copy_page(op.arg1, op.arg2)


def _flush(d: Domain, op: MmuextOp) -> None:
    """MULTI and ALL are the same here: the translations of all vCPUs."""
    multi = op.cmd in (MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI)
    if multi and d.space.try_read(op.arg2, 8) is None:
        raise XenError(E.INVAL, f"bitmap of vCPUs at {op.arg2:#x}")
    if op.cmd in (MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_TLB_FLUSH_MULTI, MMUEXT_TLB_FLUSH_ALL):
        d.flush_tlb(everywhere=op.cmd != MMUEXT_TLB_FLUSH_LOCAL)
    elif op.cmd in (MMUEXT_INVLPG_LOCAL, MMUEXT_INVLPG_MULTI, MMUEXT_INVLPG_ALL):
        if is_guest_vaddr(op.arg1):
            d.engine.flush_page(op.arg1, everywhere=op.cmd != MMUEXT_INVLPG_LOCAL)
    else:
        raise XenError(E.NOSYS, f"mmuext_op {op.cmd}")
