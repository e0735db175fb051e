"""Entering the guest kernel: bounce frames for traps, system calls and events, and the way back.

Source: public/arch-x86/xen.h (trap_info), public/arch-x86/xen-x86_64.h (struct iret_context),
public/callback.h. A frame on the guest's kernel stack, from the lowest address:

    rcx r11 [error_code] rip cs|saved_upcall_mask<<32 rflags rsp ss
"""

from __future__ import annotations

from struct import Struct

from pyxen.abi.arch_x86 import (
    FLAT_KERNEL_CS,
    FLAT_KERNEL_SS,
    FLAT_USER_CS64,
    FLAT_USER_SS64,
    VGCF_in_syscall,
)
from pyxen.abi.callback import CALLBACKF_mask_events
from pyxen.cpu.base import Trap
from pyxen.cpu.pvstate import PvState
from pyxen.errors import DomainCrash
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory import layout
from pyxen.memory.pagetable import PTE_PRESENT, frame_of
from pyxen.types import U64

EFLAGS_TF = 1 << 8
EFLAGS_IF = 1 << 9
EFLAGS_IOPL = 3 << 12
EFLAGS_NT = 1 << 14
EFLAGS_RF = 1 << 16
EFLAGS_VM = 1 << 17
EFLAGS_AC = 1 << 18
CLEARED_ON_ENTRY = EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM | EFLAGS_AC

TRAP_divide_error = 0
TRAP_debug = 1
TRAP_int3 = 3
TRAP_overflow = 4
TRAP_invalid_op = 6
TRAP_no_device = 7
TRAP_double_fault = 8
TRAP_gp_fault = 13
TRAP_page_fault = 14
HAVE_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})


SEGMENT_CS, SEGMENT_SS = 1, 2
IRET_CONTEXT = Struct("<9Q")

SELECTOR_LDT = 4
LDT_PAGE = 16
"""Where the LDT begins in a vCPU's descriptor window, in pages."""
DESCRIPTOR_LONG = 1 << 53
USER_CODE = 0xF8 << 40
"""Present, privilege level 3, not a system segment, code."""


def deliver_trap(d: Domain, v: Vcpu, trap: Trap) -> None:
    """Hand an exception to the handler that the guest registered with set_trap_table.

    Raises: DomainCrash if it registered none, or its stack cannot take the frame.
    """
    address = v.pv.traps_address[trap.vector]
    if address == 0:
        raise DomainCrash(
            f"trap {trap.vector} (error code {trap.error_code:#x}) at {d.engine.regs.rip:#x}, "
            "for which the guest has no handler"
        )
    if trap.vector == TRAP_page_fault:
        v.set_cr2(trap.fault_address)
    error_code = trap.error_code if trap.vector in HAVE_ERROR_CODE else None
    mask = bool(v.pv.traps_flags[trap.vector] & PvState.TRAP_MASK_EVENTS)
    create_bounce_frame(d, v, address, error_code, mask_events=mask)


def deliver_syscall(d: Domain, v: Vcpu) -> None:
    """The guest's user mode made a system call; RIP is behind the instruction.

    As after SYSCALL on hardware, RCX and R11 hold RIP and RFLAGS.
    """
    regs = d.engine.regs
    if v.pv.syscall_callback == 0:
        raise DomainCrash("a system call, for which the guest has no callback")
    regs.rcx = regs.rip
    regs.r11 = regs.rflags
    mask = bool(v.pv.syscall_callback_flags & CALLBACKF_mask_events)
    create_bounce_frame(
        d, v, v.pv.syscall_callback, None, mask_events=mask, cs=FLAT_USER_CS64, ss=FLAT_USER_SS64
    )


def deliver_events(d: Domain, v: Vcpu) -> None:
    """The upcall, if an event is pending, not masked, and the guest has a callback for it."""
    if v.pv.event_callback and v.upcall_pending and not v.upcall_mask:
        create_bounce_frame(d, v, v.pv.event_callback, None, mask_events=True)
        if d.trace is not None:
            d.trace.upcall(v)


def create_bounce_frame(
    d: Domain,
    v: Vcpu,
    address: int,
    error_code: int | None,
    *,
    mask_events: bool,
    cs: int | None = None,
    ss: int | None = None,
) -> None:
    """Push a frame on the guest's kernel stack and go on at `address` in kernel mode.

    cs, ss: the selectors to show when the guest was in user mode; the loaded ones by default.
    Raises: DomainCrash if the stack cannot be written.
    """
    engine, regs = d.engine, d.engine.regs
    from_user = engine.user_mode
    if from_user:
        cs = (regs.selector(SEGMENT_CS) if cs is None else cs) | 3
        ss = regs.selector(SEGMENT_SS) if ss is None else ss
        stack = v.pv.kernel_sp
    else:
        cs, ss, stack = FLAT_KERNEL_CS & ~3, FLAT_KERNEL_SS, regs.rsp
    saved_mask = v.upcall_mask
    flags = regs.rflags
    shown = flags & ~(EFLAGS_IF | EFLAGS_IOPL) | (0 if saved_mask else EFLAGS_IF)
    error = () if error_code is None else (error_code,)
    words = (regs.rcx, regs.r11, *error, regs.rip, cs | saved_mask << 32, shown, regs.rsp, ss)
    frame = Struct(f"<{len(words)}Q").pack(*words)
    top = ((stack & ~15) - len(frame)) & U64
    if not d.space.try_write(top, frame):
        raise DomainCrash(f"the kernel stack at {top:#x} cannot take a frame for {address:#x}")
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


def enter_user(d: Domain, v: Vcpu, cs: int, ss: int, *, long_mode: bool) -> None:
    """Kernel to user mode, with the GS base of user mode."""
    v.pv.gs_base_kernel = d.engine.regs.gs_base
    d.engine.regs.gs_base = v.pv.gs_base_user
    d.engine.enter_user_mode(cs, ss, long_mode=long_mode)


def user_code_descriptor(d: Domain, v: Vcpu, selector: int) -> int | None:
    """The descriptor of a code segment that user mode may load; None if it is anything else."""
    page = (selector >> 12) + (LDT_PAGE if selector & SELECTOR_LDT else 0)
    mapping = d.memory.read_u64(layout.descriptor_pte_maddr(v.vcpu_id, page))
    if not mapping & PTE_PRESENT:
        return None
    descriptor = d.memory.words[(frame_of(mapping) << 9) + ((selector & 0xFFF) >> 3)]
    return descriptor if descriptor & USER_CODE == USER_CODE else None


def iret(d: Domain, v: Vcpu) -> None:
    """HYPERVISOR_iret: continue where the iret_context on the guest's stack says.

    Source: public/arch-x86/xen-x86_64.h, struct iret_context.
    Raises: DomainCrash if the context cannot be read.
    """
    regs = d.engine.regs
    data = d.space.try_read(regs.rsp, IRET_CONTEXT.size)
    if data is None:
        raise DomainCrash(f"the iret context at {regs.rsp:#x} cannot be read")
    rax, r11, rcx, flags, rip, cs, rflags, rsp, ss = IRET_CONTEXT.unpack(data)
    descriptor = None
    if cs & 3 == 3:
        if v.pv.user_cr3 == 0:
            raise DomainCrash("iret to user mode without a user page table")
        descriptor = user_code_descriptor(d, v, cs & 0xFFFF)
        long_mode = descriptor is None or bool(descriptor & DESCRIPTOR_LONG)
        enter_user(d, v, cs & 0xFFFF, ss & 0xFFFF | 3, long_mode=long_mode)
    regs.rip, regs.rsp, regs.rax = rip, rsp, rax
    regs.rflags = rflags & ~(EFLAGS_IOPL | EFLAGS_VM | EFLAGS_NT) | EFLAGS_IF
    if flags & VGCF_in_syscall:
        regs.rcx, regs.r11 = rip, rflags
    else:
        regs.rcx, regs.r11 = rcx, r11
    v.upcall_mask = 0 if rflags & EFLAGS_IF else 1
    if d.engine.user_mode and descriptor is None:
        # Xen's own IRET would fault here; what the guest sees is a fault of its user mode.
        deliver_trap(d, v, Trap(TRAP_gp_fault, cs & 0xFFFC))
