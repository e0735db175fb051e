"""The client of xenstore: its stream in any pieces, broken, and with answers nobody asked for."""

from __future__ import annotations

import pytest

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto import xs
from pyxen.proto.xs_client import Pause, XsClient


class Wire:
    """What a client sends, and answers to it."""

    def __init__(self) -> None:
        self.client = XsClient()
        self.sent: list[bytes] = []
        self.stream = xs.MessageStream()
        self.client.connect(self.send)

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def asked(self) -> xs.Message:
        """The next request that was sent."""
        self.stream.feed(self.sent.pop(0))
        message = self.stream.next_message()
        assert message is not None
        return message

    def answer(self, payload: bytes, pieces: int = 1) -> None:
        data = self.asked().reply(payload)
        for at in range(0, len(data), max(1, len(data) // pieces)):
            self.client.received(data[at : at + max(1, len(data) // pieces)])


@pytest.mark.parametrize("pieces", [1, 2, 10_000])
def test_answers_in_pieces(pieces: int) -> None:
    wire, found = Wire(), []

    async def work() -> None:
        found.append(await wire.client.read("/a"))
        found.extend(await wire.client.directory("/b"))

    wire.client.start(work())
    wire.answer(b"value", pieces)
    wire.answer(b"x\0y\0", pieces)
    assert found == [b"value", "x", "y"]


def test_answers_in_another_order() -> None:
    wire, found = Wire(), []

    async def work(path: str) -> None:
        found.append((path, await wire.client.read(path)))

    for path in ("/a", "/b"):
        wire.client.start(work(path))
    first, second = wire.asked(), wire.asked()
    wire.client.received(second.reply(b"2"))
    wire.client.received(first.reply(b"1"))
    assert found == [("/b", b"2"), ("/a", b"1")]


def test_errors() -> None:
    wire, found = Wire(), []

    async def work() -> None:
        found.append(await wire.client.read("/missing"))
        with pytest.raises(XenError) as refused:
            await wire.client.write("/forbidden", "")
        found.append(refused.value.errno)

    wire.client.start(work())
    wire.client.received(wire.asked().error(E.NOENT))
    wire.client.received(wire.asked().error(E.ACCES))
    assert found == [None, E.ACCES]


def test_an_answer_that_nobody_asked_for() -> None:
    wire = Wire()
    with pytest.raises(xs.RemoteProtocolError):
        wire.client.received(xs.Message(xs.Op.READ, 99, 0).reply(b""))


def test_a_watch_event_that_is_none() -> None:
    wire = Wire()
    with pytest.raises(xs.RemoteProtocolError):
        wire.client.received(xs.Message(xs.Op.WATCH_EVENT, 0, 0, b"/path\0").pack())


def test_a_stream_that_breaks_ends_who_waits_and_sets_watches_anew() -> None:
    wire, ends, seen = Wire(), [], []

    async def work() -> None:
        try:
            await wire.client.read("/a")
        finally:
            ends.append(True)

    wire.client.watch("/w", seen.append)
    wire.client.start(work())
    wire.sent.clear()
    wire.client.disconnect(wire.send)
    assert ends == [True]
    wire.client.start(work())
    assert ends == [True, True], "without a stream nobody waits"
    wire.stream = xs.MessageStream()
    wire.client.connect(wire.send)
    request = wire.asked()
    assert (request.op, xs.split_strings(request.payload)) == (xs.Op.WATCH, ["/w", "/w"])
    wire.client.received(request.acknowledge())
    event = xs.watch_event("/w/child", "/w")
    assert event is not None
    wire.client.received(event)
    assert seen == ["/w/child"]


def test_half_an_answer_of_the_old_stream_is_forgotten() -> None:
    wire, found = Wire(), []

    async def work() -> None:
        found.append(await wire.client.read("/a"))

    wire.client.start(work())
    wire.client.received(wire.asked().reply(b"old")[:10])
    wire.client.connect(wire.send)
    wire.client.start(work())
    wire.answer(b"new")
    assert found == [b"new"]


def test_a_transaction_is_tried_again_when_it_was_disturbed() -> None:
    wire, tries = Wire(), []

    async def body(tx_id: int) -> None:
        tries.append(tx_id)

    wire.client.start(wire.client.transaction(body))
    wire.answer(b"7\0")
    end = wire.asked()
    assert (end.op, end.tx_id) == (xs.Op.TRANSACTION_END, 7)
    wire.client.received(end.error(E.AGAIN))
    wire.answer(b"8\0")
    wire.answer(b"OK\0")
    assert (tries, wire.sent) == ([7, 8], [])


def test_a_pause_ends_once_also_if_that_is_before_anybody_waits() -> None:
    wire, steps = Wire(), []

    async def work(early: bool) -> None:
        pause = Pause()
        if early:
            pause.resume()
        else:
            pauses.append(pause)
        await pause
        steps.append(early)

    pauses: list[Pause] = []
    wire.client.start(work(True))
    wire.client.start(work(False))
    assert steps == [True]
    pauses[0].resume()
    assert steps == [True, False]
