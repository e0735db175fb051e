"""What grant entries said when their use began, and how often they are in use.

Source: struct active_grant_entry of xen/common/grant_table.c, as its behaviour shows to guests.

One record of 16 bytes a reference, shared with the native hot path:

    u16 domid             who uses it
    u16 flags             bit 0: it was a sub-page grant
    u32 mfn
    u16 start, u16 length the bytes of the frame that may be copied
    u8  pins[4]           uses by the host that write, that read, by devices that write, that read

All zero is an entry that nobody uses, so a new table costs nothing.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import Final, NamedTuple

from pyxen.types import U16, Mfn

RECORD_BYTES: Final = 16
_DWORDS: Final = RECORD_BYTES // 4
_MFN, _EXTENT, _PINS = 1, 2, 3
_SUB_PAGE: Final = 1 << 16

HOST_WRITE, HOST_READ, DEVICE_WRITE, DEVICE_READ = range(4)
"""Uses are counted for each of these by itself (GNTPIN_*): its byte in the pins."""
WRITERS: Final = 0xFF << 8 * HOST_WRITE | 0xFF << 8 * DEVICE_WRITE
"""The pins of uses that write."""
MAX_PINS: Final = 128
"""How often an entry can be in use in one way: GNTPIN_incr2oflow_mask refuses the next one."""
_HIGHEST_BIT: Final = 7
_ALL_BUT_HIGHEST: Final = 0x7F7F_7F7F


class Use(NamedTuple):
    """In which ways a grant is used."""

    step: int
    """What it adds to the pins: 1 in the byte of each way."""
    ways: int
    """How many ways that is."""
    writes: bool


def use_of(*, host: bool, device: bool, writes: bool) -> Use:
    """The use by a mapping for the CPU, for devices, or for both."""
    step = 0
    if host:
        step |= 1 << 8 * (HOST_WRITE if writes else HOST_READ)
    if device:
        step |= 1 << 8 * (DEVICE_WRITE if writes else DEVICE_READ)
    return Use(step, host + device, writes and step != 0)


READ = use_of(host=True, device=False, writes=False)
WRITE = use_of(host=True, device=False, writes=True)


class Extent(NamedTuple):
    """Bytes of a frame that may be copied."""

    mfn: Mfn
    start: int
    length: int


class ActiveEntries:
    """The records of one grant table. References must be below `entries`."""

    def __init__(self, entries: int) -> None:
        self._map = mmap.mmap(-1, entries * RECORD_BYTES)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)
        self._dwords = memoryview(self._map).cast("I")

    def pins(self, gref: int) -> int:
        """The four counts, a byte each; 0: nobody uses the entry."""
        return self._dwords[gref * _DWORDS + _PINS]

    def domid(self, gref: int) -> int:
        """Who uses an entry that is in use."""
        return self._dwords[gref * _DWORDS] & U16

    def is_sub_page(self, gref: int) -> bool:
        """Whether an entry in use is for copies only."""
        return bool(self._dwords[gref * _DWORDS] & _SUB_PAGE)

    def mfn(self, gref: int) -> Mfn:
        """The frame of an entry in use."""
        return Mfn(self._dwords[gref * _DWORDS + _MFN])

    def extent(self, gref: int) -> Extent:
        """What may be copied of an entry in use."""
        word = self._dwords[gref * _DWORDS + _EXTENT]
        return Extent(self.mfn(gref), word & U16, word >> 16)

    def counts(self, gref: int) -> tuple[int, int]:
        """How many uses read, and how many write."""
        pins = self.pins(gref).to_bytes(4, "little")
        return pins[HOST_READ] + pins[DEVICE_READ], pins[HOST_WRITE] + pins[DEVICE_WRITE]

    def overflows(self, gref: int, use: Use) -> bool:
        """Whether a use would be one too many."""
        return bool(self.pins(gref) & use.step << _HIGHEST_BIT)

    def record(self, gref: int, domid: int, extent: Extent, *, sub_page: bool) -> None:
        """What the entry says whose first use begins; `pin` must follow."""
        at = gref * _DWORDS
        self._dwords[at] = domid | _SUB_PAGE * sub_page
        self._dwords[at + _MFN] = extent.mfn
        self._dwords[at + _EXTENT] = extent.start | extent.length << 16

    def pin(self, gref: int, use: Use) -> None:
        """One more use."""
        self._dwords[gref * _DWORDS + _PINS] += use.step

    def unpin(self, gref: int, use: Use) -> int:
        """One use less; the pins that are left. After the last one the record is gone."""
        at = gref * _DWORDS
        left = self._dwords[at + _PINS] - use.step
        self._dwords[at + _PINS] = left
        if not left:
            self._dwords[at] = self._dwords[at + _MFN] = self._dwords[at + _EXTENT] = 0
        return left

    def check_pinned(self, gref: int, use: Use) -> None:
        """Raises: ValueError if the entry is not in use in these ways: an error of ours."""
        used = self.pins(gref) + _ALL_BUT_HIGHEST  # counts end at MAX_PINS: no byte overflows
        if use.step << _HIGHEST_BIT & ~used:
            raise ValueError(f"reference {gref} is not in use like that")

    def any_from(self, first: int, count: int) -> bool:
        """Whether one of the entries from `first` below `count` is in use."""
        return any(self._dwords[first * _DWORDS + _PINS : count * _DWORDS : _DWORDS])

    def in_use(self, count: int) -> Iterator[int]:
        """The references below `count` that are in use."""
        for gref, pins in enumerate(self._dwords[_PINS : count * _DWORDS : _DWORDS]):
            if pins:
                yield gref
