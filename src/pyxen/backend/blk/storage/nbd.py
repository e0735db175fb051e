"""A storage behind an NBD server: the image formats that QEMU's storage daemon reads and writes.

Many commands are under way on one connection; nothing waits but opening and closing. One run of
the guest's memory is read and written in place, several go through a buffer.

When the server ends, its connection is over and so is what it had not yet flushed. If all that
was answered as written had been flushed, too, the server is started again, once in the life of
the storage, and what was under way is sent again: nothing is lost. Else everything fails with EIO
from then on, as on a disk that broke: a guest must not believe that lost writes are there.
"""

from __future__ import annotations

import ctypes
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from errno import EIO, EOPNOTSUPP
from typing import Final, Protocol

from pyxen.backend.blk.storage.base import Kind, Operation
from pyxen.backend.blk.storage.libnbd import (
    MAX_TRANSFER_BYTES,
    MAX_TRIM_BYTES,
    Connection,
    NbdError,
)
from pyxen.backend.blk.storage.workers import Workers
from pyxen.errors import UserError

SECTOR_BYTES: Final = 512
OPEN_S: Final = 30.0
"""How long a server may take to answer when it is started."""
CLOSE_S: Final = 30.0
"""How long what is under way may take when the storage is closed."""
_WAIT_MS: Final = 1000
_BROKEN: Final = select.EPOLLHUP | select.EPOLLERR


class Poller(Protocol):
    """What calls functions when file descriptors are ready (domain/reactor.py)."""

    def add(self, fd: int, handler: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Call `handler` whenever one of the events is there (level-triggered)."""

    def change(self, fd: int, events: int) -> None:
        """Wait for other events."""

    def remove(self, fd: int) -> None:
        """Forget a file descriptor."""


class Server(Protocol):
    """A process that serves one image."""

    def connect(self) -> socket.socket:
        """Start it, again if need be, and connect to it. Raises: UserError, OSError."""

    def last_words(self) -> str:
        """What it said, or how it ended; waits a little for that."""

    def stop(self) -> None:
        """Let it end."""


def open_nbd(
    server: Server,
    poller: Poller,
    workers: Workers,
    report: Callable[[str], None],
    *,
    read_only: bool = False,
    discard: bool = True,
    discard_granularity: int = 0,
) -> NbdStorage:
    """Start a server and connect to it; it is stopped if that fails, or when the storage is closed.

    report: gets a line when the server dies. discard_granularity: bytes; 0: as the server prefers.
    Raises: UserError with the server's own words.
    """
    try:
        connection = Connection(server.connect(), OPEN_S)
    except NbdError as error:
        words = server.last_words() or str(error)
        server.stop()
        raise UserError(words) from None
    except BaseException:
        server.stop()
        raise
    storage = NbdStorage(server, connection, poller, workers, report, read_only=read_only)
    if discard and connection.can_trim and not storage.read_only:
        storage.discard_granularity = discard_granularity or storage.physical_sector_size
    return storage


@dataclass(slots=True, eq=False)
class _Active:
    """An operation under way: how far it is, and the memory that its commands use."""

    operation: Operation
    address: int = 0
    moved: int = 0
    step: int = 0
    """Length of the command that is under way."""
    copy: bytearray | None = None
    held: object = None
    """Keeps the memory at `address` from going away."""
    written: int = 0
    """Of a flush: how many writes had ended when it began."""


@dataclass(slots=True)
class _Durability:
    """What was answered as written, and what of it was flushed; counted in writes."""

    written: int = 0
    flushed: int = 0

    @property
    def is_complete(self) -> bool:
        return self.written == self.flushed


@dataclass(slots=True)
class _Restart:
    """The one time that a server is started again."""

    used: bool = False
    connection: Connection | None = None
    why: str = ""


@dataclass(slots=True)
class _Pending:
    """Operations that have not ended: sent, by cookie, and waiting for a connection."""

    sent: dict[int, _Active] = field(default_factory=dict)
    waiting: list[_Active] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.sent or self.waiting)

    def take_all(self) -> list[_Active]:
        """Everything, in the order in which it came."""
        everything = [*self.sent.values(), *self.waiting]
        self.sent.clear()
        self.waiting.clear()
        return everything


class NbdStorage:
    """An image behind a server (storage/base.py: Storage)."""

    def __init__(
        self,
        server: Server,
        connection: Connection,
        poller: Poller,
        workers: Workers,
        report: Callable[[str], None],
        *,
        read_only: bool,
    ) -> None:
        """Take over a server and a connection to it."""
        self._server = server
        self._poller = poller
        self._workers = workers
        self._report = report
        self._pending = _Pending()
        self._durability = _Durability()
        self._restart = _Restart()
        self._failed = self._flush_failed = False
        self._connection: Connection | None = None
        self._fd = -1
        self._events = 0
        self.sector_size = max(SECTOR_BYTES, connection.minimum_block)
        self.physical_sector_size = max(self.sector_size, min(connection.preferred_block, 4096))
        self.size = self._whole_sectors(connection)
        self.read_only = read_only or connection.read_only
        self.discard_granularity = 0
        self.can_secure_discard = False
        self._attach(connection)

    # --- Storage ------------------------------------------------------------------------------

    def submit(self, operation: Operation) -> None:
        """Begin an operation (storage/base.py)."""
        kind = operation.kind
        if self._failed or (kind is Kind.FLUSH and self._flush_failed):
            operation.done(EIO)
        elif kind is Kind.SECURE_DISCARD:
            operation.done(EOPNOTSUPP)
        elif kind is Kind.FLUSH and self._durability.is_complete:
            operation.done(0)
        else:
            self._begin([_prepare(operation)])

    def close(self) -> None:
        """Wait for what is under way (its `done` is called), flush, and stop the server.

        What takes longer than CLOSE_S fails.
        """
        deadline = time.monotonic() + CLOSE_S
        self._settle(deadline)
        if not self._durability.is_complete and not self._failed and not self.read_only:
            self.submit(Operation(Kind.FLUSH, 0, 0, (), self._flushed_last))
            self._settle(deadline)
        if self._connection is not None:
            self._connection.disconnect()
        self._detach()
        self._server.stop()

    # --- commands -----------------------------------------------------------------------------

    def _begin(self, operations: Iterable[_Active]) -> None:
        """Send the next command of each; without a connection they wait for one, if it comes."""
        for active in operations:
            connection = self._connection
            if connection is None:
                self._pending.waiting.append(active)
                continue
            try:
                self._pending.sent[self._command(connection, active)] = active
            except NbdError as error:
                if connection.is_over:
                    self._pending.waiting.append(active)
                    self._look()
                else:
                    self._end(active, error.errno or EIO)
        if self._failed:
            self._fail_pending()
        self._update_events()

    def _command(self, connection: Connection, active: _Active) -> int:
        operation = active.operation
        offset, left = operation.offset + active.moved, operation.length - active.moved
        active.step = min(left, MAX_TRANSFER_BYTES)
        match operation.kind:
            case Kind.READ:
                return connection.read(active.address + active.moved, active.step, offset)
            case Kind.WRITE:
                return connection.write(active.address + active.moved, active.step, offset)
            case Kind.FLUSH:
                active.written = self._durability.written
                return connection.flush()
        active.step = min(left, MAX_TRIM_BYTES)
        return connection.trim(active.step, offset)

    def _ready(self, events: int) -> None:
        """The file descriptor is ready."""
        if self._connection is not None:
            broken = bool(events & _BROKEN)
            self._connection.progress(
                readable=broken or bool(events & select.EPOLLIN),
                writable=broken or bool(events & select.EPOLLOUT),
            )
            self._look()

    def _look(self) -> None:
        """Answer what has ended; see whether the connection has; wait for what it wants."""
        connection = self._connection
        if connection is None:
            return
        is_over = connection.is_over
        # What failed because the connection ended is not the image's fault: it may be sent again.
        ended = [
            (self._pending.sent.pop(cookie), errno)
            for cookie, errno in connection.completed()
            if not (errno and is_over)
        ]
        if is_over:
            self._lost()
        again = []
        for active, errno in ended:
            active.moved += active.step
            if errno or active.moved >= active.operation.length:
                self._end(active, errno)
            else:
                again.append(active)
        self._begin(again)

    def _end(self, active: _Active, errno: int) -> None:
        """Answer an operation."""
        operation, durability = active.operation, self._durability
        if operation.kind is Kind.FLUSH:
            if errno:
                self._flush_failed = True
            else:
                durability.flushed = max(durability.flushed, active.written)
        elif operation.kind is Kind.READ:
            if active.copy is not None and not errno:
                _scatter(active.copy, operation.buffers)
        else:
            durability.written += 1
        active.held = None
        operation.done(errno)

    # --- the connection -----------------------------------------------------------------------

    def _whole_sectors(self, connection: Connection) -> int:
        return connection.size // self.sector_size * self.sector_size

    def _attach(self, connection: Connection) -> None:
        self._connection = connection
        self._fd = connection.fileno()
        self._events = select.EPOLLIN
        self._poller.add(self._fd, self._ready, self._events)
        self._update_events()

    def _update_events(self) -> None:
        connection = self._connection
        if connection is None:
            return
        events = select.EPOLLIN if connection.wants_read else 0
        if connection.wants_write:
            events |= select.EPOLLOUT
        if events != self._events:
            self._events = events
            self._poller.change(self._fd, events)

    def _detach(self) -> None:
        if self._connection is not None:
            self._poller.remove(self._fd)
            self._connection.close()
            self._connection = None

    def _lost(self) -> None:
        """The connection is over: start the server again if nothing is lost by that."""
        self._detach()
        self._pending.waiting = self._pending.take_all()
        self._workers.submit(self._reconnect, self._reconnected)

    def _reconnect(self) -> int:
        """On a worker. `_end` is not called meanwhile: nothing is sent."""
        restart = self._restart
        restart.why = self._server.last_words()
        if restart.used or not self._durability.is_complete:
            return EIO
        restart.used = True
        try:
            restart.connection = Connection(self._server.connect(), OPEN_S)
        except NbdError as error:
            restart.why = self._server.last_words() or str(error)
        except (OSError, UserError) as error:
            restart.why = str(error)
        return 0 if restart.connection else EIO

    def _reconnected(self, errno: int) -> None:
        connection, self._restart.connection = self._restart.connection, None
        if connection is not None and self._whole_sectors(connection) != self.size:
            connection.close()
            connection, self._restart.why = None, "it has another size now"
        if self._failed or connection is None:
            self._fail(self._restart.why)
            return
        self._report(f"the server of its image ended, and was started again: {self._restart.why}")
        self._attach(connection)
        waiting, self._pending.waiting = self._pending.waiting, []
        self._begin(waiting)

    def _fail(self, why: str) -> None:
        """Everything fails from now on."""
        self._detach()
        if not self._failed:
            self._failed = True
            self._report(f"the server of its image ended; all I/O fails from now on: {why}")
        self._fail_pending()

    def _fail_pending(self) -> None:
        for active in self._pending.take_all():
            self._end(active, EIO)

    # --- closing ------------------------------------------------------------------------------

    def _settle(self, deadline_s: float) -> None:
        """Wait until nothing is under way; what takes too long fails."""
        while self._pending and not self._failed:
            if time.monotonic() > deadline_s:
                self._fail("it takes too long to finish")
            elif self._connection is None:
                self._workers.completions.wait()
            else:
                self._connection.wait(_WAIT_MS)
                self._look()

    def _flushed_last(self, errno: int) -> None:
        if errno and not self._failed:
            self._report("the last writes to its image could not be flushed")


def _prepare(operation: Operation) -> _Active:
    """Find the memory that the commands of an operation use, or make a copy of it."""
    active = _Active(operation)
    buffers = operation.buffers
    if not buffers:
        return active
    memory: memoryview | bytearray
    if len(buffers) == 1 and not buffers[0].readonly:
        memory = buffers[0]
    else:
        reading = operation.kind is Kind.READ
        active.copy = bytearray(operation.length) if reading else bytearray().join(buffers)
        memory = active.copy
    held = ctypes.c_char.from_buffer(memory)
    active.address, active.held = ctypes.addressof(held), held
    return active


def _scatter(data: bytearray, buffers: Iterable[memoryview]) -> None:
    """Copy what was read to where it belongs."""
    position = 0
    with memoryview(data) as view:
        for buffer in buffers:
            buffer[:] = view[position : position + len(buffer)]
            position += len(buffer)
