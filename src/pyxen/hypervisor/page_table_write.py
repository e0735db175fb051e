"""Writes of a PV kernel to its read-only page tables, emulated after #PF.

A Linux kernel writes single entries directly and lets Xen catch it (xen/arch/x86/pv/ro-page-fault.c
does the same). The instruction is decoded, the new entry validated like one of mmu_update, and the
registers and flags set as the instruction would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pyxen.errors import XenError
from pyxen.hypervisor import emulate
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.page_types import Restart
from pyxen.memory.pagetable import PTE_RW, PTE_USER, entry_maddr, translate
from pyxen.types import U64

CF, PF, AF, ZF, SF, DF, OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 10, 1 << 11
_STATUS = CF | PF | AF | ZF | SF | OF
_GPRS = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")


@dataclass(frozen=True, slots=True)
class Operand:
    """A register (number in machine code) or an immediate; the memory operand is the fault's."""

    gpr: int | None
    immediate: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """A decoded instruction that writes one memory operand of `size` bytes."""

    mnemonic: str
    size: int
    length: int
    source: Operand
    repeated: bool


def emulate_write(d: Domain, vaddr: int) -> bool:
    """Do the write at RIP that faulted at `vaddr`.

    False: it is not a write to an L1 table that is in use (as in Xen, other tables are changed by
    hypercalls only), or not one that the guest may do. The fault is the guest's then.
    """
    pte_at = entry_maddr(d.memory, d.space.cr3, vaddr)
    maddr = translate(d.memory, d.space.cr3, vaddr)
    if pte_at is None or maddr is None:
        return False
    # A kernel's own mapping of a page table; a read-only user page is the guest's business (COW).
    if d.memory.read_u64(pte_at) & (PTE_RW | PTE_USER):
        return False
    write = decode(emulate.fetch(d, d.engine.regs.rip))
    if write is None or (maddr & 7) + write.size > 8:
        return False
    if not d.memory.is_guest_frame(maddr >> 12) or d.types.level_of(maddr >> 12) != 1:
        return False
    continuation.begin(d)
    try:
        return _execute(d, write, maddr)
    except XenError:
        return False
    except Restart:
        return True  # the same instruction again


@lru_cache(maxsize=256)
def decode(code: bytes) -> Write | None:
    """Decode the instruction at the start of `code`, if it is one that is emulated."""
    instruction = next(_disassembler().disasm(code, 0, 1), None)
    if instruction is None or not instruction.operands or instruction.addr_size != 8:
        return None
    import capstone.x86 as cx

    mnemonic = instruction.mnemonic.replace("lock ", "")
    repeated = mnemonic.startswith("rep ")
    mnemonic = mnemonic.removeprefix("rep ")
    memory = [op for op in instruction.operands if op.type == cx.X86_OP_MEM]
    others = [op for op in instruction.operands if op.type != cx.X86_OP_MEM]
    if len(memory) != 1 or len(others) != 1:
        return None
    source = _operand(instruction, others[0], cx)
    if source is None or mnemonic not in _OPERATIONS:
        return None
    if mnemonic == "mov" and instruction.operands[0].type != cx.X86_OP_MEM:
        return None
    return Write(mnemonic, memory[0].size, instruction.size, source, repeated)


def _operand(instruction: Any, operand: Any, cx: Any) -> Operand | None:
    if operand.type == cx.X86_OP_IMM:
        return Operand(None, operand.imm & U64)
    name = instruction.reg_name(operand.reg)
    if name in ("ah", "bh", "ch", "dh"):
        return None
    if name[:2] in ("r8", "r9") or name[:2] in ("r1",):
        return Operand(int(name[1:].rstrip("dwb")))
    core = name.lstrip("re") if name not in ("al", "bl", "cl", "dl") else name[0] + "x"
    core = core.removesuffix("l") if core not in _GPRS else core
    return Operand(_GPRS.index(core)) if core in _GPRS else None


@lru_cache(maxsize=1)
def _disassembler() -> Any:
    import capstone

    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    return decoder


def _execute(d: Domain, write: Write, maddr: int) -> bool:
    regs = d.engine.regs
    size_mask = (1 << 8 * write.size) - 1
    shift = 8 * (maddr & 7)
    entry = d.memory.read_u64(maddr & ~7)
    old = entry >> shift & size_mask
    gpr = write.source.gpr
    source = (write.source.immediate if gpr is None else regs.gpr(gpr)) & size_mask
    new, to_gpr, flags = _OPERATIONS[write.mnemonic](
        old, source, 8 * write.size, regs.rax & size_mask
    )
    if new is not None:
        wanted = entry & ~(size_mask << shift) | new << shift
        d.types.modify_l1(maddr & ~7, wanted)
    # COMMIT
    if to_gpr is not None:
        target = 0 if write.mnemonic == "cmpxchg" else gpr
        if target is not None:
            regs.set_gpr(target, _merge(regs.gpr(target), to_gpr, write.size))
    if flags is not None:
        regs.rflags = regs.rflags & ~flags[0] | flags[1]
    return _finish(d, write)


def _finish(d: Domain, write: Write) -> bool:
    """Advance RIP, or for a repeated store the counters (RIP stays until RCX is 0)."""
    regs = d.engine.regs
    if write.mnemonic.startswith("stos"):
        step = -write.size if regs.rflags & DF else write.size
        regs.rdi = (regs.rdi + step) & U64
        if write.repeated:
            regs.rcx = (regs.rcx - 1) & U64
            if regs.rcx:
                return True
    regs.rip = (regs.rip + write.length) & U64
    return True


def _merge(register: int, value: int, size: int) -> int:
    """A register after a write of `size` bytes to its low part."""
    if size >= 4:
        return value
    mask = (1 << 8 * size) - 1
    return register & ~mask | value


_Result = tuple[int | None, int | None, tuple[int, int] | None]
"""(new value of the memory operand, of the register operand, (flags affected, flags set))"""


def _store(old: int, source: int, bits: int, rax: int) -> _Result:
    return source, None, None


def _exchange(old: int, source: int, bits: int, rax: int) -> _Result:
    return source, old, None


def _compare_exchange(old: int, source: int, bits: int, rax: int) -> _Result:
    flags = _STATUS, _subtract_flags(rax, old, bits)
    return (source, None, flags) if old == rax else (None, old, flags)


def _and(old: int, source: int, bits: int, rax: int) -> _Result:
    return old & source, None, (_STATUS, _logic_flags(old & source, bits))


def _or(old: int, source: int, bits: int, rax: int) -> _Result:
    return old | source, None, (_STATUS, _logic_flags(old | source, bits))


def _reset_bit(old: int, source: int, bits: int, rax: int) -> _Result:
    bit = 1 << source % bits
    return old & ~bit, None, (CF, CF if old & bit else 0)


def _set_bit(old: int, source: int, bits: int, rax: int) -> _Result:
    bit = 1 << source % bits
    return old | bit, None, (CF, CF if old & bit else 0)


def _logic_flags(value: int, bits: int) -> int:
    parity = PF if (value & 0xFF).bit_count() % 2 == 0 else 0
    return parity | (0 if value else ZF) | (SF if value >> (bits - 1) else 0)


def _subtract_flags(left: int, right: int, bits: int) -> int:
    mask = (1 << bits) - 1
    value = (left - right) & mask
    flags = _logic_flags(value, bits)
    if right > left:
        flags |= CF
    if (left ^ right ^ value) & 0x10:
        flags |= AF
    if (left ^ right) & (left ^ value) & (1 << (bits - 1)):
        flags |= OF
    return flags


_OPERATIONS = {
    "mov": _store,
    "movabs": _store,
    "stosq": _store,
    "stosd": _store,
    "xchg": _exchange,
    "cmpxchg": _compare_exchange,
    "and": _and,
    "or": _or,
    "btr": _reset_bit,
    "bts": _set_bit,
}
