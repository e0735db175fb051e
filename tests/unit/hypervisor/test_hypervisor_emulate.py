"""Privileged instructions, CPUID and MSRs of a PV kernel."""

from __future__ import annotations

import pytest
from pv_guest import BASE, L4, TEXT, PvGuest

from pyxen.cpu.base import Trap
from pyxen.errors import DomainCrash
from pyxen.hypervisor import msr
from pyxen.hypervisor.cpuid import XEN_LEAVES, XenCpuid
from pyxen.hypervisor.emulate import CR4_VALUE, fetch
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES

HANDLER = 0xFFFF_FFFF_8100_0000
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
XEN_CPUID = "0f0b78656e" + "0fa2"
TS = 8
MFN = XEN_PAGES + 100


def gp(guest: PvGuest, code: str) -> int | None:
    """#GP at this code in kernel mode: how far RIP went, or None if the guest got the trap."""
    guest.write(TEXT, bytes.fromhex(code) + b"\x90" * 4)
    guest.vcpu.pv.traps_address[13] = HANDLER
    guest.regs.rip = TEXT
    guest.handle(Trap(13))
    return None if guest.regs.rip == HANDLER else guest.regs.rip - TEXT


# --- control registers ------------------------------------------------------------------------


def test_reading_control_registers(guest: PvGuest) -> None:
    guest.vcpu.set_cr2(0x1234_5678)
    for code, wanted in (
        ("0f20d0", 0x1234_5678),
        ("0f20d8", L4 << 12),
        ("0f20e0", CR4_VALUE),
    ):
        assert gp(guest, code) == 3
        assert guest.regs.rax == wanted
    assert gp(guest, "410f20d7") == 4
    assert guest.regs.r15 == 0x1234_5678
    assert gp(guest, "0f20c8") is None, "CR1"
    assert gp(guest, "440f20c0") is None, "CR8"


def test_ts_in_cr0(guest: PvGuest) -> None:
    guest.call("fpu_taskswitch", 1)
    gp(guest, "0f20c0")
    assert guest.regs.rax & TS
    assert gp(guest, "0f06") == 2, "clts"
    assert not guest.vcpu.task_switched
    assert not guest.engine.vcpu.task_switched
    gp(guest, "0f20c0")
    assert not guest.regs.rax & TS
    guest.regs.rax |= TS
    assert gp(guest, "0f22c0") == 3
    assert guest.vcpu.task_switched
    assert guest.engine.vcpu.task_switched


def test_writing_control_registers(guest: PvGuest) -> None:
    guest.regs.rcx = 0x77
    assert gp(guest, "0f22d1") == 3
    assert guest.vcpu.cr2() == 0x77
    guest.memory.copy_page(MFN, L4)
    guest.regs.rcx = MFN << 12
    assert gp(guest, "0f22d9") is None, "it is mapped writable"
    guest.protect(MFN - XEN_PAGES)
    assert gp(guest, "0f22d9") == 3
    assert guest.vcpu.pv.cr3 == guest.engine.vcpu.cr3 == guest.domain.space.cr3 == MFN << 12
    assert guest.memory.read_u64((MFN << 12) + 8 * 256) == layout.M2P_SLOT_ENTRY
    assert gp(guest, "0f22e1") == 3, "CR4 is accepted, and has no effect"
    assert gp(guest, "0f22c9") is None, "CR1"


@pytest.mark.parametrize("frame", [0, 5, layout.SHARED_INFO, layout.GRANT_FRAMES, 1 << 51])
def test_cr3_is_a_frame_of_the_guest(guest: PvGuest, frame: int) -> None:
    before = guest.memory.read((frame & 0xFFFF) << 12, 4096)
    guest.regs.rcx = frame << 12
    assert gp(guest, "0f22d9") is None
    assert guest.vcpu.pv.cr3 == L4 << 12
    assert guest.memory.read((frame & 0xFFFF) << 12, 4096) == before


# --- debug registers --------------------------------------------------------------------------


def test_debug_registers(guest: PvGuest) -> None:
    guest.regs.rcx = TEXT
    assert gp(guest, "0f23d9") == 3
    assert guest.engine.vcpu.debug_registers[3] == TEXT
    assert gp(guest, "0f21d8") == 3
    assert guest.regs.rax == TEXT
    guest.regs.rcx = 1
    assert gp(guest, "0f23f9") == 3
    assert guest.engine.vcpu.debug_registers[7] == 0x401


@pytest.mark.parametrize("code", ["440f21c0", "440f21f8", "440f23c1", "440f23f9"])
def test_debug_registers_that_do_not_exist(guest: PvGuest, code: str) -> None:
    assert gp(guest, code) is None


@pytest.mark.parametrize(
    ("code", "value"),
    [("0f23c1", layout.M2P_VADDR), ("0f23f9", 1 << 13), ("0f23f9", 1 << 40), ("0f23f1", U64)],
)
def test_debug_registers_are_checked_like_those_of_the_hypercall(
    guest: PvGuest, code: str, value: int
) -> None:
    guest.regs.rcx = value
    assert gp(guest, code) is None
    assert guest.engine.vcpu.debug_registers == [0] * 8


# --- MSRs -------------------------------------------------------------------------------------


def rdmsr(guest: PvGuest, index: int) -> int | None:
    guest.regs.rcx = 0xFFFF_0000_0000_0000 | index
    return guest.regs.rdx << 32 | guest.regs.rax if gp(guest, "0f32") == 2 else None


def wrmsr(guest: PvGuest, index: int, value: int) -> bool:
    guest.regs.rcx = index
    guest.regs.rax, guest.regs.rdx = value & U32 | 0xAB << 32, value >> 32 | 0xCD << 32
    return gp(guest, "0f30") == 2


def test_base_msrs(guest: PvGuest) -> None:
    for index, where in (
        (msr.MSR_FS_BASE, lambda: guest.regs.fs_base),
        (msr.MSR_GS_BASE, lambda: guest.regs.gs_base),
        (msr.MSR_SHADOW_GS_BASE, lambda: guest.vcpu.pv.gs_base_user),
    ):
        assert wrmsr(guest, index, BASE + index)
        assert where() == BASE + index
        assert rdmsr(guest, index) == BASE + index
        assert not wrmsr(guest, index, 1 << 47)
        assert where() == BASE + index


def test_constant_msrs(guest: PvGuest) -> None:
    assert rdmsr(guest, msr.MSR_EFER) == msr.EFER_VALUE
    assert wrmsr(guest, msr.MSR_EFER, 0), "dropped"
    assert rdmsr(guest, msr.MSR_EFER) == msr.EFER_VALUE
    assert rdmsr(guest, msr.MSR_PAT) == 0x0000_0501_0007_0406


def test_the_tsc(guest: PvGuest) -> None:
    guest.engine.tsc = 0x1234_5678_9ABC_DEF0
    assert rdmsr(guest, msr.MSR_IA32_TSC) == 0x1234_5678_9ABC_DEF0


@pytest.mark.parametrize("index", [0, 0x11, 0xC000_0084, 0x4000_0000, U32])
def test_unknown_msrs_fault(guest: PvGuest, index: int) -> None:
    assert rdmsr(guest, index) is None
    assert not wrmsr(guest, index, 0)


# --- the rest ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["fa", "fb", "f4", "0f08", "0f09", "ee", "66ef", "e680"])
def test_instructions_without_an_effect(guest: PvGuest, code: str) -> None:
    before = [guest.regs.gpr(n) for n in range(16)]
    guest.regs.rdx = before[2]
    assert gp(guest, code) == len(code) // 2
    assert [guest.regs.gpr(n) for n in range(16)] == before


@pytest.mark.parametrize(
    ("code", "rax"),
    [("ec", 0x1122_3344_5566_77FF), ("e460", 0x1122_3344_5566_77FF), ("ed", U32), ("e560", U32)],
)
def test_ports_read_as_ones(guest: PvGuest, code: str, rax: int) -> None:
    guest.regs.rax = 0x1122_3344_5566_7788
    assert gp(guest, code) == len(code) // 2
    assert guest.regs.rax == rax


@pytest.mark.parametrize(
    "code", ["0f01d0", "0f00d8", "cf", "48cf", "0fc7c0", "6690", "66" * 15, "0f", "48" * 15]
)
def test_other_instructions_are_the_guests(guest: PvGuest, code: str) -> None:
    assert gp(guest, code) is None


def test_user_mode_does_not_get_privileges(guest: PvGuest) -> None:
    guest.vcpu.pv.kernel_sp = BASE + 34 * 4096
    for code in ("fa", "0f20d8", "0f32", "ec"):
        guest.engine.enter_user_mode(0xE033, 0xE02B)
        assert gp(guest, code) is None


def test_code_at_the_end_of_a_page(guest: PvGuest) -> None:
    guest.vcpu.pv.traps_address[13] = HANDLER
    at = guest.vaddr(101) - 2
    guest.write(at, bytes.fromhex("0f06"))
    guest.unmap(101)
    guest.regs.rip = at
    guest.handle(Trap(13))
    assert guest.regs.rip == at + 2
    assert len(fetch(guest.domain, at)) == 2
    assert fetch(guest.domain, guest.vaddr(101)) == b""
    assert fetch(guest.domain, U64 - 3) == b""
    assert fetch(guest.domain, layout.M2P_VADDR) == b""


def test_code_that_is_gone(guest: PvGuest) -> None:
    guest.vcpu.pv.traps_address[13] = HANDLER
    guest.regs.rip = 0x1000
    guest.handle(Trap(13))
    assert guest.regs.rip == HANDLER


# --- CPUID ------------------------------------------------------------------------------------


def xen_cpuid(guest: PvGuest, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    guest.write(TEXT, bytes.fromhex(XEN_CPUID))
    regs = guest.regs
    regs.rip, regs.rax, regs.rcx = TEXT, leaf | 0xFF << 32, subleaf | 0xFF << 32
    guest.handle(Trap(6))
    assert regs.rip == TEXT + 7
    return regs.rax, regs.rbx, regs.rcx, regs.rdx


@pytest.mark.parametrize("user", [False, True])
def test_the_prefixed_cpuid(guest: PvGuest, user: bool) -> None:
    if user:
        guest.engine.enter_user_mode(0xE033, 0xE02B)
    last, *signature = xen_cpuid(guest, XEN_LEAVES)
    assert last == XEN_LEAVES + 4
    assert b"".join(word.to_bytes(4, "little") for word in signature) == b"XenVMMXenVMM"
    assert xen_cpuid(guest, XEN_LEAVES + 1)[0] == 4 << 16 | 17


def test_an_invalid_opcode_is_the_guests(guest: PvGuest) -> None:
    guest.vcpu.pv.traps_address[6] = HANDLER
    for code in ("0f0b78656e0f01", "0f0b", "0fa2"):
        guest.write(TEXT, bytes.fromhex(code).ljust(8, b"\x90"))
        guest.regs.rip = TEXT
        guest.handle(Trap(6))
        assert guest.regs.rip == HANDLER


def test_the_prefixed_cpuid_at_the_end_of_the_address_space(guest: PvGuest) -> None:
    """RIP wraps; what happens then is the guest's business."""
    words = guest.memory.words
    top = XEN_PAGES + 200
    for n in range(3):
        words[((top + n) << 9) + 511] = (top + n + 1) << 12 | 7
    words[(L4 << 9) + 511] = top << 12 | 7
    guest.memory.write(((top + 3) << 12) + 4096 - 7, bytes.fromhex(XEN_CPUID))
    guest.regs.rip = U64 - 6
    guest.handle(Trap(6))
    assert guest.regs.rip == 0


def test_cpuid_hides_what_is_not_there() -> None:
    policy = XenCpuid()
    features = policy(1, 0)
    assert features.ecx >> 31 & 1, "a hypervisor is present"
    for missing in (26, 27, 28, 12, 5):  # XSAVE, OSXSAVE, AVX, FMA, VMX
        assert not features.ecx >> missing & 1
    for missing in (3, 12, 17):  # PSE, MTRR, PSE36
        assert not features.edx >> missing & 1
    assert not policy(7, 0).ebx & 1, "FSGSBASE"
    assert policy(0x8000_0001, 0).edx >> 29 & 1, "long mode"
    brand = b"".join(
        word.to_bytes(4, "little")
        for leaf in (0x8000_0002, 0x8000_0003, 0x8000_0004)
        for word in (
            policy(leaf, 0).eax, policy(leaf, 0).ebx, policy(leaf, 0).ecx, policy(leaf, 0).edx,
        )
    )  # fmt: skip
    assert b"pyxen" in brand


def test_every_leaf_has_32_bit_registers(guest: PvGuest) -> None:
    guest.cpuid.time = guest.time
    for base in (0, XEN_LEAVES, 0x8000_0000):
        for leaf in range(base, base + 0x20):
            for subleaf in (0, 1, 2, 3, U32):
                found = guest.cpuid(leaf, subleaf)
                for value in (found.eax, found.ebx, found.ecx, found.edx):
                    assert 0 <= value <= U32
    assert guest.cpuid(XEN_LEAVES + 3, 2).eax == guest.cpuid(XEN_LEAVES + 3, 0).ecx


def test_a_trap_without_a_handler_still_crashes(guest: PvGuest) -> None:
    guest.regs.rip = 0x1000
    with pytest.raises(DomainCrash):
        guest.handle(Trap(13))
