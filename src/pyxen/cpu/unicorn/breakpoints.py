"""Debug registers: breakpoints on code and data, and the cause of each #DB in DR6.

Code: the translator's own breakpoints. To insert one drops all translations, so one that DR7 does
not enable any more stays in place until it is in the way, and what it stops is resumed with RF.

Data: the library has no watchpoints left. While one is enabled, the function that fills the
software TLB is replaced by a routine that calls it, and

    - marks the entry of a watched page as invalid, so that every access to the page comes here;
    - compares the access with the watched ranges; at a hit it leaves the block, and the instruction
      is done again in a block of its own (HF_STEP), with #DB behind it and the hit remembered.

Without breakpoints nothing of this costs anything. Source: Intel SDM volume 3, chapter 17.2; QEMU's
sub-page regions use the invalid mark in the same way.
"""

from __future__ import annotations

import ctypes
import mmap
from struct import pack
from typing import Final

from pyxen.cpu.base import Exit, Trap
from pyxen.cpu.unicorn import layout, library
from pyxen.cpu.unicorn.layout import FLAG_RF, FLAG_TF
from pyxen.cpu.unicorn.snapshot import DR_GUEST_STATUS
from pyxen.cpu.unicorn.state import DR7_ENABLED, UnicornRegisters
from pyxen.types import PAGE_MASK

DEBUG: Final = 1
DR6_STEP: Final = 1 << 14
SLOTS: Final = 4
_EXECUTE, _WRITE, _PORT, _ACCESS = range(4)
_LENGTHS: Final = (1, 2, 8, 4)
_KINDS_OF_ACCESS: Final = {_WRITE: 0b10, _ACCESS: 0b11}
"""Bit 0 loads, bit 1 stores: the order of the translator's access types."""
_BP_CPU: Final = 0x20
_KEPT: Final = 16

_DATA_AT: Final = 2048
_HITS: Final = 1
_SLOT: Final = 2
_SLOT_WORDS: Final = 4
_NO_PAGE: Final = 1
"""No page begins there."""
_FAST_TABLES: Final = layout.CPU_ENV - 0x40
"""The software TLB's three (mask, address), one for each MMU mode."""

_DR: Final = layout.DR >> 3
_EFLAGS: Final = layout.EFLAGS >> 3
_HFLAGS: Final = layout.HFLAGS >> 2


def _routine(data: int) -> bytes:
    """bool (cpu=rdi, vaddr=rsi, size=edx, access=ecx, mode=r8d, probe=r9b, host_pc=[rsp+8])."""
    return (
        b"\x53\x55\x41\x54\x41\x55\x41\x56"  # push rbx; push rbp; push r12; push r13; push r14
        + b"\x48\x89\xfb\x48\x89\xf5"  # mov rbx, rdi; mov rbp, rsi
        + b"\x41\x89\xd4\x41\x89\xcd\x45\x89\xc6"  # mov r12d, edx; mov r13d, ecx; mov r14d, r8d
        + b"\x48\x8b\x44\x24\x30"  # mov rax, [rsp + 48]
        + b"\x48\x83\xec\x08\x50"  # sub rsp, 8; push rax
        + b"\x48\xb8" + pack("<Q", data)  # mov rax, data
        + b"\xff\x10"  # call [rax]: the library's own function
        + b"\x48\x83\xc4\x10"  # add rsp, 16
        + b"\x84\xc0\x0f\x84\xa8\x00\x00\x00"  # test al, al; je out
        + b"\x49\xbb" + pack("<Q", data)  # mov r11, data
        + b"\x49\x89\xea\x49\x81\xe2\x00\xf0\xff\xff"  # mov r10, rbp; and r10, -4096
        + b"\x45\x31\xc9\x4d\x8d\x43\x10\x31\xc9"  # xor r9d, r9d; lea r8, [r11+16]; xor ecx, ecx
        # again:
        + b"\x4d\x3b\x50\x10\x75\x49"  # cmp r10, [r8 + 16]; jne next
        + b"\x44\x89\xf0\xc1\xe0\x04"  # mov eax, r14d; shl eax, 4
        + b"\x48\x8d\xbc\x03" + pack("<i", _FAST_TABLES)  # lea rdi, [rbx + rax + tables]
        + b"\x4c\x89\xd0\x48\xc1\xe8\x06"  # mov rax, r10; shr rax, 6
        + b"\x48\x23\x07\x48\x03\x47\x08"  # and rax, [rdi]; add rax, [rdi + 8]
        + b"\x48\x81\x08\x00\x08\x00\x00"  # or qword [rax], 0x800: TLB_INVALID_MASK for loads
        + b"\x48\x81\x48\x08\x00\x08\x00\x00"  # or qword [rax + 8], 0x800: and for stores
        + b"\x49\x8b\x40\x18\x4c\x0f\xa3\xe8\x73\x14"  # mov rax, [r8 + 24]; bt rax, r13; jnc next
        + b"\x49\x3b\x68\x08\x77\x0e"  # cmp rbp, [r8 + 8]; ja next
        + b"\x4a\x8d\x44\x25\xff"  # lea rax, [rbp + r12 - 1]
        + b"\x49\x3b\x00\x72\x04"  # cmp rax, [r8]; jb next
        + b"\x49\x0f\xab\xc9"  # bts r9, rcx
        # next:
        + b"\x49\x83\xc0\x20\xff\xc1"  # add r8, 32; inc ecx
        + b"\x83\xf9\x04\x75\xa6"  # cmp ecx, 4; jne again
        + b"\x4d\x85\xc9\x74\x27"  # test r9, r9; je yes
        + b"\x0f\xba\xab" + pack("<i", layout.CPU_ENV + layout.HFLAGS) + b"\x08"  # bts [hflags], 8
        + b"\x72\x19"  # jc record
        + b"\x48\x8b\x74\x24\x30"  # mov rsi, [rsp + 48]
        + b"\x48\x85\xf6\x74\x0f"  # test rsi, rsi; je record
        + b"\x48\x89\xdf"  # mov rdi, rbx
        + b"\x48\xb8" + pack("<Q", library.address("cpu_loop_exit_restore"))  # mov rax, ...
        + b"\xff\xd0"  # call rax: does not return
        # record:
        + b"\x4d\x09\x4b\x08"  # or [r11 + 8], r9
        # yes:
        + b"\xb8\x01\x00\x00\x00"  # mov eax, 1
        # out:
        + b"\x41\x5e\x41\x5d\x41\x5c\x5d\x5b"  # pop r14; pop r13; pop r12; pop rbp; pop rbx
        + b"\xc3"  # ret
    )  # fmt: skip


class Breakpoints:
    """The debug registers of the vCPU that `regs` shows. Keep it alive as long as the engine."""

    def __init__(self, cpu: int, regs: UnicornRegisters) -> None:
        self._cpu = cpu
        self._regs = regs
        self._lib = library.load()
        self._fill = ctypes.c_uint64.from_address(cpu + layout.CPU_TLB_FILL)
        self._page: mmap.mmap | None = None
        self._data: memoryview[int] = memoryview(bytes(8)).cast("Q")
        self._on_code: set[int] = set()
        self._ranges: list[tuple[int, int, int, int]] = []

    def update(self) -> None:
        """The debug registers changed, or another vCPU was selected."""
        words = self._regs.words
        dr7 = words[_DR + 7]
        code: set[int] = set()
        ranges = [(0, 0, _NO_PAGE, 0)] * SLOTS
        for n in range(SLOTS):
            if not dr7 >> 2 * n & 3:
                continue
            kind, length = dr7 >> 16 + 4 * n & 3, _LENGTHS[dr7 >> 18 + 4 * n & 3]
            if kind == _EXECUTE:
                code.add(words[_DR + n])
            elif kind in _KINDS_OF_ACCESS:
                first = words[_DR + n] & ~(length - 1)
                page = first & ~PAGE_MASK
                ranges[n] = (first, first + length - 1, page, _KINDS_OF_ACCESS[kind])
        if not code <= self._on_code:
            self._insert(code)
        if ranges != (self._ranges or [(0, 0, _NO_PAGE, 0)] * SLOTS):
            self._watch(ranges)

    def _insert(self, wanted: set[int]) -> None:
        if len(self._on_code | wanted) > _KEPT:
            self._lib.cpu_breakpoint_remove_all_x86_64(self._cpu, _BP_CPU)
            self._on_code.clear()
        for address in wanted - self._on_code:
            self._lib.cpu_breakpoint_insert_x86_64(self._cpu, address, _BP_CPU, None)
            self._on_code.add(address)

    def _watch(self, ranges: list[tuple[int, int, int, int]]) -> None:
        data = self._prepare()
        for n, slot in enumerate(ranges):
            at = _SLOT + n * _SLOT_WORDS
            for i, word in enumerate(slot):
                data[at + i] = word
        self._ranges = ranges
        active = any(kinds for *_, kinds in ranges)
        self._fill.value = self._routine if active else data[0]
        if active:
            self._lib.tlb_flush_x86_64(self._cpu)

    def _prepare(self) -> memoryview[int]:
        """The page with the routine, made when it is needed first."""
        if self._page is None:
            protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=flags, prot=protection)
            self._routine = ctypes.addressof(ctypes.c_char.from_buffer(page))
            code = _routine(self._routine + _DATA_AT)
            page[: len(code)] = code
            self._data = memoryview(page)[_DATA_AT:].cast("Q")
            self._data[0] = self._fill.value
            self._page = page
        return self._data

    def resolve(self, why: Exit | None) -> Exit | None:
        """After a run: what the exit means, with its causes added to DR6; None to run on.

        A #DB that the guest did not ask for comes from a breakpoint that was left in place.
        """
        regs = self._regs
        stepping = bool(regs.dwords[_HFLAGS] & layout.HF_STEP)
        hits = 0
        if stepping:
            regs.dwords[_HFLAGS] &= ~layout.HF_STEP
            hits, self._data[_HITS] = self._data[_HITS], 0
        if not isinstance(why, Trap) or why.vector != DEBUG or why.software:
            return why
        words = regs.words
        after_instruction = bool(words[_DR + 6] & DR6_STEP)
        words[_DR + 6] = 0
        causes = hits
        if after_instruction:
            if not stepping or words[_EFLAGS] & FLAG_TF:
                causes |= DR6_STEP
        else:
            causes = self._code_hits()
        if causes:
            words[_DR + DR_GUEST_STATUS] |= causes
            return why
        if not after_instruction:
            words[_EFLAGS] |= FLAG_RF
            regs.dwords[_HFLAGS] |= layout.HF_ONE_INSTRUCTION
        return None

    def _code_hits(self) -> int:
        """The breakpoints at the instruction that comes next, if one of them is enabled."""
        words = self._regs.words
        dr7, rip = words[_DR + 7], words[layout.RIP >> 3] + self._regs.code_base
        hits = enabled = 0
        for n in range(SLOTS):
            if dr7 >> 16 + 4 * n & 3 == _EXECUTE and words[_DR + n] == rip:
                hits |= 1 << n
                enabled |= dr7 >> 2 * n & 3
        return hits if enabled else 0

    @property
    def enabled(self) -> bool:
        """Whether DR7 of the selected vCPU enables anything."""
        return bool(self._regs.words[_DR + 7] & DR7_ENABLED)
