"""What the block back end asks of the place where a disk's data is.

A storage carries out operations in any order and at the same time; each ends with one call of its
`done`, on the domain's thread, with 0 or an errno. What orders operations (flushes, barriers,
overlaps) is the device's business, in backend/blk/device.py.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Kind(enum.Enum):
    """What an operation does."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"
    SECURE_DISCARD = "secure discard"


@dataclass(slots=True, eq=False)
class Operation:
    """One operation.

    offset, length: bytes; a FLUSH has none. buffers: of a READ or WRITE, parts of the guest's own
    memory in the order of the data, `length` bytes in all. done: called with 0 or an errno.
    """

    kind: Kind
    offset: int
    length: int
    buffers: Sequence[memoryview]
    done: Callable[[int], None]


class Storage(Protocol):
    """An open image. Sizes are bytes. Whoever opens it checks offsets against `size` itself."""

    @property
    def size(self) -> int:
        """How long it is now."""

    @property
    def sector_size(self) -> int:
        """What offsets and lengths are multiples of; 512 at least."""

    @property
    def physical_sector_size(self) -> int:
        """What is written without being read first."""

    @property
    def read_only(self) -> bool:
        """Whether writes and discards are refused."""

    @property
    def discard_granularity(self) -> int:
        """What discards are best multiples of; 0: it cannot discard."""

    @property
    def can_secure_discard(self) -> bool:
        """Whether a secure discard really erases."""

    def submit(self, operation: Operation) -> None:
        """Begin an operation; `done` may be called before this returns. Never raises."""

    def close(self) -> None:
        """Finish what is under way, flush what was written, let the image and its lock go.

        Raises: OSError if what was written may be lost; it is closed all the same.
        """
