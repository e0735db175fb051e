"""The callbacks of the plain path: record why the guest stopped, and stop. Nothing is decided here.

A recorded exit stays: stepping over `syscall` with the trap flag set raises #DB after the exit that
the caller wants to see.
"""

from __future__ import annotations

import ctypes
from typing import Final

from pyxen.cpu.base import GUEST_SYSCALL, HYPERCALL, CpuidPolicy, Exit, Trap
from pyxen.cpu.unicorn import layout, library
from pyxen.cpu.unicorn.state import UnicornRegisters
from pyxen.cpu.unicorn.stubs import Stubs
from pyxen.memory.layout import DESCRIPTOR_VADDR, LDT_OFFSET, MAX_VCPUS, VCPU_WINDOW_SHIFT

PAGE_FAULT: Final = 14
INVALID_OPCODE: Final = Trap(6)
GENERAL_PROTECTION: Final = 13
WITH_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17))

_FAULT_USER: Final = 1 << 2
_TABLE_LDT: Final = 1 << 2
_WINDOW_END: Final = DESCRIPTOR_VADDR + (MAX_VCPUS << VCPU_WINDOW_SHIFT)
_ERROR_CODE: Final = layout.ERROR_CODE >> 2
_IS_INT: Final = layout.EXCEPTION_IS_INT >> 2
_OLD_EXCEPTION: Final = layout.OLD_EXCEPTION >> 2
_CR2: Final = layout.CR2 >> 3


def trap(vector: int, error_code: int, fault_address: int, *, software: bool) -> Trap:
    """The exit for a processor exception.

    The processor reads descriptors as a supervisor from the hypervisor's window; where no page of
    the guest's GDT or LDT is mapped, that is a bad selector and no page fault.
    """
    if software:
        return Trap(vector, software=True)
    if vector == PAGE_FAULT:
        if DESCRIPTOR_VADDR <= fault_address < _WINDOW_END and not error_code & _FAULT_USER:
            table = _TABLE_LDT if fault_address & LDT_OFFSET else 0
            return Trap(GENERAL_PROTECTION, (fault_address & 0xFFF8) | table)
        return Trap(vector, error_code, fault_address)
    return Trap(vector, error_code if vector in WITH_ERROR_CODE else 0)


class PythonHooks:
    """Hooks that are Python functions, on one engine."""

    native: Final = False

    def __init__(
        self, handle: int, env: int, regs: UnicornRegisters, stubs: Stubs, cpuid: CpuidPolicy
    ) -> None:
        self._exit: Exit | None = None
        self._error: BaseException | None = None
        self._handle = handle
        self._regs = regs
        self._cpuid = cpuid
        self._stop = library.load().uc_emu_stop
        self._callbacks = (
            library.INTR_CALLBACK(self._on_exception),
            library.INSN_CALLBACK(self._on_syscall),
            library.INVALID_CALLBACK(self._on_invalid_opcode),
            library.CPUID_CALLBACK(self._on_cpuid),
        )
        intr, syscall, invalid, on_cpuid = (
            ctypes.cast(callback, ctypes.c_void_p).value or 0 for callback in self._callbacks
        )
        library.hook_add(handle, library.HOOK_INTR, intr, 0)
        library.hook_add(handle, library.HOOK_INSN_INVALID, invalid, 0)
        library.hook_add(handle, library.HOOK_INSN, syscall, 0, library.INS_SYSCALL)
        library.hook_add(handle, library.HOOK_INSN, on_cpuid, 0, library.INS_CPUID)
        add_port_hooks(handle, env, stubs)

    def take(self) -> Exit | None:
        """The exit that was recorded since the last call. Raises: what the cpuid policy raised."""
        why, self._exit = self._exit, None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return why

    def _record(self, why: Exit) -> None:
        if self._exit is None:
            self._exit = why
            self._stop(self._handle)

    def _on_exception(self, _uc: int, vector: int, _user_data: int) -> None:
        regs = self._regs
        # Nobody else clears it, and a second fault would be taken for a double fault.
        regs.signed[_OLD_EXCEPTION] = -1
        self._record(
            trap(
                vector,
                regs.dwords[_ERROR_CODE],
                regs.words[_CR2],
                software=bool(regs.dwords[_IS_INT]),
            )
        )

    def _on_syscall(self, _uc: int, _user_data: int) -> None:
        self._record(GUEST_SYSCALL if self._regs.user_mode else HYPERCALL)

    def _on_invalid_opcode(self, _uc: int, _user_data: int) -> bool:
        self._regs.signed[_OLD_EXCEPTION] = -1
        self._record(INVALID_OPCODE)
        return True

    def _on_cpuid(self, _uc: int, _user_data: int) -> int:
        words = self._regs.words
        try:
            leaf = self._cpuid(words[0] & 0xFFFF_FFFF, words[1] & 0xFFFF_FFFF)
        except Exception as error:
            # Nothing may fly through the translator's frames: `run` raises it.
            self._error = error
            self._stop(self._handle)
            return 1
        words[0], words[3], words[1], words[2] = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        return 1


def add_port_hooks(handle: int, env: int, stubs: Stubs) -> None:
    """What is machine code on every path: ports, and the instruction that would not end."""
    library.hook_add(handle, library.HOOK_INSN, stubs.port_in, env, library.INS_IN)
    library.hook_add(handle, library.HOOK_INSN, stubs.port_out, env, library.INS_OUT)
    library.hook_add(handle, library.HOOK_INSN, stubs.sysenter, env, library.INS_SYSENTER)
