"""xl trace: what a domain does, while it does it. Not a command of Xen's xl."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pyxen.errors import UserError
from pyxen.paths import connect_unix
from pyxen.xend.client import Client
from pyxen.xl.command import USAGE_ERROR, Command, Globals, Words, say

RECEIVE_BYTES = 1 << 16
LAST_WORDS_SECONDS = 2.0
"""How long the domain may take to send its last lines after it was told to stop."""
_KINDS = {"H": "hypercalls", "E": "events", "G": "grants", "T": "traps"}


class Wish(NamedTuple):
    """What was asked for."""

    names: list[str]
    form: str
    limit: int
    seconds: float | None
    file: str | None


def run_trace(command: Command, words: list[str], globals_: Globals) -> int:
    """xl trace."""
    given = command.parse(words)
    wish = _wish(given)
    with Client.connect() as xend:
        where = xend.call("trace", domain=given.arguments[0])
    with _connect(where["socket"], wish) as sock, _output(wish.file) as out:
        return _Trace(sock, out, wish).run()


def _wish(given: Words) -> Wish:
    names = [_KINDS[letter] for letter in _KINDS if given.has(letter)]
    for value in given.options.get("e", []):
        names += [name.strip() for name in value.split(",") if name.strip()]
    form = "count" if given.has("c") else "json" if given.has("j") else "text"
    limit = _number(given, "n", int)
    seconds = _number(given, "d", float)
    return Wish(names, form, int(limit or 0), seconds, given.value("o"))


def _number(given: Words, letter: str, kind: type[int] | type[float]) -> float | None:
    word = given.value(letter)
    if word is None:
        return None
    with contextlib.suppress(ValueError):
        value = kind(word)
        if 0 < value < 1e9:
            return value
    raise UserError(f"-{letter}: {word!r} is no number above 0", exit_code=USAGE_ERROR)


def _connect(where: str, wish: Wish) -> socket.socket:
    header = {"stream": "trace", "names": wish.names, "form": wish.form, "limit": wish.limit}
    try:
        sock = connect_unix(Path(where))
        sock.sendall(json.dumps(header).encode() + b"\n")
    except OSError as error:
        raise UserError(f"cannot reach the domain: {error.strerror}") from error
    return sock


def _output(file: str | None) -> contextlib.AbstractContextManager[TextIO]:
    if file is None:
        return contextlib.nullcontext(sys.stdout)
    try:
        return open(file, "w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error


class _Trace:
    """One trace, until the domain or the user ends it."""

    def __init__(self, sock: socket.socket, out: TextIO, wish: Wish) -> None:
        self._sock = sock
        self._out = out
        self._wish = wish
        self._received = b""
        self._counts: dict[str, Any] = {}
        self._end: dict[str, Any] | None = None
        self._deadline = time.monotonic() + wish.seconds if wish.seconds else None
        self._stopped = False

    def run(self) -> int:
        """The exit code: 1 if the domain's process vanished."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._interrupted) for number in signals]
        try:
            while self._end is None and self._step():
                pass
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)
        if self._counts:
            _show_counts(self._counts, self._out)
        return self._say_end()

    def _interrupted(self, number: int, frame: object) -> None:
        """Ctrl-C: the usual end of a trace. Again: the domain does not answer."""
        if self._stopped:
            raise SystemExit(128 + number)
        self._stop()

    def _stop(self) -> None:
        """Enough. The domain still sends what it has kept."""
        self._stopped = True
        self._deadline = time.monotonic() + LAST_WORDS_SECONDS
        with contextlib.suppress(OSError):
            self._sock.sendall(b"stop\n")

    def _step(self) -> bool:
        """Wait for lines, and take them; False when there will be no more."""
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            if self._stopped:
                return False
            self._stop()
            return True
        if not select.select([self._sock], [], [], left)[0]:
            return True
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._take(line)
        self._out.flush()
        return bool(data)

    def _take(self, line: bytes) -> None:
        message = json.loads(line)
        if "time_ns" in message:
            if self._wish.form == "json":
                self._out.write(f"{line.decode()}\n")
            else:
                self._out.write(_line(message))
        elif "counts" in message:
            self._counts = message
        elif "end" in message:
            self._end = message
        elif "lost" in message:
            if self._wish.form == "json":
                self._out.write(f"{line.decode()}\n")
            else:
                self._out.write(f"... {message['lost']} records lost: nobody read them in time\n")
        elif "error" in message:
            error = message["error"]
            raise UserError(error["message"], error["hint"], error["exit_code"])
        elif "tracing" in message:
            _say_start(message["tracing"])

    def _say_end(self) -> int:
        if self._end is None:
            say("xl: the domain's process is gone")
            return 1
        why = self._end["end"]
        if why not in ("stopped", "limit"):
            say(f"The domain has ended ({why}).")
        if self._end["lost"]:
            say(f"{self._end['lost']} of {self._end['records']} records were lost.")
        return 0


def _say_start(told: dict[str, Any]) -> None:
    speed = "" if told["native"] else "; its native hot path is off meanwhile, so it is slower"
    paused = "; it is paused" if told["paused"] else ""
    say(f"Tracing {told['name']} (domain {told['domid']}){speed}{paused}. Ctrl-C ends it.")


def _line(record: dict[str, Any]) -> str:
    seconds = record["time_ns"] / 1e9
    indent = "  " if record["nested"] else ""
    return f"{seconds:13.6f} v{record['vcpu']} {record['kind']:<9} {indent}{record['text']}\n"


def _show_counts(message: dict[str, Any], out: TextIO) -> None:
    """A table like that of strace -c: what took longest comes first."""
    rows = sorted(message["counts"], key=lambda row: (-row[5], -row[3]))
    total_ns = sum(row[5] for row in rows)
    out.write("% time     seconds  usecs/call     calls    errors name\n")
    rule = f"{'-' * 6} {'-' * 11} {'-' * 11} {'-' * 9} {'-' * 9} {'-' * 32}\n"
    out.write(rule)
    for kind, name, op, calls, errors, ns in rows:
        share = 100 * ns / total_ns if total_ns else 0.0
        each = ns / 1000 / calls if calls else 0.0
        shown = " ".join(word for word in ("" if kind == "hypercall" else kind, name, op) if word)
        failed = str(errors) if errors else ""
        out.write(f"{share:6.2f} {ns / 1e9:11.6f} {each:11.2f} {calls:9} {failed:>9} {shown}\n")
    out.write(rule)
    calls, errors = sum(row[3] for row in rows), sum(row[4] for row in rows)
    failed = str(errors) if errors else ""
    out.write(f"100.00 {total_ns / 1e9:11.6f} {'':11} {calls:9} {failed:>9} total\n")
    out.write(f"in {message['elapsed_ns'] / 1e9:.3f} seconds\n")
