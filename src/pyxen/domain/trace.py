"""Traces over the control socket: `xl trace` at the other end.

    {"stream": "trace", "names": […], "form": "text" | "json" | "count", "limit": n}

names: what to trace (hypervisor/tracing.py: names and groups; none: everything). limit: end after
so many records (0: do not). The answer is JSON lines, of which the first is one of

    {"error": {"message", "hint", "exit_code"}}
    {"tracing": {"domid", "name", "native": whether the hot path stays on, "paused"}}

and then, as it happens, records: {"time_ns", "vcpu", "kind", "nested", "text"}, or with the form
json those of `Record.json`. {"lost": n} stands where n records are missing. With the form count
there are no records, but now and then, and at the end, {"counts": [[kind, name, op, calls, errors,
nanoseconds], …], "elapsed_ns"}, each the whole since the start. The last line is {"end": why,
"records", "lost"}. Whatever the other side sends means: stop.

A reader that falls behind loses records; the guest does not wait for it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Final

from pyxen.domain.control import Connection
from pyxen.domain.reactor import Reactor, Timer
from pyxen.errors import UserError
from pyxen.hypervisor.tracing import ALL, GROUPS, Record, Tracing
from pyxen.hypervisor.tracing import UNKNOWN as UNKNOWN_HYPERCALL

BUFFER_BYTES: Final = 1 << 20
SEND_BYTES: Final = 32 << 10
LATENCY_NS: Final = 20_000_000
"""How long a record may wait for company."""
COUNTS_NS: Final = 1_000_000_000
LAST_RECORDS_S: Final = 1.0
"""For all tracers together when the process ends; xend kills it after two seconds."""
WRONG_NAME = 2
UNKNOWN_OP: Final = "?"

FORMS = ("text", "json", "count")


class TraceStream:
    """One tracer: a connection, what it wants, and what it has not been sent yet."""

    def __init__(
        self, connection: Connection, reactor: Reactor, tracing: Tracing, header: dict[str, Any]
    ) -> None:
        """Raises: UserError for a header that makes no sense."""
        self.names = names_of(header.get("names") or [])
        self._form = header.get("form", "text")
        if self._form not in FORMS:
            raise UserError(f"a trace has no form {self._form!r}", exit_code=WRONG_NAME)
        limit = header.get("limit", 0)
        self._limit = limit if isinstance(limit, int) and limit > 0 else 0
        self.on_end: Callable[[], None] = lambda: None
        self._connection = connection
        self._reactor = reactor
        self._tracing = tracing
        self._waiting = bytearray()
        self._records = self._lost = self._lost_before = 0
        self._counts: dict[tuple[str, str, str], list[int]] = {}
        self._began_ns = time.monotonic_ns()
        self._timer = Timer()
        self._armed = False
        self._why = ""
        self._ended = False
        self._gone = False
        reactor.add(self._timer.fd, self._due)
        connection.on_data = lambda data: self.end("stopped")
        connection.on_close = self._let_go
        tracing.add(self)

    # --- the sink ---------------------------------------------------------------------------

    def take(self, record: Record) -> None:
        """Count a record, or keep it for sending; what does not fit is lost."""
        if self._limit and self._records == self._limit:
            return
        self._records += 1
        if self._form == "count":
            self._count(record)
        elif self._connection.unsent_bytes + len(self._waiting) > BUFFER_BYTES:
            self._lost += 1
        else:
            self._tell_lost()
            self._put(record.json() if self._form == "json" else _short(record))
        if self._records == self._limit:
            self.end_soon("limit")

    def _count(self, record: Record) -> None:
        op = UNKNOWN_OP if record.op.isdigit() else record.op
        name = record.name if record.name in ALL else UNKNOWN_HYPERCALL
        counted = self._counts.setdefault((record.kind, name, op), [0, 0, 0])
        counted[0] += not record.continues
        counted[1] += record.failed
        counted[2] += record.took_ns
        self._arm(COUNTS_NS)

    def _tell_lost(self) -> None:
        if self._lost != self._lost_before:
            self._append({"lost": self._lost - self._lost_before})
            self._lost_before = self._lost

    def _put(self, message: dict[str, Any]) -> None:
        self._append(message)
        if len(self._waiting) >= SEND_BYTES:
            self._flush()
        else:
            self._arm(LATENCY_NS)

    def _append(self, message: dict[str, Any]) -> None:
        self._waiting += json.dumps(message).encode() + b"\n"

    # --- sending ----------------------------------------------------------------------------

    def begin(self, told: dict[str, Any]) -> None:
        """Say that it begins."""
        self._connection.send_json({"tracing": told})

    def end_soon(self, why: str) -> None:
        """End after what is going on now, of which a record may still come."""
        self._why = self._why or why
        self._arm(0)

    def end(self, why: str) -> None:
        """Send what there is, say why, and let the other side go."""
        if self._ended:
            return
        self._ended = True
        self._tracing.remove(self)
        self._append_end(why)
        self._flush()
        self._connection.close_when_sent()

    def end_now(self, why: str, deadline: float) -> None:
        """End while the process does: what is not taken until `deadline` is lost, but not why."""
        self.end(why)
        if self._gone or self._connection.drain(deadline):
            return
        for line in self._connection.cut():
            self._lost += b'"time_ns"' in line
            if line.startswith(b'{"lost"'):
                self._lost_before -= json.loads(line)["lost"]
        self._append_end(why)
        self._flush()

    def _append_end(self, why: str) -> None:
        if self._form == "count":
            self._append_counts()
        self._tell_lost()
        self._append({"end": self._why or why, "records": self._records, "lost": self._lost})

    def _append_counts(self) -> None:
        counts = [[*key, *counted] for key, counted in self._counts.items()]
        elapsed_ns = time.monotonic_ns() - self._began_ns
        self._append({"counts": counts, "elapsed_ns": elapsed_ns})

    def _arm(self, after_ns: int) -> None:
        if not self._gone and (not self._armed or not after_ns):
            self._armed = True
            self._timer.set(time.monotonic_ns() + after_ns)

    def _due(self, events: int) -> None:
        self._armed = False
        self._timer.set(None)
        if self._why:
            self.end(self._why)
            return
        if self._form == "count" and not self._connection.unsent_bytes:
            self._append_counts()
        self._flush()

    def _flush(self) -> None:
        data = bytes(self._waiting)
        self._waiting.clear()
        self._connection.send(data)

    def _let_go(self) -> None:
        """The connection is closed."""
        self._ended = self._gone = True
        self._tracing.remove(self)
        self._reactor.remove(self._timer.fd)
        os.close(self._timer.fd)
        self.on_end()


class Traces:
    """All tracers of one domain."""

    def __init__(self, tracing: Tracing, reactor: Reactor) -> None:
        self._tracing = tracing
        self._reactor = reactor
        self._streams: set[TraceStream] = set()

    def open(self, connection: Connection, header: dict[str, Any], told: dict[str, Any]) -> None:
        """Make a connection a tracer, and tell it of the domain."""
        try:
            stream = TraceStream(connection, self._reactor, self._tracing, header)
        except UserError as error:
            refuse(connection, error)
            return
        self._streams.add(stream)
        stream.on_end = lambda: self._streams.discard(stream)
        stream.begin({**told, "native": self._tracing.native})

    def end_soon(self, why: str) -> None:
        """The guest has ended: nothing more will happen."""
        for stream in list(self._streams):
            stream.end_soon(why)

    def end(self, why: str) -> None:
        """The process ends."""
        deadline = time.monotonic() + LAST_RECORDS_S
        for stream in list(self._streams):
            stream.end_now(why, deadline)


def refuse(connection: Connection, error: UserError) -> None:
    """Tell the other side why not."""
    detail = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    connection.send_json({"error": detail})
    connection.close_when_sent()


def names_of(words: object) -> frozenset[str]:
    """What these names and groups stand for. Raises: UserError for others."""
    if not isinstance(words, list):
        raise UserError("names: not a list", exit_code=WRONG_NAME)
    chosen: frozenset[str] = frozenset()
    for word in map(str, words):
        if word in GROUPS:
            chosen |= GROUPS[word]
        elif word in ALL:
            chosen |= {word}
        else:
            near = get_close_matches(word, [*ALL, *GROUPS], 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else "`pyxen hypercalls` lists hypercalls"
            raise UserError(f"{word!r} is nothing that can be traced", hint, WRONG_NAME)
    return chosen if words else ALL


def _short(record: Record) -> dict[str, Any]:
    return {
        "time_ns": record.time_ns,
        "vcpu": record.vcpu_id,
        "kind": record.kind,
        "nested": record.nested,
        "text": record.text(),
    }
