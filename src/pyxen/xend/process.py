"""xend's end of one domain process: start or adopt it, speak its control protocol, see it end.

The control protocol (the domain process is the server, on control.sock in its run directory): every
connection begins with one JSON line that names the stream. On {"stream": "control"} JSON lines
follow, {"id", "cmd", …} answered by {"id", "ok": …} or {"id", "error": {message, hint, exit_code}};
lines without an id are events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pyxen.errors import UserError
from pyxen.paths import connect_unix
from pyxen.xend.environment import child_environment
from pyxen.xend.pid import Pid
from pyxen.xend.record import JsonObject

log = logging.getLogger(__name__)

DOMAIN_COMMAND = (sys.executable, "-P", "-m", "pyxen.domain")

LINE_BYTES = 1 << 20
"""Longest line a domain process may send: it runs a hostile guest and may be taken over by it."""

CONNECT_SECONDS = 20.0
END_SECONDS = 2.0
"""How long a process may take to do as it is told when its domain ends; then it is killed."""


EventHandler = Callable[[JsonObject], None]


class ProcessGone(UserError):
    """The domain process has ended, or does not answer as it should."""


class DomainProcess:
    """One domain process and the control connection to it."""

    def __init__(self, domid: int, pid: Pid, run_dir: Path, on_event: EventHandler) -> None:
        self.domid = domid
        self.pid = pid
        self._socket_path = run_dir / "control.sock"
        self._on_event = on_event
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[JsonObject]] = {}
        self._last_id = 0
        self.gone = asyncio.Event()
        self._watcher = asyncio.ensure_future(self._watch_pid())
        self._reader_task: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Open the control connection; waits for the process to listen. ProcessGone if it ends."""
        reader, writer = await self.open_stream({"stream": "control"}, CONNECT_SECONDS)
        self._writer = writer
        self._reader_task = asyncio.ensure_future(self._read(reader))

    async def open_stream(
        self, header: JsonObject, seconds: float = 2.0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection of the kind that the header names. ProcessGone if there is none."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + seconds
        while True:
            try:
                sock = connect_unix(self._socket_path)
                break
            except OSError as error:
                if self.gone.is_set() or loop.time() > give_up:
                    raise ProcessGone(f"control socket: {error.strerror}") from error
            # The process is still starting; nothing tells us when it listens.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.gone.wait(), 0.005)
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LINE_BYTES)
        writer.write(json.dumps(header).encode() + b"\n")
        return reader, writer

    async def call(self, cmd: str, *, seconds: float | None = None, **params: object) -> JsonObject:
        """Do one command. UserError as the process reports it; ProcessGone; TimeoutError."""
        if self._writer is None or self.gone.is_set():
            raise ProcessGone(f"{cmd}: the domain process has ended")
        self._last_id += 1
        call_id = self._last_id
        answer: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = answer
        try:
            self._writer.write(json.dumps({"id": call_id, "cmd": cmd, **params}).encode() + b"\n")
            return await asyncio.wait_for(answer, seconds)
        finally:
            self._waiting.pop(call_id, None)

    async def end(self, seconds: float = END_SECONDS) -> None:
        """Ask the process to exit, see that it does in time, and kill it if it does not."""
        with contextlib.suppress(ProcessGone, UserError, TimeoutError, OSError):
            await self.call("destroy", seconds=END_SECONDS)
            await asyncio.wait_for(self.gone.wait(), seconds)
        if not self.gone.is_set():
            self.pid.signal(signal.SIGKILL)
            await self.gone.wait()
        await self.close()

    async def close(self) -> None:
        """Let go of the process, which may run on."""
        tasks = [task for task in (self._watcher, self._reader_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
        self.pid.close()

    async def _watch_pid(self) -> None:
        await self.pid.gone()
        # What it said before it ended still counts: read on until the end of the connection.
        if self._reader_task is not None:
            await asyncio.wait([self._reader_task])
        self._fail_calls("the domain process has ended")
        self.gone.set()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.error("domain %d: bad control message: %s", self.domid, error)
        # Without its control connection the process is of no use, and must not stay behind.
        self._fail_calls("the domain process closed its control connection")
        asyncio.get_running_loop().call_later(END_SECONDS, self._kill_leftover)

    def _kill_leftover(self) -> None:
        if not self.gone.is_set() and not self._watcher.cancelled():
            self.pid.signal(signal.SIGKILL)

    def _take(self, message: JsonObject) -> None:
        """One message from the process: an answer, or an event."""
        call_id = message.get("id")
        if call_id is None:
            self._on_event(message)
            return
        answer = self._waiting.get(call_id)
        if answer is None or answer.done():
            return
        error = message.get("error")
        if error is None:
            ok = message.get("ok")
            answer.set_result(ok if isinstance(ok, dict) else {})
        else:
            answer.set_exception(
                UserError(
                    str(error.get("message", "unknown error")),
                    str(error.get("hint") or ""),
                    int(error.get("exit_code", 1)),
                )
            )

    def _fail_calls(self, why: str) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ProcessGone(why))


def start_process(command: tuple[str, ...], spec_fd: int, log_path: Path) -> Pid:
    """Start a domain process in a session of its own. ProcessGone if it dies at once.

    spec_fd: its stdin, from which it reads its specification. Its output goes to the log.
    """
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        pid = os.posix_spawn(
            command[0],
            command,
            child_environment(),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, spec_fd, 0),
                (os.POSIX_SPAWN_DUP2, log_fd, 1),
                (os.POSIX_SPAWN_DUP2, log_fd, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log_fd)
    return hold_child(pid)


def write_spec(fd: int, spec: JsonObject) -> None:
    """Put the whole spec into a pipe. UserError if it does not fit: a pipe holds 64 KiB."""
    line = json.dumps(spec).encode() + b"\n"
    os.set_blocking(fd, False)
    try:
        whole = os.write(fd, line) == len(line)
    except BlockingIOError:
        whole = False
    if not whole:
        raise UserError("the domain's configuration is longer than 64 KiB", exit_code=3)


def hold_child(pid: int) -> Pid:
    """A handle on a new child; ProcessGone if it has died already."""
    try:
        return Pid(pid)
    except ProcessLookupError:
        os.waitpid(pid, 0)
        raise ProcessGone("the domain process died at once") from None
