"""Mappings of grants: what is written into the guest's page tables, and what is refused."""

from __future__ import annotations

import pytest
from grant_guest import (
    GREF,
    MFN,
    OP,
    PFN,
    entry,
    flags,
    grant_to_itself,
    many,
    marks,
    op,
    status,
    use_version,
)
from pv_guest import DOMID, L1, L4, NOT_MAPPED, SELF, PvGuest

from pyxen.abi._struct import XenStruct
from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_dev_addr,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_no_space,
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
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_writing,
)
from pyxen.hypervisor.grant_active import MAX_PINS
from pyxen.hypervisor.grant_maptrack import HANDLES_PER_FRAME, Maptrack
from pyxen.hypervisor.page_audit import audit
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import (
    PTE_ACCESSED,
    PTE_AVAIL,
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_RW,
    PTE_USER,
)

WINDOW = 200
"""The page whose address grants are mapped at."""
PTE = MFN << 12 | PTE_PRESENT | PTE_ACCESSED | PTE_DIRTY | PTE_NX


def request(guest: PvGuest, map_flags: int = GNTMAP_host_map, **changes: int) -> GnttabMapGrantRef:
    fields = {"host_addr": guest.vaddr(WINDOW), "ref": GREF, "dom": DOMID, **changes}
    return GnttabMapGrantRef(flags=map_flags, **fields)


def mapped(guest: PvGuest, map_flags: int = GNTMAP_host_map, **changes: int) -> GnttabMapGrantRef:
    """Map, which must work."""
    guest.unmap(WINDOW)
    wanted = request(guest, map_flags, **changes)
    assert status(guest, GNTTABOP_map_grant_ref, wanted) == GNTST_okay
    return wanted


def unmap_status(guest: PvGuest, handle: int, host_addr: int | None = None, bus: int = 0) -> int:
    at = guest.vaddr(WINDOW) if host_addr is None else host_addr
    undo = GnttabUnmapGrantRef(host_addr=at, dev_bus_addr=bus, handle=handle)
    return status(guest, GNTTABOP_unmap_grant_ref, undo)


def is_untouched(guest: PvGuest, offered: int) -> bool:
    """Whether a refusal left nothing behind."""
    grants = guest.domain.grants
    return (flags(guest), grants.uses, len(grants.maptrack)) == (offered, {}, 0)


# --- map --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("map_flags", "bits"),
    [
        (0, PTE_RW),
        (GNTMAP_readonly, 0),
        (GNTMAP_application_map, PTE_RW | PTE_USER),
        (GNTMAP_application_map | GNTMAP_readonly, PTE_USER),
        (1 << 16, PTE_RW | 1 << 9),
        (0xFFFF_0000, PTE_RW | PTE_AVAIL),
    ],
)
@pytest.mark.parametrize("by_entry", [False, True])
def test_the_entry_that_is_written(
    guest: PvGuest, map_flags: int, bits: int, by_entry: bool
) -> None:
    grant_to_itself(guest)
    map_flags |= GNTMAP_host_map
    where = guest.vaddr(WINDOW)
    if by_entry:
        map_flags |= GNTMAP_contains_pte
        where = guest.pte_maddr(WINDOW)
    done = mapped(guest, map_flags, host_addr=where)
    assert (done.handle, done.dev_bus_addr) == (0, MFN << 12)
    assert guest.pte(WINDOW) == PTE | bits
    writing = 0 if map_flags & GNTMAP_readonly else GTF_writing
    assert flags(guest) == GTF_permit_access | GTF_reading | writing
    assert unmap_status(guest, done.handle, where) == GNTST_okay
    assert guest.pte(WINDOW) == 0
    assert is_untouched(guest, GTF_permit_access)
    assert guest.engine.flushes, "the guest cannot use what is not mapped any more"


def test_a_mapping_reaches_the_granted_page(guest: PvGuest) -> None:
    grant_to_itself(guest)
    mapped(guest)
    guest.domain.space.write_u64(guest.vaddr(WINDOW) + 8, 0x1122334455667788)
    assert guest.words(guest.vaddr(PFN) + 8, 1) == (0x1122334455667788,)


@pytest.mark.parametrize(
    ("offered", "map_flags", "changes", "expected"),
    [
        (GTF_permit_access, 0, {}, GNTST_bad_gntref),
        (GTF_permit_access, GNTMAP_application_map | GNTMAP_readonly, {}, GNTST_bad_gntref),
        (GTF_permit_access, GNTMAP_host_map, {"dom": 1}, GNTST_bad_domain),
        (GTF_permit_access, GNTMAP_host_map, {"dom": SELF}, GNTST_bad_domain),
        (GTF_permit_access, GNTMAP_host_map, {"dom": 0}, GNTST_general_error),
        (GTF_permit_access, GNTMAP_host_map, {"dom": 0, "ref": 512}, GNTST_bad_gntref),
        (GTF_permit_access, GNTMAP_host_map, {"ref": 512}, GNTST_bad_gntref),
        (GTF_permit_access, GNTMAP_host_map, {"ref": 0xFFFF_FFFF}, GNTST_bad_gntref),
        (0, GNTMAP_host_map, {}, GNTST_general_error),
        (GTF_accept_transfer, GNTMAP_host_map, {}, GNTST_general_error),
        (GTF_transitive, GNTMAP_host_map, {}, GNTST_general_error),
        (GTF_permit_access | GTF_sub_page, GNTMAP_host_map, {}, GNTST_general_error),
        (GTF_permit_access | GTF_readonly, GNTMAP_host_map, {}, GNTST_general_error),
        (GTF_permit_access, GNTMAP_host_map, {"host_addr": NOT_MAPPED}, GNTST_general_error),
        (GTF_permit_access, GNTMAP_host_map, {"host_addr": 1 << 47}, GNTST_general_error),
        (
            GTF_permit_access,
            GNTMAP_host_map,
            {"host_addr": layout.DESCRIPTOR_VADDR},
            GNTST_general_error,
        ),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_map_refusals(
    guest: PvGuest,
    version: int,
    offered: int,
    map_flags: int,
    changes: dict[str, int],
    expected: int,
) -> None:
    use_version(guest, version)
    grant_to_itself(guest, offered)
    wanted = request(guest, map_flags, **changes)
    before = guest.pte(WINDOW)
    assert status(guest, GNTTABOP_map_grant_ref, wanted) == expected
    assert is_untouched(guest, offered)
    assert guest.pte(WINDOW) == before
    if version == 2:
        assert marks(guest) == 0


def test_a_grant_to_another_domain_is_not_its_own(guest: PvGuest) -> None:
    for domid in (0, 1, SELF):
        entry(guest, GTF_permit_access, domid)
        assert status(guest, GNTTABOP_map_grant_ref, request(guest)) == GNTST_general_error


@pytest.mark.parametrize("mfn", [0, layout.GDT_L1, XEN_PAGES + 1030, 0xFFFF_FFFF])
def test_frames_that_are_not_the_domains(guest: PvGuest, mfn: int) -> None:
    grant_to_itself(guest, mfn=mfn)
    assert status(guest, GNTTABOP_map_grant_ref, request(guest)) == GNTST_bad_page
    assert is_untouched(guest, GTF_permit_access)


def test_page_tables_are_mapped_for_reading_only(guest: PvGuest) -> None:
    grant_to_itself(guest, mfn=L4)
    assert status(guest, GNTTABOP_map_grant_ref, request(guest)) == GNTST_general_error
    for_device = request(guest, GNTMAP_device_map)
    assert status(guest, GNTTABOP_map_grant_ref, for_device) == GNTST_general_error
    assert is_untouched(guest, GTF_permit_access)
    mapped(guest, GNTMAP_host_map | GNTMAP_readonly)
    assert guest.pte(WINDOW) & (PTE_RW | PTE_PRESENT) == PTE_PRESENT


@pytest.mark.parametrize(
    "maddr",
    [
        (L1 << 12) + 4,
        (L4 << 12) + 8,
        L4 << 12 | 256 * 8,
        layout.GDT_L1 << 12,
        layout.GRANT_FRAMES << 12,
        1 << 45,
        (1 << 64) - 8,
    ],
)
def test_entries_that_are_no_level_1_entries(guest: PvGuest, maddr: int) -> None:
    grant_to_itself(guest)
    wanted = request(guest, GNTMAP_host_map | GNTMAP_contains_pte, host_addr=maddr)
    frame = min(maddr >> 12, guest.memory.total_pages - 1)
    before = guest.memory.read(frame << 12, 4096)
    assert status(guest, GNTTABOP_map_grant_ref, wanted) == GNTST_general_error
    assert guest.memory.read(frame << 12, 4096) == before
    assert is_untouched(guest, GTF_permit_access)


def test_a_descriptor_table_is_no_page_table(guest: PvGuest) -> None:
    grant_to_itself(guest)
    guest.unmap(60)
    guest.domain.types.get_page_and_type(XEN_PAGES + 60, FrameType.SEGDESC)
    where = (XEN_PAGES + 60) << 12
    wanted = request(guest, GNTMAP_host_map | GNTMAP_contains_pte, host_addr=where)
    assert status(guest, GNTTABOP_map_grant_ref, wanted) == GNTST_general_error
    assert guest.memory.read_u64(where) == 0


def test_uses_are_counted(guest: PvGuest) -> None:
    """Each kind of use 128 times, as Xen's counters allow (XSA-295 and before)."""
    grant_to_itself(guest)
    device = GNTMAP_device_map | GNTMAP_readonly
    for _ in range(MAX_PINS):
        mapped(guest, device)
    assert status(guest, GNTTABOP_map_grant_ref, request(guest, device)) == GNTST_general_error
    both = device | GNTMAP_host_map
    assert status(guest, GNTTABOP_map_grant_ref, request(guest, both)) == GNTST_general_error
    assert guest.domain.grants.uses == {GREF: (MAX_PINS, 0)}
    mapped(guest, GNTMAP_host_map | GNTMAP_readonly)
    mapped(guest, GNTMAP_device_map)
    assert guest.domain.grants.uses == {GREF: (MAX_PINS + 1, 1)}


def test_the_host_has_it_already(guest: PvGuest) -> None:
    """One active entry has one user: the host's use of an entry keeps the guest out."""
    entry(guest, GTF_permit_access)
    guest.domain.grants.begin(GREF, write=True)
    grant_to_itself(guest)
    assert status(guest, GNTTABOP_map_grant_ref, request(guest)) == GNTST_general_error
    assert guest.domain.grants.uses == {GREF: (0, 1)}


def test_a_frame_that_is_given_back_while_it_is_mapped(guest: PvGuest) -> None:
    """It stays until nothing refers to it: page-table entries, and grants in use."""
    grant_to_itself(guest)
    done = mapped(guest, GNTMAP_host_map | GNTMAP_device_map)
    guest.unmap(PFN)
    pages = guest.domain.reservation.pages
    guest.domain.reservation.release(MFN)
    assert guest.domain.frames.is_domains(MFN)
    assert unmap_status(guest, done.handle) == GNTST_okay
    assert guest.domain.frames.is_domains(MFN)
    assert unmap_status(guest, done.handle, 0, MFN << 12) == GNTST_okay
    assert not guest.domain.frames.is_domains(MFN)
    assert guest.domain.reservation.pages == pages - 1


def test_marks_are_the_status_words_in_version_2(guest: PvGuest) -> None:
    use_version(guest, 2)
    grant_to_itself(guest)
    one = mapped(guest, GNTMAP_device_map | GNTMAP_readonly)
    assert (flags(guest), marks(guest)) == (GTF_permit_access, GTF_reading)
    other = mapped(guest)
    assert marks(guest) == GTF_reading | GTF_writing
    assert unmap_status(guest, other.handle) == 0
    assert marks(guest) == GTF_reading
    assert unmap_status(guest, one.handle, 0, MFN << 12) == 0
    assert marks(guest) == 0


# --- page tables that die ---------------------------------------------------------------------


def leave_dying_tables(guest: PvGuest, count: int = 20) -> None:
    """An L2 table with L1 tables that nobody uses any more, more than one piece of work."""
    d = guest.domain
    level_2 = XEN_PAGES + 330
    for n in range(count):
        guest.protect(300 + n)
        entry_maddr = (level_2 << 12) + 8 * n
        guest.memory.write_u64(entry_maddr, (XEN_PAGES + 300 + n) << 12 | PTE_PRESENT | PTE_RW)
        guest.memory.zero_page(XEN_PAGES + 300 + n)
    guest.protect(330)
    d.work_left = 1 << 20
    d.types.pin(level_2, FrameType.L2)
    d.work_left = 0
    d.types.unpin(level_2)
    assert d.pv.dying


@pytest.mark.parametrize("command", [GNTTABOP_map_grant_ref, GNTTABOP_copy, GNTTABOP_transfer])
def test_tables_die_first(guest: PvGuest, command: int) -> None:
    """The guest is at the SYSCALL again with nothing done, and the second piece does it."""
    grant_to_itself(guest)
    guest.unmap(WINDOW)
    guest.unmap(PFN)
    wanted: XenStruct = request(guest)
    if command == GNTTABOP_copy:
        ends = GnttabCopyPtr(u=GREF, domid=SELF)
        wanted = GnttabCopy(source=ends, dest=ends, len=4, flags=3)
    elif command == GNTTABOP_transfer:
        grant_to_itself(guest, GTF_accept_transfer)
        wanted = GnttabTransfer(mfn=MFN, domid=DOMID, ref=GREF)
    leave_dying_tables(guest)
    before = flags(guest)
    at = guest.put(wanted)
    rip = guest.regs.rip = guest.regs.rip + 2
    guest.hypercall(OP, command, at, 1)
    assert guest.regs.rip == rip - 2
    assert (guest.regs.rdi, guest.regs.rsi, guest.regs.rdx) == (command, at, 1)
    assert is_untouched(guest, before)
    assert audit(guest.domain) == []
    assert guest.call(OP, command, at, 1) == 0
    done = type(wanted).unpack(guest.read(at, wanted.SIZE))
    assert done.status == GNTST_okay  # type: ignore[attr-defined]
    assert audit(guest.domain) == []


def test_the_host_does_not_wait_for_them(guest: PvGuest) -> None:
    entry(guest, GTF_permit_access)
    leave_dying_tables(guest)
    assert guest.domain.grants.begin(GREF, write=True) == MFN
    assert guest.domain.pv.dying
    assert audit(guest.domain) == []


# --- unmap ------------------------------------------------------------------------------------


def test_handles_that_are_none(guest: PvGuest) -> None:
    for handle in (0, 1, 256, 0x7FFF_FFFF, 0xFFFF_FFFF):
        assert unmap_status(guest, handle) == GNTST_bad_handle
    grant_to_itself(guest)
    done = mapped(guest)
    assert unmap_status(guest, done.handle + 1) == GNTST_bad_handle
    assert unmap_status(guest, done.handle) == GNTST_okay
    assert unmap_status(guest, done.handle) == GNTST_bad_handle, "not twice"


@pytest.mark.parametrize("where", ["other page", "hole", "misaligned", "hypervisor"])
def test_unmap_at_a_wrong_address(guest: PvGuest, where: str) -> None:
    grant_to_itself(guest)
    done = mapped(guest)
    wrong = {
        "other page": guest.vaddr(WINDOW + 1),
        "hole": 0x1000,
        "misaligned": guest.vaddr(WINDOW - 1) + 0xFFF,
        "hypervisor": layout.M2P_VADDR,
    }[where]
    before = guest.memory.read(L1 << 12, 4096)
    assert unmap_status(guest, done.handle, wrong) == GNTST_general_error
    assert guest.memory.read(L1 << 12, 4096) == before
    assert guest.domain.grants.uses == {GREF: (0, 1)}
    assert unmap_status(guest, done.handle, guest.vaddr(WINDOW) + 0x123) == GNTST_okay


@pytest.mark.parametrize(
    "changed",
    [
        0,
        PTE & ~PTE_PRESENT | PTE_RW,
        PTE,
        (PTE | PTE_RW) + (1 << 12),
    ],
)
def test_unmap_of_what_the_guest_changed(guest: PvGuest, changed: int) -> None:
    """Neither another frame nor other rights; then the grant stays in use."""
    grant_to_itself(guest)
    done = mapped(guest)
    guest.store_pte(WINDOW, changed)
    assert unmap_status(guest, done.handle) == GNTST_general_error
    assert guest.pte(WINDOW) == changed
    assert flags(guest) == GTF_permit_access | GTF_reading | GTF_writing


def test_unmap_ignores_bits_of_the_guest(guest: PvGuest) -> None:
    grant_to_itself(guest)
    done = mapped(guest)
    guest.store_pte(WINDOW, (PTE | PTE_RW | PTE_AVAIL) & ~PTE_ACCESSED)
    assert unmap_status(guest, done.handle) == GNTST_okay
    assert guest.pte(WINDOW) == 0


def test_the_two_halves_of_a_mapping(guest: PvGuest) -> None:
    grant_to_itself(guest)
    done = mapped(guest, GNTMAP_host_map | GNTMAP_device_map)
    assert guest.domain.grants.uses == {GREF: (0, 2)}
    assert unmap_status(guest, done.handle, 0, 0) == GNTST_okay, "nothing named, nothing done"
    assert unmap_status(guest, done.handle, bus=(MFN + 1) << 12) == GNTST_bad_dev_addr
    assert guest.pte(WINDOW) & PTE_PRESENT
    assert unmap_status(guest, done.handle) == GNTST_okay
    assert guest.domain.grants.uses == {GREF: (0, 1)}
    assert flags(guest) == GTF_permit_access | GTF_reading | GTF_writing
    assert unmap_status(guest, done.handle) == GNTST_okay, "of the CPU's half nothing is left"
    assert guest.domain.grants.uses == {GREF: (0, 1)}
    assert unmap_status(guest, done.handle, 0, MFN << 12) == GNTST_okay
    assert is_untouched(guest, GTF_permit_access)
    assert unmap_status(guest, done.handle, 0, MFN << 12) == GNTST_bad_handle


def test_one_mapping_of_several_ends(guest: PvGuest) -> None:
    grant_to_itself(guest)
    first = mapped(guest, GNTMAP_host_map | GNTMAP_readonly)
    guest.unmap(WINDOW + 1)
    second = request(guest, host_addr=guest.vaddr(WINDOW + 1))
    assert status(guest, GNTTABOP_map_grant_ref, second) == GNTST_okay
    assert unmap_status(guest, second.handle, second.host_addr) == GNTST_okay
    assert flags(guest) == GTF_permit_access | GTF_reading
    entry(guest, 0)
    assert unmap_status(guest, first.handle) == GNTST_okay, "whatever became of the entry"
    assert is_untouched(guest, 0)


def test_no_change_of_version_while_something_is_mapped(guest: PvGuest) -> None:
    grant_to_itself(guest)
    done = mapped(guest)
    assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=2)) == -E.BUSY
    assert unmap_status(guest, done.handle) == GNTST_okay
    use_version(guest, 2)
    grant_to_itself(guest, gref=3)
    done = mapped(guest, ref=3)
    use_version(guest, 1)
    assert unmap_status(guest, done.handle) == GNTST_okay
    assert guest.domain.grants.uses == {}


# --- unmap_and_replace ------------------------------------------------------------------------


def replace_status(guest: PvGuest, handle: int, new_addr: int, host_addr: int | None = None) -> int:
    at = guest.vaddr(WINDOW) if host_addr is None else host_addr
    undo = GnttabUnmapAndReplace(host_addr=at, new_addr=new_addr, handle=handle)
    return status(guest, GNTTABOP_unmap_and_replace, undo)


def test_replace(guest: PvGuest) -> None:
    grant_to_itself(guest)
    done = mapped(guest)
    moved = guest.pte(WINDOW + 1)
    assert replace_status(guest, done.handle, guest.vaddr(WINDOW + 1)) == GNTST_okay
    assert (guest.pte(WINDOW), guest.pte(WINDOW + 1)) == (moved, 0)
    assert is_untouched(guest, GTF_permit_access)
    assert guest.engine.flushes


def test_replace_by_a_page_that_was_given_back(guest: PvGuest) -> None:
    """The moved entry is the last that refers to the page, and keeps it."""
    grant_to_itself(guest)
    done = mapped(guest)
    guest.domain.reservation.release(XEN_PAGES + WINDOW + 1)
    moved = guest.pte(WINDOW + 1)
    assert replace_status(guest, done.handle, guest.vaddr(WINDOW + 1)) == GNTST_okay
    assert guest.pte(WINDOW) == moved
    assert audit(guest.domain) == []


def test_replace_by_nothing(guest: PvGuest) -> None:
    grant_to_itself(guest)
    done = mapped(guest)
    assert replace_status(guest, done.handle, 0) == GNTST_okay
    assert guest.pte(WINDOW) == 0


def test_replace_by_itself(guest: PvGuest) -> None:
    """Xen takes the replacement away first: the entry is gone, and the use stays counted."""
    grant_to_itself(guest)
    done = mapped(guest)
    assert replace_status(guest, done.handle, guest.vaddr(WINDOW)) == GNTST_general_error
    assert guest.pte(WINDOW) == 0
    assert guest.domain.grants.uses == {GREF: (0, 1)}


def test_replace_refusals(guest: PvGuest) -> None:
    grant_to_itself(guest)
    assert replace_status(guest, 5, guest.vaddr(WINDOW + 1)) == GNTST_bad_handle
    done = mapped(guest)
    assert replace_status(guest, done.handle, 0x1000) == GNTST_general_error
    assert guest.pte(WINDOW) & PTE_PRESENT
    wrong = guest.vaddr(WINDOW + 2)
    assert replace_status(guest, done.handle, guest.vaddr(WINDOW + 1), wrong) == GNTST_general_error
    assert unmap_status(guest, done.handle) == GNTST_okay
    where = guest.pte_maddr(WINDOW)
    done = mapped(guest, GNTMAP_host_map | GNTMAP_contains_pte, host_addr=where)
    new = guest.vaddr(WINDOW + 3)
    before = guest.pte(WINDOW + 3)
    assert replace_status(guest, done.handle, new, where) == GNTST_general_error
    assert guest.pte(WINDOW + 3) == before, "by entry there is no replacement"
    assert unmap_status(guest, done.handle, where) == GNTST_okay


# --- lists and handles ------------------------------------------------------------------------


def test_a_list_goes_on_after_an_error(guest: PvGuest) -> None:
    grant_to_itself(guest)
    wanted = [request(guest, GNTMAP_device_map, ref=ref) for ref in (8, 9, 512, 8)]
    result, done = many(guest, GNTTABOP_map_grant_ref, wanted)
    assert result == 0
    assert [item.status for item in done] == [0, GNTST_general_error, GNTST_bad_gntref, 0]


def test_a_long_list_in_pieces(guest: PvGuest) -> None:
    count = 900
    for n in range(count):
        if n < 500:
            grant_to_itself(guest, gref=8 + n)
    wanted = [request(guest, GNTMAP_device_map, ref=8 + n % 500) for n in range(count)]
    result, done = many(guest, GNTTABOP_map_grant_ref, wanted)
    assert result == 0
    assert {item.status for item in done} == {0}
    assert len({item.handle for item in done}) == count
    undo = [GnttabUnmapGrantRef(handle=i.handle, dev_bus_addr=i.dev_bus_addr) for i in done]
    result, undone = many(guest, GNTTABOP_unmap_grant_ref, undo)
    assert result == 0
    assert {item.status for item in undone} == {0}
    assert guest.domain.grants.uses == {}


def test_what_a_piece_shows_of_itself(guest: PvGuest) -> None:
    """The registers say what is left, and the guest is at the SYSCALL again."""
    grant_to_itself(guest)
    at = guest.put(request(guest, GNTMAP_device_map).pack() * 900)
    guest.regs.rip = before = guest.regs.rip + 2
    guest.hypercall(OP, GNTTABOP_map_grant_ref, at, 900)
    assert guest.regs.rip == before - 2
    done = 900 - guest.regs.rdx
    assert 0 < done < 900
    assert (guest.regs.rdi, guest.regs.rsi) == (GNTTABOP_map_grant_ref, at + 32 * done)


def test_a_list_that_ends_in_nothing(guest: PvGuest) -> None:
    """What was done before the end of memory stays done."""
    grant_to_itself(guest)
    size = GnttabMapGrantRef.SIZE
    last = guest.vaddr(101)
    guest.write(last - size, request(guest, GNTMAP_device_map).pack())
    guest.unmap(101)
    assert guest.call(OP, GNTTABOP_map_grant_ref, last - size, 0x7FFF_FFFF) == -E.FAULT
    assert guest.domain.grants.uses == {GREF: (0, 1)}
    undo = GnttabUnmapGrantRef(handle=0, dev_bus_addr=MFN << 12)
    guest.write(last - undo.SIZE, undo.pack())
    guest.engine.flushes.clear()
    assert guest.call(OP, GNTTABOP_unmap_grant_ref, last - undo.SIZE, 2) == -E.FAULT
    assert guest.domain.grants.uses == {}
    assert guest.engine.flushes


def test_a_read_only_list(guest: PvGuest) -> None:
    grant_to_itself(guest)
    guest.write(guest.vaddr(101), request(guest, GNTMAP_device_map).pack())
    guest.protect(101)
    assert guest.call(OP, GNTTABOP_map_grant_ref, guest.vaddr(101), 1) == -E.FAULT


def test_handles_run_out(guest: PvGuest) -> None:
    guest.domain.grants.maptrack = Maptrack(max_frames=1)
    grant_to_itself(guest)
    grant_to_itself(guest, gref=9)
    last = HANDLES_PER_FRAME - 1
    wanted = [request(guest, GNTMAP_device_map, ref=8 + n % 2) for n in range(last)]
    assert {i.status for i in many(guest, GNTTABOP_map_grant_ref, wanted)[1]} == {0}
    third = request(guest, GNTMAP_device_map, ref=10)
    grant_to_itself(guest, gref=10)
    assert status(guest, GNTTABOP_map_grant_ref, third) == GNTST_no_space
    assert unmap_status(guest, 17, 0, MFN << 12) == 0
    assert status(guest, GNTTABOP_map_grant_ref, third) == GNTST_okay


def test_a_refused_mapping_uses_up_no_handle(guest: PvGuest) -> None:
    guest.domain.grants.maptrack = Maptrack(max_frames=1)
    for _ in range(3 * HANDLES_PER_FRAME):
        assert status(guest, GNTTABOP_map_grant_ref, request(guest)) == GNTST_general_error
    grant_to_itself(guest)
    mapped(guest)


def test_handles_are_used_in_the_order_they_came_free() -> None:
    track = Maptrack(max_frames=2)
    assert [track.take() for _ in range(4)] == [0, 1, 2, 3]
    track.put(2)
    track.put(0)
    assert track.take() == 4
    rest = [track.take() for _ in range(HANDLES_PER_FRAME - 4)]
    assert rest[-2:] == [255, 2]
    assert track.take() == 256, "a new frame, as one handle is kept back"
    assert track.take() == 257
