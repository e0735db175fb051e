"""mmu_update, update_va_mapping, mmuext_op: only the guest's own frames, and how far it came."""

from __future__ import annotations

import pytest
from pv_guest import ARGUMENTS, DOMID, GDT, L1, L2, L3, L4, NOT_MAPPED, SELF, PvGuest

from pyxen.abi.errno import E
from pyxen.abi.xen import (
    DOMID_IO,
    MMU_MACHPHYS_UPDATE,
    MMU_NORMAL_PT_UPDATE,
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_FLUSH_CACHE,
    MMUEXT_INVLPG_ALL,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_UNPIN_TABLE,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    MmuextOp,
    MmuUpdate,
)
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.page_audit import audit
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, PTE_RW, PTE_USER

PFN = 100
MFN = XEN_PAGES + PFN
ENTRY = MFN << 12 | PTE_PRESENT | PTE_RW
TABLE = PTE_PRESENT | PTE_RW | PTE_USER
NOBODY = [0, 1, layout.GDT_L1, layout.M2P_L1, XEN_PAGES - 1, XEN_PAGES + 1030, 1 << 30]


def update(guest: PvGuest, *requests: tuple[int, int], domid: int = SELF) -> tuple[int, int]:
    """mmu_update of (ptr, val); the result, and what it says was done."""
    batch = b"".join(MmuUpdate(ptr=ptr, val=val).pack() for ptr, val in requests)
    done = guest.put(99)
    result = guest.call("mmu_update", guest.put(batch), len(requests), done, domid)
    return result, int.from_bytes(guest.read(done, 4), "little")


def extended(guest: PvGuest, *ops: MmuextOp, domid: int = SELF) -> tuple[int, int]:
    done = guest.put(99)
    at = guest.put(b"".join(op.pack() for op in ops))
    result = guest.call("mmuext_op", at, len(ops), done, domid)
    return result, int.from_bytes(guest.read(done, 4), "little")


def ext(guest: PvGuest, command: int, arg1: int = 0, arg2: int = 0) -> int:
    return extended(guest, MmuextOp(cmd=command, arg1=arg1, arg2=arg2))[0]


# --- mmu_update -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE])
def test_an_update_writes_the_entry(guest: PvGuest, command: int) -> None:
    entry = ENTRY | PTE_ACCESSED | PTE_DIRTY
    guest.store_pte(200, entry)
    assert update(guest, (guest.pte_maddr(200) | command, ENTRY)) == (0, 1)
    assert guest.pte(200) == ENTRY


def test_accessed_and_dirty_can_be_kept(guest: PvGuest) -> None:
    for had in (0, PTE_ACCESSED, PTE_ACCESSED | PTE_DIRTY):
        guest.store_pte(200, ENTRY | had)
        request = (guest.pte_maddr(200) | MMU_PT_UPDATE_PRESERVE_AD, ENTRY & ~PTE_RW)
        assert update(guest, request) == (0, 1)
        assert guest.pte(200) == ENTRY & ~PTE_RW | had


def test_the_m2p(guest: PvGuest) -> None:
    assert update(guest, (MFN << 12 | MMU_MACHPHYS_UPDATE, 0x1234)) == (0, 1)
    m2p = guest.memory.m2p_mfn << 12
    assert guest.memory.read_u64(m2p + MFN * 8) == 0x1234
    for frame in NOBODY:
        assert update(guest, (frame << 12 | MMU_MACHPHYS_UPDATE, 1)) == (-E.INVAL, 0)
    assert guest.memory.read_u64(m2p + 8) == layout.INVALID_M2P_ENTRY


@pytest.mark.parametrize("frame", NOBODY)
def test_frames_that_are_not_the_guests(guest: PvGuest, frame: int) -> None:
    before = guest.pte(200)
    at = guest.pte_maddr(200)
    refusal = E.BUSY if frame < guest.memory.total_pages else E.PERM
    assert update(guest, (at, frame << 12 | PTE_PRESENT)) == (-refusal, 0), "as a target"
    assert guest.pte(200) == before
    assert update(guest, (frame << 12, ENTRY)) == (-E.INVAL, 0), "as a table"
    assert update(guest, (at, frame << 12)) == (0, 1), "an absent entry says nothing"


def test_shared_info_may_be_mapped_but_is_no_table(guest: PvGuest) -> None:
    entry = layout.SHARED_INFO << 12 | PTE_PRESENT | PTE_RW
    assert update(guest, (guest.pte_maddr(200), entry)) == (0, 1)
    assert ext(guest, MMUEXT_PIN_L1_TABLE, layout.SHARED_INFO) == -E.INVAL
    assert update(guest, (layout.SHARED_INFO << 12, ENTRY)) == (0, 1), "the guest may write there"


@pytest.mark.parametrize("slot", [256, 260, 271])
def test_the_hypervisors_slots_of_an_l4(guest: PvGuest, slot: int) -> None:
    before = guest.memory.read_u64((L4 << 12) + 8 * slot)
    assert update(guest, ((L4 << 12) + 8 * slot, L3 << 12 | TABLE)) == (-E.INVAL, 0)
    assert update(guest, ((L4 << 12) + 8 * slot, 0)) == (-E.INVAL, 0)
    assert guest.memory.read_u64((L4 << 12) + 8 * slot) == before
    assert update(guest, ((L2 << 12) + 8 * slot, L1 << 12 | TABLE)) == (0, 1), "of an L4 only"


@pytest.mark.parametrize("slot", [0, 255, 272, 511])
def test_the_guests_slots_of_an_l4(guest: PvGuest, slot: int) -> None:
    assert update(guest, ((L4 << 12) + 8 * slot, L3 << 12 | TABLE)) == (0, 1)
    assert guest.domain.frames.uses(L3) == (2 if slot != (0xFFFF_8880 >> 7 & 511) else 1)


def test_done_counts_up_to_the_error(guest: PvGuest) -> None:
    good = (guest.pte_maddr(200), ENTRY)
    assert update(guest, good, good, (5 << 12, ENTRY), good) == (-E.INVAL, 2)
    assert update(guest, good, (guest.pte_maddr(201), L1 << 12 | 3), good) == (-E.BUSY, 1)
    assert update(guest, good, (guest.pte_maddr(200) | 4, 0)) == (-E.NOSYS, 1)


def test_nothing_to_do(guest: PvGuest) -> None:
    assert update(guest) == (0, 0)


def test_without_a_place_for_done(guest: PvGuest) -> None:
    at = guest.put(MmuUpdate(ptr=guest.pte_maddr(200), val=ENTRY))
    assert guest.call("mmu_update", at, 1, 0, SELF) == 0
    assert guest.pte(200) == ENTRY
    assert guest.call("mmu_update", at, 1, NOT_MAPPED, SELF) == 0, "as in Xen"


def test_requests_that_cannot_be_read(guest: PvGuest) -> None:
    done = guest.put(99)
    assert guest.call("mmu_update", NOT_MAPPED - 16, 3, done, SELF) == -E.INVAL
    guest.write(NOT_MAPPED - 16, MmuUpdate(ptr=guest.pte_maddr(200), val=ENTRY).pack())
    assert guest.call("mmu_update", NOT_MAPPED - 16, 3, done, SELF) == -E.FAULT
    assert guest.words(done, 1) == (1,)
    assert guest.call("mmu_update", (1 << 64) - 8, 1, 0, SELF) == -E.FAULT


@pytest.mark.parametrize(
    ("domid", "result"),
    [
        (SELF, 0),
        (DOMID_IO, 0),
        (SELF | (DOMID + 1) << 16, 0),
        (DOMID, -E.SRCH),
        (0, -E.PERM),
        (DOMID + 1, -E.SRCH),
        (SELF | 1 << 16, -E.PERM),
    ],
)
def test_page_tables_of_other_domains(guest: PvGuest, domid: int, result: int) -> None:
    assert update(guest, (guest.pte_maddr(200), ENTRY), domid=domid)[0] == result


# --- long batches -----------------------------------------------------------------------------


def test_a_long_batch_is_done_in_pieces(guest: PvGuest) -> None:
    """1.5 pieces' worth of requests over the argument pages; all of them are carried out."""
    count = continuation.WORK_PER_HYPERCALL + 500
    ports = [(guest.pte_maddr(200 + n % 500), (MFN + n % 7) << 12 | 1) for n in range(count)]
    batch = b"".join(MmuUpdate(ptr=ptr, val=val).pack() for ptr, val in ports)
    guest.write(ARGUMENTS, batch)
    done = guest.vaddr(90)
    guest.regs.rip = 0x1002
    guest.hypercall("mmu_update", ARGUMENTS, count, done, SELF)
    regs = guest.regs
    assert regs.rip == 0x1000, "at the SYSCALL again"
    first = int.from_bytes(guest.read(done, 4), "little")
    assert 0 < first < count
    assert (regs.rdi, regs.rsi) == (ARGUMENTS + 16 * first, count - first | 1 << 31)
    assert (regs.rdx, regs.r10, regs.rax) == (done, SELF, 1)
    guest.regs.rip = 0x1002
    guest.hypercall("mmu_update", regs.rdi, regs.rsi, regs.rdx, regs.r10)
    assert (regs.rip, regs.rax) == (0x1002, 0)
    assert int.from_bytes(guest.read(done, 4), "little") == count
    last = dict(ports)
    assert all(guest.memory.read_u64(ptr) == val for ptr, val in last.items())


def test_a_long_batch_of_mmuext_ops(guest: PvGuest) -> None:
    count = continuation.WORK_PER_HYPERCALL + 100
    op = MmuextOp(cmd=MMUEXT_TLB_FLUSH_LOCAL)
    guest.write(guest.vaddr(500), op.pack() * count)
    done = guest.vaddr(90)
    assert guest.call("mmuext_op", guest.vaddr(500), count, done, SELF) == 0
    assert guest.words(done, 1) == (count,)
    assert len(guest.engine.flushes) == count


# --- update_va_mapping ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "flushes"),
    [(0, []), (UVMF_TLB_FLUSH, [None]), (UVMF_INVLPG, ["page"]), (UVMF_INVLPG | 4, ["page"])],
)
def test_update_va_mapping(guest: PvGuest, flags: int, flushes: list[str | None]) -> None:
    vaddr = guest.vaddr(PFN) + 0x123
    entry = (MFN + 1) << 12 | PTE_PRESENT
    assert guest.call("update_va_mapping", vaddr, entry, flags) == 0
    assert guest.pte(PFN) == entry
    assert guest.engine.flushes == [vaddr if item == "page" else item for item in flushes]


@pytest.mark.parametrize("frame", NOBODY)
def test_update_va_mapping_of_a_foreign_frame(guest: PvGuest, frame: int) -> None:
    before = guest.pte(PFN)
    vaddr = guest.vaddr(PFN)
    refusal = E.BUSY if frame < guest.memory.total_pages else E.PERM
    assert guest.call("update_va_mapping", vaddr, frame << 12 | PTE_PRESENT, 0) == -refusal
    assert guest.pte(PFN) == before


@pytest.mark.parametrize(
    "vaddr", [0, 1 << 47, layout.M2P_VADDR, layout.DESCRIPTOR_VADDR, 0xFFFF_FFFF_FFFF_F000]
)
def test_update_va_mapping_without_a_table(guest: PvGuest, vaddr: int) -> None:
    assert guest.call("update_va_mapping", vaddr, ENTRY, 0) == -E.INVAL


def test_a_table_that_is_not_the_guests_is_not_written(guest: PvGuest) -> None:
    """However it got there: this L2 entry points at the hypervisor's descriptor window."""
    guest.memory.write_u64(L2 << 12, layout.GDT_L1 << 12 | 7)
    before = guest.memory.read(layout.GDT_L1 << 12, 4096)
    assert guest.call("update_va_mapping", guest.vaddr(PFN), ENTRY, 0) == -E.INVAL
    assert guest.memory.read(layout.GDT_L1 << 12, 4096) == before


def test_update_va_mapping_otherdomain(guest: PvGuest) -> None:
    name = "update_va_mapping_otherdomain"
    assert guest.call(name, guest.vaddr(PFN), ENTRY, 0, SELF) == 0
    assert guest.call(name, guest.vaddr(PFN), ENTRY, 0, 0) == -E.PERM


# --- mmuext_op --------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_pin_and_unpin(guest: PvGuest, level: int) -> None:
    frames = guest.domain.frames
    pin = MMUEXT_PIN_L1_TABLE + level - 1
    assert ext(guest, pin, MFN) == -E.INVAL, "it is mapped writable"
    guest.protect(PFN)
    assert ext(guest, pin, MFN) == 0
    assert (frames.type(MFN), frames.is_pinned(MFN)) == (FrameType(level), True)
    assert ext(guest, pin, MFN) == -E.INVAL
    if level == 4:
        assert guest.memory.read_u64((MFN << 12) + 8 * 256) == layout.M2P_SLOT_ENTRY
        assert guest.memory.read_u64((MFN << 12) + 8 * 260) == layout.DESCRIPTOR_SLOT_ENTRY
    assert ext(guest, MMUEXT_UNPIN_TABLE, MFN) == 0
    assert frames.type(MFN) is FrameType.NONE
    assert ext(guest, MMUEXT_UNPIN_TABLE, MFN) == -E.INVAL


@pytest.mark.parametrize("frame", [*NOBODY, layout.SHARED_INFO, layout.GRANT_FRAMES])
@pytest.mark.parametrize(
    "command",
    [
        MMUEXT_PIN_L1_TABLE,
        MMUEXT_PIN_L4_TABLE,
        MMUEXT_UNPIN_TABLE,
        MMUEXT_NEW_BASEPTR,
        MMUEXT_CLEAR_PAGE,
        MMUEXT_COPY_PAGE,
    ],
)
def test_commands_on_frames_that_are_not_the_guests(
    guest: PvGuest, command: int, frame: int
) -> None:
    shared = frame in (layout.SHARED_INFO, layout.GRANT_FRAMES)
    if shared and command in (MMUEXT_CLEAR_PAGE, MMUEXT_COPY_PAGE):
        assert ext(guest, command, frame, MFN) == 0, "the guest may write there"
        return
    before = guest.memory.read(frame << 12, 4096)
    assert ext(guest, command, frame, MFN) == -E.INVAL
    assert guest.memory.read(frame << 12, 4096) == before
    assert guest.vcpu.pv.cr3 == L4 << 12


def test_new_base_pointer(guest: PvGuest) -> None:
    guest.memory.copy_page(MFN, L4)
    guest.memory.write_u64((MFN << 12) + 8 * 256, 0)
    assert ext(guest, MMUEXT_NEW_BASEPTR, MFN) == -E.INVAL, "it is mapped writable"
    guest.protect(PFN)
    assert ext(guest, MMUEXT_NEW_BASEPTR, MFN) == 0
    assert guest.vcpu.pv.cr3 == guest.engine.vcpu.cr3 == guest.domain.space.cr3 == MFN << 12
    assert guest.memory.read_u64((MFN << 12) + 8 * 256) == layout.M2P_SLOT_ENTRY
    assert guest.domain.frames.uses(L4) == 1, "the pin"
    assert ext(guest, MMUEXT_NEW_BASEPTR, 0) == -E.INVAL
    assert audit(guest.domain) == []


def test_new_user_base_pointer(guest: PvGuest) -> None:
    guest.protect(PFN)
    assert ext(guest, MMUEXT_NEW_USER_BASEPTR, MFN) == 0
    assert guest.vcpu.pv.user_cr3 == MFN << 12
    assert ext(guest, MMUEXT_NEW_USER_BASEPTR, 5) == -E.INVAL
    assert guest.vcpu.pv.user_cr3 == MFN << 12
    assert ext(guest, MMUEXT_NEW_USER_BASEPTR, 0) == 0
    assert guest.vcpu.pv.user_cr3 == 0
    assert guest.domain.frames.type(MFN) is FrameType.NONE


def test_flushes(guest: PvGuest) -> None:
    for command in (MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_TLB_FLUSH_ALL):
        assert ext(guest, command) == 0
    for command in (MMUEXT_INVLPG_LOCAL, MMUEXT_INVLPG_ALL):
        assert ext(guest, command, 0x1234_5000) == 0
    assert guest.engine.flushes == [None, None, 0x1234_5000, 0x1234_5000]
    assert ext(guest, MMUEXT_INVLPG_ALL, layout.M2P_VADDR) == 0
    assert len(guest.engine.flushes) == 4, "not in the hypervisor's part"
    assert ext(guest, MMUEXT_FLUSH_CACHE) == -E.ACCES


def test_clear_and_copy(guest: PvGuest) -> None:
    guest.write(guest.vaddr(PFN), b"content" * 500)
    assert ext(guest, MMUEXT_COPY_PAGE, MFN + 1, MFN) == 0
    assert guest.read(guest.vaddr(PFN + 1), 3500) == b"content" * 500
    assert ((MFN + 1) << 12, 4096) in guest.engine.code_changes, "there may be code"
    assert ext(guest, MMUEXT_CLEAR_PAGE, MFN) == 0
    assert guest.read(guest.vaddr(PFN), 4096) == bytes(4096)


@pytest.mark.parametrize("command", [MMUEXT_CLEAR_PAGE, MMUEXT_COPY_PAGE])
def test_tables_are_not_cleared_or_copied_over(guest: PvGuest, command: int) -> None:
    before = guest.memory.read(L4 << 12, 4096)
    assert ext(guest, command, L4, MFN) == -E.INVAL
    assert guest.memory.read(L4 << 12, 4096) == before
    assert ext(guest, MMUEXT_COPY_PAGE, MFN, L4) == 0, "reading is allowed"


@pytest.mark.parametrize("command", [14, 21, 22, 99, 0xFFFF_FFFF])
def test_unknown_commands(guest: PvGuest, command: int) -> None:
    assert ext(guest, command) == -E.NOSYS


def test_mmuext_op_of_other_domains(guest: PvGuest) -> None:
    flush = MmuextOp(cmd=MMUEXT_TLB_FLUSH_LOCAL)
    results = {SELF: 0, DOMID: -E.SRCH, DOMID_IO: -E.PERM, 0: -E.PERM, 99: -E.SRCH}
    for domid, result in results.items():
        assert extended(guest, flush, domid=domid)[0] == result


def test_done_of_mmuext_op(guest: PvGuest) -> None:
    flush = MmuextOp(cmd=MMUEXT_TLB_FLUSH_LOCAL)
    assert extended(guest, flush, flush, MmuextOp(cmd=99), flush) == (-E.NOSYS, 2)
    assert guest.call("mmuext_op", NOT_MAPPED, 1, 0, SELF) == -E.FAULT


# --- the LDT ----------------------------------------------------------------------------------


def _ldt_pte(guest: PvGuest, page: int) -> int:
    return guest.memory.read_u64(layout.descriptor_pte_maddr(0, 16 + page))


def test_an_ldt_is_shown_in_the_window(guest: PvGuest) -> None:
    guest.protect(PFN + 1)
    assert ext(guest, MMUEXT_SET_LDT, guest.vaddr(PFN), 513) == 0
    assert _ldt_pte(guest, 0) == 0, "it is mapped writable: no descriptor table"
    guest.protect(PFN)
    assert ext(guest, MMUEXT_SET_LDT, guest.vaddr(PFN), 513) == 0
    assert [_ldt_pte(guest, n) >> 12 & 0xFFFFF for n in range(3)] == [MFN, MFN + 1, 0]
    assert audit(guest.domain) == []
    assert ext(guest, MMUEXT_SET_LDT, 0, 0) == 0
    assert _ldt_pte(guest, 0) == 0
    assert guest.domain.frames.uses(MFN) == 0


@pytest.mark.parametrize(
    ("vaddr_offset", "entries"), [(0, 8193), (8, 1), (0, 1 << 31), (-(8 << 40), 1)]
)
def test_bad_ldts(guest: PvGuest, vaddr_offset: int, entries: int) -> None:
    assert ext(guest, MMUEXT_SET_LDT, guest.vaddr(PFN) + vaddr_offset, entries) == -E.INVAL


def test_an_ldt_holds_no_gates_and_no_foreign_frames(guest: PvGuest) -> None:
    guest.write(guest.vaddr(PFN), (0x0000_EC00_E008_0000).to_bytes(8, "little"))
    guest.protect(PFN)
    assert ext(guest, MMUEXT_SET_LDT, guest.vaddr(PFN), 1) == 0, "shows when it is used"
    assert _ldt_pte(guest, 0) == 0
    guest.set_pte(PFN + 1, PTE_PRESENT, mfn=layout.SHARED_INFO)
    assert ext(guest, MMUEXT_SET_LDT, guest.vaddr(PFN + 1), 1) == 0
    assert _ldt_pte(guest, 0) == 0
    assert L1 + 2 == GDT


def test_a_new_base_pointer_brings_its_own_ldt(guest: PvGuest) -> None:
    """The pages of an LDT are those that the page tables in use show."""
    guest.protect(PFN)
    guest.protect(PFN + 1)
    assert ext(guest, MMUEXT_SET_LDT, guest.vaddr(PFN), 1) == 0
    assert _ldt_pte(guest, 0) >> 12 & 0xFFFFF == MFN
    entry = (MFN + 1) << 12 | PTE_PRESENT
    assert guest.call("update_va_mapping", guest.vaddr(PFN), entry, 0) == 0
    assert ext(guest, MMUEXT_NEW_BASEPTR, L4) == 0
    assert _ldt_pte(guest, 0) >> 12 & 0xFFFFF == MFN + 1
    assert audit(guest.domain) == []
