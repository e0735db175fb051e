"""Long hypercalls in pieces, so that no guest can hold the host's thread.

Source: hypercall_create_continuation of xen/arch/x86/hypercall.c as it shows to a guest: its
instruction pointer is at the SYSCALL again and its argument registers say what is left, so that
events, timers and the back ends get their turn between two pieces.

Xen asks the clock whether to stop. Here it is a count of work, which makes the same guest do the
same thing every time; a unit is two to five microseconds.
"""

from __future__ import annotations

from pyxen.hypervisor.domain import Domain

WORK_PER_HYPERCALL = 1024


class Continue(Exception):
    """What is left of a hypercall: the arguments to execute it with again."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(f"goes on with {arguments}")
        self.arguments = arguments


def begin(d: Domain) -> None:
    """A hypercall begins, or goes on."""
    d.work_left = WORK_PER_HYPERCALL


def work(d: Domain, units: int = 1) -> None:
    """Account for one step of a loop, or for something longer than a plain hypercall."""
    d.work_left -= units


def exhausted(d: Domain) -> bool:
    """Whether a loop that did at least one step should raise Continue (hypercall_preempt_check)."""
    return d.work_left <= 0
