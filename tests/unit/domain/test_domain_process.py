"""A domain process from its specification to its end, with a kernel of a hundred bytes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from domain_process import Process, Stream, drained

from pyxen.backend.xenstore.device import OUTSTANDING_REQUESTS

Start = Callable[..., Process]
TEXT = b"hello from the guest\n"


def console(process: Process, replay: int = -1) -> Stream:
    return process.open({"stream": "console", "replay": replay})


# --- a life -----------------------------------------------------------------------------------


def test_a_domain_from_build_to_destroy(start: Start) -> None:
    process = start(end="sleep")
    built = process.ok("build")
    assert 0x1000 <= built["store_mfn"] < 0x1000 + 2048
    assert built["console_mfn"] != built["store_mfn"]
    assert stat.S_ISCHR(os.stat(built["tty"]).st_mode)
    status = process.ok("status")
    assert status["state"]["paused"]
    assert (status["pause_count"], status["memory_kib"], status["name"]) == (1, 8192, "tiny")
    watching = console(process)
    assert process.ok("unpause") == {"pause_count": 0}
    assert watching.read_until(b"\n") == TEXT
    assert process.destroy() == 0
    assert watching.at_end()
    assert list(process.run_dir.iterdir()) == []
    assert (process.log_dir / "console.log").read_bytes() == TEXT
    assert process.process.stderr is not None
    assert process.process.stderr.read() == b""


@pytest.mark.parametrize(
    ("number", "name"), [(0, "poweroff"), (1, "reboot"), (2, "suspend"), (4, "watchdog")]
)
def test_shutdown(start: Start, number: int, name: str) -> None:
    process = start(end=f"shutdown {number}")
    process.ok("build")
    process.ok("unpause")
    assert process.event("shutdown")["reason"] == name
    status = process.ok("status")
    assert status["shutdown_reason"] == name
    assert status["state"]["shutdown"]
    assert not status["state"]["crashed"]
    assert process.destroy() == 0


def test_a_kernel_with_a_hypercall_page(start: Start) -> None:
    """Its console, and its end, go through the page that the hypervisor filled."""
    process = start(end="shutdown 1", hypercall_page=True)
    process.ok("build")
    watching = console(process)
    process.ok("unpause")
    assert watching.read_until(b"\n") == TEXT
    assert process.event("shutdown")["reason"] == "reboot"
    assert process.destroy() == 0


def test_a_crash_is_reported(start: Start) -> None:
    process = start(text=b"about to crash\n", end="crash")
    process.ok("build")
    process.ok("unpause")
    report = Path(process.event("crash")["report"])
    assert process.event("shutdown")["reason"] == "crash"
    assert process.ok("status")["state"]["crashed"]
    text = report.read_text()
    assert "Domain 7 (tiny) crashed." in text
    assert "trap 6" in text
    assert "about to crash" in text
    assert "event_channel_op send arg=0x" in text
    assert process.destroy() == 0


def test_pause_counts(start: Start) -> None:
    process = start()
    process.ok("build")
    assert process.ok("pause") == {"pause_count": 2}
    assert process.ok("unpause") == {"pause_count": 1}
    assert process.ok("unpause") == {"pause_count": 0}
    assert process.ok("unpause") == {"pause_count": 0}


def test_a_guest_that_never_rests_is_still_controlled(start: Start) -> None:
    process = start(end="spin")
    process.ok("build")
    watching = console(process)
    process.ok("unpause")
    assert watching.read_until(b"\n") == TEXT
    first = process.ok("status")
    assert first["state"]["running"]
    assert process.ok("pause") == {"pause_count": 1}
    paused = process.ok("status")["cpu_time_ns"]
    assert paused >= first["cpu_time_ns"]
    assert process.ok("status")["cpu_time_ns"] == paused
    process.ok("unpause")
    watching.send(b"typed")
    assert process.destroy() == 0


def test_the_new_name(start: Start) -> None:
    process = start()
    process.ok("build")
    process.ok("set_name", name="renamed")
    assert process.ok("status")["name"] == "renamed"


def test_a_console_that_comes_late(start: Start) -> None:
    process = start(text=b"one\ntwo\nthree\n")
    process.ok("build")
    early = console(process)
    process.ok("unpause")
    early.read_until(b"three\n")
    assert console(process).read_until(b"three\n") == b"one\ntwo\nthree\n"
    assert console(process, 8).read_until(b"\n") == b"three\n"
    process.destroy()
    assert drained(early.sock) == b""


def test_two_processes_at_once(start: Start, tmp_path: Path) -> None:
    first = start()
    (tmp_path / "other").mkdir()
    second = Process(tmp_path / "other", text=b"the other one\n", domid=8)
    try:
        for process in (first, second):
            process.ok("build")
            process.ok("unpause")
        watching = console(second)
        assert watching.read_until(b"\n") == b"the other one\n"
        assert first.destroy() == 0
        while not second.ok("status")["state"]["blocked"]:
            pass
        assert second.destroy() == 0
    finally:
        second.close()


def test_xend_may_leave_and_come_back(start: Start) -> None:
    process = start(end="sleep")
    process.ok("build")
    process.control.close()
    process._control = None
    process.ok("unpause")
    assert console(process).read_until(b"\n") == TEXT
    process.destroy()


# --- before and after ---------------------------------------------------------------------------


def test_commands_before_the_build(start: Start) -> None:
    process = start()
    for name in ("pause", "unpause", "status"):
        assert "not built" in process.command(name)["error"]["message"]
    assert process.open({"stream": "console"}).at_end()
    assert process.open({"stream": "xenstore"}).at_end()
    process.ok("build")
    assert "built already" in process.command("build")["error"]["message"]
    assert process.destroy() == 0


def test_destroyed_before_it_was_built(start: Start) -> None:
    process = start()
    assert process.destroy() == 0
    assert list(process.run_dir.iterdir()) == []


def test_a_kernel_that_is_none(start: Start) -> None:
    process = start()
    (process.directory / "kernel").write_bytes(b"not a kernel")
    error = process.command("build")["error"]
    assert error["message"]
    assert process.destroy() == 0


@pytest.mark.parametrize(
    "spec", [b"{}\n", b"[]\n", b"null\n", b"garbage\n", b'{"domid": "x"}\n', b"\xff\n"]
)
def test_a_specification_that_cannot_be_used(start: Start, spec: bytes, tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-P", "-m", "pyxen.domain"],
        input=spec,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert b"cannot start from this specification" in done.stderr
    assert b"Traceback" not in done.stderr


# --- a hostile or clumsy client -----------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"garbage\n",
        b"[]\n",
        b"{}\n",
        b"null\n",
        b'"stream"\n',
        b"\xff\xfe\n",
        b'{"stream": "unknown"}\n',
        b'{"stream": []}\n',
        b'{"stream": "console", "replay": "x"}\n',
        b'{"stream": "console", "replay": null}\n',
        b"[" * 100_000 + b"\n",
    ],
    ids=range(11),
)
def test_a_bad_header_closes_the_connection_only(start: Start, header: bytes) -> None:
    process = start()
    process.ok("build")
    assert process.open(header).at_end()
    assert process.ok("status")["name"] == "tiny"


def test_a_header_without_an_end(start: Start) -> None:
    process = start()
    stream = process.open(b"x")
    with pytest.raises(OSError):
        for _ in range(64):
            stream.send(bytes(64 << 10))
        assert not stream.at_end()
    process.ok("build")


def test_a_header_in_pieces_with_commands_behind_it(start: Start) -> None:
    process = start()
    stream = process.open(b'{"stre')
    stream.send(b'am": "control"}\n{"id": 1, "cmd": "bui')
    stream.send(b'ld"}\n{"id": 2, "cmd": "status"}\n{"id": 3')
    assert stream.line()["id"] == 1
    assert stream.line()["ok"]["name"] == "tiny"
    stream.send(b', "cmd": "pause"}\n')
    assert stream.line() == {"id": 3, "ok": {"pause_count": 2}}


@pytest.mark.parametrize(
    ("line", "request_id"),
    [
        (b"garbage", None),
        (b"[]", None),
        (b"7", None),
        (b"{}", None),
        (b'{"id": 5}', 5),
        (b'{"id": 5, "cmd": 7}', 5),
        (b'{"id": [1], "cmd": "nothing"}', [1]),
        (b'{"id": 5, "cmd": "set_name"}', 5),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
    ids=range(10),
)
def test_bad_requests_are_answered(start: Start, line: bytes, request_id: object) -> None:
    process = start()
    process.control.send(line + b"\n")
    answer = process.control.line()
    assert answer["id"] == request_id
    assert answer["error"]["message"]
    assert process.ok("build")


def test_a_request_without_an_end(start: Start) -> None:
    process = start()
    stream = process.open({"stream": "control"})
    with pytest.raises(OSError):
        for _ in range(64):
            stream.send(b"x" * (64 << 10))
        assert not stream.at_end()
    assert process.ok("build")


def test_clients_that_leave_without_a_word(start: Start) -> None:
    process = start()
    process.ok("build")
    for header in (b"", b'{"stream"', b'{"stream": "control"}\n', b'{"stream": "console"}\n'):
        process.open(header).close()
    assert process.ok("status")


# --- xenstore ------------------------------------------------------------------------------------


def test_the_xenstore_stream_is_replaced(start: Start) -> None:
    process = start()
    process.ok("build")
    first = process.open({"stream": "xenstore"})
    second = process.open({"stream": "xenstore"})
    first.close()
    process.ok("status")
    second.send(bytes(16))
    assert process.ok("status")["state"]["paused"]
    assert OUTSTANDING_REQUESTS > 0


def test_garbage_from_xenstored_does_no_harm(start: Start) -> None:
    process = start()
    process.ok("build")
    stream = process.open({"stream": "xenstore"})
    stream.send(b"\xff" * 5000)
    assert process.ok("status")["state"]["paused"]
    assert json.dumps(process.ok("pause")) == '{"pause_count": 2}'
