"""memory_op: the memory map, the reservation and its balloon."""

from __future__ import annotations

import pytest
from pv_guest import DOMID, L1, L4, NOT_MAPPED, PAGES, SELF, SPARE_PAGES, PvGuest

from pyxen.abi._struct import XenStruct
from pyxen.abi.errno import E
from pyxen.abi.memory import (
    E820Entry,
    XenAddToPhysmap,
    XenAddToPhysmapBatch,
    XenForeignMemoryMap,
    XenMachphysMapping,
    XenMachphysMfnList,
    XENMEM_acquire_resource,
    XENMEM_add_to_physmap,
    XENMEM_add_to_physmap_batch,
    XENMEM_claim_pages,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_exchange,
    XENMEM_get_pod_target,
    XENMEM_get_sharing_freed_pages,
    XENMEM_get_sharing_shared_pages,
    XENMEM_get_vnumainfo,
    XENMEM_increase_reservation,
    XENMEM_machine_memory_map,
    XENMEM_machphys_compat_mfn_list,
    XENMEM_machphys_mapping,
    XENMEM_machphys_mfn_list,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_populate_physmap,
    XENMEM_remove_from_physmap,
    XENMEM_reserved_device_memory_map,
    XENMEM_set_memory_map,
    XenMemoryDomain,
    XenMemoryExchange,
    XenMemoryMap,
    XenMemoryReservation,
    XenPodTarget,
    XenRemoveFromPhysmap,
    XenReservedDeviceMemoryMap,
    XenVnumaTopologyInfo,
)
from pyxen.abi.xen import SharedInfo
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.page_audit import audit
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES

OP = "memory_op"
LIST = 90
MFN = XEN_PAGES + 500


def change(
    guest: PvGuest, command: int, *extents: int, count: int | None = None, **how: int
) -> int:
    at = guest.vaddr(LIST)
    guest.write(at, b"".join(extent.to_bytes(8, "little") for extent in extents))
    how.setdefault("domid", SELF)
    how.setdefault("extent_start", at)
    op = XenMemoryReservation(nr_extents=len(extents) if count is None else count, **how)
    return guest.call(OP, command, guest.put(op))


def unmap(guest: PvGuest, *mfns: int) -> None:
    for mfn in mfns:
        guest.unmap(mfn - XEN_PAGES)


def m2p(guest: PvGuest, mfn: int) -> int:
    return guest.memory.read_u64((guest.memory.m2p_mfn << 12) + mfn * 8)


def test_what_the_domain_has(guest: PvGuest) -> None:
    for domid in (SELF, DOMID):
        at = guest.put(XenMemoryDomain(domid=domid))
        assert guest.call(OP, XENMEM_current_reservation, at) == PAGES
        assert guest.call(OP, XENMEM_maximum_reservation, at) == PAGES + SPARE_PAGES
    assert guest.call(OP, XENMEM_maximum_ram_page) == XEN_PAGES + PAGES + SPARE_PAGES - 1
    other = guest.put(XenMemoryDomain(domid=0))
    assert guest.call(OP, XENMEM_current_reservation, other) == -E.PERM
    assert guest.call(OP, XENMEM_maximum_reservation, other) == -E.PERM


def test_the_memory_map(guest: PvGuest) -> None:
    at = guest.vaddr(LIST)
    _, op = guest.op(OP, XENMEM_memory_map, XenMemoryMap(nr_entries=128, buffer=at))
    assert op.nr_entries == 1
    entry = (0).to_bytes(8, "little") + ((PAGES + SPARE_PAGES) << 12).to_bytes(8, "little")
    assert guest.read(at, 20) == entry + (1).to_bytes(4, "little")
    result, op = guest.op(OP, XENMEM_memory_map, XenMemoryMap(buffer=at))
    assert (result, op.nr_entries) == (0, 0)
    bad = XenMemoryMap(nr_entries=1, buffer=NOT_MAPPED)
    assert guest.op(OP, XENMEM_memory_map, bad)[0] == -E.FAULT


def test_where_the_m2p_is(guest: PvGuest) -> None:
    result, op = guest.op(OP, XENMEM_machphys_mapping, XenMachphysMapping())
    assert result == 0
    assert op.v_start == layout.M2P_VADDR
    assert op.max_mfn == XEN_PAGES + PAGES + SPARE_PAGES - 1
    assert op.v_end - op.v_start >= (op.max_mfn + 1) * 8


def test_errors(guest: PvGuest) -> None:
    assert guest.call(OP, 63) == -E.NOSYS
    for command in (
        XENMEM_current_reservation,
        XENMEM_maximum_reservation,
        XENMEM_memory_map,
        XENMEM_machphys_mapping,
    ):
        assert guest.call(OP, command, NOT_MAPPED) == -E.FAULT


def test_down_and_up(guest: PvGuest) -> None:
    mfns = [MFN + n for n in range(5)]
    unmap(guest, *mfns)
    assert change(guest, XENMEM_decrease_reservation, *mfns) == 5
    assert guest.domain.reservation.pages == PAGES - 5
    assert not any(guest.domain.frames.is_domains(mfn) for mfn in mfns)
    assert all(m2p(guest, mfn) == layout.INVALID_M2P_ENTRY for mfn in mfns)
    guest.write(guest.vaddr(500), b"old")
    assert audit(guest.domain) == []
    assert change(guest, XENMEM_populate_physmap, 777, 778, 779) == 3
    new = guest.words(guest.vaddr(LIST), 3)
    assert sorted(new) == sorted({*new}) and set(new) <= set(mfns)
    assert [m2p(guest, mfn) for mfn in new] == [777, 778, 779]
    assert all(guest.memory.read(mfn << 12, 4096) == bytes(4096) for mfn in new)
    assert guest.domain.reservation.pages == PAGES - 2


def test_up_to_the_maximum(guest: PvGuest) -> None:
    pfns = range(PAGES, PAGES + SPARE_PAGES + 4)
    assert change(guest, XENMEM_populate_physmap, *pfns) == SPARE_PAGES
    assert change(guest, XENMEM_populate_physmap, 1) == 0
    assert guest.domain.reservation.pages == PAGES + SPARE_PAGES


def test_increase_reservation(guest: PvGuest) -> None:
    assert change(guest, XENMEM_increase_reservation, 0, 0) == 2
    assert guest.words(guest.vaddr(LIST), 2) == (XEN_PAGES + PAGES, XEN_PAGES + PAGES + 1)
    assert change(guest, XENMEM_increase_reservation, count=3, extent_start=0) == 3
    assert guest.domain.reservation.pages == PAGES + 5


@pytest.mark.parametrize("mfn", [5, layout.SHARED_INFO, XEN_PAGES + PAGES + 3, 1 << 50])
def test_frames_that_cannot_be_given_back(guest: PvGuest, mfn: int) -> None:
    unmap(guest, MFN)
    assert change(guest, XENMEM_decrease_reservation, MFN, mfn, MFN + 1) == 1
    assert guest.domain.reservation.pages == PAGES - 1


def test_twice_the_same_frame(guest: PvGuest) -> None:
    unmap(guest, MFN)
    assert change(guest, XENMEM_decrease_reservation, MFN, MFN) == 1


def test_a_frame_that_is_still_mapped_goes_with_its_last_mapping(guest: PvGuest) -> None:
    assert change(guest, XENMEM_decrease_reservation, MFN) == 1
    assert guest.domain.reservation.pages == PAGES
    assert guest.domain.frames.is_domains(MFN)
    unmap(guest, MFN)
    assert guest.domain.reservation.pages == PAGES - 1
    assert not guest.domain.frames.is_domains(MFN)
    assert audit(guest.domain) == []


def test_a_table_that_is_given_back_stays_a_table(guest: PvGuest) -> None:
    assert change(guest, XENMEM_decrease_reservation, L1) == 1
    assert guest.domain.frames.type(L1) is FrameType.L1
    assert guest.domain.reservation.pages == PAGES


@pytest.mark.parametrize(
    "command",
    [XENMEM_decrease_reservation, XENMEM_increase_reservation, XENMEM_populate_physmap],
)
class TestExtentLists:
    """What the three commands have in common: they say how far they came."""

    def test_other_domains_and_orders(self, guest: PvGuest, command: int) -> None:
        assert change(guest, command, MFN, domid=0) == 0
        assert change(guest, command, MFN, extent_order=10) == 0
        assert change(guest, command, MFN, extent_order=0xFFFF_FFFF) == 0

    def test_no_extents_and_too_many(self, guest: PvGuest, command: int) -> None:
        assert change(guest, command) == 0
        assert change(guest, command, count=1 << 26) == 0
        assert change(guest, command, count=(1 << 64) - 1) == 0

    def test_a_bad_argument(self, guest: PvGuest, command: int) -> None:
        assert guest.call(OP, command, NOT_MAPPED) == 0
        assert guest.call(OP, command | 17 << 6, NOT_MAPPED) == 17

    def test_a_list_that_ends_at_a_hole(self, guest: PvGuest, command: int) -> None:
        at = NOT_MAPPED - 16
        for n in range(2):
            guest.write(at + 8 * n, (MFN + n).to_bytes(8, "little"))
        assert change(guest, command, count=9, extent_start=at) == 2

    def test_a_start_behind_the_end(self, guest: PvGuest, command: int) -> None:
        assert change(guest, command | 5 << 6, MFN, MFN + 1) == 5
        assert guest.domain.reservation.pages == PAGES


def test_a_read_only_list_gets_no_frames(guest: PvGuest) -> None:
    guest.protect(LIST)
    assert change(guest, XENMEM_populate_physmap, 1) == 0
    assert change(guest, XENMEM_increase_reservation, 1) == 0
    assert guest.domain.reservation.pages == PAGES


def test_a_long_list_is_done_in_pieces(guest: PvGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "WORK_PER_HYPERCALL", 10)
    mfns = [MFN + n for n in range(25)]
    at = guest.vaddr(LIST)
    unmap(guest, *mfns)
    guest.write(at, b"".join(mfn.to_bytes(8, "little") for mfn in mfns))
    op = guest.put(XenMemoryReservation(extent_start=at, nr_extents=25, domid=SELF))
    guest.regs.rip = 0x1002
    guest.hypercall(OP, XENMEM_decrease_reservation, op)
    assert guest.regs.rip == 0x1000
    done = guest.regs.rdi >> 6
    assert guest.regs.rdi & 63 == XENMEM_decrease_reservation
    assert 0 < done < 25
    assert guest.domain.reservation.pages == PAGES - done
    assert guest.call(OP, guest.regs.rdi, op) == 25
    assert guest.domain.reservation.pages == PAGES - 25


# --- larger extents ---------------------------------------------------------------------------


def test_a_large_extent_is_aligned_and_in_a_row(guest: PvGuest) -> None:
    assert change(guest, XENMEM_populate_physmap, 5000, extent_order=3) == 1
    (first,) = guest.words(guest.vaddr(LIST), 1)
    assert first % 8 == 0
    assert [m2p(guest, first + n) for n in range(8)] == list(range(5000, 5008))
    assert guest.domain.reservation.pages == PAGES + 8
    assert change(guest, XENMEM_decrease_reservation, first, extent_order=3) == 1
    assert guest.domain.reservation.pages == PAGES
    assert change(guest, XENMEM_populate_physmap, 5000, extent_order=5) == 0, "more than there is"


def test_no_row_that_is_long_enough(guest: PvGuest) -> None:
    taken = XEN_PAGES + PAGES  # every fourth of the spare frames
    assert change(guest, XENMEM_populate_physmap, *range(SPARE_PAGES)) == SPARE_PAGES
    gaps = [taken + n for n in range(SPARE_PAGES) if n % 4]
    assert change(guest, XENMEM_decrease_reservation, *gaps) == len(gaps)
    assert change(guest, XENMEM_populate_physmap, 5000, extent_order=2) == 0
    assert change(guest, XENMEM_populate_physmap, 5000, extent_order=1) == 1


# --- exchange ---------------------------------------------------------------------------------


def exchange(guest: PvGuest, given: list[int], pfns: list[int], **how: int) -> tuple[int, int]:
    """(result, nr_exchanged); in_order, out_order, nr_exchanged, domid, out_at."""
    lists = guest.vaddr(LIST), how.get("out_at", guest.vaddr(LIST + 1))
    guest.write(lists[0], b"".join(mfn.to_bytes(8, "little") for mfn in given))
    if "out_at" not in how:
        guest.write(lists[1], b"".join(pfn.to_bytes(8, "little") for pfn in pfns))
    sides = [
        XenMemoryReservation(
            extent_start=at, nr_extents=len(extents), extent_order=how.get(order, 0), domid=domid
        )
        for at, extents, order, domid in (
            (lists[0], given, "in_order", how.get("domid", SELF)),
            (lists[1], pfns, "out_order", SELF),
        )
    ]
    op = XenMemoryExchange(in_=sides[0], out=sides[1], nr_exchanged=how.get("nr_exchanged", 0))
    result, op = guest.op(OP, XENMEM_exchange, op)
    return result, op.nr_exchanged


def test_small_frames_for_a_large_one(guest: PvGuest) -> None:
    mfns = [MFN + 4 + n for n in (3, 1, 2, 0)]
    unmap(guest, *mfns)
    assert exchange(guest, mfns, [700], out_order=2) == (0, 4)
    (first,) = guest.words(guest.vaddr(LIST + 1), 1)
    assert first % 4 == 0
    assert [m2p(guest, first + n) for n in range(4)] == [700, 701, 702, 703]
    assert guest.domain.reservation.pages == PAGES
    assert audit(guest.domain) == []
    assert exchange(guest, [first], [7, 9, 8, 6], in_order=2) == (0, 1)
    assert sorted(m2p(guest, mfn) for mfn in guest.words(guest.vaddr(LIST + 1), 4)) == [6, 7, 8, 9]
    assert guest.domain.reservation.pages == PAGES


def test_an_exchange_that_fails_half_way_says_how_far_it_came(guest: PvGuest) -> None:
    unmap(guest, MFN, MFN + 1)
    before = guest.read(guest.vaddr(500), 4096)
    assert exchange(guest, [MFN, L4, MFN + 1], [1, 2, 3]) == (-E.INVAL, 1)
    assert guest.domain.frames.is_domains(MFN + 1)
    assert guest.read(guest.vaddr(500), 4096) == before
    assert audit(guest.domain) == []


def test_an_exchange_without_a_row_leaves_everything(guest: PvGuest) -> None:
    """Four frames that are not in a row, and no other free ones in a row of four."""
    assert change(guest, XENMEM_populate_physmap, *range(SPARE_PAGES)) == SPARE_PAGES
    mfns = [MFN + 8 * n for n in range(4)]
    unmap(guest, *mfns)
    guest.write(guest.vaddr(MFN - XEN_PAGES), b"mine")
    assert exchange(guest, mfns, [700], out_order=2) == (-E.NOMEM, 0)
    assert guest.memory.read(MFN << 12, 4) == b"mine"
    assert guest.domain.reservation.pages == PAGES + SPARE_PAGES
    assert audit(guest.domain) == []


@pytest.mark.parametrize(
    ("how", "errno"),
    [
        ({"in_order": 10}, E.PERM),
        ({"out_order": 10}, E.PERM),
        ({"out_order": 1}, E.INVAL),
        ({"nr_exchanged": 2}, E.INVAL),
        ({"domid": 0}, E.INVAL),
        ({"out_at": layout.M2P_VADDR}, E.FAULT),
        ({"out_at": layout.DESCRIPTOR_VADDR}, E.FAULT),
        ({"out_at": NOT_MAPPED}, E.FAULT),
    ],
)
def test_bad_exchanges(guest: PvGuest, how: dict[str, int], errno: E) -> None:
    """The last three are XSA-212: the output list is in the hypervisor's range, or nowhere."""
    unmap(guest, MFN)
    assert exchange(guest, [MFN], [1], **how)[0] == -errno
    assert guest.domain.reservation.pages == PAGES
    assert guest.domain.frames.is_domains(MFN)


def test_frames_that_are_mapped_or_given_twice_are_not_exchanged(guest: PvGuest) -> None:
    assert exchange(guest, [MFN], [1]) == (-E.INVAL, 0)
    unmap(guest, MFN)
    assert exchange(guest, [MFN, MFN], [1], out_order=1) == (-E.INVAL, 0)
    assert exchange(guest, [layout.SHARED_INFO], [1]) == (-E.INVAL, 0)
    assert exchange(guest, [MFN], [1], nr_exchanged=1) == (0, 1), "it is done already"


# --- the rest ---------------------------------------------------------------------------------


def test_a_memory_map_of_the_guests_own(guest: PvGuest) -> None:
    entries = b"".join(E820Entry(addr=n << 20, size=1 << 20, type=2).pack() for n in range(3))
    at, out = guest.put(entries), guest.vaddr(LIST)
    own = XenForeignMemoryMap(domid=SELF, map=XenMemoryMap(nr_entries=3, buffer=at))
    assert guest.call(OP, XENMEM_set_memory_map, guest.put(own)) == 0
    _, op = guest.op(OP, XENMEM_memory_map, XenMemoryMap(nr_entries=128, buffer=out))
    assert op.nr_entries == 3
    assert guest.read(out, len(entries)) == entries
    own.map.nr_entries = 129
    assert guest.call(OP, XENMEM_set_memory_map, guest.put(own)) == -E.INVAL


def test_the_frames_of_the_m2p(guest: PvGuest) -> None:
    at = guest.vaddr(LIST)
    _, op = guest.op(
        OP, XENMEM_machphys_mfn_list, XenMachphysMfnList(max_extents=9, extent_start=at)
    )
    assert op.nr_extents == 1
    assert guest.words(at, 1) == (guest.memory.m2p_mfn,)
    _, op = guest.op(OP, XENMEM_machphys_mfn_list, XenMachphysMfnList(extent_start=at))
    assert op.nr_extents == 0


def test_the_maximum_gpfn_is_what_the_guest_says(guest: PvGuest) -> None:
    at = guest.put(XenMemoryDomain(domid=SELF))
    guest.memory.write_u64(guest.domain.shared_info + SharedInfo.OFFSET["arch"], 1000)
    assert guest.call(OP, XENMEM_maximum_gpfn, at) == 999


@pytest.mark.parametrize(
    ("command", "argument", "errno"),
    [
        (XENMEM_add_to_physmap, XenAddToPhysmap(domid=SELF, space=0), E.ACCES),
        (XENMEM_add_to_physmap, XenAddToPhysmap(domid=99), E.SRCH),
        (XENMEM_add_to_physmap, XenAddToPhysmap(domid=SELF, space=4), E.NOSYS),
        (XENMEM_add_to_physmap | 1 << 22, XenAddToPhysmap(domid=SELF), E.DOM),
        (XENMEM_add_to_physmap_batch, XenAddToPhysmapBatch(domid=SELF), E.ACCES),
        (XENMEM_add_to_physmap_batch, XenAddToPhysmapBatch(domid=SELF, space=3), E.OPNOTSUPP),
        (XENMEM_remove_from_physmap, XenRemoveFromPhysmap(domid=SELF), E.ACCES),
        (XENMEM_get_pod_target, XenPodTarget(domid=SELF), E.INVAL),
        (XENMEM_get_vnumainfo, XenVnumaTopologyInfo(domid=SELF), E.OPNOTSUPP),
        (XENMEM_get_vnumainfo, XenVnumaTopologyInfo(domid=SELF, pad=1), E.INVAL),
        (XENMEM_machine_memory_map, XenMemoryMap(), E.PERM),
        (XENMEM_claim_pages, XenMemoryReservation(), E.PERM),
        (XENMEM_acquire_resource, XenMemoryReservation(), E.PERM),
        (XENMEM_machphys_compat_mfn_list, XenMachphysMfnList(), E.OPNOTSUPP),
        (XENMEM_maximum_ram_page | 1 << 6, XenMachphysMfnList(), E.INVAL),
    ],
)
def test_what_is_refused(guest: PvGuest, command: int, argument: XenStruct, errno: E) -> None:
    assert guest.call(OP, command, guest.put(argument)) == -errno


def test_nothing_is_shared_or_reserved(guest: PvGuest) -> None:
    assert guest.call(OP, XENMEM_get_sharing_freed_pages) == 0
    assert guest.call(OP, XENMEM_get_sharing_shared_pages) == 0
    op = XenReservedDeviceMemoryMap(nr_entries=4)
    result, op = guest.op(OP, XENMEM_reserved_device_memory_map, op)
    assert (result, op.nr_entries) == (0, 0)
