"""Raw images: a regular file or a block device, byte for byte the guest's disk.

Data moves between the file and the guest's memory without a copy in between. What is in the page
cache is read at once (RWF_NOWAIT); everything that may wait for a device is a worker's. So are
writes where the file system cannot promise not to wait, as ext4 cannot.

A flush that failed has lost data, and the kernel says so only once: all later ones fail, too.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from errno import EINVAL, EIO, ENOTSUP
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Final

from pyxen.backend.blk.storage.base import Kind, Operation
from pyxen.backend.blk.storage.workers import Done, Work, Workers
from pyxen.errors import UserError

SECTOR_BYTES: Final = 512
_MAX_BLOCK_BYTES: Final = 4096

# <linux/fs.h>, <linux/falloc.h>
_BLKSSZGET: Final = 0x1268
_BLKPBSZGET: Final = 0x127B
_BLKDISCARD: Final = 0x1277
_BLKSECDISCARD: Final = 0x127D
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_INT = Struct("=i")
_RANGE = Struct("=QQ")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def open_raw(
    path: Path, workers: Workers, *, read_only: bool = False, direct: bool = False
) -> RawStorage:
    """Open an image. direct: bypass the page cache (xl.cfg: direct-io-safe).

    Raises: UserError if it cannot be opened, or is neither a regular file nor a block device.
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
    except OSError as error:
        raise UserError(f"disk {path}: {error.strerror}", _hint(error.errno, direct)) from None
    os.set_blocking(fd, True)  # only the open itself may not wait, for a pipe without a writer
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(fd)
        raise UserError(
            f"disk {path}: neither a regular file nor a block device", "name an image or a device"
        )
    return RawStorage(fd, workers, read_only=read_only, direct=direct)


def _hint(errno: int | None, direct: bool) -> str:
    if errno == EINVAL and direct:
        return "its file system has no direct I/O; leave out `direct-io-safe`"
    return "check the `target` of the disk and its permissions"


class RawStorage:
    """An open image (storage/base.py: Storage)."""

    def __init__(
        self, fd: int, workers: Workers, *, read_only: bool, direct: bool, discard: bool = True
    ) -> None:
        """Take over an open file descriptor. discard: False refuses them (xl.cfg: no-discard)."""
        self._fd = fd
        self._workers = workers
        self._read_only = read_only
        self._is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
        self._nowait = {Kind.READ: not direct, Kind.WRITE: not direct}
        self._under_way = 0
        self._flush_failed = False
        self._sector_size, self._physical_sector_size = self._sector_sizes(direct)
        self._discard_granularity = self._granularity() if discard and not read_only else 0
        self._can_secure_discard = self._is_block and not read_only and _can_erase(fd)

    @property
    def size(self) -> int:
        """How long it is now, in whole sectors; a file may be truncated by others at any time."""
        # Of a file, too: it is asked for each request, and fstat costs five times as much.
        return os.lseek(self._fd, 0, os.SEEK_END) // self._sector_size * self._sector_size

    @property
    def sector_size(self) -> int:
        """512, or what the device or direct I/O ask for."""
        return self._sector_size

    @property
    def physical_sector_size(self) -> int:
        """As the device says; of a file: a block of its file system."""
        return self._physical_sector_size

    @property
    def read_only(self) -> bool:
        """Whether it was opened for reading only."""
        return self._read_only

    @property
    def discard_granularity(self) -> int:
        """Of a file: a block of its file system; 0: no discards."""
        return self._discard_granularity

    @property
    def can_secure_discard(self) -> bool:
        """Whether the device erases."""
        return self._can_secure_discard

    def submit(self, operation: Operation) -> None:
        """Begin an operation (storage/base.py)."""
        kind, done = operation.kind, operation.done
        if kind in self._nowait:
            self._transfer(operation)
        elif kind is Kind.FLUSH:
            self._hand_over(self._flush, done)
        else:
            where = (self._fd, operation.offset, operation.length)
            if not self._is_block:
                self._hand_over(partial(_punch_hole, *where), done)
            else:
                request = _BLKDISCARD if kind is Kind.DISCARD else _BLKSECDISCARD
                self._hand_over(partial(_discard, request, *where), done)

    def close(self) -> None:
        """Wait for what is under way (its `done` is called), flush, and close.

        Raises: OSError if what was written may be lost.
        """
        while self._under_way:
            self._workers.completions.wait()
        try:
            if not self._read_only and (errno := self._flush()):
                raise OSError(errno, os.strerror(errno))
        finally:
            os.close(self._fd)

    # --- operations ---------------------------------------------------------------------------

    def _transfer(self, operation: Operation) -> None:
        """Read or write: at once if that is sure not to wait, else on a worker."""
        kind, buffers, offset = operation.kind, operation.buffers, operation.offset
        call = os.preadv if kind is Kind.READ else os.pwritev
        moved = 0
        if self._nowait[kind]:
            try:
                moved = call(self._fd, buffers, offset, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno == ENOTSUP:
                    self._nowait[kind] = False
                # All other errors come again on the worker.
            if moved == operation.length:
                operation.done(0)
                return
        work = _read if kind is Kind.READ else _write
        self._hand_over(partial(work, self._fd, buffers, offset, moved), operation.done)

    def _flush(self) -> int:
        """Make durable what was written. Blocks."""
        if self._flush_failed:
            return EIO
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            if error.errno == EINVAL:  # nothing that could be flushed
                return 0
            self._flush_failed = True
            raise
        return 0

    def _hand_over(self, work: Work, done: Done) -> None:
        self._under_way += 1
        self._workers.submit(work, partial(self._ended, done))

    def _ended(self, done: Done, errno: int) -> None:
        self._under_way -= 1
        done(errno)

    # --- what it is -----------------------------------------------------------------------------

    def _sector_sizes(self, direct: bool) -> tuple[int, int]:
        if self._is_block:
            return _ask(self._fd, _BLKSSZGET), _ask(self._fd, _BLKPBSZGET)
        block = max(SECTOR_BYTES, min(os.fstat(self._fd).st_blksize, _MAX_BLOCK_BYTES))
        return (_direct_alignment(self._fd) if direct else SECTOR_BYTES), block

    def _granularity(self) -> int:
        if not self._is_block:
            return self._physical_sector_size if _has_holes(self._fd) else 0
        device = os.fstat(self._fd).st_rdev
        queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue")
        if not queue.exists():  # a partition
            queue = queue.parent.parent / "queue"
        try:
            return int((queue / "discard_granularity").read_text())
        except (OSError, ValueError):
            return 0


# --- on a worker ----------------------------------------------------------------------------------


def _read(fd: int, buffers: Sequence[memoryview], offset: int, moved: int) -> int:
    while buffers := _rest(buffers, moved):
        offset += moved
        moved = os.preadv(fd, buffers, offset)
        if not moved:
            return EIO  # truncated since it was checked
    return 0


def _write(fd: int, buffers: Sequence[memoryview], offset: int, moved: int) -> int:
    while buffers := _rest(buffers, moved):
        offset += moved
        moved = os.pwritev(fd, buffers, offset)
        if not moved:
            return EIO
    return 0


def _rest(buffers: Sequence[memoryview], moved: int) -> Sequence[memoryview]:
    """What is left after some bytes."""
    if not moved:
        return buffers
    for n, buffer in enumerate(buffers):
        if moved < len(buffer):
            return [buffer[moved:], *buffers[n + 1 :]]
        moved -= len(buffer)
    return ()


def _punch_hole(fd: int, offset: int, length: int) -> int:
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    return ctypes.get_errno() if _libc.fallocate(fd, mode, offset, length) else 0


def _discard(request: int, fd: int, offset: int, length: int) -> int:
    fcntl.ioctl(fd, request, _RANGE.pack(offset, length))
    return 0


# --- asked once -----------------------------------------------------------------------------------


def _ask(fd: int, request: int) -> int:
    (answer,) = _INT.unpack(fcntl.ioctl(fd, request, bytes(_INT.size)))
    return int(answer)


def _direct_alignment(fd: int) -> int:
    """What offsets and lengths of direct I/O are multiples of, found by trying."""
    with mmap.mmap(-1, _MAX_BLOCK_BYTES) as page, memoryview(page) as view:
        try:
            os.preadv(fd, [view[SECTOR_BYTES : 2 * SECTOR_BYTES]], SECTOR_BYTES)
        except OSError:
            return _MAX_BLOCK_BYTES
    return SECTOR_BYTES


def _has_holes(fd: int) -> bool:
    """Whether holes can be punched, tried behind the end of the file."""
    return _punch_hole(fd, os.fstat(fd).st_size, _MAX_BLOCK_BYTES) == 0


def _can_erase(fd: int) -> bool:
    """BLKSECDISCARD of a range that is not aligned: EINVAL if there is such a thing at all."""
    try:
        fcntl.ioctl(fd, _BLKSECDISCARD, _RANGE.pack(1, 1))
    except OSError as error:
        return error.errno == EINVAL
    return False
