"""GNTTABOP_copy and GNTTABOP_transfer: bytes and pages that the hypervisor moves."""

from __future__ import annotations

import pytest
from grant_guest import (
    GREF,
    MFN,
    OP,
    PFN,
    entry,
    flags,
    frame,
    grant_to_itself,
    many,
    marks,
    status,
    use_version,
)
from pv_guest import DOMID, GDT, L1, L4, PAGES, SELF, PvGuest

from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_device_map,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GnttabCopy,
    GnttabCopyPtr,
    GnttabMapGrantRef,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_transfer,
    GnttabTransfer,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transfer_committed,
    GTF_transfer_completed,
    GTF_transitive,
    GTF_writing,
)
from pyxen.hypervisor.grant_active import MAX_PINS
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES

OTHER_PFN = 110
OTHER = XEN_PAGES + OTHER_PFN
TO = 9
BOTH = GNTCOPY_source_gref | GNTCOPY_dest_gref
TEXT = b"what is copied"


def copy(source: int, dest: int, how: int, length: int = len(TEXT), **changes: int) -> GnttabCopy:
    """A copy between frames or references of the domain itself."""
    return GnttabCopy(
        source=GnttabCopyPtr(
            u=source,
            domid=changes.get("from_domid", SELF),
            offset=changes.get("from_offset", 0),
        ),
        dest=GnttabCopyPtr(
            u=dest, domid=changes.get("to_domid", SELF), offset=changes.get("to_offset", 0)
        ),
        len=length,
        flags=how,
    )


def prepare(guest: PvGuest) -> None:
    """GREF grants MFN, TO grants OTHER, both to the domain itself."""
    grant_to_itself(guest)
    grant_to_itself(guest, gref=TO, mfn=OTHER)
    guest.write(guest.vaddr(PFN), TEXT)


def copied(guest: PvGuest, offset: int = 0) -> bytes:
    return guest.read(guest.vaddr(OTHER_PFN) + offset, len(TEXT))


# --- copy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [0, GNTCOPY_source_gref, GNTCOPY_dest_gref, BOTH])
@pytest.mark.parametrize("version", [1, 2])
def test_copy(guest: PvGuest, version: int, how: int) -> None:
    use_version(guest, version)
    prepare(guest)
    source = GREF if how & GNTCOPY_source_gref else MFN
    dest = TO if how & GNTCOPY_dest_gref else OTHER
    wanted = copy(source, dest, how, to_offset=4096 - len(TEXT))
    guest.engine.code_changes.clear()
    assert status(guest, GNTTABOP_copy, wanted) == GNTST_okay
    assert copied(guest, 4096 - len(TEXT)) == TEXT
    assert copied(guest) == bytes(len(TEXT))
    assert guest.domain.grants.uses == {}
    assert flags(guest) == flags(guest, TO) == GTF_permit_access
    changed = ((OTHER << 12) + 4096 - len(TEXT), len(TEXT))
    assert changed in guest.engine.code_changes, "the page may hold code"


def test_the_domain_can_name_itself_for_references(guest: PvGuest) -> None:
    prepare(guest)
    wanted = copy(GREF, TO, BOTH, from_domid=DOMID, to_domid=DOMID)
    assert status(guest, GNTTABOP_copy, wanted) == GNTST_okay
    assert copied(guest) == TEXT


def test_a_copy_of_a_whole_page_and_of_nothing(guest: PvGuest) -> None:
    prepare(guest)
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH, 0, from_offset=4096)) == GNTST_okay
    assert copied(guest) == bytes(len(TEXT))
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH, 4096)) == GNTST_okay
    assert copied(guest) == TEXT


def test_a_copy_within_one_page(guest: PvGuest) -> None:
    prepare(guest)
    wanted = copy(GREF, GREF, BOTH, to_offset=4)
    assert status(guest, GNTTABOP_copy, wanted) == GNTST_okay
    assert guest.read(guest.vaddr(PFN), 4 + len(TEXT)) == TEXT[:4] + TEXT
    assert guest.domain.grants.uses == {}


@pytest.mark.parametrize(
    ("how", "changes", "expected"),
    [
        (BOTH, {"source": 512}, GNTST_bad_gntref),
        (BOTH, {"dest": 0xFFFF_FFFF}, GNTST_bad_gntref),
        (BOTH, {"source": 20}, GNTST_general_error),
        (BOTH, {"from_domid": 1}, GNTST_bad_domain),
        (BOTH, {"to_domid": 0x7FF1}, GNTST_bad_domain),
        (BOTH, {"from_domid": 0}, GNTST_general_error),
        (BOTH, {"to_domid": 0, "dest": 512}, GNTST_bad_gntref),
        (0, {"from_domid": DOMID}, GNTST_permission_denied),
        (0, {"to_domid": 0}, GNTST_permission_denied),
        (0, {"to_domid": 1}, GNTST_permission_denied),
        (0, {"source": 0}, GNTST_bad_page),
        (0, {"dest": layout.GDT_L1}, GNTST_bad_page),
        (0, {"dest": 1 << 40}, GNTST_bad_page),
        (0, {"source": (1 << 64) - 1}, GNTST_bad_page),
        (0, {"dest": L4}, GNTST_general_error),
        (BOTH, {"from_offset": 4096}, GNTST_bad_copy_arg),
        (BOTH, {"to_offset": 4096 - len(TEXT) + 1}, GNTST_bad_copy_arg),
        (BOTH, {"to_offset": 0xFFFF}, GNTST_bad_copy_arg),
        (0, {"length": 0xFFFF}, GNTST_bad_copy_arg),
        (0, {"length": 4097}, GNTST_bad_copy_arg),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_copy_refusals(
    guest: PvGuest, version: int, how: int, changes: dict[str, int], expected: int
) -> None:
    use_version(guest, version)
    prepare(guest)
    changes = dict(changes)
    source = changes.pop("source", GREF if how else MFN)
    dest = changes.pop("dest", TO if how else OTHER)
    length = changes.pop("length", len(TEXT))
    table = guest.memory.read(L4 << 12, 4096)
    wanted = copy(source, dest, how, length, **changes)
    assert status(guest, GNTTABOP_copy, wanted) == expected
    assert copied(guest) == bytes(len(TEXT))
    assert guest.memory.read(L4 << 12, 4096) == table
    assert guest.domain.grants.uses == {}
    assert flags(guest) == flags(guest, TO) == GTF_permit_access
    if version == 2:
        assert (marks(guest), marks(guest, TO)) == (0, 0)


def test_read_only_grants(guest: PvGuest) -> None:
    prepare(guest)
    grant_to_itself(guest, GTF_permit_access | GTF_readonly)
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == GNTST_okay
    assert status(guest, GNTTABOP_copy, copy(TO, GREF, BOTH)) == GNTST_general_error
    assert guest.read(guest.vaddr(PFN), len(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("mfn", "frame_type"), [(L4, None), (GDT, FrameType.SEGDESC), (L1, FrameType.L1)]
)
def test_tables_are_not_written(guest: PvGuest, mfn: int, frame_type: FrameType | None) -> None:
    if frame_type is not None:
        guest.domain.types.get_page_and_type(mfn, frame_type)
    prepare(guest)
    grant_to_itself(guest, gref=TO, mfn=mfn)
    before = guest.memory.read(mfn << 12, 4096)
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == GNTST_general_error
    assert status(guest, GNTTABOP_copy, copy(MFN, mfn, 0)) == GNTST_general_error
    assert guest.memory.read(mfn << 12, 4096) == before
    assert guest.domain.grants.uses == {}
    assert status(guest, GNTTABOP_copy, copy(TO, OTHER, GNTCOPY_source_gref)) == GNTST_okay


def test_a_grant_to_another_domain(guest: PvGuest) -> None:
    prepare(guest)
    entry(guest, GTF_permit_access, 0)
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == GNTST_general_error


def test_frames_that_are_not_the_domains(guest: PvGuest) -> None:
    prepare(guest)
    for mfn in (0, layout.GDT_L1, 0xFFFF_FFFF):
        grant_to_itself(guest, mfn=mfn)
        assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == GNTST_bad_page
    assert guest.domain.grants.uses == {}


def test_a_copy_of_what_is_in_use_too_often(guest: PvGuest) -> None:
    prepare(guest)
    for _ in range(MAX_PINS):
        guest.domain.grants.acquire_to_copy(GREF, DOMID, write=False)
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == GNTST_general_error
    assert status(guest, GNTTABOP_copy, copy(TO, GREF, BOTH)) == GNTST_okay


# --- sub-pages and transitive grants ----------------------------------------------------------


def sub_page(start: int, length: int) -> int:
    return start | length << 16


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (100, 50, GNTST_okay),
        (120, 30, GNTST_okay),
        (150, 0, GNTST_okay),
        (99, 10, GNTST_general_error),
        (100, 51, GNTST_general_error),
        (149, 2, GNTST_general_error),
        (0, 0, GNTST_general_error),
        (4090, 10, GNTST_bad_copy_arg),
    ],
)
def test_sub_page_grants(guest: PvGuest, offset: int, length: int, expected: int) -> None:
    use_version(guest, 2)
    prepare(guest)
    partly = GTF_permit_access | GTF_sub_page
    grant_to_itself(guest, partly, second=sub_page(100, 50))
    wanted = copy(GREF, TO, BOTH, length, from_offset=offset)
    assert status(guest, GNTTABOP_copy, wanted) == expected
    wanted = copy(TO, GREF, BOTH, length, to_offset=offset)
    assert status(guest, GNTTABOP_copy, wanted) == expected
    assert guest.domain.grants.uses == {}


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0xFFFF, 0xFFFF, GNTST_general_error),
        (0x7FFF, 0xFFFF, GNTST_general_error),
        (0, 0xFFFF, GNTST_okay),
        (0x8000, 4096, GNTST_okay),
    ],
)
def test_sub_pages_beyond_the_page(guest: PvGuest, start: int, length: int, expected: int) -> None:
    """The length may say what it likes: the page is the limit. Xen has 15 bits for the start."""
    use_version(guest, 2)
    prepare(guest)
    partly = GTF_permit_access | GTF_sub_page
    grant_to_itself(guest, partly, second=sub_page(start, length))
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == expected
    wanted = copy(GREF, TO, BOTH, from_offset=4096)
    assert status(guest, GNTTABOP_copy, wanted) == GNTST_bad_copy_arg


def test_sub_pages_are_for_version_2(guest: PvGuest) -> None:
    prepare(guest)
    grant_to_itself(guest, GTF_permit_access | GTF_sub_page)
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == GNTST_okay


@pytest.mark.parametrize(
    ("domid", "gref", "expected"),
    [
        (DOMID, GREF, GNTST_general_error),
        (DOMID, TO, GNTST_general_error),
        (SELF, TO, GNTST_general_error),
        (1, TO, GNTST_general_error),
        (0, TO, GNTST_general_error),
        (0, 512, GNTST_bad_gntref),
    ],
)
def test_transitive_grants(guest: PvGuest, domid: int, gref: int, expected: int) -> None:
    """To itself is a loop, and refused; from domain 0 there is nothing to pass on."""
    use_version(guest, 2)
    prepare(guest)
    grant_to_itself(guest, GTF_transitive, second=domid, mfn=gref)
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == expected
    assert status(guest, GNTTABOP_copy, copy(TO, GREF, BOTH)) == expected
    assert (marks(guest), guest.domain.grants.uses) == (0, {})
    grant_to_itself(guest, GTF_transitive | GTF_readonly, second=domid, mfn=gref)
    assert status(guest, GNTTABOP_copy, copy(TO, GREF, BOTH)) == GNTST_general_error


def test_an_entry_that_becomes_transitive_while_it_is_used(guest: PvGuest) -> None:
    use_version(guest, 2)
    prepare(guest)
    guest.domain.grants.acquire_to_copy(GREF, DOMID, write=False)
    grant_to_itself(guest, GTF_transitive, second=DOMID, mfn=TO)
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == GNTST_general_error
    assert guest.domain.grants.uses == {GREF: (1, 0)}
    assert marks(guest) == GTF_reading


def test_transitive_entries_are_for_version_2(guest: PvGuest) -> None:
    prepare(guest)
    grant_to_itself(guest, GTF_transitive)
    assert status(guest, GNTTABOP_copy, copy(GREF, TO, BOTH)) == GNTST_general_error


# --- lists ------------------------------------------------------------------------------------


def test_a_list_of_copies_in_pieces(guest: PvGuest) -> None:
    prepare(guest)
    count = 700
    wanted = [copy(MFN, OTHER, 0, 4, to_offset=4 * n) for n in range(count)]
    wanted[350] = copy(512, OTHER, GNTCOPY_source_gref)
    result, done = many(guest, GNTTABOP_copy, wanted)
    assert result == 0
    expected = [GNTST_bad_gntref if n == 350 else 0 for n in range(count)]
    assert [item.status for item in done] == expected
    data = guest.read(guest.vaddr(OTHER_PFN), 4 * count)
    assert data == b"".join(bytes(4) if n == 350 else TEXT[:4] for n in range(count))


def test_a_copy_over_the_rest_of_the_list(guest: PvGuest) -> None:
    """The guest can change operations that were not read yet, by its own copies."""
    prepare(guest)
    first = copy(MFN, XEN_PAGES + OTHER_PFN + 1, 0, GnttabCopy.SIZE, to_offset=GnttabCopy.SIZE)
    guest.write(guest.vaddr(PFN), copy(0, 0, 0).pack())
    at = guest.vaddr(OTHER_PFN + 1)
    guest.write(at, first.pack() + copy(MFN, OTHER, 0).pack())
    assert guest.call(OP, GNTTABOP_copy, at, 2) == 0
    second = GnttabCopy.unpack(guest.read(at + GnttabCopy.SIZE, GnttabCopy.SIZE))
    assert second.status == GNTST_bad_page


def test_a_status_that_cannot_be_written(guest: PvGuest) -> None:
    prepare(guest)
    at = guest.vaddr(OTHER_PFN + 1)
    guest.write(at, copy(GREF, TO, BOTH).pack())
    guest.protect(OTHER_PFN + 1)
    assert guest.call(OP, GNTTABOP_copy, at, 1) == -E.FAULT
    assert copied(guest) == TEXT, "as in Xen it is done then"
    assert guest.domain.grants.uses == {}


# --- transfer ---------------------------------------------------------------------------------


def transfer(guest: PvGuest, mfn: int = MFN, domid: int = DOMID, ref: int = GREF) -> int:
    if XEN_PAGES + PFN <= mfn < XEN_PAGES + PAGES:
        guest.unmap(mfn - XEN_PAGES)
    return status(guest, GNTTABOP_transfer, GnttabTransfer(mfn=mfn, domid=domid, ref=ref))


@pytest.mark.parametrize("version", [1, 2])
def test_transfer_to_itself(guest: PvGuest, version: int) -> None:
    use_version(guest, version)
    guest.write(guest.vaddr(PFN), TEXT)
    pages = guest.domain.reservation.pages
    grant_to_itself(guest, GTF_accept_transfer, mfn=777)
    assert transfer(guest) == GNTST_okay
    done = GTF_accept_transfer | GTF_transfer_committed | GTF_transfer_completed
    assert (flags(guest), frame(guest)) == (done, MFN)
    assert guest.memory.words[(guest.memory.m2p_mfn << 9) + MFN] == 777
    assert guest.read(guest.vaddr(PFN), len(TEXT)) == TEXT
    assert guest.domain.reservation.pages == pages
    assert transfer(guest) == GNTST_general_error, "an entry takes one page"


@pytest.mark.parametrize(
    ("offered", "by", "changes", "expected"),
    [
        (GTF_accept_transfer, DOMID, {"domid": 1}, GNTST_bad_domain),
        (GTF_accept_transfer, DOMID, {"domid": SELF}, GNTST_bad_domain),
        (GTF_accept_transfer, DOMID, {"domid": 0}, GNTST_general_error),
        (GTF_accept_transfer, DOMID, {"ref": 512}, GNTST_general_error),
        (GTF_accept_transfer, 0, {}, GNTST_general_error),
        (GTF_accept_transfer | GTF_transfer_committed, DOMID, {}, GNTST_general_error),
        (GTF_permit_access, DOMID, {}, GNTST_general_error),
        (0, DOMID, {}, GNTST_general_error),
    ],
)
def test_a_page_that_nobody_accepts_is_lost(
    guest: PvGuest, offered: int, by: int, changes: dict[str, int], expected: int
) -> None:
    pages = guest.domain.reservation.pages
    entry(guest, offered, by, mfn=777)
    assert transfer(guest, **changes) == expected
    assert (flags(guest), frame(guest)) == (offered, 777)
    assert guest.domain.reservation.pages == pages - 1
    assert not guest.domain.frames.is_domains(MFN)
    assert guest.engine.flushes
    assert transfer(guest, **changes) == GNTST_bad_page


@pytest.mark.parametrize(
    "mfn", [L4, GDT, layout.SHARED_INFO, layout.GRANT_FRAMES, layout.GDT_L1, 1 << 50]
)
def test_pages_that_cannot_be_given_away(guest: PvGuest, mfn: int) -> None:
    guest.domain.types.get_page_and_type(GDT, FrameType.SEGDESC)
    pages = guest.domain.reservation.pages
    grant_to_itself(guest, GTF_accept_transfer)
    assert transfer(guest, mfn) == GNTST_bad_page
    assert flags(guest) == GTF_accept_transfer
    assert guest.domain.reservation.pages == pages


def test_a_page_that_is_mapped_by_a_grant_is_not_given_away(guest: PvGuest) -> None:
    grant_to_itself(guest, gref=TO)
    mapping = GnttabMapGrantRef(flags=GNTMAP_device_map, ref=TO, dom=DOMID)
    assert status(guest, GNTTABOP_map_grant_ref, mapping) == GNTST_okay
    grant_to_itself(guest, GTF_accept_transfer)
    assert transfer(guest) == GNTST_bad_page
    assert flags(guest, TO) == GTF_permit_access | GTF_reading | GTF_writing
    assert guest.domain.frames.is_domains(MFN)


def test_a_page_that_is_mapped_is_not_given_away(guest: PvGuest) -> None:
    grant_to_itself(guest, GTF_accept_transfer)
    wanted = GnttabTransfer(mfn=MFN, domid=DOMID, ref=GREF)
    assert status(guest, GNTTABOP_transfer, wanted) == GNTST_bad_page
    assert flags(guest) == GTF_accept_transfer


def test_a_list_of_transfers(guest: PvGuest) -> None:
    pages = guest.domain.reservation.pages
    for pfn in range(300, 550):
        guest.unmap(pfn)
    wanted = [GnttabTransfer(mfn=XEN_PAGES + 300 + n % 250, domid=0) for n in range(400)]
    result, done = many(guest, GNTTABOP_transfer, wanted)
    assert result == 0
    expected = [GNTST_general_error] * 250 + [GNTST_bad_page] * 150
    assert [item.status for item in done] == expected
    assert guest.domain.reservation.pages == pages - 250
