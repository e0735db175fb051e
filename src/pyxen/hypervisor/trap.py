"""Entering the guest kernel: bounce frames for traps, system calls, NMIs and events.

Source: public/arch-x86/xen.h (trap_info), public/arch-x86/xen-x86_64.h (struct iret_context),
public/callback.h. A frame on the guest's kernel stack, from the lowest address:

    rcx r11 [error_code] rip cs|saved_upcall_mask<<32 rflags rsp ss

The failsafe callback has the selectors ds es fs gs in the place of the error code.
"""

from __future__ import annotations

from struct import Struct

from pyxen.abi.arch_x86 import (
    FLAT_KERNEL_CS,
    FLAT_KERNEL_SS,
    FLAT_USER_CS32,
    FLAT_USER_CS64,
    FLAT_USER_SS32,
    FLAT_USER_SS64,
)
from pyxen.abi.arch_x86_traps import (
    X86_EXC_GP,
    X86_EXC_HAVE_EC,
    X86_EXC_NMI,
    X86_EXC_PF,
    X86_EXC_UD,
)
from pyxen.abi.callback import CALLBACKF_mask_events
from pyxen.cpu.base import SegmentCache, Trap
from pyxen.cpu.pvstate import PvState
from pyxen.errors import DomainCrash
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.selector import CS, SS
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import U64

EFLAGS_TF = 1 << 8
EFLAGS_IF = 1 << 9
EFLAGS_DF = 1 << 10
EFLAGS_IOPL = 3 << 12
EFLAGS_NT = 1 << 14
EFLAGS_RF = 1 << 16
EFLAGS_VM = 1 << 17
EFLAGS_AC = 1 << 18
CLEARED_ON_ENTRY = EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM | EFLAGS_AC

_SYSCALL_BYTES = 2
_NULL_USER_CS = 3
"""What SYSENTER leaves Xen to show: it does not save where it came from."""


def deliver_trap(
    d: Domain, v: Vcpu, trap: Trap, *, cs: int | None = None, ss: int | None = None
) -> None:
    """Hand an exception to the handler that the guest registered with set_trap_table.

    cs, ss: as for create_bounce_frame.
    Raises: DomainCrash if it registered none, or its stack cannot take the frame.
    """
    address = v.pv.traps_address[trap.vector]
    if address == 0:
        raise DomainCrash(
            f"trap {trap.vector} (error code {trap.error_code:#x}) at {d.engine.regs.rip:#x}, "
            "for which the guest has no handler"
        )
    has_error_code = X86_EXC_HAVE_EC >> trap.vector & 1 and not trap.software
    pushed = (trap.error_code,) if has_error_code else ()
    mask = bool(v.pv.traps_flags[trap.vector] & PvState.TRAP_MASK_EVENTS)
    create_bounce_frame(d, v, address, pushed, mask_events=mask, cs=cs, ss=ss)
    if trap.vector == X86_EXC_PF and not trap.software:
        v.set_cr2(trap.fault_address)


def deliver_syscall(d: Domain, v: Vcpu) -> None:
    """The guest's user mode made a system call; RIP is behind the instruction.

    As after SYSCALL on hardware, RCX and R11 hold RIP and RFLAGS. Without a callback it is #UD.
    """
    engine, regs = d.engine, d.engine.regs
    if engine.long_mode:
        address, cs, ss = v.pv.syscall_callback, FLAT_USER_CS64, FLAT_USER_SS64
    else:
        address, cs, ss = v.arch.syscall32_callback, FLAT_USER_CS32, FLAT_USER_SS32
    regs.rcx = regs.rip
    regs.r11 = regs.rflags
    if address == 0:
        regs.rip = (regs.rip - _SYSCALL_BYTES) & U64
        deliver_trap(d, v, Trap(X86_EXC_UD), cs=cs, ss=ss)
    else:
        # One flag for both instructions, as in Xen.
        mask = bool(v.pv.syscall_callback_flags & CALLBACKF_mask_events)
        create_bounce_frame(d, v, address, mask_events=mask, cs=cs, ss=ss)
    regs.rflags &= ~EFLAGS_DF


def deliver_sysenter(d: Domain, v: Vcpu) -> None:
    """SYSENTER, which keeps neither RIP nor RSP: both are shown as 0, and CS as null."""
    regs = d.engine.regs
    regs.rip = regs.rsp = 0
    if v.arch.sysenter_callback == 0:
        deliver_trap(d, v, Trap(X86_EXC_GP), cs=_NULL_USER_CS, ss=FLAT_USER_SS64)
        return
    create_bounce_frame(
        d,
        v,
        v.arch.sysenter_callback,
        mask_events=v.arch.sysenter_masks_events,
        cs=_NULL_USER_CS,
        ss=FLAT_USER_SS64,
    )


def deliver_events(d: Domain, v: Vcpu) -> None:
    """What waits for the guest: an NMI, then the upcall if one is pending and not masked."""
    if v.arch.nmi_pending and not v.pv.nmi_masked:
        _deliver_nmi(d, v)
    if v.pv.event_callback and v.upcall_pending and not v.upcall_mask:
        create_bounce_frame(d, v, v.pv.event_callback, mask_events=True)
        if d.trace is not None:
            d.trace.upcall(v)


def _deliver_nmi(d: Domain, v: Vcpu) -> None:
    """To the handler of trap 2; lost if there is none. Masked until the guest's next iret."""
    v.arch.nmi_pending = False
    if v.pv.traps_address[X86_EXC_NMI]:
        deliver_trap(d, v, Trap(X86_EXC_NMI))
        v.pv.nmi_masked = 1


def deliver_failsafe(d: Domain, v: Vcpu, selectors: tuple[int, int, int, int]) -> None:
    """Data segments could not be loaded: say which selectors DS, ES, FS and GS should have had.

    Source: load_segments of xen/arch/x86/domain.c; public/arch-x86/xen.h, HYPERVISOR_set_callbacks.
    """
    mask = bool(v.pv.failsafe_callback_flags & CALLBACKF_mask_events)
    create_bounce_frame(d, v, v.pv.failsafe_callback, selectors, mask_events=mask)


def create_bounce_frame(
    d: Domain,
    v: Vcpu,
    address: int,
    pushed: tuple[int, ...] = (),
    *,
    mask_events: bool,
    cs: int | None = None,
    ss: int | None = None,
) -> None:
    """Push a frame on the guest's kernel stack and go on at `address` in kernel mode.

    pushed: what stands between R11 and RIP.
    cs, ss: the selectors to show when the guest was in user mode; the loaded ones by default.
    Raises: DomainCrash if the stack cannot be written: what a double fault is to a processor.
    """
    engine, regs = d.engine, d.engine.regs
    from_user = engine.user_mode
    if from_user:
        cs = (regs.selector(CS) if cs is None else cs) | 3
        ss = regs.selector(SS) if ss is None else ss
        stack = v.pv.kernel_sp
    else:
        cs, ss, stack = FLAT_KERNEL_CS & ~3, FLAT_KERNEL_SS, regs.rsp
    saved_mask = v.upcall_mask
    flags = regs.rflags
    shown = flags & ~(EFLAGS_IF | EFLAGS_IOPL) | (0 if saved_mask else EFLAGS_IF)
    if d.pv.architectural_iopl:
        shown |= v.pv.iopl << 12
    words = (regs.rcx, regs.r11, *pushed, regs.rip, cs | saved_mask << 32, shown, regs.rsp, ss)
    frame = Struct(f"<{len(words)}Q").pack(*words)
    top = ((stack & ~15) - len(frame)) & U64
    if not d.space.try_write(top, frame):
        raise DomainCrash(
            f"double fault: the kernel stack at {top:#x} cannot take a frame for {address:#x}"
        )
    if from_user:
        enter_kernel(d, v)
    if mask_events:
        v.upcall_mask = 1
    regs.rsp = top
    regs.rip = address
    regs.rflags = flags & ~CLEARED_ON_ENTRY | EFLAGS_IF


def enter_kernel(d: Domain, v: Vcpu) -> None:
    """User to kernel mode, with the GS base of the kernel."""
    v.pv.gs_base_user = d.engine.regs.gs_base
    d.engine.regs.gs_base = v.pv.gs_base_kernel
    d.engine.enter_kernel_mode()


def enter_user(
    d: Domain,
    v: Vcpu,
    cs: int,
    ss: int,
    *,
    code: SegmentCache | None = None,
    stack: SegmentCache | None = None,
) -> None:
    """Kernel to user mode, with the GS base of user mode. Flat 64-bit segments by default."""
    v.pv.gs_base_kernel = d.engine.regs.gs_base
    d.engine.regs.gs_base = v.pv.gs_base_user
    d.engine.enter_user_mode(cs, ss, code=code, stack=stack)
