"""Which frames a domain has: the reservation that ballooning changes.

Source: public/memory.h, XENMEM_decrease_reservation and its relatives.

Machine memory is reserved for `max_pages` at the start; frames that the domain does not have at the
moment are kept here and belong to the hypervisor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.hypervisor.page_types import PageTypes
from pyxen.memory.frames import FrameTable
from pyxen.memory.layout import INVALID_M2P_ENTRY
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.types import PAGE_SHIFT, Mfn

if TYPE_CHECKING:
    from pyxen.hypervisor.domain import DomainSpec

SEARCHED_FRAMES = 4096
"""How many free frames are looked at for a row: it must not take long."""


class Reservation:
    """The frames of a domain, and the free ones it may still get."""

    def __init__(
        self, memory: MachineMemory, frames: FrameTable, types: PageTypes, spec: DomainSpec
    ) -> None:
        self._memory = memory
        self._frames = frames
        self._types = types
        types.on_free = self._free_frame
        self._m2p = memory.m2p_mfn << (PAGE_SHIFT - 3)
        self.max_pages = spec.max_pages
        self.pages = pages = spec.memory_pages
        # Ascending pop: the lowest free frame is handed out first.
        self._free = list(range(XEN_PAGES + memory.guest_pages - 1, XEN_PAGES + pages - 1, -1))
        for mfn in self._free:
            frames.take_from_domain(mfn)
            memory.words[self._m2p + mfn] = INVALID_M2P_ENTRY

    def release(self, mfn: int) -> None:
        """Take a frame from the domain, once nothing refers to it any more (as in Xen).

        Raises: XenError(EINVAL) if it has no such frame; Restart.
        """
        if self._types.release(mfn):
            self._free_frame(mfn)

    def _free_frame(self, mfn: int) -> None:
        self._frames.take_from_domain(mfn)
        self._memory.words[self._m2p + mfn] = INVALID_M2P_ENTRY
        self._free.append(mfn)
        self.pages -= 1

    def allocate(self, order: int = 0) -> Mfn:
        """Give the domain 2**order more frames, zeroed, aligned and in a row; the first of them.

        Raises: XenError(ENOMEM) when it has all that it may have, or there is no such row.
        """
        count = 1 << order
        if self.pages + count > self.max_pages or not self._free:
            raise XenError(E.NOMEM, "the domain has its maximum of memory")
        first = self._free[-1] if not order else self._find_row(count)
        # COMMIT
        if order:
            row = range(first, first + count)
            self._free = [mfn for mfn in self._free if mfn not in row]
        else:
            self._free.pop()
        for mfn in range(first, first + count):
            self._frames.give_to_domain(mfn)
            self._memory.zero_page(mfn)
        self.pages += count
        return Mfn(first)

    def _find_row(self, count: int) -> int:
        """The first of `count` free frames in a row, the number a multiple of `count`."""
        near = set(self._free[-SEARCHED_FRAMES:])
        for first in sorted(mfn for mfn in near if mfn % count == 0):
            if all(mfn in near for mfn in range(first, first + count)):
                return first
        raise XenError(E.NOMEM, f"no {count} free frames in a row")

    def take_again(self, mfns: Iterable[int]) -> None:
        """Give free frames to the domain again, with what is in them (an exchange that failed)."""
        taken = set(mfns)
        self._free = [mfn for mfn in self._free if mfn not in taken]
        for mfn in taken:
            self._frames.give_to_domain(mfn)
        self.pages += len(taken)

    def set_m2p(self, mfn: int, pfn: int) -> None:
        """The guest's pseudo-physical number of a frame, as the M2P shows it."""
        self._memory.words[self._m2p + mfn] = pfn
