"""Traces of a real domain process over its control socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from domain_process import Process, Stream
from pv_guest import PvGuest

from pyxen.domain.control import Connection
from pyxen.domain.reactor import Reactor
from pyxen.domain.trace import BUFFER_BYTES, TraceStream, names_of
from pyxen.errors import UserError
from pyxen.hypervisor.tracing import ALL, EVENTS, TRAPS, Tracing

Start = Callable[..., Process]


def trace(process: Process, *names: str, **header: Any) -> Stream:
    stream = process.open({"stream": "trace", "names": list(names), **header})
    begun = stream.line()["tracing"]
    assert (begun["domid"], begun["name"]) == (7, "tiny")
    return stream


def to_the_end(stream: Stream) -> list[dict[str, Any]]:
    """All messages; the last one says why it ends, and the connection is closed behind it."""
    messages = [stream.line()]
    while "end" not in messages[-1]:
        messages.append(stream.line())
    assert stream.at_end()
    return messages


def test_from_the_first_hypercall_to_the_last(start: Start) -> None:
    process = start(end="shutdown 0")
    process.ok("build")
    stream = process.open({"stream": "trace"})
    assert stream.line() == {
        "tracing": {"domid": 7, "name": "tiny", "paused": True, "native": False}
    }
    process.ok("unpause")
    *records, end = to_the_end(stream)
    assert [record["text"] for record in records] == [
        "pending port=2 kind=interdomain remote=0:1",  # the back end took the text, and says so
        "event_channel_op send port=2 -> 0",
        "sched_op shutdown reason=poweroff -> 0",
    ]
    assert [record["kind"] for record in records] == ["event", "hypercall", "hypercall"]
    assert all((r["vcpu"], r["nested"]) == (0, False) for r in records)
    assert 0 < records[1]["time_ns"] < records[0]["time_ns"] < records[2]["time_ns"]
    assert end == {"end": "poweroff", "records": 3, "lost": 0}


def test_as_json(start: Start) -> None:
    process = start()
    process.ok("build")
    stream = trace(process, "event_channel_op", form="json", limit=1)
    process.ok("unpause")
    record, end = to_the_end(stream)
    assert record.pop("took_ns") >= 0 < record.pop("time_ns")
    assert record == {
        "vcpu": 0,
        "kind": "hypercall",
        "name": "event_channel_op",
        "op": "send",
        "args": {"port": 2},
        "result": 0,
    }
    assert end == {"end": "limit", "records": 1, "lost": 0}


def test_counts(start: Start) -> None:
    process = start(end="call")
    process.ok("build")
    process.ok("unpause")
    stream = trace(process, form="count")

    def versions(message: dict[str, Any]) -> tuple[int, int, int]:
        counts = {tuple(row[:3]): row[3:] for row in message["counts"]}
        calls, errors, ns = counts["hypercall", "xen_version", "version"]
        return calls, errors, ns

    first = stream.line()
    stream.send(b"stop\n")
    *_, last, end = [first, *to_the_end(stream)]
    assert versions(last)[0] >= versions(first)[0] > 0
    assert versions(last)[1] == 0
    assert versions(last)[2] >= versions(first)[2] > 0
    assert last["elapsed_ns"] >= first["elapsed_ns"] > 0
    assert end["records"] == sum(row[3] for row in last["counts"])
    counted = process.ok("hypercalls")
    assert counted["calls"][17] >= versions(last)[0]
    assert (counted["calls"][32], sum(counted["failures"])) == (1, 0)
    assert counted["native"]["slow"] > 0


def test_who_does_not_read_does_not_stop_the_guest(start: Start) -> None:
    process = start(end="call")
    process.ok("build")
    lazy, eager = trace(process), trace(process, "xen_version", form="json")
    process.ok("unpause")
    seen = 0
    # Far more than the lazy one's buffers can hold: theirs, and those of its socket.
    while seen < 2 * BUFFER_BYTES // 100:
        seen += "name" in eager.line()
    counted = process.ok("hypercalls")["calls"][17]
    assert counted >= seen
    lazy.send(b"stop\n")
    messages = to_the_end(lazy)
    end = messages.pop()
    told = sum("text" in message for message in messages)
    lost = sum(message.get("lost", 0) for message in messages)
    assert end["lost"] == lost > 0
    assert end["records"] == told + lost
    assert process.destroy() == 0


@pytest.mark.parametrize("end", ["crash", "sleep", "call"])
def test_the_end_of_the_domain_is_the_end_of_its_traces(start: Start, end: str) -> None:
    process = start(end=end)
    process.ok("build")
    text, counts = trace(process, "hypercalls"), trace(process, form="count")
    process.ok("unpause")
    assert "send port=2" in text.line()["text"]
    if end != "crash":
        process.destroy()
    for stream in (text, counts):
        assert to_the_end(stream)[-1]["end"] == ("crash" if end == "crash" else "destroyed")


def test_the_end_comes_through_however_much_is_before_it(start: Start) -> None:
    process = start(end="call")
    process.ok("build")
    lazy, eager = trace(process), trace(process, "xen_version", form="json")
    process.ok("unpause")
    for _ in range(2 * BUFFER_BYTES // 100):
        eager.line()
    process.control.send(b'{"id": 0, "cmd": "destroy"}\n')
    messages = to_the_end(lazy)
    told = sum("text" in message for message in messages)
    assert messages[-1]["end"] == "destroyed"
    assert messages[-1]["records"] == told + messages[-1]["lost"]
    assert messages[-1]["lost"] == sum(message.get("lost", 0) for message in messages[:-1])


class NoServer:
    """What a connection tells when it closes."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()


def test_a_reader_that_is_late_at_the_end_still_learns_what_it_lost(guest: PvGuest) -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, Reactor(), NoServer())  # type: ignore[arg-type]
    stream = TraceStream(connection, connection._reactor, Tracing(guest.loop), {})
    for _ in range(2):
        lost = stream._lost
        while stream._lost == lost:
            guest.call("xen_version", 0)
        theirs.recv(1 << 18)
        connection._flush()
    stream.end_now("destroyed", time.monotonic())
    received = bytearray()

    def read() -> None:
        while data := theirs.recv(1 << 16):
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    connection.finish()
    reader.join()
    theirs.close()
    messages = [json.loads(line) for line in received.splitlines()[1:]]
    end = messages.pop()
    assert end["end"] == "destroyed"
    assert end["records"] > end["lost"] > BUFFER_BYTES // 200
    assert end["lost"] >= messages[-1]["lost"] > 0
    assert guest.domain.trace is None


def test_a_tracer_that_leaves_leaves_nothing(start: Start) -> None:
    process = start(end="call")
    process.ok("build")
    process.ok("unpause")
    for _ in range(3):
        stream = trace(process)
        stream.line()
        stream.close()
    process.ok("pause")
    late = trace(process, form="count")
    late.send(b"\n")
    counts, end = to_the_end(late)
    assert (counts["counts"], end["records"], end["end"]) == ([], 0, "stopped")
    assert process.destroy() == 0


def test_a_domain_that_has_ended_has_nothing_to_tell(start: Start) -> None:
    process = start(end="shutdown 1")
    process.ok("build")
    process.ok("unpause")
    process.event("shutdown")
    [end] = to_the_end(trace(process))
    assert end == {"end": "reboot", "records": 0, "lost": 0}


@pytest.mark.parametrize(
    ("header", "message", "hint"),
    [
        ({"names": ["mmu_updat"]}, "mmu_updat", "did you mean mmu_update?"),
        ({"names": ["evtchnn", "all"]}, "evtchnn", "did you mean evtchn?"),
        ({"names": ["\x1b["]}, "nothing that can be traced", "pyxen hypercalls"),
        ({"names": "mmu_update"}, "not a list", ""),
        ({"form": "xml"}, "no form 'xml'", ""),
    ],
)
def test_a_wish_that_makes_no_sense(
    start: Start, header: dict[str, Any], message: str, hint: str
) -> None:
    process = start()
    process.ok("build")
    stream = process.open({"stream": "trace", **header})
    error = stream.line()["error"]
    assert message in error["message"]
    assert hint in error["hint"]
    assert error["exit_code"] == 2
    assert stream.at_end()
    assert process.ok("status")["state"]["paused"]


def test_before_the_domain_is_built(start: Start) -> None:
    process = start()
    stream = process.open({"stream": "trace"})
    assert "not built" in stream.line()["error"]["message"]
    assert stream.at_end()


def test_names_and_groups() -> None:
    assert names_of([]) == ALL
    assert names_of(["traps"]) == TRAPS
    assert names_of(["evtchn", "iret"]) == EVENTS | {"event_channel_op", "iret"}
    with pytest.raises(UserError):
        names_of([{}])
