"""The machine memory of one domain: one memfd, one mapping at one address.

    mfn 0                    XEN_PAGES                XEN_PAGES + guest_pages       total_pages
     | the hypervisor's frames | the guest's frames       | machine-to-physical table |
       (memory/layout.py)        (mfn = pfn + XEN_PAGES)    (read-only to the guest)

The file is sparse: what nobody touched costs nothing. Clones map the same memfd privately over the
same address, so nothing else may hold guest memory.

The three views are for frames that never hold code (tables, rings, shared info). Everything that a
back end or a hypercall writes into ordinary guest memory goes through `write`, which tells the
engine: there may be translated code. Who lets the kernel write there says so with `written`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterable

from pyxen.types import PAGE_SHIFT, PAGE_SIZE, Mfn

XEN_PAGES = 0x1000


class MachineMemory:
    """All frames that a domain can ever see; addresses are machine addresses in bytes."""

    XEN_PAGES = XEN_PAGES

    def __init__(self, guest_pages: int) -> None:
        """Reserve (not allocate) memory for a guest of `guest_pages` 4 KiB pages."""
        self.guest_pages = guest_pages
        self.m2p_mfn = Mfn(XEN_PAGES + guest_pages)
        entries = XEN_PAGES + guest_pages
        self.m2p_pages = (entries * 8 + PAGE_SIZE - 1) >> PAGE_SHIFT
        self.total_pages = entries + self.m2p_pages
        self.size_bytes = size = self.total_pages << PAGE_SHIFT
        self.fd = os.memfd_create("pyxen-guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("Q")
        self.dwords = self.bytes.cast("I")
        self.on_write: Callable[[int, int], None] | None = None
        """Called with (maddr, length_bytes) after every `write`; set by who owns the engine."""
        self.code_pages: memoryview | None = None
        """A byte for each frame: 0 if `on_write` need not know. None: it always wants to."""

    def close(self) -> None:
        """Give the memory back. No view may be used afterwards."""
        del self._anchor
        self.words.release()
        self.dwords.release()
        self.bytes.release()
        self._map.close()
        os.close(self.fd)

    def is_guest_frame(self, mfn: int) -> bool:
        """Whether a frame is one of the guest's own."""
        return XEN_PAGES <= mfn < XEN_PAGES + self.guest_pages

    def read(self, maddr: int, length_bytes: int) -> bytes:
        """A copy of guest memory."""
        return bytes(self.bytes[maddr : maddr + length_bytes])

    def write(self, maddr: int, data: bytes | bytearray | memoryview) -> None:
        """Write guest memory from outside of the engine."""
        length = len(data)
        self.bytes[maddr : maddr + length] = data
        if self.on_write is not None:
            self.on_write(maddr, length)

    def written(self, mfns: Iterable[Mfn]) -> None:
        """Somebody wrote to frames through `bytes` (a system call, for a disk's data)."""
        if self.on_write is None:
            return
        code = self.code_pages
        for mfn in mfns if code is None else [mfn for mfn in mfns if code[mfn]]:
            self.on_write(mfn << PAGE_SHIFT, PAGE_SIZE)

    def read_u64(self, maddr: int) -> int:
        """The word at an address that is a multiple of 8."""
        return self.words[maddr >> 3]

    def write_u64(self, maddr: int, value: int) -> None:
        """Set the word at an address that is a multiple of 8; not for pages with code."""
        self.words[maddr >> 3] = value

    def page(self, mfn: int) -> memoryview:
        """The 4096 bytes of a frame."""
        start = mfn << PAGE_SHIFT
        return self.bytes[start : start + PAGE_SIZE]

    def zero_page(self, mfn: int) -> None:
        """Fill a frame with zeros."""
        self.write(mfn << PAGE_SHIFT, bytes(PAGE_SIZE))

    def copy_page(self, dst: int, src: int) -> None:
        """Copy one frame over another."""
        self.write(dst << PAGE_SHIFT, self.read(src << PAGE_SHIFT, PAGE_SIZE))
