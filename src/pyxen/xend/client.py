"""The other end of xend's API, for xl: a plain socket and JSON, nothing that takes time to import.

If no xend runs, one is started.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

from pyxen.errors import UserError
from pyxen.paths import Paths, connect_unix, find_paths

API_VERSION = 1
PROGRESS_SECONDS = 1.0
RECEIVE_BYTES = 65536


class Client:
    """A connection to xend. Use it as a context manager."""

    def __init__(self, sock: socket.socket, paths: Paths) -> None:
        self.paths = paths
        self._sock = sock
        self._received = b""
        self._last_id = 0

    @classmethod
    def connect(cls, paths: Paths | None = None, *, start: bool = True) -> Client:
        """Connect to the xend of these paths; `start` one if none runs. UserError."""
        paths = paths or find_paths()
        try:
            sock = connect_unix(paths.xend_socket)
        except OSError as error:
            if not start:
                raise UserError("xend does not run", "any `xl` command starts it") from error
            from pyxen.xend.start import start_xend

            sock = start_xend(paths)
        return cls(sock, paths)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For select. What was received already is not seen by it: see `has_message`."""
        return self._sock.fileno()

    def has_message(self) -> bool:
        """Whether `messages` has the next one without waiting."""
        return b"\n" in self._received

    def close(self) -> None:
        """Leave; what was asked for and is not done is cancelled."""
        self._sock.close()

    def send(self, op: str, **params: object) -> int:
        """Ask for an operation; its number, under which the answer comes."""
        self._last_id += 1
        request = {"id": self._last_id, "v": API_VERSION, "op": op, **params}
        try:
            self._sock.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise _lost() from error
        return self._last_id

    def messages(self) -> Iterator[dict[str, Any]]:
        """Answers and events as they come. UserError when xend goes away."""
        while True:
            line, end, rest = self._received.partition(b"\n")
            if end:
                self._received = rest
                yield json.loads(line)
                continue
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except OSError as error:
                raise _lost() from error
            if not data:
                raise _lost()
            self._received += data

    def _wait(self, seconds: float) -> bool:
        return self.has_message() or bool(select.select([self._sock], [], [], seconds)[0])

    def call(self, op: str, *, waiting: Callable[[], None] | None = None, **params: object) -> Any:
        """Do one operation and return its result. UserError as xend reports it.

        `waiting` is called each second until the answer comes.
        """
        number = self.send(op, **params)
        while waiting is not None and not self._wait(PROGRESS_SECONDS):
            waiting()
        for message in self.messages():
            if message.get("id") == number:
                return result_of(message)
        raise _lost()


def result_of(message: dict[str, Any]) -> Any:
    """The result in an answer. UserError if it holds an error."""
    error = message.get("error")
    if error is not None:
        raise UserError(error["message"], error.get("hint", ""), error.get("exit_code", 1))
    return message.get("result")


class XendLost(UserError):
    """xend went away; domains run on, and the next one knows them."""


def _lost() -> XendLost:
    return XendLost("lost the connection to xend", "do it again: xend starts anew, domains run on")
