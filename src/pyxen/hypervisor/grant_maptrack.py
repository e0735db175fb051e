"""The handles of what a domain has mapped of grants.

Source: xen/common/grant_table.c as it shows to guests (maptrack): handles are numbers from 0 that
are used again in the order in which they came free; one free handle is always kept back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pyxen.types import PAGE_SIZE, DomId, GrantRef

MAX_MAPTRACK_FRAMES = 1024
HANDLES_PER_FRAME = PAGE_SIZE // 16


@dataclass(slots=True)
class Mapping:
    """One mapping: whose grant, and the GNTMAP_* flags that are left of it."""

    domid: DomId
    ref: GrantRef
    flags: int


class Maptrack:
    """Handles and their mappings. Host memory for them grows by one frame's worth at a time."""

    def __init__(self, max_frames: int = MAX_MAPTRACK_FRAMES) -> None:
        self.max_frames = max_frames
        self._mappings: dict[int, Mapping] = {}
        self._free: deque[int] = deque()
        self._limit = 0

    def take(self) -> int | None:
        """A handle, or None when all are in use."""
        if len(self._free) > 1:
            return self._free.popleft()
        if self._limit >= self.max_frames * HANDLES_PER_FRAME:
            return None
        handle = self._limit
        self._limit += HANDLES_PER_FRAME
        self._free.extendleft(reversed(range(handle + 1, self._limit)))
        return handle

    def put(self, handle: int) -> None:
        """Give a handle back, with its mapping if it has one."""
        self._mappings.pop(handle, None)
        self._free.append(handle)

    def record(self, handle: int, mapping: Mapping) -> None:
        """What a handle stands for."""
        self._mappings[handle] = mapping

    def find(self, handle: int) -> Mapping | None:
        """The mapping of a handle, or None if there is none."""
        return self._mappings.get(handle)

    def __len__(self) -> int:
        return len(self._mappings)
