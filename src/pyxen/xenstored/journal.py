"""The journal: what makes an acknowledged change survive the death of its process.

A file of batches, each with its length and checksum; a batch is applied as a whole or not at all.
A batch is written before its request is answered. There is no fsync: a process that is killed does
not take the page cache along, and after the death of the host no domain is left to remember.

When the file has grown well beyond the state it describes, the state is written to a new file that
replaces it by rename: at every moment there is one complete journal under the name.
"""

import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyxen.abi.errno import E
from pyxen.errors import UserError, XenError
from pyxen.xenstored.records import DamagedRecord, Record, pack, unpack_all

_MAGIC = b"pyxen xenstore journal 1\n"
_BATCH = struct.Struct("<II")
_SMALLEST_COMPACTION = 1 << 20
_SNAPSHOT_BATCH = 1 << 16

log = logging.getLogger(__name__)


class Journal:
    """An open journal. `replay` has to be exhausted before the first `append`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = 0
        self._compact_at = _SMALLEST_COMPACTION

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def replay(self) -> Iterator[list[Record]]:
        """The batches of the file in order; afterwards the journal is ready for more.

        A last batch that is not whole was never acknowledged and is cut off. Any other damage is
        kept aside in `<name>.damaged`, and the journal goes on from the last good batch.
        Raises: UserError if the file is no journal.
        """
        data = self._read_all()
        if not data.startswith(_MAGIC):
            if not _MAGIC.startswith(data):
                raise UserError(
                    f"{self.path} is not a xenstore journal",
                    hint="move the file away, or give another path",
                )
            data = _MAGIC
            os.pwrite(self._fd, _MAGIC, 0)
        end = len(_MAGIC)
        for end, records in _batches(data):  # noqa: B007  (the last one's end is needed)
            yield records
        if end < len(data):
            self._cut(data, end)
        self._size = end

    def _read_all(self) -> bytes:
        parts = []
        offset = 0
        while part := os.pread(self._fd, 1 << 20, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _cut(self, data: bytes, end: int) -> None:
        if not _is_torn(data, end):
            aside = self.path.with_name(self.path.name + ".damaged")
            aside.write_bytes(data)
            log.error("%s is damaged at byte %d; a copy is in %s", self.path, end, aside)
        os.ftruncate(self._fd, end)

    def append(self, batch: bytes) -> None:
        """Add a batch of packed records.

        Raises: XenError(EIO) if it cannot be written; then the journal is as it was.
        """
        data = _framed(batch)
        try:
            _write_all(self._fd, data, self._size)
        except OSError as error:
            log.error("%s: %s", self.path, error)
            os.ftruncate(self._fd, self._size)
            raise XenError(E.IO, str(error)) from error
        self._size += len(data)

    @property
    def overgrown(self) -> bool:
        """Whether `compact` is worth while."""
        return self._size >= self._compact_at

    def compact(self, state: Iterable[Record]) -> None:
        """Replace the file by one that holds `state` only.

        A failure leaves the old file in use; it is tried again when the file has doubled.
        """
        new = self.path.with_name(self.path.name + ".new")
        try:
            fd, size = _write_snapshot(new, state)
        except OSError as error:
            log.error("%s: %s", new, error)
            self._compact_at = 2 * self._size
            return
        os.replace(new, self.path)
        os.close(self._fd)
        self._fd = fd
        self._size = size
        self._compact_at = max(_SMALLEST_COMPACTION, 2 * size)


def _framed(batch: bytes) -> bytes:
    return _BATCH.pack(len(batch), zlib.crc32(batch)) + batch


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _write_snapshot(path: Path, state: Iterable[Record]) -> tuple[int, int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(fd, _MAGIC, 0)
        size = len(_MAGIC)
        batch = bytearray()
        for record in state:
            batch += pack(record)
            if len(batch) >= _SNAPSHOT_BATCH:
                framed = _framed(bytes(batch))
                _write_all(fd, framed, size)
                size += len(framed)
                batch.clear()
        framed = _framed(bytes(batch))
        _write_all(fd, framed, size)
    except BaseException:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd, size + len(framed)


def _batches(data: bytes) -> Iterator[tuple[int, list[Record]]]:
    """(offset of its end, records) of each good batch."""
    offset = len(_MAGIC)
    while offset + _BATCH.size <= len(data):
        length, checksum = _BATCH.unpack_from(data, offset)
        batch = data[offset + _BATCH.size : offset + _BATCH.size + length]
        if len(batch) < length or zlib.crc32(batch) != checksum:
            return
        try:
            records = unpack_all(batch)
        except (DamagedRecord, XenError):
            return
        offset += _BATCH.size + length
        yield offset, records


def _is_torn(data: bytes, end: int) -> bool:
    """Whether what stands at `end` is the beginning of one batch and nothing else."""
    if end + _BATCH.size > len(data):
        return True
    length, _ = _BATCH.unpack_from(data, end)
    return end + _BATCH.size + int(length) > len(data)
