"""Guest memory with page tables: pfn 0 L4, 1 L3, 2 L2, 3 L1; BASE maps the first 512 pages."""

from pyxen.memory import layout
from pyxen.memory.frames import FrameTable
from pyxen.memory.guest import GuestSpace
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import PTE_PRESENT, PTE_RW

PAGES = 600
BASE = 0xFFFF_8880_0000_0000
L4, L3, L2, L1 = (XEN_PAGES + pfn for pfn in range(4))
FULL = PTE_PRESENT | PTE_RW


class MappedMemory:
    def __init__(self) -> None:
        self.memory = MachineMemory(PAGES)
        layout.install(self.memory)
        self.frames = FrameTable(self.memory)
        self.space = GuestSpace(self.memory)
        self.space.cr3 = L4 << 12
        words = self.memory.words
        words[(L4 << 9) + (BASE >> 39 & 511)] = L3 << 12 | FULL
        words[(L3 << 9) + (BASE >> 30 & 511)] = L2 << 12 | FULL
        words[L2 << 9] = L1 << 12 | FULL
        for pfn in range(512):
            self.set_pte(pfn, (XEN_PAGES + pfn) << 12 | FULL)
        layout.set_xen_slots(self.memory, L4)

    def set_pte(self, pfn: int, entry: int) -> None:
        self.memory.words[(L1 << 9) + pfn] = entry

    def set_table(self, level: int, entry: int) -> None:
        """The entry above BASE in the L4, L3 or L2."""
        table, index = {4: (L4, BASE >> 39), 3: (L3, BASE >> 30), 2: (L2, BASE >> 21)}[level]
        self.memory.words[(table << 9) + (index & 511)] = entry

    def table(self, level: int) -> int:
        return {4: L3, 3: L2, 2: L1}[level] << 12

    def maddr(self, vaddr: int) -> int:
        return (XEN_PAGES << 12) + vaddr - BASE

    def close(self) -> None:
        self.frames.close()
        self.memory.close()
