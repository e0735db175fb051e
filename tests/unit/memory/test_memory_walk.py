"""Page-table walks and guest copies: a fault is data, whatever the tables say."""

from __future__ import annotations

import pytest
from mapped_memory import BASE, FULL, L1, L4, PAGES, MappedMemory

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import (
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    entry_maddr,
    is_guest_vaddr,
    translate,
)

PAGE = 4096
PFN = 100
VADDR = BASE + PFN * PAGE


@pytest.mark.parametrize("offset", [0, 1, 0x7F8, 0xFFF])
def test_translates_every_byte_of_a_page(mapped: MappedMemory, offset: int) -> None:
    cr3 = L4 << 12
    assert translate(mapped.memory, cr3, VADDR + offset) == mapped.maddr(VADDR + offset)
    assert translate(mapped.memory, cr3, VADDR + offset, write=True) == mapped.maddr(VADDR + offset)


def test_a_missing_entry_at_each_level_is_a_fault(mapped: MappedMemory) -> None:
    for level in (4, 3, 2):
        mapped.set_table(level, mapped.table(level) | PTE_RW)
        assert translate(mapped.memory, L4 << 12, VADDR) is None
        assert entry_maddr(mapped.memory, L4 << 12, VADDR) is None
        mapped.set_table(level, mapped.table(level) | FULL)
    mapped.set_pte(PFN, 0)
    assert translate(mapped.memory, L4 << 12, VADDR) is None
    assert entry_maddr(mapped.memory, L4 << 12, VADDR) == (L1 << 12) + PFN * 8


def test_writing_needs_the_permission_of_every_level(mapped: MappedMemory) -> None:
    for level in (4, 3, 2):
        mapped.set_table(level, mapped.table(level) | PTE_PRESENT)
        assert translate(mapped.memory, L4 << 12, VADDR) is not None
        assert translate(mapped.memory, L4 << 12, VADDR, write=True) is None
        mapped.set_table(level, mapped.table(level) | FULL)
    mapped.set_pte(PFN, (XEN_PAGES + PFN) << 12 | PTE_PRESENT)
    assert translate(mapped.memory, L4 << 12, VADDR) is not None
    assert translate(mapped.memory, L4 << 12, VADDR, write=True) is None


def test_large_pages(mapped: MappedMemory) -> None:
    start = XEN_PAGES << 12
    mapped.set_table(2, start | FULL | PTE_PSE)
    assert translate(mapped.memory, L4 << 12, BASE + 0x12345) == start + 0x12345
    assert entry_maddr(mapped.memory, L4 << 12, BASE) is None
    mapped.set_table(3, start | FULL | PTE_PSE)
    assert translate(mapped.memory, L4 << 12, BASE) is None


@pytest.mark.parametrize("frame", [PAGES * 100, 1 << 30, (1 << 40) - 1])
def test_tables_outside_of_memory_are_a_fault(mapped: MappedMemory, frame: int) -> None:
    for level in (4, 3, 2):
        mapped.set_table(level, frame << 12 | FULL)
        assert translate(mapped.memory, L4 << 12, VADDR) is None
        assert entry_maddr(mapped.memory, L4 << 12, VADDR) is None
        mapped.set_table(level, mapped.table(level) | FULL)
    mapped.set_pte(PFN, frame << 12 | FULL)
    assert translate(mapped.memory, L4 << 12, VADDR) is None
    assert mapped.space.try_read(VADDR, 8) is None
    assert not mapped.space.try_write(VADDR, b"12345678")


def test_the_last_frame_is_inside(mapped: MappedMemory) -> None:
    last = mapped.memory.total_pages - 1
    mapped.set_pte(PFN, last << 12 | FULL)
    assert translate(mapped.memory, L4 << 12, VADDR + 0xFFF) == (last << 12) + 0xFFF
    mapped.set_pte(PFN, (last + 1) << 12 | FULL)
    assert translate(mapped.memory, L4 << 12, VADDR) is None


@pytest.mark.parametrize(
    ("vaddr", "length", "allowed"),
    [
        (0, 1, True),
        (0x7FFF_FFFF_F000, 0x1000, True),
        (0x7FFF_FFFF_F000, 0x1001, False),
        (0x8000_0000_0000, 1, False),
        (0xFFFF_7FFF_FFFF_FFFF, 1, False),
        (0xFFFF_8000_0000_0000, 1, False),
        (0xFFFF_87FF_FFFF_FFFF, 1, False),
        (0xFFFF_87FF_FFFF_FFFF, 2, False),
        (0xFFFF_8800_0000_0000, 1, True),
        (0xFFFF_FFFF_FFFF_FFFF, 1, True),
        (0xFFFF_FFFF_FFFF_FFFF, 2, False),
        (0xFFFF_FFFF_FFFF_F000, 0x1000, True),
        (1 << 64, 1, False),
        ((1 << 64) + 8, 8, False),
    ],
)
def test_the_guests_part_of_the_address_space(vaddr: int, length: int, allowed: bool) -> None:
    assert is_guest_vaddr(vaddr, length) == allowed


@pytest.mark.parametrize(
    "vaddr", [layout.M2P_VADDR, layout.DESCRIPTOR_VADDR, layout.gdt_vaddr(3) + 14 * PAGE]
)
def test_the_hypervisors_mappings_are_refused(mapped: MappedMemory, vaddr: int) -> None:
    assert mapped.space.try_read(vaddr, 8) is None
    assert not mapped.space.try_write(vaddr, bytes(8))
    assert not mapped.space.is_writable(vaddr, 8)


def test_copies_over_page_boundaries(mapped: MappedMemory) -> None:
    mapped.set_pte(PFN, (XEN_PAGES + 300) << 12 | FULL)
    mapped.set_pte(PFN + 1, (XEN_PAGES + 200) << 12 | FULL)
    data = bytes(range(256)) * 40
    at = VADDR + PAGE - 100
    mapped.space.write(at, data)
    assert mapped.space.read(at, len(data)) == data
    assert mapped.memory.read(((XEN_PAGES + 300) << 12) + PAGE - 100, 100) == data[:100]
    assert mapped.memory.read((XEN_PAGES + 200) << 12, PAGE) == data[100 : 100 + PAGE]


def test_a_partial_fault_writes_nothing(mapped: MappedMemory) -> None:
    mapped.set_pte(PFN + 1, (XEN_PAGES + PFN + 1) << 12 | PTE_PRESENT)
    at = VADDR + PAGE - 4
    assert not mapped.space.try_write(at, b"abcdefgh")
    assert mapped.space.read(at, 8) == bytes(8)
    mapped.set_pte(PFN + 1, 0)
    assert mapped.space.try_read(at, 8) is None
    assert mapped.space.try_read(at, 4) == bytes(4)
    assert not mapped.space.is_writable(at, 8)
    assert mapped.space.is_writable(at, 4)


def test_faults_raise_efault(mapped: MappedMemory) -> None:
    mapped.set_pte(PFN, 0)
    for act in (
        lambda: mapped.space.read(VADDR, 1),
        lambda: mapped.space.write(VADDR, b"x"),
        lambda: mapped.space.read_u32(VADDR),
        lambda: mapped.space.read_u64(VADDR - 4),
        lambda: mapped.space.write_u64(VADDR - 4, 1),
        lambda: mapped.space.check_writable(VADDR - 1, 2),
    ):
        with pytest.raises(XenError) as refused:
            act()
        assert refused.value.errno is E.FAULT


def test_words_are_little_endian_and_wrap(mapped: MappedMemory) -> None:
    mapped.space.write_u64(VADDR + 4, -1)
    mapped.space.write_u32(VADDR + 4, 0x1_2345_6789)
    assert mapped.space.read(VADDR, 16) == bytes(4) + bytes.fromhex("89674523ffffffff") + bytes(4)
    assert mapped.space.read_u32(VADDR + 4) == 0x2345_6789
    assert mapped.space.read_u64(VADDR + 4) == 0xFFFF_FFFF_2345_6789


def test_the_engine_is_told_of_every_write(mapped: MappedMemory) -> None:
    told: list[tuple[int, int]] = []
    mapped.memory.on_write = lambda maddr, length: told.append((maddr, length))
    mapped.space.write(VADDR + PAGE - 2, b"1234")
    mapped.memory.zero_page(XEN_PAGES + 3)
    mapped.memory.copy_page(XEN_PAGES + 5, XEN_PAGES + 6)
    assert told == [
        (mapped.maddr(VADDR + PAGE - 2), 2),
        (mapped.maddr(VADDR + PAGE), 2),
        ((XEN_PAGES + 3) << 12, PAGE),
        ((XEN_PAGES + 5) << 12, PAGE),
    ]
