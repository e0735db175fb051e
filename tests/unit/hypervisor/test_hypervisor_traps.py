"""Into the guest kernel and back: bounce frames, iret, which trap goes where."""

from __future__ import annotations

from struct import Struct

import pytest
from pv_guest import GDT, L4, NOT_MAPPED, SELF, STACK, TEXT, PvGuest

from pyxen.abi.vcpu import VCPUOP_send_nmi
from pyxen.abi.xen import MMUEXT_SET_LDT, MmuextOp
from pyxen.cpu.base import (
    GUEST_SYSCALL,
    GUEST_SYSENTER,
    HYPERCALL,
    PREEMPTED,
    EngineFailure,
    Trap,
)
from pyxen.errors import DomainCrash
from pyxen.hypervisor import trap

HANDLER = 0xFFFF_FFFF_8100_0000
KERNEL_CS, KERNEL_SS = 0xE030, 0xE02B
USER_CS, USER_SS = 0xE033, 0xE02B
KERNEL_STACK = STACK - 0x100
IF, TF, NT, AC, RF, IOPL, VM, DF = 0x200, 0x100, 0x4000, 1 << 18, 1 << 16, 0x3000, 1 << 17, 0x400
CF = 1
RCX, R11, RIP, RSP = 0x11, 0x22, TEXT + 0x33, STACK - 0x18


def in_kernel(guest: PvGuest, flags: int = IF | CF | 2) -> None:
    regs = guest.regs
    regs.rcx, regs.r11, regs.rip, regs.rsp, regs.rflags = RCX, R11, RIP, RSP, flags
    guest.engine.enter_kernel_mode()


def in_user(guest: PvGuest, flags: int = IF | CF | 2) -> None:
    in_kernel(guest, flags)
    guest.vcpu.pv.kernel_sp = KERNEL_STACK
    guest.vcpu.pv.gs_base_kernel = 0x6B65_726E
    guest.regs.gs_base = 0x7573_6572
    guest.regs.rip, guest.regs.rsp = 0x401000, 0x7FFF_0008
    guest.engine.enter_user_mode(USER_CS, USER_SS)


def set_handler(guest: PvGuest, vector: int, address: int = HANDLER, flags: int = 0) -> None:
    guest.vcpu.pv.traps_address[vector] = address
    guest.vcpu.pv.traps_flags[vector] = flags


# --- frames -----------------------------------------------------------------------------------


def test_frame_from_kernel_mode(guest: PvGuest) -> None:
    in_kernel(guest)
    set_handler(guest, 6)
    guest.handle(Trap(6))
    regs = guest.regs
    assert regs.rsp == (RSP & ~15) - 56
    assert guest.words(regs.rsp, 7) == (RCX, R11, RIP, KERNEL_CS, IF | CF | 2, RSP, KERNEL_SS)
    assert (regs.rip, guest.engine.user_mode) == (HANDLER, False)
    assert (regs.rcx, regs.r11) == (RCX, R11), "only the frame has them"


def test_frame_with_an_error_code(guest: PvGuest) -> None:
    in_kernel(guest)
    set_handler(guest, 13)
    guest.handle(Trap(13, 0x18))
    assert guest.regs.rsp == (RSP & ~15) - 64
    frame = guest.words(guest.regs.rsp, 8)
    assert frame == (RCX, R11, 0x18, RIP, KERNEL_CS, IF | CF | 2, RSP, KERNEL_SS)


@pytest.mark.parametrize("vector", range(32))
def test_which_vectors_have_an_error_code(guest: PvGuest, vector: int) -> None:
    in_kernel(guest)
    set_handler(guest, vector)
    guest.handle(Trap(vector, 4))
    has = vector in (8, 10, 11, 12, 13, 14, 17, 21)
    assert guest.regs.rsp == (RSP & ~15) - (64 if has else 56)


def test_frame_from_user_mode(guest: PvGuest) -> None:
    in_user(guest)
    set_handler(guest, 0)
    guest.handle(Trap(0))
    regs = guest.regs
    assert regs.rsp == KERNEL_STACK - 56
    wanted = (RCX, R11, 0x401000, USER_CS, IF | CF | 2, 0x7FFF_0008, USER_SS)
    assert guest.words(regs.rsp, 7) == wanted
    assert not guest.engine.user_mode
    assert regs.gs_base == 0x6B65_726E
    assert guest.vcpu.pv.gs_base_user == 0x7573_6572


def test_a_32_bit_user_frame_shows_the_loaded_selectors(guest: PvGuest) -> None:
    in_user(guest)
    guest.engine.enter_user_mode(0xE023, 0xE02B, long_mode=False)
    set_handler(guest, 0)
    guest.handle(Trap(0))
    assert guest.words(guest.regs.rsp, 7)[3] == 0xE023


def test_an_unaligned_stack_is_aligned(guest: PvGuest) -> None:
    for offset in range(16):
        in_kernel(guest)
        guest.regs.rsp = STACK - 64 + offset
        set_handler(guest, 6)
        guest.handle(Trap(6))
        assert guest.regs.rsp == STACK - 64 - 56
        assert guest.words(guest.regs.rsp, 7)[5] == STACK - 64 + offset


def test_the_frame_may_cross_a_page(guest: PvGuest) -> None:
    in_kernel(guest)
    boundary = STACK - 4096
    guest.regs.rsp = boundary + 16
    set_handler(guest, 6)
    guest.handle(Trap(6))
    assert guest.words(boundary + 16 - 56, 7)[2] == RIP


@pytest.mark.parametrize("mask", [0, 1, 0xFF])
def test_the_event_mask_is_saved_and_shown_as_if(guest: PvGuest, mask: int) -> None:
    in_kernel(guest)
    set_handler(guest, 6)
    guest.set_mask(mask)
    guest.handle(Trap(6))
    words = guest.words(guest.regs.rsp, 7)
    assert words[3] == KERNEL_CS | mask << 32
    assert bool(words[4] & IF) == (mask == 0)
    assert guest.vcpu.upcall_mask == mask


def test_a_gate_may_mask_events(guest: PvGuest) -> None:
    in_kernel(guest)
    set_handler(guest, 6, flags=guest.vcpu.pv.TRAP_MASK_EVENTS)
    guest.handle(Trap(6))
    assert guest.vcpu.upcall_mask == 1
    assert guest.words(guest.regs.rsp, 7)[3] >> 32 == 0, "what it was before"


def test_flags_on_entry(guest: PvGuest) -> None:
    in_kernel(guest, IF | TF | NT | AC | RF | DF | CF | 2)
    set_handler(guest, 1)
    guest.handle(Trap(1))
    assert guest.words(guest.regs.rsp, 7)[4] == IF | TF | NT | AC | RF | DF | CF | 2
    assert guest.regs.rflags == IF | DF | CF | 2


def test_iopl_is_not_shown(guest: PvGuest) -> None:
    in_kernel(guest, IF | IOPL | 2)
    set_handler(guest, 6)
    guest.handle(Trap(6))
    assert guest.words(guest.regs.rsp, 7)[4] == IF | 2


@pytest.mark.parametrize("stack", [0, 16, NOT_MAPPED + 256, 0xFFFF_8000_0000_1000, 1 << 47])
def test_a_stack_that_takes_no_frame_crashes_the_domain(guest: PvGuest, stack: int) -> None:
    in_kernel(guest)
    guest.regs.rsp = stack
    set_handler(guest, 6)
    with pytest.raises(DomainCrash, match="stack"):
        guest.handle(Trap(6))


def test_a_read_only_stack_crashes_the_domain(guest: PvGuest) -> None:
    in_user(guest)
    guest.protect(33)
    set_handler(guest, 0)
    with pytest.raises(DomainCrash, match="stack"):
        guest.handle(Trap(0))
    assert guest.engine.user_mode, "nothing was changed"
    assert guest.regs.gs_base == 0x7573_6572


def test_a_trap_without_a_handler_crashes_the_domain(guest: PvGuest) -> None:
    in_kernel(guest)
    with pytest.raises(DomainCrash, match=r"trap 6 .*no handler"):
        guest.handle(Trap(6))


# --- page faults ------------------------------------------------------------------------------


def test_a_page_fault_shows_its_address(guest: PvGuest) -> None:
    in_user(guest)
    set_handler(guest, 14)
    guest.handle(Trap(14, 6, 0x1234_5000))
    assert guest.vcpu.cr2() == 0x1234_5000
    assert guest.words(guest.regs.rsp, 8)[2] == 6


def test_a_write_fault_on_a_read_only_page_of_the_kernel_may_be_the_guests(guest: PvGuest) -> None:
    """The instruction is no store: the fault is delivered like any other."""
    in_kernel(guest)
    guest.regs.rip = TEXT
    guest.write(TEXT, b"\x90")
    guest.protect(50)
    set_handler(guest, 14)
    guest.handle(Trap(14, 3, guest.vaddr(50)))
    assert guest.vcpu.cr2() == guest.vaddr(50)
    assert guest.regs.rip == HANDLER


# --- which trap goes where --------------------------------------------------------------------


def test_no_device_clears_ts_before_the_guest_sees_it(guest: PvGuest) -> None:
    in_user(guest)
    set_handler(guest, 7)
    guest.call("fpu_taskswitch", 1)
    assert guest.engine.vcpu.task_switched
    guest.handle(Trap(7))
    assert not guest.engine.vcpu.task_switched
    assert not guest.vcpu.task_switched
    assert guest.regs.rip == HANDLER


@pytest.mark.parametrize(("vector", "length"), [(1, 2), (14, 2), (0x81, 2), (0x20, 2)])
@pytest.mark.parametrize("user", [False, True])
def test_software_interrupts_need_the_gates_permission(
    guest: PvGuest, vector: int, length: int, user: bool
) -> None:
    set_handler(guest, vector, flags=3 if user else 1)
    set_handler(guest, 13, HANDLER + 0x100)
    (in_user if user else in_kernel)(guest)
    rip = guest.regs.rip
    guest.handle(Trap(vector, software=True))
    assert guest.regs.rip == HANDLER
    assert guest.words(guest.regs.rsp, 7)[2] == rip, "behind the instruction"

    set_handler(guest, vector, flags=2 if user else 0)
    (in_user if user else in_kernel)(guest)
    guest.handle(Trap(vector, software=True))
    assert guest.regs.rip == HANDLER + 0x100
    frame = guest.words(guest.regs.rsp, 8)
    assert frame[2] == vector * 8 + 2
    assert frame[3] == rip - length, "at the instruction"


@pytest.mark.parametrize("vector", [3, 4, 0x80])
@pytest.mark.parametrize("user", [False, True])
def test_some_software_interrupts_are_everybodys(guest: PvGuest, vector: int, user: bool) -> None:
    set_handler(guest, vector, flags=0)
    (in_user if user else in_kernel)(guest)
    rip = guest.regs.rip
    guest.handle(Trap(vector, software=True))
    assert guest.regs.rip == HANDLER
    assert guest.words(guest.regs.rsp, 7)[2] == rip, "behind the instruction"


def test_int_0x80_without_a_handler(guest: PvGuest) -> None:
    set_handler(guest, 13)
    in_user(guest)
    guest.handle(Trap(0x80, software=True))
    assert guest.words(guest.regs.rsp, 8)[2:4] == (0x402, 0x401000 - 2)


def test_int3_without_a_handler_crashes_the_domain(guest: PvGuest) -> None:
    set_handler(guest, 13)
    in_user(guest)
    with pytest.raises(DomainCrash, match="trap 3"):
        guest.handle(Trap(3, software=True))


def test_a_software_interrupt_at_the_end_of_the_address_space(guest: PvGuest) -> None:
    set_handler(guest, 13)
    in_kernel(guest)
    guest.regs.rip = 0
    guest.handle(Trap(0x40, software=True))
    assert guest.words(guest.regs.rsp, 8)[3] == (1 << 64) - 2


def test_a_software_interrupt_does_not_carry_an_error_code_of_its_own(guest: PvGuest) -> None:
    set_handler(guest, 14, flags=3)
    in_user(guest)
    guest.handle(Trap(14, 7, 0x1234, software=True))
    assert guest.regs.rsp == KERNEL_STACK - 56
    assert guest.words(guest.regs.rsp, 7)[2] == 0x401000, "no error code at all"
    assert guest.vcpu.cr2() == 0


def test_an_engine_that_gives_up_crashes_the_domain(guest: PvGuest) -> None:
    with pytest.raises(DomainCrash, match="unmapped"):
        guest.handle(EngineFailure("a fetch from unmapped memory"))


def test_a_kick_changes_nothing(guest: PvGuest) -> None:
    in_user(guest)
    before = guest.engine.save(guest.vcpu.vcpu_id)
    guest.handle(PREEMPTED)
    assert guest.engine.save(guest.vcpu.vcpu_id) == before


# --- system calls of user mode ----------------------------------------------------------------


def test_system_call(guest: PvGuest) -> None:
    guest.vcpu.pv.syscall_callback = HANDLER
    in_user(guest, IF | DF | 2)
    guest.handle(GUEST_SYSCALL)
    frame = guest.words(guest.regs.rsp, 7)
    flags = IF | DF | 2
    assert frame == (0x401000, flags, 0x401000, USER_CS, flags, 0x7FFF_0008, USER_SS)
    assert (guest.regs.rcx, guest.regs.r11) == (0x401000, flags)
    assert guest.vcpu.upcall_mask == 0


def test_system_call_with_events_masked(guest: PvGuest) -> None:
    guest.vcpu.pv.syscall_callback = HANDLER
    guest.vcpu.pv.syscall_callback_flags = 1
    in_user(guest)
    guest.handle(GUEST_SYSCALL)
    assert guest.vcpu.upcall_mask == 1


def test_system_call_clears_the_direction_flag(guest: PvGuest) -> None:
    guest.vcpu.pv.syscall_callback = HANDLER
    in_user(guest, IF | DF | TF | 2)
    guest.handle(GUEST_SYSCALL)
    assert guest.words(guest.regs.rsp, 7)[4] == IF | DF | TF | 2
    assert guest.regs.rflags == IF | 2


def test_system_call_without_a_callback_is_an_invalid_opcode(guest: PvGuest) -> None:
    in_user(guest)
    set_handler(guest, 6)
    guest.handle(GUEST_SYSCALL)
    frame = guest.words(guest.regs.rsp, 7)
    assert frame[:4] == (0x401000, IF | CF | 2, 0x401000 - 2, USER_CS)
    in_user(guest)
    guest.vcpu.pv.traps_address[6] = 0
    with pytest.raises(DomainCrash, match="trap 6"):
        guest.handle(GUEST_SYSCALL)


def test_system_call_from_32_bit_code(guest: PvGuest) -> None:
    guest.vcpu.pv.syscall_callback = HANDLER
    guest.vcpu.arch.syscall32_callback = HANDLER + 0x10
    in_user(guest)
    guest.engine.enter_user_mode(0x23, 0x2B, long_mode=False)
    guest.handle(GUEST_SYSCALL)
    assert guest.regs.rip == HANDLER + 0x10
    frame = guest.words(guest.regs.rsp, 7)
    assert (frame[0], frame[3], frame[6]) == (0x401000, 0xE023, 0xE02B)
    assert guest.engine.long_mode


def test_system_call_from_32_bit_code_without_its_callback(guest: PvGuest) -> None:
    guest.vcpu.pv.syscall_callback = HANDLER
    set_handler(guest, 6, HANDLER + 0x20)
    in_user(guest)
    guest.engine.enter_user_mode(0x23, 0x2B, long_mode=False)
    guest.handle(GUEST_SYSCALL)
    assert guest.regs.rip == HANDLER + 0x20


@pytest.mark.parametrize("masks", [False, True])
def test_sysenter(guest: PvGuest, masks: bool) -> None:
    """The instruction keeps neither RIP nor RSP: the C library passes them in registers."""
    guest.vcpu.arch.sysenter_callback = HANDLER
    guest.vcpu.arch.sysenter_masks_events = masks
    in_user(guest)
    guest.engine.enter_user_mode(0x23, 0x2B, long_mode=False)
    guest.handle(GUEST_SYSENTER)
    assert guest.words(guest.regs.rsp, 7) == (RCX, R11, 0, 3, IF | CF | 2, 0, USER_SS)
    assert (guest.regs.rip, guest.vcpu.upcall_mask) == (HANDLER, int(masks))
    assert not guest.engine.user_mode


def test_sysenter_without_a_callback(guest: PvGuest) -> None:
    set_handler(guest, 13)
    in_user(guest)
    guest.handle(GUEST_SYSENTER)
    assert guest.regs.rip == HANDLER
    assert guest.words(guest.regs.rsp, 8)[2:5] == (0, 0, 3)


def test_sysenter_in_the_kernel_has_no_stack(guest: PvGuest) -> None:
    guest.vcpu.arch.sysenter_callback = HANDLER
    in_kernel(guest)
    with pytest.raises(DomainCrash, match="double fault"):
        guest.handle(GUEST_SYSENTER)


# --- NMIs -------------------------------------------------------------------------------------


def test_an_nmi_and_its_iret(guest: PvGuest) -> None:
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.call("nmi_op", 0, guest.put(HANDLER))
    guest.vcpu.pv.event_callback = HANDLER + 0x100
    in_user(guest)
    assert guest.call("vcpu_op", VCPUOP_send_nmi, 0) == 0
    guest.memory.bytes[guest.vcpu.pv.vcpu_info_maddr] = 1
    trap.deliver_events(guest.domain, guest.vcpu)
    assert guest.regs.rip == HANDLER, "and it masks the event"
    assert guest.regs.rsp == KERNEL_STACK - 56
    assert guest.vcpu.upcall_mask == 1
    assert guest.call("vcpu_op", VCPUOP_send_nmi, 0) == 0
    trap.deliver_events(guest.domain, guest.vcpu)
    assert guest.regs.rsp == KERNEL_STACK - 56, "masked until the iret"
    iret(guest)
    guest.vcpu.pv.event_callback = 0
    trap.deliver_events(guest.domain, guest.vcpu)
    assert guest.regs.rip == HANDLER
    iret(guest)
    trap.deliver_events(guest.domain, guest.vcpu)
    assert guest.regs.rip == 0x401000, "there is no third"


def test_an_nmi_without_a_handler_is_lost(guest: PvGuest) -> None:
    in_user(guest)
    assert guest.call("vcpu_op", VCPUOP_send_nmi, 0) == 0
    trap.deliver_events(guest.domain, guest.vcpu)
    assert guest.regs.rip == 0x401000
    guest.call("nmi_op", 0, guest.put(HANDLER))
    trap.deliver_events(guest.domain, guest.vcpu)
    assert guest.regs.rip == 0x401000


def test_an_nmi_wakes_its_vcpu(guest: PvGuest) -> None:
    other = guest.start(1)
    other.blocked = True
    assert guest.call("vcpu_op", VCPUOP_send_nmi, 1) == 0
    assert other.runnable
    assert other.arch.nmi_pending
    assert not guest.vcpu.arch.nmi_pending


# --- events -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "pending", "mask", "delivered"),
    [
        (HANDLER, 1, 0, True),
        (HANDLER, 0, 0, False),
        (HANDLER, 1, 1, False),
        (HANDLER, 1, 0x80, False),
        (0, 1, 0, False),
    ],
)
def test_the_upcall(
    guest: PvGuest, callback: int, pending: int, mask: int, delivered: bool
) -> None:
    in_user(guest)
    guest.vcpu.pv.event_callback = callback
    guest.memory.bytes[guest.vcpu.pv.vcpu_info_maddr] = pending
    guest.set_mask(mask)
    trap.deliver_events(guest.domain, guest.vcpu)
    assert (guest.regs.rip == HANDLER) == delivered
    if delivered:
        assert guest.vcpu.upcall_mask == 1
        assert guest.words(guest.regs.rsp, 7)[3] == USER_CS, "it was not masked before"
        trap.deliver_events(guest.domain, guest.vcpu)
        assert guest.regs.rsp == KERNEL_STACK - 56, "not twice"


# --- iret -------------------------------------------------------------------------------------


def iret(guest: PvGuest, **changes: int) -> None:
    context = {
        "rax": 1, "r11": 2, "rcx": 3, "flags": 0, "rip": 0x401000, "cs": USER_CS,
        "rflags": IF | 2, "rsp": 0x7FFF_0000, "ss": USER_SS,
    }  # fmt: skip
    context.update(changes)
    guest.regs.rsp = guest.put(Struct("<9Q").pack(*context.values()))
    guest.regs.rax = 23
    guest.regs.gs_base = 0x6B65
    guest.vcpu.pv.gs_base_user = 0x7573
    guest.handle(HYPERCALL)


def test_iret_to_user_mode(guest: PvGuest) -> None:
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.set_mask(1)
    iret(guest)
    regs = guest.regs
    assert guest.engine.user_mode
    assert (regs.rip, regs.rsp, regs.rax) == (0x401000, 0x7FFF_0000, 1)
    assert (regs.rcx, regs.r11) == (3, 2)
    assert regs.rflags == IF | 2
    assert guest.vcpu.upcall_mask == 0
    assert regs.gs_base == 0x7573
    assert guest.vcpu.pv.gs_base_kernel == 0x6B65
    assert regs.selectors[1:3] == [USER_CS, USER_SS]


def test_iret_from_a_system_call(guest: PvGuest) -> None:
    guest.vcpu.pv.user_cr3 = L4 << 12
    iret(guest, flags=0x100, rflags=IOPL | VM | RF | CF | 2, cs=0x33, ss=0x2B)
    assert guest.regs.rflags == IF | CF | 2, "SYSRET clears RF"
    assert (guest.regs.rcx, guest.regs.r11) == (0x401000, IF | RF | CF | 2)
    assert guest.regs.selectors[1:3] == [USER_CS, USER_SS], "SYSRET knows only these"
    assert guest.vcpu.upcall_mask == 1


def test_iret_within_the_kernel(guest: PvGuest) -> None:
    iret(guest, cs=KERNEL_CS, ss=KERNEL_SS, rip=TEXT, rsp=STACK, rflags=2)
    assert not guest.engine.user_mode
    assert guest.regs.gs_base == 0x6B65
    assert guest.vcpu.upcall_mask == 1, "IF clear in the frame masks events"
    assert guest.regs.rflags == IF | 2, "but the processor keeps it"


def test_iret_drops_flags_that_are_not_the_guests(guest: PvGuest) -> None:
    guest.vcpu.pv.user_cr3 = L4 << 12
    iret(guest, rflags=IF | IOPL | NT | VM | DF | TF | 2)
    assert guest.regs.rflags == IF | NT | DF | TF | 2


def test_iret_looks_at_the_selector_only(guest: PvGuest) -> None:
    """The upper half of the CS slot is where the saved event mask was."""
    guest.vcpu.pv.user_cr3 = L4 << 12
    iret(guest, cs=USER_CS | 1 << 32)
    assert guest.regs.selectors[1] == USER_CS


@pytest.mark.parametrize(("cs", "long_mode"), [(USER_CS, True), (0xE023, False), (0xF, False)])
def test_iret_to_32_bit_code(guest: PvGuest, cs: int, long_mode: bool) -> None:
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.memory.write_u64((GDT << 12) + 8, 0x00CF_FB00_0000_FFFF)
    guest.call("set_gdt", guest.put(GDT), 2)
    set_ldt = MmuextOp(cmd=MMUEXT_SET_LDT, arg1=guest.vaddr(5), arg2=2)
    assert guest.call("mmuext_op", guest.put(set_ldt), 1, 0, SELF) == 0
    iret(guest, cs=cs)
    assert guest.engine.user_mode
    assert guest.engine.vcpu.long_mode == long_mode
    assert guest.regs.selectors[1] == cs


@pytest.mark.parametrize("cs", [0x3, 0xB, 0x17, 0xE02B, 0xE00B, 0xE013, 0xFFFF, 0xE043])
def test_iret_to_what_is_no_user_code(guest: PvGuest, cs: int) -> None:
    """A fault of user mode, which its kernel answers with a signal."""
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.vcpu.pv.kernel_sp = KERNEL_STACK
    set_handler(guest, 13)
    iret(guest, cs=cs)
    assert guest.regs.rip == HANDLER
    frame = guest.words(guest.regs.rsp, 8)
    assert (frame[2], frame[3], frame[4]) == (cs & 0xFFFC, 0x401000, cs)


@pytest.mark.parametrize("ss", [0, 0x3, 0xE033, 0xE023, 0xE04B, 0xFFFF, 0x17])
@pytest.mark.parametrize("cs", [USER_CS, 0xE023])
def test_iret_to_a_bad_stack_segment(guest: PvGuest, ss: int, cs: int) -> None:
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.vcpu.pv.kernel_sp = KERNEL_STACK
    set_handler(guest, 13)
    iret(guest, ss=ss, cs=cs)
    assert guest.regs.rip == HANDLER
    frame = guest.words(guest.regs.rsp, 8)
    assert (frame[2], frame[3], frame[4], frame[7]) == (ss & 0xFFFC, 0x401000, cs, ss | 3)


@pytest.mark.parametrize(
    ("descriptor", "cs", "ss", "vector"),
    [
        pytest.param(0x00AF_7B00_0000_FFFF, 0xB, USER_SS, 11, id="absent code"),
        pytest.param(0x00CF_7300_0000_FFFF, USER_CS, 0xB, 12, id="absent stack"),
        pytest.param(0x0000_EC00_E033_0000, 0xB, USER_SS, 13, id="call gate"),
        pytest.param(0x00EF_FB00_0000_FFFF, 0xB, USER_SS, 13, id="L and D"),
        pytest.param(0x00CF_F100_0000_FFFF, USER_CS, 0xB, 13, id="read only"),
    ],
)
def test_iret_by_descriptors_of_the_guest(
    guest: PvGuest, descriptor: int, cs: int, ss: int, vector: int
) -> None:
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.vcpu.pv.kernel_sp = KERNEL_STACK
    guest.memory.write_u64((GDT << 12) + 8, descriptor)
    guest.call("set_gdt", guest.put(GDT), 2)
    set_handler(guest, vector)
    iret(guest, cs=cs, ss=ss)
    assert guest.regs.rip == HANDLER
    assert guest.words(guest.regs.rsp, 8)[2] == 8


@pytest.mark.parametrize("flags", [0, 0x100])
@pytest.mark.parametrize("rip", [1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63])
def test_iret_to_an_address_that_is_not_canonical(guest: PvGuest, rip: int, flags: int) -> None:
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.vcpu.pv.kernel_sp = KERNEL_STACK
    set_handler(guest, 13)
    iret(guest, rip=rip, rsp=1 << 47, flags=flags)
    assert guest.regs.rip == HANDLER
    frame = guest.words(guest.regs.rsp, 8)
    assert (frame[2], frame[3], frame[4], frame[6]) == (0, rip, USER_CS, 1 << 47)


def test_iret_to_16_bit_code(guest: PvGuest) -> None:
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.vcpu.pv.kernel_sp = KERNEL_STACK
    guest.memory.write_u64((GDT << 12) + 8, 0x1200_FB34_5678_0FFF)
    guest.memory.write_u64((GDT << 12) + 16, 0x0040_F300_1000_FFFF)
    guest.call("set_gdt", guest.put(GDT), 3)
    set_handler(guest, 13)
    iret(guest, cs=0xB, ss=0x13, rip=0x5_0000_0FFF, rsp=0x5_0000_0100)
    code, stack = guest.engine.vcpu.code, guest.engine.vcpu.stack
    assert code == (0x1234_5678, 0xFFF, 0xFB00)
    assert stack == (0x1000, 0xFFFF, 0x40_F300)
    assert (guest.regs.rip, guest.regs.rsp) == (0xFFF, 0x100)
    in_kernel(guest)
    iret(guest, cs=0xB, ss=0x13, rip=0x1000)
    assert guest.regs.rip == HANDLER, "behind the limit"


@pytest.mark.parametrize("cs", [0, 0xE028, 0xFFF8, 0x8])
def test_iret_to_kernel_code_that_is_none(guest: PvGuest, cs: int) -> None:
    set_handler(guest, 13)
    iret(guest, cs=cs, ss=KERNEL_SS, rip=TEXT, rsp=STACK)
    assert guest.regs.rip == HANDLER
    assert guest.words(guest.regs.rsp, 8)[2:4] == (cs, TEXT)


def test_iopl_in_flags_if_the_guest_wants_it(guest: PvGuest) -> None:
    guest.call("vm_assist", 0, 4)
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.vcpu.pv.kernel_sp = KERNEL_STACK
    iret(guest, rflags=IF | 3 << 12 | 2)
    assert guest.vcpu.pv.iopl == 3
    assert guest.regs.rflags == IF | 2
    assert guest.engine.vcpu.port_access == (True, True)
    set_handler(guest, 0)
    guest.handle(Trap(0))
    assert guest.words(guest.regs.rsp, 7)[4] == IF | 3 << 12 | 2


def test_iret_to_user_mode_needs_a_user_page_table(guest: PvGuest) -> None:
    with pytest.raises(DomainCrash, match="page table"):
        iret(guest)


def test_iret_with_a_bad_stack(guest: PvGuest) -> None:
    guest.regs.rax, guest.regs.rsp = 23, NOT_MAPPED - 64
    with pytest.raises(DomainCrash, match="iret context"):
        guest.handle(HYPERCALL)


def test_a_trap_and_its_iret_are_inverse(guest: PvGuest) -> None:
    in_user(guest, IF | DF | CF | 2)
    guest.vcpu.pv.user_cr3 = L4 << 12
    guest.regs.rax = 0x77
    before = guest.engine.save(guest.vcpu.vcpu_id)
    set_handler(guest, 14, flags=guest.vcpu.pv.TRAP_MASK_EVENTS)
    guest.handle(Trap(14, 4, 0x1000))
    frame = guest.words(guest.regs.rsp, 8)
    context = (0x77, frame[1], frame[0], 0, *frame[3:])
    guest.regs.rsp = guest.put(Struct("<9Q").pack(*context))
    guest.regs.rax = 23
    guest.handle(HYPERCALL)
    assert guest.engine.save(guest.vcpu.vcpu_id) == before
    assert guest.vcpu.upcall_mask == 0
