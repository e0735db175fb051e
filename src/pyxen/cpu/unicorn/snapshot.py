"""One vCPU's state out of Unicorn's structure into a CpuState, and back.

The FPU and SSE registers become the 512 bytes that FXSAVE64 writes.
Source: Intel SDM volume 1, 10.5.1 (FXSAVE area); volume 3, 3.4.5 (descriptor attributes).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from pyxen.cpu.base import CpuState, SegmentCache
from pyxen.cpu.unicorn import layout, library
from pyxen.cpu.unicorn.state import UnicornRegisters

MSR_EFER: Final = 0xC000_0080
MSR_TSC_AUX: Final = 0xC000_0103

_FXSAVE_BYTES: Final = 512
_FXSAVE_HEAD: Final = Struct("<HHB")
_FXSAVE_MXCSR: Final = Struct("<II")
_MXCSR_AT: Final = 24
_FPU_CONTROL_INITIAL: Final = 0x037F
_MXCSR_INITIAL: Final = 0x1F80
_MXCSR_MASK: Final = 0xFFFF
_ST_AT: Final = 32
_XMM_AT: Final = 160
_TOP_SHIFT: Final = 11
_TOP: Final = 7 << _TOP_SHIFT
_SEGMENTS: Final = 6
_ATTRIBUTES: Final = 0x00FF_FF00
_CR0_TS: Final = 1 << 3
DR_GUEST_STATUS: Final = 4
"""The word of DR that holds the guest's DR6: the translator writes to the real one."""
DR_SLOTS: Final = (0, 1, 2, 3, 4, 5, DR_GUEST_STATUS, 7)


def save(regs: UnicornRegisters) -> CpuState:
    """A copy of everything that the guest could see of a vCPU."""
    words = regs.words
    return CpuState(
        gprs=list(words[:16]),
        rip=words[layout.RIP >> 3],
        rflags=regs.rflags,
        user_mode=regs.user_mode,
        segments=[(regs.selector(index), *regs.segment(index)[1:]) for index in range(_SEGMENTS)],
        cr0=words[layout.CR0 >> 3],
        cr2=words[layout.CR2 >> 3],
        cr3=words[layout.CR3 >> 3],
        cr4=words[layout.CR4 >> 3],
        dr=[words[(layout.DR >> 3) + slot] for slot in DR_SLOTS],
        msrs={
            MSR_EFER: words[layout.EFER >> 3],
            MSR_TSC_AUX: words[layout.TSC_AUX >> 3],
        },
        fxsave=_save_fpu(regs),
    )


def load(regs: UnicornRegisters, state: CpuState) -> None:
    """Replace a vCPU's state.

    CR0, CR4 and EFER are the engine's own affair but for CR0.TS. In guest kernel mode CS and SS
    become the engine's, whatever the state says they were.
    """
    words = regs.words
    for index, value in enumerate(state.gprs):
        words[index] = value
    words[layout.RIP >> 3] = state.rip
    regs.rflags = state.rflags
    for index, (selector, base, limit, attributes) in enumerate(state.segments):
        regs.set_segment(index, selector, base, limit, attributes & _ATTRIBUTES)
    if state.user_mode:
        cs, *code = state.segments[layout.CS]
        ss, *stack = state.segments[layout.SS]
        regs.enter_user_mode(
            cs, ss, long_mode=True, code=SegmentCache(*code), stack=SegmentCache(*stack)
        )
    else:
        regs.enter_kernel_mode()
    regs.set_task_switched(bool(state.cr0 & _CR0_TS))
    words[layout.CR2 >> 3] = state.cr2
    words[layout.CR3 >> 3] = state.cr3
    for slot, value in zip(DR_SLOTS, state.dr, strict=True):
        words[(layout.DR >> 3) + slot] = value
    words[layout.TSC_AUX >> 3] = state.msrs.get(MSR_TSC_AUX, 0)
    load_fpu(regs, state.fxsave)


def _save_fpu(regs: UnicornRegisters) -> bytes:
    raw = regs.bytes
    area = bytearray(_FXSAVE_BYTES)
    top = regs.dwords[layout.FPU_TOP >> 2] & 7
    status = int.from_bytes(raw[layout.FPU_STATUS : layout.FPU_STATUS + 2], "little")
    control = int.from_bytes(raw[layout.FPU_CONTROL : layout.FPU_CONTROL + 2], "little")
    valid = sum(1 << i for i in range(8) if not raw[layout.FPU_TAGS + i])
    _FXSAVE_HEAD.pack_into(area, 0, control, (status & ~_TOP) | top << _TOP_SHIFT, valid)
    _FXSAVE_MXCSR.pack_into(area, _MXCSR_AT, regs.dwords[layout.MXCSR >> 2], _MXCSR_MASK)
    for i in range(8):
        source = layout.FPU_REGS + ((top + i) & 7) * 16
        area[_ST_AT + i * 16 : _ST_AT + i * 16 + 10] = raw[source : source + 10]
    for i in range(16):
        source = layout.XMM + i * layout.XMM_STRIDE
        area[_XMM_AT + i * 16 : _XMM_AT + i * 16 + 16] = raw[source : source + 16]
    return bytes(area)


def initial_fpu() -> bytes:
    """The FXSAVE area after FNINIT, with MXCSR as after reset."""
    area = bytearray(_FXSAVE_BYTES)
    _FXSAVE_HEAD.pack_into(area, 0, _FPU_CONTROL_INITIAL, 0, 0)
    _FXSAVE_MXCSR.pack_into(area, _MXCSR_AT, _MXCSR_INITIAL, _MXCSR_MASK)
    return bytes(area)


def load_fpu(regs: UnicornRegisters, area: bytes) -> None:
    """Replace the FPU and SSE registers by those of an FXSAVE area."""
    raw = regs.bytes
    control, status, valid = _FXSAVE_HEAD.unpack_from(area, 0)
    mxcsr, _ = _FXSAVE_MXCSR.unpack_from(area, _MXCSR_AT)
    top = (status & _TOP) >> _TOP_SHIFT
    regs.dwords[layout.FPU_TOP >> 2] = top
    raw[layout.FPU_STATUS : layout.FPU_STATUS + 2] = (status & ~_TOP).to_bytes(2, "little")
    raw[layout.FPU_CONTROL : layout.FPU_CONTROL + 2] = control.to_bytes(2, "little")
    for i in range(8):
        raw[layout.FPU_TAGS + i] = 0 if valid >> i & 1 else 1
        target = layout.FPU_REGS + ((top + i) & 7) * 16
        raw[target : target + 10] = area[_ST_AT + i * 16 : _ST_AT + i * 16 + 10]
    regs.dwords[layout.MXCSR >> 2] = mxcsr & _MXCSR_MASK
    for i in range(16):
        target = layout.XMM + i * layout.XMM_STRIDE
        raw[target : target + 16] = area[_XMM_AT + i * 16 : _XMM_AT + i * 16 + 16]
    # The rounding modes live in the software float status, derived from the control words.
    lib = library.load()
    lib.update_fp_status_x86_64(regs.address)
    lib.update_mxcsr_status_x86_64(regs.address)
