"""Page-table entries for grants, which the hypervisor writes into the guest's own tables.

Source: public/grant_table.h, GNTMAP_*; xen/arch/x86/pv/grant_table.c as it shows to guests.

All writes go through `_set_entry`: it is the one place for whatever accounting a level 1 entry
needs.
"""

from __future__ import annotations

from pyxen.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_readonly,
    GNTST_general_error,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.grant import GrantRefused
from pyxen.memory.pagetable import (
    PTE_ACCESSED,
    PTE_AVAIL,
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_RW,
    PTE_USER,
    entry_maddr,
    frame_of,
    is_guest_vaddr,
)

_GUEST_AVAIL_TO_PTE_SHIFT = 7
"""GNTMAP_guest_avail0 is bit 16 of the flags, the first available bit of an entry is bit 9."""


def entry_of(mfn: int, flags: int) -> int:
    """The entry that maps a granted frame as the GNTMAP_* flags say."""
    entry = mfn << 12 | PTE_PRESENT | PTE_ACCESSED | PTE_DIRTY | PTE_NX
    if flags & GNTMAP_application_map:
        entry |= PTE_USER
    if not flags & GNTMAP_readonly:
        entry |= PTE_RW
    return entry | (flags >> _GUEST_AVAIL_TO_PTE_SHIFT & PTE_AVAIL)


def create(d: Domain, host_addr: int, mfn: int, flags: int) -> None:
    """Map a granted frame; what the entry held before is gone.

    host_addr: the virtual address, or with GNTMAP_contains_pte the machine address of the entry.
    Raises: GrantRefused(general_error) if there is no such entry in a level 1 table of the guest.
    """
    _set_entry(d, _find(d, host_addr, flags), entry_of(mfn, flags))


def destroy(d: Domain, host_addr: int, mfn: int, flags: int) -> None:
    """Clear an entry that `create` wrote. Raises: GrantRefused(general_error) if it is another."""
    maddr = _find(d, host_addr, flags)
    _check_is_mapping(d, maddr, mfn, flags)
    _set_entry(d, maddr, 0)


def replace(d: Domain, host_addr: int, new_addr: int, mfn: int, flags: int) -> None:
    """GNTTABOP_unmap_and_replace: move the entry of `new_addr` to where the grant was mapped.

    As in Xen, `new_addr` is unmapped first, and stays so if the rest is refused: only so the two
    addresses can be the same without a mapping that nobody counts.
    Raises: GrantRefused(general_error).
    """
    if flags & GNTMAP_contains_pte:
        raise GrantRefused(GNTST_general_error, "no replacement for a mapping by its entry")
    source = _find(d, new_addr, 0)
    _check_table(d, source)
    moved = d.memory.read_u64(source)
    if moved & PTE_PRESENT:
        d.types.get_page(frame_of(moved))  # the page may have no other reference meanwhile
    try:
        _set_entry(d, source, 0)
        maddr = _find(d, host_addr, flags)
        _check_is_mapping(d, maddr, mfn, flags)
        _set_entry(d, maddr, moved)
    finally:
        if moved & PTE_PRESENT:
            d.types.put_page(frame_of(moved))


def _find(d: Domain, host_addr: int, flags: int) -> int:
    """Machine address of the entry that a guest means."""
    if flags & GNTMAP_contains_pte:
        if host_addr & 7:
            raise GrantRefused(GNTST_general_error, f"no entry begins at {host_addr:#x}")
        return host_addr
    maddr = None
    if is_guest_vaddr(host_addr):
        maddr = entry_maddr(d.memory, d.space.cr3, host_addr)
    if maddr is None:
        raise GrantRefused(GNTST_general_error, f"{host_addr:#x} has no page table")
    return maddr


def _check_table(d: Domain, maddr: int) -> None:
    """Whether an address lies in a level 1 table of the guest that is in use."""
    if not d.frames.is_domains(maddr >> 12) or d.types.level_of(maddr >> 12) != 1:
        raise GrantRefused(GNTST_general_error, f"{maddr:#x} is in no level 1 table")


def _check_is_mapping(d: Domain, maddr: int, mfn: int, flags: int) -> None:
    """Whether the entry maps what was granted, with the same rights."""
    _check_table(d, maddr)
    entry = d.memory.read_u64(maddr)
    changed = entry ^ entry_of(mfn, flags)
    if frame_of(entry) != mfn or changed & (PTE_PRESENT | PTE_RW):
        raise GrantRefused(GNTST_general_error, f"entry {entry:#x} does not map the grant")


def _set_entry(d: Domain, maddr: int, entry: int) -> None:
    """Write an entry of a level 1 table, with the checks of mmu_update.

    Raises: GrantRefused(general_error). The caller flushes.
    """
    try:
        d.types.modify_l1(maddr, entry)
    except XenError as refused:
        raise GrantRefused(GNTST_general_error, str(refused)) from None
