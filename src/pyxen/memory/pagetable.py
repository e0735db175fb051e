"""x86-64 page tables as data: bits, indexes and the walk.

Source: Intel SDM volume 3, 4.5 (4-level paging).
"""

from __future__ import annotations

from pyxen.memory.machine import MachineMemory

PTE_PRESENT = 1 << 0
PTE_RW = 1 << 1
PTE_USER = 1 << 2
PTE_PWT = 1 << 3
PTE_PCD = 1 << 4
PTE_ACCESSED = 1 << 5
PTE_DIRTY = 1 << 6
PTE_PSE = 1 << 7
PTE_GLOBAL = 1 << 8
PTE_AVAIL = 7 << 9
PTE_NX = 1 << 63
PTE_ADDRESS = 0x000F_FFFF_FFFF_F000

LEVEL_SHIFT = {4: 39, 3: 30, 2: 21, 1: 12}
ENTRIES = 512

# The slots of every L4 that belong to the hypervisor, as in public/arch-x86/xen-x86_64.h:
# 0xffff800000000000 - 0xffff87ffffffffff.
FIRST_XEN_SLOT = 256
LAST_XEN_SLOT = 271
XEN_VIRT_START = 0xFFFF_8000_0000_0000
XEN_VIRT_END = 0xFFFF_8800_0000_0000
LOWER_HALF_END = 0x0000_8000_0000_0000


def frame_of(entry: int) -> int:
    """The mfn that a page-table entry points at."""
    return (entry & PTE_ADDRESS) >> 12


def is_guest_vaddr(vaddr: int, length_bytes: int = 1) -> bool:
    """Whether a range is canonical and outside of the hypervisor's part of the address space."""
    end = vaddr + length_bytes
    return end <= LOWER_HALF_END or (vaddr >= XEN_VIRT_END and end <= 1 << 64)


def entry_maddr(memory: MachineMemory, cr3: int, vaddr: int, level: int = 1) -> int | None:
    """Machine address of the entry mapping `vaddr` at `level`; None if a level above is absent.

    The tables are the guest's: what points outside of its machine memory counts as absent.
    """
    words = memory.words
    table = cr3
    try:
        for current in range(4, level, -1):
            entry = words[(table >> 3) + ((vaddr >> LEVEL_SHIFT[current]) & 511)]
            if not entry & PTE_PRESENT or (entry & PTE_PSE and current < 4):
                return None
            table = entry & PTE_ADDRESS
    except IndexError:
        return None
    maddr = table + ((vaddr >> LEVEL_SHIFT[level]) & 511) * 8
    return maddr if maddr < memory.size_bytes else None


def translate(memory: MachineMemory, cr3: int, vaddr: int, *, write: bool = False) -> int | None:
    """Machine address of a guest virtual address for a supervisor access; None is a fault.

    With `write`, every level has to allow writing (CR0.WP is on). As in `entry_maddr`, the tables
    may say anything; the page at the address returned is inside of the machine memory.
    """
    words = memory.words
    need = PTE_PRESENT | PTE_RW if write else PTE_PRESENT
    try:
        e4 = words[(cr3 >> 3) + ((vaddr >> 39) & 511)]
        if e4 & need != need:
            return None
        e3 = words[((e4 & PTE_ADDRESS) >> 3) + ((vaddr >> 30) & 511)]
        if e3 & need != need or e3 & PTE_PSE:
            return None
        e2 = words[((e3 & PTE_ADDRESS) >> 3) + ((vaddr >> 21) & 511)]
        if e2 & need != need:
            return None
        if e2 & PTE_PSE:
            maddr = (e2 & PTE_ADDRESS & ~0x1FFFFF) | (vaddr & 0x1FFFFF)
        else:
            e1 = words[((e2 & PTE_ADDRESS) >> 3) + ((vaddr >> 12) & 511)]
            if e1 & need != need:
                return None
            maddr = (e1 & PTE_ADDRESS) | (vaddr & 0xFFF)
    except IndexError:
        return None
    return maddr if maddr < memory.size_bytes else None
