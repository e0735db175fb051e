"""Xenstored on real sockets: host clients, guests, back-pressure, its end."""

import asyncio
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pyxen.abi.errno import E
from pyxen.errors import UserError, XenError
from pyxen.proto import xs
from pyxen.xenstored import server as server_module
from pyxen.xenstored.server import XenStored

Test = Callable[[XenStored, Path], Awaitable[None]]


def run(test: Test, tmp_path: Path, journal: bool = False) -> None:
    async def main() -> None:
        daemon = XenStored(tmp_path / "journal" if journal else None)
        path = tmp_path / "socket"
        await daemon.serve(path)
        try:
            await asyncio.wait_for(test(daemon, path), 60)
        finally:
            await daemon.close()
        assert not path.exists()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


class Peer:
    """An asyncio client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.stream = xs.MessageStream()

    @classmethod
    async def connect(cls, path: Path) -> "Peer":
        return cls(*await asyncio.open_unix_connection(path))

    async def next(self) -> xs.Message:
        while (message := self.stream.next_message()) is None:
            data = await self.reader.read(65536)
            if not data:
                raise EOFError
            self.stream.feed(data)
        return message

    def send(self, request: xs.Request, req_id: int = 1, tx: int = 0) -> None:
        self.writer.write(xs.request_message(request, req_id, tx).pack())

    async def ask(self, request: xs.Request, tx: int = 0) -> bytes:
        self.send(request, 1, tx)
        return xs.reply_payload(await self.next())

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def guest_streams(
    daemon: XenStored, domid: int
) -> tuple[Peer, "asyncio.Task[None]", asyncio.StreamWriter]:
    """A guest's end of its stream, and the task that serves the other."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    task = asyncio.create_task(daemon.attach_guest(domid, reader, writer))
    return Peer(*await asyncio.open_unix_connection(sock=ours)), task, writer


def test_host_client(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        peer = await Peer.connect(path)
        assert await peer.ask(xs.Write("/a", b"1")) == b"OK\0"
        assert await peer.ask(xs.Read("/a")) == b"1"
        assert daemon.local.read("/a") == b"1"
        await peer.close()

    run(test, tmp_path)


def test_answers_come_in_the_order_of_the_requests(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        peer = await Peer.connect(path)
        for number in range(500):
            peer.send(xs.Write("/n", str(number).encode()), number)
            peer.send(xs.Read("/n"), 1000 + number)
        for number in range(500):
            assert (await peer.next()).req_id == number
            answer = await peer.next()
            assert (answer.req_id, answer.payload) == (1000 + number, str(number).encode())
        await peer.close()

    run(test, tmp_path)


def test_watches_of_a_host_client_die_with_its_connection(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        peer = await Peer.connect(path)
        await peer.ask(xs.Watch("/a", "t"))
        assert (await peer.next()).payload == b"/a\0t\0"
        daemon.local.write("/a/b", "x")
        assert (await peer.next()).payload == b"/a/b\0t\0"
        await peer.close()
        # The daemon has noticed once it answers somebody who came later.
        other = await Peer.connect(path)
        while daemon.xenstore.watches._by_path:
            await other.ask(xs.Read("/a"))
        await other.close()

    run(test, tmp_path)


def test_oversized_payload_costs_the_connection_only(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        bad, good = await Peer.connect(path), await Peer.connect(path)
        bad.writer.write(xs.HEADER.pack(xs.Op.WRITE, 1, 0, 4097))
        with pytest.raises(EOFError):
            await bad.next()
        assert await good.ask(xs.Mkdir("/a")) == b"OK\0"
        await bad.close()
        await good.close()

    run(test, tmp_path)


def test_bound_socket_is_served_too(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "other"))
        await daemon.serve(sock)
        peer = await Peer.connect(tmp_path / "other")
        assert await peer.ask(xs.Read("/tool")) == b""
        await peer.close()

    run(test, tmp_path)


def test_left_over_socket_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        stale = tmp_path / "stale"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(stale))
        await daemon.serve(stale)
        peer = await Peer.connect(stale)
        await peer.close()
        file = tmp_path / "file"
        file.write_text("mine")
        for bad in (file, tmp_path / ("x" * 120)):
            with pytest.raises(UserError):
                await daemon.serve(bad)
        assert file.read_text() == "mine"

    run(test, tmp_path)


def test_guest(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        daemon.local.mkdir("/local/domain/3/data", ["n3"])
        daemon.introduce(3, 0x1001, 1)
        assert daemon.introduced == {3: (0x1001, 1)}
        guest, task, _ = await guest_streams(daemon, 3)
        assert await guest.ask(xs.Write("data/x", b"from the guest")) == b"OK\0"
        assert daemon.local.read("/local/domain/3/data/x") == b"from the guest"
        assert daemon.local.get_perms("/local/domain/3/data/x") == ["n3"]
        with pytest.raises(XenError):
            await guest.ask(xs.Write("/x", b""))
        await guest.ask(xs.Watch("data", "t"))
        await guest.next()
        await guest.close()
        await task
        # The guest is gone for a moment only: its watches stay, and fire when it is back.
        daemon.local.write("/local/domain/3/data/x", "missed")
        guest, task, _ = await guest_streams(daemon, 3)
        assert (await guest.next()).payload == b"data\0t\0"
        daemon.release(3)
        with pytest.raises(EOFError):
            await guest.next()
        await task
        await guest.close()
        daemon.release(3)

    run(test, tmp_path)


def test_answer_lost_with_a_stream(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        daemon.local.mkdir("/local/domain/3/data", ["n3"])
        daemon.introduce(3, 0x1001, 1)
        guest, task, _ = await guest_streams(daemon, 3)
        tx = int((await guest.ask(xs.TransactionStart())).rstrip(b"\0"))
        await guest.ask(xs.Write("data/x", b"1"), tx)
        await guest.ask(xs.TransactionEnd(True), tx)
        await guest.close()
        await task
        guest, task, _ = await guest_streams(daemon, 3)
        # It was committed, but the guest did not hear of it: it does it once more.
        with pytest.raises(XenError) as caught:
            await guest.ask(xs.TransactionEnd(True), tx)
        assert caught.value.errno == E.AGAIN
        await guest.close()
        await task

    run(test, tmp_path)


def test_a_flood_of_requests_leaves_time_for_others(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        daemon.introduce(3, 1, 1)
        guest, task, _ = await guest_streams(daemon, 3)
        host = await Peer.connect(path)
        for number in range(2000):
            guest.send(xs.GetDomainPath(3), number)
        host.send(xs.Read("/tool"))
        reading = asyncio.create_task(host.next())
        # Both are served side by side: the host's one request is not behind all of the guest's.
        answered = 0
        while not reading.done():
            await guest.next()
            answered += 1
        assert answered < 2000
        await host.close()
        await guest.close()
        await task

    run(test, tmp_path)


def test_unknown_guest_is_refused(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        guest, task, _ = await guest_streams(daemon, 3)
        with pytest.raises(XenError) as caught:
            await task
        assert caught.value.errno == E.NOENT
        with pytest.raises(EOFError):
            await guest.next()
        await guest.close()

    run(test, tmp_path)


def test_second_stream_of_a_guest_replaces_the_first(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        daemon.introduce(3, 1, 1)
        first, first_task, _ = await guest_streams(daemon, 3)
        assert await first.ask(xs.GetDomainPath(3)) == b"/local/domain/3\0"
        second, second_task, _ = await guest_streams(daemon, 3)
        assert await second.ask(xs.GetDomainPath(3)) == b"/local/domain/3\0"
        await first_task
        with pytest.raises(EOFError):
            await first.next()
        assert await second.ask(xs.GetDomainPath(3)) == b"/local/domain/3\0"
        await second.close()
        await second_task
        await first.close()

    run(test, tmp_path)


def test_broken_guest_is_reported(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        daemon.introduce(3, 1, 1)
        guest, task, _ = await guest_streams(daemon, 3)
        guest.writer.write(xs.HEADER.pack(xs.Op.WRITE, 1, 0, 5000))
        with pytest.raises(xs.ProtocolError):
            await task
        await guest.close()

    run(test, tmp_path)


def test_client_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        daemon.local.write("/big", b"x" * 4000)
        daemon.introduce(3, 1, 1)
        daemon.local.set_perms("/big", ["r0"])
        guest, task, _ = await guest_streams(daemon, 3)
        connection = daemon.xenstore.connection_of(3)
        assert connection is not None
        count = 3000
        for number in range(count):
            guest.send(xs.Read("/big"), number)
        other = await Peer.connect(path)
        while connection.outbox.waiting == 0:
            await other.ask(xs.Read("/big"))
        for _ in range(50):
            await other.ask(xs.Read("/big"))
        # What one read brought is answered, no more.
        assert connection.outbox.waiting <= server_module._READ_BYTES // 20
        for number in range(count):
            answer = await guest.next()
            assert (answer.req_id, len(answer.payload)) == (number, 4000)
        assert connection.outbox.waiting == 0
        await other.close()
        await guest.close()
        await task

    run(test, tmp_path)


def test_events_for_a_client_that_does_not_read_are_bounded(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        daemon.local.mkdir("/w", ["r0"])
        daemon.introduce(3, 1, 1)
        guest, task, _ = await guest_streams(daemon, 3)
        await guest.ask(xs.Watch("/w", "t" * 2000))
        connection = daemon.xenstore.connection_of(3)
        assert connection is not None
        for number in range(3000):
            daemon.local.write(f"/w/{number % 1500}", "x")
        assert connection.outbox.event_bytes <= 1 << 20
        daemon.local.write("/w/last", "x")
        # Everything that was kept arrives, in order; then the guest is served again.
        guest.send(xs.GetDomainPath(3), 77)
        paths = []
        while (message := await guest.next()).op == xs.Op.WATCH_EVENT:
            paths.append(message.payload.split(b"\0")[0])
        assert message.req_id == 77
        assert paths[:3] == [b"/w", b"/w/0", b"/w/1"]
        assert len(paths) > 300
        await guest.close()
        await task

    run(test, tmp_path)


def test_host_client_that_does_not_read_its_events_is_dropped(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        peer = await Peer.connect(path)
        await peer.ask(xs.Watch("/w", "t" * 2000))
        for number in range(3000):
            daemon.local.write(f"/w/{number}", "x")
        with pytest.raises(EOFError):
            while True:
                await peer.next()
        await peer.close()

    run(test, tmp_path)


def test_restart_behind_the_same_socket(tmp_path: Path) -> None:
    async def before(daemon: XenStored, path: Path) -> None:
        daemon.introduce(3, 0x1001, 1)
        daemon.local.write("/a", "1")

    async def after(daemon: XenStored, path: Path) -> None:
        assert daemon.introduced == {3: (0x1001, 1)}
        peer = await Peer.connect(path)
        assert await peer.ask(xs.Read("/a")) == b"1"
        await peer.close()

    run(before, tmp_path, journal=True)
    run(after, tmp_path, journal=True)


def test_local_client(tmp_path: Path) -> None:
    async def test(daemon: XenStored, path: Path) -> None:
        local = daemon.local
        told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        local.watch("/a", "t", lambda p, t: told.put_nowait((p, t)))
        assert told.empty()
        assert await told.get() == ("/a", "t")
        with local.transaction() as tx:
            tx.write("/a/b", "1")
            tx.mkdir("/a/c", ["n0", "r4"])
            assert tx.read("/a/b") == b"1"
            assert not local.exists("/a/b")
        assert local.directory("/a") == ["b", "c"]
        assert local.get_perms("/a/c") == ["n0", "r4"]
        assert {await told.get(), await told.get()} == {("/a/b", "t"), ("/a/c", "t")}
        with pytest.raises(ValueError, match="abandon"), local.transaction() as tx:
            tx.write("/a/b", "2")
            raise ValueError("abandon")
        assert local.read("/a/b") == b"1"
        with pytest.raises(XenError) as caught, local.transaction() as tx:
            tx.write("/a/b", "2")
            local.write("/a/b", "3")
        assert caught.value.errno == E.AGAIN
        local.write("/a/d", "x")
        local.unwatch("/a", "t")
        await asyncio.sleep(0)
        assert told.empty()
        local.rm("/a")
        local.rm("/a/b/c")
        for call in (local.read, local.directory, local.get_perms):
            with pytest.raises(XenError):
                call("/a")
        for bad in ("/a//b", "@releaseDomain"):
            with pytest.raises(XenError):
                local.write(bad, "")
        with pytest.raises(XenError):
            local.unwatch("/a", "t")
        local.set_perms("@releaseDomain", ["n0", "r3"])
        assert local.get_perms("/@releaseDomain") == ["n0", "r3"]

    run(test, tmp_path)
