"""The hypervisor's own frames, and what it puts into every guest address space.

Machine frames below XEN_PAGES:

    0x010            L3 of the M2P           0x011            L2 of the M2P
    0x020            shared_info             0x040 - 0x07f    grant table
    0x080 - 0x0bf    grant status (v2)       0x0c0, 0x0c1     L3, L2 of the GDT window
    0x0c8 - 0x0cf    L1s of the GDT window   0x0d0            the reserved GDT page
    0x100 - 0x2ff    L1s of the M2P

Guest virtual addresses, in two of the L4 slots that Xen reserves (256-271):

    slot 256  0xffff800000000000  machine-to-physical table, read-only (MACH2PHYS_VIRT_START)
    slot 260  0xffff820000000000  descriptor tables: for each vCPU 64 KiB of GDT, 64 KiB of LDT
"""

from __future__ import annotations

from array import array

from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import (
    FIRST_XEN_SLOT,
    LAST_XEN_SLOT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_RW,
    PTE_USER,
)
from pyxen.types import U64, Mfn

M2P_L3 = Mfn(0x010)
M2P_L2 = Mfn(0x011)
SHARED_INFO = Mfn(0x020)
GRANT_FRAMES = Mfn(0x040)
GRANT_STATUS_FRAMES = Mfn(0x080)
MAX_GRANT_FRAMES = 64
GDT_L3 = Mfn(0x0C0)
GDT_L2 = Mfn(0x0C1)
GDT_L1 = Mfn(0x0C8)
GDT_RESERVED_PAGE = Mfn(0x0D0)
M2P_L1 = Mfn(0x100)

M2P_SLOT = 256
DESCRIPTOR_SLOT = 260
M2P_VADDR = 0xFFFF_8000_0000_0000
DESCRIPTOR_VADDR = 0xFFFF_8200_0000_0000
VCPU_WINDOW_SHIFT = 17
LDT_OFFSET = 1 << 16
MAX_VCPUS = 128
MAX_GUEST_PAGES = 511 << 18
"""511 GiB: what one L2 table of the M2P reaches, less the hypervisor's own frames."""

INVALID_M2P_ENTRY = U64
FIRST_RESERVED_GDT_PAGE = 14

_TABLE = PTE_PRESENT | PTE_RW
M2P_SLOT_ENTRY_STRICT = (M2P_L3 << 12) | PTE_PRESENT | PTE_RW | PTE_ACCESSED
M2P_SLOT_ENTRY = M2P_SLOT_ENTRY_STRICT | PTE_USER
"""User mode may read the M2P, as in Xen, until the guest says m2p_strict (vm_assist)."""
DESCRIPTOR_SLOT_ENTRY = (GDT_L3 << 12) | PTE_PRESENT | PTE_RW | PTE_ACCESSED

# Selector offset in the reserved page -> descriptor. The guest kernel runs at privilege level 1 in
# 0xe041/0xe049 while frames show it the selectors of public/arch-x86/xen-x86_64.h.
_RESERVED_DESCRIPTORS = {
    0xE008: 0x00AF_9B00_0000_FFFF,  # hypervisor code
    0xE010: 0x00CF_9300_0000_FFFF,  # hypervisor data
    0xE020: 0x00CF_FB00_0000_FFFF,  # FLAT_RING3_CS32
    0xE028: 0x00CF_F300_0000_FFFF,  # FLAT_RING3_DS
    0xE030: 0x00AF_FB00_0000_FFFF,  # FLAT_RING3_CS64
    0xE040: 0x00AF_BB00_0000_FFFF,  # guest kernel code, privilege level 1
    0xE048: 0x00CF_B300_0000_FFFF,  # guest kernel data, privilege level 1
}


def gdt_vaddr(vcpu_id: int) -> int:
    """Where a vCPU's GDT is mapped; its LDT is LDT_OFFSET further on."""
    return DESCRIPTOR_VADDR + (vcpu_id << VCPU_WINDOW_SHIFT)


def descriptor_pte_maddr(vcpu_id: int, page: int) -> int:
    """Machine address of the L1 entry for page 0-15 (GDT) or 16-31 (LDT) of a vCPU's window."""
    return (GDT_L1 << 12) + ((vcpu_id << 5) + page) * 8


def install(memory: MachineMemory) -> None:
    """Fill the hypervisor's frames of a new machine memory."""
    _install_m2p(memory)
    _install_descriptor_window(memory)


def set_xen_slots(memory: MachineMemory, l4: int, m2p_entry: int = M2P_SLOT_ENTRY) -> None:
    """Put the hypervisor's entries into a top-level table of the guest, whatever was there."""
    base = l4 << 9
    for slot in range(FIRST_XEN_SLOT, LAST_XEN_SLOT + 1):
        memory.words[base + slot] = 0
    memory.words[base + M2P_SLOT] = m2p_entry
    memory.words[base + DESCRIPTOR_SLOT] = DESCRIPTOR_SLOT_ENTRY


def _install_m2p(memory: MachineMemory) -> None:
    words = memory.words
    words[M2P_L3 << 9] = (M2P_L2 << 12) | _TABLE | PTE_USER
    read_only = PTE_PRESENT | PTE_ACCESSED | PTE_NX | PTE_USER
    for page in range(memory.m2p_pages):
        if page % 512 == 0:
            words[(M2P_L2 << 9) + page // 512] = ((M2P_L1 + page // 512) << 12) | _TABLE | PTE_USER
        words[(M2P_L1 << 9) + page] = ((memory.m2p_mfn + page) << 12) | read_only
    start = memory.m2p_mfn << 9
    words[start : start + XEN_PAGES] = memoryview(array("Q", [INVALID_M2P_ENTRY]) * XEN_PAGES)
    start += XEN_PAGES
    words[start : start + memory.guest_pages] = memoryview(array("Q", range(memory.guest_pages)))


def _install_descriptor_window(memory: MachineMemory) -> None:
    words = memory.words
    words[GDT_L3 << 9] = (GDT_L2 << 12) | _TABLE
    for table in range(MAX_VCPUS >> 4):
        words[(GDT_L2 << 9) + table] = ((GDT_L1 + table) << 12) | _TABLE
    for selector, descriptor in _RESERVED_DESCRIPTORS.items():
        words[(GDT_RESERVED_PAGE << 9) + ((selector & 0xFFF) >> 3)] = descriptor
    reserved = (GDT_RESERVED_PAGE << 12) | PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY | PTE_NX
    for vcpu_id in range(MAX_VCPUS):
        words[descriptor_pte_maddr(vcpu_id, FIRST_RESERVED_GDT_PAGE) >> 3] = reserved
