"""Descriptor tables: set_trap_table, set_gdt, update_descriptor, and the LDT of mmuext_op.

Source: public/arch-x86/xen.h (trap_info), public/xen.h (MMUEXT_SET_LDT).

GDT and LDT are the guest's own frames, mapped read-only for it and shown to the processor in the
descriptor window of memory/layout.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyxen.abi.arch_x86 import FIRST_RESERVED_GDT_ENTRY, TrapInfo
from pyxen.abi.errno import E
from pyxen.cpu.pvstate import TRAPS
from pyxen.errors import XenError
from pyxen.hypervisor.descriptor import checked_descriptor
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.continuation import work
from pyxen.hypervisor.page_types import Restart
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.pagetable import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_RW,
    is_guest_vaddr,
    translate,
)
from pyxen.types import PAGE_SHIFT, PAGE_SIZE

_WINDOW_PTE = PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY | PTE_NX
_NO_TRAPS = memoryview(bytes(8 * TRAPS)).cast("Q")
_LDT_PAGES = 16
_FIRST_LDT_PAGE = 16
_SEGDESC = FrameType.SEGDESC
_MAX_LDT_ENTRIES = 8192
_DESCRIPTOR_BYTES = 8


def set_trap_table(d: Domain, v: Vcpu, traps: int) -> int:
    """HYPERVISOR_set_trap_table: a list that ends with address 0; address 0 at once clears all."""
    table = []
    if traps:
        for n in range(TRAPS + 1):
            entry = TrapInfo.unpack(d.space.read(traps + n * TrapInfo.SIZE, TrapInfo.SIZE))
            if entry.address == 0:
                break
            if not is_guest_vaddr(entry.address):
                raise XenError(E.INVAL, f"trap handler at {entry.address:#x}")
            work(d)
            table.append(entry)
    # COMMIT
    if not traps:
        v.pv.traps_address[:] = v.pv.traps_flags[:] = _NO_TRAPS
    for entry in table:
        v.pv.traps_address[entry.vector] = entry.address
        v.pv.traps_flags[entry.vector] = entry.flags | entry.cs << 16
    return 0


def set_gdt(d: Domain, v: Vcpu, frame_list: int, entries: int) -> int:
    """HYPERVISOR_set_gdt: `entries` descriptors in the frames of the list."""
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise XenError(E.INVAL, f"{entries} descriptors, the first {FIRST_RESERVED_GDT_ENTRY} only")
    pages = (entries + 511) // 512
    frames = [d.space.read_u64(frame_list + 8 * n) for n in range(pages)]
    load_gdt(d, v, frames)
    return 0


def load_gdt(d: Domain, v: Vcpu, frames: list[int]) -> None:
    """Show these frames as the vCPU's GDT.

    Raises: XenError(EINVAL) for a frame it cannot have, with nothing changed; Restart.
    """
    use_as_descriptors(d, frames)
    # COMMIT
    old, v.gdt_frames = v.gdt_frames, tuple(frames)
    _show(d, v, 0, layout.FIRST_RESERVED_GDT_PAGE, list(v.gdt_frames))
    for mfn in old:
        d.types.put_page_and_type(mfn)
    d.flush_tlb()


def use_as_descriptors(d: Domain, frames: list[int]) -> None:
    """Take all frames into use as descriptor tables, or none. Raises: XenError, Restart."""
    for n, mfn in enumerate(frames):
        try:
            d.types.get_page_and_type(mfn, FrameType.SEGDESC)
        except (XenError, Restart):
            for taken in frames[:n]:
                d.types.put_page_and_type(taken)
            raise


def _show(d: Domain, v: Vcpu, first: int, pages: int, frames: Sequence[int | None]) -> None:
    """Map frames at the vCPU's descriptor window from page `first` on; the rest of it is absent."""
    for page in range(pages):
        mfn = frames[page] if page < len(frames) else None
        mapping = 0 if mfn is None else mfn << PAGE_SHIFT | _WINDOW_PTE
        d.memory.write_u64(layout.descriptor_pte_maddr(v.vcpu_id, first + page), mapping)


def update_descriptor(d: Domain, v: Vcpu, maddr: int, descriptor: int) -> int:
    """HYPERVISOR_update_descriptor: one descriptor by its machine address."""
    mfn = maddr >> PAGE_SHIFT
    checked = checked_descriptor(descriptor)
    if maddr & 7 or checked is None:
        raise XenError(E.INVAL, f"descriptor {descriptor:#x} at {maddr:#x}")
    if not (d.frames.is_domains(mfn) and d.frames.uses(mfn) and d.frames.type(mfn) is _SEGDESC):
        d.types.check_writable(mfn)
    # COMMIT
    d.memory.write(maddr, checked.to_bytes(8, "little"))
    return 0


def set_ldt(d: Domain, v: Vcpu, vaddr: int, entries: int) -> None:
    """MMUEXT_SET_LDT: show `entries` descriptors at a page-aligned address as the vCPU's LDT."""
    check_ldt(vaddr, entries)
    # COMMIT
    load_ldt(d, v, vaddr, entries)


def check_ldt(vaddr: int, entries: int) -> None:
    """Where an LDT may be, and how long. Raises: XenError(EINVAL)."""
    if entries > _MAX_LDT_ENTRIES or (
        entries and (vaddr & (PAGE_SIZE - 1) or not is_guest_vaddr(vaddr))
    ):
        raise XenError(E.INVAL, f"LDT of {entries} descriptors at {vaddr:#x}")


def load_ldt(d: Domain, v: Vcpu, vaddr: int, entries: int) -> None:
    """Show what `check_ldt` has passed as the vCPU's LDT, by its own page tables."""
    v.ldt_vaddr, v.pv.ldt_entries = vaddr, entries
    d.engine.select(v.vcpu_id)
    d.engine.set_ldt_limit(max(entries * _DESCRIPTOR_BYTES - 1, 0))
    d.engine.select(d.current.vcpu_id)
    map_ldt(d, v)


def map_ldt(d: Domain, v: Vcpu) -> None:
    """Show the vCPU's LDT as its page tables map it now.

    A page that is absent or cannot be a descriptor table is absent in the window, too, as in Xen,
    where that shows when a selector is loaded.
    """
    frames: list[int | None] = []
    for page in range((v.pv.ldt_entries + 511) // 512):
        vaddr = v.ldt_vaddr + page * PAGE_SIZE
        maddr = translate(d.memory, v.pv.cr3, vaddr) if is_guest_vaddr(vaddr) else None
        frames.append(None if maddr is None else _use_for_ldt(d, maddr >> PAGE_SHIFT))
    old, v.ldt_frames = v.ldt_frames, tuple(mfn for mfn in frames if mfn is not None)
    _show(d, v, _FIRST_LDT_PAGE, _LDT_PAGES, frames)
    for mfn in old:
        d.types.put_page_and_type(mfn)
    d.flush_tlb()


def _use_for_ldt(d: Domain, mfn: int) -> int | None:
    try:
        d.types.get_page_and_type(mfn, _SEGDESC)
    except (XenError, Restart):
        return None
    return mfn
