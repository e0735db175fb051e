"""The run loop: pick a vCPU, run it, look at why it came back, decide.

The loop runs in one thread, which also does all work of the back ends: nothing else touches the
domain. While the engine executes, the World kicks it when something wants attention; while no vCPU
is runnable the thread sleeps in the kernel (`World.wait`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyxen.abi.xen import VIRQ_TIMER
from pyxen.cpu.base import (
    CpuidPolicy,
    EngineFailure,
    Exit,
    GuestSyscall,
    GuestSysenter,
    Hypercall,
    Preempted,
    Spinning,
    Trap,
)
from pyxen.errors import DomainCrash
from pyxen.hypervisor import exception, trap
from pyxen.hypervisor.context_switch import switch_to
from pyxen.hypervisor.domain import Domain, ShutdownReason
from pyxen.hypervisor.hypercall import continuation, table
from pyxen.hypervisor.hypercall.vcpu_op import publish_runstate, publish_time
from pyxen.hypervisor.iret import iret
from pyxen.hypervisor.vcpu import RunState, Vcpu
from pyxen.types import U64

_SYSCALL_BYTES = 2


class World(Protocol):
    """What happens outside of the guest, and what wakes the loop."""

    attention: bool
    """Set (from any thread) when `poll` should be called."""

    def arm(self, deadline_ns: int | None) -> None:
        """Set `attention` and kick the engine at this host time, or when I/O is ready."""

    def poll(self) -> None:
        """Handle the I/O that is ready; clears `attention`."""

    def wait(self, deadline_ns: int | None) -> None:
        """Sleep until I/O is ready or the host time is reached; handle the I/O."""

    @property
    def closing(self) -> bool:
        """Whether the loop should end."""


class RunLoop:
    """Runs one domain until the world is closing."""

    def __init__(self, domain: Domain, world: World, cpuid: CpuidPolicy) -> None:
        self.domain = domain
        self.world = world
        self.handler: Callable[[Vcpu, Exit], None] = self.handle
        """What exits go to: `handle`, or who looks at it for a trace (tracing.py)."""
        self._cpuid = cpuid
        self._vcpus = list(domain.vcpus.values())
        self._armed: int | None = None
        """The deadline of this turn."""
        self._due_ns: int | None = 0
        """When the first timer is due, unless one has changed since; 0: not looked yet."""

    def run(self) -> None:
        """Loop until the world is closing. A guest's crash ends the guest, not the loop."""
        d, world = self.domain, self.world
        while not world.closing:
            vcpu = None
            try:
                self._timers()
                d.run_soon()
                vcpu = None if d.stopped else d.sched.pick()
                if vcpu is not None:
                    self._turn(vcpu)
            except DomainCrash as crash:
                d.crash(crash)
            except Exception as bug:  # ours: it ends this domain with a report, and nothing else
                d.crash(bug)
            if vcpu is None:
                world.wait(self._deadline(None))
            elif world.attention:
                world.poll()

    def _turn(self, vcpu: Vcpu) -> None:
        """Run one vCPU until the world wants attention, or it blocks, or its time is over."""
        d, world, engine, sched = self.domain, self.world, self.domain.engine, self.domain.sched
        if d.current is vcpu:
            d.select(vcpu)
        else:
            switch_to(d, vcpu)
        self._enter(vcpu, RunState.RUNNING)
        sched.begin(d.time.now_ns())
        self._arm(self._deadline(vcpu))
        try:
            while not world.attention and not d.stopped and vcpu.runnable:
                trap.deliver_events(d, vcpu)
                reason = engine.run()
                d.space.cr3 = vcpu.pv.cr3  # a native path may have changed it
                self.handler(vcpu, reason)
                if d.timers_changed:
                    self._arm_earlier(self._deadline(vcpu))
                if self._is_over(vcpu):
                    break
        finally:
            sched.end(d.time.now_ns())
        if vcpu.runnable:
            self._enter(vcpu, RunState.RUNNABLE)

    def _arm(self, deadline: int | None) -> None:
        self.domain.timers_changed = False
        self._armed = deadline
        self.world.arm(deadline)

    def _arm_earlier(self, deadline: int | None) -> None:
        """Coming too early costs less than a system call for each deadline that moves away."""
        self.domain.timers_changed = False
        if deadline is not None and (self._armed is None or deadline < self._armed):
            self._arm(deadline)

    def _is_over(self, vcpu: Vcpu) -> bool:
        """Whether another vCPU, or a back end, should run now."""
        d, sched = self.domain, self.domain.sched
        if sched.yielded:
            if d.soon_ns or any(v is not vcpu and v.runnable for v in self._vcpus):
                return True
            sched.yielded = False
        return sched.make_room_at_ns != 0 and d.time.now_ns() >= sched.make_room_at_ns

    def handle(self, vcpu: Vcpu, reason: Exit) -> None:
        """Do what an exit asks for. Raises: DomainCrash."""
        d = self.domain
        match reason:
            case Hypercall():
                self._hypercall(vcpu)
            case GuestSyscall():
                trap.deliver_syscall(d, vcpu)
            case GuestSysenter():
                trap.deliver_sysenter(d, vcpu)
            case Trap():
                exception.handle(d, vcpu, reason, self._cpuid)
            case Preempted():
                pass
            case Spinning():
                d.sched.yielded = True
            case EngineFailure(why):
                raise DomainCrash(f"the engine cannot go on: {why}")

    def _hypercall(self, vcpu: Vcpu) -> None:
        d, regs = self.domain, self.domain.engine.regs
        number = regs.rax
        if number == table.IRET:
            iret(d, vcpu)
            d.pv.record_hypercall(number, (), 0)
            return
        arguments = (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8)
        continuation.begin(d)
        try:
            regs.rax = table.call(d, vcpu, number, arguments)
        except continuation.Continue as left:
            regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8 = (
                left.arguments + arguments[len(left.arguments) :]
            )
            regs.rip = (regs.rip - _SYSCALL_BYTES) & U64
        else:
            if regs.rflags & trap.EFLAGS_TF:
                exception.stepped_over_hypercall(d, vcpu)

    def _deadline(self, running: Vcpu | None) -> int | None:
        """Host time at which the loop has something to do by itself.

        Watchdogs run on while the tool stack has paused the domain, as in Xen; other timers are
        looked at when it goes on.
        """
        d = self.domain
        if d.shutdown_reason is not None:
            return None
        times = list(d.watchdogs.values())
        if not d.pause_count:
            times += [t for v in self._vcpus if v.up and (t := v.next_timer_ns()) is not None]
        self._due_ns = min(times, default=None)
        if d.soon_ns:
            times.append(d.soon_ns)
        if running is not None:
            times.append(d.time.next_resync_ns)
            if (end := d.sched.turn_end_ns(d.time.now_ns())) is not None:
                times.append(end)
        return d.time.host_ns(min(times)) if times else None

    def _timers(self) -> None:
        """Fire what is due: vCPU timers, poll timeouts, watchdogs, the time record."""
        d = self.domain
        if d.shutdown_reason is not None:
            return
        now = d.time.now_ns()
        if d.watchdogs and now >= min(d.watchdogs.values()):
            d.shutdown(ShutdownReason.WATCHDOG)
            return
        if d.pause_count:
            return
        if now >= d.time.next_resync_ns:
            d.time.resync()
            for vcpu in self._vcpus:
                if vcpu.up:
                    publish_time(d, vcpu)
        if not d.timers_changed and (self._due_ns is None or now < self._due_ns):
            return
        for vcpu in self._vcpus:
            if vcpu.up:
                self._vcpu_timers(vcpu, now)

    def _vcpu_timers(self, vcpu: Vcpu, now: int) -> None:
        d = self.domain
        due = False
        if vcpu.singleshot_ns and now >= vcpu.singleshot_ns:
            vcpu.singleshot_ns, due = 0, True
        if vcpu.periodic_due_ns and not vcpu.blocked and now >= vcpu.periodic_due_ns:
            missed = (now - vcpu.periodic_due_ns) // vcpu.periodic_ns
            vcpu.periodic_due_ns += (missed + 1) * vcpu.periodic_ns
            due = True
        if due:
            d.events.raise_virq(vcpu, VIRQ_TIMER)
        if vcpu.poll_deadline_ns and now >= vcpu.poll_deadline_ns:
            d.unblock(vcpu)

    def _enter(self, vcpu: Vcpu, state: RunState) -> None:
        vcpu.runstate.enter(state, self.domain.time.now_ns())
        if vcpu.runstate_vaddr:
            publish_runstate(self.domain, vcpu)
