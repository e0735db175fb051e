"""Emulated writes to page tables: every instruction does what the processor would have done.

The reference is the instruction itself, run on a processor without memory protection.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import unicorn
from pv_guest import L1, PvGuest
from unicorn import x86_const as reg

from pyxen.cpu.base import Trap
from pyxen.hypervisor.emulate import MAX_INSTRUCTION
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.page_audit import audit
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import PTE_PRESENT, PTE_RW, PTE_USER

HANDLER = 0xFFFF_FFFF_8100_0000
TABLE_PFN = 50
CODE_PFN = 36
U64 = (1 << 64) - 1
CF, PF, AF, ZF, SF, OF, DF = 1, 4, 16, 64, 128, 2048, 1024
STATUS = CF | PF | AF | ZF | SF | OF
# What the instructions define: AND and OR leave AF open, bit tests everything but CF and ZF.
DEFINED = {"and": STATUS & ~AF, "or": STATUS & ~AF, "btr": CF | ZF, "bts": CF | ZF}
GPRS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{n}" for n in range(8, 16)),
)
UC_GPRS = [getattr(reg, f"UC_X86_REG_{name.upper()}") for name in GPRS]

# RDI points at the memory operand.
INSTRUCTIONS = {
    "mov [rdi], rax": "488907",
    "mov [rdi], eax": "8907",
    "mov [rdi], ax": "668907",
    "mov [rdi], al": "8807",
    "mov [rdi], r9": "4c890f",
    "mov [rdi], r10d": "448917",
    "mov [rdi], r11b": "44881f",
    "mov [rdi], sil": "408837",
    "mov [rdi], rbp": "48892f",
    "mov [rdi], rsp": "488927",
    "mov [rdi], rdi": "48893f",
    "mov qword [rdi], -0x7fffff01": "48c707ff000080",
    "mov dword [rdi], 0x12345678": "c70778563412",
    "mov word [rdi], 0x8001": "66c7070180",
    "mov byte [rdi], 0x80": "c60780",
    "mov [rdi + 0x10 - 0x10], rdx": "48895700",
    "xchg [rdi], rax": "488707",
    "xchg [rdi], eax": "8707",
    "xchg [rdi], ax": "668707",
    "xchg [rdi], al": "8607",
    "xchg [rdi], r15": "4c873f",
    "xchg [rdi], bl": "861f",
    "xchg [rdi], r12d": "448727",
    "lock cmpxchg [rdi], rcx": "f0480fb10f",
    "lock cmpxchg [rdi], ecx": "f00fb10f",
    "lock cmpxchg [rdi], cx": "66f00fb10f",
    "lock cmpxchg [rdi], cl": "f00fb00f",
    "cmpxchg [rdi], r14": "4c0fb137",
    "lock and [rdi], rcx": "f048210f",
    "and [rdi], ecx": "210f",
    "and [rdi], cx": "66210f",
    "and [rdi], cl": "200f",
    "lock and qword [rdi], -2": "f0488327fe",
    "and qword [rdi], 0x7fffff00": "48812700ffff7f",
    "lock and byte [rdi], 0x80": "f0802780",
    "lock or [rdi], rcx": "f048090f",
    "or [rdi], r13d": "44092f",
    "lock or qword [rdi], -0x80": "f048830f80",
    "lock or byte [rdi], 0x40": "f0800f40",
    "lock btr qword [rdi], 6": "f0480fba3706",
    "btr dword [rdi], 33": "0fba3721",
    "btr word [rdi], 15": "660fba370f",
    "lock btr [rdi], rcx": "f0480fb30f",
    "lock bts qword [rdi], 63": "f0480fba2f3f",
    "lock bts [rdi], rcx": "f0480fab0f",
    "bts [rdi], ecx": "0fab0f",
    "stosq": "48ab",
    "stosd": "ab",
    "rep stosq": "f348ab",
    "rep stosd": "f3ab",
}


class Processor:
    """The reference: one instruction, from a state, on writable memory at the same addresses."""

    def __init__(self) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.ctl_set_tlb_mode(unicorn.unicorn_const.UC_TLB_VIRTUAL)
        self.base = 0xFFFF_8880_0000_0000
        self.uc.mem_map(self.base, 64 * 4096)

    def run(self, state: State, code: bytes, steps: int) -> State:
        uc, at = self.uc, self.base + (CODE_PFN << 12)
        uc.mem_write(at, code + b"\x90" * 8)
        uc.mem_write(self.base + (TABLE_PFN << 12), state.table)
        for name, value in zip(UC_GPRS, state.gprs, strict=True):
            uc.reg_write(name, value)
        uc.reg_write(reg.UC_X86_REG_EFLAGS, state.flags)
        uc.emu_start(at, at + len(code), count=steps)
        return State(
            [uc.reg_read(name) for name in UC_GPRS],
            uc.reg_read(reg.UC_X86_REG_EFLAGS),
            bytes(uc.mem_read(self.base + (TABLE_PFN << 12), 4096)),
            uc.reg_read(reg.UC_X86_REG_RIP) - at,
        )


class State:
    """Registers, flags, the page written to, RIP relative to the instruction."""

    def __init__(self, gprs: list[int], flags: int, table: bytes, rip: int = 0) -> None:
        self.gprs, self.flags, self.table, self.rip = gprs, flags, table, rip


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor()


@pytest.fixture
def guest_with_table(guest: PvGuest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PvGuest]:
    """The table's page is read-only, and any entry is allowed."""
    guest.make_l1(TABLE_PFN)
    monkeypatch.setattr(guest.domain.types, "modify_l1", guest.memory.write_u64)
    yield guest


def random_state(rng: random.Random, name: str, table_vaddr: int) -> State:
    table = rng.randbytes(4096)
    gprs = [rng.choice((rng.getrandbits(64), rng.getrandbits(8), U64)) for _ in GPRS]
    at = 8 * rng.randrange(64, 448)
    gprs[7] = table_vaddr + at
    if "rep" in name:
        gprs[1] = rng.randrange(1, 6)
    elif name.split()[-1] in ("rcx", "ecx") and "bt" in name:
        gprs[1] = rng.randrange(-2000, 2000) & U64
    if "cmpxchg" in name and rng.random() < 0.5:
        gprs[0] = int.from_bytes(table[at : at + 8], "little")
    if name == "lock cmpxchg [rdi], ecx":
        # On success real processors leave the upper half alone; the reference clears it.
        gprs[0] &= 0xFFFF_FFFF
    flags = 2 | rng.getrandbits(12) & (STATUS | (DF if "stos" in name else 0))
    return State(gprs, flags, table)


def operand_address(name: str, state: State) -> int:
    """The address that faults: bit tests with a register reach further than their operand."""
    rdi = state.gprs[7]
    if "bt" in name and name.endswith("cx"):
        size = 8 if name.endswith("rcx") else 4
        index = state.gprs[1]
        if size == 4:
            index &= 0xFFFF_FFFF
        bits = size * 8
        signed = index - (1 << bits) if index >> (bits - 1) else index
        return rdi + (signed // bits) * size
    return rdi


def emulate(guest: PvGuest, name: str, state: State, code: bytes) -> State:
    """Let the hypervisor do the instruction, a fault at a time."""
    regs = guest.regs
    at = guest.vaddr(CODE_PFN)
    guest.write(at, code + b"\x90" * 8)
    guest.write(guest.vaddr(TABLE_PFN), state.table)
    for register, value in zip(GPRS, state.gprs, strict=True):
        setattr(regs, register, value)
    regs.rflags = state.flags | 0x200
    regs.rip = at
    faults = 0
    while regs.rip == at:
        address = operand_address(name, state) if faults == 0 else regs.rdi
        guest.handle(Trap(14, 3, address))
        faults += 1
        assert faults <= 8
    table = guest.read(guest.vaddr(TABLE_PFN), 4096)
    gprs = [getattr(regs, register) for register in GPRS]
    return State(gprs, regs.rflags & ~0x200, table, regs.rip - at)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_as_the_processor_does(guest_with_table: PvGuest, processor: Processor, name: str) -> None:
    rng = random.Random(name)
    code = bytes.fromhex(INSTRUCTIONS[name])
    mnemonic = name.replace("lock ", "").replace("rep ", "").split()[0]
    defined = DEFINED.get(mnemonic, STATUS) | DF
    for _ in range(25):
        before = random_state(rng, name, guest_with_table.vaddr(TABLE_PFN))
        steps = before.gprs[1] + 1 if "rep" in name else 1
        wanted = processor.run(before, code, steps)
        seen = emulate(guest_with_table, name, before, code)
        assert seen.rip == len(code)
        assert seen.table == wanted.table
        assert seen.gprs == wanted.gprs
        assert seen.flags & defined == wanted.flags & defined


# --- what is not a page-table write -----------------------------------------------------------


def fault(guest: PvGuest, code: str, vaddr: int, error_code: int = 3) -> bool:
    """Whether the fault was handled without the guest."""
    guest.vcpu.pv.traps_address[14] = HANDLER
    guest.write(guest.vaddr(CODE_PFN), bytes.fromhex(code) + b"\x90" * 8)
    guest.regs.rip = guest.vaddr(CODE_PFN)
    guest.regs.rdi = vaddr
    guest.handle(Trap(14, error_code, vaddr))
    return guest.regs.rip != HANDLER


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("add [rdi], rax", "480107"),
        ("inc qword [rdi]", "48ff07"),
        ("mov [rdi], ah", "8827"),
        ("movups [rdi], xmm0", "0f1107"),
        ("mov rax, [rdi]", "488b07"),
        ("lock cmpxchg16b [rdi]", "f0480fc70f"),
        ("push [rdi]", "ff37"),
        ("movsq", "48a5"),
        ("stosb", "aa"),
        ("stosq with 32-bit addresses", "6748ab"),
        ("nothing that exists", "0fff"),
        ("only prefixes", "66" * 14),
        ("mov [rdi], fs", "8c27"),
    ],
)
def test_other_instructions_are_the_guests(guest: PvGuest, name: str, code: str) -> None:
    guest.make_l1(TABLE_PFN)
    before = guest.read(guest.vaddr(TABLE_PFN), 4096)
    assert not fault(guest, code, guest.vaddr(TABLE_PFN)), name
    assert guest.vcpu.cr2() == guest.vaddr(TABLE_PFN)
    assert guest.read(guest.vaddr(TABLE_PFN), 4096) == before


MOV = "488907"


def test_a_user_page_is_the_guests(guest: PvGuest) -> None:
    """The kernel writes to a page that user space may only read: copy on write."""
    guest.set_pte(TABLE_PFN, PTE_PRESENT | PTE_USER)
    guest.regs.rax = 0x1234
    assert not fault(guest, MOV, guest.vaddr(TABLE_PFN))
    assert guest.read(guest.vaddr(TABLE_PFN), 8) == bytes(8)


@pytest.mark.parametrize("error_code", [0, 1, 2, 7, 0x10, 0x11])
def test_other_faults_are_the_guests(guest: PvGuest, error_code: int) -> None:
    guest.make_l1(TABLE_PFN)
    assert not fault(guest, MOV, guest.vaddr(TABLE_PFN), error_code)


def test_a_writable_page_is_the_guests(guest: PvGuest) -> None:
    """A stale fault: the entry allows writing by now."""
    assert not fault(guest, MOV, guest.vaddr(TABLE_PFN))


def test_across_two_entries(guest: PvGuest) -> None:
    guest.make_l1(TABLE_PFN)
    assert not fault(guest, MOV, guest.vaddr(TABLE_PFN) + 4)
    assert not fault(guest, MOV, guest.vaddr(TABLE_PFN) + 4092)


def test_half_of_an_entry(guest: PvGuest) -> None:
    guest.store_pte(TABLE_PFN + 1, 0x1111_2222_3333_4444)
    guest.regs.rax = 0xAAAA_BBBB
    table = guest.vaddr(3)
    assert fault(guest, "8907", table + (TABLE_PFN + 1) * 8 + 4)
    assert guest.pte(TABLE_PFN + 1) == 0xAAAA_BBBB_3333_4444


@pytest.mark.parametrize("level", [0, 2, 3, 4])
def test_only_l1_tables_are_written(guest: PvGuest, level: int) -> None:
    """Tables of higher levels are changed by hypercalls only, as in Xen."""
    guest.protect(TABLE_PFN)
    if level:
        continuation.begin(guest.domain)
        guest.domain.types.pin(XEN_PAGES + TABLE_PFN, FrameType(level))
    guest.regs.rax = 0
    assert not fault(guest, MOV, guest.vaddr(TABLE_PFN))


def test_an_entry_that_maps_a_table_writable_faults(guest: PvGuest) -> None:
    before = guest.pte(200)
    guest.regs.rax = L1 << 12 | PTE_PRESENT | PTE_RW
    assert not fault(guest, MOV, guest.vaddr(3) + 200 * 8)
    assert guest.pte(200) == before
    guest.regs.rax = L1 << 12 | PTE_PRESENT
    assert fault(guest, MOV, guest.vaddr(3) + 200 * 8)
    assert guest.pte(200) == L1 << 12 | PTE_PRESENT
    assert audit(guest.domain) == []


@pytest.mark.parametrize("frame", [0, layout.GDT_L1, XEN_PAGES + 1030, 1 << 39])
def test_an_entry_for_a_foreign_frame_faults(guest: PvGuest, frame: int) -> None:
    before = guest.pte(200)
    guest.regs.rax = frame << 12 | PTE_PRESENT | PTE_RW
    assert not fault(guest, MOV, guest.vaddr(3) + 200 * 8)
    assert guest.pte(200) == before
    assert L1 == XEN_PAGES + 3


def test_the_hypervisors_slots_are_not_written(guest: PvGuest) -> None:
    before = guest.memory.read(XEN_PAGES << 12, 4096)
    guest.regs.rax = 0
    for slot in (256, 260, 271):
        assert not fault(guest, MOV, guest.vaddr(0) + 8 * slot)
    assert guest.memory.read(XEN_PAGES << 12, 4096) == before


def test_hypervisor_frames_mapped_read_only_are_not_written(guest: PvGuest) -> None:
    guest.set_pte(TABLE_PFN, PTE_PRESENT, mfn=layout.SHARED_INFO)
    guest.regs.rax = 2
    assert not fault(guest, MOV, guest.vaddr(TABLE_PFN))


@pytest.mark.parametrize("vaddr", [0, 1 << 47, layout.M2P_VADDR, U64 - 7])
def test_addresses_without_a_mapping(guest: PvGuest, vaddr: int) -> None:
    assert not fault(guest, MOV, vaddr)


def test_code_at_the_end_of_what_is_mapped(guest: PvGuest) -> None:
    guest.make_l1(TABLE_PFN)
    guest.vcpu.pv.traps_address[14] = HANDLER
    guest.unmap(CODE_PFN + 1)
    at = guest.vaddr(CODE_PFN + 1) - 3
    guest.write(at, bytes.fromhex(MOV))
    guest.regs.rip, guest.regs.rax = at, 0x5000
    guest.handle(Trap(14, 3, guest.vaddr(TABLE_PFN)))
    assert guest.regs.rip == at + 3
    assert guest.words(guest.vaddr(TABLE_PFN), 1) == (0x5000,)


def test_any_bytes_as_code(guest: PvGuest) -> None:
    """Whatever the decoder makes of it, it is an instruction that is known, or the guest's."""
    guest.make_l1(TABLE_PFN)
    rng = random.Random(3)
    for _ in range(3000):
        code = rng.choice((b"", b"\xf0", b"\x66", b"\xf0\x48", b"\xf3", b"\x0f", b"\x67"))
        code += rng.randbytes(MAX_INSTRUCTION)
        guest.regs.rsp = guest.vaddr(34)
        guest.regs.rax, guest.regs.rcx = rng.getrandbits(12) & ~1, rng.getrandbits(64)
        fault(guest, code.hex(), guest.vaddr(TABLE_PFN) + 8 * rng.randrange(512))
