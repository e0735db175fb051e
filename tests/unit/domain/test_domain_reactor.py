"""The reactor: what wakes the run loop, and what must not wake it again and again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.domain.reactor import Reactor, Timer

PATIENCE_S = 30


class Pipe:
    """A file descriptor that becomes ready, and how often its handler was called."""

    def __init__(self, reactor: Reactor) -> None:
        self.read_end, self.write_end = os.pipe()
        self.got = b""
        self.calls = 0
        reactor.add(self.read_end, self._ready)

    def _ready(self, events: int) -> None:
        self.calls += 1
        self.got += os.read(self.read_end, 100)

    def write(self, data: bytes = b"x") -> None:
        os.write(self.write_end, data)

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


class Engine:
    """Runs until it is kicked, as an engine does."""

    def __init__(self) -> None:
        self.kicked = threading.Event()
        self.kicks = 0

    def kick(self) -> None:
        self.kicks += 1
        self.kicked.set()

    def run(self) -> None:
        assert self.kicked.wait(PATIENCE_S), "nobody kicked"
        self.kicked.clear()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()
    # The knocking thread ends with the process; let it not hold on to what the test used.
    made.kick = lambda: None


@pytest.fixture
def pipe(reactor: Reactor) -> Iterator[Pipe]:
    made = Pipe(reactor)
    yield made
    reactor.remove(made.read_end)
    made.close()


@pytest.fixture
def engine(reactor: Reactor) -> Engine:
    made = Engine()
    reactor.kick = made.kick
    return made


# --- waiting ------------------------------------------------------------------------------------


def test_wait_wakes_on_input(reactor: Reactor, pipe: Pipe) -> None:
    threading.Thread(target=pipe.write).start()
    reactor.wait(None)
    assert pipe.got == b"x"


def test_wait_wakes_at_its_deadline(reactor: Reactor, pipe: Pipe) -> None:
    deadline = time.monotonic_ns() + 2_000_000
    reactor.wait(deadline)
    assert time.monotonic_ns() >= deadline
    assert pipe.calls == 0


@pytest.mark.parametrize("deadline", [-5, 0, 1])
def test_a_deadline_in_the_past(reactor: Reactor, deadline: int) -> None:
    reactor.wait(deadline)


def test_the_last_deadline_does_not_count_any_more(reactor: Reactor, pipe: Pipe) -> None:
    reactor.wait(1)
    threading.Timer(0.01, pipe.write).start()
    reactor.wait(None)
    assert pipe.got == b"x", "only the pipe could wake it"


def test_a_deadline_very_far_away(reactor: Reactor, pipe: Pipe) -> None:
    pipe.write()
    reactor.wait((1 << 64) * 10)
    assert pipe.got == b"x"


def test_a_handler_that_is_removed_by_another(reactor: Reactor) -> None:
    pipes = [os.pipe(), os.pipe()]
    calls = []

    def remove_both(events: int) -> None:
        calls.append(1)
        for read_end, _ in pipes:
            reactor.remove(read_end)

    for read_end, write_end in pipes:
        reactor.add(read_end, remove_both)
        os.write(write_end, b"x")
    reactor.wait(None)
    assert calls == [1]
    for both in pipes:
        for fd in both:
            os.close(fd)


# --- knocking -----------------------------------------------------------------------------------


def test_input_stops_the_engine(reactor: Reactor, pipe: Pipe, engine: Engine) -> None:
    reactor.arm(None)
    pipe.write()
    engine.run()
    assert reactor.attention
    assert pipe.calls == 0, "the loop's thread does the work"
    reactor.poll()
    assert not reactor.attention
    assert pipe.got == b"x"


def test_input_before_the_loop_armed(reactor: Reactor, pipe: Pipe, engine: Engine) -> None:
    pipe.write()
    reactor.arm(None)
    engine.run()
    reactor.poll()
    assert pipe.got == b"x"


def test_a_deadline_stops_the_engine(reactor: Reactor, engine: Engine) -> None:
    reactor.arm(1)
    engine.run()
    assert reactor.attention
    reactor.poll()
    reactor.arm(None)
    assert not reactor.attention


def test_a_new_deadline_while_the_engine_runs(reactor: Reactor, engine: Engine) -> None:
    reactor.arm(None)
    reactor.arm(1)
    engine.run()
    assert reactor.attention


def test_a_lost_kick_is_repeated(reactor: Reactor, pipe: Pipe, engine: Engine) -> None:
    """A kick is lost while the engine is not running."""
    reactor.arm(None)
    pipe.write()
    for _ in range(5):
        engine.run()
    assert reactor.attention
    reactor.poll()


def test_nothing_is_lost_in_many_rounds(reactor: Reactor, pipe: Pipe, engine: Engine) -> None:
    total = 500
    writer = threading.Thread(target=lambda: [pipe.write(b"x") for _ in range(total)])
    writer.start()
    while len(pipe.got) < total:
        reactor.arm(None)
        if not reactor.attention:
            engine.run()
        reactor.poll()
    writer.join()
    assert pipe.got == b"x" * total


def test_no_knocking_while_the_loop_sleeps(reactor: Reactor, pipe: Pipe, engine: Engine) -> None:
    for _ in range(50):
        reactor.arm(None)
        pipe.write()
        engine.run()
        reactor.poll()
        engine.kicks = 0
        engine.kicked.clear()
        # Input that comes while the loop sleeps wakes the loop, not the engine.
        threading.Thread(target=pipe.write).start()
        reactor.wait(None)
        assert engine.kicks <= 1, "one may have been under way"


def test_short_bursts_do_not_wake_the_second_thread(
    reactor: Reactor, pipe: Pipe, engine: Engine
) -> None:
    """An idle guest runs for some microseconds between two sleeps, ten times a second."""
    others = set(threading.enumerate())
    reactor.arm(None)
    pipe.write()
    engine.run()
    reactor.poll()
    (knocker,) = set(threading.enumerate()) - others
    before = settled_switches(knocker)
    for _ in range(100):
        reactor.arm(time.monotonic_ns() + 10**12)
        reactor.poll()
        pipe.write()
        reactor.wait(None)
    assert settled_switches(knocker) - before <= 2


def settled_switches(thread: threading.Thread) -> int:
    """How often a thread has gone to sleep, once it sleeps."""
    status = Path(f"/proc/self/task/{thread.native_id}/status")
    before, now = -1, 0
    while before != now:
        time.sleep(0.02)
        before, now = now, int(status.read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return now


def test_a_later_deadline_while_the_engine_runs_moves_the_timer(
    reactor: Reactor, engine: Engine
) -> None:
    """A vCPU that had to make room soon may block before; the next one's turn is a long one."""
    reactor.arm(time.monotonic_ns() + 20_000_000)
    reactor.arm(time.monotonic_ns() + 10**12)
    assert not engine.kicked.wait(0.1)


def test_the_same_deadline_twice(reactor: Reactor, pipe: Pipe) -> None:
    past = time.monotonic_ns()
    reactor.wait(past)
    reactor.wait(past)
    assert pipe.calls == 0


def test_close_ends_the_loop(reactor: Reactor, engine: Engine) -> None:
    reactor.close()
    assert reactor.closing
    assert reactor.attention
    reactor.poll()
    assert reactor.attention, "it stays"


def test_a_timer_never_set_is_not_ready() -> None:
    import select

    timer = Timer()
    for deadline in (None, 1, None):
        timer.set(deadline)
        ready, _, _ = select.select([timer.fd], [], [], 0)
        assert bool(ready) == (deadline == 1)
    os.close(timer.fd)
