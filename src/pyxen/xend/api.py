"""What xl asks xend: JSON lines on a private unix socket.

A request {"id", "op", …parameters} is answered by {"id", "result"} or by {"id", "error": {"kind",
"message", "hint", "exit_code"}}; several may be under way on one connection, and are answered as
they finish. After {"op": "events"} every event is sent too, as a line without an id. A client that
leaves cancels what it asked for; operations that must not stop half-way shield themselves.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pyxen.errors import UserError, XenError
from pyxen.xend.client import API_VERSION
from pyxen.xend.record import JsonObject

if TYPE_CHECKING:
    from pyxen.xend.daemon import Xend

log = logging.getLogger(__name__)

LINE_BYTES = 1 << 20
UNSENT_BYTES = 1 << 20
"""A client that reads events this far behind is cut off."""
CALLS_AT_ONCE = 256
ANY_VERSION = ("stop", "version")
"""Operations that clients of every version may ask for."""

Operation: TypeAlias = Callable[["Xend", JsonObject], Awaitable[Any]]


class Api:
    """Serves the clients of one xend."""

    def __init__(self, xend: Xend, operations: Mapping[str, Operation]) -> None:
        self._xend = xend
        self._operations = operations
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Begin to answer on a listening socket."""
        listener.setblocking(False)
        self._server = await asyncio.start_unix_server(
            self._client, sock=listener, limit=LINE_BYTES
        )

    async def close(self) -> None:
        """Stop answering, and let the clients go."""
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if peer_allowed(writer.get_extra_info("socket")):
                await _Session(self._xend, self._operations, reader, writer).run()
        except asyncio.CancelledError:
            # Only `close` cancels a client; asyncio would report it as an error.
            pass
        finally:
            self._clients.discard(task)
            writer.close()


class _Session:
    """One client's connection."""

    def __init__(
        self,
        xend: Xend,
        operations: Mapping[str, Operation],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._xend = xend
        self._operations = operations
        self._reader = reader
        self._writer = writer
        self._calls: set[asyncio.Task[None]] = set()
        self._leave_events: Callable[[], None] | None = None

    async def run(self) -> None:
        try:
            while line := await self._reader.readline():
                if len(self._calls) >= CALLS_AT_ONCE:
                    break
                call = asyncio.ensure_future(self._answer(line))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
        except (OSError, ValueError) as error:
            log.info("client cut off: %s", error)
        finally:
            if self._leave_events is not None:
                self._leave_events()
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)

    async def _answer(self, line: bytes) -> None:
        request: JsonObject = {}
        try:
            decoded = json.loads(line)
            if not isinstance(decoded, dict):
                raise ValueError("not an object")
            request = decoded
            result = await self._do(request)
            self._send({"id": request.get("id"), "result": result})
        except Exception as error:
            self._send({"id": request.get("id"), "error": describe(error)})

    async def _do(self, request: JsonObject) -> object:
        op = request.get("op")
        if request.get("v") != API_VERSION and op not in ANY_VERSION:
            raise UserError(
                "this xl and the running xend are of different versions",
                "stop the old xend (domains run on): pyxen xend --stop",
            )
        if op == "events":
            if self._leave_events is None:
                self._leave_events = self._xend.events.listen(self._send)
            return {}
        operation = self._operations.get(str(op))
        if operation is None:
            raise UserError(f"xend knows no operation {op!r}")
        return await operation(self._xend, request)

    def _send(self, message: JsonObject) -> None:
        if self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > UNSENT_BYTES:
            log.info("client cut off: it does not read")
            self._writer.transport.abort()
            return
        self._writer.write(json.dumps(message).encode() + b"\n")


def describe(error: Exception) -> JsonObject:
    """An error as clients see it. What is not one of ours is our bug: logged in full."""
    if isinstance(error, UserError):
        return {
            "kind": "user",
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
    if isinstance(error, XenError):
        return {"kind": "xen", "message": str(error), "hint": "", "exit_code": 1}
    log.error("internal error", exc_info=error)
    return {
        "kind": "internal",
        "message": f"internal error in xend: {type(error).__name__}: {error}",
        "hint": "its log has the details: `pyxen env` says where",
        "exit_code": 1,
    }


def peer_allowed(sock: socket.socket) -> bool:
    """Whether the other end runs as this user or as root (SO_PEERCRED: pid, uid, gid)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())
