"""Everything a guest ever printed, from the first byte, in files of limited size."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LIMIT_BYTES = 1 << 20
TAIL_BYTES = 64 << 10


class ConsoleLog:
    """console.log, and console.log.1 before it when it grew too long; the end is in memory."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._old = path.with_name(path.name + ".1")
        self._limit = limit_bytes
        self._tail = bytearray()
        self._old.unlink(missing_ok=True)
        self._fd = self._open()
        self._size = 0

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)

    def write(self, data: bytes) -> None:
        """Keep some output. A full disk loses the file's part of it, not the guest."""
        self._tail += data
        del self._tail[:-TAIL_BYTES]
        with contextlib.suppress(OSError):
            self._size += os.write(self._fd, data)
            if self._size > self._limit:
                os.replace(self._path, self._old)
                os.close(self._fd)
                self._fd = self._open()
                self._size = 0

    def tail(self, length_bytes: int) -> bytes:
        """The last bytes, TAIL_BYTES at most; begins at a line if it is not the beginning."""
        if length_bytes <= 0:
            return b""
        kept = bytes(self._tail[-length_bytes:])
        if len(kept) < len(self._tail) and b"\n" in kept:
            return kept.partition(b"\n")[2]
        return kept

    def everything(self) -> bytes:
        """All that is kept, oldest first."""
        parts = []
        for path in (self._old, self._path):
            with contextlib.suppress(OSError):
                parts.append(path.read_bytes())
        return b"".join(parts)

    def close(self) -> None:
        """Let go of the file, which stays."""
        os.close(self._fd)
