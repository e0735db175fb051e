"""Xenstore's wire protocol without I/O: framing, typed requests, replies and events.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, TypeAlias

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.types import U32

XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048
HEADER = struct.Struct("<IIII")

DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0


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
    payload = _strings(path, token)
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


# --- payloads -----------------------------------------------------------------------------------


def _strings(*strings: str) -> bytes:
    try:
        return b"".join(s.encode("latin-1") + b"\0" for s in strings)
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"not representable: {error.object!r}") from None


def split_strings(payload: bytes) -> list[str]:
    """The nul-terminated strings of a payload; bytes after the last nul are ignored, as in Xen."""
    return payload.decode("latin-1").split("\0")[:-1]


def _only_string(payload: bytes) -> str:
    if not payload or payload.find(b"\0") != len(payload) - 1:
        raise XenError(E.INVAL, "one string expected")
    return payload[:-1].decode("latin-1")


def _number(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise XenError(E.INVAL, "not a number")
    number = int(text)
    if not low <= number <= high:
        raise XenError(E.INVAL, "number out of range")
    return number


def _domid(text: str) -> int:
    return _number(text, 0, 0xFFFF)


# --- requests -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PathRequest:
    """A request whose payload is one path."""

    OP: ClassVar[Op]
    path: str

    def payload(self) -> bytes:
        """The payload as sent."""
        return _strings(self.path)


class Directory(PathRequest):
    """List the children of a node."""

    __slots__ = ()
    OP = Op.DIRECTORY


class Read(PathRequest):
    """Read a node's value."""

    __slots__ = ()
    OP = Op.READ


class GetPerms(PathRequest):
    """Read a node's permissions."""

    __slots__ = ()
    OP = Op.GET_PERMS


class Mkdir(PathRequest):
    """Create a node unless it exists."""

    __slots__ = ()
    OP = Op.MKDIR


class Rm(PathRequest):
    """Remove a node and everything below it."""

    __slots__ = ()
    OP = Op.RM


@dataclass(frozen=True, slots=True)
class DomainRequest:
    """A request whose payload is one domid."""

    OP: ClassVar[Op]
    domid: int

    def payload(self) -> bytes:
        """The payload as sent."""
        return _strings(str(self.domid))


class Release(DomainRequest):
    """A domain is gone."""

    __slots__ = ()
    OP = Op.RELEASE


class GetDomainPath(DomainRequest):
    """Where is a domain's home?"""

    __slots__ = ()
    OP = Op.GET_DOMAIN_PATH


class IsDomainIntroduced(DomainRequest):
    """Is xenstore in communication with a domain?"""

    __slots__ = ()
    OP = Op.IS_DOMAIN_INTRODUCED


class Resume(DomainRequest):
    """Report the next shutdown of a domain again."""

    __slots__ = ()
    OP = Op.RESUME


@dataclass(frozen=True, slots=True)
class DirectoryPart:
    """List the children of a node from a byte offset on."""

    OP: ClassVar[Op] = Op.DIRECTORY_PART
    path: str
    offset: int

    def payload(self) -> bytes:
        """The payload as sent."""
        return _strings(self.path, str(self.offset))


@dataclass(frozen=True, slots=True)
class Write:
    """Set a node's value, creating the node and its parents where they are missing."""

    OP: ClassVar[Op] = Op.WRITE
    path: str
    value: bytes

    def payload(self) -> bytes:
        """The payload as sent."""
        return _strings(self.path) + self.value


@dataclass(frozen=True, slots=True)
class SetPerms:
    """Set the permissions of a node; `perms` are strings such as `n0`, `r5`."""

    OP: ClassVar[Op] = Op.SET_PERMS
    path: str
    perms: tuple[str, ...]

    def payload(self) -> bytes:
        """The payload as sent."""
        return _strings(self.path, *self.perms)


@dataclass(frozen=True, slots=True)
class Watch:
    """Ask for events below a path, at most `depth` levels below it."""

    OP: ClassVar[Op] = Op.WATCH
    path: str
    token: str
    depth: int | None = None

    def payload(self) -> bytes:
        """The payload as sent."""
        limit = () if self.depth is None else (str(self.depth),)
        return _strings(self.path, self.token, *limit)


@dataclass(frozen=True, slots=True)
class Unwatch:
    """Take a watch back."""

    OP: ClassVar[Op] = Op.UNWATCH
    path: str
    token: str

    def payload(self) -> bytes:
        """The payload as sent."""
        return _strings(self.path, self.token)


@dataclass(frozen=True, slots=True)
class ResetWatches:
    """Take all watches back and abandon all transactions."""

    OP: ClassVar[Op] = Op.RESET_WATCHES

    def payload(self) -> bytes:
        """The payload as sent."""
        return b"\0"


@dataclass(frozen=True, slots=True)
class TransactionStart:
    """Open a transaction; the reply is its number."""

    OP: ClassVar[Op] = Op.TRANSACTION_START

    def payload(self) -> bytes:
        """The payload as sent."""
        return b"\0"


@dataclass(frozen=True, slots=True)
class TransactionEnd:
    """Commit or abandon the transaction of the header."""

    OP: ClassVar[Op] = Op.TRANSACTION_END
    commit: bool

    def payload(self) -> bytes:
        """The payload as sent."""
        return b"T\0" if self.commit else b"F\0"


@dataclass(frozen=True, slots=True)
class Introduce:
    """A domain is there, with its ring in frame `gfn` and an unbound port."""

    OP: ClassVar[Op] = Op.INTRODUCE
    domid: int
    gfn: int
    port: int

    def payload(self) -> bytes:
        """The payload as sent."""
        return _strings(str(self.domid), str(self.gfn), str(self.port))


@dataclass(frozen=True, slots=True)
class SetTarget:
    """`domid` may do what `target` may."""

    OP: ClassVar[Op] = Op.SET_TARGET
    domid: int
    target: int

    def payload(self) -> bytes:
        """The payload as sent."""
        return _strings(str(self.domid), str(self.target))


@dataclass(frozen=True, slots=True)
class Control:
    """A command to the daemon itself."""

    OP: ClassVar[Op] = Op.CONTROL
    arguments: tuple[str, ...]

    def payload(self) -> bytes:
        """The payload as sent."""
        return _strings(*self.arguments)


Request: TypeAlias = (
    PathRequest
    | DomainRequest
    | DirectoryPart
    | Write
    | SetPerms
    | Watch
    | Unwatch
    | ResetWatches
    | TransactionStart
    | TransactionEnd
    | Introduce
    | SetTarget
    | Control
)


def _directory_part(payload: bytes) -> DirectoryPart:
    match split_strings(payload):
        case [path, offset]:
            return DirectoryPart(path, _number(offset, 0, U32))
    raise XenError(E.INVAL, "path and offset expected")


def _write(payload: bytes) -> Write:
    path, nul, value = payload.partition(b"\0")
    if not nul:
        raise XenError(E.INVAL, "path expected")
    return Write(path.decode("latin-1"), value)


def _set_perms(payload: bytes) -> SetPerms:
    path, *perms = split_strings(payload) or [""]
    if not perms:
        raise XenError(E.INVAL, "path and permissions expected")
    return SetPerms(path, tuple(perms))


def _watch(payload: bytes) -> Watch:
    match split_strings(payload):
        case [path, token]:
            return Watch(path, token)
        case [path, token, depth]:
            return Watch(path, token, _number(depth, 0, U32))
    raise XenError(E.INVAL, "path and token expected")


def _unwatch(payload: bytes) -> Unwatch:
    match split_strings(payload):
        case [path, token]:
            return Unwatch(path, token)
    raise XenError(E.INVAL, "path and token expected")


def _transaction_end(payload: bytes) -> TransactionEnd:
    match payload:
        case b"T\0":
            return TransactionEnd(True)
        case b"F\0":
            return TransactionEnd(False)
    raise XenError(E.INVAL, "T or F expected")


def _introduce(payload: bytes) -> Introduce:
    match split_strings(payload):
        case [domid, gfn, port, *_]:
            # The frame is a *signed* decimal; libxenstore prints an unsigned long.
            return Introduce(_domid(domid), _number(gfn, -(1 << 63), U32 << 32), _port(port))
    raise XenError(E.INVAL, "domid, gfn and port expected")


def _port(text: str) -> int:
    return _number(text, 1, U32)


def _set_target(payload: bytes) -> SetTarget:
    match split_strings(payload):
        case [domid, target, *_]:
            return SetTarget(_domid(domid), _domid(target))
    raise XenError(E.INVAL, "two domids expected")


def _control(payload: bytes) -> Control:
    arguments = split_strings(payload)
    if not arguments:
        raise XenError(E.INVAL, "command expected")
    return Control(tuple(arguments))


_PARSERS: dict[int, Callable[[bytes], Request]] = {
    Op.CONTROL: _control,
    Op.DIRECTORY: lambda p: Directory(_only_string(p)),
    Op.READ: lambda p: Read(_only_string(p)),
    Op.GET_PERMS: lambda p: GetPerms(_only_string(p)),
    Op.WATCH: _watch,
    Op.UNWATCH: _unwatch,
    Op.TRANSACTION_START: lambda _: TransactionStart(),
    Op.TRANSACTION_END: _transaction_end,
    Op.INTRODUCE: _introduce,
    Op.RELEASE: lambda p: Release(_domid(_only_string(p))),
    Op.GET_DOMAIN_PATH: lambda p: GetDomainPath(_domid(_only_string(p))),
    Op.WRITE: _write,
    Op.MKDIR: lambda p: Mkdir(_only_string(p)),
    Op.RM: lambda p: Rm(_only_string(p)),
    Op.SET_PERMS: _set_perms,
    Op.IS_DOMAIN_INTRODUCED: lambda p: IsDomainIntroduced(_domid(_only_string(p))),
    Op.RESUME: lambda p: Resume(_domid(_only_string(p))),
    Op.SET_TARGET: _set_target,
    Op.RESET_WATCHES: lambda _: ResetWatches(),
    Op.DIRECTORY_PART: _directory_part,
}


def parse_request(message: Message) -> Request:
    """What a message asks for.

    Raises: XenError(ENOSYS) for a type that nobody may send or that we don't know,
            XenError(EINVAL) for a payload of the wrong shape.
    """
    parser = _PARSERS.get(message.op)
    if parser is None:
        raise XenError(E.NOSYS, f"message type {message.op}")
    return parser(message.payload)


def request_message(request: Request, req_id: int, tx_id: int = 0) -> Message:
    """The message by which a client asks."""
    return Message(request.OP, req_id, tx_id, request.payload())


def reply_payload(reply: Message) -> bytes:
    """The payload of an answer. Raises XenError with the error that an ERROR message names."""
    if reply.op != Op.ERROR:
        return reply.payload
    name = reply.payload.rstrip(b"\0").decode("latin-1")
    raise XenError(_ERROR_BY_NAME.get(name, E.INVAL), name)
