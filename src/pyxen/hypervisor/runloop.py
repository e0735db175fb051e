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
    Trap,
)
from pyxen.errors import DomainCrash
from pyxen.hypervisor import exception, trap
from pyxen.hypervisor.domain import Domain, ShutdownReason
from pyxen.hypervisor.hypercall import continuation, table
from pyxen.hypervisor.hypercall.vcpu_op import publish_runstate, publish_time
from pyxen.hypervisor.iret import iret
from pyxen.hypervisor.vcpu import RunState, Vcpu
from pyxen.types import U64

TIME_SLICE_NS = 5_000_000
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
        self._next = 0

    def run(self) -> None:
        """Loop until the world is closing. A guest's crash ends the guest, not the loop."""
        d, world = self.domain, self.world
        while not world.closing:
            vcpu = None
            try:
                self._timers()
                vcpu = None if d.stopped else self._pick()
                if vcpu is not None:
                    world.arm(self._deadline(vcpu))
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
        d, world, engine = self.domain, self.world, self.domain.engine
        d.select(vcpu)
        self._enter(vcpu, RunState.RUNNING)
        started = d.time.now_ns()
        while not world.attention and not d.stopped and vcpu.runnable:
            trap.deliver_events(d, vcpu)
            reason = engine.run()
            d.space.cr3 = vcpu.pv.cr3  # a native path may have changed it
            self.handler(vcpu, reason)
            if d.timers_changed:
                d.timers_changed = False
                world.arm(self._deadline(vcpu))
            if d.yielded:
                d.yielded = False
                if len(self._vcpus) > 1:
                    break
        vcpu.cpu_time_ns += d.time.now_ns() - started
        if vcpu.runnable:
            self._enter(vcpu, RunState.RUNNABLE)

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

    def _pick(self) -> Vcpu | None:
        """The next runnable vCPU, in turns."""
        count = len(self._vcpus)
        for n in range(count):
            vcpu = self._vcpus[(self._next + n) % count]
            if vcpu.runnable:
                self._next = (self._next + n + 1) % count
                return vcpu
        return None

    def _deadline(self, running: Vcpu | None) -> int | None:
        """Host time at which the loop has something to do by itself."""
        d = self.domain
        if d.stopped:
            return None
        times = [t for v in self._vcpus if v.up and (t := v.next_timer_ns()) is not None]
        times += d.watchdogs.values()
        if running is not None:
            now = d.time.now_ns()
            times.append(d.time.next_resync_ns)
            if any(v is not running and v.runnable for v in self._vcpus):
                times.append(now + TIME_SLICE_NS)
        return d.time.host_ns(min(times)) if times else None

    def _timers(self) -> None:
        """Fire what is due: vCPU timers, poll timeouts, watchdogs, the time record."""
        d = self.domain
        if d.stopped:
            return
        now = d.time.now_ns()
        if now >= d.time.next_resync_ns:
            d.time.resync()
            for vcpu in self._vcpus:
                if vcpu.up:
                    publish_time(d, vcpu)
        for vcpu in self._vcpus:
            if vcpu.up:
                self._vcpu_timers(vcpu, now)
        if any(now >= due for due in d.watchdogs.values()):
            d.shutdown(ShutdownReason.WATCHDOG)

    def _vcpu_timers(self, vcpu: Vcpu, now: int) -> None:
        d = self.domain
        due = False
        if vcpu.singleshot_ns and now >= vcpu.singleshot_ns:
            vcpu.singleshot_ns, due = 0, True
        if vcpu.periodic_due_ns and now >= vcpu.periodic_due_ns:
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
