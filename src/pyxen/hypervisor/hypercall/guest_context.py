"""Starting a vCPU from a vcpu_guest_context. Source: public/arch-x86/xen.h, VCPUOP_initialise."""

from __future__ import annotations

import contextlib

from pyxen.abi.arch_x86 import (
    FIRST_RESERVED_GDT_ENTRY,
    VcpuGuestContext,
    VGCF_failsafe_disables_events,
    VGCF_syscall_disables_events,
)
from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.continuation import work
from pyxen.hypervisor.hypercall.cpu_state import fpu_taskswitch, set_cr4, set_debugreg
from pyxen.hypervisor.hypercall.descriptors import check_ldt, load_gdt, load_ldt
from pyxen.hypervisor.msr import is_canonical
from pyxen.hypervisor.privilege import update_ports
from pyxen.hypervisor.selector import DS, ES, FS, GS
from pyxen.hypervisor.trap import EFLAGS_IF, EFLAGS_IOPL
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.frames import FrameType
from pyxen.memory.pagetable import is_guest_vaddr

_GPRS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"),
)

_ADDRESSES = (
    *("kernel_sp", "fs_base", "gs_base_kernel", "gs_base_user"),
    *("event_callback_eip", "failsafe_callback_eip", "syscall_callback_eip"),
)
_DATA_SEGMENTS = {DS: "ds", ES: "es", FS: "fs", GS: "gs"}
_WORK = 256
CR0_TS = 1 << 3


def start_vcpu(d: Domain, target: Vcpu, context: VcpuGuestContext) -> None:
    """Give a vCPU its first state; it stays down until VCPUOP_up.

    Raises: XenError(EINVAL) for page or descriptor tables or handlers it may not have.
    """
    work(d, _WORK)
    l4 = context.ctrlreg[3] >> 12
    user_l4 = context.ctrlreg[1] >> 12
    if context.gdt_ents > FIRST_RESERVED_GDT_ENTRY:
        raise XenError(E.INVAL, f"{context.gdt_ents} descriptors")
    for trap in context.trap_ctxt:
        if trap.address and not is_guest_vaddr(trap.address):
            raise XenError(E.INVAL, f"trap handler at {trap.address:#x}")
    for name in _ADDRESSES:
        if not is_canonical(getattr(context, name)):
            raise XenError(E.INVAL, f"{name} {getattr(context, name):#x}")
    if not (is_canonical(context.user_regs.rip) and is_canonical(context.user_regs.rsp)):
        raise XenError(E.INVAL, f"rip {context.user_regs.rip:#x} rsp {context.user_regs.rsp:#x}")
    check_ldt(context.ldt_base, max(context.ldt_ents, 1))  # its place counts even if it is empty
    pages = (context.gdt_ents + 511) // 512
    _use_tables(d, target, l4, user_l4, list(context.gdt_frames[:pages]))
    # COMMIT
    load_ldt(d, target, context.ldt_base, context.ldt_ents)
    _set_entry_points(target, context)
    _set_registers(d, target, context)


def _use_tables(d: Domain, target: Vcpu, l4: int, user_l4: int, gdt_frames: list[int]) -> None:
    """Take page and descriptor tables into use, or nothing. Raises: XenError, Restart."""
    with contextlib.ExitStack() as undo:
        for mfn in (l4, user_l4) if user_l4 else (l4,):
            d.types.get_page_and_type(mfn, FrameType.L4)
            undo.callback(d.types.put_page_and_type, mfn)
        load_gdt(d, target, gdt_frames)
        undo.pop_all()
    target.pv.cr3 = l4 << 12
    target.pv.user_cr3 = user_l4 << 12


def _set_entry_points(target: Vcpu, context: VcpuGuestContext) -> None:
    pv = target.pv
    for vector, trap in enumerate(context.trap_ctxt):
        pv.traps_address[vector] = trap.address
        pv.traps_flags[vector] = trap.flags | trap.cs << 16
    pv.kernel_ss, pv.kernel_sp = context.kernel_ss, context.kernel_sp
    pv.event_callback = context.event_callback_eip
    pv.failsafe_callback = context.failsafe_callback_eip
    pv.syscall_callback = context.syscall_callback_eip
    pv.failsafe_callback_flags = int(bool(context.flags & VGCF_failsafe_disables_events))
    pv.syscall_callback_flags = int(bool(context.flags & VGCF_syscall_disables_events))
    pv.gs_base_user = context.gs_base_user


def _set_registers(d: Domain, target: Vcpu, context: VcpuGuestContext) -> None:
    caller = d.current
    d.engine.select(target.vcpu_id)
    regs = d.engine.regs
    for name in _GPRS:
        setattr(regs, name, getattr(context.user_regs, name))
    regs.rflags = context.user_regs.rflags & ~EFLAGS_IOPL | EFLAGS_IF
    target.pv.iopl = context.user_regs.rflags >> 12 & 3
    d.engine.enter_kernel_mode()
    for segment, name in _DATA_SEGMENTS.items():
        # What they name is looked at when the vCPU first runs (context_switch.py).
        regs.set_segment(segment, getattr(context.user_regs, name), 0, 0, 0)
    regs.fs_base = context.fs_base
    regs.gs_base = context.gs_base_kernel
    d.engine.set_cr3(target.pv.cr3)
    fpu_taskswitch(d, target, context.ctrlreg[0] & CR0_TS)
    set_cr4(d, target, context.ctrlreg[4])
    for register in (0, 1, 2, 3, 6, 7):
        with contextlib.suppress(XenError):  # what is refused stays as it was, as in Xen
            set_debugreg(d, target, register, context.debugreg[register])
    update_ports(d, target)
    d.engine.select(caller.vcpu_id)
