"""Xenstore's messages without I/O: framing, answers, events, paths. Requests are in `xs`.

Source: public/io/xs_wire.h (header, limits, message types, error names) and docs/misc/xenstore.txt
(payloads). A message is a header of four little-endian 32-bit words (type, req_id, tx_id, len)
followed by `len` bytes of payload.

Two kinds of error are kept apart. `ProtocolError` means that the byte stream cannot be understood
any more: the connection is lost. `XenError` means that one request is malformed: it is answered
with an ERROR message and the connection goes on.

Strings are decoded as latin-1, so that every byte survives a round trip; which paths are valid is
decided by `check_path`, not by the decoder.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from pyxen.abi.errno import E
from pyxen.errors import XenError

XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048
HEADER = struct.Struct("<IIII")


class Op(IntEnum):
    """enum xsd_sockmsg_type."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


WIRE_ERRORS = frozenset(
    {
        E.INVAL,
        E.ACCES,
        E.EXIST,
        E.ISDIR,
        E.NOENT,
        E.NOMEM,
        E.NOSPC,
        E.IO,
        E.NOTEMPTY,
        E.NOSYS,
        E.ROFS,
        E.BUSY,
        E.AGAIN,
        E.ISCONN,
        E.TOO_BIG,
        E.PERM,
    }
)
"""The errors that clients know by name (xsd_errors); any other is sent as EINVAL."""

_ERROR_BY_NAME = {errno.cname: errno for errno in WIRE_ERRORS}


class ProtocolError(Exception):
    """The stream of messages cannot go on."""


class LocalProtocolError(ProtocolError):
    """We tried to send what the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids; its connection has to be dropped."""


# --- framing ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `op` is a plain int: a peer may send a type that we don't know."""

    op: int
    req_id: int = 0
    tx_id: int = 0
    payload: bytes = b""

    def pack(self) -> bytes:
        """The message as sent. Raises LocalProtocolError for a payload over 4096 bytes."""
        size = len(self.payload)
        if size > XENSTORE_PAYLOAD_MAX:
            raise LocalProtocolError(f"payload of {size} bytes, the limit is 4096")
        return HEADER.pack(self.op, self.req_id, self.tx_id, size) + self.payload

    def reply(self, payload: bytes) -> bytes:
        """The packed answer to this request; one that is too long becomes E2BIG, as in Xen."""
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            return self.error(E.TOO_BIG)
        return HEADER.pack(self.op, self.req_id, self.tx_id, len(payload)) + payload

    def acknowledge(self) -> bytes:
        """The packed answer to a request that has nothing to tell."""
        return self.reply(b"OK\0")

    def error(self, errno: E) -> bytes:
        """The packed ERROR answer to this request."""
        name = errno if errno in WIRE_ERRORS else E.INVAL
        payload = name.cname.encode() + b"\0"
        return HEADER.pack(Op.ERROR, self.req_id, self.tx_id, len(payload)) + payload


def watch_event(path: str, token: str) -> bytes | None:
    """A packed WATCH_EVENT, or None where it would be too long (such events are never sent)."""
    payload = pack_strings(path, token)
    if len(payload) > XENSTORE_PAYLOAD_MAX:
        return None
    return HEADER.pack(Op.WATCH_EVENT, 0, 0, len(payload)) + payload


class MessageStream:
    """Turns a stream of bytes, in pieces of any size, into messages."""

    __slots__ = ("_buffer", "_next")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._next = 0

    def feed(self, data: bytes) -> None:
        """Add bytes that arrived."""
        if self._next:
            del self._buffer[: self._next]
            self._next = 0
        self._buffer += data

    def next_message(self) -> Message | None:
        """The next whole message, or None until more bytes arrive.

        Raises: RemoteProtocolError if the announced payload is over the limit. The stream stays
                broken: every further call raises again.
        """
        start = self._next
        available = len(self._buffer) - start
        if available < HEADER.size:
            return None
        op, req_id, tx_id, size = HEADER.unpack_from(self._buffer, start)
        if size > XENSTORE_PAYLOAD_MAX:
            raise RemoteProtocolError(f"payload of {size} bytes announced, the limit is 4096")
        end = start + HEADER.size + size
        if available < end - start:
            return None
        self._next = end
        return Message(op, req_id, tx_id, bytes(self._buffer[start + HEADER.size : end]))

    def __iter__(self) -> Iterator[Message]:
        while (message := self.next_message()) is not None:
            yield message

    @property
    def incomplete(self) -> bool:
        """Whether the stream ends in the middle of a message."""
        return len(self._buffer) > self._next


def reply_payload(reply: Message) -> bytes:
    """The payload of an answer. Raises XenError with the error that an ERROR message names."""
    if reply.op != Op.ERROR:
        return reply.payload
    name = reply.payload.rstrip(b"\0").decode("latin-1")
    raise XenError(_ERROR_BY_NAME.get(name, E.INVAL), name)


# --- strings --------------------------------------------------------------------------------------


def pack_strings(*strings: str) -> bytes:
    """Strings as they stand in a payload, each with a nul. Raises LocalProtocolError."""
    try:
        return b"".join(s.encode("latin-1") + b"\0" for s in strings)
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"not representable: {error.object!r}") from None


def split_strings(payload: bytes) -> list[str]:
    """The nul-terminated strings of a payload; bytes after the last nul are ignored, as in Xen."""
    return payload.decode("latin-1").split("\0")[:-1]


# --- paths --------------------------------------------------------------------------------------

_PATH = re.compile(r"/(?:[A-Za-z0-9_@-]+(?:/[A-Za-z0-9_@-]+)*)?")
_DOMAIN_PREFIX = re.compile(r"/local/domain/[0-9]{1,5}/")


def domain_path(domid: int) -> str:
    """A domain's home, to which its relative paths refer."""
    return f"/local/domain/{domid}"


def check_path(path: str, longest: int = XENSTORE_REL_PATH_MAX) -> None:
    """Accept an absolute path of a node.

    `longest` counts from the root, or for a path below /local/domain/<n>/ from there on.
    Raises: XenError(EINVAL).
    """
    size = len(path)
    if size > longest:
        prefix = _DOMAIN_PREFIX.match(path)
        if prefix is None or size > longest + prefix.end():
            raise XenError(E.INVAL, "path too long")
    if _PATH.fullmatch(path) is None:
        raise XenError(E.INVAL, "not a path")
