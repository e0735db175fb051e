"""Single steps and breakpoints: where #DB arrives, and what DR6 says."""

from __future__ import annotations

import pytest

from pyxen.cpu.base import HYPERCALL, PREEMPTED, Exit, Trap
from pyxen.types import VcpuId

from .conftest import CODE, DATA, L4, STACK, USER_CS, USER_SS, Bench

SYSCALL = "0f 05"
DB = Trap(1)
TF, RF = 0x100, 1 << 16
BS = 1 << 14
EXECUTE, WRITE, ACCESS = 0, 1, 3
LENGTH = {1: 0, 2: 1, 8: 2, 4: 3}


def set_breakpoint(
    bench: Bench, n: int, address: int, kind: int = EXECUTE, length: int = 1
) -> None:
    """Enable one breakpoint; the others stay as they are."""
    engine = bench.engine
    engine.set_debug_register(n, address)
    dr7 = engine.debug_register(7) & ~(0xF << 16 + 4 * n)
    dr7 |= (LENGTH[length] << 2 | kind) << 16 + 4 * n | 1 << 2 * n | 0x400
    engine.set_debug_register(7, dr7)


def causes(bench: Bench) -> int:
    """What DR6 says, cleared as a kernel does."""
    found = bench.engine.debug_register(6) & ~0xFFFF_0FF0
    bench.engine.set_debug_register(6, 0)
    return found


def resume(bench: Bench) -> Exit:
    """Go on as after the IRET of a handler that sets RF."""
    bench.engine.regs.rflags |= RF
    return bench.engine.run()


def start(bench: Bench, code: str, user: bool) -> None:
    bench.put(CODE, code)
    if user:
        bench.engine.enter_user_mode(USER_CS, USER_SS)
    bench.engine.regs.rip = CODE


def test_single_step(bench: Bench, user: bool) -> None:
    start(bench, "90 b8 05 00 00 00 90", user)  # nop; mov eax, 5; nop
    bench.engine.regs.rflags = TF
    seen = []
    for _ in range(3):
        assert bench.engine.run() == DB
        seen.append(bench.engine.regs.rip - CODE)
        assert causes(bench) == BS
    assert seen == [1, 6, 7]
    assert bench.engine.regs.rflags & TF


def test_popf_turns_stepping_on_and_off(bench: Bench, user: bool) -> None:
    # pushf; or qword [rsp], 0x100; popf; nop; nop; push 2; popf; nop; syscall
    code = "9c 48 81 0c 24 00 01 00 00 9d 90 90 6a 02 9d 90" + SYSCALL
    start(bench, code, user)
    seen = []
    while bench.engine.run() == DB:
        seen.append(bench.engine.regs.rip - CODE)
    assert seen == [11, 12, 14, 15], "not after the popf that sets TF, but after that which clears"


def test_a_breakpoint_on_code_stops_before_it(bench: Bench, user: bool) -> None:
    # inc rbx; inc rbx; inc rbx; syscall
    start(bench, "48 ff c3 48 ff c3 48 ff c3" + SYSCALL, user)
    bench.engine.regs.rbx = 0
    set_breakpoint(bench, 2, CODE + 3)
    assert bench.engine.run() == DB
    assert (bench.engine.regs.rip, bench.engine.regs.rbx) == (CODE + 3, 1)
    assert causes(bench) == 1 << 2
    assert bench.engine.run() == DB, "without RF it is hit again"
    assert causes(bench) == 1 << 2
    assert resume(bench) != DB
    assert (bench.engine.regs.rip, bench.engine.regs.rbx) == (CODE + 11, 3)
    assert not bench.engine.regs.rflags & RF


def test_rf_is_for_one_instruction_only(bench: Bench) -> None:
    start(bench, "48 ff c3 48 ff c3 48 ff c3" + SYSCALL, user=False)
    bench.engine.regs.rbx = 0
    for n in range(3):
        set_breakpoint(bench, n, CODE + 3 * n)
    why = bench.engine.run()
    for n in range(3):
        assert why == DB
        assert (bench.engine.regs.rbx, causes(bench)) == (n, 1 << n)
        why = resume(bench)
    assert why is HYPERCALL


def test_a_breakpoint_in_a_loop(bench: Bench) -> None:
    # 1: dec rcx; jnz 1b; syscall
    start(bench, "48 ff c9 75 fb" + SYSCALL, user=False)
    bench.engine.regs.rcx = 5
    set_breakpoint(bench, 0, CODE + 3)
    hits = 0
    why = bench.engine.run()
    while why == DB:
        hits += 1
        why = resume(bench)
    assert (hits, why) == (5, HYPERCALL)


def test_a_breakpoint_that_is_disabled_is_not_hit(bench: Bench) -> None:
    start(bench, "48 ff c3" + SYSCALL, user=False)
    set_breakpoint(bench, 0, CODE)
    assert bench.engine.run() == DB
    bench.engine.set_debug_register(7, 0x400)
    causes(bench)
    bench.engine.regs.rbx = 0
    assert bench.engine.run() is HYPERCALL
    assert bench.engine.regs.rbx == 1
    assert causes(bench) == 0
    bench.engine.regs.rip = CODE
    set_breakpoint(bench, 0, CODE)
    assert bench.engine.run() == DB, "and enabled again"


def test_many_breakpoints_one_after_the_other(bench: Bench) -> None:
    start(bench, "90 " * 40 + SYSCALL, user=False)
    for n in range(40):
        set_breakpoint(bench, n % 4, CODE + n)
    for n in range(36, 40):
        bench.engine.regs.rflags |= RF
        assert bench.engine.run() == DB
        assert bench.engine.regs.rip == CODE + n
    assert resume(bench) is HYPERCALL


# At 0: mov [rsi], rax; 3: mov rax, [rsi]; 6: lock add [rsi], rax;
# 10: push qword [rsi]; 12: pop qword [rsi]; 14: syscall
TOUCHES = "48 89 06 48 8b 06 f0 48 01 06 ff 36 8f 06" + SYSCALL


@pytest.mark.parametrize(
    ("kind", "after"), [(WRITE, [3, 10, 14]), (ACCESS, [3, 6, 10, 12, 14])], ids=("write", "access")
)
@pytest.mark.parametrize("same_page", [False, True])
def test_a_breakpoint_on_data_stops_behind_the_access(
    bench: Bench, user: bool, kind: int, after: list[int], same_page: bool
) -> None:
    start(bench, TOUCHES, user)
    regs = bench.engine.regs
    regs.rsi = STACK - 0x200 if same_page else DATA + 0x40
    regs.rsp, regs.rax = STACK, 5
    set_breakpoint(bench, 1, regs.rsi, kind, 8)
    seen = []
    while (why := bench.engine.run()) == DB:
        seen.append(regs.rip - CODE)
        assert causes(bench) == 1 << 1
    assert why != PREEMPTED
    assert seen == after
    assert (regs.rip, regs.rsp, bench.word(regs.rsi)) == (CODE + 16, STACK, 10)


@pytest.mark.parametrize(
    ("offset", "hit"), [(-1, False), (0, True), (3, True), (4, False), (-4, False)]
)
def test_the_length_of_a_watched_range(bench: Bench, offset: int, hit: bool) -> None:
    start(bench, "88 06" + SYSCALL, user=False)  # mov [rsi], al
    bench.engine.regs.rsi = DATA + 0x40 + offset
    set_breakpoint(bench, 0, DATA + 0x40, WRITE, 4)
    assert (bench.engine.run() == DB) is hit


def test_a_wide_access_over_a_narrow_range(bench: Bench) -> None:
    start(bench, "0f 11 06" + SYSCALL, user=False)  # movups [rsi], xmm0
    bench.engine.regs.rsi = DATA + 0x30
    set_breakpoint(bench, 3, DATA + 0x3E, WRITE, 2)
    assert bench.engine.run() == DB
    assert causes(bench) == 1 << 3
    assert bench.engine.run() is HYPERCALL


def test_string_instructions_stop_between_their_steps(bench: Bench) -> None:
    start(bench, "f3 48 ab" + SYSCALL, user=False)  # rep stosq
    regs = bench.engine.regs
    regs.rdi, regs.rcx, regs.rax = DATA, 6, 0x77
    set_breakpoint(bench, 0, DATA + 16, WRITE, 8)
    assert bench.engine.run() == DB
    assert (regs.rip, regs.rcx, regs.rdi) == (CODE, 3, DATA + 24)
    assert bench.engine.run() is HYPERCALL
    assert (regs.rcx, bench.word(DATA + 40)) == (0, 0x77)


def test_a_page_fault_comes_before_a_watchpoint(bench: Bench) -> None:
    # movsq: loads the watched word, and stores to a page that is absent
    start(bench, "48 a5" + SYSCALL, user=False)
    regs = bench.engine.regs
    bench.unmap(DATA + 0x1000)
    regs.rsi, regs.rdi = DATA, DATA + 0x1000
    set_breakpoint(bench, 0, DATA, ACCESS, 8)
    assert bench.engine.run() == Trap(14, 2, DATA + 0x1000)
    assert causes(bench) == 0
    bench.protect(DATA + 0x1000)
    assert bench.engine.run() == DB
    assert causes(bench) == 1


def test_a_watchpoint_and_a_single_step_at_once(bench: Bench) -> None:
    start(bench, "48 89 06" + SYSCALL, user=False)
    bench.engine.regs.rsi = DATA
    set_breakpoint(bench, 0, DATA, WRITE, 8)
    bench.engine.regs.rflags = TF
    assert bench.engine.run() == DB
    assert causes(bench) == BS | 1


def test_what_is_no_longer_watched_is_free(bench: Bench) -> None:
    start(bench, "48 89 06" + SYSCALL, user=False)
    bench.engine.regs.rsi = DATA
    set_breakpoint(bench, 0, DATA, WRITE, 8)
    assert bench.engine.run() == DB
    bench.engine.set_debug_register(7, 0x400)
    bench.engine.regs.rip = CODE
    assert bench.engine.run() is HYPERCALL


def test_each_vcpu_has_its_own_breakpoints(bench: Bench) -> None:
    engine = bench.engine
    start(bench, "48 89 06" + SYSCALL, user=False)
    engine.regs.rsi = DATA
    set_breakpoint(bench, 0, DATA, WRITE, 8)
    set_breakpoint(bench, 1, CODE)
    engine.add_vcpu(VcpuId(1))
    engine.select(VcpuId(1))
    engine.set_cr3(L4 << 12)
    engine.regs.rip, engine.regs.rsi = CODE, DATA
    assert engine.run() is HYPERCALL
    assert engine.debug_register(7) == 0x400
    engine.select(VcpuId(0))
    assert engine.run() == DB
    assert causes(bench) == 2
    assert resume(bench) == DB
    assert causes(bench) == 1


def test_debug_registers_survive_save_and_load(bench: Bench) -> None:
    engine = bench.engine
    start(bench, "48 89 06" + SYSCALL, user=False)
    engine.regs.rsi = DATA
    set_breakpoint(bench, 0, DATA, WRITE, 8)
    engine.set_debug_register(6, 0xFFFF_0FF0)
    state = engine.save(VcpuId(0))
    assert (state.dr[0], state.dr[6]) == (DATA, 0xFFFF_0FF0)
    engine.set_debug_register(7, 0x400)
    engine.load(VcpuId(0), state)
    assert engine.run() == DB
    assert engine.debug_register(6) == 0xFFFF_0FF1
