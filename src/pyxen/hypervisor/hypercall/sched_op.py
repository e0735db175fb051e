"""HYPERVISOR_sched_op: yield, block, poll, shutdown, watchdogs.

Source: public/sched.h; the order of checks from xen/common/sched/core.c.
"""

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
    SchedRemoteShutdown,
    SchedShutdown,
    SchedWatchdog,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain, ShutdownReason
from pyxen.hypervisor.hypercall.continuation import work
from pyxen.hypervisor.hypercall.domid import check_exists
from pyxen.hypervisor.time import NS_PER_S
from pyxen.hypervisor.vcpu import RunState, Vcpu
from pyxen.memory.pagetable import is_guest_vaddr
from pyxen.types import U32

MAX_POLL_PORTS = 128
_PORTS_PER_WORK = 8
NR_WATCHDOGS = 2
_REASON_MASK = 0xFF


def sched_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command."""
    command &= U32
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
        reason = _reason(d, argument)
        if d.shutdown_code is None:
            d.shutdown_code = reason
        return 0
    if command == SCHEDOP_watchdog:
        return _watchdog(d, argument)
    if command == SCHEDOP_remote_shutdown:
        return _remote_shutdown(d, argument)
    if command == SCHEDOP_pin_override:
        raise XenError(E.PERM, "only for domain 0")
    raise XenError(E.NOSYS, f"sched_op {command}")


def sched_op_compat(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """HYPERVISOR_sched_op_compat: yield, block, and shutdown with the reason as argument."""
    command &= U32
    if command in (SCHEDOP_yield, SCHEDOP_block):
        return sched_op(d, v, command, 0)
    if command == SCHEDOP_shutdown:
        d.shutdown(ShutdownReason(argument & _REASON_MASK))
        return 0
    raise XenError(E.NOSYS, f"sched_op_compat {command}")


def _reason(d: Domain, argument: int) -> ShutdownReason:
    """All of a byte is a reason to Xen; what it means is the tool stack's business."""
    op = SchedShutdown.unpack(d.space.read(argument, SchedShutdown.SIZE))
    return ShutdownReason(op.reason & _REASON_MASK)


def _remote_shutdown(d: Domain, argument: int) -> int:
    op = SchedRemoteShutdown.unpack(d.space.read(argument, SchedRemoteShutdown.SIZE))
    check_exists(d, op.domain_id)
    raise XenError(E.PERM, "only for device models and domain 0")


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
    if not is_guest_vaddr(op.ports, 4 * op.nr_ports):
        raise XenError(E.FAULT, f"a list of ports at {op.ports:#x}")
    if v.upcall_pending and not v.upcall_mask:
        return 0
    listed = d.space.read(op.ports, 4 * op.nr_ports) if op.nr_ports else b""
    ports = tuple(memoryview(listed).cast("I"))
    # A port that is pending ends the search: what follows it may be nonsense.
    if any(d.events.is_pending(port) for port in ports):
        return 0
    if op.timeout and not d.time.now_ns() < op.timeout < 1 << 63:
        return 0
    # COMMIT
    v.poll_ports = ports
    d.events.pollers.add(v)
    v.poll_deadline_ns = op.timeout
    sleep(d, v)
    return 0


def sleep(d: Domain, v: Vcpu) -> None:
    """Block the vCPU until an event wakes it."""
    v.blocked = True
    v.runstate.enter(RunState.BLOCKED, d.time.now_ns())


def _watchdog(d: Domain, argument: int) -> int:
    """Arm (id 0: a new one), re-arm or, with timeout 0, stop a watchdog. Returns the id.

    A new one with timeout 0 fires at once, as in Xen.
    """
    op = SchedWatchdog.unpack(d.space.read(argument, SchedWatchdog.SIZE))
    due = d.time.now_ns() + op.timeout * NS_PER_S
    if op.id == 0:
        free = next((n for n in range(1, NR_WATCHDOGS + 1) if n not in d.watchdogs), None)
        if free is None:
            raise XenError(E.NOSPC, "all watchdogs are in use")
        # COMMIT
        d.watchdogs[free] = due
        d.timers_changed = True
        return free
    if op.id not in d.watchdogs:
        raise XenError(E.INVAL, f"watchdog {op.id} is not armed")
    # COMMIT
    if op.timeout == 0:
        del d.watchdogs[op.id]
    else:
        d.watchdogs[op.id] = due
    d.timers_changed = True
    return 0
