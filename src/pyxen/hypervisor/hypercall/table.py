"""The table of all hypercalls: number, name, handler, how far it is done. Source: public/xen.h.

Dispatch and `pyxen hypercalls` read the same rows. Arguments come in RDI, RSI, RDX, R10, R8; the
result goes to RAX, an error as its negative number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall import cpu_state as cpu
from pyxen.hypervisor.hypercall import descriptors as desc
from pyxen.hypervisor.hypercall import mmu_update as mmu
from pyxen.hypervisor.hypercall import privileged
from pyxen.hypervisor.hypercall.callback_op import callback_op, nmi_op, set_callbacks
from pyxen.hypervisor.hypercall.console_io import console_io
from pyxen.hypervisor.hypercall.continuation import Continue, exhausted, work
from pyxen.hypervisor.hypercall.event_channel_op import event_channel_op, event_channel_op_compat
from pyxen.hypervisor.hypercall.grant_table_op import grant_table_op
from pyxen.hypervisor.hypercall.hvm_op import hvm_op
from pyxen.hypervisor.hypercall.memory_op import memory_op
from pyxen.hypervisor.hypercall.mmuext_op import mmuext_op
from pyxen.hypervisor.hypercall.physdev_op import physdev_op, physdev_op_compat
from pyxen.hypervisor.hypercall.sched_op import sched_op, sched_op_compat
from pyxen.hypervisor.hypercall.vcpu_op import set_timer_op, vcpu_op
from pyxen.hypervisor.hypercall.vm_assist import vm_assist
from pyxen.hypervisor.hypercall.xen_version import xen_version
from pyxen.hypervisor.page_types import Restart
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import U32, U64

IRET = 23
MULTICALL = 13
_MULTICALL_ENTRY_BYTES = 64
_MULTICALL_RESULT = 8
_MULTICALL_ARGUMENTS = 16

Handler = Callable[..., int]


class Support(Enum):
    """How far a hypercall is done."""

    IMPLEMENTED = "implemented"
    PARTIAL = "partial"
    REFUSED = "refused"
    """As in Xen: a PV DomU may not call it, and gets Xen's error."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Row:
    """One hypercall. Without a handler it answers `errno`; `note` says what is not there, why."""

    number: int
    name: str
    support: Support
    handler: Handler | None = None
    arguments: tuple[str, ...] = ()
    note: str = ""
    errno: E = E.NOSYS


def _done(number: int, name: str, handler: Handler, arguments: str) -> Row:
    return Row(number, name, Support.IMPLEMENTED, handler, tuple(arguments.split()))


def _partial(number: int, name: str, handler: Handler, arguments: str, note: str) -> Row:
    return Row(number, name, Support.PARTIAL, handler, tuple(arguments.split()), note)


def _refused(number: int, name: str, note: str, refusal: Handler | E, arguments: str = "") -> Row:
    if isinstance(refusal, E):
        return Row(number, name, Support.REFUSED, None, (), note, refusal)
    return Row(number, name, Support.REFUSED, refusal, tuple(arguments.split()), note)


def _missing(number: int, name: str, note: str, errno: E = E.NOSYS) -> Row:
    return Row(number, name, Support.MISSING, None, (), note, errno)


def multicall(d: Domain, v: Vcpu, calls: int, count: int) -> int:
    """HYPERVISOR_multicall: a list of hypercalls, each with a result of its own; no nesting.

    One that blocks the vCPU leaves the rest of the list for when it runs again.
    """
    count &= U32
    for n in range(count):
        at = calls + n * _MULTICALL_ENTRY_BYTES & U64
        if n and (exhausted(d) or d.stopped or not v.runnable):
            raise Continue(at, count - n)
        work(d)
        words = memoryview(d.space.read(at, _MULTICALL_ENTRY_BYTES)).cast("Q")
        number, *arguments = words[0], *words[2:7]
        try:
            if number == MULTICALL:
                result = -E.INVAL.value
            elif number == IRET:
                result = -E.NOSYS.value
            else:
                result = call(d, v, number, tuple(arguments))
        except Continue as left:
            rest = Struct(f"<{len(left.arguments)}Q").pack(*left.arguments)
            d.space.write(at + _MULTICALL_ARGUMENTS, rest)
            raise Continue(at, count - n) from None
        d.space.write_u64(at + _MULTICALL_RESULT, result)
    return 0


def _iret_in_table(d: Domain, v: Vcpu) -> int:
    raise AssertionError("iret sets the registers itself: see runloop")


ROWS = (
    _done(0, "set_trap_table", desc.set_trap_table, "traps"),
    _done(1, "mmu_update", mmu.mmu_update, "ureqs count pdone domid"),
    _done(2, "set_gdt", desc.set_gdt, "frame_list entries"),
    _done(3, "stack_switch", cpu.stack_switch, "ss esp"),
    _done(4, "set_callbacks", set_callbacks, "event failsafe syscall"),
    _done(5, "fpu_taskswitch", cpu.fpu_taskswitch, "set"),
    _done(6, "sched_op_compat", sched_op_compat, "cmd arg"),
    _refused(7, "platform_op", "only for domain 0", privileged.platform_op, "op"),
    _done(8, "set_debugreg", cpu.set_debugreg, "reg value"),
    _done(9, "get_debugreg", cpu.get_debugreg, "reg"),
    _done(10, "update_descriptor", desc.update_descriptor, "maddr desc"),
    _missing(11, "(unused)", "Xen has no hypercall of this number"),
    _done(12, "memory_op", memory_op, "cmd arg"),
    _done(13, "multicall", multicall, "call_list nr_calls"),
    _done(14, "update_va_mapping", mmu.update_va_mapping, "va val flags"),
    _done(15, "set_timer_op", set_timer_op, "timeout"),
    _done(16, "event_channel_op_compat", event_channel_op_compat, "op"),
    _done(17, "xen_version", xen_version, "cmd arg"),
    _refused(18, "console_io", "as in a release build of Xen", console_io, "cmd count buffer"),
    _done(19, "physdev_op_compat", physdev_op_compat, "op"),
    _partial(
        20,
        "grant_table_op",
        grant_table_op,
        "cmd uop count",
        "all of it, but with no other guests: only a domain's own grants, domain 0 gives none",
    ),
    _done(21, "vm_assist", vm_assist, "cmd type"),
    _done(
        22,
        "update_va_mapping_otherdomain",
        mmu.update_va_mapping_otherdomain,
        "va val flags domid",
    ),
    _done(IRET, "iret", _iret_in_table, ""),
    _done(24, "vcpu_op", vcpu_op, "cmd vcpuid arg"),
    _done(25, "set_segment_base", cpu.set_segment_base, "which base"),
    _done(26, "mmuext_op", mmuext_op, "uops count pdone domid"),
    _refused(27, "xsm_op", "no security module is loaded", E.NOSYS),
    _done(28, "nmi_op", nmi_op, "cmd arg"),
    _done(29, "sched_op", sched_op, "cmd arg"),
    _done(30, "callback_op", callback_op, "cmd arg"),
    _refused(
        31,
        "xenoprof_op",
        "the engine has no performance counters",
        privileged.xenoprof_op,
        "op arg",
    ),
    _partial(
        32, "event_channel_op", event_channel_op, "cmd arg", "no channels to other guests yet"
    ),
    _done(33, "physdev_op", physdev_op, "cmd arg"),
    _done(34, "hvm_op", hvm_op, "op arg"),
    _refused(35, "sysctl", "only for domain 0", privileged.sysctl, "op"),
    _refused(36, "domctl", "only for domain 0", privileged.domctl, "op"),
    _refused(37, "kexec_op", "only for domain 0", E.PERM),
    _refused(38, "tmem_op", "removed from Xen", E.NOSYS),
    _refused(39, "argo_op", "not in Xen as it is built by default", E.NOSYS),
    _refused(40, "xenpmu_op", "off in Xen by default", E.OPNOTSUPP),
    _refused(41, "dm_op", "only for device models", privileged.dm_op, "domid nr_bufs bufs"),
    _refused(42, "hypfs_op", "only for domain 0", E.PERM),
    _refused(48, "mca", "only for domain 0", E.PERM),
    _refused(49, "paging_domctl_cont", "only for domain 0", privileged.paging_domctl_cont, "op"),
    *(_missing(48 + n, f"arch_{n}", "unused by x86") for n in range(2, 8)),
)

_BY_NUMBER = {row.number: row for row in ROWS}


def row_of(number: int) -> Row:
    """The row of a number; numbers that Xen does not know have one that says so."""
    row = _BY_NUMBER.get(number)
    return row if row else _missing(number, f"hypercall_{number}", "no such hypercall")


def call(d: Domain, v: Vcpu, number: int, arguments: tuple[int, ...]) -> int:
    """Carry out a hypercall, and tell who traces. Raises: Continue."""
    if d.trace is not None:
        return d.trace.hypercall(v, number, arguments)
    return carry_out(d, v, number, arguments)


def carry_out(d: Domain, v: Vcpu, number: int, arguments: tuple[int, ...]) -> int:
    """Carry out a hypercall. Errors are results: the only place where XenError becomes -errno.

    Raises: Continue if it was not done to the end.
    """
    row = row_of(number)
    work(d)
    if row.handler is None:
        result = -row.errno.value
    else:
        try:
            result = row.handler(d, v, *arguments[: len(row.arguments)])
        except XenError as error:
            result = -error.errno.value
        except Restart:
            raise Continue(*arguments[: len(row.arguments)]) from None
    d.pv.record_hypercall(number, arguments, result)
    return result & U64
