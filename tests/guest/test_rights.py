"""What an engine is told to permit: ports, the time stamp counter, CPUID, segments, the FPU."""

from __future__ import annotations

import pytest

from pyxen.cpu.base import GUEST_SYSCALL, HYPERCALL, SegmentCache, Trap
from pyxen.types import VcpuId

from .conftest import CODE, DATA, L4, USER_SS, Bench

SYSCALL = "0f 05"
U32 = 0xFFFF_FFFF
CODE_16, DATA_16, CODE_32, DATA_32 = 0x0000_FB00, 0x0000_F300, 0x00C0_FB00, 0x0040_F300
INT_80 = Trap(0x80, software=True)


@pytest.mark.parametrize(
    ("code", "result"),
    [("e4 60", 0x11FF), ("66 ed", 0xFFFF), ("ed", U32)],  # in al, 0x60; in ax, dx; in eax, dx
)
def test_ports_answer_with_all_ones_where_they_are_permitted(
    bench: Bench, user: bool, code: str, result: int
) -> None:
    bench.engine.set_port_access(kernel=not user, user=user)
    bench.engine.regs.rax = 0x1100
    # ...; out 0x80, al; syscall
    assert bench.run(code + "e6 80" + SYSCALL, user=user) is (GUEST_SYSCALL if user else HYPERCALL)
    assert bench.engine.regs.rax == result
    bench.engine.regs.rax = 0x1100
    assert bench.run(code, user=not user) == Trap(13, 0)
    assert bench.engine.regs.rax == 0x1100


def test_strings_from_ports(bench: Bench, user: bool) -> None:
    bench.engine.set_port_access(kernel=True, user=True)
    bench.engine.regs.rdi, bench.engine.regs.rcx = DATA, 2
    bench.put(DATA, bytes(16))
    bench.run("f3 6d" + SYSCALL, user=user)  # rep insd
    assert (bench.word(DATA), bench.word(DATA + 8)) == ((1 << 64) - 1, 0)


def test_what_a_vcpu_may_do_is_its_own(bench: Bench) -> None:
    engine = bench.engine
    engine.set_port_access(kernel=True, user=False)
    engine.set_tsc_disabled(True)
    engine.set_tsc_aux(77)
    engine.add_vcpu(VcpuId(1))
    engine.select(VcpuId(1))
    engine.set_cr3(L4 << 12)
    assert bench.run("e4 60") == Trap(13, 0)
    assert bench.run("0f 31" + SYSCALL) is HYPERCALL
    assert engine.tsc_aux == 0
    engine.select(VcpuId(0))
    assert bench.run("e4 60" + SYSCALL) is HYPERCALL
    assert bench.run("0f 31" + SYSCALL) == Trap(13, 0)
    assert engine.tsc_aux == 77


def test_time_stamp_counter_disabled(bench: Bench, user: bool) -> None:
    bench.engine.set_tsc_disabled(True)
    for code in ("0f 31", "0f 01 f9"):
        assert bench.run("90" + code, user=user) == Trap(13, 0)
        assert bench.engine.regs.rip == CODE + 1
    bench.engine.set_tsc_disabled(False)
    bench.engine.set_tsc_aux(0x1234_5678)
    bench.run("0f 01 f9" + SYSCALL, user=user)  # rdtscp
    assert bench.engine.regs.rcx == 0x1234_5678


def test_cpuid_faulting_is_for_user_mode(bench: Bench, user: bool) -> None:
    regs = bench.engine.regs
    bench.engine.set_cpuid_faulting(True)
    regs.rax, regs.rbx = 0x77, 0
    # nop; cpuid; inc rbx; syscall
    why = bench.run("90 0f a2 48 ff c3" + SYSCALL, user=user)
    if user:
        assert why == Trap(13, 0)
        assert (regs.rip, regs.rax, regs.rbx) == (CODE + 1, 0x77, 0)
        bench.engine.set_cpuid_faulting(False)
        assert bench.engine.run() is GUEST_SYSCALL
    assert regs.rax == 0x77 ^ U32


def test_16_bit_code(bench: Bench) -> None:
    engine = bench.engine
    # mov ax, 0x1234; push ax; inc sp; int 0x80, all of it 16-bit code in a segment of its own
    bench.put(CODE, "b8 34 12 50 44 cd 80")
    engine.enter_user_mode(
        0x07,
        0x0F,
        code=SegmentCache(CODE, 0xFFFF, CODE_16),
        stack=SegmentCache(DATA, 0xFFFF, DATA_16),
    )
    engine.regs.rip, engine.regs.rsp, engine.regs.rax = 0, 0xFFFF_0100, 0xAAAA_0000
    assert engine.run() == INT_80
    regs = engine.regs
    assert (regs.rip, regs.rax & U32, regs.rsp & 0xFFFF) == (7, 0xAAAA_1234, 0xFF)
    assert bench.word(DATA + 0xF8) >> 48 == 0x1234
    assert (regs.selector(1), regs.selector(2), engine.code_base) == (0x07, 0x0F, CODE)
    state = engine.save(VcpuId(0))
    engine.add_vcpu(VcpuId(1))
    engine.load(VcpuId(1), state)
    assert engine.save(VcpuId(1)) == state


@pytest.mark.parametrize("loaded", ["before", "after"])
def test_a_data_segment_with_a_base_in_32_bit_code(bench: Bench, loaded: str) -> None:
    engine = bench.engine
    bench.put(DATA + 0x10, b"\x44\x33\x22\x11")
    bench.put(CODE, "a1 10 00 00 00 cd 80")  # mov eax, [0x10]; int 0x80
    for step in ("before", "mode", "after"):
        if step == "mode":
            engine.enter_user_mode(0xE023, USER_SS, code=SegmentCache(0, U32, CODE_32))
        elif step == loaded:
            engine.regs.set_segment(3, 0x17, DATA, 0xFFFF, DATA_32)
    engine.regs.rip = CODE
    assert engine.run() == INT_80
    assert engine.regs.rax == 0x1122_3344


def test_kernel_mode_after_segments_with_bases(bench: Bench) -> None:
    test_16_bit_code(bench)
    bench.put(DATA + 0x10, b"\x44\x33\x22\x11")
    # mov eax, [DATA + 0x10]; syscall
    assert bench.run("8b 04 25 10 00 14 00" + SYSCALL) is HYPERCALL
    assert bench.engine.regs.rax == 0x1122_3344
    assert bench.engine.long_mode


def test_an_unmasked_x87_exception(bench: Bench, user: bool) -> None:
    # fldcw [rsi]: zero divide unmasked; fldz; fld1; fdiv st, st(1); nop; fwait
    bench.put(DATA, "7b 03")
    bench.engine.regs.rsi = DATA
    assert bench.run("d9 2e d9 ee d9 e8 d8 f1 90 9b", user=user) == Trap(16)
    assert bench.engine.regs.rip == CODE + 9


def test_each_vcpu_has_its_own_fpu(bench: Bench) -> None:
    engine = bench.engine
    engine.add_vcpu(VcpuId(1))
    for n in (0, 1):
        engine.select(VcpuId(n))
        engine.set_cr3(L4 << 12)
        engine.regs.rax = 0x1111 * (n + 1)
        # movq xmm5, rax; fld1 (or fldz); syscall
        code = "66 48 0f 6e e8" + ("d9 e8", "d9 ee")[n] + SYSCALL
        assert bench.run(code) is HYPERCALL
        engine.set_task_switched(bool(n))
    engine.select(VcpuId(0))
    engine.regs.rsi = DATA
    # movq rax, xmm5; fstp qword [rsi]; syscall
    assert bench.run("66 48 0f 7e e8 dd 1e" + SYSCALL) is HYPERCALL
    assert (engine.regs.rax, bench.word(DATA)) == (0x1111, 0x3FF0_0000_0000_0000)
    engine.select(VcpuId(1))
    engine.regs.rsi = DATA
    assert bench.run("66 48 0f 7e e8") == Trap(7), "its CR0.TS is set"
    engine.set_task_switched(False)
    assert bench.run("66 48 0f 7e e8 dd 1e" + SYSCALL) is HYPERCALL
    assert (engine.regs.rax, bench.word(DATA)) == (0x2222, 0)
