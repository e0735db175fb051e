"""memory_op: the memory map, the reservation and its balloon."""

from __future__ import annotations

import pytest
from pv_guest import DOMID, L1, NOT_MAPPED, PAGES, SELF, SPARE_PAGES, PvGuest

from pyxen.abi.errno import E
from pyxen.abi.memory import (
    XenMachphysMapping,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_increase_reservation,
    XENMEM_machphys_mapping,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_populate_physmap,
    XenMemoryDomain,
    XenMemoryMap,
    XenMemoryReservation,
)
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
    assert guest.op(OP, XENMEM_memory_map, XenMemoryMap(buffer=at))[0] == -E.INVAL
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
        assert change(guest, command, MFN, extent_order=1) == 0
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
