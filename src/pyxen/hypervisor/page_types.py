"""Page types: what keeps a guest from writing to its page tables and descriptor tables.

Source: xen/arch/x86/mm.c, "Summary of page types", as its behaviour shows to a guest.

A frame that is in use as one type cannot be used as another. Uses:

    writable    a present L1 entry with PTE_RW
    L1 to L3    an entry of a table one level higher, or a pin
    L4          a base pointer, or a pin
    segdesc     a page of a GDT or an LDT

Before the first use as a table all 512 entries are checked, and each takes what it refers to into
use in turn (validation); after the last use each gives it back. Both can be long: a table after the
other, with the work accounted for. When too much was done, Restart says so: everything is
consistent then, and the same operation goes on where it was.

    PARTIAL         a validation stopped: entries below `held` hold references; the next use goes on
    PARTIAL, DYING  nobody uses the table any more: its mfn is on the stack of the dying, whose
                    entries are given back; nothing else happens to types meanwhile

A PARTIAL table holds one reference to its own frame, so that it cannot be freed.

Translations that were cached while a frame was writable must be gone before it becomes a table: the
frame remembers the flush epoch of its last writable use.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Final, Protocol

from pyxen.abi.errno import E
from pyxen.cpu.pvstate import PvDomain
from pyxen.errors import XenError
from pyxen.hypervisor.descriptor import checked_table
from pyxen.memory import layout
from pyxen.memory.frames import (
    DYING,
    HELD_SHIFT,
    PARTIAL,
    PINNED,
    RELEASED,
    STAMP_MASK,
    STAMP_SHIFT,
    TYPE_MASK,
    VALIDATED,
    FrameTable,
    FrameType,
)
from pyxen.memory.machine import MachineMemory
from pyxen.memory.pagetable import (
    ENTRIES,
    FIRST_XEN_SLOT,
    LAST_XEN_SLOT,
    PTE_ACCESSED,
    PTE_ADDRESS,
    PTE_DIRTY,
    PTE_GLOBAL,
    PTE_NX,
    PTE_PCD,
    PTE_PRESENT,
    PTE_PSE,
    PTE_PWT,
    PTE_RW,
    PTE_USER,
    frame_of,
)
from pyxen.types import U64

WORK_PER_TABLE: Final = 64
MAX_REFERENCES: Final = 1 << 31

DISALLOWED_L1: Final = PTE_PWT | PTE_PCD | PTE_PSE
"""What an L1 entry may not have: in Xen, changes of caching by a domain without devices."""
DISALLOWED_UPPER: Final = DISALLOWED_L1 | PTE_GLOBAL
_AVAILABLE: Final = 0x7FF0_0000_0000_0E00
CHANGEABLE: Final = PTE_NX | _AVAILABLE | PTE_GLOBAL | PTE_DIRTY | PTE_ACCESSED | PTE_USER
"""What may change in a present entry without new references."""
_WRITABLE, _L1, _L4, _SEGDESC = FrameType.WRITABLE, FrameType.L1, FrameType.L4, FrameType.SEGDESC
_INVALID_MFN = PTE_ADDRESS >> 12


class Restart(Exception):
    """Enough work for now. The operation has to be tried again, and then goes on where it was."""


class Budget(Protocol):
    """How much more work may be done in one piece (hypercall/continuation.py)."""

    work_left: int


class PageTypes:
    """The uses and references of a domain's frames."""

    def __init__(
        self,
        memory: MachineMemory,
        frames: FrameTable,
        pv: PvDomain,
        budget: Budget,
        flush_tlb: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._frames = frames
        self._records = frames.dwords
        self._pv = pv
        self._budget = budget
        self._flush_tlb = flush_tlb
        self._linear: dict[int, int] = {}
        """Linear page tables: > 0: entries of this table that refer to others of its level;
        < 0: uses of this table by such entries. Never both (XSA-240)."""
        self._stack_map = mmap.mmap(-1, memory.total_pages * 4)
        self._stack_anchor = ctypes.c_char.from_buffer(self._stack_map)
        self._stack = memoryview(self._stack_map).cast("I")
        pv.dying_stack = ctypes.addressof(self._stack_anchor)
        self.on_free: Callable[[int], None] = lambda mfn: None
        """A frame that was RELEASED is not referenced any more."""

    # --- references -------------------------------------------------------------------------

    def get_page(self, mfn: int) -> None:
        """One more reference. Raises: XenError(EINVAL) for a frame that is not the guest's."""
        at = mfn * 4 + 2
        if not self._frames.is_domains(mfn) or self._records[at] >= MAX_REFERENCES:
            raise XenError(E.INVAL, f"frame {mfn:#x} is not the domain's")
        self._records[at] += 1

    def put_page(self, mfn: int) -> None:
        """One reference less."""
        at = mfn * 4
        self._records[at + 2] -= 1
        if not self._records[at + 2] and self._records[at] & RELEASED:
            self.on_free(mfn)

    def get_page_and_type(self, mfn: int, wanted: FrameType) -> None:
        """One more reference and use.

        Raises: XenError(EINVAL) if the frame is not the guest's or in use as something else, what
        its validation found, or Restart.
        """
        self.finish_dying()
        if not self._frames.is_domains(mfn):
            raise XenError(E.INVAL, f"frame {mfn:#x} is not the domain's")
        self._get_type(mfn, wanted)
        self._records[mfn * 4 + 2] += 1

    def put_page_and_type(self, mfn: int) -> None:
        """One reference and use less; a table that nobody uses any more begins to die."""
        self._put_page_and_type(mfn)
        self.settle()

    def hold(self, mfn: int, *, writable: bool) -> None:
        """Keep a frame for somebody outside of the guest's page tables (grants).

        Raises: XenError(EINVAL), also for a frame whose validation or undoing has not ended.
        """
        if not writable:
            self.get_page(mfn)
            return
        if self._frames.is_domains(mfn) and self._records[mfn * 4] & PARTIAL:
            raise XenError(E.INVAL, f"frame {mfn:#x} is a page table just now")
        self.get_page(mfn)
        try:
            self._get_type(mfn, _WRITABLE)
        except XenError:
            self.put_page(mfn)
            raise

    def let_go(self, mfn: int, *, writable: bool) -> None:
        """The opposite of `hold`."""
        if writable:
            self._put_page_and_type(mfn)
        else:
            self.put_page(mfn)

    def check_writable(self, mfn: int) -> None:
        """Whether the frame may be written to now: no page or descriptor table.

        Raises: as get_page_and_type.
        """
        self.get_page_and_type(mfn, _WRITABLE)
        self._put_page_and_type(mfn)

    def check_unreferenced(self, mfn: int) -> None:
        """Whether nothing at all refers to an ordinary frame of the guest (Xen's steal_page).

        Raises: XenError(EINVAL), Restart.
        """
        self.finish_dying()
        if self._memory.is_guest_frame(mfn) and self._records[mfn * 4] & PARTIAL:
            self._abandon(mfn)
        owned = self._memory.is_guest_frame(mfn) and self._frames.is_domains(mfn)
        if not owned or self._records[mfn * 4 + 2]:
            raise XenError(E.INVAL, f"frame {mfn:#x} is not the domain's alone")

    def release(self, mfn: int) -> bool:
        """The guest gives a frame back. True: it is free now. False: when nobody refers to it.

        Raises: XenError(EINVAL) for a frame that is not the guest's, Restart.
        """
        self.finish_dying()
        if not self._memory.is_guest_frame(mfn) or not self._frames.is_domains(mfn):
            raise XenError(E.INVAL, f"frame {mfn:#x} is not the domain's")
        if self._records[mfn * 4] & PARTIAL:
            self._abandon(mfn)
        # COMMIT
        if self._records[mfn * 4 + 2]:
            self._records[mfn * 4] |= RELEASED
            return False
        return True

    # --- pins and page-table entries --------------------------------------------------------

    def pin(self, mfn: int, wanted: FrameType) -> None:
        """MMUEXT_PIN_Ln_TABLE. Raises: as get_page_and_type; XenError(EINVAL) if it is pinned."""
        self.get_page_and_type(mfn, wanted)
        if self._records[mfn * 4] & PINNED:
            self.put_page_and_type(mfn)
            raise XenError(E.INVAL, f"frame {mfn:#x} is pinned already")
        self._records[mfn * 4] |= PINNED

    def unpin(self, mfn: int) -> None:
        """MMUEXT_UNPIN_TABLE. Raises: XenError(EINVAL) if the frame is not pinned; Restart."""
        self.finish_dying()
        if not self._frames.is_domains(mfn) or not self._frames.is_pinned(mfn):
            raise XenError(E.INVAL, f"frame {mfn:#x} is not pinned")
        # COMMIT
        self._records[mfn * 4] &= ~PINNED
        self.put_page_and_type(mfn)

    def level_of(self, mfn: int) -> int:
        """1 to 4 for a page table that is in use, else 0."""
        word = self._records[mfn * 4]
        in_use = self._records[mfn * 4 + 1] and word & VALIDATED
        return word & TYPE_MASK if in_use and _L1 <= word & TYPE_MASK <= _L4 else 0

    def update(self, maddr: int, value: int, *, preserve_ad: bool = False) -> None:
        """Write one entry of a page table, or a word of an ordinary page (mmu_update).

        Raises: XenError for entries that the guest may not have; Restart.
        """
        self.finish_dying()
        mfn = maddr >> 12
        if not self._frames.is_domains(mfn):
            raise XenError(E.INVAL, f"frame {mfn:#x} is not the domain's")
        level = self.level_of(mfn)
        if level:
            self._modify(maddr, level, value, preserve_ad)
            return
        self.check_writable(mfn)
        # COMMIT
        self._memory.write(maddr, value.to_bytes(8, "little"))

    def modify_l1(self, maddr: int, value: int) -> None:
        """Write one entry of an L1 table that is in use. Raises: as `update`."""
        self.finish_dying()
        if not self._frames.is_domains(maddr >> 12) or self.level_of(maddr >> 12) != 1:
            raise XenError(E.INVAL, f"{maddr:#x} is not in an L1 table")
        self._modify(maddr, 1, value, False)

    def _modify(self, maddr: int, level: int, value: int, preserve_ad: bool) -> None:
        mfn = maddr >> 12
        if level == _L4 and FIRST_XEN_SLOT <= (maddr & 0xFFF) >> 3 <= LAST_XEN_SLOT:
            raise XenError(E.INVAL, "an L4 slot of the hypervisor")
        old = self._memory.read_u64(maddr)
        same = False
        if value & PTE_PRESENT:
            disallowed = DISALLOWED_L1 if level == 1 else DISALLOWED_UPPER
            if value & disallowed:
                raise XenError(E.INVAL, f"flags of the L{level} entry {value:#x}")
            same = not (old ^ value) & ~CHANGEABLE & U64
            if not same:
                self._take(mfn, level, value)
        # COMMIT
        if preserve_ad:
            value |= old & (PTE_ACCESSED | PTE_DIRTY)
        self._memory.write_u64(maddr, value)
        if not same:
            self._drop(mfn, level, old)
            self.settle()

    # --- what an entry refers to ------------------------------------------------------------

    def _take(self, table: int, level: int, entry: int) -> None:
        if level == 1:
            error = self._take_l1(entry)
            if error is not None:
                raise XenError(error, f"frame {frame_of(entry):#x} of the L1 entry {entry:#x}")
            return
        if entry & DISALLOWED_UPPER:
            raise XenError(E.INVAL, f"flags of the L{level} entry {entry:#x}")
        child = frame_of(entry)
        try:
            if not self._frames.is_domains(child):
                raise XenError(E.INVAL, f"frame {child:#x} is not the domain's")
            self._get_type(child, FrameType(level - 1))
            self._records[child * 4 + 2] += 1
        except XenError as error:
            if error.errno is not E.INVAL or not self._take_linear(table, level, entry):
                raise

    def _take_l1(self, entry: int) -> E | None:
        """Errors are results: this is done 512 times for a table."""
        if entry & DISALLOWED_L1:
            return E.INVAL
        mfn = (entry & PTE_ADDRESS) >> 12
        records, at = self._records, mfn * 4
        if mfn >= self._memory.total_pages:
            return E.INVAL if mfn == _INVALID_MFN else E.PERM
        if records[at + 3] & 0xFF or records[at + 2] >= MAX_REFERENCES:
            return E.BUSY
        if entry & PTE_RW:
            if records[at + 1]:
                if records[at] & TYPE_MASK != _WRITABLE:
                    return E.BUSY
            else:
                if records[at] & PARTIAL:
                    self._abandon(mfn)
                records[at] = records[at] & RELEASED | _WRITABLE | VALIDATED
            records[at + 1] += 1
        records[at + 2] += 1
        return None

    def _take_linear(self, table: int, level: int, entry: int) -> bool:
        """A read-only entry that refers to a table of its own level (linear page tables)."""
        other = frame_of(entry)
        if entry & PTE_RW:
            return False
        if other == table:
            return True
        linear = self._linear
        if not self._frames.is_domains(other) or self.level_of(other) != level:
            return False
        if linear.get(table, 0) < 0 or linear.get(other, 0) > 0:
            return False
        linear[table] = linear.get(table, 0) + 1
        linear[other] = linear.get(other, 0) - 1
        self._records[other * 4 + 1] += 1
        self._records[other * 4 + 2] += 1
        return True

    def _drop(self, table: int, level: int, entry: int) -> None:
        """Give back what `_take` took."""
        if not entry & PTE_PRESENT:
            return
        mfn = frame_of(entry)
        if level == 1:
            if entry & PTE_RW:
                self._put_page_and_type(mfn)
            else:
                self.put_page(mfn)
        elif mfn != table:
            if self._records[mfn * 4] & TYPE_MASK == level:
                self._drop_linear(table, mfn)
            self._put_page_and_type(mfn)

    def _drop_linear(self, table: int, other: int) -> None:
        for mfn, change in ((table, -1), (other, 1)):
            left = self._linear[mfn] + change
            if left:
                self._linear[mfn] = left
            else:
                del self._linear[mfn]

    # --- types ------------------------------------------------------------------------------

    def _get_type(self, mfn: int, wanted: FrameType) -> None:
        records, at = self._records, mfn * 4
        if records[at + 2] >= MAX_REFERENCES:
            raise XenError(E.INVAL, f"frame {mfn:#x} has too many references")
        if records[at + 1]:
            if records[at] & TYPE_MASK != wanted or not records[at] & VALIDATED:
                kind = FrameType(records[at] & TYPE_MASK).name
                raise XenError(E.INVAL, f"frame {mfn:#x} is in use as {kind}, not as {wanted.name}")
            records[at + 1] += 1
            return
        if records[at] & PARTIAL and records[at] & TYPE_MASK != wanted:
            self._abandon(mfn)
        if wanted == _WRITABLE:
            records[at] = records[at] & RELEASED | _WRITABLE | VALIDATED
        elif wanted == _SEGDESC:
            self._flush_stale(mfn)
            self._check_descriptors(mfn)
            records[at] = records[at] & RELEASED | _SEGDESC | VALIDATED
        else:
            self._flush_stale(mfn)
            self._validate(mfn, wanted)
        records[at + 1] = 1

    def _flush_stale(self, mfn: int) -> None:
        """Forget translations through which the frame could still be written."""
        if self._records[mfn * 4 + 3] >> STAMP_SHIFT == self._pv.flush_epoch & STAMP_MASK:
            self._flush_tlb()

    def _check_descriptors(self, mfn: int) -> None:
        """Check all descriptors of a frame, and write those anew that Xen changes."""
        self._budget.work_left -= WORK_PER_TABLE
        changed = checked_table(self._memory.page(mfn).cast("Q"))
        # COMMIT
        for n, descriptor in changed.items():
            self._memory.write((mfn * 512 + n) * 8, descriptor.to_bytes(8, "little"))

    def _validate(self, mfn: int, level: FrameType) -> None:
        """Take all that the table refers to. Raises: XenError, having given all back; Restart."""
        records, at = self._records, mfn * 4
        first = self._frames.held(mfn)
        if records[at] & PARTIAL:
            # Not counted again: each piece comes further than the one before.
            records[at + 2] -= 1
        elif self._budget.work_left <= 0:
            raise Restart
        else:
            self._budget.work_left -= WORK_PER_TABLE
        # In use as this type while it is looked at: an entry may refer to the table itself.
        records[at] = records[at] & RELEASED | level
        records[at + 1] = 1
        slot = first
        try:
            entries = self._memory.words[mfn << 9 : (mfn << 9) + ENTRIES].tolist()
            for slot in range(first, ENTRIES):
                if entries[slot] & PTE_PRESENT and not (
                    level == _L4 and FIRST_XEN_SLOT <= slot <= LAST_XEN_SLOT
                ):
                    self._take(mfn, level, entries[slot])
        except (XenError, Restart) as reason:
            self._stop(mfn, level, slot)
            if isinstance(reason, XenError):
                self._die(mfn)
                self.settle()
            raise
        if level == _L4:
            layout.set_xen_slots(self._memory, mfn, self._pv.m2p_l4_entry)
        records[at] |= VALIDATED

    def _stop(self, mfn: int, level: FrameType, held: int) -> None:
        """Leave a table that nobody uses with `held` entries that hold references."""
        records, at = self._records, mfn * 4
        records[at] = records[at] & RELEASED | level | PARTIAL | held << HELD_SHIFT
        records[at + 1] = 0
        records[at + 2] += 1

    # --- the dying --------------------------------------------------------------------------

    def _put_page_and_type(self, mfn: int) -> None:
        records, at = self._records, mfn * 4
        records[at + 1] -= 1
        if not records[at + 1]:
            kind = records[at] & TYPE_MASK
            if _L1 <= kind <= _L4:
                self._stop(mfn, FrameType(kind), ENTRIES)
                self._die(mfn)
            else:
                records[at] &= RELEASED
                if kind == _WRITABLE:
                    stamp = (self._pv.flush_epoch & STAMP_MASK) << STAMP_SHIFT
                    records[at + 3] = records[at + 3] & 0xFF | stamp
        self.put_page(mfn)

    def _die(self, mfn: int) -> None:
        self._records[mfn * 4] |= DYING
        self._stack[self._pv.dying] = mfn
        self._pv.dying += 1

    def settle(self) -> None:
        """Give back what the dying hold, for as long as there is work left."""
        while self._pv.dying and self._budget.work_left > 0:
            self._budget.work_left -= WORK_PER_TABLE
            self._pv.dying -= 1
            self._bury(self._stack[self._pv.dying])

    def _bury(self, mfn: int) -> None:
        level = self._records[mfn * 4] & TYPE_MASK
        held = self._frames.held(mfn)
        for slot in range(held - 1, -1, -1):
            if level == _L4 and FIRST_XEN_SLOT <= slot <= LAST_XEN_SLOT:
                continue
            entry = self._memory.words[(mfn << 9) + slot]
            if entry & PTE_PRESENT:
                self._drop(mfn, level, entry)
        self._records[mfn * 4] &= RELEASED
        self.put_page(mfn)

    def finish_dying(self) -> None:
        """Nothing else happens to page types before the dying are gone. Raises: Restart."""
        if self._pv.dying:
            self.settle()
            if self._pv.dying:
                raise Restart

    def _abandon(self, mfn: int) -> None:
        """Undo a validation that stopped half-way. Raises: Restart."""
        self._die(mfn)
        self.finish_dying()
