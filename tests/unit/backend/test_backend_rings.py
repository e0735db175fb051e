"""Byte rings and the console: a guest may write anything into the shared page."""

from __future__ import annotations

import random

import pytest

from pyxen.abi.io.console import XenconsInterface
from pyxen.backend.byte_ring import ByteRing, RingBroken
from pyxen.backend.console.device import INPUT_LIMIT_BYTES, Console
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.types import Mfn

MFN = Mfn(XEN_PAGES + 2)
PAGE = MFN << 12
SIZE = 64
DATA, CONS, PROD = PAGE, PAGE + 0x800, PAGE + 0x804
AT = XenconsInterface.OFFSET
U32 = (1 << 32) - 1


@pytest.fixture
def ring(memory: MachineMemory) -> ByteRing:
    return ByteRing(memory, DATA, SIZE, CONS, PROD)


def indices(memory: MachineMemory, cons: int | None = None, prod: int | None = None) -> None:
    if cons is not None:
        memory.dwords[CONS >> 2] = cons
    if prod is not None:
        memory.dwords[PROD >> 2] = prod


# --- rings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 63, 64, 1000, U32 - 63, U32 - 1, U32])
def test_what_goes_in_comes_out_over_every_boundary(
    memory: MachineMemory, ring: ByteRing, start: int
) -> None:
    indices(memory, start, start)
    rng = random.Random(start)
    sent, got = b"", b""
    for _ in range(200):
        piece = rng.randbytes(rng.randrange(0, 90))
        done = ring.put(piece)
        sent += piece[:done]
        got += ring.take(rng.choice((None, 0, 1, 7, 64)))
    got += ring.take()
    assert got == sent
    assert memory.read(PAGE + SIZE, 0x800 - SIZE) == bytes(0x800 - SIZE), "not a byte outside"


def test_a_full_ring_takes_no_more(ring: ByteRing) -> None:
    assert ring.put(bytes(100)) == SIZE
    assert ring.put(b"x") == 0
    assert ring.take(10) == bytes(10)
    assert ring.put(bytes(100)) == 10


def test_an_empty_ring_gives_nothing_and_is_not_touched(
    memory: MachineMemory, ring: ByteRing
) -> None:
    before = memory.read(PAGE, 4096)
    assert ring.take() == b""
    assert ring.put(b"") == 0
    assert memory.read(PAGE, 4096) == before


@pytest.mark.parametrize(
    ("cons", "prod"), [(0, SIZE + 1), (1, 0), (0, U32), (5, 1 << 31), (U32, SIZE)]
)
def test_indices_too_far_apart(memory: MachineMemory, ring: ByteRing, cons: int, prod: int) -> None:
    indices(memory, cons, prod)
    with pytest.raises(RingBroken):
        ring.take()
    with pytest.raises(RingBroken):
        ring.put(b"x")
    ring.skip_all()
    assert ring.take() == b""
    assert ring.put(b"x") == 1


# --- the console ------------------------------------------------------------------------------


class Guest:
    """The guest's end of a console ring."""

    def __init__(self, memory: MachineMemory) -> None:
        self.memory = memory
        self.events = 0
        self.kept = b""
        self.console = Console(memory, MFN, self._event, self._keep)

    def _event(self) -> None:
        self.events += 1

    def _keep(self, data: bytes) -> None:
        self.kept += data

    def index(self, name: str) -> int:
        return self.memory.dwords[(PAGE + AT[name]) >> 2]

    def set_index(self, name: str, value: int) -> None:
        self.memory.dwords[(PAGE + AT[name]) >> 2] = value & U32

    def print(self, data: bytes) -> None:
        """Put output into the ring (it must fit) and send an event."""
        prod = self.index("out_prod")
        for n, byte in enumerate(data):
            self.memory.bytes[PAGE + AT["out"] + (prod + n) % 2048] = byte
        self.set_index("out_prod", prod + len(data))
        self.console.notified()

    def read(self) -> bytes:
        """Take all input."""
        cons, prod = self.index("in_cons"), self.index("in_prod")
        count = (prod - cons) & U32
        assert count <= 1024
        data = bytes(self.memory.bytes[PAGE + AT["in_"] + (cons + n) % 1024] for n in range(count))
        self.set_index("in_cons", prod)
        return data


@pytest.fixture
def guest(memory: MachineMemory) -> Guest:
    return Guest(memory)


def test_output_is_kept_and_shown(guest: Guest) -> None:
    seen: list[bytes] = []
    leave = guest.console.watch(seen.append)
    guest.print(b"hello\n")
    assert (seen, guest.kept, guest.events) == ([b"hello\n"], b"hello\n", 1)
    assert guest.index("out_cons") == guest.index("out_prod") == 6
    leave()
    leave()
    guest.print(b"more")
    assert (seen, guest.kept) == ([b"hello\n"], b"hello\nmore")
    assert guest.console.output_bytes == 10


def test_a_watcher_may_leave_while_it_is_told(guest: Guest) -> None:
    seen: list[str] = []

    def leaving(data: bytes) -> None:
        seen.append("leaving")
        leave()

    leave = guest.console.watch(leaving)
    guest.console.watch(lambda data: seen.append("staying"))
    guest.print(b"1")
    guest.print(b"2")
    assert seen == ["leaving", "staying", "staying"]


def test_an_event_without_news_is_not_answered(guest: Guest) -> None:
    """Or two sides would notify each other for ever."""
    guest.console.notified()
    assert guest.events == 0


def test_input_waits_for_room(guest: Guest) -> None:
    text = bytes(range(256)) * 20
    guest.console.type(text)
    got = b""
    while piece := guest.read():
        got += piece
        guest.console.notified()
    assert got == text
    guest.events = 0
    guest.console.notified()
    assert guest.events == 0


def test_the_backlog_of_input_is_bounded(guest: Guest) -> None:
    for _ in range(20):
        guest.console.type(bytes(16 << 10))
    total = 0
    while piece := guest.read():
        total += len(piece)
        guest.console.notified()
    assert INPUT_LIMIT_BYTES <= total <= INPUT_LIMIT_BYTES + 1024


def test_typing_nothing(guest: Guest) -> None:
    guest.console.type(b"")
    assert guest.events == 0


def test_broken_output_indices(guest: Guest) -> None:
    guest.set_index("out_prod", 5000)
    guest.console.notified()
    assert guest.console.broken_count == 1
    assert guest.kept == b""
    guest.print(b"again")
    assert guest.kept == b"again"


def test_broken_input_indices(guest: Guest) -> None:
    guest.set_index("in_cons", 7)
    guest.console.type(b"text")
    assert guest.console.broken_count == 1
    guest.print(b"still printing")
    guest.set_index("in_cons", guest.index("in_prod"))
    guest.console.notified()
    assert guest.read() == b"text"


def test_any_indices(guest: Guest) -> None:
    rng = random.Random(5)
    names = ("in_cons", "in_prod", "out_cons", "out_prod")
    for _ in range(2000):
        guest.set_index(rng.choice(names), rng.choice((rng.getrandbits(32), rng.randrange(3000))))
        guest.console.type(b"x")
        guest.console.notified()
    before = guest.memory.read(0, PAGE)
    assert not any(before[XEN_PAGES << 12 :]), "nothing beside the page was written"
