"""Where things are inside of Unicorn 2.1.4 on x86-64, and the check that they are there.

The official way to a register costs 1.5 microseconds, the word itself 0.04; and half of what a
hypervisor needs (CPL, error codes, the exception in flight) has no official way at all. So the
engine reads and writes the emulated processor's own structure. The numbers below hold for one
version; `verify` proves them by writing through the API and finding the value in its place.

Source: qemu/target/i386/cpu.h (CPUX86State) and include/uc_priv.h of Unicorn 2.1.4.
"""

from __future__ import annotations

import ctypes
from typing import Final

from pyxen.cpu.unicorn import library
from pyxen.errors import UserError

VERSION: Final = (2, 1, 4)

# --- in uc_struct ---------------------------------------------------------------------------
UC_CPU: Final = 0x1B8
UC_STOP_REQUEST: Final = 0x56D
UC_EMULATION_DONE: Final = 0x56F
UC_NO_EXIT_REQUEST: Final = 0x7F2

# --- in X86CPU ------------------------------------------------------------------------------
CPU_ENV: Final = 0x8A50
CPU_TLB_FILL: Final = 0xA758
"""A function pointer: makes an entry of the software TLB, or raises the page fault."""
CPU_EXEC_EXIT: Final = 0xA798
"""A function pointer: called each time the translator's inner loop is left."""

# --- in CPUX86State (env) -------------------------------------------------------------------
REGS: Final = 0
RIP: Final = 128
EFLAGS: Final = 136
CC_DST: Final = 144
CC_SRC: Final = 152
CC_SRC2: Final = 160
CC_OP: Final = 168
DF: Final = 172
HFLAGS: Final = 176
SEGMENTS: Final = 184
SEGMENT_BYTES: Final = 24
SEGMENT_BASE: Final = 8
SEGMENT_LIMIT: Final = 16
SEGMENT_FLAGS: Final = 20
LDTR: Final = 328
GDTR: Final = 376
CR0: Final = 424
CR2: Final = 440
CR3: Final = 448
CR4: Final = 456
EFER: Final = 592
FPU_TOP: Final = 604
FPU_STATUS: Final = 608
FPU_CONTROL: Final = 610
FPU_TAGS: Final = 612
FPU_REGS: Final = 624
MXCSR: Final = 816
XMM: Final = 824
XMM_STRIDE: Final = 64
TSC_AUX: Final = 4896
ERROR_CODE: Final = 5384
EXCEPTION_IS_INT: Final = 5388
DR: Final = 5400
OLD_EXCEPTION: Final = 5496
STATE_BYTES: Final = 5568
"""What one vCPU is: everything up to end_reset_fields."""

# --- values ---------------------------------------------------------------------------------
FLAG_IF: Final = 1 << 9
FLAG_TF: Final = 1 << 8
FLAG_RF: Final = 1 << 16
FLAGS_GUEST: Final = 0x24_4DD5
"""The flags that a guest may have as it likes: the arithmetic ones, TF, DF, NT, AC and ID."""
CR4_TSD: Final = 1 << 2

HF_CPL: Final = 3
HF_ONE_INSTRUCTION: Final = 1 << 3
"""Inhibits interrupts, of which there are none here, until after one instruction."""
HF_CS32: Final = 1 << 4
HF_SS32: Final = 1 << 5
HF_ADDSEG: Final = 1 << 6
HF_STEP: Final = 1 << 8
"""As TF, but not seen by the guest: each block has one instruction, and #DB behind it."""
HF_TS: Final = 1 << 11
HF_LMA: Final = 1 << 14
HF_CS64: Final = 1 << 15

ES, CS, SS, DS, FS, GS = range(6)

_REG_PROOFS: Final = (
    (library.REG_RAX, REGS, 8, 0x1BAD_B002_0000_0001),
    (library.REG_R15, REGS + 15 * 8, 8, 0x1BAD_B002_0000_0002),
    (library.REG_RIP, RIP, 8, 0x1BAD_B002_0000_0003),
    (library.REG_CR2, CR2, 8, 0x1BAD_B002_0000_0004),
    (library.REG_FS_BASE, SEGMENTS + FS * SEGMENT_BYTES + SEGMENT_BASE, 8, 0x1BAD_B002_0005),
    (library.REG_GS_BASE, SEGMENTS + GS * SEGMENT_BYTES + SEGMENT_BASE, 8, 0x1BAD_B002_0006),
    (library.REG_DR0, DR, 8, 0x1BAD_B002_0000_0007),
    (library.REG_MXCSR, MXCSR, 4, 0x1FA0),
    (library.REG_FPCW, FPU_CONTROL, 2, 0x027F),
    (library.REG_XMM0 + 15, XMM + 15 * XMM_STRIDE, 8, 0x1BAD_B002_0000_0008),
)


def verify(handle: int) -> tuple[int, int]:
    """Prove the numbers above on a fresh engine; returns the addresses (cpu, env).

    Raises: UserError if this Unicorn is not the one that they were taken from.
    """
    if library.version() != VERSION:
        raise _refusal(f"version {'.'.join(map(str, library.version()))}")
    # The first register access makes the processor; before it there is none to look at.
    _proof(handle, library.REG_RAX, 8, 0)
    cpu = ctypes.c_uint64.from_address(handle + UC_CPU).value
    env = cpu + CPU_ENV
    for offset, name in ((CPU_EXEC_EXIT, "x86_cpu_exec_exit"), (CPU_TLB_FILL, "x86_cpu_tlb_fill")):
        if not cpu or ctypes.c_uint64.from_address(cpu + offset).value != library.address(name):
            raise _refusal("a processor of another shape")
    for register, offset, size, value in _REG_PROOFS:
        old = _proof(handle, register, size, value)
        found = int.from_bytes(ctypes.string_at(env + offset, size), "little")
        _proof(handle, register, size, old)
        if found != value:
            raise _refusal(f"another layout at offset {offset}")
    stop = ctypes.c_uint8.from_address(handle + UC_STOP_REQUEST)
    stop.value = 0
    library.emu_stop(handle)
    if stop.value != 1 or ctypes.c_uint8.from_address(handle + UC_NO_EXIT_REQUEST).value:
        raise _refusal("another layout of the engine structure")
    return cpu, env


def _proof(handle: int, register: int, size: int, value: int) -> int:
    """Write a register through the API, after reading its old value."""
    old = (ctypes.c_uint8 * 16)()
    library.reg_read(handle, register, old)
    new = (ctypes.c_uint8 * 16)(*value.to_bytes(16, "little"))
    library.reg_write(handle, register, new)
    return int.from_bytes(bytes(old[:size]), "little")


def _refusal(found: str) -> UserError:
    return UserError(
        f"the installed Unicorn library has {found}, and this engine works with "
        f"{'.'.join(map(str, VERSION))} only",
        hint=f"pip install unicorn=={'.'.join(map(str, VERSION))}",
    )
