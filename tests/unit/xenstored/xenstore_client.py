"""Clients that speak the wire protocol to a xenstore, without sockets."""

from typing import Any

import pytest

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto import xs
from pyxen.xenstored.connection import Connection
from pyxen.xenstored.daemon import Xenstore
from pyxen.xenstored.outbox import Outbox
from pyxen.xenstored.permissions import DOM0


class Client:
    """Sends requests, returns answers, collects events in order."""

    def __init__(self, xenstore: Xenstore, domid: int = 0) -> None:
        self.stream = xs.MessageStream()
        self.received: list[xs.Message] = []
        outbox = Outbox(self._receive)
        if domid:
            connection = xenstore.connection_of(domid)
            assert connection is not None
            self.connection = connection
            connection.attach(outbox)
        else:
            self.connection = Connection(xenstore, DOM0, outbox)

    def _receive(self, data: bytes) -> None:
        self.stream.feed(data)
        self.received += list(self.stream)

    def ask(self, request: xs.Request, tx: int = 0) -> bytes:
        before = len(self.received)
        self.connection.receive(xs.request_message(request, before + 1, tx).pack())
        (reply,) = [m for m in self.received[before:] if m.op != xs.Op.WATCH_EVENT]
        assert (reply.req_id, reply.tx_id) == (before + 1, tx)
        return xs.reply_payload(reply)

    def refused(self, request: xs.Request, tx: int = 0) -> E:
        with pytest.raises(XenError) as caught:
            self.ask(request, tx)
        return caught.value.errno

    def write(self, path: str, value: bytes | str = b"", tx: int = 0) -> None:
        data = value.encode() if isinstance(value, str) else value
        assert self.ask(xs.Write(path, data), tx) == b"OK\0"

    def read(self, path: str, tx: int = 0) -> bytes:
        return self.ask(xs.Read(path), tx)

    def rm(self, path: str, tx: int = 0) -> None:
        assert self.ask(xs.Rm(path), tx) == b"OK\0"

    def ls(self, path: str, tx: int = 0) -> list[str]:
        return xs.split_strings(self.ask(xs.Directory(path), tx))

    def chmod(self, path: str, *perms: str, tx: int = 0) -> None:
        assert self.ask(xs.SetPerms(path, perms), tx) == b"OK\0"

    def perms(self, path: str, tx: int = 0) -> list[str]:
        return xs.split_strings(self.ask(xs.GetPerms(path), tx))

    def start(self) -> int:
        return int(self.ask(xs.TransactionStart()).rstrip(b"\0"))

    def commit(self, tx: int) -> None:
        assert self.ask(xs.TransactionEnd(True), tx) == b"OK\0"

    def watch(self, path: str, token: str = "t", depth: int | None = None) -> None:
        assert self.ask(xs.Watch(path, token, depth)) == b"OK\0"

    def events(self) -> list[tuple[str, str]]:
        """(path, token) of each event since the last call."""
        found: list[Any] = [
            tuple(xs.split_strings(m.payload)) for m in self.received if m.op == xs.Op.WATCH_EVENT
        ]
        self.received.clear()
        return found


def make_guest(xenstore: Xenstore, dom0: Client, domid: int) -> Client:
    home = f"/local/domain/{domid}"
    dom0.write(home)
    dom0.chmod(home, "n0", f"r{domid}")
    dom0.write(f"{home}/data")
    dom0.chmod(f"{home}/data", f"n{domid}")
    xenstore.introduce(domid, 0x1001, 1)
    client = Client(xenstore, domid)
    client.events()
    return client
