"""xl console: the terminal becomes a domain's console."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyxen.errors import UserError
from pyxen.paths import connect_unix
from pyxen.xend.client import Client
from pyxen.xl.command import Command, Globals

STDIN, STDOUT = 0, 1
ESCAPE = b"\x1d"
REPLAY_BYTES = 16384
"""How much of what the guest said before is shown: about what a pty would have kept."""
REPLAY_ALL = -1
READ_BYTES = 65536

EVENT = Callable[[], bool]


def run_console(command: Command, words: list[str], globals_: Globals) -> int:
    """xl console."""
    given = command.parse(words)
    kind = given.value("t") or "pv"
    if kind not in ("pv", "serial", "vuart"):
        raise UserError(f"there is no console of type {kind}", "the types are pv, serial and vuart")
    if kind != "pv" or given.value("n") not in (None, "0"):
        raise UserError(f"the domain has no {kind} console {given.value('n') or 0}", "it has pv 0")
    escape = escape_of(given.value("e"))
    with Client.connect() as xend:
        where = xend.call("console", domain=given.arguments[0])
    with open_console(where["socket"], REPLAY_BYTES) as sock:
        attach(sock, escape)
    return 0


def escape_of(word: str | None) -> bytes:
    """The byte that leaves the console: `]`, `^]` or `Ctrl-]` all mean 0x1d."""
    if word is None:
        return ESCAPE
    character = word[-1:].upper()
    if not character or not 0x40 <= ord(character) < 0x60:
        raise UserError(f"no such control character: {word!r}", "for instance -e ']'")
    return bytes([ord(character) & 0x1F])


def open_console(where: str, replay: int) -> socket.socket:
    """Connect to a domain's console; `replay` of its last bytes come first (REPLAY_ALL: all)."""
    try:
        sock = connect_unix(Path(where))
        sock.sendall(json.dumps({"stream": "console", "replay": replay}).encode() + b"\n")
    except OSError as error:
        raise UserError(f"cannot reach the domain's console: {error.strerror}") from error
    return sock


class Console:
    """Moves bytes between the user and a domain until either has had enough."""

    def __init__(self, sock: socket.socket, escape: bytes) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._escape = escape
        self._terminal = os.isatty(STDIN)
        self._typed = b""
        self._stdin_open = True

    def run(self, events: Any = None, on_event: EVENT | None = None) -> bool:
        """Return True when the domain's end closed, False when the user left.

        `on_event` is called when `events` (something with a file descriptor) can be read; when it
        returns True the guest will say no more: what has arrived is shown, and that was all.
        """
        last_words = False
        while True:
            readers: list[Any] = [self._sock]
            if self._stdin_open and not self._typed and not last_words:
                readers.append(STDIN)
            if events is not None and not last_words:
                readers.append(events)
            writers = [self._sock] if self._typed else []
            readable, writable, _ = select.select(readers, writers, [], 0 if last_words else None)
            if self._sock in readable and not self._show():
                return True
            if last_words and self._sock not in readable:
                return True
            if writable:
                self._send()
            if STDIN in readable and not self._take_typed():
                return False
            if events in readable and on_event is not None:
                last_words = on_event()

    def _show(self) -> bool:
        """Show what the guest wrote; False at the end."""
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        while data:
            data = data[os.write(STDOUT, data) :]
            if not data:
                return True
        return False

    def _take_typed(self) -> bool:
        """Take what the user typed; False when it was the escape character."""
        data = os.read(STDIN, READ_BYTES)
        if not data:
            # A pipe that has ended; the session goes on.
            self._stdin_open = False
            return True
        # From a pipe only by itself, as in xenconsole: the byte may be part of a file.
        escape = self._terminal or data == self._escape
        before, escaped, _ = data.partition(self._escape) if escape else (data, b"", b"")
        self._typed = before
        self._send()
        return not escaped

    def _send(self) -> None:
        try:
            self._typed = self._typed[self._sock.send(self._typed) :]
        except BlockingIOError:
            return
        except OSError:
            # Its end is seen, and told, by reading.
            self._typed = b""


def attach(
    sock: socket.socket, escape: bytes, events: Any = None, on_event: EVENT | None = None
) -> bool:
    """Be the console (see Console.run); the terminal is as before afterwards, whatever happens."""
    sys.stdout.flush()
    with raw_terminal():
        return Console(sock, escape).run(events, on_event)


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Keys go to the guest as they are typed; undone in every case, signals included."""
    if not os.isatty(STDIN):
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = termios.tcgetattr(STDIN)
    handlers = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(STDIN)
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
