"""The initial page tables of a PV guest: which tables a mapping needs, and filling them in.

A table is named by (level, index): `index` is the virtual address it begins at, in units of what a
table of that level covers (2 MiB for level 1, 1 GiB for 2, 512 GiB for 3). The one level-4 table is
(4, 0).
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import (
    ENTRIES,
    LEVEL_SHIFT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PRESENT,
    PTE_RW,
    PTE_USER,
)
from pyxen.types import PAGE_SHIFT, Pfn

Table: TypeAlias = tuple[int, int]

L4_TABLE: Final[Table] = (4, 0)
TABLE_ENTRY: Final = PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY | PTE_USER
PAGE_ENTRY: Final = PTE_PRESENT | PTE_RW | PTE_ACCESSED
READ_ONLY_PAGE_ENTRY: Final = PAGE_ENTRY & ~PTE_RW

_VADDR_48: Final = (1 << 48) - 1


def _covered_shift(level: int) -> int:
    return LEVEL_SHIFT[level] + 9


def count_tables(start: int, end: int) -> int:
    """How many tables map the virtual range [start, end) in an empty address space."""
    first, last = start & _VADDR_48, (end - 1) & _VADDR_48
    return sum((last >> _covered_shift(n)) - (first >> _covered_shift(n)) + 1 for n in (4, 3, 2, 1))


def tables_for(start: int, end: int, present: Container[Table] = ()) -> Iterator[Table]:
    """The tables that map [start, end), top level first, without those that are there already."""
    first, last = start & _VADDR_48, (end - 1) & _VADDR_48
    for level in (4, 3, 2, 1):
        shift = _covered_shift(level)
        for index in range(first >> shift, (last >> shift) + 1):
            if (level, index) not in present:
                yield level, index


def maddr_of(pfn: int) -> int:
    """The machine address of a pseudo-physical frame while the domain is being built."""
    return (pfn + XEN_PAGES) << PAGE_SHIFT


def link_tables(memory: MachineMemory, tables: Mapping[Table, Pfn]) -> None:
    """Make every table's parent point at it. All of them are zero so far."""
    for (level, index), pfn in tables.items():
        if level < 4:
            parent = tables[level + 1, index >> 9]
            memory.words[(maddr_of(parent) >> 3) + (index & 511)] = maddr_of(pfn) | TABLE_ENTRY


def map_pages(
    memory: MachineMemory, tables: Mapping[Table, Pfn], vaddr: int, pfn: int, pages: int
) -> None:
    """Map `pages` consecutive frames from `pfn` on at `vaddr`, writable, a level-1 table a step."""
    page = (vaddr & _VADDR_48) >> PAGE_SHIFT
    while pages:
        slot = page % ENTRIES
        run = min(pages, ENTRIES - slot)
        first = maddr_of(pfn) | PAGE_ENTRY
        entries = array("Q", range(first, first + (run << PAGE_SHIFT), 1 << PAGE_SHIFT))
        at = (maddr_of(tables[1, page // ENTRIES]) >> 3) + slot
        memory.words[at : at + run] = memoryview(entries)
        page, pfn, pages = page + run, pfn + run, pages - run


def protect_pages(
    memory: MachineMemory, tables: Mapping[Table, Pfn], mapping: int, pfns: Iterable[int]
) -> None:
    """Make frames read-only in the mapping that shows pfn 0 at `mapping`."""
    for pfn in pfns:
        page = ((mapping & _VADDR_48) >> PAGE_SHIFT) + pfn
        at = (maddr_of(tables[1, page // ENTRIES]) >> 3) + page % ENTRIES
        memory.words[at] = maddr_of(pfn) | READ_ONLY_PAGE_ENTRY
