"""Locks on images, the same as QEMU's, so that any QEMU on the host and pyxen see each other.

Each permission is a byte of the file. Who has permission N holds a shared lock on byte 100 + N,
who does not let others have it one on byte 200 + N. The locks are those of an open file
description: they end with it. Source: QEMU, block/file-posix.c and include/block/block-common.h.

A disk that a guest can write is for nobody else, not even to be read, as in Xen's block script.
Read-only disks share with each other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyxen.paths import Paths

_HAS_BASE: Final = 100
_DENIES_BASE: Final = 200
_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE = range(4)
_READER: Final = ({_CONSISTENT_READ}, {_WRITE, _RESIZE})
_WRITER: Final = (
    {_CONSISTENT_READ, _WRITE},
    {_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE},
)
"""What it may do, what it does not let others do."""

_FLOCK = struct.Struct("=hhxxxxqqixxxx")
"""struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid."""

PATIENCE_S: Final = 2.0
"""How long to wait for a holder that may be about to end, as a guest's that was just destroyed."""
_AGAIN_S: Final = 0.05


class Holder(NamedTuple):
    """A process that has an image locked."""

    pid: int
    command: str
    parent: int

    def __str__(self) -> str:
        if os.getpid() in (self.pid, self.parent):
            return "another disk of the same domain"
        return f"process {self.pid} ({self.command})"


class Locked(Exception):
    """Somebody else has the image."""


def lock_image(fd: int, *, read_only: bool) -> None:
    """Lock an open image for as long as its file description is open.

    fd: open for reading, at least. Raises: Locked, with no lock held; OSError if its file system
    has no locks.
    """
    has, denies = _READER if read_only else _WRITER
    mine = [_HAS_BASE + n for n in has] + [_DENIES_BASE + n for n in denies]
    others = [_HAS_BASE + n for n in denies] + [_DENIES_BASE + n for n in has]
    try:
        for byte in mine:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))
        # Only when ours can be seen: of two that come at the same time at least one sees the other.
        for byte in others:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
            if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
                raise Locked
    except BaseException as error:
        with contextlib.suppress(OSError):
            for byte in mine:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, byte))
        if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.EACCES):
            raise Locked from None
        raise


def lock_patiently(fd: int, *, read_only: bool, patience_s: float = PATIENCE_S) -> None:
    """As lock_image, and wait a little for a holder that is about to end."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return lock_image(fd, read_only=read_only)
        except Locked:
            if time.monotonic() > deadline:
                raise
        time.sleep(_AGAIN_S)


def holders(path: Path) -> Iterator[Holder]:
    """Processes with a lock on an image, as far as this user may see them."""
    with contextlib.suppress(OSError):
        there = os.stat(path)
        for process in Path("/proc").glob("[0-9]*"):
            if _locks(process, (there.st_dev, there.st_ino)):
                yield _describe(process)


def who_has(path: Path, paths: Paths) -> str:
    """The holders of an image in words: domains by name, other processes by number and command."""
    domains = _domains(paths)
    names = []
    for holder in holders(path):
        domain = domains.get(holder.pid) or domains.get(holder.parent)
        own = os.getpid() in (holder.pid, holder.parent)
        names.append(f"domain {domain}" if domain and not own else str(holder))
    return ", ".join(dict.fromkeys(names)) or "a process that this user may not see"


def _domains(paths: Paths) -> dict[int, str]:
    """Names of domains by the pid of their process, from xend's records."""
    names = {}
    for record in paths.domains.glob("*/domain.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(record.read_text())
            names[int(stored["pid"])] = str(stored["name"])
    return names


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def _locks(process: Path, device_and_inode: tuple[int, int]) -> bool:
    """Whether a process has a file open and holds a lock of QEMU's kind on it."""
    with contextlib.suppress(OSError):
        for fd in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                found = fd.stat()
                if (found.st_dev, found.st_ino) == device_and_inode:
                    info = (process / "fdinfo" / fd.name).read_text()
                    if any(
                        line.startswith("lock:") and "OFDLCK" in line for line in info.split("\n")
                    ):
                        return True
    return False


def _describe(process: Path) -> Holder:
    command, parent = "?", 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        command = (process / "comm").read_text().strip()
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return Holder(int(process.name), command, parent)
