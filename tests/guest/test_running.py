"""Stopping, resuming, changing code and memory, and taking state out and putting it back."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyxen.cpu.base import HYPERCALL, PREEMPTED, Engine, Exit, Trap
from pyxen.cpu.unicorn.native_hooks import NativeHooks
from pyxen.types import VcpuId

from .conftest import CODE, DATA, L4, STACK, USER_CS, USER_SS, Bench

SYSCALL = "0f 05"
COUNT = 20_000_000
# Counts RCX down; counts up one word in three ways and RDX. Source:
#   1: inc qword [rsi]; lock inc qword [rsi+8]; inc rdx
#      mov rax, [rsi+16]; inc rax; mov [rsi+16], rax; dec rcx; jnz 1b; syscall
COUNTING = (
    "48 ff 06 f0 48 ff 46 08 48 ff c2 48 8b 46 10 48 ff c0 48 89 46 10 48 ff c9 75 e5" + SYSCALL
)


@contextmanager
def kicked(engine: Engine, pause_s: float = 0.0005) -> Iterator[None]:
    """Another thread that kicks the engine again and again."""
    finished = threading.Event()

    def kick() -> None:
        while not finished.wait(pause_s):
            engine.kick()

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def prepare_counting(bench: Bench, counters: int, count: int) -> None:
    regs = bench.engine.regs
    bench.put(CODE, COUNTING)
    bench.put(counters, bytes(24))
    regs.rip, regs.rsi, regs.rcx, regs.rdx = CODE, counters, count, 0


def counted(bench: Bench, counters: int) -> set[int]:
    return {bench.engine.regs.rdx} | {bench.word(counters + 8 * i) for i in range(3)}


def test_a_kick_loses_and_repeats_no_instruction(bench: Bench) -> None:
    prepare_counting(bench, DATA, COUNT)
    stops = 0
    with kicked(bench.engine):
        while (why := bench.engine.run()) is PREEMPTED:
            stops += 1
    assert why is HYPERCALL
    assert counted(bench, DATA) == {COUNT}
    assert stops > 10


# lock inc qword [rsi], often enough that kicks arrive inside of the block
LONG_BLOCK = "f0 48 ff 06" * 200


def repeat(bench: Bench, code: str) -> Iterator[Exit]:
    """Run code from its start, under kicks; yields what ended it each time."""
    bench.put(CODE, code)
    with kicked(bench.engine, pause_s=0.00002):
        for _ in range(10_000):
            bench.engine.regs.rip, bench.engine.regs.rsi = CODE, DATA
            while (why := bench.engine.run()) is PREEMPTED:
                pass
            yield why


def test_a_kick_swallows_no_system_call(bench: Bench) -> None:
    assert {*repeat(bench, LONG_BLOCK + SYSCALL + "cc")} == {HYPERCALL}


def test_a_kick_does_not_change_what_cpuid_says(bench: Bench) -> None:
    # mov eax, 1; cpuid; syscall
    code = LONG_BLOCK + "b8 01 00 00 00 0f a2" + SYSCALL
    assert {bench.engine.regs.rcx for _ in repeat(bench, code)} == {0x1234}


def test_two_vcpus_take_turns(bench: Bench) -> None:
    engine = bench.engine
    engine.add_vcpu(VcpuId(1))
    left = {VcpuId(0): COUNT // 4, VcpuId(1): COUNT // 4 + 1}
    for vcpu_id, count in left.items():
        engine.select(vcpu_id)
        engine.set_cr3(L4 << 12)
        prepare_counting(bench, DATA + 64 * vcpu_id, count)
        if vcpu_id:
            engine.enter_user_mode(USER_CS, USER_SS)
    totals = dict(left)
    with kicked(engine):
        while left:
            for vcpu_id in tuple(left):
                engine.select(vcpu_id)
                assert engine.user_mode is bool(vcpu_id)
                if engine.run() is not PREEMPTED:
                    del left[vcpu_id]
    for vcpu_id, count in totals.items():
        engine.select(vcpu_id)
        assert counted(bench, DATA + 64 * vcpu_id) == {count}


def test_a_kick_is_not_kept(bench: Bench) -> None:
    bench.engine.kick()
    assert bench.run(SYSCALL) is HYPERCALL
    bench.engine.kick()
    bench.engine.kick()
    assert bench.run(SYSCALL) is HYPERCALL


def test_code_that_changes_itself(bench: Bench, user: bool) -> None:
    # mov byte [rip+1], 9 changes the operand of: mov eax, 5
    assert bench.run("c6 05 01 00 00 00 09 b8 05 00 00 00" + SYSCALL, user=user) is not None
    assert bench.engine.regs.rax == 9


def test_code_changed_from_outside(bench: Bench) -> None:
    engine = bench.engine
    bench.run("b8 05 00 00 00" + SYSCALL)
    view = bench.memory.bytes
    view[bench.maddr(CODE) + 1] = 9
    engine.code_changed(bench.maddr(CODE) + 1, 1)
    engine.regs.rip = CODE
    assert engine.run() is HYPERCALL
    assert engine.regs.rax == 9
    engine.code_changed(0, 0)
    engine.code_changed(bench.memory.total_pages << 12, 4096)


def test_code_that_a_disk_writes_over(bench: Bench) -> None:
    start = CODE + 0x1000 - 3  # mov eax, 5 has two bytes in the second page
    pages = [bench.maddr(vaddr) >> 12 for vaddr in (DATA, CODE, CODE + 0x1000)]
    for byte, at in ((9, start + 1), (1, CODE + 0x1000)):
        bench.put(CODE + 0x1000, "00 00" + SYSCALL)
        bench.run("b8 05 00 00 00" + SYSCALL, at=start)
        assert bench.engine.regs.rax == 5
        bench.memory.bytes[bench.maddr(at)] = byte
        bench.memory.written(pages)
        bench.engine.regs.rip = start
        assert bench.engine.run() is HYPERCALL
        assert bench.engine.regs.rax == (9 if byte == 9 else 0x10005)


def test_pages_without_code_are_known(bench: Bench) -> None:
    bench.run("b8 05 00 00 00" + SYSCALL)
    code = bench.engine.code_pages
    assert (code is None) is not bench.engine.capabilities.native
    if code is not None:
        assert code[bench.maddr(CODE) >> 12]
        assert not code[bench.maddr(DATA) >> 12]


def test_code_that_crosses_a_page(bench: Bench) -> None:
    engine = bench.engine
    start = CODE + 0x1000 - 3  # mov eax, 5 has two bytes in the second page
    bench.run("b8 05 00 00 00" + SYSCALL, at=start)
    bench.put(CODE + 0x1000, "00 00" + SYSCALL)
    bench.put(start + 1, "09")
    engine.regs.rip = start
    assert engine.run() is HYPERCALL
    assert engine.regs.rax == 9


def test_a_flushed_page_shows_its_new_frame(bench: Bench) -> None:
    engine = bench.engine
    bench.put(DATA, b"\x01" * 8)
    bench.put(DATA + 0x1000, b"\x02" * 8)
    engine.regs.rsi = DATA
    read = "48 8b 06" + SYSCALL
    assert bench.run(read) is HYPERCALL
    assert engine.regs.rax == 0x0101_0101_0101_0101
    bench.set_pte(DATA, bench.frame(DATA + 0x1000) << 12 | 7)
    engine.flush_page(DATA)
    assert bench.run(read) is HYPERCALL
    assert engine.regs.rax == 0x0202_0202_0202_0202
    bench.set_pte(DATA, bench.frame(DATA) << 12 | 7)
    engine.flush_tlb()
    assert bench.run(read) is HYPERCALL
    assert engine.regs.rax == 0x0101_0101_0101_0101


# fldpi; fld1; cvtsi2sd xmm1, rax; fldcw [rsi]; ldmxcsr [rsi+4]; syscall
FPU_SETUP = "d9 eb d9 e8 f2 48 0f 2a c8 d9 2e 0f ae 56 04" + SYSCALL
# fstp qword [rsi+8]; fistp qword [rsi+16] (pi, rounded as the control word says);
# cvtsd2si rax, xmm2; movsd [rsi+24], xmm1; syscall
FPU_SHOW = "dd 5e 08 df 7e 10 f2 48 0f 2d c2 f2 0f 11 4e 18" + SYSCALL
ROUND_UP_FPU = 0x037F | 2 << 10
ROUND_UP_SSE = 0x1F80 | 2 << 13


def test_fpu_and_sse_survive_save_and_load(bench: Bench) -> None:
    engine = bench.engine
    bench.put(DATA, ROUND_UP_FPU.to_bytes(4, "little") + ROUND_UP_SSE.to_bytes(4, "little"))
    engine.regs.rsi, engine.regs.rax = DATA, 42
    assert bench.run(FPU_SETUP) is HYPERCALL
    saved = engine.save(VcpuId(0))
    assert int.from_bytes(saved.fxsave[0:2], "little") == ROUND_UP_FPU
    assert int.from_bytes(saved.fxsave[2:4], "little") >> 11 & 7 == 6
    assert saved.fxsave[4] == 0b1100_0000

    other = bench.new_engine()
    try:
        other.add_vcpu(VcpuId(3))
        state = dataclasses.replace(saved, rip=CODE)
        # 2.5 in XMM2 shows the rounding mode of the SSE unit
        fxsave = bytearray(state.fxsave)
        fxsave[160 + 32 : 160 + 40] = bytes.fromhex("0000000000000440")
        other.load(VcpuId(3), dataclasses.replace(state, fxsave=bytes(fxsave)))
        bench.put(CODE, FPU_SHOW)
        assert other.run() is HYPERCALL
        assert bench.word(DATA + 8) == 0x3FF0_0000_0000_0000  # 1.0
        assert bench.word(DATA + 16) == 4  # pi, up
        assert other.regs.rax == 3  # 2.5, up
        assert bench.word(DATA + 24) == 0x4045_0000_0000_0000  # 42.0
    finally:
        other.close()


def test_a_whole_state_comes_back_as_it_was(bench: Bench, user: bool) -> None:
    engine = bench.engine
    regs = engine.regs
    for index in range(16):
        regs.set_gpr(index, 0x1000 + index)
    if user:
        engine.enter_user_mode(USER_CS, USER_SS)
    regs.rip, regs.rflags, regs.cr2 = CODE, 0x24_4DD7, 77
    regs.fs_base, regs.gs_base = 0x7000_0000, 0xFFFF_8880_0000_0000
    engine.set_task_switched(True)
    engine.set_debug_register(0, 0x1234)
    engine.set_debug_register(7, 0x400)
    state = engine.save(VcpuId(0))
    assert (state.user_mode, state.rip, state.cr3) == (user, CODE, L4 << 12)
    assert state.gprs == list(range(0x1000, 0x1010))
    assert state.rflags == 0x24_4DD7 | 0x200
    engine.add_vcpu(VcpuId(1))
    engine.load(VcpuId(1), state)
    assert engine.save(VcpuId(1)) == state
    engine.select(VcpuId(1))
    assert (engine.user_mode, regs.gpr(4), regs.gs_base) == (user, 0x1004, 0xFFFF_8880_0000_0000)
    assert engine.debug_register(0) == 0x1234
    engine.select(VcpuId(0))
    assert engine.save(VcpuId(0)) == state


def test_fs_and_gs_bases_are_used_and_survive_mode_changes(bench: Bench) -> None:
    engine = bench.engine
    engine.regs.fs_base, engine.regs.gs_base = DATA, DATA + 0x100
    bench.put(DATA + 8, b"\x11" * 8)
    bench.put(DATA + 0x108, b"\x22" * 8)
    # mov rax, fs:[8]; mov rcx, gs:[8]; syscall
    code = "64 48 8b 04 25 08 00 00 00 65 48 8b 0c 25 08 00 00 00" + SYSCALL
    for user in (False, True):
        bench.run(code, user=user)
        assert engine.regs.rax == 0x1111_1111_1111_1111
        assert engine.regs.rcx == 0x2222_2222_2222_2222


def test_each_vcpu_has_its_own_descriptor_window(bench: Bench) -> None:
    engine = bench.engine
    engine.add_vcpu(VcpuId(1))
    engine.select(VcpuId(1))
    engine.set_cr3(L4 << 12)
    engine.regs.rsp, engine.regs.rax = STACK, 0xE02B
    assert bench.run("8e e0" + SYSCALL) is HYPERCALL  # mov fs, eax: the shared reserved page
    engine.regs.rax = 0x1233
    assert bench.run("8e e0") == Trap(13, 0x1230)
    engine.set_gdt_limit(0x0FFF)
    engine.regs.rax = 0xE02B
    assert bench.run("8e e0") == Trap(13, 0xE028)


def test_a_closed_engine_takes_kicks(bench: Bench) -> None:
    other = bench.new_engine()
    other.add_vcpu(VcpuId(0))
    other.close()
    other.kick()
    other.close()


def test_a_vcpu_exists_once(bench: Bench) -> None:
    with pytest.raises(ValueError, match="exists"):
        bench.engine.add_vcpu(VcpuId(0))


def test_blocks_translated_natively_check_for_stops_in_line(bench: Bench) -> None:
    if not bench.native:
        pytest.skip("the plain path calls the translator's helper")
    hooks = bench.engine._hooks
    assert isinstance(hooks, NativeHooks)
    if "exit check in line" not in bench.engine.capabilities.detail:
        pytest.skip(bench.engine.capabilities.detail)
    before = hooks.exit_checks()
    # 1: call f; dec rcx; jnz 1b; syscall; f: ret
    bench.engine.regs.rcx = 10
    assert bench.run("e8 07 00 00 00 48 ff c9 75 f6" + SYSCALL + "c3") is HYPERCALL
    assert hooks.exit_checks() > before


def test_what_the_cpuid_policy_promises_works(bench: Bench) -> None:
    # popcnt rax, rcx; crc32 edx, ecx; pshufb xmm0, xmm1; ptest xmm0, xmm0; pcmpestri ...; syscall
    code = "f3 48 0f b8 c1 f2 0f 38 f1 d1 66 0f 38 00 c1 66 0f 38 17 c0 66 0f 3a 61 c1 0c" + SYSCALL
    regs = bench.engine.regs
    regs.rcx, regs.rdx = 0xF0F0, 0
    assert bench.run(code) is HYPERCALL
    # lock cmpxchg16b [rsi]
    regs.rsi = DATA
    assert bench.run("f0 48 0f c7 0e" + SYSCALL) is HYPERCALL


def test_an_instruction_that_crosses_into_an_absent_page(bench: Bench, user: bool) -> None:
    """The translator gives up in the middle of a block; the next one must not inherit anything."""
    engine = bench.engine
    second = CODE + 0x1000
    start = second - 8
    # inc rbx; inc rbx; mov eax, 5 (three of its five bytes in the second page); syscall
    bench.put(start, "48 ff c3 48 ff c3 b8 05 00 00 00" + SYSCALL)
    bench.put(DATA, "48 ff c3" + SYSCALL)
    for _ in range(3):
        bench.unmap(second)
        engine.regs.rbx = 0
        if user:
            engine.enter_user_mode(USER_CS, USER_SS)
        engine.regs.rip = start
        assert engine.run() == Trap(14, 0x14 if user else 0x10, second)
        # Nothing of the block was executed, so this is where it has to go on.
        assert (engine.regs.rip, engine.regs.rbx) == (start, 0)
        engine.regs.rip = DATA
        assert engine.run() is not PREEMPTED
        bench.protect(second)
        engine.regs.rip, engine.regs.rbx = start, 0
        assert engine.run() is not PREEMPTED
        assert (engine.regs.rax, engine.regs.rbx, engine.regs.rip) == (5, 2, second + 5)
