"""Grants: what the guest asks for, and how the host uses what hostile entries offer."""

from __future__ import annotations

import pytest
from pv_guest import DOMID, NOT_MAPPED, SELF, PvGuest

from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTST_bad_domain,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GnttabGetVersion,
    GNTTABOP_get_version,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
)
from pyxen.errors import XenError
from pyxen.hypervisor.grant import ENTRIES_PER_FRAME
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES
from pyxen.types import GrantRef

OP = "grant_table_op"
GREF = GrantRef(8)
MFN = XEN_PAGES + 100


def op(guest: PvGuest, command: int, structure: GnttabSetupTable, count: int = 1) -> int:
    at = guest.put(structure)
    result = guest.call(OP, command, at, count)
    structure.__init__(  # type: ignore[misc]
        **{
            field.name: getattr(type(structure).unpack(guest.read(at, structure.SIZE)), field.name)
            for field in structure.FIELDS
        }
    )
    return result


def entry(guest: PvGuest, flags: int, domid: int = 0, mfn: int = MFN, gref: int = GREF) -> None:
    at = (layout.GRANT_FRAMES << 12) + gref * 8
    guest.memory.dwords[at >> 2] = flags | domid << 16
    guest.memory.dwords[(at >> 2) + 1] = mfn


def flags(guest: PvGuest, gref: int = GREF) -> int:
    return guest.memory.dwords[((layout.GRANT_FRAMES << 12) + gref * 8) >> 2] & 0xFFFF


def refusal(guest: PvGuest, gref: int = GREF, *, write: bool = False) -> E:
    with pytest.raises(XenError) as refused:
        guest.domain.grants.begin(GrantRef(gref), write=write)
    return refused.value.errno


# --- the guest's side -------------------------------------------------------------------------


@pytest.mark.parametrize("domid", [SELF, DOMID])
def test_setup_table(guest: PvGuest, domid: int) -> None:
    at = guest.vaddr(90)
    setup = GnttabSetupTable(dom=domid, nr_frames=4, frame_list=at)
    assert op(guest, GNTTABOP_setup_table, setup) == 0
    assert setup.status == 0
    assert guest.words(at, 4) == tuple(layout.GRANT_FRAMES + n for n in range(4))
    assert all(guest.domain.frames.is_domains(layout.GRANT_FRAMES + n) for n in range(4))
    assert not guest.domain.frames.is_domains(layout.GRANT_FRAMES + 4)
    assert guest.domain.grants.nr_frames == 4
    setup = GnttabSetupTable(dom=domid, nr_frames=2, frame_list=at)
    assert op(guest, GNTTABOP_setup_table, setup) == 0
    assert guest.domain.grants.nr_frames == 4, "it does not shrink"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"dom": 0}, GNTST_bad_domain),
        ({"nr_frames": layout.MAX_GRANT_FRAMES + 1}, GNTST_general_error),
        ({"nr_frames": 0xFFFF_FFFF, "frame_list": 0}, GNTST_general_error),
        ({"frame_list": NOT_MAPPED}, GNTST_bad_virt_addr),
    ],
)
def test_setup_table_status(guest: PvGuest, changes: dict[str, int], status: int) -> None:
    fields = {"dom": SELF, "nr_frames": 2, "frame_list": guest.vaddr(90), **changes}
    setup = GnttabSetupTable(**fields)
    assert op(guest, GNTTABOP_setup_table, setup) == 0
    assert setup.status == status


def test_all_frames(guest: PvGuest) -> None:
    most = GnttabSetupTable(dom=SELF, nr_frames=layout.MAX_GRANT_FRAMES, frame_list=guest.vaddr(90))
    assert op(guest, GNTTABOP_setup_table, most) == 0
    assert most.status == 0
    last = layout.MAX_GRANT_FRAMES * ENTRIES_PER_FRAME - 1
    entry(guest, GTF_permit_access, gref=last)
    assert guest.domain.grants.begin(GrantRef(last), write=True) == MFN


def test_query_size(guest: PvGuest) -> None:
    query = GnttabQuerySize(dom=SELF)
    assert op(guest, GNTTABOP_query_size, query) == 0
    assert (query.nr_frames, query.max_nr_frames, query.status) == (1, 64, 0)
    query = GnttabQuerySize(dom=0)
    assert op(guest, GNTTABOP_query_size, query) == 0
    assert query.status == GNTST_bad_domain


def test_versions(guest: PvGuest) -> None:
    version = GnttabGetVersion(dom=SELF)
    assert op(guest, GNTTABOP_get_version, version) == 0
    assert version.version == 1
    assert op(guest, GNTTABOP_get_version, GnttabGetVersion(dom=0)) == -E.PERM
    assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=1)) == 0
    assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=2)) == -E.NOSYS
    for number in (0, 3, 0xFFFF_FFFF):
        assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=number)) == -E.INVAL


@pytest.mark.parametrize(
    "command",
    [GNTTABOP_setup_table, GNTTABOP_query_size, GNTTABOP_get_version, GNTTABOP_set_version],
)
def test_bad_pointers_and_counts(guest: PvGuest, command: int) -> None:
    assert guest.call(OP, command, NOT_MAPPED, 1) == -E.FAULT
    for count in (0, 2, 1 << 31):
        assert guest.call(OP, command, guest.vaddr(90), count) == -E.INVAL
    assert guest.call(OP, 99, guest.vaddr(90), 1) == -E.NOSYS
    assert guest.call(OP, GNTTABOP_map_grant_ref, guest.vaddr(90), 1) == -E.NOSYS


# --- the host's side --------------------------------------------------------------------------


def test_marks_of_readers_and_writers(guest: PvGuest) -> None:
    grants = guest.domain.grants
    entry(guest, GTF_permit_access)
    assert grants.begin(GREF, write=False) == MFN
    assert flags(guest) == GTF_permit_access | GTF_reading
    grants.begin(GREF, write=True)
    grants.begin(GREF, write=False)
    assert flags(guest) == GTF_permit_access | GTF_reading | GTF_writing
    assert grants.uses == {GREF: (2, 1)}
    grants.end(GREF, write=False)
    assert flags(guest) == GTF_permit_access | GTF_reading | GTF_writing
    grants.end(GREF, write=True)
    assert flags(guest) == GTF_permit_access | GTF_reading
    grants.end(GREF, write=False)
    assert flags(guest) == GTF_permit_access
    assert grants.uses == {}


def test_read_only_grants(guest: PvGuest) -> None:
    entry(guest, GTF_permit_access | GTF_readonly)
    assert refusal(guest, write=True) is E.ACCES
    assert flags(guest) == GTF_permit_access | GTF_readonly, "nothing was marked"
    assert guest.domain.grants.begin(GREF, write=False) == MFN
    assert guest.domain.grants.uses == {GREF: (1, 0)}


@pytest.mark.parametrize("offered", [0, GTF_accept_transfer, 3, GTF_reading])
def test_entries_that_grant_nothing(guest: PvGuest, offered: int) -> None:
    entry(guest, offered)
    assert refusal(guest) is E.INVAL
    assert flags(guest) == offered


def test_entries_for_another_domain(guest: PvGuest) -> None:
    for domid in (1, DOMID, 0x7FF0):
        entry(guest, GTF_permit_access, domid)
        assert refusal(guest) is E.ACCES


@pytest.mark.parametrize("mfn", [0, layout.GDT_L1, XEN_PAGES + 1030, 0xFFFF_FFFF])
def test_entries_that_offer_what_is_not_the_guests(guest: PvGuest, mfn: int) -> None:
    entry(guest, GTF_permit_access, mfn=mfn)
    assert refusal(guest) is E.INVAL
    assert guest.domain.grants.uses == {}


@pytest.mark.parametrize("gref", [512, 4096, 1 << 31, (1 << 32) - 1, -1])
def test_references_behind_the_table(guest: PvGuest, gref: int) -> None:
    assert refusal(guest, gref) is E.INVAL


def test_a_guest_that_takes_an_entry_back_while_it_is_used(guest: PvGuest) -> None:
    """The host keeps what it got; the marks of what is not there any more do no harm."""
    grants = guest.domain.grants
    entry(guest, GTF_permit_access)
    grants.begin(GREF, write=True)
    entry(guest, 0, mfn=5)
    assert refusal(guest) is E.INVAL
    grants.end(GREF, write=True)
    assert flags(guest) == 0
    assert grants.uses == {}


def test_what_the_tool_stack_grants_for_the_guest(guest: PvGuest) -> None:
    grants = guest.domain.grants
    grants.seed(GREF, 0, MFN)
    assert grants.begin(GREF, write=True) == MFN
