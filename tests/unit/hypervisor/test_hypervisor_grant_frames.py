"""Grants and the frame table: who keeps a frame, and what is left when the last use ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from grant_guest import (
    GREF,
    MFN,
    OP,
    PFN,
    entry,
    flags,
    frames_of_table,
    grant_to_itself,
    many,
    op,
    status,
    use_version,
)
from pv_guest import DOMID, GDT, PAGES, SELF, PvGuest
from test_hypervisor_grant_random import Hostile

from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
    GnttabCopy,
    GnttabCopyPtr,
    GnttabMapGrantRef,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_set_version,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabSetVersion,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
    GTF_accept_transfer,
    GTF_permit_access,
)
from pyxen.abi.memory import XENMEM_decrease_reservation, XenMemoryReservation
from pyxen.errors import XenError
from pyxen.hypervisor.grant import GrantRefused
from pyxen.hypervisor.grant_active import READ
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.page_audit import audit
from pyxen.hypervisor.page_types import Restart
from pyxen.memory import layout
from pyxen.memory.frames import PARTIAL, RELEASED, FrameType
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import PTE_PRESENT, PTE_RW, PTE_USER, frame_of
from pyxen.types import GrantRef

WINDOW = 200
TO, TO_MFN = 9, MFN + 1
TEXT = b"what is copied"


@pytest.fixture(autouse=True)
def counted(guest: PvGuest) -> Iterator[None]:
    """Whatever a test did, the frame table is right in the end."""
    yield
    assert audit(guest.domain) == []


def give_back(guest: PvGuest, mfn: int = MFN) -> None:
    """decrease_reservation of one frame."""
    wanted = XenMemoryReservation(extent_start=guest.put(mfn), nr_extents=1, domid=SELF)
    assert guest.call("memory_op", XENMEM_decrease_reservation, guest.put(wanted)) == 1


def map_grant(guest: PvGuest, how: int = GNTMAP_host_map) -> GnttabMapGrantRef:
    wanted = GnttabMapGrantRef(host_addr=guest.vaddr(WINDOW), flags=how, ref=GREF, dom=DOMID)
    status(guest, GNTTABOP_map_grant_ref, wanted)
    return wanted


def unmap_status(guest: PvGuest, handle: int, host_addr: int, bus: int = 0) -> int:
    undo = GnttabUnmapGrantRef(handle=handle, host_addr=host_addr, dev_bus_addr=bus)
    return status(guest, GNTTABOP_unmap_grant_ref, undo)


def copy(ref: int, to: int, how: int = GNTCOPY_source_gref) -> GnttabCopy:
    source, dest = GnttabCopyPtr(u=ref, domid=SELF), GnttabCopyPtr(u=to, domid=SELF)
    return GnttabCopy(source=source, dest=dest, len=len(TEXT), flags=how)


def transfer(guest: PvGuest, domid: int = DOMID) -> int:
    return status(guest, GNTTABOP_transfer, GnttabTransfer(mfn=MFN, domid=domid, ref=GREF))


def counts(guest: PvGuest, mfn: int = MFN) -> tuple[int, int]:
    """Uses and references."""
    return guest.domain.frames.uses(mfn), guest.domain.frames.refs(mfn)


# --- frames that are given back while they are granted ----------------------------------------


@pytest.mark.parametrize("write", [False, True])
def test_given_back_while_the_host_has_it(guest: PvGuest, write: bool) -> None:
    grants = guest.domain.grants
    entry(guest, GTF_permit_access)
    grants.begin(GREF, write=write)
    guest.unmap(PFN)
    give_back(guest)
    assert guest.domain.frames.is_domains(MFN), "no other use of it yet"
    assert grants.begin(GREF, write=True) == MFN
    grants.end(GREF, write=True)
    grants.end(GREF, write=write)
    assert not guest.domain.frames.is_domains(MFN)
    assert guest.domain.reservation.pages == PAGES - 1
    with pytest.raises(GrantRefused):
        grants.begin(GREF, write=False)


def test_given_back_while_it_is_copied(guest: PvGuest) -> None:
    """It is the domain's, and can be copied more, until the last use ends; then it is gone."""
    guest.write(guest.vaddr(PFN), TEXT)
    grant_to_itself(guest)
    guest.domain.grants.acquire_to_copy(GREF, DOMID, write=False)
    guest.unmap(PFN)
    give_back(guest)
    assert guest.domain.reservation.pages == PAGES
    assert status(guest, GNTTABOP_copy, copy(GREF, TO_MFN)) == GNTST_okay
    assert guest.read(guest.vaddr(PFN + 1), len(TEXT)) == TEXT
    assert transfer(guest) == GNTST_bad_page, "nor does it go elsewhere"
    assert guest.domain.grants.uses == {GREF: (1, 0)}
    guest.domain.grants.release(GREF, READ)
    assert not guest.domain.frames.is_domains(MFN)
    assert flags(guest) == GTF_permit_access
    assert status(guest, GNTTABOP_copy, copy(GREF, TO_MFN)) == GNTST_bad_page


def test_a_replacement_that_was_given_back_and_is_refused(guest: PvGuest) -> None:
    """As in Xen it is unmapped all the same; that was the last that referred to it."""
    grant_to_itself(guest)
    done = map_grant(guest)
    moved = XEN_PAGES + WINDOW + 1
    give_back(guest, moved)
    undo = GnttabUnmapAndReplace(
        handle=done.handle, host_addr=guest.vaddr(WINDOW + 2), new_addr=guest.vaddr(WINDOW + 1)
    )
    assert status(guest, GNTTABOP_unmap_and_replace, undo) == GNTST_general_error
    assert guest.pte(WINDOW + 1) == 0
    assert not guest.domain.frames.is_domains(moved)


# --- mappings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rights", [PTE_PRESENT, PTE_PRESENT | PTE_RW])
def test_a_page_that_is_mapped_is_not_given_away(guest: PvGuest, rights: int) -> None:
    guest.set_pte(PFN, rights)
    grant_to_itself(guest, GTF_accept_transfer)
    for domid in (DOMID, 0, 1):
        assert transfer(guest, domid) == GNTST_bad_page
    assert flags(guest) == GTF_accept_transfer
    guest.unmap(PFN)
    assert transfer(guest) == GNTST_okay


def test_a_mapping_that_the_guest_wrote_over(guest: PvGuest) -> None:
    """The use by the grant is another than that by the entry: each ends by itself."""
    grant_to_itself(guest)
    done = map_grant(guest)
    guest.unmap(PFN)
    written = guest.pte(WINDOW)
    assert counts(guest) == (2, 2)
    guest.unmap(WINDOW)
    assert counts(guest) == (1, 1)
    assert unmap_status(guest, done.handle, guest.vaddr(WINDOW)) == GNTST_general_error
    guest.store_pte(WINDOW, written)
    assert unmap_status(guest, done.handle, guest.vaddr(WINDOW)) == GNTST_okay
    assert counts(guest) == (0, 0)


def test_what_a_mapping_counts(guest: PvGuest) -> None:
    grant_to_itself(guest)
    guest.unmap(PFN)
    for how, expected in (
        (GNTMAP_device_map, (1, 1)),
        (GNTMAP_device_map | GNTMAP_readonly, (0, 1)),
        (GNTMAP_host_map | GNTMAP_readonly, (0, 2)),
        (GNTMAP_host_map | GNTMAP_device_map, (3, 3)),
    ):
        done = map_grant(guest, how)
        assert counts(guest) == expected
        assert audit(guest.domain) == []
        assert unmap_status(guest, done.handle, guest.vaddr(WINDOW), done.dev_bus_addr) == 0
        assert counts(guest) == (0, 0)


def test_a_granted_frame_of_the_table_itself(guest: PvGuest) -> None:
    entry(guest, GTF_permit_access, mfn=layout.GRANT_FRAMES)
    guest.domain.grants.begin(GREF, write=True)
    assert counts(guest, layout.GRANT_FRAMES) == (2, 2)
    guest.domain.grants.end(GREF, write=True)
    assert counts(guest, layout.GRANT_FRAMES) == (1, 1), "never a table"


# --- status frames ----------------------------------------------------------------------------


@pytest.mark.parametrize("rights", [PTE_PRESENT, PTE_PRESENT | PTE_RW])
def test_no_way_back_while_any_status_frame_is_mapped(guest: PvGuest, rights: int) -> None:
    use_version(guest, 2)
    assert frames_of_table(guest, 9)[0] == 0
    for status_frame in (layout.GRANT_STATUS_FRAMES, layout.GRANT_STATUS_FRAMES + 1):
        guest.set_pte(PFN, rights, status_frame)
        assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=1)) == -E.BUSY
        assert guest.domain.grants.version == 2
        assert guest.domain.frames.is_domains(status_frame)
    guest.unmap(PFN)
    use_version(guest, 1)


def test_no_way_back_while_a_status_frame_is_granted(guest: PvGuest) -> None:
    """Reserved entries may be in use when the version changes."""
    use_version(guest, 2)
    entry(guest, GTF_permit_access, mfn=layout.GRANT_STATUS_FRAMES, gref=7)
    guest.domain.grants.begin(GrantRef(7), write=False)
    assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=1)) == -E.BUSY
    guest.domain.grants.end(GrantRef(7), write=False)
    use_version(guest, 1)


def test_status_frames_that_are_gone_cannot_be_mapped(guest: PvGuest) -> None:
    use_version(guest, 2)
    use_version(guest, 1)
    with pytest.raises(XenError):
        guest.set_pte(PFN, PTE_PRESENT, layout.GRANT_STATUS_FRAMES)


# --- tables whose validation stopped half-way -------------------------------------------------

ROOT_PFN, LEAVES = 600, range(601, 661)
ROOT = XEN_PAGES + ROOT_PFN


@pytest.fixture
def half_validated(guest: PvGuest) -> int:
    """An L2 of which many L1s are in use: more than can be given back in one piece."""
    for slot, pfn in enumerate(LEAVES):
        guest.protect(pfn)
        word = (XEN_PAGES + pfn) << 12 | PTE_PRESENT | PTE_RW | PTE_USER
        guest.memory.write_u64((ROOT << 12) + 8 * slot, word)
    guest.unmap(ROOT_PFN)
    for _ in range(3):
        continuation.begin(guest.domain)
        with pytest.raises(Restart):
            guest.domain.types.pin(ROOT, FrameType.L2)
    assert guest.domain.frames.flags(ROOT) == PARTIAL
    assert 30 < guest.domain.frames.held(ROOT) < len(LEAVES)
    return ROOT


def test_a_transfer_that_needs_several_pieces(guest: PvGuest, half_validated: int) -> None:
    """What came before it in the list is not done again."""
    guest.unmap(PFN)
    wanted = [GnttabTransfer(mfn=mfn, domid=0) for mfn in (MFN, half_validated, MFN)]
    result, done = many(guest, GNTTABOP_transfer, wanted)
    assert result == 0
    expected = [GNTST_general_error, GNTST_general_error, GNTST_bad_page]
    assert [item.status for item in done] == expected
    assert guest.domain.reservation.pages == PAGES - 2


def test_a_copy_that_needs_several_pieces(guest: PvGuest, half_validated: int) -> None:
    """The list goes on with it, and meanwhile its source is not in use."""
    guest.write(guest.vaddr(PFN), TEXT)
    grant_to_itself(guest)
    grant_to_itself(guest, gref=TO, mfn=TO_MFN)
    first = copy(GREF, TO, GNTCOPY_source_gref | GNTCOPY_dest_gref)
    at = guest.put(first.pack() + copy(GREF, half_validated).pack())
    guest.hypercall(OP, GNTTABOP_copy, at, 2)
    left = (GNTTABOP_copy, at + GnttabCopy.SIZE, 1)
    assert (guest.regs.rdi, guest.regs.rsi, guest.regs.rdx) == left
    assert guest.domain.pv.dying, "its L1 tables have not given everything back"
    assert (flags(guest), guest.domain.grants.uses) == (GTF_permit_access, {})
    assert audit(guest.domain) == []
    assert guest.call(OP, *left) == 0
    assert guest.memory.read(ROOT << 12, len(TEXT)) == TEXT


# --- a hostile guest that balloons ------------------------------------------------------------

ROUNDS, BATCH = 1000, 20
MFNS = range(MFN, MFN + 6)
WINDOWS = range(WINDOW, WINDOW + 8)


class Ballooning(Hostile):
    """Gives its granted frames back, and maps them by itself, too, where the grants are mapped."""

    def __init__(self, guest: PvGuest, seed: int) -> None:
        super().__init__(guest, seed)
        self.lost = self.kept = 0

    def step(self) -> None:
        r = self.random
        mfn, page = r.choice(MFNS), r.choice(WINDOWS)
        action = r.randrange(12)
        if action == 0:
            give_back(self.guest, mfn)
        elif action == 1:
            self.guest.set_pte(page, PTE_PRESENT | r.choice((0, PTE_RW)), mfn)
        elif action == 2:
            self.guest.unmap(page)
        elif action == 3:
            grant_to_itself(self.guest, gref=r.randrange(6, 16), mfn=mfn)
        else:
            super().step()
        self.take_again()

    def take_again(self) -> None:
        """What was lost comes back, so that the test goes on."""
        d = self.guest.domain
        lost = {mfn for mfn in MFNS if not d.frames.is_domains(mfn)}
        assert lost.isdisjoint(dict(d.grants.held))
        for _ in range(len(lost)):
            lost.remove(d.reservation.allocate())
            self.lost += 1

    def check(self) -> None:
        super().check()
        frames = self.guest.domain.frames
        uses = Counter(mfn for mfn, writable in self.guest.domain.grants.held if writable)
        entries = [self.guest.pte(page) for page in WINDOWS]
        uses.update(frame_of(e) for e in entries if e & PTE_PRESENT and e & PTE_RW)
        for mfn in MFNS:
            assert frames.uses(mfn) == uses[mfn]
            self.kept += bool(frames.flags(mfn) & RELEASED)

    def end(self) -> None:
        """Unmap everything. The entries may be others by now: write what was mapped again."""
        for mapped in list(self.handles.values()):
            if mapped.flags & GNTMAP_host_map:
                at = mapped.host_addr
                page = (at - self.guest.vaddr(0)) >> 12
                if mapped.flags & GNTMAP_contains_pte:
                    page = (at - self.guest.pte_maddr(0)) >> 3
                rights = PTE_PRESENT | (0 if mapped.flags & GNTMAP_readonly else PTE_RW)
                self.guest.set_pte(page, rights, mapped.dev_bus_addr >> 12)
            assert not unmap_status(
                self.guest, mapped.handle, mapped.host_addr, mapped.dev_bus_addr
            )
        for page in WINDOWS:
            self.guest.unmap(page)


@pytest.mark.parametrize("seed", range(4))
def test_random_grants_of_frames_that_come_and_go(guest: PvGuest, seed: int) -> None:
    assert guest.call("set_gdt", guest.put(GDT), 512) == 0
    for mfn in MFNS:
        guest.unmap(mfn - XEN_PAGES)
    hostile = Ballooning(guest, seed)
    for n in range(ROUNDS):
        hostile.step()
        hostile.check()
        if n % BATCH == 0:
            assert audit(guest.domain) == []
    assert hostile.lost and hostile.kept, "worth nothing if no frame is kept by a grant"
    hostile.end()
    d = guest.domain
    assert (d.grants.uses, len(d.grants.maptrack)) == ({}, 0)
    assert all(counts(guest, mfn) == (0, 0) for mfn in MFNS)
