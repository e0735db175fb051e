"""What waits for a client that reads slowly."""

from pyxen.xenstored.outbox import EVENT_BACKLOG_BYTES, Outbox


class Slow:
    """A transport that takes `room` more messages."""

    def __init__(self) -> None:
        self.room = 0
        self.sent: list[bytes] = []
        self.told: list[str] = []
        self.outbox = Outbox(
            self._write,
            lambda: self.room == 0,
            lambda: self.told.append("backlog"),
            lambda: self.told.append("overflow"),
        )

    def _write(self, data: bytes) -> None:
        assert self.room > 0
        self.room -= 1
        self.sent.append(data)


def test_everything_arrives_in_order() -> None:
    slow = Slow()
    slow.room = 1
    for number in range(5):
        slow.outbox.reply(b"r%d" % number)
        slow.outbox.event(b"e%d" % number)
    slow.room = 3
    slow.outbox.flush()
    slow.outbox.reply(b"last")
    slow.room = 100
    slow.outbox.flush()
    expected = [b"%c%d" % (kind, number) for number in range(5) for kind in b"re"]
    assert slow.sent == [*expected, b"last"]
    assert slow.told == ["backlog"]
    assert slow.outbox.waiting == 0


def test_an_event_that_waits_already_is_not_queued_again() -> None:
    slow = Slow()
    for _ in range(3):
        slow.outbox.event(b"same")
        slow.outbox.reply(b"reply")
        slow.outbox.event(b"@special", special=True)
    slow.room = 100
    slow.outbox.flush()
    assert slow.sent.count(b"same") == 1
    assert slow.sent.count(b"reply") == slow.sent.count(b"@special") == 3
    slow.outbox.event(b"same")
    slow.room = 0
    slow.outbox.event(b"same")
    assert slow.sent.count(b"same") == 2
    assert slow.outbox.waiting == 1


def test_events_are_bounded_and_replies_are_kept() -> None:
    slow = Slow()
    for number in range(300):
        slow.outbox.event(b"%8192d" % number)
    assert slow.outbox.event_bytes == EVENT_BACKLOG_BYTES
    assert slow.told.count("overflow") == 300 - EVENT_BACKLOG_BYTES // 8192
    slow.outbox.reply(b"reply")
    slow.room = 1000
    slow.outbox.flush()
    assert slow.sent[-1] == b"reply"
    slow.room = 0
    slow.outbox.event(b"again")
    assert slow.outbox.event_bytes == 5
