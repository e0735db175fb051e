"""The frame table: who owns a frame, what it is used as, and how often.

Source: struct page_info of xen/arch/x86/include/asm/mm.h, as its behaviour shows in public/xen.h.

One record of 16 bytes a frame, shared with the native hot path:

    u32 type    bits 0-7 FrameType, then PINNED, VALIDATED, PARTIAL, DYING, RELEASED;
                bits 16-25, with PARTIAL: how many entries hold references, counted from 0
    u32 uses    how often it is used as that type
    u32 refs    how often it is referenced at all: by page-table entries, pins, grants, ...
    u32 owner   bits 0-7 Owner, bits 8-31 the flush epoch in which it was last unmapped writable

All zero is a frame of the guest that nobody uses, so a new table costs nothing. What the counts
mean, and who changes them, is in hypervisor/page_types.py.
"""

from __future__ import annotations

import ctypes
import mmap
from enum import IntEnum

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.memory.machine import XEN_PAGES, MachineMemory

RECORD_BYTES = 16
TYPE_MASK = 0xFF
PINNED = 1 << 8
VALIDATED = 1 << 9
PARTIAL = 1 << 10
"""Some entries hold references, but the frame is not in use: validation or its undoing stopped."""
DYING = 1 << 11
"""It is in the list of tables whose references are to be dropped."""
RELEASED = 1 << 12
"""The guest gave it back, but it is still referenced."""
HELD_SHIFT = 16
HELD_MASK = 0x3FF << HELD_SHIFT
OWNER_MASK = 0xFF
STAMP_SHIFT = 8
STAMP_MASK = 0xFFFFFF


class FrameType(IntEnum):
    """What a frame is used as; the table levels are their own numbers."""

    NONE = 0
    L1 = 1
    L2 = 2
    L3 = 3
    L4 = 4
    SEGDESC = 5
    WRITABLE = 7


class Owner(IntEnum):
    """Whose frame it is."""

    DOMAIN = 0
    XEN = 1


class FrameTable:
    """Owners, types and counts of all frames of a domain's machine memory."""

    def __init__(self, memory: MachineMemory) -> None:
        self._memory = memory
        self._map = mmap.mmap(-1, memory.total_pages * RECORD_BYTES)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)
        self.dwords = memoryview(self._map).cast("I")
        for mfn in (*range(XEN_PAGES), *range(memory.m2p_mfn, memory.total_pages)):
            self.dwords[mfn * 4 + 3] = Owner.XEN

    def close(self) -> None:
        """Give the table back."""
        del self._anchor
        self.dwords.release()

    def owner(self, mfn: int) -> Owner:
        """Whose frame this is. Raises: XenError(EINVAL) for a number that is no frame."""
        if not 0 <= mfn < self._memory.total_pages:
            raise XenError(E.INVAL, f"there is no frame {mfn:#x}")
        return Owner(self.dwords[mfn * 4 + 3] & OWNER_MASK)

    def share_with_domain(self, mfn: int) -> None:
        """Let the guest map one of the hypervisor's frames (shared info, grant table).

        As Xen's share_xen_page_with_guest: in use as writable for ever, so never a table.
        """
        at = mfn * 4
        self.dwords[at] = FrameType.WRITABLE | VALIDATED
        self.dwords[at + 1] = self.dwords[at + 2] = 1
        self._own(mfn, Owner.DOMAIN)

    def give_to_domain(self, mfn: int) -> None:
        """Make a free frame the guest's; nobody uses it."""
        at = mfn * 4
        self.dwords[at] = self.dwords[at + 1] = self.dwords[at + 2] = 0
        self._own(mfn, Owner.DOMAIN)

    def take_from_domain(self, mfn: int) -> None:
        """The opposite of `give_to_domain` and `share_with_domain`: nobody may use the frame."""
        self.give_to_domain(mfn)
        self._own(mfn, Owner.XEN)

    def _own(self, mfn: int, owner: Owner) -> None:
        word = self.dwords[mfn * 4 + 3]
        self.dwords[mfn * 4 + 3] = word & ~OWNER_MASK | owner

    def is_domains(self, mfn: int) -> bool:
        """Whether the guest may map this frame."""
        return (
            0 <= mfn < self._memory.total_pages
            and self.dwords[mfn * 4 + 3] & OWNER_MASK == Owner.DOMAIN
        )

    def type(self, mfn: int) -> FrameType:
        """What the frame is used as now."""
        return FrameType(self.dwords[mfn * 4] & TYPE_MASK)

    def uses(self, mfn: int) -> int:
        """How often the frame is used as its type."""
        return self.dwords[mfn * 4 + 1]

    def refs(self, mfn: int) -> int:
        """How often the frame is referenced."""
        return self.dwords[mfn * 4 + 2]

    def is_pinned(self, mfn: int) -> bool:
        """Whether the guest pinned the frame to its type."""
        return bool(self.dwords[mfn * 4] & PINNED)

    def flags(self, mfn: int) -> int:
        """PINNED, VALIDATED, PARTIAL, DYING, RELEASED."""
        return self.dwords[mfn * 4] & ~(TYPE_MASK | HELD_MASK)

    def held(self, mfn: int) -> int:
        """How many entries of a page table hold references."""
        word = self.dwords[mfn * 4]
        if word & PARTIAL:
            return (word & HELD_MASK) >> HELD_SHIFT
        return 512 if word & VALIDATED else 0
