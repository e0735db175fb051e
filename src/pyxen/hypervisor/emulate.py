"""Privileged instructions of a PV kernel, emulated after #GP or #UD.

Source: Intel SDM volume 2 for the encodings; public/arch-x86/xen.h for the prefix that asks Xen for
CPUID (XEN_EMULATE_PREFIX). The guest kernel executes these at a privilege level that does not allow
them; what is not recognised here is the guest's own fault.
"""

from __future__ import annotations

from pyxen.abi.arch_x86 import XEN_EMULATE_PREFIX_BYTES
from pyxen.cpu.base import CpuidPolicy
from pyxen.errors import XenError
from pyxen.hypervisor import msr
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.cpu_state import fpu_taskswitch, get_debugreg, set_debugreg
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import U32, U64

MAX_INSTRUCTION = 15
CR0_VALUE = 0x8005_003B  # PG AM WP NE ET TS(see below) MP PE; TS is shown as it is
CR0_TS = 8
CR4_VALUE = 0x6A0
_CPUID = XEN_EMULATE_PREFIX_BYTES + b"\x0f\xa2"


def fetch(d: Domain, rip: int) -> bytes:
    """Up to 15 bytes of code; fewer where the next page is absent."""
    for length in (MAX_INSTRUCTION, 0x1000 - (rip & 0xFFF)):
        code = d.space.try_read(rip, min(length, MAX_INSTRUCTION))
        if code is not None:
            return code
    return b""


def cpuid(d: Domain, policy: CpuidPolicy) -> bool:
    """After #UD: CPUID behind Xen's prefix, from kernel or user mode. False if it is not that."""
    regs = d.engine.regs
    code = d.space.try_read(regs.rip, len(_CPUID))
    if code != _CPUID:
        return False
    leaf = policy(regs.rax & U32, regs.rcx & U32)
    regs.rax, regs.rbx, regs.rcx, regs.rdx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
    regs.rip = (regs.rip + len(_CPUID)) & U64
    return True


def privileged(d: Domain, v: Vcpu) -> bool:
    """After #GP in kernel mode: do one instruction and step over it. False if it is not ours."""
    regs = d.engine.regs
    code = fetch(d, regs.rip)
    length, rex = 0, 0
    while length < len(code) and (code[length] in (0x66, 0xF2, 0xF3) or code[length] >> 4 == 4):
        rex = code[length] if code[length] >> 4 == 4 else 0
        length += 1
    if length >= len(code):
        return False
    if code[length] == 0x0F:
        done = _two_byte(d, v, code[length + 1 : length + 3], rex)
    else:
        done = _one_byte(d, code[length])
    if done:
        regs.rip = (regs.rip + length + done) & U64
    return done > 0


def _one_byte(d: Domain, opcode: int) -> int:
    """Length of the instruction if it was done, else 0."""
    if opcode in (0xFA, 0xFB, 0xF4):
        # cli, sti and hlt of a kernel that should use the event mask: no effect, as in Xen.
        return 1
    wide = {0xEC: 0xFF, 0xED: U32, 0xE4: 0xFF, 0xE5: U32}.get(opcode)
    if wide is not None:
        # There are no devices. A 32-bit result clears the upper half of the register.
        d.engine.regs.rax = U32 if wide == U32 else d.engine.regs.rax & ~wide | wide
        return 1 if opcode >= 0xEC else 2
    if opcode in (0xEE, 0xEF):
        return 1
    return 2 if opcode in (0xE6, 0xE7) else 0


def _two_byte(d: Domain, v: Vcpu, code: bytes, rex: int) -> int:
    if len(code) < 1:
        return 0
    match code[0]:
        case 0x32:
            return 2 if _rdmsr(d, v) else 0
        case 0x30:
            return 2 if _wrmsr(d, v) else 0
        case 0x06:  # clts
            fpu_taskswitch(d, v, 0)
            return 2
        case 0x08 | 0x09:  # invd, wbinvd
            return 2
        case 0x20 | 0x21 | 0x22 | 0x23 if len(code) == 2:
            register = code[1] >> 3 & 7 | (rex & 4) << 1
            gpr = code[1] & 7 | (rex & 1) << 3
            return 3 if _mov_control(d, v, code[0], register, gpr) else 0
    return 0


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


def _mov_control(d: Domain, v: Vcpu, opcode: int, register: int, gpr: int) -> bool:
    engine = d.engine
    if opcode == 0x20:
        value = _read_cr(d, v, register)
        if value is None:
            return False
        engine.regs.set_gpr(gpr, value)
    elif opcode == 0x22:
        return _write_cr(d, v, register, engine.regs.gpr(gpr))
    else:
        try:
            if opcode == 0x21:
                engine.regs.set_gpr(gpr, get_debugreg(d, v, register))
            else:
                set_debugreg(d, v, register, engine.regs.gpr(gpr))
        except XenError:
            return False
    return True


def _read_cr(d: Domain, v: Vcpu, register: int) -> int | None:
    match register:
        case 0:
            return CR0_VALUE & ~CR0_TS | (CR0_TS if v.task_switched else 0)
        case 2:
            return v.cr2()
        case 3:
            return v.pv.cr3
        case 4:
            return CR4_VALUE
    return None


def _write_cr(d: Domain, v: Vcpu, register: int, value: int) -> bool:
    match register:
        case 0:
            # Only TS may change.
            fpu_taskswitch(d, v, value & CR0_TS)
        case 2:
            v.set_cr2(value)
        case 3:
            try:
                d.set_base_pointer(v, value >> 12)
            except XenError:
                return False
        case 4:
            pass  # the bits a guest may change have no effect here
        case _:
            return False
    return True
