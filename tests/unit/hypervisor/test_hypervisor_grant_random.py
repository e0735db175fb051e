"""Random grant operations of a hostile guest: what is counted stays equal to what is mapped."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from grant_guest import entry, many
from pv_guest import DOMID, GDT, L4, SELF, PvGuest

from pyxen.abi._struct import XenStruct
from pyxen.abi.grant_table import (
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GnttabCopy,
    GnttabCopyPtr,
    GnttabMapGrantRef,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_set_version,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
    GTF_permit_access,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
)
from pyxen.hypervisor.page_audit import audit
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import PTE_PRESENT, PTE_RW

ROUNDS = 1500
AUDIT_EVERY = 5
GREFS = range(6, 16)
FRAMES = [*range(XEN_PAGES + 100, XEN_PAGES + 106), L4, GDT, layout.GRANT_FRAMES, layout.GDT_L1, 0]
PAGES = range(200, 208)


class Hostile:
    """A guest that does to its grants whatever comes to its mind."""

    def __init__(self, guest: PvGuest, seed: int) -> None:
        self.guest = guest
        self.random = random.Random(seed)
        self.handles: dict[int, GnttabMapGrantRef] = {}
        self.seen: Counter[tuple[str, int]] = Counter()

    def step(self) -> None:
        self.random.choice(
            (
                self.write_entry,
                self.write_entry,
                self.map,
                self.map,
                self.map,
                self.unmap,
                self.unmap,
                self.replace,
                self.copy,
                self.swap,
                self.transfer,
                self.set_version,
            )
        )()

    def do(self, command: int, wanted: XenStruct) -> int:
        result, [done] = many(self.guest, command, [wanted])
        assert result == 0
        status: int = done.status  # type: ignore[attr-defined]
        self.seen[type(wanted).__name__, status] += 1
        for field in wanted.FIELDS:
            setattr(wanted, field.name, getattr(done, field.name))
        return status

    def write_entry(self) -> None:
        r = self.random
        flags = r.choice((0, GTF_permit_access, GTF_permit_access, 2, GTF_transitive))
        flags |= r.choice((0, 0, 0, GTF_readonly, GTF_sub_page))
        domid = r.choice((DOMID, DOMID, DOMID, 0))
        second = r.choice((0, DOMID, 64 | 512 << 16))
        entry(self.guest, flags, domid, r.choice(FRAMES), r.choice(GREFS), second)

    def where(self, flags: int) -> int:
        page = self.random.choice(PAGES)
        return self.guest.pte_maddr(page) if flags & GNTMAP_contains_pte else self.guest.vaddr(page)

    def map(self) -> None:
        r = self.random
        flags = r.choice((GNTMAP_host_map, GNTMAP_device_map, 3, 0))
        flags |= r.choice((0, GNTMAP_readonly)) | r.choice((0, 0, GNTMAP_contains_pte))
        wanted = GnttabMapGrantRef(
            host_addr=self.where(flags), flags=flags, ref=r.choice(GREFS), dom=r.choice((DOMID, 0))
        )
        if self.do(GNTTABOP_map_grant_ref, wanted) == 0:
            assert wanted.handle not in self.handles
            self.handles[wanted.handle] = wanted

    def unmap(self) -> None:
        r = self.random
        handle = r.choice([*self.handles, r.randrange(300)])
        mapped = self.handles.get(handle, GnttabMapGrantRef(handle=handle))
        at = r.choice((mapped.host_addr, mapped.host_addr, 0, self.where(0)))
        bus = r.choice((0, mapped.dev_bus_addr))
        undo = GnttabUnmapGrantRef(handle=mapped.handle, host_addr=at, dev_bus_addr=bus)
        if self.do(GNTTABOP_unmap_grant_ref, undo) == 0:
            self.forget(mapped, host=at != 0, device=bus != 0)

    def replace(self) -> None:
        if not self.handles:
            return
        mapped = self.random.choice(list(self.handles.values()))
        undo = GnttabUnmapAndReplace(
            handle=mapped.handle, host_addr=mapped.host_addr, new_addr=self.where(0)
        )
        if self.do(GNTTABOP_unmap_and_replace, undo) == 0:
            self.forget(mapped, host=True, device=False)

    def forget(self, mapped: GnttabMapGrantRef, *, host: bool, device: bool) -> None:
        mapped.flags &= ~(GNTMAP_host_map * host | GNTMAP_device_map * device)
        if not mapped.flags & 3:
            del self.handles[mapped.handle]

    def copy(self) -> None:
        r = self.random
        ends = [
            GnttabCopyPtr(u=r.choice((*GREFS, *FRAMES)), domid=SELF, offset=r.choice((0, 64, 4000)))
            for _ in range(2)
        ]
        wanted = GnttabCopy(
            source=ends[0], dest=ends[1], len=r.choice((0, 1, 96, 512)), flags=r.randrange(4)
        )
        self.do(GNTTABOP_copy, wanted)

    def swap(self) -> None:
        pair = self.random.choices(GREFS, k=2)
        self.do(GNTTABOP_swap_grant_ref, GnttabSwapGrantRef(ref_a=pair[0], ref_b=pair[1]))

    def transfer(self) -> None:
        """To itself it may succeed; a page that is lost comes back, so that the test goes on."""
        mfn = self.random.choice(FRAMES)
        wanted = GnttabTransfer(mfn=mfn, domid=DOMID, ref=self.random.choice(GREFS))
        d = self.guest.domain
        was_its = d.frames.is_domains(mfn)
        self.do(GNTTABOP_transfer, wanted)
        if was_its and not d.frames.is_domains(mfn):
            assert mfn not in dict(d.grants.held)
            assert d.reservation.allocate() == mfn

    def set_version(self) -> None:
        at = self.guest.put(GnttabSetVersion(version=self.random.choice((1, 2))))
        self.guest.call("grant_table_op", GNTTABOP_set_version, at, 1)

    def map_pages(self) -> None:
        for pfn in PAGES:
            self.guest.set_pte(pfn, PTE_PRESENT | PTE_RW)

    # --- what must hold ---------------------------------------------------------------------

    def check(self) -> None:
        d = self.guest.domain
        wanted: Counter[tuple[int, bool]] = Counter()
        for mapped in self.handles.values():
            uses = (mapped.flags & 3).bit_count()
            wanted[mapped.ref, bool(mapped.flags & GNTMAP_readonly)] += uses
        counted = {gref: (wanted[gref, True], wanted[gref, False]) for gref, _ in wanted}
        assert d.grants.uses == counted
        assert len(d.grants.maptrack) == len(self.handles)


@pytest.mark.parametrize("seed", range(4))
def test_random_grants(guest: PvGuest, seed: int) -> None:
    assert guest.call("set_gdt", guest.put(GDT), 16) == 0
    for mfn in FRAMES[:6]:
        guest.unmap(mfn - XEN_PAGES)
    tables = [guest.memory.read(mfn << 12, 4096) for mfn in (L4, GDT, layout.GDT_L1, 0)]
    hostile = Hostile(guest, seed)
    for n in range(ROUNDS):
        if n % 100 == 0:
            hostile.map_pages()
        hostile.step()
        hostile.check()
        if n % AUDIT_EVERY == 0:
            assert audit(guest.domain) == []
    assert [guest.memory.read(mfn << 12, 4096) for mfn in (L4, GDT, layout.GDT_L1, 0)] == tables
    assert len(hostile.seen) >= 16, f"worth nothing if all fail in one way: {hostile.seen}"
    successes = {name for (name, status), _ in hostile.seen.items() if status == 0}
    assert len(successes) == 6, successes
