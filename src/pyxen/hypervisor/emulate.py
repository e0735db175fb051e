"""Privileged instructions of a PV guest, emulated after #GP or #UD.

Source: Intel SDM volume 2 for the encodings; public/arch-x86/xen.h for the prefix that asks Xen for
CPUID (XEN_EMULATE_PREFIX). The guest executes these at a privilege level that does not allow them;
what is not recognised here is the guest's own fault.
"""

from __future__ import annotations

from typing import Final

from pyxen.abi.arch_x86 import XEN_EMULATE_PREFIX_BYTES
from pyxen.abi.arch_x86_traps import X86_EXC_DB, X86_EXC_GP, X86_EXC_PF, X86_EXC_UD, PFEC_user_mode
from pyxen.abi.errno import E
from pyxen.cpu.base import CpuidPolicy, Trap
from pyxen.errors import XenError
from pyxen.hypervisor import msr, privilege
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.cpu_state import (
    fpu_taskswitch,
    get_debugreg,
    set_cr4,
    set_debugreg,
)
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import U32, U64

MAX_INSTRUCTION = 15
CR0_VALUE = 0x8005_0033  # PG AM WP NE ET MP PE; TS is shown as it is
CR0_TS = 8
CR4_VALUE = 0x620
"""PAE, OSFXSR, OSXMMEXCPT: what a guest sees of the hypervisor's CR4."""

Outcome = int | Trap
"""Bits of DR6 for breakpoints that the instruction hit, or the fault it makes."""
NOT_OURS: Final = Trap(X86_EXC_GP)
"""Not an instruction that is emulated (compare by identity)."""

_CPUID = b"\x0f\xa2"
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3))
_INT1 = 0xF1
_OPERAND_SIZE = 0x66


def fetch(d: Domain, rip: int) -> bytes:
    """Up to 15 bytes of code; fewer where the next page is absent."""
    for length in (MAX_INSTRUCTION, 0x1000 - (rip & 0xFFF)):
        code = d.space.try_read(rip, min(length, MAX_INSTRUCTION))
        if code is not None:
            return code
    return b""


def _linear_rip(d: Domain) -> int:
    engine = d.engine
    if engine.long_mode:
        return engine.regs.rip
    return (engine.regs.rip + engine.code_base) & U32


def invalid_opcode(d: Domain, v: Vcpu, policy: CpuidPolicy) -> Outcome:
    """After #UD, in either mode: CPUID behind Xen's prefix, or INT1, which the engine lacks."""
    rip, regs = _linear_rip(d), d.engine.regs
    first = d.space.try_read(rip, 1)
    if first is not None and first[0] == _INT1:
        regs.rip = (regs.rip + 1) & U64
        return Trap(X86_EXC_DB)
    if not _matches(d, rip, XEN_EMULATE_PREFIX_BYTES):
        return _fetch_fault(d, rip, len(XEN_EMULATE_PREFIX_BYTES))
    rip += len(XEN_EMULATE_PREFIX_BYTES)
    if not _matches(d, rip, _CPUID):
        return _fetch_fault(d, rip, len(_CPUID))
    if v.arch.cpuid_faulting and d.engine.user_mode:
        regs.rip = (regs.rip + len(XEN_EMULATE_PREFIX_BYTES)) & U64
        return Trap(X86_EXC_GP)
    leaf = policy(regs.rax & U32, regs.rcx & U32)
    regs.rax, regs.rbx, regs.rcx, regs.rdx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
    regs.rip = (regs.rip + len(XEN_EMULATE_PREFIX_BYTES) + len(_CPUID)) & U64
    return 0


def _matches(d: Domain, rip: int, code: bytes) -> bool:
    return d.space.try_read(rip, len(code)) == code


def _fetch_fault(d: Domain, rip: int, length: int) -> Outcome:
    """Where Xen cannot read what it looks for, the guest gets a page fault and no #UD."""
    for at in range(rip, rip + length):
        if d.space.try_read(at, 1) is None:
            return Trap(X86_EXC_PF, PFEC_user_mode if d.engine.user_mode else 0, at & U64)
    return NOT_OURS


def privileged(d: Domain, v: Vcpu) -> Outcome:
    """After #GP(0): do one instruction and step over it.

    User mode may do no more than use ports and CLI and STI, as far as its IOPL allows.
    """
    engine, regs = d.engine, d.engine.regs
    code = fetch(d, _linear_rip(d))
    length, rex, wide = 0, 0, True
    while length < len(code) and code[length] in _PREFIXES:
        wide = wide and code[length] != _OPERAND_SIZE
        length += 1
    if engine.long_mode and length < len(code) and code[length] >> 4 == 4:
        rex = code[length]
        length += 1
    if length >= len(code):
        return NOT_OURS
    rest = code[length + 1 : length + 3]
    if code[length] == 0x0F:
        done = NOT_OURS if engine.user_mode else _two_byte(d, v, rest, rex)
    else:
        done = _one_byte(d, v, code[length], rest, wide=wide)
    if isinstance(done, Trap):
        return done
    size, causes = done & 0xF, done >> 4
    regs.rip = (regs.rip + length + size) & (U64 if engine.long_mode else U32)
    return causes


def _one_byte(d: Domain, v: Vcpu, opcode: int, rest: bytes, *, wide: bool) -> Outcome:
    """The length of the instruction | what it hit in DR6 << 4."""
    if opcode in (0xFA, 0xFB):
        # A guest masks its events in memory: CLI and STI have no effect, even where allowed.
        return 1 if privilege.iopl_allows(d, v) else NOT_OURS
    if opcode & ~0xB != 0xE4 or (opcode < 0xE8 and not rest):
        return NOT_OURS
    by_number = opcode < 0xE8
    size = (4 if wide else 2) if opcode & 1 else 1
    port = rest[0] if by_number else d.engine.regs.rdx & 0xFFFF
    if not privilege.ports_allowed(d, v, port, size):
        return NOT_OURS
    if not opcode & 2:
        rax, ones = d.engine.regs.rax, (1 << 8 * size) - 1
        # A 32-bit result clears the upper half of the register.
        d.engine.regs.rax = ones if size == 4 else rax & ~ones | ones
    return (2 if by_number else 1) | privilege.port_breakpoints(d, v, port, size) << 4


def _two_byte(d: Domain, v: Vcpu, code: bytes, rex: int) -> Outcome:
    """The length of the instruction."""
    if len(code) < 1:
        return NOT_OURS
    match code[0]:
        case 0x32:
            return 2 if _rdmsr(d, v) else NOT_OURS
        case 0x30:
            return 2 if _wrmsr(d, v) else NOT_OURS
        case 0x31:
            return _rdtsc(d, 2)
        case 0x01 if code[1:] == b"\xf9":
            d.engine.regs.rcx = d.engine.tsc_aux
            return _rdtsc(d, 3)
        case 0x06:  # clts
            fpu_taskswitch(d, v, 0)
            return 2
        case 0x09:  # wbinvd: there is no device that reads memory past the caches
            return 2
        case 0x20 | 0x21 | 0x22 | 0x23 if len(code) == 2:
            register = code[1] >> 3 & 7 | (rex & 4) << 1
            gpr = code[1] & 7 | (rex & 1) << 3
            return _mov_control(d, v, code[0], register, gpr)
    return NOT_OURS


def _rdtsc(d: Domain, length: int) -> int:
    tsc = d.engine.read_tsc()
    d.engine.regs.rax, d.engine.regs.rdx = tsc & U32, tsc >> 32
    return length


def _rdmsr(d: Domain, v: Vcpu) -> bool:
    regs = d.engine.regs
    value = msr.read(d, v, regs.rcx & U32)
    if value is None:
        return False
    regs.rax, regs.rdx = value & U32, value >> 32
    return True


def _wrmsr(d: Domain, v: Vcpu) -> bool:
    regs = d.engine.regs
    return msr.write(d, v, regs.rcx & U32, (regs.rax & U32) | (regs.rdx & U32) << 32)


def _mov_control(d: Domain, v: Vcpu, opcode: int, register: int, gpr: int) -> Outcome:
    regs = d.engine.regs
    if opcode == 0x20:
        value = _read_cr(d, v, register)
        if value is None:
            return NOT_OURS
        regs.set_gpr(gpr, value)
    elif opcode == 0x22:
        return 3 if _write_cr(d, v, register, regs.gpr(gpr)) else NOT_OURS
    else:
        try:
            if opcode == 0x21:
                regs.set_gpr(gpr, get_debugreg(d, v, register))
            else:
                set_debugreg(d, v, register, regs.gpr(gpr))
        except XenError as error:
            missing = error.errno is E.NODEV and register < 8
            return Trap(X86_EXC_UD) if missing else NOT_OURS
    return 3


def _read_cr(d: Domain, v: Vcpu, register: int) -> int | None:
    match register:
        case 0:
            return CR0_VALUE | (CR0_TS if v.task_switched else 0)
        case 2:
            return v.cr2()
        case 3:
            return v.pv.cr3
        case 4:
            return CR4_VALUE | v.arch.cr4
    return None


def _write_cr(d: Domain, v: Vcpu, register: int, value: int) -> bool:
    match register:
        case 0:
            if (value ^ CR0_VALUE) & ~CR0_TS:
                return False  # only TS may change
            fpu_taskswitch(d, v, value & CR0_TS)
        case 2:
            v.set_cr2(value)
        case 3:
            try:
                d.set_base_pointer(v, value >> 12)
            except XenError:
                return False
        case 4:
            set_cr4(d, v, value)
        case _:
            return False
    return True
