"""The guest's pages that requests move data to and from: grants, kept or not, and their memory.

With persistent grants (public/io/blkif.h, feature-persistent) a page stays in use after the
request, so that the next one with the same reference costs a look into a dictionary. Kept pages
are in use for writing, whatever was the first request. How many are kept is bounded, because the
guest chooses the references; what is beyond the bound is used for one request only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from pyxen.errors import XenError
from pyxen.hypervisor.grant import GrantTable
from pyxen.memory.machine import MachineMemory
from pyxen.types import PAGE_SHIFT, PAGE_SIZE, Mfn

MAX_PERSISTENT_PER_RING = 1056
"""As Linux's blkback (max_persistent_grants): 32 requests of 32 segments and an indirect page."""


@dataclass(slots=True)
class Mapping:
    """Pages in use for one request; `temporary` are those that end with it."""

    mfns: list[Mfn]
    temporary: list[int]
    write: bool


class GrantedPages:
    """The granted pages of one device."""

    def __init__(
        self, memory: MachineMemory, grants: GrantTable, *, persistent: bool, rings: int
    ) -> None:
        self._memory = memory
        self._grants = grants
        self._limit = MAX_PERSISTENT_PER_RING * rings if persistent else 0
        self._kept: dict[int, Mfn] = {}
        self._overflowed = False

    def begin(self, grefs: list[int], *, write: bool) -> Mapping:
        """Use pages; `write` if the guest's memory will be written. Raises: XenError."""
        if not self._limit:
            return Mapping(self._grants.begin_many(grefs, write=write), grefs, write)
        kept = self._kept
        try:
            return Mapping([kept[gref] for gref in grefs], [], write)
        except KeyError:
            pass
        missing = list(dict.fromkeys(gref for gref in grefs if gref not in kept))
        if self._keep(missing):
            return Mapping([kept[gref] for gref in grefs], [], write)
        pages = dict(zip(missing, self._grants.begin_many(missing, write=write), strict=True))
        mfns = [kept[gref] if gref in kept else pages[gref] for gref in grefs]
        return Mapping(mfns, missing, write)

    def _keep(self, missing: list[int]) -> bool:
        """Keep some more pages, if there is room and they are granted for writing."""
        if len(self._kept) + len(missing) > self._limit:
            self._overflowed = True
            return False
        try:
            mfns = self._grants.begin_many(missing, write=True)
        except XenError:
            return False
        self._kept.update(zip(missing, mfns, strict=True))
        return True

    def end(self, mapping: Mapping) -> None:
        """The opposite of `begin`."""
        if mapping.temporary:
            self._grants.end_many(mapping.temporary, write=mapping.write)

    def trim(self) -> None:
        """Make room if there was too little: only while no request is under way."""
        if self._overflowed:
            self._overflowed = False
            self._drop(list(islice(self._kept, self._limit // 4)))

    def close_when_idle(self, in_flight: int) -> None:
        """Let all kept pages go, if no request is under way."""
        if not in_flight:
            self._drop(list(self._kept))

    @property
    def kept(self) -> int:
        """How many pages are kept."""
        return len(self._kept)

    def _drop(self, grefs: list[int]) -> None:
        self._grants.end_many(grefs, write=True)
        for gref in grefs:
            del self._kept[gref]

    # --- their memory -------------------------------------------------------------------------

    def copy(self, mapping: Mapping, length_bytes: int) -> bytes:
        """A copy of the first bytes of the pages."""
        whole = b"".join(self._memory.page(mfn) for mfn in mapping.mfns)
        return whole[:length_bytes]

    def buffers(self, extents: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The memory of extents."""
        memory = self._memory.bytes
        return [memory[start:end] for start, end in extents]

    def written(self, mapping: Mapping) -> None:
        """The pages were written, or parts of them."""
        self._memory.written(mapping.mfns)


def extents_of(
    mfns: Sequence[Mfn], spans: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """(maddr, end) of parts of pages in their order; what is adjacent becomes one.

    spans: first byte and end in each page; None: whole pages.
    """
    extents: list[tuple[int, int]] = []
    start = end = -1
    for mfn, (first, last) in zip(mfns, spans or [(0, PAGE_SIZE)] * len(mfns), strict=True):
        page = mfn << PAGE_SHIFT
        if page + first != end:
            if start != end:
                extents.append((start, end))
            start = page + first
        end = page + last
    if start != end:
        extents.append((start, end))
    return extents
