"""Which vCPU of a domain runs next, and for how long.

The vCPUs of a domain take turns on one thread. As in Xen's credit2 scheduler the one goes first
that has had the least time, and one that wakes up goes before one that computes: its account is set
to a little before that of the running vCPU, and the running one has to make room.

Not at once, though. Who wakes another vCPU often blocks a moment later, and two changes of the vCPU
would be one too many; and who waits for the other's answer executes PAUSE, which ends its turn.
"""

from __future__ import annotations

from collections.abc import Collection

from pyxen.hypervisor.vcpu import Vcpu

TIME_SLICE_NS = 5_000_000
WAKE_CREDIT_NS = 1_000_000
"""How far before the running vCPU one is set that wakes up after a longer sleep."""
WAKE_GRACE_NS = 500_000
"""How long the running vCPU may go on when one has woken up that goes first."""


class Scheduler:
    """The turns of one domain's vCPUs. All times are system time."""

    def __init__(self, vcpus: Collection[Vcpu]) -> None:
        self._vcpus = vcpus
        self.running: Vcpu | None = None
        """Whose turn it is, or was last."""
        self._charged_ns = 0
        """Up to when its time is accounted for; 0: it does not execute."""
        self._slice_left_ns = 0
        self._turns = 0
        self.make_room_at_ns = 0
        """When the running vCPU has to stop for one that woke up; 0: there is none."""
        self.yielded = False
        """The running vCPU asks that another one runs, or spins, which means the same."""

    def pick(self) -> Vcpu | None:
        """The vCPU whose turn it is; None if none is runnable."""
        runnable = [v for v in self._vcpus if v.runnable]
        goes_on = self._slice_left_ns > 0 and not (self.yielded or self.make_room_at_ns)
        self.yielded, self.make_room_at_ns = False, 0
        if not runnable:
            return None
        previous = self.running
        if previous is not None and previous.runnable and len(runnable) > 1:
            if goes_on:
                return previous
            runnable.remove(previous)
        vcpu = min(runnable, key=lambda v: (v.virtual_ns, v.last_turn))
        if vcpu is not previous or self._slice_left_ns <= 0:
            self._slice_left_ns = TIME_SLICE_NS
        self._turns += 1
        vcpu.last_turn = self._turns
        self.running = vcpu
        return vcpu

    def begin(self, now_ns: int) -> None:
        """The vCPU that was picked starts to execute."""
        self._charged_ns = now_ns

    def end(self, now_ns: int) -> None:
        """It has stopped."""
        self._charge(now_ns)
        self._charged_ns = 0

    def wake(self, vcpu: Vcpu, now_ns: int) -> None:
        """The vCPU has become runnable."""
        self._charge(now_ns)
        running = self.running
        if running is None or running is vcpu:
            return
        vcpu.virtual_ns = max(vcpu.virtual_ns, running.virtual_ns - WAKE_CREDIT_NS)
        if vcpu.virtual_ns <= running.virtual_ns and not self.make_room_at_ns:
            self.make_room_at_ns = now_ns + WAKE_GRACE_NS

    def turn_end_ns(self, now_ns: int) -> int | None:
        """When the running vCPU has to stop; None: nobody else wants to run."""
        if self.make_room_at_ns:
            return self.make_room_at_ns
        if any(v.runnable and v is not self.running for v in self._vcpus):
            return (self._charged_ns or now_ns) + max(self._slice_left_ns, 0)
        return None

    def _charge(self, now_ns: int) -> None:
        if self.running is not None and self._charged_ns:
            ran_ns = now_ns - self._charged_ns
            self._charged_ns = now_ns
            self._slice_left_ns -= ran_ns
            self.running.virtual_ns += ran_ns
            self.running.cpu_time_ns += ran_ns
