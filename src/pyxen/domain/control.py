"""The control socket of a domain process: JSON commands, consoles, the xenstore stream.

Every connection begins with one JSON line that says what it is:

    {"stream": "control"}                commands {"id", "cmd", …} → {"id", "ok" | "error"}; events
    {"stream": "console", "replay": n}   the guest's console, both ways; the last n bytes first (-1:
                                         everything that is kept)
    {"stream": "xenstore"}               the guest's end of the xenstore protocol, for xend
    {"stream": "backends"}               the same for its back ends, which are domain 0's
    {"stream": "trace", …}               what the domain does, while it does it: domain/trace.py

The socket lies in a private directory: who can open it owns the domain.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pyxen.domain.reactor import Reactor
from pyxen.errors import UserError
from pyxen.paths import listen_unix

LINE_LIMIT_BYTES = 1 << 20
OUTPUT_LIMIT_BYTES = 4 << 20
CHUNK_BYTES = 64 << 10
LAST_WORDS_S = 0.5


class Connection:
    """One connected socket with buffered output, driven by the reactor."""

    def __init__(self, sock: socket.socket, reactor: Reactor, server: ControlServer) -> None:
        self._sock = sock
        self._reactor = reactor
        self._server = server
        self._input = bytearray()
        self._output = bytearray()
        self._closed = False
        self._held = False
        self._last = False
        self.on_data: Callable[[bytes], None] = self._header
        self.on_close: Callable[[], None] = lambda: None
        sock.setblocking(False)
        reactor.add(sock.fileno(), self._ready)

    def send(self, data: bytes) -> None:
        """Send, or keep for later. A peer that is too far behind is cut off."""
        if self._closed:
            return
        self._output += data
        self._flush()
        if len(self._output) > OUTPUT_LIMIT_BYTES:
            self.close()

    def send_json(self, message: dict[str, Any]) -> None:
        """Send one JSON line."""
        self.send(json.dumps(message).encode() + b"\n")

    @property
    def unsent_bytes(self) -> int:
        """What the peer has not taken yet."""
        return len(self._output)

    def close_when_sent(self) -> None:
        """Close as soon as the peer has taken everything, or has left."""
        self._last = True
        if not self._output:
            self.close()

    def drain(self, deadline: float) -> bool:
        """Send until everything is sent, or until this monotonic time; whether it is all sent."""
        while self._output and (left := deadline - time.monotonic()) > 0:
            select.select([], [self._sock], [], left)
            self._flush()
        return not self._output

    def cut(self) -> list[bytes]:
        """Take back the lines that are not sent, but for the one that may be half sent."""
        at = self._output.find(b"\n") + 1
        lines = bytes(self._output[at:]).split(b"\n")
        del self._output[at:]
        return [line for line in lines if line]

    def hold(self, held: bool) -> None:
        """Stop reading for a while: the peer's data waits in its socket."""
        self._held = held
        if not self._closed:
            self._want()

    def close(self) -> None:
        """Let the peer go."""
        if not self._closed:
            self._closed = True
            self._reactor.remove(self._sock.fileno())
            self._sock.close()
            self._server.connections.discard(self)
            self.on_close()

    def finish(self) -> None:
        """Close, but let a peer that reads have what it has not got yet: a guest's last words."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(LAST_WORDS_S)
            self._sock.sendall(self._output)
        self._output.clear()
        self.close()

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if self._closed or not events & ~select.EPOLLOUT:
            return
        try:
            data = self._sock.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.on_data(data)
        else:
            self.close()

    def _flush(self) -> None:
        try:
            while self._output:
                sent = self._sock.send(self._output[:CHUNK_BYTES])
                del self._output[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._last and not self._output:
            self.close()
            return
        self._want()

    def _want(self) -> None:
        wanted = (0 if self._held else select.EPOLLIN) | (select.EPOLLOUT if self._output else 0)
        self._reactor.change(self._sock.fileno(), wanted)

    def lines(self, data: bytes) -> list[bytes]:
        """Whole lines out of the stream; the rest is kept."""
        self._input += data
        *lines, rest = self._input.split(b"\n")
        self._input = bytearray(rest)
        if len(rest) > LINE_LIMIT_BYTES:
            self.close()
        return [bytes(line) for line in lines]

    def _header(self, data: bytes) -> None:
        self._input += data
        line, newline, rest = bytes(self._input).partition(b"\n")
        if not newline:
            if len(self._input) > LINE_LIMIT_BYTES:
                self.close()
            return
        self._input.clear()
        try:
            header = json.loads(line)
            self._server.open_stream(self, header["stream"], header)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.close()
            return
        if rest and not self._closed:
            self.on_data(rest)


class Commands(Protocol):
    """What the connections are for; domain/process.py."""

    def command(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command. Raises: UserError."""

    def open_console(self, connection: Connection, replay: int) -> None:
        """Make the connection a console."""

    def open_xenstore(self, connection: Connection) -> None:
        """Make the connection the stream to xenstored."""

    def open_backends(self, connection: Connection) -> None:
        """Make the connection the back ends' stream to xenstored."""

    def open_trace(self, connection: Connection, header: dict[str, Any]) -> None:
        """Make the connection a tracer."""


class ControlServer:
    """Listens on control.sock."""

    def __init__(self, path: Path, reactor: Reactor, commands: Commands) -> None:
        self._path = path
        self._reactor = reactor
        self._commands = commands
        self.connections: set[Connection] = set()
        self._controls: set[Connection] = set()
        self._listener = listen_unix(path)
        self._listener.setblocking(False)
        reactor.add(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening, cut all connections, remove the socket."""
        self._reactor.remove(self._listener.fileno())
        self._listener.close()
        for connection in list(self.connections):
            connection.finish()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def publish(self, event: dict[str, Any]) -> None:
        """Tell everybody who has a control connection."""
        for connection in list(self._controls):
            connection.send_json(event)

    def _accept(self, events: int) -> None:
        del events
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            self.connections.add(Connection(sock, self._reactor, self))

    def open_stream(self, connection: Connection, stream: str, header: dict[str, Any]) -> None:
        """Give a new connection its meaning; an unknown one is cut."""
        if stream == "control":
            self._controls.add(connection)
            connection.on_close = lambda: self._controls.discard(connection)
            connection.on_data = lambda data: self._requests(connection, data)
        elif stream == "console":
            self._commands.open_console(connection, int(header.get("replay", 0)))
        elif stream == "xenstore":
            self._commands.open_xenstore(connection)
        elif stream == "backends":
            self._commands.open_backends(connection)
        elif stream == "trace":
            self._commands.open_trace(connection, header)
        else:
            connection.close()

    def _requests(self, connection: Connection, data: bytes) -> None:
        for line in connection.lines(data):
            request_id: object = None
            try:
                request = json.loads(line)
                request_id = request.get("id")
                answer = self._commands.command(str(request["cmd"]), request)
                connection.send_json({"id": request_id, "ok": answer})
            except UserError as error:
                detail = {
                    "message": error.message,
                    "hint": error.hint,
                    "exit_code": error.exit_code,
                }
                connection.send_json({"id": request_id, "error": detail})
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                detail = {"message": f"bad request: {error!r}", "hint": "", "exit_code": 1}
                connection.send_json({"id": request_id, "error": detail})
            except Exception as bug:  # ours: told to whoever asked, in full to the log
                traceback.print_exc()
                hint = "the domain's log has the details"
                detail = {"message": f"a bug in pyxen: {bug!r}", "hint": hint, "exit_code": 3}
                connection.send_json({"id": request_id, "error": detail})
