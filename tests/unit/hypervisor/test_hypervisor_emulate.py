"""Privileged instructions, CPUID and MSRs of a PV kernel."""

from __future__ import annotations

import pytest
from pv_guest import BASE, L4, TEXT, PvGuest

from pyxen.abi.errno import E
from pyxen.cpu.base import CpuidLeaf, Trap
from pyxen.errors import DomainCrash
from pyxen.hypervisor import msr
from pyxen.hypervisor.cpuid import XEN_LEAVES, XenCpuid
from pyxen.hypervisor.emulate import CR0_VALUE, CR4_VALUE, fetch
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
    assert gp(guest, "0f22c9") is None, "CR1"


def test_only_ts_may_change_in_cr0(guest: PvGuest) -> None:
    guest.regs.rcx = CR0_VALUE ^ 1 << 16
    assert gp(guest, "0f22c1") is None
    guest.regs.rcx = CR0_VALUE
    assert gp(guest, "0f22c1") == 3


def test_the_guests_bits_of_cr4(guest: PvGuest) -> None:
    guest.regs.rcx = U64
    assert gp(guest, "0f22e1") == 3
    assert gp(guest, "0f20e0") == 3
    assert guest.regs.rax == CR4_VALUE | 4 | 8, "TSD and DE"
    assert guest.engine.vcpu.tsc_disabled
    guest.regs.rcx = 0
    assert gp(guest, "0f22e1") == 3
    assert not guest.engine.vcpu.tsc_disabled


def test_the_kernel_reads_a_disabled_tsc(guest: PvGuest) -> None:
    guest.engine.tsc = 0x1234_5678_9ABC_DEF0
    guest.engine.set_tsc_aux(5)
    assert gp(guest, "0f31") == 2
    assert (guest.regs.rax, guest.regs.rdx) == (0x9ABC_DEF0, 0x1234_5678)
    assert gp(guest, "0f01f9") == 3
    assert guest.regs.rcx == 5


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
    assert wrmsr(guest, msr.MSR_EFER, msr.EFER_VALUE)
    assert not wrmsr(guest, msr.MSR_EFER, 0)
    assert rdmsr(guest, msr.MSR_PAT) == 0x0000_0501_0007_0406
    assert not wrmsr(guest, msr.MSR_PAT, 0)
    assert rdmsr(guest, msr.MSR_APIC_BASE) == 0xFEE0_0900
    assert not wrmsr(guest, msr.MSR_APIC_BASE, 0xFEE0_0900)
    assert rdmsr(guest, msr.MSR_MCG_CAP) == 0x0100_0802
    assert rdmsr(guest, msr.MSR_MC0_CTL) == rdmsr(guest, msr.MSR_MC0_CTL + 4) == U64
    assert rdmsr(guest, msr.MSR_MC0_CTL + 8) == 0
    assert rdmsr(guest, msr.MSR_FEATURE_CONTROL) == 1


@pytest.mark.parametrize("index", [0xC1, 0x186, 0x38F, 0x179, 0x400, 0xE7, 0x199, 0x1A0, 0x1B0])
def test_writes_that_are_dropped(guest: PvGuest, index: int) -> None:
    before = rdmsr(guest, index)
    assert wrmsr(guest, index, 0x1234)
    assert rdmsr(guest, index) == before


@pytest.mark.parametrize("index", [0, 1, 0x17, 0x3A, 0x48, 0x49, 0x79, 0xCE, 0x10A, 0x345, 0x10])
def test_writes_that_fault(guest: PvGuest, index: int) -> None:
    assert not wrmsr(guest, index, 0)


@pytest.mark.parametrize("index", [0x48, 0x49, 0x79, 0xFE, 0x10A, 0x122, 0x800, 0xD90, 0xC001_0015])
def test_reads_that_fault(guest: PvGuest, index: int) -> None:
    assert rdmsr(guest, index) is None


def test_before_there_is_a_handler_unknown_msrs_are_zero(guest: PvGuest) -> None:
    guest.regs.rcx = 0xFE
    guest.write(TEXT, bytes.fromhex("0f32"))
    guest.handle(Trap(13))
    assert (guest.regs.rip, guest.regs.rax, guest.regs.rdx) == (TEXT + 2, 0, 0)
    guest.regs.rip, guest.regs.rcx = TEXT, 0x4000_0001
    with pytest.raises(DomainCrash):
        guest.handle(Trap(13))


def test_tsc_aux(guest: PvGuest) -> None:
    assert wrmsr(guest, msr.MSR_TSC_AUX, 0x1_0000_0000) is False
    assert wrmsr(guest, msr.MSR_TSC_AUX, 0x1234)
    assert rdmsr(guest, msr.MSR_TSC_AUX) == guest.engine.tsc_aux == 0x1234


def test_cpuid_faulting(guest: PvGuest) -> None:
    assert rdmsr(guest, msr.MSR_PLATFORM_INFO) == 1 << 31
    assert rdmsr(guest, msr.MSR_MISC_FEATURES_ENABLES) == 0
    assert not wrmsr(guest, msr.MSR_MISC_FEATURES_ENABLES, 2)
    assert wrmsr(guest, msr.MSR_MISC_FEATURES_ENABLES, 1)
    assert rdmsr(guest, msr.MSR_MISC_FEATURES_ENABLES) == 1
    assert guest.engine.vcpu.cpuid_faulting
    assert xen_cpuid(guest, XEN_LEAVES + 1)[0] == 4 << 16 | 17, "not for the kernel"
    guest.vcpu.pv.kernel_sp = BASE + 34 * 4096
    guest.engine.enter_user_mode(0xE033, 0xE02B)
    guest.write(TEXT, bytes.fromhex(XEN_CPUID))
    guest.regs.rip = TEXT
    guest.handle(Trap(6))
    assert guest.regs.rip == HANDLER
    assert guest.words(guest.regs.rsp, 8)[2:4] == (0, TEXT + 5), "at the cpuid behind the prefix"


def test_the_tsc(guest: PvGuest) -> None:
    guest.engine.tsc = 0x1234_5678_9ABC_DEF0
    assert rdmsr(guest, msr.MSR_IA32_TSC) == 0x1234_5678_9ABC_DEF0


@pytest.mark.parametrize("index", [2, 0x11, 0xC000_0084, 0x4000_0001, U32])
def test_unknown_msrs_fault(guest: PvGuest, index: int) -> None:
    assert rdmsr(guest, index) is None
    assert not wrmsr(guest, index, 0)


# --- the rest ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["fa", "fb", "0f09", "ee", "66ef", "e680"])
def test_instructions_without_an_effect(guest: PvGuest, code: str) -> None:
    guest.vcpu.pv.iopl = 1
    before = [guest.regs.gpr(n) for n in range(16)]
    guest.regs.rdx = before[2]
    assert gp(guest, code) == len(code) // 2
    assert [guest.regs.gpr(n) for n in range(16)] == before


@pytest.mark.parametrize(
    ("code", "rax"),
    [
        ("ec", 0x1122_3344_5566_77FF),
        ("e460", 0x1122_3344_5566_77FF),
        ("66ed", 0x1122_3344_5566_FFFF),
        ("ed", U32),
        ("e560", U32),
    ],
)
def test_ports_read_as_ones(guest: PvGuest, code: str, rax: int) -> None:
    guest.vcpu.pv.iopl = 1
    guest.regs.rax = 0x1122_3344_5566_7788
    assert gp(guest, code) == len(code) // 2
    assert guest.regs.rax == rax


@pytest.mark.parametrize("code", ["fa", "fb", "ec", "e680", "6c", "f36e"])
def test_iopl_0_permits_nothing_to_the_kernel(guest: PvGuest, code: str) -> None:
    assert gp(guest, code) is None


def test_architectural_iopl_makes_the_kernel_level_0(guest: PvGuest) -> None:
    guest.domain.pv.architectural_iopl = 1
    assert gp(guest, "fa") == 1
    assert gp(guest, "ec") == 1


@pytest.mark.parametrize("user", [False, True])
def test_the_io_bitmap(guest: PvGuest, user: bool) -> None:
    bitmap = guest.put(b"\xff" * 0xC + b"\xfe\xef" + b"\xff" * 16)
    guest.vcpu.arch.io_bitmap, guest.vcpu.arch.io_ports = bitmap, 0x70
    guest.vcpu.pv.kernel_sp = BASE + 34 * 4096

    def allowed(code: str, port: int) -> bool:
        if user:
            guest.engine.enter_user_mode(0xE033, 0xE02B)
        guest.regs.rdx = port
        return gp(guest, code) is not None

    assert allowed("ec", 0x60)
    assert allowed("ee", 0x6C)
    assert not allowed("ec", 0x61)
    assert not allowed("66ed", 0x60), "the second of two ports"
    guest.vcpu.arch.io_ports = 0x6C
    assert not allowed("ec", 0x6C), "behind the end"
    guest.vcpu.arch.io_bitmap, guest.vcpu.arch.io_ports = guest.vaddr(1023) + 0xFFF, 65536
    assert allowed("ec", 0)
    assert not allowed("66ed", 7), "what cannot be read forbids"


def test_breakpoints_on_ports(guest: PvGuest) -> None:
    assert guest.call("set_debugreg", 7, 0x0002_0001) == -E.PERM, "without CR4.DE"
    guest.regs.rcx = 8
    gp(guest, "0f22e1")
    guest.vcpu.pv.iopl = 1
    assert guest.call("set_debugreg", 0, 0x60) == 0
    assert guest.call("set_debugreg", 7, 0x0006_0001) == 0
    assert guest.engine.vcpu.debug_registers[7] == 0x0006_0400, "the engine is not told"
    assert guest.engine.vcpu.port_access == (False, False), "every access is looked at"
    assert guest.call("get_debugreg", 7) == 0x0006_0401
    assert guest.call("get_debugreg", 5) == -E.NODEV, "5 is no other name of 7 now"
    guest.vcpu.pv.traps_address[1] = HANDLER + 1
    gp(guest, "e461")
    assert guest.regs.rip == HANDLER + 1
    assert guest.words(guest.regs.rsp, 7)[2] == TEXT + 2, "behind the instruction"
    assert guest.engine.vcpu.debug_registers[6] & 0xF == 1
    assert gp(guest, "e462") == 2
    assert guest.call("set_debugreg", 7, 0) == 0
    assert guest.engine.vcpu.port_access == (True, False)


def test_debug_registers_4_and_5_do_not_exist_with_de(guest: PvGuest) -> None:
    guest.vcpu.pv.traps_address[6] = HANDLER
    guest.regs.rcx = 8
    gp(guest, "0f22e1")
    for code in ("0f21e0", "0f23e8"):
        assert gp(guest, code) is None
        assert guest.words(guest.regs.rsp, 7)[2] == TEXT, "#UD, which has no error code"


@pytest.mark.parametrize("code", ["0f09", "0f20d0"])
def test_a_single_step_over_an_emulated_instruction(guest: PvGuest, code: str) -> None:
    guest.vcpu.pv.traps_address[1] = HANDLER + 1
    guest.regs.rflags |= 0x100
    gp(guest, code)
    assert guest.regs.rip == HANDLER + 1
    assert guest.engine.vcpu.debug_registers[6] & 1 << 14
    frame = guest.words(guest.regs.rsp, 7)
    assert (frame[2], frame[4] & 0x100) == (TEXT + len(code) // 2, 0x100)


def test_int1(guest: PvGuest) -> None:
    guest.vcpu.pv.traps_address[1] = HANDLER
    guest.write(TEXT, b"\xf1")
    guest.regs.rip = TEXT
    guest.handle(Trap(6))
    assert guest.regs.rip == HANDLER
    assert guest.words(guest.regs.rsp, 7)[2] == TEXT + 1


def test_an_invalid_opcode_before_an_absent_page(guest: PvGuest) -> None:
    """Xen looks for its prefix, and what it cannot read is a page fault: on hardware, too."""
    guest.vcpu.pv.traps_address[14] = HANDLER
    guest.unmap(42)
    guest.write(guest.vaddr(42) - 2, b"\x0f\x0b")
    guest.regs.rip = guest.vaddr(42) - 2
    guest.handle(Trap(6))
    assert guest.regs.rip == HANDLER
    assert (guest.vcpu.cr2(), guest.words(guest.regs.rsp, 8)[2]) == (guest.vaddr(42), 0)


@pytest.mark.parametrize(
    "code",
    [
        "0f01d0",
        "0f00d8",
        "f4",
        "0f08",
        "0f01f8",
        "0f0138",
        "0f33",
        "cf",
        "48cf",
        "0fc7c0",
        "6690",
        "66" * 15,
        "0f",
        "48" * 15,
    ],
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
    assert last == XEN_LEAVES + 5
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


def test_what_xen_says_of_itself(guest: PvGuest) -> None:
    policy = guest.cpuid
    policy.time = guest.time
    assert policy(XEN_LEAVES + 2, 0) == CpuidLeaf(1, 0x4000_0000, 1)
    time = policy(XEN_LEAVES + 3, 0)
    assert (time.eax, time.ebx, time.edx) == (6, 0, 1), "safe, RDTSCP; default mode; incarnation"
    scale = policy(XEN_LEAVES + 3, 1)
    assert (scale.ecx, scale.edx) == (guest.time.record.tsc_to_system_mul, 0)
    assert policy(XEN_LEAVES + 3, 3) == CpuidLeaf()
    assert policy(XEN_LEAVES + 4, 0) == CpuidLeaf(), "for HVM"
    assert policy(XEN_LEAVES + 5, 0) == CpuidLeaf(ebx=policy(0x8000_0008, 0).eax & 0xFF)
    assert policy(XEN_LEAVES + 5, 1) == policy(XEN_LEAVES + 6, 0) == CpuidLeaf()


def test_a_trap_without_a_handler_still_crashes(guest: PvGuest) -> None:
    guest.regs.rip = 0x1000
    with pytest.raises(DomainCrash):
        guest.handle(Trap(13))
