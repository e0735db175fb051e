"""The live registers of the selected vCPU, as words of Unicorn's processor structure."""

from __future__ import annotations

import ctypes
from typing import Any, Final

from pyxen.cpu.base import Registers, SegmentCache
from pyxen.cpu.unicorn import layout
from pyxen.cpu.unicorn.layout import FLAG_IF, FLAG_RF, FLAGS_GUEST
from pyxen.types import U32, U64

# What the processor really has in CS and SS while the guest kernel runs, and what it is shown.
KERNEL_CS: Final = 0xE041
KERNEL_SS: Final = 0xE049
SHOWN_KERNEL_CS: Final = 0xE030
SHOWN_KERNEL_SS: Final = 0xE02B

# Descriptor attributes (bits 8-23 of the second word).
_PRESENT: Final = 1 << 15
_CODE_OR_DATA: Final = 1 << 12
_GRANULARITY: Final = 1 << 23
_DB: Final = 1 << 22
_LONG: Final = 1 << 21
_CODE_READ_ACCESSED: Final = 0xB << 8
_DATA_WRITE_ACCESSED: Final = 0x3 << 8
CODE_64: Final = _GRANULARITY | _LONG | _PRESENT | _CODE_OR_DATA | _CODE_READ_ACCESSED
CODE_32: Final = _GRANULARITY | _DB | _PRESENT | _CODE_OR_DATA | _CODE_READ_ACCESSED
DATA: Final = _GRANULARITY | _DB | _PRESENT | _CODE_OR_DATA | _DATA_WRITE_ACCESSED
DPL_SHIFT: Final = 13
FLAT_LIMIT: Final = 0xFFFF_FFFF

_ALWAYS_ONE: Final = 1 << 1
_EFLAGS: Final = layout.EFLAGS >> 3
_HFLAGS: Final = layout.HFLAGS >> 2
_DR7: Final = (layout.DR >> 3) + 7
DR7_ENABLED: Final = 0xFF
_KERNEL_CPL: Final = 1
_USER_CPL: Final = 3


def _word(offset: int) -> Any:
    """A 64-bit register at an offset of the structure. (Any: the base class gives the type.)"""
    index = offset >> 3

    def read(self: UnicornRegisters) -> int:
        return self.words[index]

    def write(self: UnicornRegisters, value: int) -> None:
        self.words[index] = value & U64

    return property(read, write)


class UnicornRegisters(Registers):
    """Registers over the structure at host address `env`."""

    rax = _word(0)
    rcx = _word(8)
    rdx = _word(16)
    rbx = _word(24)
    rsp = _word(32)
    rbp = _word(40)
    rsi = _word(48)
    rdi = _word(56)
    r8 = _word(64)
    r9 = _word(72)
    r10 = _word(80)
    r11 = _word(88)
    r12 = _word(96)
    r13 = _word(104)
    r14 = _word(112)
    r15 = _word(120)
    rip = _word(layout.RIP)
    cr2 = _word(layout.CR2)
    fs_base = _word(layout.SEGMENTS + layout.FS * layout.SEGMENT_BYTES + layout.SEGMENT_BASE)
    gs_base = _word(layout.SEGMENTS + layout.GS * layout.SEGMENT_BYTES + layout.SEGMENT_BASE)

    def __init__(self, env: int) -> None:
        self.address = env
        self._storage = (ctypes.c_uint8 * layout.STATE_BYTES).from_address(env)
        self.bytes: memoryview[int] = memoryview(self._storage).cast("B")
        self.words: memoryview[int] = self.bytes.cast("Q")
        self.dwords: memoryview[int] = self.bytes.cast("I")
        self.signed: memoryview[int] = self.bytes.cast("i")

    @property
    def rflags(self) -> int:
        """RFLAGS. Between runs the translator keeps all of it in one word."""
        return self.words[_EFLAGS] & U32

    @rflags.setter
    def rflags(self, value: int) -> None:
        flags = (value & FLAGS_GUEST) | FLAG_IF | _ALWAYS_ONE
        if value & FLAG_RF and self.words[_DR7] & DR7_ENABLED:
            # Only breakpoints look at RF, and it makes translations of its own.
            flags |= FLAG_RF
            self.dwords[_HFLAGS] |= layout.HF_ONE_INSTRUCTION
        self.words[_EFLAGS] = flags

    def gpr(self, index: int) -> int:
        return self.words[index & 15]

    def set_gpr(self, index: int, value: int) -> None:
        self.words[index & 15] = value & U64

    def selector(self, segment: int) -> int:
        if not self.user_mode:
            if segment == layout.CS:
                return SHOWN_KERNEL_CS
            if segment == layout.SS:
                return SHOWN_KERNEL_SS
        return self.dwords[_segment(segment)] & 0xFFFF

    @property
    def user_mode(self) -> bool:
        """Whether the processor is at the guest user's privilege level."""
        return self.dwords[_HFLAGS] & layout.HF_CPL == _USER_CPL

    def enter_kernel_mode(self) -> None:
        """Guest kernel mode with flat 64-bit CS and SS."""
        level = _KERNEL_CPL << DPL_SHIFT
        self.set_segment(layout.CS, KERNEL_CS, 0, FLAT_LIMIT, CODE_64 | level)
        self.set_segment(layout.SS, KERNEL_SS, 0, FLAT_LIMIT, DATA | level)
        self._set_mode(_KERNEL_CPL, long_mode=True)

    def enter_user_mode(
        self,
        cs: int,
        ss: int,
        *,
        long_mode: bool,
        code: SegmentCache | None = None,
        stack: SegmentCache | None = None,
    ) -> None:
        """Guest user mode with CS and SS as given, flat by default."""
        level = _USER_CPL << DPL_SHIFT
        code = code or SegmentCache(0, FLAT_LIMIT, CODE_64 if long_mode else CODE_32)
        stack = stack or SegmentCache(0, FLAT_LIMIT, DATA)
        self.set_segment(
            layout.CS, (cs & 0xFFFF) | 3, code.base, code.limit, code.attributes | level
        )
        self.set_segment(
            layout.SS, (ss & 0xFFFF) | 3, stack.base, stack.limit, stack.attributes | level
        )
        if code.attributes & _LONG:
            self._set_mode(_USER_CPL, long_mode=True)
        else:
            self._set_compatibility_mode(code.attributes, stack.attributes)

    @property
    def long_mode(self) -> bool:
        """Whether the processor executes 64-bit code."""
        return bool(self.dwords[_HFLAGS] & layout.HF_CS64)

    @property
    def code_base(self) -> int:
        """The base of CS, which counts in compatibility mode only."""
        if self.long_mode:
            return 0
        return self.words[(_segment(layout.CS) + 2) >> 1]

    def set_segment(
        self, segment: int, selector: int, base: int, limit: int, attributes: int
    ) -> None:
        """Load a segment register with its hidden part."""
        index = _segment(segment)
        dwords = self.dwords
        dwords[index] = selector
        self.words[(index + 2) >> 1] = base & U64
        dwords[index + 4] = limit
        dwords[index + 5] = attributes
        if base and segment in (layout.DS, layout.ES) and not self.long_mode:
            dwords[_HFLAGS] |= layout.HF_ADDSEG

    def segment(self, segment: int) -> tuple[int, int, int, int]:
        """(selector, base, limit, attributes) as the processor has them."""
        index = _segment(segment)
        return (
            self.dwords[index] & 0xFFFF,
            self.words[(index + 2) >> 1],
            self.dwords[index + 4],
            self.dwords[index + 5],
        )

    def set_task_switched(self, on: bool) -> None:
        """CR0.TS and its copy in the translator's flags."""
        cr0 = self.words[layout.CR0 >> 3]
        flags = self.dwords[_HFLAGS]
        self.words[layout.CR0 >> 3] = cr0 | 8 if on else cr0 & ~8
        self.dwords[_HFLAGS] = flags | layout.HF_TS if on else flags & ~layout.HF_TS

    def _set_mode(self, level: int, *, long_mode: bool) -> None:
        flags = self.dwords[_HFLAGS] & ~(layout.HF_CPL | layout.HF_CS64 | layout.HF_ADDSEG)
        flags |= level | layout.HF_LMA | layout.HF_CS32 | layout.HF_SS32
        self.dwords[_HFLAGS] = flags | layout.HF_CS64 if long_mode else flags

    def _set_compatibility_mode(self, code: int, stack: int) -> None:
        """16- or 32-bit user code. Bases of ES, SS and DS are looked at where one is not 0."""
        clear = layout.HF_CPL | layout.HF_CS64 | layout.HF_CS32 | layout.HF_SS32 | layout.HF_ADDSEG
        flags = self.dwords[_HFLAGS] & ~clear | _USER_CPL | layout.HF_LMA
        flags |= layout.HF_CS32 if code & _DB else 0
        flags |= layout.HF_SS32 if stack & _DB else 0
        bases = (self.segment(index)[1] for index in (layout.ES, layout.SS, layout.DS))
        if not code & _DB or any(bases):
            flags |= layout.HF_ADDSEG
        self.dwords[_HFLAGS] = flags


def _segment(segment: int) -> int:
    """Index of a segment register's first dword."""
    return (layout.SEGMENTS + segment * layout.SEGMENT_BYTES) >> 2
