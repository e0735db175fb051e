"""The console device: moves bytes between the ring and whoever watches.

Source: public/io/console.h (struct xencons_interface).
"""

from __future__ import annotations

from collections.abc import Callable

from pyxen.abi.io.console import XenconsInterface
from pyxen.backend.byte_ring import ByteRing, RingBroken
from pyxen.memory.machine import MachineMemory
from pyxen.types import PAGE_SHIFT, Mfn

INPUT_LIMIT_BYTES = 64 << 10
_AT = XenconsInterface.OFFSET
_IN_BYTES = 1024
_OUT_BYTES = 2048

Watcher = Callable[[bytes], None]


class Console:
    """One guest's console.

    raise_event: tells the guest that the ring changed. keep: gets every byte of output first.
    """

    def __init__(
        self,
        memory: MachineMemory,
        mfn: Mfn,
        raise_event: Callable[[], None],
        keep: Callable[[bytes], None],
    ) -> None:
        page = mfn << PAGE_SHIFT
        self._output = ByteRing(
            memory, page + _AT["out"], _OUT_BYTES, page + _AT["out_cons"], page + _AT["out_prod"]
        )
        self._input = ByteRing(
            memory, page + _AT["in_"], _IN_BYTES, page + _AT["in_cons"], page + _AT["in_prod"]
        )
        self._raise_event = raise_event
        self._keep = keep
        self._watchers: list[Watcher] = []
        self._typed = bytearray()
        self.output_bytes = 0
        self.broken_count = 0

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Get all further output; returns what ends that."""
        self._watchers.append(watcher)

        def leave() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return leave

    def notified(self) -> None:
        """The guest sent an event: it wrote something, or has room for input."""
        try:
            data = self._output.take()
            moved = self._push_input()
        except RingBroken:
            self.broken_count += 1
            self._output.skip_all()
            return
        if data:
            self.output_bytes += len(data)
            self._keep(data)
            for watcher in list(self._watchers):
                watcher(data)
        if data or moved:
            self._raise_event()

    def type(self, data: bytes) -> None:
        """Input for the guest; what does not fit in its ring waits, INPUT_LIMIT_BYTES at most."""
        room = INPUT_LIMIT_BYTES - len(self._typed)
        self._typed += data[:room]
        try:
            moved = self._push_input()
        except RingBroken:
            self.broken_count += 1
            return
        if moved:
            self._raise_event()

    def _push_input(self) -> bool:
        if not self._typed:
            return False
        moved = self._input.put(self._typed)
        del self._typed[:moved]
        return moved > 0
