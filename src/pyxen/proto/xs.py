"""Xenstore's requests, typed: what a payload asks for, and the payload that asks for it.

Source: docs/misc/xenstore.txt. A malformed payload raises XenError, which is answered with an ERROR
message; the connection goes on. The names of `xs_wire` are available here too.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto.xs_wire import (
    HEADER,
    WIRE_ERRORS,
    XENSTORE_ABS_PATH_MAX,
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_REL_PATH_MAX,
    LocalProtocolError,
    Message,
    MessageStream,
    Op,
    ProtocolError,
    RemoteProtocolError,
    check_path,
    domain_path,
    pack_strings,
    reply_payload,
    split_strings,
    watch_event,
)
from pyxen.types import U32

__all__ = [
    "DOMID_FIRST_RESERVED",
    "DOMID_SELF",
    "HEADER",
    "WIRE_ERRORS",
    "XENSTORE_ABS_PATH_MAX",
    "XENSTORE_PAYLOAD_MAX",
    "XENSTORE_REL_PATH_MAX",
    "Control",
    "Directory",
    "DirectoryPart",
    "DomainRequest",
    "GetDomainPath",
    "GetPerms",
    "Introduce",
    "IsDomainIntroduced",
    "LocalProtocolError",
    "Message",
    "MessageStream",
    "Mkdir",
    "Op",
    "PathRequest",
    "ProtocolError",
    "Read",
    "Release",
    "RemoteProtocolError",
    "Request",
    "ResetWatches",
    "Resume",
    "Rm",
    "SetPerms",
    "SetTarget",
    "TransactionEnd",
    "TransactionStart",
    "Unwatch",
    "Watch",
    "Write",
    "check_path",
    "domain_path",
    "parse_request",
    "reply_payload",
    "request_message",
    "split_strings",
    "watch_event",
]

DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0


# --- payloads -----------------------------------------------------------------------------------


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
        return pack_strings(self.path)


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
        return pack_strings(str(self.domid))


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
        return pack_strings(self.path, str(self.offset))


@dataclass(frozen=True, slots=True)
class Write:
    """Set a node's value, creating the node and its parents where they are missing."""

    OP: ClassVar[Op] = Op.WRITE
    path: str
    value: bytes

    def payload(self) -> bytes:
        """The payload as sent."""
        return pack_strings(self.path) + self.value


@dataclass(frozen=True, slots=True)
class SetPerms:
    """Set the permissions of a node; `perms` are strings such as `n0`, `r5`."""

    OP: ClassVar[Op] = Op.SET_PERMS
    path: str
    perms: tuple[str, ...]

    def payload(self) -> bytes:
        """The payload as sent."""
        return pack_strings(self.path, *self.perms)


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
        return pack_strings(self.path, self.token, *limit)


@dataclass(frozen=True, slots=True)
class Unwatch:
    """Take a watch back."""

    OP: ClassVar[Op] = Op.UNWATCH
    path: str
    token: str

    def payload(self) -> bytes:
        """The payload as sent."""
        return pack_strings(self.path, self.token)


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
        return pack_strings(str(self.domid), str(self.gfn), str(self.port))


@dataclass(frozen=True, slots=True)
class SetTarget:
    """`domid` may do what `target` may."""

    OP: ClassVar[Op] = Op.SET_TARGET
    domid: int
    target: int

    def payload(self) -> bytes:
        """The payload as sent."""
        return pack_strings(str(self.domid), str(self.target))


@dataclass(frozen=True, slots=True)
class Control:
    """A command to the daemon itself."""

    OP: ClassVar[Op] = Op.CONTROL
    arguments: tuple[str, ...]

    def payload(self) -> bytes:
        """The payload as sent."""
        return pack_strings(*self.arguments)


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
