"""The callbacks: record why the guest stopped, and stop. Nothing is decided here.

A recorded exit stays: stepping over `syscall` with the trap flag set raises #DB after the exit that
the caller wants to see.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from typing import Any, Final

from pyxen.cpu.base import (
    GUEST_SYSCALL,
    GUEST_SYSENTER,
    HYPERCALL,
    CpuidPolicy,
    Exit,
    GrantPath,
    Trap,
)
from pyxen.cpu.pvstate import PvDomain, PvState
from pyxen.cpu.unicorn import layout, library
from pyxen.cpu.unicorn.state import UnicornRegisters
from pyxen.cpu.unicorn.stubs import Stubs
from pyxen.memory.layout import DESCRIPTOR_VADDR, LDT_OFFSET, MAX_VCPUS, VCPU_WINDOW_SHIFT
from pyxen.types import U32, VcpuId

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
_RIP: Final = layout.RIP >> 3


def trap(vector: int, error_code: int, fault_address: int, *, software: bool, user: bool) -> Trap:
    """The exit for a processor exception.

    user: the mode it happened in. Far calls and returns use the stack as a supervisor, whatever
    the mode: a kernel must not be told that it did this itself.
    The processor reads descriptors as a supervisor from the hypervisor's window; where no page of
    the guest's GDT or LDT is mapped, that is a bad selector and no page fault.
    """
    if software:
        return Trap(vector, software=True)
    if vector == PAGE_FAULT:
        if DESCRIPTOR_VADDR <= fault_address < _WINDOW_END and not error_code & _FAULT_USER:
            table = _TABLE_LDT if fault_address & LDT_OFFSET else 0
            return Trap(GENERAL_PROTECTION, (fault_address & 0xFFF8) | table)
        return Trap(vector, error_code | (_FAULT_USER if user else 0), fault_address)
    return Trap(vector, error_code if vector in WITH_ERROR_CODE else 0)


class Hooks(ABC):
    """The callbacks of one engine: what both paths have in common."""

    native: bool
    grants: GrantPath | None = None
    code_pages: memoryview | None = None
    """As Engine.code_pages."""

    def __init__(
        self, handle: int, env: int, regs: UnicornRegisters, stubs: Stubs, cpuid: CpuidPolicy
    ) -> None:
        self._handle = handle
        self._regs = regs
        self._cpuid = cpuid
        self._error: BaseException | None = None
        self._callbacks: list[object] = []
        self._stop = library.load().uc_emu_stop
        library.hook_add(handle, library.HOOK_INSN, stubs.cpuid, env, library.INS_CPUID)
        self._add(library.HOOK_INSN, library.CPUID_CALLBACK(self._on_cpuid), library.INS_CPUID)
        library.hook_add(handle, library.HOOK_INSN, stubs.port_in, env, library.INS_IN)
        library.hook_add(handle, library.HOOK_INSN, stubs.port_out, env, library.INS_OUT)

    @abstractmethod
    def run(self) -> int:
        """Execute from RIP on until something stops the translator; its error number."""

    @abstractmethod
    def recorded(self) -> Exit | None:
        """The exit that was recorded since the last call."""

    def share(self, domain: PvDomain, vcpu_id: VcpuId, state: PvState) -> None:
        """The words that the hot path works on."""
        del domain, vcpu_id, state

    def select(self, vcpu_id: VcpuId) -> None:
        """This vCPU is in the processor now."""
        del vcpu_id

    def change_tlb(self, going: VcpuId, coming: VcpuId) -> bool:
        """Give each vCPU a TLB of its own. False: there is one for all, and it must be flushed."""
        del going, coming
        return False

    def flushed_everywhere(self) -> None:
        """The TLBs of the other vCPUs are out of date."""
        return

    def close(self) -> None:
        """Give back what belongs to vCPUs that are not in the processor; after uc_close."""
        return

    def take(self) -> Exit | None:
        """What `recorded` says. Raises: what the cpuid policy raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self.recorded()

    def _add(self, kind: int, callback: Any, *extra: int) -> None:
        self._callbacks.append(callback)
        address = ctypes.cast(callback, ctypes.c_void_p).value or 0
        library.hook_add(self._handle, kind, address, 0, *extra)

    def _on_cpuid(self, _uc: int, _user_data: int) -> int:
        words = self._regs.words
        try:
            leaf = self._cpuid(words[0] & U32, words[1] & U32)
        except Exception as error:
            # Nothing may fly through the translator's frames: `take` raises it.
            self._error = error
            self._stop(self._handle)
            return 1
        words[0], words[3], words[1], words[2] = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        return 1


class PythonHooks(Hooks):
    """Hooks that are Python functions."""

    native = False

    def __init__(
        self, handle: int, env: int, regs: UnicornRegisters, stubs: Stubs, cpuid: CpuidPolicy
    ) -> None:
        super().__init__(handle, env, regs, stubs, cpuid)
        self._exit: Exit | None = None
        self._start = library.load().uc_emu_start
        self._add(library.HOOK_INTR, library.INTR_CALLBACK(self._on_exception))
        self._add(library.HOOK_INSN_INVALID, library.INVALID_CALLBACK(self._on_invalid_opcode))
        self._add(library.HOOK_INSN, library.INSN_CALLBACK(self._on_syscall), library.INS_SYSCALL)
        self._add(library.HOOK_INSN, library.INSN_CALLBACK(self._on_sysenter), library.INS_SYSENTER)

    def run(self) -> int:
        error: int = self._start(self._handle, self._regs.words[_RIP], 0, 0, 0)
        return error

    def recorded(self) -> Exit | None:
        why, self._exit = self._exit, None
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
                user=regs.user_mode,
            )
        )

    def _on_syscall(self, _uc: int, _user_data: int) -> None:
        self._record(GUEST_SYSCALL if self._regs.user_mode else HYPERCALL)

    def _on_sysenter(self, _uc: int, _user_data: int) -> None:
        self._record(GUEST_SYSENTER)

    def _on_invalid_opcode(self, _uc: int, _user_data: int) -> bool:
        self._regs.signed[_OLD_EXCEPTION] = -1
        self._record(INVALID_OPCODE)
        return True
