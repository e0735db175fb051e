"""The callbacks in C: the hot path of native/*.c, reached through ctypes.

The extension module is never imported; it is a plain shared library that setuptools builds when
there is a C compiler. Without it, or when it was built from another version, the plain path runs.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import c_uint64, c_void_p
from functools import cache
from typing import Final, Protocol

from pyxen.cpu.base import GUEST_SYSCALL, GUEST_SYSENTER, HYPERCALL, CpuidPolicy, Exit
from pyxen.cpu.pvstate import PvDomain, PvState
from pyxen.cpu.unicorn import library
from pyxen.cpu.unicorn.hooks import INVALID_OPCODE, Hooks, trap
from pyxen.cpu.unicorn.native_grants import NativeGrants
from pyxen.cpu.unicorn.state import UnicornRegisters
from pyxen.cpu.unicorn.stubs import Stubs
from pyxen.types import PAGE_SHIFT, VcpuId

_EXIT_NONE: Final = 0
_EXIT_HYPERCALL: Final = 1
_EXIT_GUEST_SYSCALL: Final = 2
_EXIT_TRAP: Final = 3
_EXIT_SYSENTER: Final = 5


class Memory(Protocol):
    """The part of MachineMemory that an engine needs."""

    @property
    def address(self) -> int: ...
    @property
    def total_pages(self) -> int: ...


class NotBuilt(Exception):
    """There is no native hot path to use; the message says why."""


class Hot(ctypes.Structure):
    """struct hot of native/hot.h."""

    _fields_ = (
        ("env", c_void_p),
        ("cpu", c_void_p),
        ("uc", c_void_p),
        ("domain", c_void_p),
        ("vcpu", c_void_p),
        ("exit_kind", c_uint64),
        ("vector", c_uint64),
        ("error_code", c_uint64),
        ("fault_address", c_uint64),
        ("software", c_uint64),
        ("emu_start", c_void_p),
        ("emu_stop", c_void_p),
        ("tlb_flush", c_void_p),
        ("tlb_flush_page", c_void_p),
        ("compute_flags", c_void_p),
        ("memory", c_void_p),
        ("memory_bytes", c_uint64),
        ("code_pages", c_void_p),
        ("tlb_init", c_void_p),
        ("flushes", c_uint64),
        ("new_code", c_uint64),
        ("discards", c_uint64),
        ("skew", c_uint64),
    )


def _path() -> str:
    spec = importlib.util.find_spec("pyxen.cpu.unicorn._hot")
    if spec is None or spec.origin is None:
        raise NotBuilt("the native hot path is not built")
    return spec.origin


@cache
def _load_grants() -> NativeGrants:
    try:
        return NativeGrants(_path())
    except (OSError, AttributeError) as error:
        raise NotBuilt(f"the native hot path cannot be loaded: {error}") from error


@cache
def _load() -> ctypes.CDLL:
    path = _path()
    try:
        lib = ctypes.CDLL(path)
        lib.hot_struct_bytes.restype = ctypes.c_size_t
        lib.hot_run.argtypes = (c_void_p,)
        lib.hot_install_exit_check.argtypes = (ctypes.c_char_p,)
        lib.hot_install_exit_check.restype = ctypes.c_char_p
        lib.hot_exit_checks.restype = c_uint64
        lib.hot_use_softmmu.argtypes = (c_void_p, c_uint64)
        lib.hot_use_softmmu.restype = ctypes.c_bool
        lib.hot_parked_tlb_bytes.restype = ctypes.c_size_t
        lib.hot_change_tlb.argtypes = (c_void_p, c_void_p, c_void_p)
        lib.hot_change_tlb.restype = ctypes.c_bool
        lib.hot_free_tlb.argtypes = (c_void_p,)
        lib.hot_free_tlb.restype = None
        if lib.hot_struct_bytes() != ctypes.sizeof(Hot):
            raise NotBuilt("the native hot path was built from another version")
    except (OSError, AttributeError) as error:
        raise NotBuilt(f"the native hot path cannot be loaded: {error}") from error
    return lib


class NativeHooks(Hooks):
    """Hooks that are C functions. Raises: NotBuilt."""

    native = True

    def __init__(
        self,
        memory: Memory,
        cpu: int,
        handle: int,
        env: int,
        regs: UnicornRegisters,
        stubs: Stubs,
        cpuid: CpuidPolicy,
    ) -> None:
        native, self.grants = _load(), _load_grants()
        super().__init__(handle, env, regs, stubs, cpuid)
        unicorn = library.load()
        self._hot = Hot(
            env=env,
            cpu=cpu,
            uc=handle,
            emu_start=_address(unicorn.uc_emu_start),
            emu_stop=_address(unicorn.uc_emu_stop),
            tlb_flush=library.address("tlb_flush"),
            tlb_flush_page=library.address("tlb_flush_page"),
            tlb_init=library.address("tlb_init"),
            compute_flags=library.address("helper_cc_compute_all"),
        )
        self._code_pages = ctypes.create_string_buffer(memory.total_pages)
        self._hot.memory = memory.address
        self._hot.code_pages = ctypes.addressof(self._code_pages)
        self._hot_address = ctypes.addressof(self._hot)
        self._run = native.hot_run
        self._shared: dict[VcpuId, tuple[PvDomain, PvState]] = {}
        self._parked: dict[VcpuId, ctypes.Array[ctypes.c_char]] = {}
        refusal = native.hot_install_exit_check(str(library.path()).encode())
        self.exit_check = (
            "exit check in line" if refusal is None else f"plain exit check ({refusal.decode()})"
        )
        if refusal is None and not native.hot_use_softmmu(
            self._hot_address, memory.total_pages << PAGE_SHIFT
        ):
            self.exit_check += ", plain software TLB"
        elif refusal is None:
            self.code_pages = memoryview(self._code_pages).cast("B")
        for kind, name, *extra in (
            (library.HOOK_INTR, "hot_on_exception"),
            (library.HOOK_INSN_INVALID, "hot_on_invalid_opcode"),
            (library.HOOK_INSN, "hot_on_syscall", library.INS_SYSCALL),
            (library.HOOK_INSN, "hot_on_sysenter", library.INS_SYSENTER),
        ):
            callback = _address(getattr(native, name))
            library.hook_add(handle, kind, callback, self._hot_address, *extra)

    def share(self, domain: PvDomain, vcpu_id: VcpuId, state: PvState) -> None:
        self._shared[vcpu_id] = domain, state

    def select(self, vcpu_id: VcpuId) -> None:
        domain, state = self._shared.get(vcpu_id, (None, None))
        self._hot.domain = domain.address if domain else None
        self._hot.vcpu = state.address if state else None

    def change_tlb(self, going: VcpuId, coming: VcpuId) -> bool:
        changed: bool = _load().hot_change_tlb(
            self._hot_address, self._place(going), self._place(coming)
        )
        return changed

    def discarded(self) -> int:
        """How often the translator threw all its blocks away."""
        return int(self._hot.discards)

    def flushed_everywhere(self) -> None:
        self._hot.flushes += 1

    def close(self) -> None:
        for place in self._parked.values():
            _load().hot_free_tlb(place)

    def _place(self, vcpu_id: VcpuId) -> ctypes.Array[ctypes.c_char]:
        """Where the TLB of a vCPU is parked."""
        place = self._parked.get(vcpu_id)
        if place is None:
            place = ctypes.create_string_buffer(_load().hot_parked_tlb_bytes())
            self._parked[vcpu_id] = place
        return place

    def exit_checks(self) -> int:
        """How many blocks this thread translated with the exit check in line."""
        emitted: int = _load().hot_exit_checks()
        return emitted

    def run(self) -> int:
        error: int = self._run(self._hot_address)
        return error

    def recorded(self) -> Exit | None:
        hot = self._hot
        kind = hot.exit_kind
        if kind == _EXIT_NONE:
            return None
        if kind == _EXIT_HYPERCALL:
            return HYPERCALL
        if kind == _EXIT_GUEST_SYSCALL:
            return GUEST_SYSCALL
        if kind == _EXIT_TRAP:
            return trap(
                hot.vector,
                hot.error_code,
                hot.fault_address,
                software=bool(hot.software),
                user=self._regs.user_mode,
            )
        return GUEST_SYSENTER if kind == _EXIT_SYSENTER else INVALID_OPCODE


def _address(function: object) -> int:
    return ctypes.cast(function, c_void_p).value or 0  # type: ignore[arg-type]
