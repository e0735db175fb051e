"""What a trace shows of a domain, and that it changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from struct import Struct

import pytest
from pv_guest import NOT_MAPPED, NUMBERS, SELF, STACK, TEXT, PvGuest

import pyxen.cpu.unicorn
from pyxen.abi.event_channel import EvtchnBindVirq, EvtchnSend
from pyxen.abi.sched import SchedShutdown
from pyxen.abi.xen import MmuextOp, MmuUpdate
from pyxen.cpu.base import GUEST_SYSCALL, HYPERCALL, Trap
from pyxen.errors import DomainCrash
from pyxen.hypervisor import trap
from pyxen.hypervisor.hypercall import continuation, table
from pyxen.hypervisor.tracing import (
    ALL,
    EVENTS,
    GRANTS,
    HYPERCALLS,
    NATIVE,
    SLOW_FOR_TRACING,
    TRAPS,
    Record,
    Tracing,
)
from pyxen.types import GrantRef

HANDLER = 0xFFFF_FFFF_8100_0000


class Log:
    """A sink that keeps everything."""

    def __init__(self, names: frozenset[str] = ALL) -> None:
        self.names = names
        self.records: list[Record] = []

    def take(self, record: Record) -> None:
        self.records.append(record)

    @property
    def lines(self) -> list[str]:
        return [record.text() for record in self.records]


class Traced:
    """A guest and its tracing."""

    def __init__(self, guest: PvGuest) -> None:
        self.guest = guest
        self.tracing = Tracing(guest.loop)

    def log(self, names: frozenset[str] = ALL) -> Log:
        made = Log(names)
        self.tracing.add(made)
        return made

    def handle(self, reason: object) -> None:
        """An exit, by the way that the run loop takes."""
        self.guest.loop.handler(self.guest.vcpu, reason)  # type: ignore[arg-type]


@pytest.fixture
def traced(guest: PvGuest) -> Traced:
    return Traced(guest)


def test_a_hypercall_with_time_vcpu_and_result(traced: Traced) -> None:
    log, guest = traced.log(), traced.guest
    before = guest.time.now_ns()
    guest.call("event_channel_op", 1, guest.put(EvtchnBindVirq(virq=0)))
    guest.call("event_channel_op", 4, guest.put(EvtchnSend(port=9)))
    assert log.lines == [
        "event_channel_op bind_virq virq=TIMER vcpu=0 -> 0 port=1",
        "event_channel_op send port=9 -> -EINVAL",
    ]
    first, second = log.records
    assert before < first.time_ns < second.time_ns < guest.time.now_ns()
    assert (first.vcpu_id, first.kind, first.op, first.failed) == (
        0,
        "hypercall",
        "bind_virq",
        False,
    )
    assert second.failed
    assert second.json() == {
        "time_ns": second.time_ns,
        "vcpu": 0,
        "kind": "hypercall",
        "name": "event_channel_op",
        "op": "send",
        "args": {"port": 9},
        "result": -22,
        "error": "EINVAL",
        "took_ns": second.took_ns,
    }


def test_entries_of_a_multicall_come_before_it_and_their_time_is_theirs(traced: Traced) -> None:
    log, guest = traced.log(), traced.guest
    calls = guest.multicall([(NUMBERS["stack_switch"], 0, 0x1000), (NUMBERS["xen_version"], 0)])
    guest.call("multicall", calls, 2)
    assert log.lines == [
        "stack_switch ss=0 esp=0x1000 -> 0",
        "xen_version version -> 0x40011",
        f"multicall call_list={calls:#x} nr_calls=2 -> 0",
    ]
    assert [record.nested for record in log.records] == [True, True, False]
    *entries, whole = log.records
    assert whole.took_ns >= 0
    assert whole.time_ns < entries[0].time_ns


def test_a_part_of_a_long_hypercall_says_that_it_goes_on(traced: Traced) -> None:
    log, guest = traced.log(), traced.guest
    count = continuation.WORK_PER_HYPERCALL + 5
    updates = guest.put(MmuUpdate(ptr=guest.pte_maddr(50), val=guest.pte(50)))
    at = guest.vaddr(100)
    guest.write(at, guest.read(updates, 16) * count)
    assert guest.call("mmu_update", at, count, 0, SELF) == 0
    first, last = log.records
    assert (first.continues, last.continues) == (True, False)
    assert log.lines[0].endswith("-> continues")
    assert "count=6 " in log.lines[1]
    assert not first.failed


def test_unknown_hypercalls_have_one_name_to_ask_for(traced: Traced) -> None:
    log = traced.log(frozenset({"unknown"}))
    for number in (77, 1 << 40):
        table.call(traced.guest.domain, traced.guest.vcpu, number, (0,) * 5)
    traced.guest.call("xen_version", 0)
    assert log.lines == ["hypercall_77 -> -ENOSYS", f"hypercall_{1 << 40} -> -ENOSYS"]


def test_iret(traced: Traced) -> None:
    log, guest = traced.log(frozenset({"iret"})), traced.guest
    frame = Struct("<9Q").pack(1, 0, 0, 0, TEXT + 8, 0xE030, 0x202, STACK, 0xE02B)
    guest.write(STACK - 0x200, frame)
    guest.regs.rsp, guest.regs.rax = STACK - 0x200, table.IRET
    traced.handle(HYPERCALL)
    assert log.lines == [f"iret -> kernel {TEXT + 8:#x}"]


def test_traps_and_what_became_of_them(traced: Traced) -> None:
    log, guest = traced.log(TRAPS), traced.guest
    for vector in (6, 13, 14):
        guest.vcpu.pv.traps_address[vector] = HANDLER + vector
    guest.regs.rip, guest.regs.rsp = TEXT, STACK - 0x100
    traced.handle(Trap(14, 2, 0x1234))
    guest.regs.rip, guest.regs.rsp = TEXT, STACK - 0x100
    guest.write(TEXT, b"\xfa")  # cli
    guest.vcpu.pv.iopl = 1
    traced.handle(Trap(13, 0))
    guest.regs.rip, guest.regs.rsp = TEXT + 2, STACK - 0x100
    traced.handle(Trap(0x80, software=True))
    with pytest.raises(DomainCrash):
        traced.handle(Trap(0))
    where = f"rip={TEXT:#x} mode=kernel"
    assert log.lines == [
        f"page_fault address=0x1234 error_code=2 {where} -> guest",
        f"gp_fault error_code=0 {where} -> emulated",
        f"int vector=0x80 rip={TEXT + 2:#x} mode=kernel -> guest, as gp_fault",
        f"divide_error rip={HANDLER + 13:#x} mode=kernel -> crash",
    ]


def test_a_page_table_write_is_an_emulated_fault(traced: Traced) -> None:
    log, guest = traced.log(TRAPS), traced.guest
    guest.write(TEXT, bytes.fromhex("48 89 06"))  # mov [rsi], rax
    guest.regs.rip, guest.regs.rax = TEXT, guest.pte(50)
    guest.regs.rsi = guest.vaddr(3) + 50 * 8
    traced.handle(Trap(14, 3, guest.regs.rsi))
    fault = f"page_fault address={guest.regs.rsi:#x} error_code=3"
    assert log.lines == [f"{fault} rip={TEXT:#x} mode=kernel -> emulated"]


def test_system_calls_of_the_guest(traced: Traced) -> None:
    log, guest = traced.log(frozenset({"syscall"})), traced.guest
    guest.vcpu.pv.syscall_callback = HANDLER
    guest.vcpu.pv.kernel_sp = STACK
    guest.engine.enter_user_mode(0xE033, 0xE02B)
    guest.regs.rip, guest.regs.rax = 0x401002, 39
    traced.handle(GUEST_SYSCALL)
    assert log.lines == ["syscall nr=39 rip=0x401002"]


def test_events(traced: Traced) -> None:
    log, guest = traced.log(EVENTS), traced.guest
    events = guest.domain.events
    guest.call("event_channel_op", 1, guest.put(EvtchnBindVirq(virq=0)))
    host_port = events.connect_host(7, print)
    events.raise_virq(guest.vcpu, 0)
    events.notify_guest(host_port)
    events.notify_guest(host_port)
    guest.vcpu.pv.event_callback = HANDLER
    guest.regs.rsp = STACK
    trap.deliver_events(guest.domain, guest.vcpu)
    assert log.lines == [
        "pending port=1 virq=TIMER",
        f"pending port=7 kind=interdomain remote=0:{host_port}",
        "upcall",
    ], "what is pending already is not told again"


def test_an_event_still_wakes_its_vcpu(traced: Traced) -> None:
    traced.log()
    guest = traced.guest
    guest.call("event_channel_op", 1, guest.put(EvtchnBindVirq(virq=0)))
    guest.vcpu.upcall_mask = 0
    guest.call("sched_op", 1, 0)
    assert guest.vcpu.blocked
    guest.domain.events.raise_virq(guest.vcpu, 0)
    assert not guest.vcpu.blocked


def test_uses_of_grants(traced: Traced) -> None:
    log, guest = traced.log(GRANTS), traced.guest
    grants = guest.domain.grants
    grants.seed(GrantRef(8), 0, 0x1000 + 50)
    grants.begin(GrantRef(8), write=True)
    grants.end(GrantRef(8), write=True)
    assert log.lines == [
        "grant_map gref=8 by=0 access=rw -> 0",
        "grant_unmap gref=8 by=0 access=rw -> 0",
    ]


def test_each_sink_gets_what_it_asked_for_until_it_leaves(traced: Traced) -> None:
    guest = traced.guest
    versions, all_ = traced.log(frozenset({"xen_version"})), traced.log()
    guest.call("xen_version", 0)
    guest.call("stack_switch", 0, 0)
    traced.tracing.remove(all_)
    guest.call("xen_version", 0)
    guest.call("stack_switch", 0, 0)
    assert len(versions.records) == 2
    assert len(all_.records) == 2
    traced.tracing.remove(all_)
    traced.tracing.remove(versions)
    guest.call("xen_version", 0)
    assert len(versions.records) == 2


def test_the_native_path_is_off_only_for_what_it_does_itself(traced: Traced) -> None:
    pv = traced.guest.domain.pv
    cheap = traced.log(frozenset({"event_channel_op", "pending", "sched_op"}))
    assert (pv.slow_only, traced.tracing.native) == (0, True)
    costly = traced.log(frozenset({"page_fault"}))
    assert (pv.slow_only, traced.tracing.native) == (SLOW_FOR_TRACING, False)
    pv.slow_only |= 8
    traced.tracing.remove(costly)
    assert pv.slow_only == 8, "somebody else's reason stays"
    traced.tracing.remove(cheap)
    assert pv.slow_only == 8


def test_after_the_last_sink_nothing_is_in_the_way(traced: Traced) -> None:
    d, loop = traced.guest.domain, traced.guest.loop
    before = (d.trace, d.events.on_pending, d.grants.on_use, loop.handler)
    one, two = traced.log(), traced.log()
    traced.tracing.remove(one)
    assert d.trace is traced.tracing
    traced.tracing.remove(two)
    assert (d.trace, d.events.on_pending, d.grants.on_use, loop.handler) == before


def test_native_names_are_those_of_the_native_code() -> None:
    """hypercall.c names what it does; a hypercall more there must be known here."""
    text = (Path(pyxen.cpu.unicorn.__file__).parent / "native" / "hypercall.c").read_text()
    numbers = {int(number) for number in re.findall(r"NR_\w+ = (\d+)", text)}
    assert numbers == {NUMBERS[name] for name in NATIVE & HYPERCALLS}


@pytest.mark.parametrize("names", [ALL, frozenset({"multicall"}), frozenset()])
def test_results_are_the_same_with_and_without_a_trace(names: frozenset[str]) -> None:
    def play(traced: bool) -> list[object]:
        guest = PvGuest()
        try:
            if traced:
                Tracing(guest.loop).add(Log(names))
            calls = guest.multicall(
                [(NUMBERS["stack_switch"], 0, 1), (77,), (NUMBERS["multicall"], 0, 0)]
            )
            results: list[object] = [
                guest.call("multicall", calls, 3),
                guest.words(calls, 24),
                guest.call("mmuext_op", guest.put(MmuextOp(cmd=99)), 1, 0, SELF),
                guest.call("event_channel_op", 4, NOT_MAPPED),
                guest.call("get_debugreg", 7),
                guest.hypercall("sched_op", 2, guest.put(SchedShutdown(reason=1))),
                guest.domain.shutdown_reason,
                guest.domain.pv.calls.tolist(),
                guest.domain.pv.failures.tolist(),
                guest.domain.pv.recent_hypercalls(),
            ]
            return results
        finally:
            guest.close()

    assert play(True) == play(False)
