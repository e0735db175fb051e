"""The grant table, version 1: what the guest lets the host's back ends use.

Source: public/grant_table.h (grant_entry_v1, GTF_*).

An entry is 8 bytes that the guest may change at any time: it is read once, checked, and the use
is noted in it by setting GTF_reading/GTF_writing, as guests look at these before they take it back.
"""

from __future__ import annotations

from collections.abc import Callable

from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_type_mask,
    GTF_writing,
)
from pyxen.errors import XenError
from pyxen.memory.frames import FrameTable
from pyxen.memory.layout import GRANT_FRAMES, MAX_GRANT_FRAMES
from pyxen.memory.machine import MachineMemory
from pyxen.types import PAGE_SHIFT, GrantRef, Mfn

ENTRY_BYTES = 8
ENTRIES_PER_FRAME = (1 << PAGE_SHIFT) // ENTRY_BYTES
INITIAL_FRAMES = 1


class GrantTable:
    """The grant entries of one domain and their uses by the host (domid 0)."""

    def __init__(self, memory: MachineMemory, frames: FrameTable) -> None:
        self._memory = memory
        self._frames = frames
        self.nr_frames = 0
        self._uses: dict[GrantRef, tuple[int, int]] = {}
        self.on_use: Callable[[str, GrantRef, bool], None] | None = None
        """Told of each use by a trace: grant_map or grant_unmap, for writing or not."""
        self.grow(INITIAL_FRAMES)

    def grow(self, nr_frames: int) -> None:
        """Have at least so many frames. Raises: XenError(ENOSPC) beyond the maximum."""
        if nr_frames > MAX_GRANT_FRAMES:
            raise XenError(E.NOSPC, f"{nr_frames} grant frames, {MAX_GRANT_FRAMES} are allowed")
        for n in range(self.nr_frames, nr_frames):
            self._frames.give_to_domain(GRANT_FRAMES + n)
        self.nr_frames = max(self.nr_frames, nr_frames)

    def frame(self, index: int) -> Mfn:
        """The mfn of a frame of the table."""
        return Mfn(GRANT_FRAMES + index)

    def seed(self, gref: GrantRef, domid: int, mfn: int) -> None:
        """Grant a frame to a domain on the guest's behalf (libxl does it for console and store)."""
        at = self._maddr(gref)
        self._memory.dwords[(at >> 2) + 1] = mfn
        self._memory.dwords[at >> 2] = GTF_permit_access | (domid << 16)

    def begin(self, gref: GrantRef, *, write: bool) -> Mfn:
        """Start to use a granted frame as domid 0.

        Raises: XenError(EINVAL) for a reference that grants nothing, XenError(EACCES) for writing
        to a read-only grant or for a grant to another domain.
        """
        at = self._maddr(gref)
        word = self._memory.dwords[at >> 2]
        mfn = self._memory.dwords[(at >> 2) + 1]
        flags, domid = word & 0xFFFF, word >> 16
        if flags & GTF_type_mask != GTF_permit_access:
            raise XenError(E.INVAL, f"reference {gref} grants nothing")
        if domid != 0 or (write and flags & GTF_readonly):
            raise XenError(E.ACCES, f"reference {gref} does not allow this")
        if not self._frames.is_domains(mfn):
            raise XenError(E.INVAL, f"reference {gref} names frame {mfn:#x}")
        # COMMIT
        readers, writers = self._uses.get(gref, (0, 0))
        self._uses[gref] = (readers + (not write), writers + write)
        self._memory.dwords[at >> 2] = word | GTF_reading | (GTF_writing if write else 0)
        if self.on_use is not None:
            self.on_use("grant_map", gref, write)
        return Mfn(mfn)

    def end(self, gref: GrantRef, *, write: bool) -> None:
        """Stop to use a frame; the last user clears the marks in the entry."""
        readers, writers = self._uses[gref]
        readers, writers = readers - (not write), writers - write
        at = self._maddr(gref) >> 2
        if not writers:
            self._memory.dwords[at] &= ~GTF_writing
        if not writers and not readers:
            self._memory.dwords[at] &= ~GTF_reading
            del self._uses[gref]
        else:
            self._uses[gref] = (readers, writers)
        if self.on_use is not None:
            self.on_use("grant_unmap", gref, write)

    @property
    def uses(self) -> dict[GrantRef, tuple[int, int]]:
        """References in use: (readers, writers)."""
        return dict(self._uses)

    def _maddr(self, gref: int) -> int:
        if not 0 <= gref < self.nr_frames * ENTRIES_PER_FRAME:
            raise XenError(E.INVAL, f"there is no grant reference {gref}")
        return (GRANT_FRAMES << PAGE_SHIFT) + gref * ENTRY_BYTES
