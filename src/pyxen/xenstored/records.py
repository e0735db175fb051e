"""What the journal records, and how a record looks as bytes.

A record is a tag, the number of its fields, and the fields, each after its length; numbers are
decimal. The format is private to pyxen.
"""

import struct
from dataclasses import dataclass
from typing import TypeAlias

from pyxen.xenstored.permissions import Perms, parse_perms

_HEAD = struct.Struct("<cB")
_LENGTH = struct.Struct("<I")


class DamagedRecord(Exception):
    """Bytes that are no record."""


@dataclass(frozen=True, slots=True)
class Started:
    """A xenstored began to use the journal; its transaction numbers carry the epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Put:
    """A node was created or changed."""

    path: str
    value: bytes
    perms: Perms


@dataclass(frozen=True, slots=True)
class Removed:
    """A node and all below it went, if it was there."""

    path: str


@dataclass(frozen=True, slots=True)
class Introduced:
    """A domain was introduced, or its ring moved."""

    domid: int
    mfn: int
    port: int


@dataclass(frozen=True, slots=True)
class Released:
    """A domain is gone, with its watches."""

    domid: int


@dataclass(frozen=True, slots=True)
class Targeted:
    """A domain got the rights of another."""

    domid: int
    target: int


@dataclass(frozen=True, slots=True)
class Watched:
    """A guest registered a watch. `prefix` is the length of what its events leave out."""

    domid: int
    path: str
    token: str
    depth: int | None
    prefix: int


@dataclass(frozen=True, slots=True)
class Unwatched:
    """A guest took a watch back."""

    domid: int
    path: str
    token: str


@dataclass(frozen=True, slots=True)
class WatchesReset:
    """A guest took all its watches back."""

    domid: int


@dataclass(frozen=True, slots=True)
class QuotaSet:
    """A limit was changed."""

    name: str
    value: int


Record: TypeAlias = (
    Started
    | Put
    | Removed
    | Introduced
    | Released
    | Targeted
    | Watched
    | Unwatched
    | WatchesReset
    | QuotaSet
)


def _pack(tag: bytes, *fields: bytes) -> bytes:
    parts = [_HEAD.pack(tag, len(fields))]
    for field in fields:
        parts.append(_LENGTH.pack(len(field)))
        parts.append(field)
    return b"".join(parts)


def _text(value: str | int) -> bytes:
    return str(value).encode("latin-1")


def pack_put(path: str, value: bytes, perms: Perms) -> bytes:
    """A Put, without the object: this is the journal's hot path."""
    return _pack(b"P", path.encode("latin-1"), value, " ".join(map(str, perms)).encode())


def pack_removed(path: str) -> bytes:
    """A Removed, without the object."""
    return _pack(b"D", path.encode("latin-1"))


def pack(record: Record) -> bytes:
    """A record as bytes."""
    match record:
        case Started(epoch):
            return _pack(b"E", _text(epoch))
        case Put(path, value, perms):
            return pack_put(path, value, perms)
        case Removed(path):
            return pack_removed(path)
        case Introduced(domid, mfn, port):
            return _pack(b"I", _text(domid), _text(mfn), _text(port))
        case Released(domid):
            return _pack(b"R", _text(domid))
        case Targeted(domid, target):
            return _pack(b"T", _text(domid), _text(target))
        case Watched(domid, path, token, depth, prefix):
            limit = "" if depth is None else depth
            fields = _text(path), _text(token), _text(limit), _text(prefix)
            return _pack(b"W", _text(domid), *fields)
        case Unwatched(domid, path, token):
            return _pack(b"U", _text(domid), _text(path), _text(token))
        case WatchesReset(domid):
            return _pack(b"X", _text(domid))
        case QuotaSet(name, value):
            return _pack(b"Q", _text(name), _text(value))


def unpack_all(data: bytes) -> list[Record]:
    """The records of one batch. Raises DamagedRecord."""
    records: list[Record] = []
    offset = 0
    try:
        while offset < len(data):
            tag, count = _HEAD.unpack_from(data, offset)
            offset += _HEAD.size
            fields = []
            for _ in range(count):
                (length,) = _LENGTH.unpack_from(data, offset)
                offset += _LENGTH.size
                if offset + length > len(data):
                    raise DamagedRecord("field beyond the end")
                fields.append(data[offset : offset + length])
                offset += length
            records.append(_record(tag, fields))
    except (struct.error, ValueError) as error:
        raise DamagedRecord(str(error)) from error
    return records


def _record(tag: bytes, fields: list[bytes]) -> Record:
    text = [f.decode("latin-1") for f in fields]
    match tag, text:
        case b"E", [epoch]:
            return Started(int(epoch))
        case b"P", [path, _, perms]:
            return Put(path, fields[1], parse_perms(perms.split()))
        case b"D", [path]:
            return Removed(path)
        case b"I", [domid, mfn, port]:
            return Introduced(int(domid), int(mfn), int(port))
        case b"R", [domid]:
            return Released(int(domid))
        case b"T", [domid, target]:
            return Targeted(int(domid), int(target))
        case b"W", [domid, path, token, depth, prefix]:
            limit = int(depth) if depth else None
            return Watched(int(domid), path, token, limit, int(prefix))
        case b"U", [domid, path, token]:
            return Unwatched(int(domid), path, token)
        case b"X", [domid]:
            return WatchesReset(int(domid))
        case b"Q", [name, value]:
            return QuotaSet(name, int(value))
    raise DamagedRecord(f"unknown record {tag!r} with {len(fields)} fields")
