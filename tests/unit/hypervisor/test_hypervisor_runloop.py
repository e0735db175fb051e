"""The run loop: turns, timers, watchdogs, shutdown; and the hypercalls that steer it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from pv_guest import NOT_MAPPED, NUMBERS, SELF, TEXT, FakeWorld, PvGuest

from pyxen.abi.errno import E
from pyxen.abi.event_channel import EvtchnBindVirq, EVTCHNOP_bind_virq
from pyxen.abi.sched import (
    SCHEDOP_block,
    SCHEDOP_pin_override,
    SCHEDOP_poll,
    SCHEDOP_remote_shutdown,
    SCHEDOP_shutdown,
    SCHEDOP_shutdown_code,
    SCHEDOP_watchdog,
    SCHEDOP_yield,
    SchedPoll,
    SchedRemoteShutdown,
    SchedShutdown,
    SchedWatchdog,
)
from pyxen.abi.vcpu import (
    VCPU_SSHOTTMR_future,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VcpuRunstateInfo,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
)
from pyxen.abi.xen import VIRQ_TIMER, SharedInfo, VcpuInfo, VcpuTimeInfo
from pyxen.cpu.base import HYPERCALL, PREEMPTED, SPINNING, Exit
from pyxen.errors import DomainCrash
from pyxen.hypervisor.domain import SOON_NS, ShutdownReason
from pyxen.hypervisor.sched import WAKE_GRACE_NS
from pyxen.hypervisor.vcpu import RunState
from pyxen.types import VcpuId

PENDING = SharedInfo.OFFSET["evtchn_pending"]
MS = 1_000_000


def hypercall(guest: PvGuest, name: str, *arguments: int) -> Callable[[], Exit]:
    """A script item: the guest makes this hypercall."""

    def make() -> Exit:
        regs = guest.regs
        regs.rax = NUMBERS[name]
        for register, value in zip(("rdi", "rsi", "rdx", "r10", "r8"), arguments, strict=False):
            setattr(regs, register, value)
        regs.rip = TEXT + 2
        return HYPERCALL

    return make


def block(guest: PvGuest) -> Callable[[], Exit]:
    return hypercall(guest, "sched_op", SCHEDOP_block)


def bind_timer(guest: PvGuest, vcpu: int = 0) -> int:
    _, op = guest.op(
        "event_channel_op", EVTCHNOP_bind_virq, EvtchnBindVirq(virq=VIRQ_TIMER, vcpu=vcpu)
    )
    return op.port


def watchdog(guest: PvGuest, number: int, timeout: int) -> int:
    return guest.op("sched_op", SCHEDOP_watchdog, SchedWatchdog(id=number, timeout=timeout))[0]


class Sleeps(FakeWorld):
    """A world in which time passes while the loop sleeps, until there is nothing to wait for."""

    def __init__(self, guest: PvGuest, limit: int = 100) -> None:
        super().__init__()
        self._guest = guest
        self._limit = limit

    def wait(self, deadline_ns: int | None) -> None:
        self.waits.append(deadline_ns)
        if deadline_ns is None or len(self.waits) >= self._limit:
            self.closing = True
        else:
            self._guest.clock.ns = max(self._guest.clock.ns, deadline_ns)


def sleeping(guest: PvGuest, limit: int = 100) -> Sleeps:
    guest.world = world = Sleeps(guest, limit)
    guest.loop.world = world
    return world


# --- turns ------------------------------------------------------------------------------------


def test_a_blocked_domain_waits_without_a_deadline(guest: PvGuest) -> None:
    guest.engine.script += [PREEMPTED, block(guest)]
    guest.loop.run()
    assert guest.world.waits == [None]
    assert guest.vcpu.runstate.state is RunState.BLOCKED
    assert guest.domain.crash_cause is None


def test_attention_ends_the_turn_and_is_handled(guest: PvGuest) -> None:
    def kicked() -> Exit:
        guest.world.attention = True
        return PREEMPTED

    guest.engine.script += [kicked, block(guest)]
    guest.loop.run()
    assert guest.world.polls == 1
    assert guest.world.waits == [None]


def test_a_paused_domain_does_not_run(guest: PvGuest) -> None:
    guest.domain.pause_count = 1
    guest.loop.run()
    assert guest.world.waits == [None]
    assert guest.domain.crash_cause is None


def test_vcpus_take_turns(guest: PvGuest) -> None:
    order: list[int] = []
    for vcpu_id in (1, 2):
        guest.start(vcpu_id)

    def turn() -> Exit:
        order.append(guest.domain.current.vcpu_id)
        assert guest.engine.selected == guest.domain.current.vcpu_id
        return hypercall(guest, "sched_op", SCHEDOP_yield)()

    guest.engine.script += [turn] * 6 + [block(guest)] * 3
    guest.loop.run()
    assert order == [0, 1, 2, 0, 1, 2]


def test_a_slice_limits_a_turn_if_others_wait(guest: PvGuest) -> None:
    guest.engine.script += [block(guest)]
    guest.loop.run()
    [alone] = guest.world.armed
    guest.start(1)
    guest.world.closing = False
    guest.domain.unblock(guest.vcpu)
    before = guest.clock.ns
    guest.engine.script += [block(guest), block(guest)]
    guest.loop.run()
    assert guest.world.armed[1] - before < alone - before
    assert guest.world.armed[1] - before == pytest.approx(5 * MS, abs=MS)


def test_a_woken_vcpu_does_not_wait_for_the_slice(guest: PvGuest) -> None:
    """The running one goes on for a moment only, though it would have had 5 ms."""
    sleeper = guest.start(1)
    sleeper.blocked = True
    order: list[int] = []

    def note() -> Exit:
        order.append(guest.domain.current.vcpu_id)
        guest.clock.advance(WAKE_GRACE_NS // 2)
        return PREEMPTED

    def wake() -> Exit:
        guest.domain.unblock(sleeper)
        return note()

    guest.engine.script += [note, wake, note, note, note, *[block(guest)] * 2]
    guest.loop.run()
    assert order[:3] == [0, 0, 0], "who wakes another often blocks soon"
    assert order[-1] == 1
    woken_at = guest.world.armed[1]
    assert woken_at is not None
    assert woken_at < guest.clock.ns


def test_who_has_computed_long_waits_for_who_sleeps_much(guest: PvGuest) -> None:
    """A vCPU that wakes up too often is not preferred for ever."""
    ran = {0: 0, 1: 0}
    other = guest.start(1)

    def hog() -> Exit:
        ran[guest.domain.current.vcpu_id] += 1
        guest.clock.advance(MS)
        guest.world.attention = True
        if guest.domain.current is other:
            # Sleeps, and is woken at once.
            other.blocked = True
            guest.domain.unblock(other)
        return PREEMPTED

    guest.engine.script += [hog] * 100 + [block(guest)] * 2
    guest.loop.run()
    assert 40 <= ran[0] <= 60


def test_a_spinning_vcpu_lets_another_one_run(guest: PvGuest) -> None:
    guest.start(1)
    order: list[int] = []

    def spin() -> Exit:
        order.append(guest.domain.current.vcpu_id)
        return SPINNING

    guest.engine.script += [spin] * 4 + [block(guest), spin, spin, block(guest)]
    guest.loop.run()
    assert order == [0, 1, 0, 1, 1, 1], "alone it just goes on"


def test_times_add_up_for_every_vcpu(guest: PvGuest) -> None:
    for vcpu_id in (1, 2):
        guest.start(vcpu_id)

    def work() -> Exit:
        guest.clock.advance(3 * MS)
        guest.world.attention = True
        return PREEMPTED

    guest.engine.script += [work] * 20 + [block(guest)] * 3
    guest.loop.run()
    now = guest.time.now_ns()
    for vcpu_id in range(3):
        times = guest.domain.vcpus[VcpuId(vcpu_id)].runstate
        info = VcpuRunstateInfo.unpack(times.record(now))
        assert sum(info.time) == now
        assert info.time[RunState.RUNNING] == pytest.approx(20 * MS, rel=0.4)
        assert info.time[RunState.RUNNABLE] == pytest.approx(40 * MS, rel=0.4)


def test_an_event_wakes_a_vcpu_for_its_next_turn(guest: PvGuest) -> None:
    port = bind_timer(guest)
    guest.vcpu.pv.event_callback = TEXT + 0x100
    entered: list[int] = []

    def awake() -> Exit:
        entered.append(guest.regs.rip)
        guest.clear_pending()
        guest.set_mask(0)
        return block(guest)()

    class Wakes(FakeWorld):
        def wait(self, deadline_ns: int | None) -> None:
            if not self.waits:
                guest.domain.events.set_pending(port)
                self.waits.append(deadline_ns)
            else:
                self.closing = True

    guest.loop.world = Wakes()
    guest.engine.script += [block(guest), awake]
    guest.loop.run()
    assert entered == [TEXT + 0x100], "in its upcall"


# --- back ends that were kicked -----------------------------------------------------------------


def test_kicks_are_looked_at_when_the_turn_ends(guest: PvGuest) -> None:
    seen: list[str] = []

    def kicks() -> Exit:
        guest.domain.soon(lambda: seen.append("first"))
        guest.domain.soon(lambda: seen.append("second"))
        return PREEMPTED

    def goes_on() -> Exit:
        seen.append("guest")
        return block(guest)()

    guest.engine.script += [kicks, goes_on]
    guest.loop.run()
    assert seen == ["guest", "first", "second"]
    assert guest.world.waits == [None], "nothing is left to do"


def test_a_kick_ends_a_turn_in_a_while(guest: PvGuest) -> None:
    kicked: list[int] = []

    def kicks() -> Exit:
        guest.domain.soon(lambda: None)
        kicked.append(guest.time.now_ns())
        return PREEMPTED

    guest.engine.script += [kicks, block(guest)]
    guest.loop.run()
    deadlines = [ns for ns in guest.world.armed if ns is not None]
    latest = guest.time.host_ns(kicked[0] + SOON_NS)
    assert latest - 1000 <= min(deadlines) <= latest


def test_a_lone_vcpu_that_yields_lets_a_kicked_back_end_work(guest: PvGuest) -> None:
    seen: list[str] = []

    def kicks() -> Exit:
        guest.domain.soon(lambda: seen.append("back end"))
        return hypercall(guest, "sched_op", SCHEDOP_yield)()

    def goes_on() -> Exit:
        seen.append("guest")
        return block(guest)()

    guest.engine.script += [kicks, goes_on]
    guest.loop.run()
    assert seen == ["back end", "guest"]


def test_what_is_asked_for_meanwhile_waits_for_the_next_time(guest: PvGuest) -> None:
    seen: list[int] = []

    def again() -> None:
        seen.append(len(seen))
        guest.domain.soon(again)

    guest.domain.soon(again)
    guest.domain.run_soon()
    assert seen == [0]
    assert guest.domain.soon_ns
    sleeping(guest, limit=3)
    guest.domain.pause_count = 1
    guest.loop.run()
    assert guest.world.waits[0] is not None, "the loop comes back for it"
    assert seen == [0, 1, 2, 3]


def test_a_bug_in_a_back_end_ends_the_guest(guest: PvGuest) -> None:
    def kicks() -> Exit:
        guest.domain.soon(lambda: 1 // 0 and None)
        return block(guest)()

    guest.engine.script.append(kicks)
    guest.loop.run()
    assert isinstance(guest.domain.crash_cause, ZeroDivisionError)
    assert guest.world.waits == [None]


# --- time that was used -------------------------------------------------------------------------


def test_run_time_is_accounted(guest: PvGuest) -> None:
    def work() -> Exit:
        guest.clock.advance(3 * MS)
        return PREEMPTED

    guest.engine.script += [work, work, block(guest)]
    guest.loop.run()
    assert guest.vcpu.cpu_time_ns == pytest.approx(6 * MS, abs=1000)
    assert guest.vcpu.runstate.spent_ns[RunState.RUNNING] == pytest.approx(6 * MS, abs=1000)


# --- crashes ----------------------------------------------------------------------------------


def test_a_crash_ends_the_guest_and_not_the_loop(guest: PvGuest) -> None:
    reasons: list[ShutdownReason] = []
    guest.domain.on_shutdown = reasons.append
    guest.loop.run()
    assert reasons == [ShutdownReason.CRASH]
    assert isinstance(guest.domain.crash_cause, DomainCrash)
    assert "end of script" in str(guest.domain.crash_cause)
    assert guest.world.waits == [None]


def test_a_bug_of_ours_ends_the_guest_and_not_the_loop(guest: PvGuest) -> None:
    def bug() -> Exit:
        raise ZeroDivisionError

    guest.engine.script.append(bug)
    guest.loop.run()
    assert isinstance(guest.domain.crash_cause, ZeroDivisionError)
    assert guest.domain.shutdown_reason is ShutdownReason.CRASH


def test_a_bug_in_the_timers_ends_the_guest_too(guest: PvGuest) -> None:
    guest.time.resync = lambda: 1 // 0  # type: ignore[method-assign,assignment]
    guest.clock.advance(2_000 * MS)
    guest.loop.run()
    assert isinstance(guest.domain.crash_cause, ZeroDivisionError)


def test_only_the_first_reason_counts(guest: PvGuest) -> None:
    reasons: list[ShutdownReason] = []
    guest.domain.on_shutdown = reasons.append
    guest.domain.shutdown(ShutdownReason.REBOOT)
    guest.domain.crash(DomainCrash("late"))
    assert reasons == [ShutdownReason.REBOOT]
    assert guest.domain.crash_cause is None


# --- sched_op ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", list(ShutdownReason))
def test_shutdown(guest: PvGuest, reason: ShutdownReason) -> None:
    at = guest.put(SchedShutdown(reason=reason))
    guest.engine.script += [hypercall(guest, "sched_op", SCHEDOP_shutdown, at), PREEMPTED]
    guest.loop.run()
    assert guest.domain.shutdown_reason is reason
    assert list(guest.engine.script) == [PREEMPTED], "it does not run any more"


def test_shutdown_code(guest: PvGuest) -> None:
    assert guest.op("sched_op", SCHEDOP_shutdown_code, SchedShutdown(reason=1))[0] == 0
    assert guest.domain.shutdown_code is ShutdownReason.REBOOT
    assert guest.domain.shutdown_reason is None


def test_sched_op_errors(guest: PvGuest) -> None:
    assert guest.call("sched_op", 99) == -E.NOSYS
    assert guest.call("sched_op", SCHEDOP_pin_override, NOT_MAPPED) == -E.PERM
    for command in (
        SCHEDOP_shutdown,
        SCHEDOP_shutdown_code,
        SCHEDOP_watchdog,
        SCHEDOP_poll,
        SCHEDOP_remote_shutdown,
    ):
        assert guest.call("sched_op", command, NOT_MAPPED) == -E.FAULT
    for domid, errno in ((0, E.PERM), (7, E.PERM), (8, E.SRCH), (SELF, E.SRCH)):
        op = SchedRemoteShutdown(domain_id=domid, reason=1)
        assert guest.op("sched_op", SCHEDOP_remote_shutdown, op)[0] == -errno
    assert guest.domain.shutdown_reason is None


@pytest.mark.parametrize(("number", "reason"), [(0x101, "REBOOT"), (77, "UNKNOWN")])
def test_any_byte_is_a_reason(guest: PvGuest, number: int, reason: str) -> None:
    assert guest.op("sched_op", SCHEDOP_shutdown, SchedShutdown(reason=number))[0] == 0
    assert guest.domain.shutdown_reason is ShutdownReason[reason]


def test_the_first_shutdown_code_is_what_the_shutdown_means(guest: PvGuest) -> None:
    for reason in (3, 1):
        assert guest.op("sched_op", SCHEDOP_shutdown_code, SchedShutdown(reason=reason))[0] == 0
    assert guest.op("sched_op", SCHEDOP_shutdown, SchedShutdown(reason=0))[0] == 0
    assert guest.domain.shutdown_reason is ShutdownReason.CRASH


def test_power_off_is_a_shutdown_code_too(guest: PvGuest) -> None:
    assert guest.op("sched_op", SCHEDOP_shutdown_code, SchedShutdown(reason=0))[0] == 0
    assert guest.op("sched_op", SCHEDOP_shutdown, SchedShutdown(reason=1))[0] == 0
    assert guest.domain.shutdown_reason is ShutdownReason.POWEROFF


def test_a_crash_is_a_crash_whatever_was_announced(guest: PvGuest) -> None:
    assert guest.op("sched_op", SCHEDOP_shutdown_code, SchedShutdown(reason=0))[0] == 0
    guest.domain.crash(DomainCrash("a test"))
    assert guest.domain.shutdown_reason is ShutdownReason.CRASH


def test_sched_op_compat(guest: PvGuest) -> None:
    assert guest.call("sched_op_compat", SCHEDOP_yield) == 0
    assert guest.domain.sched.yielded
    guest.set_mask(1)
    assert guest.call("sched_op_compat", SCHEDOP_block) == 0
    assert (guest.vcpu.blocked, guest.vcpu.upcall_mask) == (True, 0)
    assert guest.call("sched_op_compat", SCHEDOP_poll, 0) == -E.NOSYS
    assert guest.call("sched_op_compat", SCHEDOP_shutdown, 0x101) == 0
    assert guest.domain.shutdown_reason is ShutdownReason.REBOOT


# --- timers -----------------------------------------------------------------------------------


def test_the_singleshot_timer_fires_once(guest: PvGuest) -> None:
    port = bind_timer(guest)
    world = sleeping(guest)
    due = guest.time.now_ns() + 7 * MS
    guest.engine.script += [hypercall(guest, "set_timer_op", due), block(guest), block(guest)]
    guest.loop.run()
    assert world.waits == [guest.time.host_ns(due), None]
    assert guest.bit(PENDING, port)
    assert guest.vcpu.singleshot_ns == 0


def test_a_new_timer_is_armed_while_the_guest_runs(guest: PvGuest) -> None:
    due = guest.time.now_ns() + MS
    guest.engine.script += [hypercall(guest, "set_timer_op", due), block(guest)]
    guest.loop.run()
    assert guest.world.armed[-1] == guest.time.host_ns(due)


def test_a_timer_can_be_stopped(guest: PvGuest) -> None:
    guest.call("set_timer_op", guest.time.now_ns() + MS)
    guest.call("set_timer_op", 0)
    assert guest.vcpu.next_timer_ns() is None


@pytest.mark.parametrize("timeout", [(1 << 64) - 5, 1 << 63, 1 << 60])
def test_a_timer_far_away_fires_soon(guest: PvGuest, timeout: int) -> None:
    """Xen's answer to guests whose arithmetic wrapped: in 100 ms."""
    assert guest.call("set_timer_op", timeout) == 0
    assert guest.vcpu.singleshot_ns - guest.time.now_ns() == pytest.approx(100 * MS, abs=1000)


def test_singleshot_of_vcpu_op(guest: PvGuest) -> None:
    def set_timer(at_ns: int, flags: int = 0) -> int:
        op = VcpuSetSingleshotTimer(timeout_abs_ns=at_ns, flags=flags)
        return guest.call("vcpu_op", VCPUOP_set_singleshot_timer, 0, guest.put(op))

    now = guest.time.now_ns()
    assert set_timer(now - 1, VCPU_SSHOTTMR_future) == -E.TIME
    assert guest.vcpu.singleshot_ns == 0
    assert set_timer(now + MS, VCPU_SSHOTTMR_future) == 0
    assert guest.vcpu.singleshot_ns == now + MS
    for past in (0, 1 << 63, (1 << 64) - 1):
        assert set_timer(past) == 0
        assert guest.vcpu.singleshot_ns == 1, "fires at once: times are signed"
    assert guest.call("vcpu_op", VCPUOP_stop_singleshot_timer, 0) == 0
    assert guest.vcpu.singleshot_ns == 0
    at = guest.put(VcpuSetSingleshotTimer(timeout_abs_ns=1))
    assert guest.call("vcpu_op", VCPUOP_set_singleshot_timer, 1, at) == -E.INVAL, "its own only"
    assert guest.call("vcpu_op", VCPUOP_stop_singleshot_timer, 1) == -E.INVAL


def test_the_periodic_timer_keeps_its_beat(guest: PvGuest) -> None:
    port = bind_timer(guest)
    op = guest.put(VcpuSetPeriodicTimer(period_ns=10 * MS))
    beats: list[int] = []

    def tick() -> Exit:
        """Runs until the loop's deadline."""
        if guest.bit(PENDING, port):
            beats.append(guest.vcpu.periodic_due_ns)
            guest.set_bit(PENDING, port, False)
            guest.clear_pending()
        armed = guest.world.armed[-1]
        assert armed is not None
        guest.clock.ns = armed
        guest.world.attention = True
        return PREEMPTED

    guest.engine.script += [
        hypercall(guest, "vcpu_op", VCPUOP_set_periodic_timer, 0, op), *[tick] * 4, block(guest),
    ]  # fmt: skip
    guest.loop.run()
    assert [b - a for a, b in itertools.pairwise(beats)] == [10 * MS] * 2


def test_the_periodic_timer_of_a_sleeping_vcpu_stands_still(guest: PvGuest) -> None:
    port = bind_timer(guest)
    op = guest.put(VcpuSetPeriodicTimer(period_ns=10 * MS))
    guest.engine.script += [
        hypercall(guest, "vcpu_op", VCPUOP_set_periodic_timer, 0, op), block(guest),
    ]  # fmt: skip
    guest.loop.run()
    assert guest.world.waits == [None]
    guest.clock.advance(35 * MS)
    guest.world.closing = False
    guest.domain.unblock(guest.vcpu)
    guest.engine.script += [block(guest)]
    guest.loop.run()
    assert guest.bit(PENDING, port), "it has its beat when it runs again"


def test_missed_periods_are_not_made_up(guest: PvGuest) -> None:
    at = guest.put(VcpuSetPeriodicTimer(period_ns=10 * MS))
    guest.call("vcpu_op", VCPUOP_set_periodic_timer, 0, at)
    first = guest.vcpu.periodic_due_ns
    guest.clock.advance(95 * MS)
    guest.engine.script += [block(guest)]
    guest.loop.run()
    assert guest.vcpu.periodic_due_ns == first + 90 * MS
    assert guest.call("vcpu_op", VCPUOP_stop_periodic_timer, 0) == 0
    assert guest.vcpu.next_timer_ns() is None


@pytest.mark.parametrize("period", [0, 1, 999_999, 1 << 62, 1 << 63, (1 << 64) - 1])
def test_bad_periods(guest: PvGuest, period: int) -> None:
    at = guest.put(VcpuSetPeriodicTimer(period_ns=period))
    assert guest.call("vcpu_op", VCPUOP_set_periodic_timer, 0, at) == -E.INVAL
    assert guest.vcpu.periodic_due_ns == 0


def test_a_poll_ends_with_its_timeout(guest: PvGuest) -> None:
    port = bind_timer(guest)
    world = sleeping(guest)
    due = guest.time.now_ns() + 3 * MS
    ports = guest.put(port.to_bytes(4, "little"))
    at = guest.put(SchedPoll(ports=ports, nr_ports=1, timeout=due))
    results: list[int] = []

    def look() -> Exit:
        results.append(guest.regs.rax)
        return block(guest)()

    guest.engine.script += [hypercall(guest, "sched_op", SCHEDOP_poll, at), look]
    guest.loop.run()
    assert world.waits == [guest.time.host_ns(due), None]
    assert results == [0]
    assert guest.vcpu.poll_deadline_ns == 0


def test_timers_of_a_vcpu_that_is_down_do_not_fire(guest: PvGuest) -> None:
    other = guest.start(1)
    other.singleshot_ns = 1
    other.up = False
    guest.engine.script += [block(guest)]
    guest.loop.run()
    assert guest.world.waits == [None]
    assert other.singleshot_ns == 1


def test_the_record_is_renewed_for_every_vcpu(guest: PvGuest) -> None:
    other = guest.start(1)
    other.blocked = True
    guest.clock.advance(1_500 * MS)
    guest.engine.script += [block(guest)]
    guest.loop.run()
    for vcpu in (guest.vcpu, other):
        at = vcpu.pv.vcpu_info_maddr + VcpuInfo.OFFSET["time"]
        seen = VcpuTimeInfo.unpack(guest.memory.bytes, at)
        assert seen.system_time == guest.time.record.system_time


# --- watchdogs --------------------------------------------------------------------------------


def test_a_watchdog_ends_the_domain(guest: PvGuest) -> None:
    assert watchdog(guest, 0, 2) == 1
    world = sleeping(guest)
    guest.engine.script += [block(guest)]
    guest.loop.run()
    assert guest.domain.shutdown_reason is ShutdownReason.WATCHDOG
    assert len(world.waits) == 2


def test_a_watchdog_can_be_fed_and_stopped(guest: PvGuest) -> None:
    assert watchdog(guest, 0, 2) == 1
    first = guest.domain.watchdogs[1]
    guest.clock.advance(1_000 * MS)
    assert watchdog(guest, 1, 2) == 0
    assert guest.domain.watchdogs[1] >= first + 1_000 * MS
    assert watchdog(guest, 1, 0) == 0
    assert guest.domain.watchdogs == {}


def test_watchdog_errors(guest: PvGuest) -> None:
    assert [watchdog(guest, 0, 9), watchdog(guest, 0, 9)] == [1, 2]
    assert watchdog(guest, 0, 9) == -E.NOSPC
    assert watchdog(guest, 3, 9) == -E.INVAL
    assert watchdog(guest, 2, 0) == 0
    assert watchdog(guest, 2, 0) == -E.INVAL, "not armed any more"
    assert watchdog(guest, 0, 0xFFFF_FFFF) == 2


def test_the_watchdog_of_a_paused_domain_runs_on(guest: PvGuest) -> None:
    watchdog(guest, 0, 1)
    watchdog(guest, 0, 5)
    guest.domain.pause()
    world = sleeping(guest)
    guest.loop.run()
    assert guest.domain.shutdown_reason is ShutdownReason.WATCHDOG
    assert len(world.waits) == 2, "until the first is due, and for ever"
    assert guest.time.now_ns() >= guest.domain.watchdogs[1]


def test_other_timers_of_a_paused_domain_wait(guest: PvGuest) -> None:
    bind_timer(guest)
    guest.call("set_timer_op", guest.time.now_ns() + 10 * MS)
    guest.domain.pause()
    world = sleeping(guest)
    guest.loop.run()
    assert world.waits == [None]
    assert guest.vcpu.singleshot_ns, "nobody looked"
    guest.clock.advance(20 * MS)
    guest.domain.unpause()
    sleeping(guest)
    guest.engine.script += [block(guest)]
    guest.loop.run()
    assert guest.vcpu.singleshot_ns == 0


def test_yield_alone_goes_on(guest: PvGuest) -> None:
    guest.engine.script += [hypercall(guest, "sched_op", SCHEDOP_yield), block(guest)]
    guest.loop.run()
    assert guest.vcpu.blocked


def test_vcpus_that_are_down_do_not_run(guest: PvGuest) -> None:
    assert guest.call("vcpu_op", 2, 1) == 0, "VCPUOP_down of one that never was up"
    guest.engine.script += [block(guest)]
    guest.loop.run()
    assert guest.engine.selected == VcpuId(0)
    assert SELF == 0x7FF0
