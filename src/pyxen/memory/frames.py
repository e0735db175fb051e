"""The frame table: who owns a frame, what it is used as, and how often.

Source: the page_info of xen/arch/x86/mm.c as its behaviour shows in public/xen.h (pinning, types).

One record of 16 bytes a frame, shared with the native hot path:

    u32 type    TYPE_* in the low byte, PINNED and VALIDATED above
    u32 uses    how often it is used as that type
    u32 refs    how often it is referenced at all
    u32 owner   OWNER_*

All zero is a frame of the guest that is not in use, so a new table costs nothing.
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


class FrameType(IntEnum):
    """What a frame is used as; the table levels are their own numbers."""

    NONE = 0
    L1 = 1
    L2 = 2
    L3 = 3
    L4 = 4
    SEGDESC = 5
    SHARED = 6
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
        self._dwords = memoryview(self._map).cast("I")
        for mfn in (*range(XEN_PAGES), *range(memory.m2p_mfn, memory.total_pages)):
            self._dwords[mfn * 4 + 3] = Owner.XEN

    def close(self) -> None:
        """Give the table back."""
        del self._anchor
        self._dwords.release()

    def owner(self, mfn: int) -> Owner:
        """Whose frame this is. Raises: XenError(EINVAL) for a number that is no frame."""
        if not 0 <= mfn < self._memory.total_pages:
            raise XenError(E.INVAL, f"there is no frame {mfn:#x}")
        return Owner(self._dwords[mfn * 4 + 3])

    def give_to_domain(self, mfn: int, frame_type: FrameType = FrameType.SHARED) -> None:
        """Let the guest map one of the hypervisor's frames (shared info, grant table)."""
        self._dwords[mfn * 4] = frame_type | VALIDATED
        self._dwords[mfn * 4 + 3] = Owner.DOMAIN

    def take_from_domain(self, mfn: int) -> None:
        """The opposite of `give_to_domain`."""
        self._dwords[mfn * 4] = FrameType.NONE
        self._dwords[mfn * 4 + 3] = Owner.XEN

    def is_domains(self, mfn: int) -> bool:
        """Whether the guest may map this frame."""
        return 0 <= mfn < self._memory.total_pages and self._dwords[mfn * 4 + 3] == Owner.DOMAIN

    def type(self, mfn: int) -> FrameType:
        """What the frame is used as now."""
        return FrameType(self._dwords[mfn * 4] & TYPE_MASK)

    def is_table(self, mfn: int) -> bool:
        """Whether the guest may only read the frame: a page table or a descriptor table."""
        return FrameType.L1 <= self._dwords[mfn * 4] & TYPE_MASK <= FrameType.SEGDESC

    def uses(self, mfn: int) -> int:
        """How often the frame is used as its type."""
        return self._dwords[mfn * 4 + 1]

    def refs(self, mfn: int) -> int:
        """How often the frame is referenced."""
        return self._dwords[mfn * 4 + 2]

    def is_pinned(self, mfn: int) -> bool:
        """Whether the guest pinned the frame to its type."""
        return bool(self._dwords[mfn * 4] & PINNED)

    def get_type(self, mfn: int, wanted: FrameType) -> None:
        """Use a frame as a type once more.

        Raises: XenError(EPERM) if it is not the guest's, XenError(EBUSY) if it has another use.
        """
        if not self.is_domains(mfn):
            raise XenError(E.PERM, f"frame {mfn:#x} is not the guest's")
        word = self._dwords[mfn * 4]
        if self._dwords[mfn * 4 + 1] and word & TYPE_MASK != wanted:
            raise XenError(
                E.BUSY, f"frame {mfn:#x} is in use as {FrameType(word & TYPE_MASK).name}"
            )
        if word & TYPE_MASK != wanted:
            self._dwords[mfn * 4] = wanted | VALIDATED
        self._dwords[mfn * 4 + 1] += 1
        self._dwords[mfn * 4 + 2] += 1

    def put_type(self, mfn: int) -> None:
        """Use a frame as its type once less. Raises: XenError(EINVAL) if it is not in use."""
        if not self._dwords[mfn * 4 + 1]:
            raise XenError(E.INVAL, f"frame {mfn:#x} is not in use")
        self._dwords[mfn * 4 + 1] -= 1
        self._dwords[mfn * 4 + 2] -= 1
        if not self._dwords[mfn * 4 + 1]:
            self._dwords[mfn * 4] = FrameType.NONE

    def pin(self, mfn: int, wanted: FrameType) -> None:
        """MMUEXT_PIN_Ln_TABLE. Raises: as get_type; XenError(EINVAL) if it is pinned already."""
        if self.is_domains(mfn) and self.is_pinned(mfn):
            raise XenError(E.INVAL, f"frame {mfn:#x} is pinned already")
        self.get_type(mfn, wanted)
        self._dwords[mfn * 4] |= PINNED

    def unpin(self, mfn: int) -> None:
        """MMUEXT_UNPIN_TABLE. Raises: XenError(EINVAL) if the frame is not pinned."""
        if not self.is_domains(mfn) or not self.is_pinned(mfn):
            raise XenError(E.INVAL, f"frame {mfn:#x} is not pinned")
        self._dwords[mfn * 4] &= ~PINNED
        self.put_type(mfn)
