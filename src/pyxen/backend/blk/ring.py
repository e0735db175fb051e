"""One ring of requests and responses, from the back end's side.

Source: public/io/ring.h (struct __name##_sring and its macros), public/io/blkif.h.

    offset 0    req_prod, req_event, rsp_prod, rsp_event       32 bits each
    offset 64   entries: a power of two of them; a response overwrites the request that it answers

The ring lies in one or more granted pages, which need not be adjacent; an entry may lie across the
boundary of two. The indices are free-running 32-bit numbers that the guest may set to anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.hypervisor.grant import GrantTable
from pyxen.memory.machine import MachineMemory
from pyxen.types import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U32

MAX_RING_PAGE_ORDER: Final = 4
HEADER_BYTES: Final = 64
_REQ_PROD, _REQ_EVENT, _RSP_PROD, _RSP_EVENT = range(4)
_RESPONSE = Struct("<QBxh")
"""id, operation, status: the same in all layouts, up to the padding."""


class RingBroken(Exception):
    """The front end claims to have put more requests into the ring than it has room for."""


class BackRing:
    """The ring, with the back end's private indices (struct __name##_back_ring)."""

    def __init__(
        self, memory: MachineMemory, grants: GrantTable, grefs: Sequence[int], entry_bytes: int
    ) -> None:
        """Map a ring; it goes on behind the last response in it.

        Raises: XenError if a page is not granted, XenError(EINVAL) for a number of pages that is
        no power of two up to 16, XenError(EIO) if the ring is broken; nothing is mapped then.
        """
        if len(grefs) not in [1 << order for order in range(MAX_RING_PAGE_ORDER + 1)]:
            raise XenError(E.INVAL, f"a ring of {len(grefs)} pages")
        self._memory = memory
        self._grants = grants
        self._grefs = list(grefs)
        self._pages = [mfn << PAGE_SHIFT for mfn in grants.begin_many(self._grefs, write=True)]
        self._entry_bytes = entry_bytes
        room = (len(grefs) * PAGE_SIZE - HEADER_BYTES) // entry_bytes
        self.size = 1 << room.bit_length() - 1
        """How many entries there are."""
        self._shared = self._pages[0] >> 2
        self._pushed = self._rsp_prod = self._req_cons = self._read(_RSP_PROD)
        self._req_prod = self._read(_REQ_PROD)
        """How far the front end was when we looked."""
        self.is_broken = False
        """Nothing more is taken from it."""
        if self._req_prod - self._rsp_prod & U32 > self.size:
            self.close()
            raise XenError(E.IO, f"{self._req_prod - self._rsp_prod & U32} requests in the ring")

    def close(self) -> None:
        """Let the pages go."""
        self._grants.end_many(self._grefs, write=True)
        self._grefs.clear()

    @property
    def unanswered(self) -> int:
        """How many requests were taken and have no response yet."""
        return self._req_cons - self._rsp_prod & U32

    def take(self) -> bytes | None:
        """A copy of the next request; None if there is none, and the front end is to say so.

        As RING_FINAL_CHECK_FOR_REQUESTS: after the front end was asked to send an event, it is
        looked once more whether it was faster. Raises: RingBroken.
        """
        if self._req_cons == self._req_prod and not self._look():
            self._write(_REQ_EVENT, self._req_cons + 1)
            if not self._look():
                return None
        entry = self._copy(self._place(self._req_cons), self._entry_bytes)
        self._req_cons = self._req_cons + 1 & U32
        return entry

    def _look(self) -> bool:
        """Read the front end's index once. Raises: RingBroken (RING_REQUEST_PROD_OVERFLOW)."""
        prod = self._read(_REQ_PROD)
        count = prod - self._rsp_prod & U32
        if count > self.size or count < self.unanswered:
            self.is_broken = True
            raise RingBroken(f"{count} requests in a ring of {self.size}")
        self._req_prod = prod
        return prod != self._req_cons

    def put(self, id_: int, operation: int, status: int) -> None:
        """Answer one of the requests that were taken; the front end sees it after `push`."""
        self._store(self._place(self._rsp_prod), _RESPONSE.pack(id_, operation, status))
        self._rsp_prod = self._rsp_prod + 1 & U32

    def push(self) -> bool:
        """Show all responses; whether the front end wants an event for them.

        As RING_PUSH_RESPONSES_AND_CHECK_NOTIFY.
        """
        old, new = self._pushed, self._rsp_prod
        if old == new:
            return False
        self._write(_RSP_PROD, new)
        self._pushed = new
        return new - self._read(_RSP_EVENT) & U32 < new - old & U32

    # --- memory -----------------------------------------------------------------------------

    def _read(self, index: int) -> int:
        return self._memory.dwords[self._shared + index]

    def _write(self, index: int, value: int) -> None:
        self._memory.dwords[self._shared + index] = value & U32

    def _place(self, index: int) -> int:
        """Offset of an entry in the pages."""
        return HEADER_BYTES + (index & self.size - 1) * self._entry_bytes

    def _copy(self, offset: int, length: int) -> bytes:
        at = self._pages[offset >> PAGE_SHIFT] + (offset & PAGE_MASK)
        first = min(length, PAGE_SIZE - (offset & PAGE_MASK))
        copy = bytes(self._memory.bytes[at : at + first])
        return copy if first == length else copy + self._copy(offset + first, length - first)

    def _store(self, offset: int, data: bytes) -> None:
        at = self._pages[offset >> PAGE_SHIFT] + (offset & PAGE_MASK)
        first = min(len(data), PAGE_SIZE - (offset & PAGE_MASK))
        self._memory.bytes[at : at + first] = data[:first]
        if first < len(data):
            self._store(offset + first, data[first:])
