"""The frame table, and what the hypervisor puts into machine memory at the start."""

from __future__ import annotations

import pytest
from mapped_memory import L4, PAGES, MappedMemory

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.memory import layout
from pyxen.memory.frames import FrameType, Owner
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import PTE_RW, translate


def _errno(act, *arguments: object) -> E:  # type: ignore[no-untyped-def]
    with pytest.raises(XenError) as refused:
        act(*arguments)
    return refused.value.errno


def test_owners_at_the_start(mapped: MappedMemory) -> None:
    frames, memory = mapped.frames, mapped.memory
    assert frames.owner(0) is Owner.XEN
    assert frames.owner(XEN_PAGES - 1) is Owner.XEN
    assert frames.owner(XEN_PAGES) is Owner.DOMAIN
    assert frames.owner(XEN_PAGES + PAGES - 1) is Owner.DOMAIN
    assert frames.owner(memory.m2p_mfn) is Owner.XEN
    assert frames.owner(memory.total_pages - 1) is Owner.XEN
    for mfn in (memory.total_pages, 1 << 40, -1):
        assert not frames.is_domains(mfn)
        assert _errno(frames.owner, mfn) is E.INVAL


def test_lending_a_frame_to_the_guest(mapped: MappedMemory) -> None:
    mapped.frames.share_with_domain(layout.SHARED_INFO)
    assert mapped.frames.is_domains(layout.SHARED_INFO)
    assert mapped.frames.type(layout.SHARED_INFO) is FrameType.WRITABLE
    assert mapped.frames.uses(layout.SHARED_INFO) == 1, "for ever, so it is never a table"
    mapped.frames.take_from_domain(layout.SHARED_INFO)
    assert not mapped.frames.is_domains(layout.SHARED_INFO)


def test_the_m2p_is_mapped_read_only_and_knows_every_frame(mapped: MappedMemory) -> None:
    memory, cr3 = mapped.memory, L4 << 12
    for mfn in (0, XEN_PAGES - 1, XEN_PAGES, XEN_PAGES + 511, XEN_PAGES + PAGES - 1):
        at = translate(memory, cr3, layout.M2P_VADDR + mfn * 8)
        assert at is not None
        wanted = layout.INVALID_M2P_ENTRY if mfn < XEN_PAGES else mfn - XEN_PAGES
        assert memory.read_u64(at) == wanted
        assert translate(memory, cr3, layout.M2P_VADDR + mfn * 8, write=True) is None
    assert translate(memory, cr3, layout.M2P_VADDR + (memory.m2p_pages << 12)) is None


def test_each_vcpu_has_the_reserved_descriptors(mapped: MappedMemory) -> None:
    for vcpu_id in (0, 1, layout.MAX_VCPUS - 1):
        at = translate(mapped.memory, L4 << 12, layout.gdt_vaddr(vcpu_id) + 0xE030)
        assert at is not None
        assert mapped.memory.read_u64(at) >> 40 & 0xFF == 0xFB, "code, privilege level 3"
        assert translate(mapped.memory, L4 << 12, layout.gdt_vaddr(vcpu_id)) is None


def test_windows_do_not_overlap() -> None:
    assert layout.gdt_vaddr(1) - layout.gdt_vaddr(0) == 2 * layout.LDT_OFFSET
    entries = {
        layout.descriptor_pte_maddr(vcpu_id, page)
        for vcpu_id in range(layout.MAX_VCPUS)
        for page in range(32)
    }
    assert len(entries) == layout.MAX_VCPUS * 32
    assert max(entries) >> 12 < layout.GDT_RESERVED_PAGE
    assert min(entries) >> 12 == layout.GDT_L1


def test_xen_slots_leave_the_rest_alone(mapped: MappedMemory) -> None:
    l4 = XEN_PAGES + 60
    for slot in (255, 257, 271, 272):
        mapped.memory.words[(l4 << 9) + slot] = 0x1234
    layout.set_xen_slots(mapped.memory, l4)
    words = mapped.memory.words[l4 << 9 : (l4 + 1) << 9]
    filled = [slot for slot, word in enumerate(words) if word]
    assert filled == [255, layout.M2P_SLOT, layout.DESCRIPTOR_SLOT, 272]
    assert words[layout.M2P_SLOT] & PTE_RW, "the lower levels make it read-only"
