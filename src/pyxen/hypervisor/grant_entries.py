"""The entries of a grant table, as the guest shares them with the hypervisor: versions 1 and 2.

Source: public/grant_table.h (grant_entry_v1, grant_entry_v2, grant_status_t, GTF_*).

The guest may change an entry at any time, so `read` copies it once. In version 1 the marks of use
are bits of the entry's own flags; in version 2 they are in an array of status words, so that the
guest can look at them without touching the entry.
"""

from __future__ import annotations

from typing import NamedTuple

from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GTF_invalid,
    GTF_permit_access,
    GTF_reading,
    GTF_transfer_committed,
    GTF_transfer_completed,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
)
from pyxen.errors import XenError
from pyxen.memory.frames import FrameTable
from pyxen.memory.layout import GRANT_FRAMES, GRANT_STATUS_FRAMES
from pyxen.memory.machine import MachineMemory
from pyxen.types import PAGE_SHIFT, PAGE_SIZE, U16, U32, Mfn

ENTRY_BYTES = {1: 8, 2: 16}
STATUS_BYTES = 2
INITIAL_FRAMES = 1
_STATUS_PER_PAGE = PAGE_SIZE // STATUS_BYTES
_MARKS = GTF_reading | GTF_writing


class Entry(NamedTuple):
    """A copy of an entry; `second` is what version 2 has behind the header."""

    flags: int
    domid: int
    frame: int
    second: int = 0

    @property
    def kind(self) -> int:
        """GTF_invalid, GTF_permit_access, GTF_accept_transfer or GTF_transitive."""
        return self.flags & GTF_type_mask

    @property
    def page_off(self) -> int:
        """First byte of a sub-page grant."""
        return self.second & U16

    @property
    def length(self) -> int:
        """Bytes of a sub-page grant."""
        return self.second >> 16

    @property
    def trans_domid(self) -> int:
        """The domain that granted what a transitive grant passes on."""
        return self.second & U16

    @property
    def trans_gref(self) -> int:
        """That domain's reference."""
        return self.frame & U32


class _Place(NamedTuple):
    """Where an array is, and the bytes of an element."""

    start: int
    size: int


class SharedEntries:
    """The pages of one domain's grant table."""

    def __init__(self, memory: MachineMemory, frames: FrameTable) -> None:
        self._memory = memory
        self._frames = frames
        self.version = 1
        self.nr_frames = 0
        self.nr_status_frames = 0
        self.count = 0
        """How many entries there are in this version."""
        self.grow(INITIAL_FRAMES)

    def grow(self, nr_frames: int) -> None:
        """Have at least so many frames, and the status frames for them."""
        for n in range(self.nr_frames, nr_frames):
            self._frames.share_with_domain(GRANT_FRAMES + n)
        self.nr_frames = max(self.nr_frames, nr_frames)
        if self.version == 2:
            self._grow_status()
        self._place()

    def _place(self) -> None:
        """Where things are in this version: entries, and the marks of their use."""
        self.count = (self.nr_frames << PAGE_SHIFT) // ENTRY_BYTES[self.version]
        table = _Place(GRANT_FRAMES << PAGE_SHIFT, ENTRY_BYTES[self.version])
        status = _Place(GRANT_STATUS_FRAMES << PAGE_SHIFT, STATUS_BYTES)
        self._entries, self._marks = table, status if self.version == 2 else table

    def _grow_status(self) -> None:
        entries = (self.nr_frames << PAGE_SHIFT) // ENTRY_BYTES[2]
        wanted = -(-entries // _STATUS_PER_PAGE)
        for n in range(self.nr_status_frames, wanted):
            self._frames.share_with_domain(GRANT_STATUS_FRAMES + n)
        self.nr_status_frames = max(self.nr_status_frames, wanted)

    def frame(self, index: int) -> Mfn:
        """The mfn of a frame of the table."""
        return Mfn(GRANT_FRAMES + index)

    def status_frame(self, index: int) -> Mfn:
        """The mfn of a frame of the status array of version 2."""
        return Mfn(GRANT_STATUS_FRAMES + index)

    def read(self, gref: int) -> Entry:
        """A copy of an entry that exists."""
        at = self._maddr(gref) >> 2
        dwords = self._memory.dwords
        header, word = dwords[at], dwords[at + 1]
        if self.version == 1:
            return Entry(header & U16, header >> 16, word)
        return Entry(header & U16, header >> 16, self._memory.words[(at >> 1) + 1], word)

    def write(self, gref: int, entry: Entry) -> None:
        """Replace an entry that exists; its flags come last, as they make it valid."""
        at = self._maddr(gref) >> 2
        if self.version == 1:
            self._memory.dwords[at + 1] = entry.frame
        else:
            self._memory.dwords[at + 1] = entry.second
            self._memory.words[(at >> 1) + 1] = entry.frame
        self._memory.dwords[at] = entry.flags | entry.domid << 16

    def mark(self, gref: int, marks: int) -> None:
        """Show the guest that the entry is in use: GTF_reading, GTF_writing."""
        self._memory.bytes[self._marks_maddr(gref)] |= marks

    def clear(self, gref: int, marks: int) -> None:
        """Take marks back. What the guest did to the entry meanwhile stays."""
        self._memory.bytes[self._marks_maddr(gref)] &= ~marks & 0xFF

    def commit_transfer(self, gref: int) -> None:
        """Lock an entry that accepts a page."""
        self._memory.bytes[self._maddr(gref)] |= GTF_transfer_committed

    def complete_transfer(self, gref: int, mfn: int) -> None:
        """Tell the guest which frame arrived."""
        at = self._maddr(gref)
        if self.version == 1:
            self._memory.dwords[(at >> 2) + 1] = mfn
        else:
            self._memory.words[(at >> 3) + 1] = mfn
        self._memory.bytes[at] |= GTF_transfer_completed

    def swap(self, one: int, other: int) -> None:
        """Exchange two entries with their marks."""
        self._swap_bytes(self._maddr(one), self._maddr(other), self._entries.size)
        if self.version == 2:
            self._swap_bytes(self._marks_maddr(one), self._marks_maddr(other), STATUS_BYTES)

    def _swap_bytes(self, one: int, other: int, length: int) -> None:
        memory, kept = self._memory, self._memory.read(one, length)
        memory.bytes[one : one + length] = memory.bytes[other : other + length]
        memory.bytes[other : other + length] = kept

    def set_version(self, version: int) -> None:
        """Switch to the other version; only the reserved entries survive it.

        Raises: XenError(ERANGE) if version 1 cannot say what a reserved entry of version 2 says,
        XenError(EBUSY) while the guest maps status frames that would go.
        """
        reserved = [self._reserved(gref) for gref in range(GNTTAB_NR_RESERVED_ENTRIES)]
        if version == 1:
            self._check_status_frames_unused()
        # COMMIT
        start = GRANT_FRAMES << PAGE_SHIFT
        self._memory.bytes[start : start + (self.nr_frames << PAGE_SHIFT)] = bytes(
            self.nr_frames << PAGE_SHIFT
        )
        if version == 1:
            self._drop_status()
        self.version = version
        if version == 2:
            self._grow_status()
        self._place()
        for n, entry in enumerate(reserved):
            marks = entry.flags & _MARKS
            self.write(n, Entry(entry.flags & ~_MARKS, entry.domid, entry.frame))
            self.mark(n, marks)

    def _reserved(self, gref: int) -> Entry:
        """A reserved entry with its marks in its flags, for the other version."""
        entry = self.read(gref)
        if self.version == 1:
            return entry
        if entry.kind == GTF_transitive or (entry.kind == GTF_permit_access and entry.frame > U32):
            raise XenError(E.RANGE, f"version 1 has no entry like {entry}")
        if entry.kind != GTF_permit_access:
            return Entry(GTF_invalid, 0, 0)
        marks = self._memory.bytes[self._marks_maddr(gref)] & _MARKS
        return Entry(entry.flags | marks, entry.domid, entry.frame)

    def _check_status_frames_unused(self) -> None:
        for n in range(self.nr_status_frames):
            if self._frames.refs(GRANT_STATUS_FRAMES + n) > 1:  # one is for being shared
                raise XenError(E.BUSY, f"status frame {n} is mapped")

    def _drop_status(self) -> None:
        for n in range(self.nr_status_frames):
            self._frames.take_from_domain(GRANT_STATUS_FRAMES + n)
            # A later switch to version 2 begins with zeros.
            at = (GRANT_STATUS_FRAMES + n) << PAGE_SHIFT
            self._memory.bytes[at : at + PAGE_SIZE] = bytes(PAGE_SIZE)
        self.nr_status_frames = 0

    def _maddr(self, gref: int) -> int:
        start, size = self._entries
        return start + gref * size

    def _marks_maddr(self, gref: int) -> int:
        start, size = self._marks
        return start + gref * size


def granted(domid: int, mfn: int) -> Entry:
    """An entry that lets a domain use a page."""
    return Entry(GTF_permit_access, domid, mfn)
