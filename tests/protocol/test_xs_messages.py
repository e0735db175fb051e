"""Xenstore's wire protocol against bytes that Debian's libxenstore 4.17 sent and Linux sends."""

import pytest

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto import xs
from pyxen.proto.xs import Message, MessageStream, Op

GOLDEN = [
    # xenstore-write /a/b hello
    ("0b00000000000000000000000a0000002f612f620068656c6c6f", xs.Write("/a/b", b"hello")),
    # xenstore-read /a/b
    ("020000000000000000000000050000002f612f6200", xs.Read("/a/b")),
    # xenstore-list /a, inside transaction 0x100001
    ("0600000000000000000000000100000000", xs.TransactionStart()),
    ("010000000000000001001000030000002f6100", xs.Directory("/a")),
    ("070000000000000001001000020000005400", xs.TransactionEnd(True)),
    # xenstore-chmod /a/b n0 r5
    ("0e00000000000000020010000b0000002f612f62006e3000723500", xs.SetPerms("/a/b", ("n0", "r5"))),
    # xenstore-watch /a
    ("040000000000000000000000060000002f61002f6100", xs.Watch("/a", "/a")),
    # xenstore-rm /a/b
    ("0d0000000000000003001000050000002f612f6200", xs.Rm("/a/b")),
    # A Linux guest: XS_RESET_WATCHES with an empty string, request 7
    ("1500000007000000000000000100000000", xs.ResetWatches()),
    # A Linux guest: UNWATCH, request 9; its tokens are addresses in hexadecimal
    ("0500000009000000000000000b0000006465766963650046463100", xs.Unwatch("device", "FF1")),
]


def whole(data: bytes) -> list[Message]:
    stream = MessageStream()
    stream.feed(data)
    return list(stream)


def bytewise(data: bytes) -> list[Message]:
    stream = MessageStream()
    messages = []
    for index in range(len(data)):
        stream.feed(data[index : index + 1])
        messages += list(stream)
    return messages


@pytest.mark.parametrize(("data", "request_"), GOLDEN, ids=lambda v: type(v).__name__)
def test_golden_request_is_understood_however_it_arrives(data: str, request_: xs.Request) -> None:
    raw = bytes.fromhex(data)
    for read in (whole, bytewise):
        (message,) = read(raw)
        assert xs.parse_request(message) == request_
    s = MessageStream()
    assert not s.incomplete
    s.feed(raw + raw[:11])
    assert xs.parse_request(next(iter(s))) == request_
    assert s.next_message() is None
    assert s.incomplete
    s.feed(raw[11:])
    assert [xs.parse_request(m) for m in s] == [request_]
    assert not s.incomplete


@pytest.mark.parametrize(("data", "request_"), GOLDEN, ids=lambda v: type(v).__name__)
def test_truncated_message_is_not_a_message(data: str, request_: xs.Request) -> None:
    raw = bytes.fromhex(data)
    for size in range(len(raw)):
        assert whole(raw[:size]) == []


@pytest.mark.parametrize(("data", "request_"), GOLDEN, ids=lambda v: type(v).__name__)
def test_request_packs_to_the_same_bytes(data: str, request_: xs.Request) -> None:
    raw = bytes.fromhex(data)
    (message,) = whole(raw)
    assert xs.request_message(request_, message.req_id, message.tx_id).pack() == raw


@pytest.mark.parametrize(
    "request_",
    [
        xs.Mkdir("/a"),
        xs.GetPerms("/a"),
        xs.DirectoryPart("/a", 17),
        xs.Watch("/a", "t", 3),
        xs.TransactionEnd(False),
        xs.Introduce(5, 0x1001, 3),
        xs.SetTarget(5, 6),
        xs.Release(5),
        xs.GetDomainPath(5),
        xs.IsDomainIntroduced(5),
        xs.Resume(5),
        xs.Control(("quota", "set", "nodes", "7")),
        xs.Write("/bin", bytes(range(256))),
        xs.Write("/empty", b""),
    ],
    ids=lambda v: type(v).__name__,
)
def test_round_trip(request_: xs.Request) -> None:
    assert xs.parse_request(xs.request_message(request_, 1)) == request_


@pytest.mark.parametrize(
    ("op", "payload", "errno"),
    [
        (Op.READ, b"", E.INVAL),
        (Op.READ, b"/a", E.INVAL),
        (Op.READ, b"/a\0/b\0", E.INVAL),
        (Op.WRITE, b"/a", E.INVAL),
        (Op.WATCH, b"/a\0", E.INVAL),
        (Op.WATCH, b"/a\0t\0-1\0", E.INVAL),
        (Op.WATCH, b"/a\0t\x001\x002\0", E.INVAL),
        (Op.UNWATCH, b"/a\0t\0x\0", E.INVAL),
        (Op.TRANSACTION_END, b"X\0", E.INVAL),
        (Op.TRANSACTION_END, b"", E.INVAL),
        (Op.SET_PERMS, b"/a\0", E.INVAL),
        (Op.SET_PERMS, b"", E.INVAL),
        (Op.INTRODUCE, b"1\x002\0", E.INVAL),
        (Op.INTRODUCE, b"1\x002\x000\0", E.INVAL),
        (Op.RELEASE, b"one\0", E.INVAL),
        (Op.RELEASE, b"65536\0", E.INVAL),
        (Op.DIRECTORY_PART, b"/a\0", E.INVAL),
        (Op.DIRECTORY_PART, b"/a\0-1\0", E.INVAL),
        (Op.CONTROL, b"", E.INVAL),
        (Op.WATCH_EVENT, b"/a\0t\0", E.NOSYS),
        (Op.ERROR, b"EINVAL\0", E.NOSYS),
        (20, b"\0", E.NOSYS),
        (23, b"\0", E.NOSYS),
        (0xFFFF, b"\0", E.NOSYS),
    ],
)
def test_malformed_request_is_refused_but_the_stream_goes_on(
    op: int, payload: bytes, errno: E
) -> None:
    good = xs.request_message(xs.Read("/a"), 2).pack()
    bad, after = whole(Message(op, 1, 0, payload).pack() + good)
    with pytest.raises(XenError) as caught:
        xs.parse_request(bad)
    assert caught.value.errno == errno
    assert xs.parse_request(after) == xs.Read("/a")


def test_payload_over_the_limit_breaks_the_stream_for_good() -> None:
    stream = MessageStream()
    stream.feed(xs.request_message(xs.Read("/a"), 1).pack())
    stream.feed(xs.HEADER.pack(Op.WRITE, 2, 0, 4097))
    assert stream.next_message() is not None
    for _ in range(2):
        with pytest.raises(xs.RemoteProtocolError):
            stream.next_message()
    limit = Message(Op.WRITE, 1, 0, b"x" * 4096)
    assert whole(limit.pack()) == [limit]
    with pytest.raises(xs.LocalProtocolError):
        Message(Op.WRITE, 1, 0, b"x" * 4097).pack()


def test_replies_carry_the_numbers_of_their_request() -> None:
    request = Message(Op.READ, 0x1234, 0x77, b"/a\0")
    assert whole(request.reply(b"v")) == [Message(Op.READ, 0x1234, 0x77, b"v")]
    assert whole(request.acknowledge()) == [Message(Op.READ, 0x1234, 0x77, b"OK\0")]
    assert whole(request.error(E.AGAIN)) == [Message(Op.ERROR, 0x1234, 0x77, b"EAGAIN\0")]
    assert whole(request.error(E.SRCH)) == [Message(Op.ERROR, 0x1234, 0x77, b"EINVAL\0")]
    assert whole(request.reply(b"x" * 4097)) == [Message(Op.ERROR, 0x1234, 0x77, b"E2BIG\0")]
    assert xs.reply_payload(Message(Op.READ, 1, 0, b"v")) == b"v"
    for errno in xs.WIRE_ERRORS:
        with pytest.raises(XenError) as caught:
            xs.reply_payload(whole(request.error(errno))[0])
        assert caught.value.errno == errno


def test_watch_event() -> None:
    data = xs.watch_event("/a", "token")
    assert data is not None
    assert whole(data) == [Message(Op.WATCH_EVENT, 0, 0, b"/a\0token\0")]
    assert xs.watch_event("/" + "a" * 3000, "t" * 1100) is None


@pytest.mark.parametrize(
    "path", ["/", "/a", "/a/b-c_D/9", "/@releaseDomain", "/local/domain/1/" + "x" * 2048]
)
def test_valid_path(path: str) -> None:
    xs.check_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "//",
        "/a/",
        "/a//b",
        "/a b",
        "/a+b",
        "/ä",
        "/a\n",
        "/a\0",
        "/" + "x" * 2048,
        "/local/domain/1/" + "x" * 2049,
        "/local/domain/123456/" + "x" * 2040,
    ],
)
def test_invalid_path(path: str) -> None:
    with pytest.raises(XenError):
        xs.check_path(path)
