"""The guest's xenstore ring: back pressure both ways, a broken guest, a new xenstored."""

from __future__ import annotations

import random
import struct

import pytest

from pyxen.abi.io.xs_wire import XENSTORE_RING_SIZE, XenstoreDomainInterface
from pyxen.backend.xenstore.device import BACKLOG_BYTES, OUTSTANDING_REQUESTS, XenstoreRing
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.types import Mfn

MFN = Mfn(XEN_PAGES + 2)
PAGE = MFN << 12
AT = XenstoreDomainInterface.OFFSET
SIZE = XENSTORE_RING_SIZE
U32 = (1 << 32) - 1
READ, WATCH_EVENT = 2, 15


def message(req_id: int, body: bytes = b"x\0", op: int = READ) -> bytes:
    return struct.pack("<4I", op, req_id, 0, len(body)) + body


class Guest:
    """The guest's end, and a stream on the other side."""

    def __init__(self, memory: MachineMemory) -> None:
        self.memory = memory
        self.events = 0
        self.sent = bytearray()
        self.held: list[bool] = []
        self.ring = XenstoreRing(memory, MFN, self._event)

    def _event(self) -> None:
        self.events += 1

    def connect(self) -> None:
        self.ring.connect(self.send, self.held.append)

    def send(self, data: bytes) -> None:
        self.sent += data

    def index(self, name: str) -> int:
        return self.memory.dwords[(PAGE + AT[name]) >> 2]

    def set_index(self, name: str, value: int) -> None:
        self.memory.dwords[(PAGE + AT[name]) >> 2] = value & U32

    def ask(self, data: bytes) -> int:
        """Put as much of a request as fits, and send an event; how much it was."""
        cons, prod = self.index("req_cons"), self.index("req_prod")
        count = min(len(data), SIZE - (prod - cons & U32))
        for n in range(count):
            self.memory.bytes[PAGE + AT["req"] + (prod + n) % SIZE] = data[n]
        self.set_index("req_prod", prod + count)
        self.ring.notified()
        return count

    def ask_all(self, data: bytes) -> None:
        while data:
            done = self.ask(data)
            assert done, "the ring is stuck"
            data = data[done:]

    def answers(self) -> bytes:
        """Take the replies that are there, and send an event."""
        cons, prod = self.index("rsp_cons"), self.index("rsp_prod")
        count = prod - cons & U32
        assert count <= SIZE
        data = bytes(self.memory.bytes[PAGE + AT["rsp"] + (cons + n) % SIZE] for n in range(count))
        self.set_index("rsp_cons", prod)
        self.ring.notified()
        return data

    def all_answers(self) -> bytes:
        got = b""
        while piece := self.answers():
            got += piece
        return got


@pytest.fixture
def guest(memory: MachineMemory) -> Guest:
    made = Guest(memory)
    made.connect()
    return made


def test_requests_and_replies(guest: Guest) -> None:
    guest.ask(message(1))
    assert guest.sent == message(1)
    assert guest.events == 1
    guest.ring.received(message(1, b"value"))
    assert guest.answers() == message(1, b"value")


@pytest.mark.parametrize("step", [1, 3, 16, 1000])
def test_whole_messages_only(guest: Guest, step: int) -> None:
    data = b"".join(message(n, bytes(n)) for n in range(30))
    for at in range(0, len(data), step):
        guest.ask_all(data[at : at + step])
        assert len(guest.sent) == 0 or data.startswith(bytes(guest.sent))
    assert guest.sent == data
    replies = b"".join(message(n, b"y" * n) for n in range(30))
    for at in range(0, len(replies), step):
        guest.ring.received(replies[at : at + step])
    assert guest.all_answers() == replies


def test_a_message_longer_than_the_ring(guest: Guest) -> None:
    guest.ask_all(message(1, bytes(4096)))
    assert guest.sent == message(1, bytes(4096))
    guest.ring.received(message(1, b"z" * 4000))
    assert guest.all_answers() == message(1, b"z" * 4000)


def test_a_guest_that_asks_faster_than_it_is_answered(guest: Guest) -> None:
    taken = 0
    for n in range(1000):
        taken += guest.ask(message(n, b""))
    most = OUTSTANDING_REQUESTS + SIZE // 16
    assert len(guest.sent) // 16 <= most
    assert taken <= (most + SIZE // 16) * 16, "the rest waits in the guest"
    outstanding = len(guest.sent) // 16
    for n in range(outstanding):
        guest.ring.received(message(n, b""))
        guest.all_answers()
    assert len(guest.sent) // 16 > outstanding, "and goes on without another event"


def test_a_guest_that_takes_no_replies(guest: Guest) -> None:
    event = message(0, b"path\0token\0".ljust(1000, b"x"), WATCH_EVENT)
    received = 0
    while not guest.held:
        guest.ring.received(event)
        received += 1
        assert received < 200
    assert guest.held == [True]
    assert BACKLOG_BYTES - 2000 < received * len(event) < BACKLOG_BYTES + SIZE + 2000
    guest.ask(message(5))
    assert not guest.sent, "nor are its requests taken"
    assert guest.all_answers() == event * received
    assert guest.held == [True, False]
    assert guest.sent == message(5)


def test_without_a_stream_requests_wait_in_the_ring(memory: MachineMemory) -> None:
    guest = Guest(memory)
    guest.ask(message(1))
    assert guest.index("req_cons") == 0
    guest.connect()
    assert guest.sent == message(1)


def test_a_new_stream_gets_what_was_not_answered(guest: Guest) -> None:
    for n in (1, 2, 3):
        guest.ask(message(n))
    guest.ring.received(message(2, b"two") + message(1, b"one")[:10])
    guest.ring.disconnect(guest.send)
    guest.ask(message(4))
    guest.sent.clear()
    guest.connect()
    assert guest.sent == message(1) + message(3) + message(4)
    guest.ring.received(message(1, b"uno"))
    assert guest.all_answers() == message(2, b"two") + message(1, b"uno")


def test_an_old_stream_that_ends_late(guest: Guest) -> None:
    """The new one is connected already."""
    newer = bytearray()
    guest.ring.connect(newer.extend, lambda held: None)
    guest.ring.disconnect(guest.send)
    guest.ask(message(1))
    assert (newer, guest.sent) == (message(1), b"")


def test_an_old_stream_that_was_held(guest: Guest) -> None:
    while not guest.held:
        guest.ring.received(message(0, bytes(1000), WATCH_EVENT))
    guest.ring.disconnect(guest.send)
    guest.all_answers()
    assert guest.held == [True]
    guest.connect()
    assert guest.held == [True], "a new one is not held"


@pytest.mark.parametrize("req_prod", [SIZE + 1, 1 << 31, U32])
def test_broken_indices_end_the_conversation(guest: Guest, req_prod: int) -> None:
    guest.set_index("req_prod", req_prod)
    guest.ring.notified()
    assert guest.ring.broken
    guest.set_index("req_prod", 0)
    guest.ask(message(1))
    assert not guest.sent
    for _ in range(1000):
        guest.ring.received(message(0, bytes(1000), WATCH_EVENT))
    assert not guest.ring.congested, "nothing is kept for it"


def test_a_message_that_is_too_long(guest: Guest) -> None:
    guest.ask(struct.pack("<4I", READ, 1, 0, 4097))
    assert guest.ring.broken


def test_an_event_without_news_is_not_answered(guest: Guest) -> None:
    guest.ring.notified()
    assert guest.events == 0


def test_any_bytes_and_indices(guest: Guest) -> None:
    rng = random.Random(9)
    for _ in range(300):
        for _ in range(20):
            if rng.random() < 0.2:
                name = rng.choice(("req_cons", "req_prod", "rsp_cons", "rsp_prod"))
                guest.set_index(name, rng.getrandbits(rng.choice((4, 10, 32))))
            else:
                guest.ask(rng.randbytes(rng.randrange(1, 40)))
            guest.ring.received(message(rng.randrange(9), bytes(rng.randrange(50))))
        guest.ring = XenstoreRing(guest.memory, MFN, lambda: None)
        guest.memory.zero_page(MFN)
        guest.connect()
    assert not any(guest.memory.read(PAGE + 4096, 4096))
