"""Count all uses of all frames anew, and compare with the frame table: for tests and fuzzing.

What must hold at every boundary of the run loop is in hypervisor/page_types.py; this is the same
seen from the other side, by a walk over everything that can refer to a frame.
"""

from __future__ import annotations

from collections import Counter

from pyxen.hypervisor.domain import Domain
from pyxen.memory.frames import DYING, PARTIAL, PINNED, VALIDATED, FrameType
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import (
    FIRST_XEN_SLOT,
    LAST_XEN_SLOT,
    PTE_PRESENT,
    PTE_RW,
    frame_of,
)
from pyxen.types import PAGE_SHIFT


class _Audit:
    def __init__(self, d: Domain) -> None:
        self.d = d
        self.refs: Counter[int] = Counter()
        self.uses: Counter[int] = Counter()
        self.wrong: list[str] = []

    def use(self, mfn: int, wanted: FrameType) -> None:
        self.refs[mfn] += 1
        self.uses[mfn] += 1
        kind = self.d.frames.type(mfn)
        if kind is not wanted:
            self.wrong.append(f"frame {mfn:#x} is used as {wanted.name}, but is {kind.name}")

    def table(self, mfn: int) -> None:
        frames = self.d.frames
        level = frames.type(mfn)
        for slot in range(frames.held(mfn)):
            if level == FrameType.L4 and FIRST_XEN_SLOT <= slot <= LAST_XEN_SLOT:
                continue
            entry = self.d.memory.words[(mfn << 9) + slot]
            if entry & PTE_PRESENT:
                self.entry(mfn, level, entry)

    def entry(self, table: int, level: FrameType, entry: int) -> None:
        child = frame_of(entry)
        if not self.d.frames.is_domains(child):
            self.wrong.append(f"table {table:#x} refers to the foreign frame {child:#x}")
        elif level > FrameType.L1:
            if child != table:
                linear = self.d.frames.type(child) is level
                self.use(child, level if linear else FrameType(level - 1))
            elif entry & PTE_RW:
                self.wrong.append(f"table {table:#x} maps itself writable")
        elif entry & PTE_RW:
            self.use(child, FrameType.WRITABLE)
        else:
            self.refs[child] += 1

    def roots(self) -> None:
        for v in self.d.vcpus.values():
            for maddr in (v.pv.cr3, v.pv.user_cr3):
                if maddr:
                    self.use(maddr >> PAGE_SHIFT, FrameType.L4)
            for mfn in (*v.gdt_frames, *v.ldt_frames):
                self.use(mfn, FrameType.SEGDESC)
            if v.vcpu_info_registered:
                self.use(v.pv.vcpu_info_maddr >> PAGE_SHIFT, FrameType.WRITABLE)

    def held(self) -> None:
        fifo = self.d.events.fifo
        pirq_eoi = [self.d.pirq_eoi_mfn] if self.d.pirq_eoi_mfn else []
        for mfn in [*(fifo.held() if fifo else ()), *pirq_eoi]:
            self.use(mfn, FrameType.WRITABLE)
        for mfn, writable in self.d.grants.held:
            if writable:
                self.use(mfn, FrameType.WRITABLE)
            else:
                self.refs[mfn] += 1

    def compare(self, mfn: int) -> None:
        frames = self.d.frames
        for what, counted, found in (
            ("references", self.refs[mfn], frames.refs(mfn)),
            ("uses", self.uses[mfn], frames.uses(mfn)),
        ):
            if counted != found:
                kind = frames.type(mfn).name
                self.wrong.append(f"frame {mfn:#x} ({kind}): {found} {what}, {counted} counted")
        flags = frames.flags(mfn)
        if bool(flags & VALIDATED) != bool(frames.uses(mfn)) or (
            flags & PARTIAL and frames.uses(mfn)
        ):
            self.wrong.append(f"frame {mfn:#x}: flags {flags:#x} with {frames.uses(mfn)} uses")


def audit(d: Domain) -> list[str]:
    """What is wrong with the frame table; empty if nothing is."""
    a = _Audit(d)
    frames = d.frames
    owned = [mfn for mfn in range(d.memory.total_pages) if frames.is_domains(mfn)]
    for mfn in owned:
        flags = frames.flags(mfn)
        if frames.type(mfn) in range(FrameType.L1, FrameType.L4 + 1):
            a.table(mfn)
        if flags & PINNED:
            a.use(mfn, frames.type(mfn))
        if flags & PARTIAL:
            a.refs[mfn] += 1
        if mfn < XEN_PAGES:
            a.use(mfn, FrameType.WRITABLE)
    a.roots()
    a.held()
    for mfn in owned:
        a.compare(mfn)
    dying = sum(1 for mfn in owned if frames.flags(mfn) & DYING)
    if dying != d.pv.dying:
        a.wrong.append(f"{d.pv.dying} tables on the stack of the dying, {dying} marked")
    return a.wrong
