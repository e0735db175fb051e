"""Descriptor tables: set_trap_table, set_gdt, update_descriptor, and the LDT of mmuext_op.

Source: public/arch-x86/xen.h (trap_info), public/xen.h (MMUEXT_SET_LDT).

GDT and LDT are the guest's own frames, mapped read-only for it and shown to the processor in the
descriptor window of memory/layout.py.
"""

from __future__ import annotations

from pyxen.abi.arch_x86 import FIRST_RESERVED_GDT_ENTRY, TrapInfo
from pyxen.abi.errno import E
from pyxen.cpu.pvstate import TRAPS
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.continuation import work
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
_WORK_PER_PAGE = 64
_MAX_LDT_ENTRIES = 8192

_PRESENT = 1 << 47
_NOT_SYSTEM = 1 << 44
_CODE = 1 << 43
_TYPE = 0xF << 40
_CODE_CONFORMING = 1 << 42


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
    """Show these frames as the vCPU's GDT. Raises: XenError(EINVAL) for a frame it cannot have."""
    for mfn in frames:
        _check_frame(d, mfn)
    # COMMIT
    v.gdt_frames = tuple(frames)
    for page in range(layout.FIRST_RESERVED_GDT_PAGE):
        mapping = (frames[page] << PAGE_SHIFT | _WINDOW_PTE) if page < len(frames) else 0
        d.memory.write_u64(layout.descriptor_pte_maddr(v.vcpu_id, page), mapping)
    d.engine.flush_tlb()


def _check_frame(d: Domain, mfn: int) -> None:
    """Whether a frame can be part of a descriptor table. Raises: XenError(EINVAL)."""
    if not d.memory.is_guest_frame(mfn) or not d.frames.is_domains(mfn):
        raise XenError(E.INVAL, f"frame {mfn:#x} is not the domain's")
    work(d, _WORK_PER_PAGE)
    for word in d.memory.page(mfn).cast("Q"):
        if word and not is_allowed(word):
            raise XenError(E.INVAL, f"descriptor {word:#x}")


def update_descriptor(d: Domain, v: Vcpu, maddr: int, descriptor: int) -> int:
    """HYPERVISOR_update_descriptor: one descriptor by its machine address."""
    mfn = maddr >> PAGE_SHIFT
    if maddr & 7 or not d.memory.is_guest_frame(mfn) or not d.frames.is_domains(mfn):
        raise XenError(E.INVAL, f"descriptor at {maddr:#x}")
    if FrameType.L1 <= d.frames.type(mfn) <= FrameType.L4:
        raise XenError(E.INVAL, f"frame {mfn:#x} is a page table")
    if not is_allowed(descriptor):
        raise XenError(E.INVAL, f"descriptor {descriptor:#x}")
    # COMMIT
    d.memory.write_u64(maddr, descriptor)
    return 0


def set_ldt(d: Domain, v: Vcpu, vaddr: int, entries: int) -> None:
    """MMUEXT_SET_LDT: show `entries` descriptors at a page-aligned address as the vCPU's LDT."""
    if entries > _MAX_LDT_ENTRIES or vaddr & (PAGE_SIZE - 1):
        raise XenError(E.INVAL, f"LDT of {entries} descriptors at {vaddr:#x}")
    maddrs: list[int | None] = []
    if entries:
        pages = (entries + 511) // 512
        if not is_guest_vaddr(vaddr, pages * PAGE_SIZE):
            raise XenError(E.INVAL, f"LDT at {vaddr:#x}")
        maddrs = [translate(d.memory, d.space.cr3, vaddr + n * PAGE_SIZE) for n in range(pages)]
        for maddr in maddrs:
            if maddr is not None:
                _check_frame(d, maddr >> PAGE_SHIFT)
    # COMMIT
    for page in range(_LDT_PAGES):
        maddr = maddrs[page] if page < len(maddrs) else None
        mapping = 0 if maddr is None else (maddr & ~(PAGE_SIZE - 1)) | _WINDOW_PTE
        d.memory.write_u64(layout.descriptor_pte_maddr(v.vcpu_id, 16 + page), mapping)
    d.engine.flush_tlb()


def is_allowed(descriptor: int) -> bool:
    """Whether a guest may have this descriptor: code and data at its own privilege, or absent.

    No system descriptors or gates, nothing at privilege level 0, no conforming code
    (xen/arch/x86/pv/descriptor-tables.c, check_descriptor). Guests write level 0 or 1 for their
    kernel segments; whether these work is decided when they are loaded.
    """
    if not descriptor & _PRESENT:
        return True
    if not descriptor & _NOT_SYSTEM:
        return descriptor & _TYPE == 0
    return not (descriptor & _CODE and descriptor & _CODE_CONFORMING)
