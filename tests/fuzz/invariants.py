"""What must be true of a domain whatever its guest did."""

from __future__ import annotations

import os
from functools import lru_cache

from pyxen.cpu.unicorn import layout as engine_layout
from pyxen.cpu.unicorn.engine import UnicornEngine
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.page_audit import audit
from pyxen.memory import layout
from pyxen.memory.frames import OWNER_MASK, Owner
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PRESENT,
    frame_of,
)
from pyxen.types import PAGE_SHIFT, U64

_XEN_FRAMES_USED = 0x300
_SHARED = {
    int(layout.SHARED_INFO),
    *range(layout.GRANT_FRAMES, layout.GRANT_FRAMES + layout.MAX_GRANT_FRAMES),
    *range(layout.GRANT_STATUS_FRAMES, layout.GRANT_STATUS_FRAMES + layout.MAX_GRANT_FRAMES),
}
_WINDOW = range(layout.GDT_L1, layout.GDT_L1 + 8)
# What the processor itself writes: accessed and dirty bits of entries, accessed in descriptors.
_BY_PROCESSOR = PTE_ACCESSED | PTE_DIRTY | 1 << 40
_OWNER_WORD = 3
_LEVELS = (1, 3)


def check_invariants(domain: Domain) -> list[str]:
    """Everything that is wrong with a domain now; empty if nothing is."""
    wrong = _xen_frames(domain)
    wrong += _owners(domain)
    wrong += _descriptor_window(domain)
    wrong += _m2p(domain)
    wrong += audit(domain)
    wrong += _privilege(domain)
    return wrong


def _privilege(d: Domain) -> list[str]:
    """The processor is at one of the guest's two privilege levels."""
    if not isinstance(d.engine, UnicornEngine):
        return []
    level = d.engine.regs.dwords[engine_layout.HFLAGS >> 2] & engine_layout.HF_CPL
    return [] if level in _LEVELS else [f"the guest runs at privilege level {level}"]


@lru_cache(maxsize=4)
def _pristine(guest_pages: int) -> tuple[bytes, ...]:
    """The hypervisor's frames as they are made."""
    memory = MachineMemory(guest_pages)
    layout.install(memory)
    frames = tuple(bytes(memory.page(mfn)) for mfn in range(_XEN_FRAMES_USED))
    memory.close()
    return frames


def _xen_frames(d: Domain) -> list[str]:
    """The hypervisor's own frames are as they were made, but for bits that processors set."""
    wrong = []
    used = d.memory.read(0, _XEN_FRAMES_USED << PAGE_SHIFT)
    for mfn, made in enumerate(_pristine(d.memory.guest_pages)):
        if mfn in _SHARED or mfn in _WINDOW:
            continue
        if used[mfn << PAGE_SHIFT : mfn + 1 << PAGE_SHIFT] == made:
            continue
        page = d.memory.page(mfn)
        before = memoryview(made).cast("Q")
        for index, word in enumerate(page.cast("Q")):
            if (word ^ before[index]) & ~_BY_PROCESSOR:
                wrong.append(f"frame {mfn:#x} of Xen's has {word:#x} in word {index}")
                break
    with_data = os.lseek(d.memory.fd, _XEN_FRAMES_USED << PAGE_SHIFT, os.SEEK_DATA)
    if with_data < XEN_PAGES << PAGE_SHIFT:
        wrong.append(f"frame {with_data >> PAGE_SHIFT:#x} of Xen's was written")
    return wrong


def _owners(d: Domain) -> list[str]:
    """Each frame has the owner that the reservation and the grant table say."""
    wrong = []
    dwords = d.frames.dwords
    end = XEN_PAGES + d.memory.guest_pages
    guests = [word & OWNER_MASK for word in dwords[XEN_PAGES * 4 + _OWNER_WORD : end * 4 : 4]]
    if guests.count(Owner.DOMAIN) != d.reservation.pages:
        wrong.append(f"{guests.count(Owner.DOMAIN)} frames owned, {d.reservation.pages} reserved")
    free = d.reservation._free
    if len(set(free)) != len(free) or len(free) + d.reservation.pages != d.memory.guest_pages:
        wrong.append("the list of free frames is wrong")
    if any(guests[mfn - XEN_PAGES] != Owner.XEN for mfn in free):
        wrong.append("a free frame is the domain's")
    grants = range(layout.GRANT_FRAMES, layout.GRANT_FRAMES + d.grants.nr_frames)
    for mfn in (*range(_XEN_FRAMES_USED), *range(end, d.memory.total_pages)):
        shared = mfn == layout.SHARED_INFO or mfn in grants
        status = layout.GRANT_STATUS_FRAMES <= mfn < layout.GRANT_STATUS_FRAMES + 64
        if not status and d.frames.is_domains(mfn) != shared:
            wrong.append(f"the owner of frame {mfn:#x} is wrong")
    return wrong


def _descriptor_window(d: Domain) -> list[str]:
    """The descriptor window shows the domain's frames, and Xen's page where it belongs."""
    wrong = []
    reserved = (layout.GDT_RESERVED_PAGE, True)
    for vcpu_id in d.vcpus:
        for page in range(32):
            entry = d.memory.read_u64(layout.descriptor_pte_maddr(vcpu_id, page))
            shown = (frame_of(entry), bool(entry & PTE_PRESENT))
            if page == layout.FIRST_RESERVED_GDT_PAGE:
                ok = shown == reserved
            elif page == layout.FIRST_RESERVED_GDT_PAGE + 1:
                ok = entry == 0
            else:
                ok = not entry & PTE_PRESENT or d.memory.is_guest_frame(shown[0])
            if not ok:
                wrong.append(f"page {page} of vCPU {vcpu_id}'s descriptor window is {entry:#x}")
    return wrong


def _m2p(d: Domain) -> list[str]:
    """The M2P has no numbers for frames that are not a guest's."""
    start = d.memory.m2p_mfn << (PAGE_SHIFT - 3)
    return [
        f"the M2P has {word:#x} for frame {mfn:#x} of Xen's"
        for mfn, word in enumerate(d.memory.words[start : start + XEN_PAGES])
        if word != U64 and mfn not in _SHARED
    ]
