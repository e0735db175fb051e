"""Requests that xenstored's death left unanswered are repeated, whole and in order."""

import pytest

from pyxen.proto import xs
from pyxen.proto.xs_replay import UnansweredRequests


def ask(req_id: int, path: str = "/a") -> bytes:
    return xs.request_message(xs.Read(path), req_id).pack()


def answer(req_id: int) -> bytes:
    return xs.Message(xs.Op.READ, req_id, 0, b"v").pack()


def test_only_unanswered_requests_are_repeated_in_order() -> None:
    link = UnansweredRequests()
    data = ask(1) + ask(2) + ask(3)
    assert link.from_guest(data) == data
    assert link.from_xenstored(answer(2)) == answer(2)
    assert link.outstanding == 2
    assert link.reconnected() == ask(1) + ask(3)
    assert link.from_xenstored(answer(1) + answer(3)) == answer(1) + answer(3)
    assert link.reconnected() == b""


def test_equal_numbers_are_answered_in_order() -> None:
    link = UnansweredRequests()
    link.from_guest(ask(0, "/first") + ask(0, "/second"))
    link.from_xenstored(answer(0))
    assert link.reconnected() == ask(0, "/second")


def test_halves_of_messages_wait_and_half_an_answer_is_forgotten() -> None:
    link = UnansweredRequests()
    assert link.from_guest(ask(1)[:10]) == b""
    assert link.reconnected() == b""
    assert link.from_guest(ask(1)[10:]) == ask(1)
    assert link.from_xenstored(answer(1)[:5]) == b""
    assert link.reconnected() == ask(1)
    assert link.from_xenstored(answer(1)) == answer(1)


def test_events_answer_nothing() -> None:
    link = UnansweredRequests()
    link.from_guest(ask(0))
    event = xs.watch_event("/a", "t")
    assert event is not None
    assert link.from_xenstored(event) == event
    assert link.outstanding == 1


def test_broken_guest_is_reported() -> None:
    with pytest.raises(xs.RemoteProtocolError):
        UnansweredRequests().from_guest(xs.HEADER.pack(xs.Op.READ, 0, 0, 5000))
