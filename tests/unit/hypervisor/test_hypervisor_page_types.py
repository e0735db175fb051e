"""Page types: what is in use as what, validation and its undoing, also in pieces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pv_guest import GDT, L1, L2, L3, L4, PvGuest

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.page_audit import audit
from pyxen.hypervisor.page_types import MAX_REFERENCES, WORK_PER_TABLE, PageTypes, Restart
from pyxen.memory import layout
from pyxen.memory.frames import DYING, PARTIAL, FrameType
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_GLOBAL,
    PTE_NX,
    PTE_PCD,
    PTE_PRESENT,
    PTE_PSE,
    PTE_PWT,
    PTE_RW,
    PTE_USER,
)

PFN = 100
TABLE = PTE_PRESENT | PTE_RW | PTE_USER
ROOT, MIDDLE, LOWER, LEAF, DATA = (XEN_PAGES + PFN + n for n in range(5))


@pytest.fixture
def types(guest: PvGuest) -> PageTypes:
    """Pages PFN .. PFN + 9 are read-only, so they can become tables."""
    for n in range(10):
        guest.protect(PFN + n)
    continuation.begin(guest.domain)
    return guest.domain.types


def tree(guest: PvGuest) -> None:
    """ROOT (L4) -> MIDDLE (L3) -> LOWER (L2) -> LEAF (L1) -> DATA, each by entry 3."""
    for table, child in ((ROOT, MIDDLE), (MIDDLE, LOWER), (LOWER, LEAF), (LEAF, DATA)):
        guest.memory.write_u64((table << 12) + 24, child << 12 | TABLE)


def errno(act: Callable[..., object], *arguments: object) -> E:
    with pytest.raises(XenError) as refused:
        act(*arguments)
    return refused.value.errno


def kinds(guest: PvGuest, *mfns: int) -> list[str]:
    return [guest.domain.frames.type(mfn).name for mfn in mfns]


def in_pieces(guest: PvGuest, act: Callable[[], object], work: int = 1) -> int:
    """Do it with so little work allowed at once that each table is a piece; how many pieces."""
    for pieces in range(1, 100):
        guest.domain.work_left = work
        try:
            act()
        except Restart:
            assert audit(guest.domain) == [], f"after piece {pieces}"
        else:
            return pieces
    raise AssertionError("it does not end")


# --- validation -------------------------------------------------------------------------------


def test_a_pin_takes_the_whole_tree(guest: PvGuest, types: PageTypes) -> None:
    tree(guest)
    types.pin(ROOT, FrameType.L4)
    assert kinds(guest, ROOT, MIDDLE, LOWER, LEAF, DATA) == ["L4", "L3", "L2", "L1", "WRITABLE"]
    assert audit(guest.domain) == []
    types.unpin(ROOT)
    assert kinds(guest, ROOT, MIDDLE, LOWER, LEAF, DATA) == ["NONE"] * 5
    assert audit(guest.domain) == []


def test_a_tree_twice_in_use_is_validated_once(guest: PvGuest, types: PageTypes) -> None:
    tree(guest)
    types.pin(ROOT, FrameType.L4)
    types.pin(MIDDLE, FrameType.L3)
    assert guest.domain.frames.uses(MIDDLE) == 2
    assert guest.domain.frames.uses(LOWER) == 1
    types.unpin(ROOT)
    assert kinds(guest, ROOT, MIDDLE, DATA) == ["NONE", "L3", "WRITABLE"]
    types.unpin(MIDDLE)
    assert audit(guest.domain) == []


def test_a_use_excludes_others(guest: PvGuest, types: PageTypes) -> None:
    types.pin(LEAF, FrameType.L1)
    for wanted in (FrameType.L2, FrameType.L4, FrameType.WRITABLE, FrameType.SEGDESC):
        assert errno(types.get_page_and_type, LEAF, wanted) is E.INVAL
    types.get_page_and_type(DATA, FrameType.WRITABLE)
    for wanted in (FrameType.L1, FrameType.L3, FrameType.SEGDESC):
        assert errno(types.get_page_and_type, DATA, wanted) is E.INVAL
    types.put_page_and_type(DATA)
    types.pin(DATA, FrameType.L3)


@pytest.mark.parametrize(
    ("table", "entry", "error"),
    [
        (LEAF, layout.GDT_L1 << 12 | TABLE, E.BUSY),
        (LEAF, LEAF << 12 | TABLE, E.BUSY),
        (LEAF, L1 << 12 | TABLE, E.BUSY),
        (LEAF, 1 << 50 | TABLE, E.PERM),
        (LEAF, 0x000F_FFFF_FFFF_F000 | TABLE, E.INVAL),
        (LEAF, DATA << 12 | TABLE | PTE_PSE, E.INVAL),
        (LEAF, DATA << 12 | TABLE | PTE_PCD, E.INVAL),
        (LOWER, DATA << 12 | TABLE | PTE_PSE, E.INVAL),
        (LOWER, L2 << 12 | TABLE, E.INVAL),
        (LOWER, L3 << 12 | TABLE, E.INVAL),
        (LOWER, layout.SHARED_INFO << 12 | TABLE, E.INVAL),
        (MIDDLE, layout.GDT_L2 << 12 | TABLE, E.INVAL),
        (ROOT, ROOT << 12 | TABLE, E.INVAL),
        (ROOT, L4 << 12 | TABLE, E.INVAL),
        (ROOT, MIDDLE << 12 | TABLE | PTE_GLOBAL, E.INVAL),
    ],
)
def test_a_bad_entry_gives_everything_back(
    guest: PvGuest, types: PageTypes, table: int, entry: int, error: E
) -> None:
    """Wherever it is in the tree: the pin fails, and nothing has changed."""
    tree(guest)
    guest.memory.write_u64((table << 12) + 8 * 511, entry)
    assert errno(types.pin, ROOT, FrameType.L4) is error
    assert kinds(guest, ROOT, MIDDLE, LOWER, LEAF, DATA) == ["NONE"] * 5
    assert audit(guest.domain) == []


def test_absent_entries_and_xens_slots_may_say_anything(guest: PvGuest, types: PageTypes) -> None:
    tree(guest)
    guest.memory.write_u64((LEAF << 12) + 80, layout.GDT_L1 << 12 | TABLE & ~PTE_PRESENT)
    for slot in range(256, 272):
        guest.memory.write_u64((ROOT << 12) + 8 * slot, layout.GDT_L3 << 12 | TABLE)
    types.pin(ROOT, FrameType.L4)
    slots = [guest.memory.read_u64((ROOT << 12) + 8 * slot) for slot in range(256, 272)]
    assert slots[0] == layout.M2P_SLOT_ENTRY
    assert slots[4] == layout.DESCRIPTOR_SLOT_ENTRY
    assert not any(slots[n] for n in range(16) if n not in (0, 4))


# --- in pieces --------------------------------------------------------------------------------


def test_a_validation_in_pieces(guest: PvGuest, types: PageTypes) -> None:
    tree(guest)
    assert in_pieces(guest, lambda: types.pin(ROOT, FrameType.L4)) >= 4
    assert kinds(guest, ROOT, MIDDLE, LOWER, LEAF, DATA) == ["L4", "L3", "L2", "L1", "WRITABLE"]
    assert audit(guest.domain) == []


def test_a_validation_that_nobody_ends(guest: PvGuest, types: PageTypes) -> None:
    """What it took is given back when somebody wants the frame as something else."""
    tree(guest)
    guest.domain.work_left = WORK_PER_TABLE + 1
    with pytest.raises(Restart):
        types.pin(ROOT, FrameType.L4)
    assert guest.domain.frames.flags(ROOT) & PARTIAL
    continuation.begin(guest.domain)
    types.check_writable(ROOT)
    types.check_writable(MIDDLE)
    assert kinds(guest, ROOT, MIDDLE) == ["NONE", "NONE"]
    assert audit(guest.domain) == []


def test_a_bad_entry_found_in_a_later_piece(guest: PvGuest, types: PageTypes) -> None:
    tree(guest)
    guest.memory.write_u64((ROOT << 12) + 8 * 300, layout.GDT_L3 << 12 | TABLE)

    def act() -> None:
        assert errno(types.pin, ROOT, FrameType.L4) is E.INVAL

    in_pieces(guest, act)
    in_pieces(guest, types.finish_dying)
    assert kinds(guest, ROOT, MIDDLE, LOWER, LEAF, DATA) == ["NONE"] * 5
    assert audit(guest.domain) == []


def test_a_tree_that_dies_in_pieces(guest: PvGuest, types: PageTypes) -> None:
    tree(guest)
    types.pin(ROOT, FrameType.L4)
    guest.domain.work_left = 1
    types.unpin(ROOT)
    assert guest.domain.pv.dying == 1
    assert guest.domain.frames.flags(MIDDLE) & DYING
    assert audit(guest.domain) == []
    with pytest.raises(Restart):
        guest.domain.work_left = 0
        types.get_page_and_type(DATA, FrameType.WRITABLE)
    assert in_pieces(guest, types.finish_dying) >= 2
    assert kinds(guest, ROOT, MIDDLE, LOWER, LEAF, DATA) == ["NONE"] * 5
    assert audit(guest.domain) == []


def test_a_hypercall_in_pieces(guest: PvGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest sees nothing of it: the same hypercall goes on."""
    from pyxen.abi.xen import MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE, MmuextOp

    for n in range(10):
        guest.protect(PFN + n)
    tree(guest)
    monkeypatch.setattr(continuation, "WORK_PER_HYPERCALL", 10)
    ops = [
        MmuextOp(cmd=command, arg1=ROOT) for command in (MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE)
    ]
    for op in ops * 2:
        done = guest.put(0)
        assert guest.call("mmuext_op", guest.put(op), 1, done, 0x7FF0) == 0
        assert guest.words(done, 1) == (1,)


# --- entries ----------------------------------------------------------------------------------


def test_changes_that_need_no_new_references(guest: PvGuest, types: PageTypes) -> None:
    at = guest.pte_maddr(PFN + 20)
    before = guest.pte(PFN + 20)
    refs = guest.domain.frames.refs(XEN_PAGES + PFN + 20)
    for bits in (PTE_NX, PTE_ACCESSED | PTE_DIRTY, PTE_USER, PTE_GLOBAL, 0x7FF0_0000_0000_0E00):
        types.update(at, before | bits)
        assert guest.memory.read_u64(at) == before | bits
    assert guest.domain.frames.refs(XEN_PAGES + PFN + 20) == refs
    for bits in (PTE_PWT, PTE_PCD, PTE_PSE):
        assert errno(types.update, at, before | bits) is E.INVAL
    assert audit(guest.domain) == []


def test_a_frame_that_becomes_read_only_can_become_a_table(
    guest: PvGuest, types: PageTypes
) -> None:
    mfn = XEN_PAGES + PFN + 20
    assert errno(types.pin, mfn, FrameType.L2) is E.INVAL
    types.update(guest.pte_maddr(PFN + 20), mfn << 12 | PTE_PRESENT)
    types.pin(mfn, FrameType.L2)
    assert errno(types.update, guest.pte_maddr(PFN + 20), mfn << 12 | TABLE) is E.BUSY
    types.unpin(mfn)
    types.update(guest.pte_maddr(PFN + 20), mfn << 12 | TABLE)
    assert audit(guest.domain) == []


def test_translations_through_which_a_new_table_could_be_written_are_forgotten(
    guest: PvGuest, types: PageTypes
) -> None:
    types.pin(ROOT, FrameType.L1)
    guest.domain.flush_tlb()
    flushes = guest.engine.flushes
    flushes.clear()
    types.pin(MIDDLE, FrameType.L1)
    assert flushes == [], "it was protected before the last flush"
    guest.protect(PFN + 20)
    types.pin(XEN_PAGES + PFN + 20, FrameType.L1)
    assert flushes == [None]
    guest.protect(PFN + 21)
    types.get_page_and_type(XEN_PAGES + PFN + 21, FrameType.SEGDESC)
    assert flushes == [None, None]


def test_a_table_entry_validates_what_it_adds(guest: PvGuest, types: PageTypes) -> None:
    at = (L2 << 12) + 8 * 100
    guest.memory.write_u64((LEAF << 12) + 8, DATA << 12 | TABLE)
    types.update(at, LEAF << 12 | TABLE)
    assert kinds(guest, LEAF, DATA) == ["L1", "WRITABLE"]
    assert errno(types.update, at + 8, DATA << 12 | TABLE) is E.INVAL
    assert errno(types.update, at + 8, LEAF << 12 | TABLE | PTE_PSE) is E.INVAL
    types.update(at, 0)
    assert kinds(guest, LEAF, DATA) == ["NONE", "NONE"]
    assert audit(guest.domain) == []


def test_ordinary_pages_are_written_and_descriptor_tables_are_not(
    guest: PvGuest, types: PageTypes
) -> None:
    types.update((DATA << 12) + 16, 0x1234)
    assert guest.memory.read_u64((DATA << 12) + 16) == 0x1234
    assert (DATA << 12) + 16 in [maddr for maddr, _ in guest.engine.code_changes]
    types.get_page_and_type(GDT, FrameType.SEGDESC)
    assert errno(types.update, GDT << 12, 1) is E.INVAL


def test_a_count_that_would_overflow(guest: PvGuest, types: PageTypes) -> None:
    records = guest.domain.frames.dwords
    before = records[DATA * 4 + 2]
    records[DATA * 4 + 2] = MAX_REFERENCES
    assert errno(types.get_page, DATA) is E.INVAL
    assert errno(types.get_page_and_type, DATA, FrameType.WRITABLE) is E.INVAL
    assert errno(types.update, guest.pte_maddr(200), DATA << 12 | PTE_PRESENT) is E.BUSY
    records[DATA * 4 + 2] = before


# --- linear page tables -----------------------------------------------------------------------


@pytest.mark.parametrize(("table", "level"), [(ROOT, 4), (MIDDLE, 3), (LOWER, 2)])
def test_a_table_that_shows_itself(
    guest: PvGuest, types: PageTypes, table: int, level: int
) -> None:
    """Read-only is allowed; writable is XSA-182."""
    tree(guest)
    guest.memory.write_u64((table << 12) + 80, table << 12 | PTE_PRESENT | PTE_USER)
    types.pin(table, FrameType(level))
    at = (table << 12) + 80
    assert errno(types.update, at, table << 12 | TABLE) is E.INVAL
    types.update(at, table << 12 | PTE_PRESENT | PTE_USER | PTE_ACCESSED)
    assert audit(guest.domain) == []
    types.unpin(table)
    assert kinds(guest, ROOT, MIDDLE, LOWER, LEAF, DATA) == ["NONE"] * 5
    assert audit(guest.domain) == []


def test_tables_that_show_others_of_their_level(guest: PvGuest, types: PageTypes) -> None:
    """One step only: a table is shown, or shows others (XSA-240)."""
    read_only = PTE_PRESENT | PTE_USER
    for table in (ROOT, MIDDLE, LOWER):
        types.pin(table, FrameType.L4)
    types.update((ROOT << 12) + 80, MIDDLE << 12 | read_only)
    assert errno(types.update, (ROOT << 12) + 88, MIDDLE << 12 | TABLE) is E.INVAL
    assert errno(types.update, (MIDDLE << 12) + 80, LOWER << 12 | read_only) is E.INVAL
    assert errno(types.update, (LOWER << 12) + 80, ROOT << 12 | read_only) is E.INVAL
    assert errno(types.update, (ROOT << 12) + 96, LEAF << 12 | TABLE | PTE_GLOBAL) is E.INVAL
    assert audit(guest.domain) == []
    types.unpin(MIDDLE)
    assert kinds(guest, MIDDLE) == ["L4"], "it is still shown"
    types.update((ROOT << 12) + 80, 0)
    assert kinds(guest, MIDDLE) == ["NONE"]
    types.update((LOWER << 12) + 80, ROOT << 12 | read_only)
    assert audit(guest.domain) == []
