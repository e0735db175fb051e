"""The grant table: its size and version, and how the host uses what hostile entries offer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grant_guest import (
    GREF,
    MFN,
    OP,
    PFN,
    entry,
    flags,
    frame,
    frames_of_table,
    grant_to_itself,
    marks,
    op,
    status,
    status_frames,
    use_version,
)
from pv_guest import DOMID, L4, NOT_MAPPED, SELF, PvGuest

from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_INVAL,
    GNTTAB_CACHE_SOURCE_GREF,
    GNTMAP_host_map,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_virt_addr,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_no_space,
    GNTST_okay,
    GNTST_permission_denied,
    GnttabCacheFlush,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_dump_table,
    GNTTABOP_get_status_frames,
    GNTTABOP_get_version,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_writing,
)
from pyxen.abi.xen import MMUEXT_PIN_L1_TABLE, MmuextOp
from pyxen.errors import XenError
from pyxen.hypervisor.grant_active import MAX_PINS
from pyxen.hypervisor.page_audit import audit
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import PTE_PRESENT
from pyxen.types import GrantRef

LISTS = [
    GNTTABOP_map_grant_ref,
    GNTTABOP_unmap_grant_ref,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_transfer,
    GNTTABOP_copy,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_cache_flush,
]
ONE_ONLY = [GNTTABOP_setup_table, GNTTABOP_query_size, GNTTABOP_get_status_frames]
VERSIONS = [GNTTABOP_get_version, GNTTABOP_set_version]


def refusal(guest: PvGuest, gref: int = GREF, *, write: bool = False) -> E:
    with pytest.raises(XenError) as refused:
        guest.domain.grants.begin(GrantRef(gref), write=write)
    return refused.value.errno


# --- the hypercall ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", LISTS + ONE_ONLY + VERSIONS)
def test_bad_pointers_and_counts(guest: PvGuest, command: int) -> None:
    assert guest.call(OP, command, NOT_MAPPED, 1) == -E.FAULT
    assert guest.call(OP, command, 0xFFFF_8000_0000_0000, 1) == -E.FAULT
    assert guest.call(OP, command, guest.vaddr(90), 1 << 31) == -E.INVAL
    assert guest.call(OP, command, guest.vaddr(90), 0xFFFF_FFFF) == -E.INVAL
    if command in ONE_ONLY:
        for count in (0, 2):
            assert guest.call(OP, command, guest.vaddr(90), count) == -E.INVAL


@pytest.mark.parametrize("command", LISTS)
def test_empty_lists(guest: PvGuest, command: int) -> None:
    """Of a list only the beginning is looked at, and only whether it may be a guest's."""
    assert guest.call(OP, command, NOT_MAPPED, 0) == 0
    assert guest.call(OP, command, 0xFFFF_8000_0000_0000, 0) == -E.FAULT
    assert guest.call(OP, command, NOT_MAPPED, 1 << 40) == 0, "the count has 32 bits"


def test_commands_that_are_none(guest: PvGuest) -> None:
    for command in (GNTTABOP_dump_table, 13, 99, 0xFFF):
        assert guest.call(OP, command, guest.vaddr(90), 1) == -E.NOSYS
    for command in (*LISTS[:-1], *ONE_ONLY, *VERSIONS):
        assert guest.call(OP, 1 << 12 | command, guest.vaddr(90), 1) == -E.INVAL


# --- setup_table, query_size ------------------------------------------------------------------


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
    ("changes", "expected"),
    [
        ({"dom": 0}, GNTST_permission_denied),
        ({"dom": 1}, GNTST_bad_domain),
        ({"dom": 0x7FF1}, GNTST_bad_domain),
        ({"nr_frames": layout.MAX_GRANT_FRAMES + 1}, GNTST_general_error),
        ({"nr_frames": 0xFFFF_FFFF, "frame_list": 0}, GNTST_general_error),
        ({"frame_list": NOT_MAPPED}, GNTST_bad_virt_addr),
        ({"frame_list": NOT_MAPPED, "nr_frames": 0}, GNTST_okay),
    ],
)
def test_setup_table_status(guest: PvGuest, changes: dict[str, int], expected: int) -> None:
    fields = {"dom": SELF, "nr_frames": 2, "frame_list": guest.vaddr(90), **changes}
    assert status(guest, GNTTABOP_setup_table, GnttabSetupTable(**fields)) == expected


def test_a_frame_list_in_the_hypervisor(guest: PvGuest) -> None:
    setup = GnttabSetupTable(dom=SELF, nr_frames=1, frame_list=0xFFFF_8000_0000_0000)
    assert op(guest, GNTTABOP_setup_table, setup) == -E.FAULT
    assert guest.domain.grants.nr_frames == 1


def test_all_frames(guest: PvGuest) -> None:
    assert frames_of_table(guest, layout.MAX_GRANT_FRAMES)[0] == 0
    last = layout.MAX_GRANT_FRAMES * 512 - 1
    entry(guest, GTF_permit_access, gref=last)
    assert guest.domain.grants.begin(GrantRef(last), write=True) == MFN


def test_query_size(guest: PvGuest) -> None:
    query = GnttabQuerySize(dom=SELF)
    assert op(guest, GNTTABOP_query_size, query) == 0
    assert (query.nr_frames, query.max_nr_frames, query.status) == (1, 64, 0)
    assert status(guest, GNTTABOP_query_size, GnttabQuerySize(dom=0)) == GNTST_permission_denied
    assert status(guest, GNTTABOP_query_size, GnttabQuerySize(dom=1)) == GNTST_bad_domain


# --- versions ---------------------------------------------------------------------------------


def test_get_version(guest: PvGuest) -> None:
    version = GnttabGetVersion(dom=SELF, pad=0x1234)
    assert op(guest, GNTTABOP_get_version, version) == 0
    assert (version.version, version.pad) == (1, 0x1234)
    assert op(guest, GNTTABOP_get_version, GnttabGetVersion(dom=0)) == -E.PERM
    assert op(guest, GNTTABOP_get_version, GnttabGetVersion(dom=1)) == -E.SRCH
    assert op(guest, GNTTABOP_get_version, GnttabGetVersion(dom=SELF), count=7) == 0
    use_version(guest, 2)
    assert op(guest, GNTTABOP_get_version, version) == 0
    assert version.version == 2


@pytest.mark.parametrize("number", [0, 3, 0xFFFF_FFFF])
def test_versions_that_are_none(guest: PvGuest, number: int) -> None:
    for current in (1, 2):
        use_version(guest, current)
        asked = GnttabSetVersion(version=number)
        assert op(guest, GNTTABOP_set_version, asked) == -E.INVAL
        assert asked.version == current, "the version in use is told all the same"


def test_a_domain_that_may_only_use_version_1(guest: PvGuest) -> None:
    guest.domain.grants.max_version = 1
    assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=2)) == -E.NOSYS
    assert guest.domain.grants.version == 1


def test_version_2_has_half_the_entries_and_a_status_array(guest: PvGuest) -> None:
    assert status_frames(guest, 1)[0] == GNTST_general_error
    use_version(guest, 2)
    assert status_frames(guest, 1) == (0, (layout.GRANT_STATUS_FRAMES,))
    assert status_frames(guest, 2)[0] == GNTST_general_error
    assert guest.domain.frames.is_domains(layout.GRANT_STATUS_FRAMES)
    assert not guest.domain.frames.is_domains(layout.GRANT_STATUS_FRAMES + 1)
    assert refusal(guest, 256) is E.INVAL
    assert frames_of_table(guest, 9)[0] == 0
    expected = tuple(layout.GRANT_STATUS_FRAMES + n for n in range(2))
    assert status_frames(guest, 2) == (0, expected)
    entry(guest, GTF_permit_access, gref=9 * 256 - 1)
    guest.domain.grants.begin(GrantRef(9 * 256 - 1), write=True)
    assert marks(guest, 9 * 256 - 1) == GTF_reading | GTF_writing


def test_get_status_frames_refusals(guest: PvGuest) -> None:
    use_version(guest, 2)
    assert status_frames(guest, 1, dom=0)[0] == GNTST_permission_denied
    assert status_frames(guest, 1, dom=1)[0] == GNTST_bad_domain
    assert status_frames(guest, 1, frame_list=NOT_MAPPED)[0] == GNTST_bad_virt_addr
    assert status_frames(guest, 1, nr_frames=0xFFFF_FFFF)[0] == GNTST_general_error


def test_reserved_entries_survive_a_change_of_version(guest: PvGuest) -> None:
    grants = guest.domain.grants
    grants.seed(GrantRef(0), 0, MFN)
    entry(guest, GTF_permit_access | GTF_readonly, gref=7, mfn=MFN + 7)
    entry(guest, GTF_permit_access, gref=8)
    grants.begin(GrantRef(0), write=True)
    use_version(guest, 2)
    assert (flags(guest, 0), frame(guest, 0)) == (GTF_permit_access, MFN)
    assert marks(guest, 0) == GTF_reading | GTF_writing
    assert (flags(guest, 7), frame(guest, 7)) == (GTF_permit_access | GTF_readonly, MFN + 7)
    assert (flags(guest, 8), marks(guest, 7)) == (0, 0)
    use_version(guest, 1)
    assert flags(guest, 0) == GTF_permit_access | GTF_reading | GTF_writing
    assert frame(guest, 0) == MFN
    grants.end(GrantRef(0), write=True)
    assert flags(guest, 0) == GTF_permit_access
    assert (flags(guest, 7), frame(guest, 7)) == (GTF_permit_access | GTF_readonly, MFN + 7)
    assert not guest.domain.frames.is_domains(layout.GRANT_STATUS_FRAMES)


def test_no_change_of_version_while_entries_are_in_use(guest: PvGuest) -> None:
    grants = guest.domain.grants
    for old, new in ((1, 2), (2, 1)):
        entry(guest, GTF_permit_access)
        grants.begin(GREF, write=False)
        asked = GnttabSetVersion(version=new)
        assert op(guest, GNTTABOP_set_version, asked) == -E.BUSY
        assert asked.version == old
        assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=old)) == 0
        assert flags(guest) & GTF_permit_access
        grants.end(GREF, write=False)
        use_version(guest, new)


@pytest.mark.parametrize(
    ("offered", "mfn", "refused"),
    [
        (GTF_transitive, MFN, True),
        (GTF_permit_access, 1 << 32, True),
        (GTF_accept_transfer, 1 << 32, False),
        (0, 1 << 32, False),
    ],
)
def test_entries_that_version_1_cannot_say(
    guest: PvGuest, offered: int, mfn: int, refused: bool
) -> None:
    use_version(guest, 2)
    entry(guest, offered, gref=3, mfn=mfn)
    result = op(guest, GNTTABOP_set_version, GnttabSetVersion(version=1))
    assert result == (-E.RANGE if refused else 0)
    assert guest.domain.grants.version == (2 if refused else 1)
    if not refused:
        assert (flags(guest, 3), frame(guest, 3)) == (0, 0)


def test_no_way_back_while_status_frames_are_in_use(guest: PvGuest) -> None:
    use_version(guest, 2)
    guest.set_pte(150, PTE_PRESENT, layout.GRANT_STATUS_FRAMES)
    assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=1)) == -E.BUSY
    assert guest.domain.grants.version == 2
    guest.unmap(150)
    use_version(guest, 1)


def test_status_words_are_new_when_version_2_begins_again(guest: PvGuest) -> None:
    use_version(guest, 2)
    entry(guest, GTF_permit_access)
    guest.memory.bytes[(layout.GRANT_STATUS_FRAMES << 12) + 2 * GREF] = GTF_reading
    use_version(guest, 1)
    use_version(guest, 2)
    assert marks(guest) == 0


# --- swap_grant_ref ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_swap(guest: PvGuest, version: int) -> None:
    use_version(guest, version)
    entry(guest, GTF_permit_access, 0, MFN, gref=8)
    entry(guest, GTF_permit_access | GTF_readonly, 3, MFN + 1, gref=9)
    if version == 2:
        guest.memory.bytes[(layout.GRANT_STATUS_FRAMES << 12) + 2 * 9] = GTF_reading
    swap = GnttabSwapGrantRef(ref_a=8, ref_b=9)
    assert status(guest, GNTTABOP_swap_grant_ref, swap) == 0
    assert (flags(guest, 8), frame(guest, 8)) == (GTF_permit_access | GTF_readonly, MFN + 1)
    assert (flags(guest, 9), frame(guest, 9)) == (GTF_permit_access, MFN)
    if version == 2:
        assert (marks(guest, 8), marks(guest, 9)) == (GTF_reading, 0)


def test_swap_refusals(guest: PvGuest) -> None:
    entry(guest, GTF_permit_access)
    for pair in ((8, 512), (512, 8), (0xFFFF_FFFF, 0xFFFF_FFFF)):
        swap = GnttabSwapGrantRef(ref_a=pair[0], ref_b=pair[1])
        assert status(guest, GNTTABOP_swap_grant_ref, swap) == GNTST_bad_gntref
    guest.domain.grants.begin(GREF, write=False)
    for pair in ((8, 9), (9, 8)):
        swap = GnttabSwapGrantRef(ref_a=pair[0], ref_b=pair[1])
        assert status(guest, GNTTABOP_swap_grant_ref, swap) == GNTST_eagain
    swap = GnttabSwapGrantRef(ref_a=8, ref_b=8)
    assert status(guest, GNTTABOP_swap_grant_ref, swap) == 0, "nothing to do"
    assert flags(guest) == GTF_permit_access | GTF_reading


# --- cache_flush ------------------------------------------------------------------------------

CLEAN_AND_INVALIDATE = GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0),
        ({"op": GNTTAB_CACHE_CLEAN}, 0),
        ({"op": GNTTAB_CACHE_INVAL}, -E.OPNOTSUPP),
        ({"op": 0}, 0),
        ({"length": 0, "mfn": 0}, 0),
        ({"op": GNTTAB_CACHE_SOURCE_GREF | GNTTAB_CACHE_CLEAN}, -E.INVAL),
        ({"op": 4}, -E.INVAL),
        ({"offset": 4096, "length": 0}, -E.INVAL),
        ({"offset": 1}, -E.INVAL),
        ({"length": 4097}, -E.INVAL),
        ({"mfn": 0}, -E.PERM),
        ({"mfn": 1 << 40}, -E.INVAL),
    ],
)
def test_cache_flush(guest: PvGuest, changes: dict[str, int], expected: int) -> None:
    fields = {"mfn": MFN, "offset": 0, "length": 4096, "op": CLEAN_AND_INVALIDATE, **changes}
    flush = GnttabCacheFlush(
        a=(fields["mfn"] << 12).to_bytes(8, "little"),
        offset=fields["offset"],
        length=fields["length"],
        op=fields["op"],
    )
    assert op(guest, GNTTABOP_cache_flush, flush) == expected


def test_a_continued_cache_flush(guest: PvGuest) -> None:
    flush = GnttabCacheFlush(a=(MFN << 12).to_bytes(8, "little"), length=16, op=GNTTAB_CACHE_CLEAN)
    assert op(guest, 1 << 12 | GNTTABOP_cache_flush, flush) == 0
    flush.length = 0
    assert op(guest, 1 << 12 | GNTTABOP_cache_flush, flush) == -E.ILSEQ
    at = guest.put(flush.pack() * 400)
    assert guest.call(OP, GNTTABOP_cache_flush, at, 400) == 0


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
    for domid in (1, DOMID, SELF):
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
    """The host keeps what it got, for more uses, too; the marks do no harm afterwards."""
    grants = guest.domain.grants
    entry(guest, GTF_permit_access)
    grants.begin(GREF, write=True)
    entry(guest, 0, mfn=5)
    assert grants.begin(GREF, write=False) == MFN
    grants.end(GREF, write=False)
    grants.end(GREF, write=True)
    assert flags(guest) == 0
    assert grants.uses == {}
    assert refusal(guest) is E.INVAL


def test_the_first_use_that_writes_looks_again(guest: PvGuest) -> None:
    grants = guest.domain.grants
    entry(guest, GTF_permit_access)
    grants.begin(GREF, write=False)
    entry(guest, GTF_permit_access | GTF_readonly)
    assert refusal(guest, write=True) is E.ACCES
    grants.end(GREF, write=False)


def test_the_marks_of_a_use_that_ends_do_not_touch_the_rest(guest: PvGuest) -> None:
    """The guest makes the entry another one while it is in use: its flags stay."""
    grants = guest.domain.grants
    entry(guest, GTF_permit_access)
    grants.begin(GREF, write=True)
    entry(guest, GTF_accept_transfer | 0xFF00, domid=5)
    grants.end(GREF, write=True)
    assert flags(guest) == GTF_accept_transfer | 0xFF00


def test_too_many_uses(guest: PvGuest) -> None:
    grants = guest.domain.grants
    entry(guest, GTF_permit_access)
    for _ in range(MAX_PINS):
        grants.begin(GREF, write=False)
    assert refusal(guest) is E.BUSY
    grants.begin(GREF, write=True)
    for _ in range(MAX_PINS):
        grants.end(GREF, write=False)
    grants.end(GREF, write=True)
    assert grants.uses == {}


def test_tables_are_not_written(guest: PvGuest) -> None:
    """Neither is a table granted for writing, nor does what is written become a table."""
    grants = guest.domain.grants
    entry(guest, GTF_permit_access, mfn=L4)
    assert refusal(guest, write=True) is E.BUSY
    assert (flags(guest), grants.uses) == (GTF_permit_access, {})
    assert grants.begin(GREF, write=False) == L4
    grants.end(GREF, write=False)
    entry(guest, GTF_permit_access)
    grants.begin(GREF, write=True)
    grants.begin(GREF, write=True)
    grants.begin(GREF, write=False)
    guest.unmap(PFN)
    pin = MmuextOp(cmd=MMUEXT_PIN_L1_TABLE, arg1=MFN)
    assert guest.call("mmuext_op", guest.put(pin), 1, 0, SELF) == -E.INVAL
    grants.end(GREF, write=True)
    assert guest.call("mmuext_op", guest.put(pin), 1, 0, SELF) == -E.INVAL
    grants.end(GREF, write=True)
    assert guest.call("mmuext_op", guest.put(pin), 1, 0, SELF) == 0
    assert refusal(guest, write=True) is E.BUSY


def test_the_tables_own_frame_can_be_granted(guest: PvGuest) -> None:
    entry(guest, GTF_permit_access, mfn=layout.GRANT_FRAMES)
    guest.domain.grants.begin(GREF, write=True)
    guest.domain.grants.end(GREF, write=True)
    assert audit(guest.domain) == []


def test_one_user_at_a_time(guest: PvGuest) -> None:
    """What one domain uses cannot be had by another, whatever the entry says then."""
    grants = guest.domain.grants
    grant_to_itself(guest)
    grants.acquire_to_copy(GREF, DOMID, write=False)
    entry(guest, GTF_permit_access, 0)
    assert refusal(guest) is E.ACCES


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_tool_stack_grants_for_the_guest(guest: PvGuest, version: int) -> None:
    grants = guest.domain.grants
    use_version(guest, version)
    grants.seed(GREF, 0, MFN)
    assert grants.begin(GREF, write=True) == MFN


def test_marks_in_version_2(guest: PvGuest) -> None:
    use_version(guest, 2)
    grants = guest.domain.grants
    entry(guest, GTF_permit_access)
    grants.begin(GREF, write=False)
    assert (flags(guest), marks(guest)) == (GTF_permit_access, GTF_reading)
    grants.begin(GREF, write=True)
    assert (flags(guest), marks(guest)) == (GTF_permit_access, GTF_reading | GTF_writing)
    grants.end(GREF, write=True)
    assert marks(guest) == GTF_reading
    grants.end(GREF, write=False)
    assert marks(guest) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_sub_page_grant_is_not_mapped(guest: PvGuest, version: int) -> None:
    use_version(guest, version)
    entry(guest, GTF_permit_access | GTF_sub_page, second=64 | 16 << 16)
    assert refusal(guest) is E.INVAL
    extent = guest.domain.grants.begin_copy(GREF, write=True)
    if version == 2:
        assert (extent.mfn, extent.start, extent.length) == (MFN, 64, 16)
        assert refusal(guest) is E.INVAL, "not while it is being copied either"
    else:
        assert (extent.mfn, extent.start, extent.length) == (MFN, 0, 4096)
    guest.domain.grants.end(GREF, write=True)
    assert guest.domain.grants.uses == {}


def test_the_host_follows_no_transitive_grant(guest: PvGuest) -> None:
    use_version(guest, 2)
    for domid in (0, 1, DOMID):
        entry(guest, GTF_transitive, second=domid, mfn=9)
        assert refusal(guest) is E.INVAL
        with pytest.raises(XenError):
            guest.domain.grants.begin_copy(GREF, write=False)
        assert (marks(guest), guest.domain.grants.uses) == (0, {})


def test_frames_of_version_2_have_64_bits(guest: PvGuest) -> None:
    use_version(guest, 2)
    entry(guest, GTF_permit_access, mfn=MFN | 1 << 32)
    assert refusal(guest) is E.INVAL


@pytest.fixture
def limited() -> Iterator[PvGuest]:
    """A guest with a grant table smaller than usual."""
    made = PvGuest(max_grant_frames=3, max_maptrack_frames=0, max_grant_version=1)
    yield made
    made.close()


def test_smaller_limits(limited: PvGuest) -> None:
    assert frames_of_table(limited, 4)[0] == GNTST_general_error
    assert frames_of_table(limited, 3)[0] == 0
    with pytest.raises(XenError):
        limited.domain.grants.grow(4)
    query = GnttabQuerySize(dom=SELF)
    assert op(limited, GNTTABOP_query_size, query) == 0
    assert (query.nr_frames, query.max_nr_frames) == (3, 3)
    assert op(limited, GNTTABOP_set_version, GnttabSetVersion(version=2)) == -E.NOSYS
    grant_to_itself(limited)
    wanted = GnttabMapGrantRef(
        host_addr=limited.vaddr(90), flags=GNTMAP_host_map, ref=GREF, dom=DOMID
    )
    assert status(limited, GNTTABOP_map_grant_ref, wanted) == GNTST_no_space
    last = GrantRef(3 * 512 - 1)
    entry(limited, GTF_permit_access, 0, gref=last)
    limited.unmap(PFN)
    assert limited.domain.grants.begin_many([last], write=True) == [MFN]
    with pytest.raises(XenError, match="no grant reference"):
        limited.domain.grants.begin_many([last, last + 1], write=True)
    assert limited.domain.grants.uses == {last: (0, 1)}
