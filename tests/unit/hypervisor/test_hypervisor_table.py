"""The table of hypercalls, multicall, and what is remembered of the calls."""

from __future__ import annotations

import pytest
from pv_guest import NOT_MAPPED, NUMBERS, SELF, PvGuest

from pyxen.abi.errno import E
from pyxen.abi.sched import SCHEDOP_block, SCHEDOP_shutdown, SCHEDOP_yield, SchedShutdown
from pyxen.abi.xen import MMUEXT_TLB_FLUSH_LOCAL, MmuextOp
from pyxen.cpu.base import HYPERCALL
from pyxen.hypervisor.hypercall import continuation, table
from pyxen.hypervisor.hypercall.table import Support

FPU, STACK_SWITCH, SCHED, MMUEXT = (
    NUMBERS[name] for name in ("fpu_taskswitch", "stack_switch", "sched_op", "mmuext_op")
)
UNTOUCHED = 0xAAAA
NOSYS = (1 << 64) - E.NOSYS


def results(guest: PvGuest, calls: int, count: int) -> list[int]:
    return [guest.words(calls + 64 * n + 8, 1)[0] for n in range(count)]


# --- the table --------------------------------------------------------------------------------


def test_each_row_is_complete() -> None:
    numbers = [row.number for row in table.ROWS]
    assert len(numbers) == len(set(numbers))
    assert set(range(43)) <= set(numbers)
    for row in table.ROWS:
        assert row.handler or row.support in (Support.MISSING, Support.REFUSED), row
        assert not row.handler or row.support is not Support.MISSING, row
        assert row.note or row.support is Support.IMPLEMENTED, f"{row.name} does not say why"


@pytest.mark.parametrize(
    "row", [row for row in table.ROWS if not row.handler], ids=lambda r: r.name
)
def test_what_is_missing_answers_its_error(guest: PvGuest, row: table.Row) -> None:
    assert guest.call(row.name) == -row.errno.value
    assert row.errno in (E.NOSYS, E.PERM, E.OPNOTSUPP)


@pytest.mark.parametrize("number", [43, 47, 56, 1 << 31, (1 << 64) - 1])
def test_numbers_that_are_no_hypercall(guest: PvGuest, number: int) -> None:
    assert table.call(guest.domain, guest.vcpu, number, (0,) * 5) == NOSYS
    assert table.row_of(number).support is Support.MISSING


def test_errors_become_negative_numbers_in_rax(guest: PvGuest) -> None:
    assert guest.hypercall("sched_op", 99) == -E.NOSYS
    assert guest.regs.rax == NOSYS


def test_calls_are_remembered(guest: PvGuest) -> None:
    guest.hypercall("stack_switch", 1, 2, 3, 4, 5)
    guest.hypercall("sched_op", 99)
    first, second = guest.domain.pv.recent_hypercalls()
    assert (first.number, first.args[:5], first.result) == (3, (1, 2, 3, 4, 5), 0)
    assert (second.number, second.args[0], second.result) == (29, 99, -E.NOSYS)


# --- multicall --------------------------------------------------------------------------------


def test_each_call_has_its_result(guest: PvGuest) -> None:
    calls = guest.multicall([(FPU, 1), (SCHED, 99), (STACK_SWITCH, 7, 8), (9999,)])
    assert guest.call("multicall", calls, 4) == 0
    assert results(guest, calls, 4) == [0, NOSYS, 0, NOSYS]
    assert guest.vcpu.pv.kernel_sp == 8
    assert guest.vcpu.task_switched


def test_an_empty_list(guest: PvGuest) -> None:
    assert guest.call("multicall", NOT_MAPPED, 0) == 0


def test_no_nesting_and_no_iret(guest: PvGuest) -> None:
    inner = guest.multicall([(FPU, 1)])
    calls = guest.multicall([(NUMBERS["multicall"], inner, 1), (NUMBERS["iret"],)])
    assert guest.call("multicall", calls, 2) == 0
    assert results(guest, calls, 2) == [(1 << 64) - E.INVAL, NOSYS]
    assert not guest.vcpu.task_switched


def test_a_list_that_cannot_be_read_or_written(guest: PvGuest) -> None:
    assert guest.call("multicall", NOT_MAPPED, 1) == -E.FAULT
    assert guest.call("multicall", (1 << 64) - 32, 1) == -E.FAULT
    calls = guest.vaddr(100)
    guest.write(calls, guest.read(guest.multicall([(STACK_SWITCH, 1, 2)]), 64))
    guest.protect(100)
    assert guest.call("multicall", calls, 1) == -E.FAULT


def test_a_list_that_ends_in_a_hole(guest: PvGuest) -> None:
    at = NOT_MAPPED - 64
    guest.write(at, guest.read(guest.multicall([(STACK_SWITCH, 1, 2)]), 64))
    assert guest.call("multicall", at, 2) == -E.FAULT
    assert guest.vcpu.pv.kernel_sp == 2, "what came before was done"


def test_a_long_list_is_done_in_pieces(guest: PvGuest) -> None:
    count = continuation.WORK_PER_HYPERCALL // 2 + 100
    one = guest.read(guest.multicall([(STACK_SWITCH, 1, 2)]), 64)
    at = guest.vaddr(500)
    guest.write(at, one * count)
    guest.regs.rip = 0x1002
    guest.hypercall("multicall", at, count)
    assert guest.regs.rip == 0x1000
    done = (guest.regs.rdi - at) // 64
    assert (guest.regs.rsi, guest.regs.rax) == (count - done, NUMBERS["multicall"])
    assert 0 < done < count
    assert results(guest, at, count) == [0] * done + [UNTOUCHED] * (count - done)
    guest.regs.rip = 0x1002
    guest.hypercall("multicall", guest.regs.rdi, guest.regs.rsi)
    assert (guest.regs.rip, guest.regs.rax) == (0x1002, 0)
    assert results(guest, at, count) == [0] * count


def test_the_most_calls_a_guest_can_ask_for_end_at_the_hole(guest: PvGuest) -> None:
    one = guest.read(guest.multicall([(STACK_SWITCH, 1, 2)]), 64)
    pages = 8
    guest.write(NOT_MAPPED - 4096 * pages, one * (64 * pages))
    assert guest.call("multicall", NOT_MAPPED - 4096 * pages, (1 << 64) - 1) == -E.FAULT
    assert results(guest, NOT_MAPPED - 4096 * pages, 64 * pages) == [0] * (64 * pages)


def test_a_long_call_within_a_list(guest: PvGuest) -> None:
    """Its arguments in the list say what is left of it."""
    count = continuation.WORK_PER_HYPERCALL + 300
    at, done = guest.vaddr(500), guest.vaddr(90)
    guest.write(at, MmuextOp(cmd=MMUEXT_TLB_FLUSH_LOCAL).pack() * count)
    calls = guest.multicall(
        [(STACK_SWITCH, 1, 2), (MMUEXT, at, count, done, SELF), (STACK_SWITCH, 1, 3)]
    )
    guest.regs.rip = 0x1002
    guest.hypercall("multicall", calls, 3)
    assert (guest.regs.rip, guest.regs.rdi, guest.regs.rsi) == (0x1000, calls + 64, 2)
    assert results(guest, calls, 3) == [0, UNTOUCHED, UNTOUCHED]
    left = guest.words(calls + 64, 6)
    assert left[0] == MMUEXT
    assert left[2] == at + 24 * (count - (left[3] & ~(1 << 31)))
    assert guest.call("multicall", guest.regs.rdi, guest.regs.rsi) == 0
    assert results(guest, calls, 3) == [0, 0, 0]
    assert len(guest.engine.flushes) == count
    assert guest.words(done, 1) == (count,)
    assert guest.vcpu.pv.kernel_sp == 3


def test_a_call_that_blocks_leaves_the_rest_for_later(guest: PvGuest) -> None:
    calls = guest.multicall([(SCHED, SCHEDOP_block), (STACK_SWITCH, 1, 2)])
    guest.regs.rip = 0x1002
    guest.hypercall("multicall", calls, 2)
    assert guest.vcpu.blocked
    assert guest.vcpu.pv.kernel_sp == 0
    assert (guest.regs.rip, guest.regs.rdi, guest.regs.rsi) == (0x1000, calls + 64, 1)
    guest.domain.unblock(guest.vcpu)
    guest.regs.rip = 0x1002
    guest.handle(HYPERCALL)
    assert (guest.regs.rip, guest.vcpu.pv.kernel_sp) == (0x1002, 2)


def test_a_call_that_blocks_at_the_end(guest: PvGuest) -> None:
    calls = guest.multicall([(SCHED, SCHEDOP_yield), (SCHED, SCHEDOP_block)])
    guest.regs.rip = 0x1002
    assert guest.hypercall("multicall", calls, 2) == 0
    assert guest.regs.rip == 0x1002


def test_a_shutdown_ends_the_list(guest: PvGuest) -> None:
    reason = guest.put(SchedShutdown(reason=0))
    calls = guest.multicall([(SCHED, SCHEDOP_shutdown, reason), (STACK_SWITCH, 1, 2)])
    guest.hypercall("multicall", calls, 2)
    assert guest.vcpu.pv.kernel_sp == 0
    assert guest.domain.stopped
