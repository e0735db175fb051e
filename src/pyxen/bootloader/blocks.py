"""What an image is read through: an object with a size and `read_at`."""

from __future__ import annotations

import io
import os
import socket
import struct
from typing import Protocol

from pyxen.bootloader.failure import ImageError

SECTOR_BYTES = 512
READ_BYTES_MAX = 1 << 20

NBD_REQUEST_MAGIC = 0x25609513
NBD_SIMPLE_REPLY_MAGIC = 0x67446698
NBD_CMD_READ = 0
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


class Blocks(Protocol):
    """Something that can be read at any place. Sizes and offsets are bytes."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer at the end only. ImageError if it cannot be read."""


class RawFile:
    """A file or block device that is open already."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.lseek(fd, 0, os.SEEK_END)

    def read_at(self, offset: int, length: int) -> bytes:
        """See Blocks."""
        parts = []
        while length > 0 and offset < self.size:
            try:
                part = os.pread(self._fd, min(length, READ_BYTES_MAX), offset)
            except OSError as error:
                raise ImageError(
                    f"the image cannot be read at {offset}: {error.strerror}"
                ) from error
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)


class NbdSocket:
    """An NBD export, on a socket whose handshake is done.

    Source: the NBD protocol, doc/proto.md of NetworkBlockDevice/nbd: simple replies.
    """

    def __init__(self, sock: socket.socket, size: int) -> None:
        self._sock = sock
        self._cookie = 0
        self.size = size

    def read_at(self, offset: int, length: int) -> bytes:
        """See Blocks."""
        end = min(offset + length, self.size)
        parts = []
        while offset < end:
            part = self._read(offset, min(end - offset, READ_BYTES_MAX))
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _read(self, offset: int, length: int) -> bytes:
        self._cookie += 1
        self._sock.sendall(
            _REQUEST.pack(NBD_REQUEST_MAGIC, 0, NBD_CMD_READ, self._cookie, offset, length)
        )
        magic, error, cookie = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != NBD_SIMPLE_REPLY_MAGIC or cookie != self._cookie:
            raise ImageError("the NBD server broke the protocol")
        if error:
            raise ImageError(f"the image cannot be read at {offset}: {os.strerror(error)}")
        return self._receive(length)

    def _receive(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._sock.recv(min(length, READ_BYTES_MAX))
            if not part:
                raise ImageError("the NBD server went away")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


class Window:
    """A part of other blocks: a partition."""

    def __init__(self, of: Blocks, start: int, size: int) -> None:
        self._of = of
        self._start = start
        self.size = max(0, min(size, of.size - start))

    def read_at(self, offset: int, length: int) -> bytes:
        """See Blocks."""
        length = min(length, self.size - offset)
        return self._of.read_at(self._start + offset, length) if length > 0 else b""


class BlocksFile(io.RawIOBase):
    """Blocks as the file object that libraries want."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self._blocks = blocks
        self._at = 0

    def readable(self) -> bool:
        """See io."""
        return True

    def seekable(self) -> bool:
        """See io."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See io."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._blocks.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """See io."""
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """See io; never more than there is."""
        left = max(0, self._blocks.size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        data = self._blocks.read_at(self._at, length)
        self._at += len(data)
        return data

    def get_size(self) -> int:
        """The size, as libyal's libraries ask for it."""
        return self._blocks.size
