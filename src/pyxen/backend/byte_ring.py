"""Byte rings in a page shared with the guest: consoles and xenstore.

Source: public/io/console.h, public/io/xs_wire.h. The indices are free-running 32-bit numbers that
the guest may set to anything: each is read once, and their distance checked against the size.
"""

from __future__ import annotations

from pyxen.memory.machine import MachineMemory
from pyxen.types import U32


class RingBroken(Exception):
    """The guest's indices are further apart than the ring is long."""


class ByteRing:
    """One direction: `size` bytes (a power of two) and a pair of indices, by machine address."""

    def __init__(
        self, memory: MachineMemory, data: int, size: int, consumer: int, producer: int
    ) -> None:
        self._memory = memory
        self._data = data
        self._size = size
        self._consumer = consumer >> 2
        self._producer = producer >> 2

    def _used(self) -> tuple[int, int, int]:
        cons, prod = self._memory.dwords[self._consumer], self._memory.dwords[self._producer]
        used = (prod - cons) & U32
        if used > self._size:
            raise RingBroken(f"producer {prod:#x}, consumer {cons:#x}, size {self._size}")
        return cons, prod, used

    def take(self, limit: int | None = None) -> bytes:
        """Consume what the guest produced, `limit` bytes at most. Raises: RingBroken."""
        cons, _, used = self._used()
        count = used if limit is None else min(used, limit)
        start = cons & (self._size - 1)
        first = min(count, self._size - start)
        at = self._data
        data = self._memory.read(at + start, first) + self._memory.read(at, count - first)
        if count:
            self._memory.dwords[self._consumer] = (cons + count) & U32
        return data

    def put(self, data: bytes | bytearray) -> int:
        """Produce as much of `data` as fits; returns how many bytes. Raises: RingBroken."""
        _, prod, used = self._used()
        count = min(len(data), self._size - used)
        start = prod & (self._size - 1)
        first = min(count, self._size - start)
        memory = self._memory.bytes
        memory[self._data + start : self._data + start + first] = data[:first]
        memory[self._data : self._data + count - first] = data[first:count]
        if count:
            self._memory.dwords[self._producer] = (prod + count) & U32
        return count

    def skip_all(self) -> None:
        """Consume whatever the producer index says, unread: what is left of a broken ring."""
        self._memory.dwords[self._consumer] = self._memory.dwords[self._producer]
