"""Xenstored on asyncio: host clients on a Unix socket, guests on streams, xend in the process."""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from pyxen.abi.errno import E
from pyxen.errors import UserError, XenError
from pyxen.proto.xs import ProtocolError
from pyxen.xenstored.connection import Connection
from pyxen.xenstored.daemon import Xenstore
from pyxen.xenstored.local import LocalClient
from pyxen.xenstored.outbox import Outbox
from pyxen.xenstored.permissions import DOM0
from pyxen.xenstored.quotas import Quotas

log = logging.getLogger(__name__)

# So much is carried out for one client before it is the others' turn.
_READ_BYTES = 4096
_SEND_BUFFER_BYTES = 1 << 16


class XenStored:
    """The xenstore of one host, to be embedded in an event loop.

    Args: journal_path: where the state is kept across restarts; None: in memory only.
          on_introduce(domid, mfn, port), on_release(domid): called for INTRODUCE and RELEASE of a
          host client before they are carried out; they refuse with a XenError.
    """

    def __init__(
        self,
        journal_path: Path | None = None,
        *,
        quotas: Quotas | None = None,
        on_introduce: Callable[[int, int, int], None] = lambda domid, mfn, port: None,
        on_release: Callable[[int], None] = lambda domid: None,
    ) -> None:
        self.xenstore = Xenstore(
            journal_path, quotas=quotas, on_introduce=on_introduce, on_release=on_release
        )
        self.local = LocalClient(self.xenstore, _schedule)
        self._servers: list[asyncio.Server] = []
        self._socket_paths: list[Path] = []
        self._links: set[_Link] = set()
        self._guests: dict[int, _Link] = {}

    # --- host clients ---

    async def serve(self, where: Path | str | socket.socket) -> asyncio.Server:
        """Begin to accept host clients, with domid 0's rights; returns at once.

        `where` is a path, at which a socket for this user only replaces what is left of an earlier
        one, or a bound Unix socket.
        Raises: UserError if the path cannot be used.
        """
        if not isinstance(where, socket.socket):
            path = Path(where)
            where = _bind(path)
            self._socket_paths.append(path)
        server = await asyncio.start_unix_server(self.serve_host, sock=where, limit=_READ_BYTES)
        self._servers.append(server)
        return server

    async def serve_host(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client with domid 0's rights until its stream ends; the writer is closed then."""
        link = _Link(reader, writer)
        connection = Connection(self.xenstore, DOM0, link.outbox(on_overflow=link.close))
        self._links.add(link)
        try:
            await link.run(connection)
        except ProtocolError as error:
            log.warning("host client dropped: %s", error)
        finally:
            connection.close()
            self._links.discard(link)

    # --- guests ---

    def introduce(self, domid: int, mfn: int, port: int) -> None:
        """A domain is there; see Xenstore.introduce."""
        self.xenstore.introduce(domid, mfn, port)

    def release(self, domid: int) -> None:
        """A domain is gone; see Xenstore.release. Its stream is closed.

        Nothing happens if it is not introduced: who was killed while destroying it does it again.
        """
        if domid in self.xenstore.domains:
            self.xenstore.release(domid)
        link = self._guests.pop(domid, None)
        if link is not None:
            link.close()

    def notify_shutdown(self, domid: int) -> None:
        """A domain has shut down or crashed: @releaseDomain, once until `resume`."""
        self.xenstore.notify_shutdown(domid)

    def resume(self, domid: int) -> None:
        """A domain that had shut down runs again."""
        self.xenstore.resume(domid)

    @property
    def introduced(self) -> dict[int, tuple[int, int]]:
        """The guests that are introduced, with frame and port; after a restart those of before."""
        return {d.domid: (d.mfn, d.port) for d in self.xenstore.domains.values()}

    async def attach_guest(
        self, domid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve a guest's stream until it ends; it may be attached again afterwards.

        A second stream for a domain replaces the first. The writer is closed at the end.
        Raises: XenError(ENOENT) if the domain is not introduced,
                ProtocolError if the guest broke the protocol: it cannot be served any more.
        """
        connection = self.xenstore.connection_of(domid)
        link = _Link(reader, writer)
        if connection is None:
            link.close()
            raise XenError(E.NOENT, f"domid {domid} is not introduced")
        previous = self._guests.get(domid)
        if previous is not None:
            previous.close()
        self._guests[domid] = link
        self._links.add(link)
        connection.attach(link.outbox())
        try:
            await link.run(connection)
        finally:
            self._links.discard(link)
            if self._guests.get(domid) is link:
                del self._guests[domid]
                connection.detach()

    # --- end ---

    async def close(self) -> None:
        """Stop serving, close all streams and the journal, remove the sockets made by `serve`."""
        for server in self._servers:
            server.close()
        links = list(self._links)
        for link in links:
            link.close()
        for link in links:
            await link.closed()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        for path in self._socket_paths:
            path.unlink(missing_ok=True)
        self._socket_paths.clear()
        self.xenstore.close()


class _Link:
    """The transport of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._outbox: Outbox | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._closed = False
        self._ended = asyncio.Event()
        writer.transport.set_write_buffer_limits(high=_SEND_BUFFER_BYTES)

    def outbox(self, on_overflow: Callable[[], None] = lambda: None) -> Outbox:
        """The sending side."""
        transport = self._writer.transport
        self._outbox = Outbox(
            self._send,
            lambda: transport.get_write_buffer_size() > _SEND_BUFFER_BYTES,
            self._begin_flush,
            on_overflow,
        )
        return self._outbox

    def _send(self, data: bytes) -> None:
        if not self._closed:
            self._writer.write(data)

    def _begin_flush(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        assert self._outbox is not None
        try:
            while self._outbox.waiting:
                await self._writer.drain()
                self._outbox.flush()
        except ConnectionError:
            self.close()

    async def run(self, connection: Connection) -> None:
        """Carry out the client's requests until it hangs up."""
        try:
            while (data := await self._reader.read(_READ_BYTES)) and not self._closed:
                connection.receive(data)
                # Who doesn't read its answers isn't read from either.
                if self._flushing is not None:
                    await asyncio.wait([self._flushing])
                await self._writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        finally:
            self.close()
            if self._flushing is not None:
                self._flushing.cancel()
            self._ended.set()

    def close(self) -> None:
        """Hang up, after what the transport has been given."""
        if not self._closed:
            self._closed = True
            self._writer.close()
            self._reader.feed_eof()

    async def closed(self) -> None:
        """Wait until `run` has ended."""
        await self._ended.wait()


def _schedule(call: Callable[[], None]) -> None:
    """Run soon; at once where no event loop runs (tools and tests)."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        call()
    else:
        loop.call_soon(call)


def _bind(path: Path) -> socket.socket:
    """A Unix socket at a path, for this user only. Raises UserError."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        sock.close()
        raise UserError(
            f"cannot create the socket {path}: {error}",
            hint="a Unix socket's path may have 107 bytes at most",
        ) from error
    finally:
        os.umask(before)
    return sock
