"""What stops a guest, with the registers and error codes that real hardware would show."""

from __future__ import annotations

import pytest

from pyxen.cpu.base import (
    GUEST_SYSCALL,
    GUEST_SYSENTER,
    HYPERCALL,
    CpuidLeaf,
    EngineFailure,
    Exit,
    Trap,
)
from pyxen.types import VcpuId

from .conftest import CODE, DATA, L4, STACK, UPPER_HALF, USER_CS, USER_SS, Bench

SYSCALL = "0f 05"
UD2 = "0f 0b"


def test_syscall_is_a_hypercall_or_the_users(bench: Bench, user: bool) -> None:
    regs = bench.engine.regs
    regs.rcx, regs.r11 = 0x1111, 0x2222
    # mov eax, 7; syscall
    assert bench.run("b8 07 00 00 00" + SYSCALL, user=user) is (
        GUEST_SYSCALL if user else HYPERCALL
    )
    assert (regs.rip, regs.rax) == (CODE + 7, 7)
    assert (regs.rcx, regs.r11) == (0x1111, 0x2222)
    assert bench.engine.user_mode is user


def test_code_at_address_zero_runs(bench: Bench) -> None:
    bench.set_pte(0, bench.frame(DATA) << 12 | 7)
    bench.engine.flush_page(0)
    bench.put(DATA, "b8 05 00 00 00" + SYSCALL)  # mov eax, 5; syscall
    bench.engine.regs.rip = 0
    assert bench.engine.run() is HYPERCALL
    assert (bench.engine.regs.rip, bench.engine.regs.rax) == (7, 5)


@pytest.mark.parametrize(
    ("code", "error_code"),
    [("48 8b 06", 0), ("48 89 06", 2)],  # mov rax, [rsi]; mov [rsi], rax
    ids=("read", "write"),
)
def test_absent_page(bench: Bench, user: bool, code: str, error_code: int) -> None:
    bench.unmap(DATA)
    bench.engine.regs.rsi = DATA + 8
    error_code |= 4 if user else 0
    for _ in range(3):  # the second fault must not become a double fault
        assert bench.run("90 90" + code, user=user) == Trap(14, error_code, DATA + 8)
        assert bench.engine.regs.rip == CODE + 2
    assert bench.engine.regs.cr2 == DATA + 8


def test_the_kernel_may_not_write_read_only_pages(bench: Bench) -> None:
    bench.protect(DATA, write=False)
    bench.engine.regs.rsi = DATA
    assert bench.run("48 89 06") == Trap(14, 3, DATA)


def test_the_users_code_may_not_touch_kernel_pages(bench: Bench) -> None:
    bench.protect(DATA, user=False)
    bench.engine.regs.rsi = DATA
    assert bench.run("48 8b 06" + SYSCALL) is HYPERCALL
    assert bench.run("48 8b 06", user=True) == Trap(14, 5, DATA)
    assert bench.run("48 89 06", user=True) == Trap(14, 7, DATA)


def test_no_execute(bench: Bench, user: bool) -> None:
    bench.protect(DATA, nx=True)
    bench.engine.regs.rsi = DATA
    assert bench.run("ff e6", user=user) == Trap(14, 0x11 | (4 if user else 0), DATA)  # jmp rsi
    assert bench.engine.regs.rip == DATA


@pytest.mark.parametrize(
    ("code", "vector"), [("cd 80", 0x80), ("cd 20", 0x20), ("cc", 3), ("cd 03", 3), ("cd 0e", 14)]
)
def test_software_interrupts(bench: Bench, user: bool, code: str, vector: int) -> None:
    assert bench.run(code, user=user) == Trap(vector, software=True)
    assert bench.engine.regs.rip == CODE + len(bytes.fromhex(code))


def test_invalid_opcode(bench: Bench, user: bool) -> None:
    for _ in range(2):
        assert bench.run("90" + UD2, user=user) == Trap(6)
        assert bench.engine.regs.rip == CODE + 1


def test_division_by_zero(bench: Bench, user: bool) -> None:
    bench.engine.regs.rcx = 0
    for _ in range(2):
        assert bench.run("90 48 f7 f1", user=user) == Trap(0)  # div rcx
        assert bench.engine.regs.rip == CODE + 1


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("f4", id="hlt"),
        pytest.param("fa", id="cli"),
        pytest.param("fb", id="sti"),
        pytest.param("0f 32", id="rdmsr"),
        pytest.param("0f 30", id="wrmsr"),
        pytest.param("0f 20 d8", id="mov rax, cr3"),
        pytest.param("0f 22 d8", id="mov cr3, rax"),
        pytest.param("0f 23 f8", id="mov dr7, rax"),
        pytest.param("0f 01 f8", id="swapgs"),
        pytest.param("48 0f 07", id="sysretq"),
        pytest.param("0f 01 3e", id="invlpg"),
    ],
)
def test_privileged_instructions(bench: Bench, user: bool, code: str) -> None:
    bench.engine.regs.rsi = DATA
    assert bench.run(code, user=user) == Trap(13, 0)
    assert bench.engine.regs.rip == CODE


def test_sysenter(bench: Bench, user: bool) -> None:
    bench.engine.regs.rcx = 0x1111
    assert bench.run("90 0f 34", user=user) is GUEST_SYSENTER
    assert (bench.engine.regs.rip, bench.engine.regs.rcx) == (CODE + 3, 0x1111)
    assert bench.engine.user_mode is user


@pytest.mark.parametrize(("code", "which"), [("0f 34", GUEST_SYSENTER), ("0f 05", GUEST_SYSCALL)])
def test_entries_from_32_bit_code(bench: Bench, code: str, which: Exit) -> None:
    engine = bench.engine
    bench.put(CODE, "40" + code)  # inc eax
    engine.enter_user_mode(0xE023, USER_SS, long_mode=False)
    engine.regs.rip, engine.regs.rax = CODE, 4
    assert engine.run() is which
    assert (engine.regs.rip, engine.regs.rax, engine.long_mode) == (CODE + 3, 5, False)


@pytest.mark.parametrize("code", ["e4 60", "ee", "6c"], ids=("in", "out", "ins"))
def test_ports_are_not_the_users(bench: Bench, code: str) -> None:
    regs = bench.engine.regs
    regs.rax, regs.rdi, regs.rbx = 0x1100, DATA, 0
    # what follows the instruction must not have run: inc ebx; syscall
    assert bench.run("90" + code + "ff c3" + SYSCALL, user=True) == Trap(13, 0)
    assert (regs.rip, regs.rax, regs.rbx) == (CODE + 1, 0x1100, 0)


def test_int1_is_not_implemented(bench: Bench, user: bool) -> None:
    assert bench.run("90 f1 90", user=user) == Trap(6)
    assert bench.engine.regs.rip == CODE + 1


@pytest.mark.parametrize(("selector", "error_code"), [(0x1233, 0x1230), (0x0047, 0x0044)])
def test_a_selector_without_a_descriptor(
    bench: Bench, user: bool, selector: int, error_code: int
) -> None:
    bench.engine.regs.rax = selector
    assert bench.run("8e e0", user=user) == Trap(13, error_code)  # mov fs, eax
    assert bench.engine.regs.rip == CODE


def test_the_descriptor_window_is_not_the_users(bench: Bench) -> None:
    window = 0xFFFF_8200_0000_E000
    bench.engine.regs.rsi = window
    assert bench.run("48 8b 06", user=True) == Trap(14, 5, window)


def test_segments_show_the_guests_selectors(bench: Bench, user: bool) -> None:
    bench.engine.regs.rax = 0xE02B
    assert bench.run("8e d8" + SYSCALL, user=user) is not None  # mov ds, eax
    regs = bench.engine.regs
    expected = (USER_CS, USER_SS) if user else (0xE030, 0xE02B)
    assert (regs.selector(1), regs.selector(2), regs.selector(3)) == (*expected, 0xE02B)


def test_iretq_to_itself_as_linux_does(bench: Bench) -> None:
    # mov eax, ss; push rax; push rsp; add qword [rsp], 8; pushfq; mov eax, cs; push rax;
    # lea rax, [rip+3]; push rax; iretq; nop; syscall
    code = "8c d0 50 54 48 83 04 24 08 9c 8c c8 50 48 8d 05 03 00 00 00 50 48 cf 90" + SYSCALL
    assert bench.run(code) is HYPERCALL
    assert bench.engine.regs.rsp == STACK
    assert bench.engine.regs.selector(1) == 0xE030


def test_the_first_fpu_instruction_after_a_task_switch(bench: Bench) -> None:
    bench.engine.set_task_switched(True)
    assert bench.run("d9 e8") == Trap(7)  # fld1
    assert bench.run("0f 57 c0") == Trap(7)  # xorps xmm0, xmm0
    bench.engine.set_task_switched(False)
    assert bench.run("d9 e8 0f 57 c0" + SYSCALL) is HYPERCALL


def test_single_step_in_user_mode(bench: Bench) -> None:
    bench.put(CODE, "90 b8 05 00 00 00 90")  # nop; mov eax, 5; nop
    engine = bench.engine
    engine.enter_user_mode(USER_CS, USER_SS)
    engine.regs.rip = CODE
    engine.regs.rflags = 0x302
    seen = []
    for _ in range(3):
        assert engine.run() == Trap(1)
        seen.append(engine.regs.rip - CODE)
        assert engine.debug_register(6) & 1 << 14
    assert seen == [1, 6, 7]
    assert engine.regs.rflags & 0x100


def test_stepping_over_a_system_call_gives_the_system_call(bench: Bench) -> None:
    bench.put(CODE, SYSCALL + "90")
    engine = bench.engine
    engine.enter_user_mode(USER_CS, USER_SS)
    engine.regs.rip = CODE
    engine.regs.rflags = 0x302
    assert engine.run() is GUEST_SYSCALL
    assert engine.regs.rip == CODE + 2
    assert engine.regs.rflags & 0x100


def test_cpuid_follows_the_policy(bench: Bench, user: bool) -> None:
    regs = bench.engine.regs
    regs.rax, regs.rcx, regs.rbx, regs.rdx = 0x4000_0000, 7, 1 << 63, 1 << 63
    bench.run("0f a2" + SYSCALL, user=user)
    assert (regs.rax, regs.rbx, regs.rcx, regs.rdx) == (0xBFFF_FFFF, 7, 0x1234, 0x8000_0001)


def test_an_error_in_the_cpuid_policy_comes_out_of_run(bench: Bench) -> None:
    def broken(leaf: int, subleaf: int) -> CpuidLeaf:
        raise LookupError(f"no leaf {leaf}")

    engine = bench.new_engine(broken)
    bench.put(CODE, "0f a2" + SYSCALL)
    engine.add_vcpu(VcpuId(0))
    engine.set_cr3(L4 << 12)
    engine.regs.rip = CODE
    try:
        with pytest.raises(LookupError, match="no leaf 0"):
            engine.run()
    finally:
        engine.close()


def test_the_time_stamp_counter_is_the_hosts(bench: Bench) -> None:
    regs = bench.engine.regs
    before = bench.engine.read_tsc()
    bench.run("0f 31" + SYSCALL)
    after = bench.engine.read_tsc()
    assert before < regs.rax | regs.rdx << 32 < after


def test_flags_that_the_last_operation_left(bench: Bench) -> None:
    engine = bench.engine
    regs = engine.regs
    regs.rax, regs.rcx = 1, 2
    engine.regs.rflags = 0x400  # direction
    assert bench.run("48 39 c8" + SYSCALL) is HYPERCALL  # cmp rax, rcx: carry, sign, adjust, parity
    assert regs.rflags == 0x2 | 0x1 | 0x4 | 0x10 | 0x80 | 0x200 | 0x400
    regs.rflags = 0x1 | 0x40 | 0x3000  # carry, zero; the I/O level is not the guest's to set
    assert bench.run("9c 58" + SYSCALL) is HYPERCALL  # pushfq; pop rax
    assert regs.rax == 0x1 | 0x2 | 0x40 | 0x200


def test_compatibility_mode(bench: Bench) -> None:
    engine = bench.engine
    bench.put(CODE, "40 40 cd 80")  # inc eax; inc eax; int 0x80 (64-bit code: REX REX int)
    engine.enter_user_mode(0xE023, USER_SS, long_mode=False)
    engine.regs.rip, engine.regs.rax = CODE, 3
    assert engine.run() == Trap(0x80, software=True)
    assert (engine.regs.rax, engine.regs.selector(1)) == (5, 0xE023)


def test_a_frame_that_does_not_exist_ends_the_guest(bench: Bench) -> None:
    bench.set_pte(DATA, 0xF_FFFF << 12 | 7)
    bench.engine.flush_tlb()
    bench.engine.regs.rsi = DATA
    why = bench.run("48 8b 06")
    assert isinstance(why, EngineFailure)
    assert "unmapped" in why.reason.lower()


@pytest.mark.parametrize(
    ("code", "error_code"),
    [("ff 1e", 7), ("cb", 5), ("48 cb", 5), ("48 cf", 5)],
    ids=("lcall", "lret", "lretq", "iretq"),
)
def test_the_stack_of_a_far_transfer_is_user_modes(
    bench: Bench, code: str, error_code: int
) -> None:
    """The translator uses it as a supervisor, and would write to the kernel's memory."""
    bench.set_upper_half()
    at = UPPER_HALF + DATA + 0x100
    bench.put(DATA, CODE.to_bytes(4, "little") + USER_CS.to_bytes(4, "little"))
    bench.put(DATA + 0x100 - 32, bytes(64))
    bench.engine.regs.rsi, bench.engine.regs.rsp = DATA, at
    if not bench.native:
        pytest.skip("not checked without the native part")
    fault = at - 8 if error_code & 2 else at
    assert bench.run("90" + code, user=True) == Trap(14, error_code, fault)
    assert (bench.engine.regs.rip, bench.engine.regs.rsp) == (CODE + 1, at)
    assert bench.word(DATA + 0x100 - 8) == bench.word(DATA + 0x100 - 16) == 0


def test_far_transfers_of_user_mode_work(bench: Bench) -> None:
    # mov [rsi], far pointer to 1f; lcall [rsi] (48: 64-bit); syscall; 1: lretq
    bench.put(DATA, (CODE + 7).to_bytes(8, "little") + USER_CS.to_bytes(2, "little"))
    bench.engine.regs.rsi = DATA
    assert bench.run("48 ff 1e 0f 05 90 90 48 cb", user=True) is GUEST_SYSCALL
    assert (bench.engine.regs.rip, bench.engine.regs.rsp) == (CODE + 5, STACK)


def test_a_fault_of_a_far_call_is_the_users(bench: Bench) -> None:
    bench.put(DATA, CODE.to_bytes(8, "little") + USER_CS.to_bytes(2, "little"))
    bench.unmap(STACK - 0x1000)
    bench.engine.regs.rsi = DATA
    assert bench.run("90 48 ff 1e", user=True) == Trap(14, 6, STACK - 8)
    assert bench.engine.regs.rip == CODE + 1
    bench.put(DATA + 8, (0x1233).to_bytes(2, "little"))
    assert bench.run("90 48 ff 1e", user=True) == Trap(13, 0x1230)
    assert bench.engine.regs.rip == CODE + 1
