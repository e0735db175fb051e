"""HYPERVISOR_iret: the way out of the guest kernel.

Source: public/arch-x86/xen-x86_64.h, struct iret_context. Xen leaves with the processor's own
IRETQ, or with SYSRETQ if the context says VGCF_in_syscall; a fault of theirs is shown to the guest
as one of the code that was returned to.
"""

from __future__ import annotations

from struct import Struct

from pyxen.abi.arch_x86 import (
    FLAT_USER_CS32,
    FLAT_USER_CS64,
    FLAT_USER_SS64,
    VGCF_in_syscall,
)
from pyxen.abi.arch_x86_traps import X86_EXC_GP
from pyxen.cpu.base import SegmentCache, Trap
from pyxen.errors import DomainCrash
from pyxen.hypervisor import privilege
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.msr import is_canonical
from pyxen.hypervisor.selector import LONG, code_segment, stack_segment
from pyxen.hypervisor.trap import (
    EFLAGS_IF,
    EFLAGS_IOPL,
    EFLAGS_RF,
    EFLAGS_VM,
    deliver_trap,
    enter_user,
)
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import U32

IRET_CONTEXT = Struct("<9Q")
_LONG_ATTRIBUTE = LONG >> 32


def iret(d: Domain, v: Vcpu) -> None:
    """Continue where the iret_context on the guest's stack says.

    Raises: DomainCrash if the context cannot be read, or there is no user page table.
    """
    regs = d.engine.regs
    data = d.space.try_read(regs.rsp, IRET_CONTEXT.size)
    if data is None:
        raise DomainCrash(f"the iret context at {regs.rsp:#x} cannot be read")
    rax, r11, rcx, flags, rip, cs, rflags, rsp, ss = IRET_CONTEXT.unpack(data)
    cs, ss = cs & 0xFFFF, ss & 0xFFFF
    to_user = cs & 3 == 3
    if to_user and v.pv.user_cr3 == 0:
        raise DomainCrash("iret to user mode without a user page table")
    if d.pv.architectural_iopl:
        v.pv.iopl = rflags >> 12 & 3
        privilege.update_ports(d, v)
    new_flags = rflags & ~(EFLAGS_IOPL | EFLAGS_VM) | EFLAGS_IF
    sysret = bool(flags & VGCF_in_syscall)
    if sysret:
        r11, rcx = new_flags, rip
    if sysret and is_canonical(rip):
        new_flags &= ~EFLAGS_RF
        cs = FLAT_USER_CS32 if cs == FLAT_USER_CS32 else FLAT_USER_CS64
        ss = FLAT_USER_SS64
    code = code_segment(d, v, cs | 3, user=to_user)
    stack = stack_segment(d, v, ss | 3, user=to_user)
    fault = _fault(code, stack, rip)
    if to_user:
        if isinstance(code, SegmentCache) and not code.attributes & _LONG_ATTRIBUTE:
            rip, rsp = rip & U32, rsp & U32
        _enter_user(d, v, cs, ss | 3, code, stack)
    regs.rip, regs.rsp, regs.rax = rip, rsp, rax
    regs.rcx, regs.r11 = rcx, r11
    regs.rflags = new_flags
    v.upcall_mask = 0 if rflags & EFLAGS_IF else 1
    v.pv.nmi_masked = 0
    if fault is not None:
        deliver_trap(d, v, fault)


def _fault(code: SegmentCache | Trap, stack: SegmentCache | Trap, rip: int) -> Trap | None:
    """What IRETQ finds wrong, in the order in which it looks."""
    if isinstance(code, Trap):
        return code
    if isinstance(stack, Trap):
        return stack
    if code.attributes & _LONG_ATTRIBUTE:
        return None if is_canonical(rip) else Trap(X86_EXC_GP)
    return Trap(X86_EXC_GP) if rip & U32 > code.limit else None


def _enter_user(
    d: Domain,
    v: Vcpu,
    cs: int,
    ss: int,
    code: SegmentCache | Trap,
    stack: SegmentCache | Trap,
) -> None:
    """User mode on these segments. Bases and limits mean nothing in 64-bit mode: flat is right."""
    if isinstance(code, Trap) or isinstance(stack, Trap) or code.attributes & _LONG_ATTRIBUTE:
        enter_user(d, v, cs, ss)
    else:
        enter_user(d, v, cs, ss, code=code, stack=stack)
