"""What a case is: code for a guest kernel, and what it must see.

In the code, `@name` is a label of the case's own; the words are those of kernel/macros.s. Names of
Xen's headers are constants. What the case `report`s is compared with `expect`, in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyxen.hypervisor.domain import ShutdownReason
from pyxen.types import U64

NONE = U64
"""What `report_trap` says where a trap has no error code."""


@dataclass(frozen=True, slots=True)
class Case:
    """One behaviour of Xen, as a guest sees it.

    name:    group/what, unique.
    source:  the behaviour in a line, and where Xen has it.
    code:    the kernel's part; falling off its end shuts down with SHUTDOWN_poweroff.
    expect:  the words reported, modulo 2^64.
    data:    in the kernel's data section.
    user:    code for user mode. crash: a regular expression for why the domain crashes.
    """

    name: str
    source: str
    code: str
    expect: tuple[int, ...] = ()
    data: str = ""
    user: str = ""
    reason: ShutdownReason = ShutdownReason.POWEROFF
    crash: str = ""
    console: bytes = b""
    vcpus: int = 1


def call(name: str, source: str, hypercall: str, result: int, data: str = "") -> Case:
    """A case of one hypercall, of which only the result counts."""
    return Case(name, source, f"result_of {hypercall}", (result,), data)


def calls(group: str, table: Iterable[tuple[str, str, str, int, str]]) -> list[Case]:
    """A table of (name, source, hypercall, result, data)."""
    return [call(f"{group}/{name}", *rest) for name, *rest in table]  # type: ignore[arg-type]
