"""HYPERVISOR_sched_op: yield, block, poll, shutdown, watchdogs. Source: public/sched.h."""

from __future__ import annotations

from pyxen.abi.errno import E
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
    SchedShutdown,
    SchedWatchdog,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain, ShutdownReason
from pyxen.hypervisor.evtchn import MAX_PORTS
from pyxen.hypervisor.hypercall.continuation import work
from pyxen.hypervisor.vcpu import RunState, Vcpu
from pyxen.types import Port

MAX_POLL_PORTS = 128
_PORTS_PER_WORK = 8
NR_WATCHDOGS = 2


def sched_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command."""
    if command == SCHEDOP_yield:
        d.sched.yielded = True
        return 0
    if command == SCHEDOP_block:
        return _block(d, v)
    if command == SCHEDOP_poll:
        return _poll(d, v, argument)
    if command == SCHEDOP_shutdown:
        d.shutdown(_reason(d, argument))
        return 0
    if command == SCHEDOP_shutdown_code:
        d.shutdown_code = _reason(d, argument)
        return 0
    if command == SCHEDOP_watchdog:
        return _watchdog(d, argument)
    if command in (SCHEDOP_remote_shutdown, SCHEDOP_pin_override):
        raise XenError(E.PERM, "only for domain 0")
    raise XenError(E.NOSYS, f"sched_op {command}")


def _reason(d: Domain, argument: int) -> ShutdownReason:
    op = SchedShutdown.unpack(d.space.read(argument, SchedShutdown.SIZE))
    try:
        return ShutdownReason(op.reason)
    except ValueError:
        raise XenError(E.INVAL, f"shutdown reason {op.reason}") from None


def _block(d: Domain, v: Vcpu) -> int:
    """Unmask events and sleep until one is pending."""
    v.upcall_mask = 0
    if not v.upcall_pending:
        sleep(d, v)
    return 0


def _poll(d: Domain, v: Vcpu, argument: int) -> int:
    """Sleep until one of the ports is pending, or the timeout (system time, 0: none)."""
    op = SchedPoll.unpack(d.space.read(argument, SchedPoll.SIZE))
    if op.nr_ports > MAX_POLL_PORTS:
        raise XenError(E.INVAL, f"{op.nr_ports} ports")
    work(d, op.nr_ports // _PORTS_PER_WORK)
    listed = d.space.read(op.ports, 4 * op.nr_ports) if op.nr_ports else b""
    ports = [Port(port) for port in memoryview(listed).cast("I")]
    if any(port >= MAX_PORTS for port in ports):
        raise XenError(E.INVAL, "no such port")
    # COMMIT
    if (v.upcall_pending and not v.upcall_mask) or any(d.events.is_pending(p) for p in ports):
        return 0
    if op.timeout and op.timeout <= d.time.now_ns():
        return 0
    v.poll_ports = tuple(ports)
    d.events.pollers.add(v)
    v.poll_deadline_ns = op.timeout
    sleep(d, v)
    return 0


def sleep(d: Domain, v: Vcpu) -> None:
    """Block the vCPU until an event wakes it."""
    v.blocked = True
    v.runstate.enter(RunState.BLOCKED, d.time.now_ns())


def _watchdog(d: Domain, argument: int) -> int:
    """Arm (id 0: a new one), re-arm or, with timeout 0, stop a watchdog. Returns the id."""
    op = SchedWatchdog.unpack(d.space.read(argument, SchedWatchdog.SIZE))
    now = d.time.now_ns()
    d.timers_changed = True
    if op.id == 0:
        if op.timeout == 0:
            raise XenError(E.INVAL, "a new watchdog without a timeout")
        free = next((n for n in range(1, NR_WATCHDOGS + 1) if n not in d.watchdogs), None)
        if free is None:
            raise XenError(E.NOSPC, "all watchdogs are in use")
        d.watchdogs[free] = now + op.timeout * 1_000_000_000
        return free
    if op.id > NR_WATCHDOGS:
        raise XenError(E.INVAL, f"watchdog {op.id}")
    if op.id not in d.watchdogs:
        raise XenError(E.INVAL, f"watchdog {op.id} is not armed")
    if op.timeout == 0:
        del d.watchdogs[op.id]
    else:
        d.watchdogs[op.id] = now + op.timeout * 1_000_000_000
    return 0
