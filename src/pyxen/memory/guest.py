"""Copies to and from guest virtual addresses.

The guest chooses the addresses, so each range is checked to lie outside of the hypervisor's part of
the address space, and each page for being present (and writable). A fault is data: the `try_`
functions return None or False, the others raise XenError(EFAULT) for the hypercall dispatcher.
"""

from __future__ import annotations

from struct import Struct

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.memory.machine import MachineMemory
from pyxen.memory.pagetable import is_guest_vaddr, translate
from pyxen.types import PAGE_MASK, PAGE_SIZE, U64

_U64 = Struct("<Q")
_U32 = Struct("<I")


class GuestSpace:
    """A guest kernel's view of memory. `cr3` is the machine address of the L4 in use."""

    def __init__(self, memory: MachineMemory) -> None:
        self.memory = memory
        self.cr3 = 0

    def try_read(self, vaddr: int, length_bytes: int) -> bytes | None:
        """A copy of guest memory, or None if any byte of it cannot be read."""
        if not is_guest_vaddr(vaddr, length_bytes):
            return None
        memory = self.memory
        if (vaddr & PAGE_MASK) + length_bytes <= PAGE_SIZE:
            maddr = translate(memory, self.cr3, vaddr)
            return None if maddr is None else bytes(memory.bytes[maddr : maddr + length_bytes])
        parts = []
        while length_bytes:
            chunk = min(length_bytes, PAGE_SIZE - (vaddr & PAGE_MASK))
            maddr = translate(memory, self.cr3, vaddr)
            if maddr is None:
                return None
            parts.append(memory.bytes[maddr : maddr + chunk])
            vaddr += chunk
            length_bytes -= chunk
        return b"".join(parts)

    def try_write(self, vaddr: int, data: bytes) -> bool:
        """Write guest memory; False (and nothing written) if any byte of it cannot be."""
        length = len(data)
        if not is_guest_vaddr(vaddr, length):
            return False
        pieces = []
        done = 0
        while done < length:
            chunk = min(length - done, PAGE_SIZE - ((vaddr + done) & PAGE_MASK))
            maddr = translate(self.memory, self.cr3, vaddr + done, write=True)
            if maddr is None:
                return False
            pieces.append((maddr, done, chunk))
            done += chunk
        for maddr, start, chunk in pieces:
            self.memory.write(maddr, data[start : start + chunk])
        return True

    def read(self, vaddr: int, length_bytes: int) -> bytes:
        """copy_from_guest. Raises: XenError(EFAULT)."""
        data = self.try_read(vaddr, length_bytes)
        if data is None:
            raise XenError(E.FAULT, f"cannot read {length_bytes} bytes at {vaddr:#x}")
        return data

    def write(self, vaddr: int, data: bytes) -> None:
        """copy_to_guest. Raises: XenError(EFAULT), with nothing written."""
        if not self.try_write(vaddr, data):
            raise XenError(E.FAULT, f"cannot write {len(data)} bytes at {vaddr:#x}")

    def is_writable(self, vaddr: int, length_bytes: int) -> bool:
        """Whether the whole range can be written."""
        pages = range(vaddr & ~PAGE_MASK, vaddr + length_bytes, PAGE_SIZE)
        return is_guest_vaddr(vaddr, length_bytes) and all(
            translate(self.memory, self.cr3, page, write=True) is not None for page in pages
        )

    def check_writable(self, vaddr: int, length_bytes: int) -> None:
        """Raise XenError(EFAULT) unless the whole range can be written (decode before commit)."""
        if not self.is_writable(vaddr, length_bytes):
            raise XenError(E.FAULT, f"cannot write {length_bytes} bytes at {vaddr:#x}")

    def read_u64(self, vaddr: int) -> int:
        """One 64-bit word. Raises: XenError(EFAULT)."""
        value: int = _U64.unpack(self.read(vaddr, 8))[0]
        return value

    def read_u32(self, vaddr: int) -> int:
        """One 32-bit word. Raises: XenError(EFAULT)."""
        value: int = _U32.unpack(self.read(vaddr, 4))[0]
        return value

    def write_u64(self, vaddr: int, value: int) -> None:
        """One 64-bit word. Raises: XenError(EFAULT)."""
        self.write(vaddr, _U64.pack(value & U64))

    def write_u32(self, vaddr: int, value: int) -> None:
        """One 32-bit word. Raises: XenError(EFAULT)."""
        self.write(vaddr, _U32.pack(value & 0xFFFFFFFF))
