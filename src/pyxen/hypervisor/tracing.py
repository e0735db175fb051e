"""What a domain does, told while it does it: hypercalls, events, uses of grants, traps.

Nothing is traced, and nothing of this is in the way, until the first sink comes: then the run loop
hands exits to `Tracing`, and the last sink takes it away again. The native hot path would do the
commonest things unseen, so it is switched off (PvDomain.slow_only) while a sink wants one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from pyxen.cpu.base import Exit, GuestSyscall, Hypercall, Trap
from pyxen.cpu.pvstate import MAX_ERRNO
from pyxen.errors import DomainCrash
from pyxen.hypervisor.evtchn import ChannelKind
from pyxen.hypervisor.hypercall import decode, table
from pyxen.hypervisor.hypercall.continuation import Continue
from pyxen.hypervisor.runloop import RunLoop
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import GrantRef, Port

SLOW_FOR_TRACING = 1
"""Our bit of PvDomain.slow_only."""
UNKNOWN = "unknown"
"""The name of every hypercall that Xen does not have."""

VECTORS = {
    0: "divide_error", 1: "debug", 2: "nmi", 3: "int3", 4: "overflow", 5: "bounds",
    6: "invalid_op", 7: "no_device", 8: "double_fault", 10: "invalid_tss", 11: "no_segment",
    12: "stack_error", 13: "gp_fault", 14: "page_fault", 16: "copro_error",
    17: "alignment_check", 18: "machine_check", 19: "simd_error",
}  # fmt: skip
"""Names of the traps, as Xen and Linux have them; other vectors are `int`."""

HYPERCALLS = frozenset(row.name for row in table.ROWS) | {UNKNOWN}
EVENTS = frozenset({"pending", "upcall"})
GRANTS = frozenset({"grant_map", "grant_unmap"})
TRAPS = frozenset(VECTORS.values()) | {"int", "syscall"}
ALL = HYPERCALLS | EVENTS | GRANTS | TRAPS

GROUPS: dict[str, frozenset[str]] = {
    "hypercalls": HYPERCALLS,
    "events": EVENTS | {"event_channel_op"},
    "grants": GRANTS | {"grant_table_op"},
    "traps": TRAPS,
    "mmu": frozenset({"mmu_update", "mmuext_op", "update_va_mapping"}),
    "evtchn": EVENTS | {"event_channel_op"},
    "gnttab": GRANTS | {"grant_table_op"},
}
"""Names that stand for several."""

NATIVE = frozenset(
    ("mmu_update", "stack_switch", "multicall", "update_va_mapping", "iret", "set_segment_base")
) | {"mmuext_op", "syscall", "page_fault", "gp_fault", "upcall"}
"""What the native hot path does by itself (cpu/unicorn/native/)."""


@dataclass(slots=True)
class Record:
    """One thing that happened. Times are nanoseconds, `time_ns` the domain's system time.

    kind: hypercall, event, grant or trap. took_ns: without the hypercalls of a multicall.
    result: a hypercall's signed result, a word, or None; with `continues` the hypercall did a part
    of its work and is executed again. nested: an entry of a multicall.
    """

    time_ns: int
    vcpu_id: int
    kind: str
    name: str
    fields: decode.Fields = field(default_factory=dict)
    called: decode.Called | None = None
    result: int | str | None = None
    took_ns: int = 0
    nested: bool = False
    continues: bool = False

    @property
    def op(self) -> str:
        """The sub-command of a hypercall, or ``."""
        return self.called.op if self.called is not None else ""

    @property
    def failed(self) -> bool:
        """Whether the result is an error."""
        return isinstance(self.result, int) and -MAX_ERRNO <= self.result < 0

    def text(self) -> str:
        """As people read it, without time and vCPU."""
        if self.called is not None:
            words = [self.called.text()]
        else:
            shown = (f"{k}={decode.number_text(k, v)}" for k, v in self.fields.items())
            words = [" ".join((self.name, *shown))]
        if isinstance(self.result, int):
            words += ["->", decode.result_text(self.result)]
        elif self.result is not None:
            words += ["->", self.result]
        if self.called is not None and self.called.out:
            words.append(self.called.out_text())
        return " ".join(words)

    def json(self) -> dict[str, Any]:
        """As programs read it; what is empty is left out."""
        said: dict[str, Any] = {
            "time_ns": self.time_ns,
            "vcpu": self.vcpu_id,
            "kind": self.kind,
            "name": self.name,
        }
        if self.called is not None:
            called = self.called
            said |= {
                "op": called.op,
                "args": called.fields,
                "list": [{"op": op, **fields} for op, fields in called.entries],
                "list_more": called.more,
                "out": called.out,
            }
        else:
            said["args"] = self.fields
        said |= {"nested": self.nested, "continues": self.continues}
        said = {key: value for key, value in said.items() if value or key in ("time_ns", "vcpu")}
        if self.result is not None:
            said["result"] = self.result
        if self.failed:
            said["error"] = decode.result_text(int(self.result or 0)).removeprefix("-")
        said["took_ns"] = self.took_ns
        return said


class Sink(Protocol):
    """Whom records go to."""

    names: frozenset[str]
    """What it wants to know."""

    def take(self, record: Record) -> None:
        """Take one record; must not raise, and not wait."""


class Tracing:
    """Looks at one domain for its sinks."""

    def __init__(self, loop: RunLoop) -> None:
        self._loop = loop
        self._d = loop.domain
        self._sinks: tuple[Sink, ...] = ()
        self._names: frozenset[str] = frozenset()
        self._depth = 0
        self._nested_ns = 0

    def add(self, sink: Sink) -> None:
        """Begin to tell a sink."""
        if not self._sinks:
            self._d.events.on_port = self._pending
            self._d.grants.on_use = self._grant
            self._loop.handler = self._exit
            self._d.trace = self
        self._choose((*self._sinks, sink))

    def remove(self, sink: Sink) -> None:
        """Tell it no more; everything is as before when it was the last."""
        if sink not in self._sinks:
            return
        self._choose(tuple(s for s in self._sinks if s is not sink))
        if not self._sinks:
            self._d.events.on_port = None
            self._d.grants.on_use = None
            self._loop.handler = self._loop.handle
            self._d.trace = None

    @property
    def native(self) -> bool:
        """Whether the engine's hot path may work."""
        return not self._d.pv.slow_only

    def _choose(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks
        self._names = frozenset().union(*(sink.names for sink in sinks))
        others = self._d.pv.slow_only & ~SLOW_FOR_TRACING
        self._d.pv.slow_only = others | (SLOW_FOR_TRACING if self._names & NATIVE else 0)

    def _tell(self, record: Record, name: str) -> None:
        for sink in self._sinks:
            if name in sink.names:
                sink.take(record)

    # --- hypercalls -------------------------------------------------------------------------

    def hypercall(self, v: Vcpu, number: int, arguments: tuple[int, ...]) -> int:
        """table.call, looked at. Raises: as it does."""
        d = self._d
        name = table.row_of(number).name
        name = name if name in HYPERCALLS else UNKNOWN
        if name not in self._names:
            return table.carry_out(d, v, number, arguments)
        read = d.space.try_read
        decoding = decode.begin(number, arguments, read)
        nested, outer_ns = self._depth > 0, self._nested_ns
        self._depth, self._nested_ns = self._depth + 1, 0
        began = d.time.now_ns()
        result: int | str = "crash"
        continues = False
        try:
            value = table.carry_out(d, v, number, arguments)
            result = value - (1 << 64) if value >> 63 else value
            return value
        except Continue:
            result, continues = "continues", True
            raise
        finally:
            took = d.time.now_ns() - began
            own = max(0, took - self._nested_ns)
            self._depth -= 1
            self._nested_ns = outer_ns + took
            called = decoding.end(read)
            self._tell(
                Record(
                    began,
                    v.vcpu_id,
                    "hypercall",
                    called.name,
                    called=called,
                    result=result,
                    took_ns=own,
                    nested=nested,
                    continues=continues,
                ),
                name,
            )

    # --- exits ------------------------------------------------------------------------------

    def _exit(self, v: Vcpu, reason: Exit) -> None:
        """RunLoop.handle, looked at. Raises: DomainCrash."""
        record = self._exit_record(v, reason)
        if record is None:
            self._loop.handle(v, reason)
            return
        d = self._d
        stack = d.engine.regs.rsp
        record.time_ns = d.time.now_ns()
        try:
            self._loop.handle(v, reason)
            record.result = self._outcome(v, reason, stack)
        except DomainCrash:
            record.result = "crash"
            raise
        finally:
            record.took_ns = d.time.now_ns() - record.time_ns
            self._tell(record, record.name)

    def _exit_record(self, v: Vcpu, reason: Exit) -> Record | None:
        """What is known before it is handled; None if nobody wants to know."""
        regs = self._d.engine.regs
        if isinstance(reason, Hypercall):
            wanted = regs.rax == table.IRET and "iret" in self._names
            return Record(0, v.vcpu_id, "hypercall", "iret") if wanted else None
        if isinstance(reason, GuestSyscall):
            if "syscall" not in self._names:
                return None
            fields: decode.Fields = {"nr": regs.rax, "rip": regs.rip}
            return Record(0, v.vcpu_id, "trap", "syscall", fields)
        if not isinstance(reason, Trap):
            return None
        name = VECTORS.get(reason.vector, "int")
        if name not in self._names:
            return None
        fields = {"vector": reason.vector} if name == "int" else {}
        if name == "page_fault":
            fields["address"] = reason.fault_address
        if reason.error_code or name in ("page_fault", "gp_fault"):
            fields["error_code"] = reason.error_code
        fields["rip"] = regs.rip
        fields["mode"] = "user" if self._d.engine.user_mode else "kernel"
        return Record(0, v.vcpu_id, "trap", name, fields)

    def _outcome(self, v: Vcpu, reason: Exit, stack: int) -> str | None:
        """What became of it. A frame for the guest's handler moves the stack, nothing else does."""
        regs = self._d.engine.regs
        if isinstance(reason, Hypercall):
            mode = "user" if self._d.engine.user_mode else "kernel"
            return f"{mode} {regs.rip:#x}"
        if not isinstance(reason, Trap):
            return None
        if regs.rsp != stack and regs.rip == v.pv.traps_address[reason.vector]:
            return "guest"
        if regs.rsp != stack and regs.rip == v.pv.traps_address[13]:
            return "guest, as gp_fault"
        return "emulated"

    # --- events and grants ------------------------------------------------------------------

    def upcall(self, v: Vcpu) -> None:
        """The guest is about to look at its events."""
        if "upcall" in self._names:
            now = self._d.time.now_ns()
            self._tell(Record(now, v.vcpu_id, "event", "upcall"), "upcall")

    def _pending(self, v: Vcpu, port: Port) -> None:
        """A port became pending."""
        if "pending" in self._names:
            channel = self._d.events.status(port)
            fields: decode.Fields = {"port": port}
            if channel.kind is ChannelKind.VIRQ:
                virqs = decode.names("xen", "VIRQ_")
                fields["virq"] = virqs.get(channel.virq, channel.virq)
            else:
                fields["kind"] = channel.kind.name.lower()
            if channel.kind is ChannelKind.INTERDOMAIN:
                fields["remote"] = f"{channel.remote_domid}:{channel.remote_port}"
            record = Record(self._d.time.now_ns(), v.vcpu_id, "event", "pending", fields)
            self._tell(record, "pending")

    def _grant(self, name: str, gref: GrantRef, write: bool) -> None:
        """A back end of the host begins (grant_map) or ends (grant_unmap) to use a frame."""
        if name in self._names:
            fields: decode.Fields = {"gref": gref, "by": 0, "access": "rw" if write else "ro"}
            record = Record(
                self._d.time.now_ns(), self._d.current.vcpu_id, "grant", name, fields, result=0
            )
            self._tell(record, name)
