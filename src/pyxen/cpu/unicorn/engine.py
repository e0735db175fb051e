"""UnicornEngine: one Unicorn instance executes all vCPUs of a domain, one at a time.

    host address of the domain's memory  <- mem_map_ptr ->  machine address 0 ...

The guest kernel runs at privilege level 1 and its user at 3, so that the translator's TLB keeps
them apart and one top-level page table serves both. The state of the vCPUs that are not selected
is parked as bytes; to select one is two copies, and a flush where native code cannot park the TLB.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Final

from pyxen.cpu.base import (
    PREEMPTED,
    SPINNING,
    Capabilities,
    CpuidPolicy,
    CpuState,
    Engine,
    EngineFailure,
    Exit,
    SegmentCache,
)
from pyxen.cpu.pvstate import PvDomain, PvState
from pyxen.cpu.unicorn import layout, library, snapshot
from pyxen.cpu.unicorn.breakpoints import Breakpoints
from pyxen.cpu.unicorn.hooks import Hooks, PythonHooks
from pyxen.cpu.unicorn.native_hooks import Memory, NativeHooks, NotBuilt
from pyxen.cpu.unicorn.state import UnicornRegisters
from pyxen.cpu.unicorn.stubs import Stubs
from pyxen.memory.layout import LDT_OFFSET, gdt_vaddr
from pyxen.types import PAGE_SHIFT, VcpuId

TRANSLATION_BUFFER_BYTES: Final = 64 << 20
PAUSES_OF_A_SPIN: Final = 16

CR0_GUEST: Final = 0x8001_0033
"""PG, WP, NE, ET, MP, PE."""
CR4_GUEST: Final = 0x6A0 | 1 << 10
"""PAE, PGE, OSFXSR, OSXMMEXCPT; no PSE, no SMEP, no SMAP, no OSXSAVE."""
EFER_GUEST: Final = 0xD01
"""SCE, LME, LMA, NXE."""
DR6_RESET: Final = 0xFFFF_0FF0
_GDT_LIMIT: Final = 0xEFFF
_RIP: Final = layout.RIP >> 3


@dataclass(slots=True)
class _Allowed:
    """What one vCPU may do without #GP(0)."""

    kernel_ports: bool = False
    user_ports: bool = False
    user_cpuid: bool = True


class UnicornEngine(Engine):
    """An engine on Unicorn 2.1.4.

    Args:   memory: mapped at machine address 0. cpuid: what CPUID answers in both modes.
            native: None takes the native hot path when it is built and PYXEN_NATIVE is not 0.
    Raises: UserError if the Unicorn library is missing or not the one that this was made for.

    RDTSC is the host's. INT1 is #UD. Breakpoints on ports are never hit. Where an instruction
    crosses into a page that cannot be fetched, RIP is that of the start of its block, of which
    nothing was executed.
    """

    regs: UnicornRegisters

    def __init__(self, memory: Memory, cpuid: CpuidPolicy, *, native: bool | None = None) -> None:
        self._lib = library.load()
        self._handle = self._open(memory)
        self._memory_bytes = memory.total_pages << PAGE_SHIFT
        self._cpu, self._env = layout.verify(self._handle)
        self._stubs = Stubs(self._handle)
        leave = ctypes.c_uint64.from_address(self._cpu + layout.CPU_EXEC_EXIT)
        leave.value = self._stubs.exec_exit
        # Stops are taken where a block starts only. Elsewhere the instruction would be run twice.
        ctypes.c_uint8.from_address(self._handle + layout.UC_NO_EXIT_REQUEST).value = 1
        self._stop_request = ctypes.c_uint8.from_address(self._handle + layout.UC_STOP_REQUEST)
        self.regs = UnicornRegisters(self._env)
        self._breakpoints = Breakpoints(self._cpu, self.regs)
        self._hooks, why = self._choose_hooks(memory, cpuid, native)
        self.capabilities = Capabilities("unicorn", self._hooks.native, why)
        self.grants = self._hooks.grants
        self._reset_state()
        self._template = ctypes.string_at(self._env, layout.STATE_BYTES)
        self._parked: dict[VcpuId, ctypes.Array[ctypes.c_char]] = {}
        self._allowed: dict[VcpuId, _Allowed] = {}
        self._selected: VcpuId | None = None

    def _open(self, memory: Memory) -> int:
        handle = ctypes.c_void_p()
        library.check(
            self._lib.uc_open(library.ARCH_X86, library.MODE_64, ctypes.byref(handle)), "uc_open"
        )
        address = handle.value or 0
        library.ctl_write(address, library.CTL_CPU_MODEL, library.CPU_HASWELL)
        library.ctl_write(address, library.CTL_TCG_BUFFER_SIZE, TRANSLATION_BUFFER_BYTES)
        # An empty set of exits: otherwise code at the address `until` would end the run.
        library.ctl_write(address, library.CTL_USE_EXITS, 1)
        library.check(
            self._lib.uc_mem_map_ptr(
                address, 0, memory.total_pages << PAGE_SHIFT, library.PROT_ALL, memory.address
            ),
            "mapping the domain's memory",
        )
        return address

    def _choose_hooks(
        self, memory: Memory, cpuid: CpuidPolicy, native: bool | None
    ) -> tuple[Hooks, str]:
        arguments = (self._handle, self._env, self.regs, self._stubs, cpuid)
        if native is False:
            why = "switched off"
        elif native is None and os.environ.get("PYXEN_NATIVE") == "0":
            why = "switched off by PYXEN_NATIVE=0"
        else:
            try:
                hooks = NativeHooks(memory, self._cpu, *arguments)
            except NotBuilt as missing:
                why = str(missing)
            else:
                return hooks, f"native hot path, {hooks.exit_check}"
        return PythonHooks(*arguments), why

    def _reset_state(self) -> None:
        """Long mode, paging on, guest kernel mode: what every vCPU starts from."""
        for register, value in (
            (library.REG_CR4, CR4_GUEST),
            (library.REG_CR0, CR0_GUEST),
        ):
            library.reg_write(self._handle, register, ctypes.byref(ctypes.c_uint64(value)))
        regs = self.regs
        regs.words[:16] = memoryview(bytes(128)).cast("Q")
        regs.words[_RIP] = 0
        regs.words[layout.CR2 >> 3] = 0
        regs.words[layout.EFER >> 3] = EFER_GUEST
        regs.rflags = 0
        for segment in (layout.ES, layout.DS, layout.FS, layout.GS):
            regs.set_segment(segment, 0, 0, 0, 0)
        regs.enter_kernel_mode()
        regs.signed[layout.OLD_EXCEPTION >> 2] = -1
        regs.words[(layout.DR >> 3) + snapshot.DR_GUEST_STATUS] = DR6_RESET
        snapshot.load_fpu(regs, snapshot.initial_fpu())

    # --- vCPUs ------------------------------------------------------------------------------

    def add_vcpu(self, vcpu_id: VcpuId) -> None:
        if vcpu_id in self._parked:
            raise ValueError(f"vCPU {vcpu_id} exists")
        parked = ctypes.create_string_buffer(self._template, layout.STATE_BYTES)
        regs = UnicornRegisters(ctypes.addressof(parked))
        for register, base, limit in (
            (layout.GDTR, gdt_vaddr(vcpu_id), _GDT_LIMIT),
            (layout.LDTR, gdt_vaddr(vcpu_id) + LDT_OFFSET, 0),
        ):
            regs.words[(register + layout.SEGMENT_BASE) >> 3] = base
            regs.dwords[(register + layout.SEGMENT_LIMIT) >> 2] = limit
        self._parked[vcpu_id] = parked
        self._allowed[vcpu_id] = _Allowed()
        if self._selected is None:
            self.select(vcpu_id)

    def select(self, vcpu_id: VcpuId) -> None:
        going = self._selected
        if vcpu_id == going:
            return
        coming = self._parked[vcpu_id]
        if going is not None:
            ctypes.memmove(self._parked[going], self._env, layout.STATE_BYTES)
        ctypes.memmove(self._env, coming, layout.STATE_BYTES)
        self._selected = vcpu_id
        self._hooks.select(vcpu_id)
        self._apply(self._allowed[vcpu_id])
        if going is None or not self._hooks.change_tlb(going, vcpu_id):
            self._lib.tlb_flush_x86_64(self._cpu)
        self._breakpoints.update()

    def share(self, domain: PvDomain, vcpu_id: VcpuId, state: PvState) -> None:
        self._hooks.share(domain, vcpu_id, state)
        if vcpu_id == self._selected:
            self._hooks.select(vcpu_id)

    # --- running ----------------------------------------------------------------------------

    def run(self) -> Exit:
        self._stubs.kicked.value = 0
        self._stubs.pauses_left.value = PAUSES_OF_A_SPIN
        while True:
            error = self._hooks.run()
            exited = self._hooks.take()
            if not self.regs.dwords[layout.HFLAGS >> 2] & layout.HF_CPL:
                # Native code refuses it before; see CAVEATS.md.
                return EngineFailure("a null SS made it privilege level 0")
            why = self._breakpoints.resolve(exited)
            if why is not None:
                return why
            if exited is None or self._stubs.kicked.value:
                break
        if exited is not None:
            return PREEMPTED
        if error:
            return EngineFailure(library.strerror(error))
        if self._stop_request.value:
            return PREEMPTED if self._stubs.kicked.value else SPINNING
        return EngineFailure("the translator stopped without a reason")

    def kick(self) -> None:
        # Never uc_emu_stop from another thread: see stubs.py.
        if self._handle:
            self._stubs.kicked.value = 1
            self._lib.cpu_exit(self._cpu)

    # --- state of the selected vCPU ---------------------------------------------------------

    @property
    def user_mode(self) -> bool:
        return self.regs.user_mode

    def enter_kernel_mode(self) -> None:
        self.regs.enter_kernel_mode()

    @property
    def long_mode(self) -> bool:
        return self.regs.long_mode

    @property
    def code_base(self) -> int:
        return self.regs.code_base

    def enter_user_mode(
        self,
        cs: int,
        ss: int,
        *,
        long_mode: bool = True,
        code: SegmentCache | None = None,
        stack: SegmentCache | None = None,
    ) -> None:
        self.regs.enter_user_mode(cs, ss, long_mode=long_mode, code=code, stack=stack)

    def set_cr3(self, maddr: int) -> None:
        self.regs.words[layout.CR3 >> 3] = maddr
        self._lib.tlb_flush_x86_64(self._cpu)

    def set_task_switched(self, on: bool) -> None:
        self.regs.set_task_switched(on)

    def set_gdt_limit(self, limit: int) -> None:
        self.regs.dwords[(layout.GDTR + layout.SEGMENT_LIMIT) >> 2] = limit

    def set_ldt_limit(self, limit: int) -> None:
        self.regs.dwords[(layout.LDTR + layout.SEGMENT_LIMIT) >> 2] = limit

    def set_debug_register(self, index: int, value: int) -> None:
        self.regs.words[(layout.DR >> 3) + snapshot.DR_SLOTS[index]] = value
        self._breakpoints.update()

    def debug_register(self, index: int) -> int:
        return self.regs.words[(layout.DR >> 3) + snapshot.DR_SLOTS[index]]

    # --- what the guest may do --------------------------------------------------------------

    def set_port_access(self, *, kernel: bool, user: bool) -> None:
        allowed = self._selected_allowed()
        allowed.kernel_ports, allowed.user_ports = kernel, user
        self._apply(allowed)

    def set_cpuid_faulting(self, on: bool) -> None:
        allowed = self._selected_allowed()
        allowed.user_cpuid = not on
        self._apply(allowed)

    def _selected_allowed(self) -> _Allowed:
        if self._selected is None:
            raise RuntimeError("no vCPU was added")
        return self._allowed[self._selected]

    def _apply(self, allowed: _Allowed) -> None:
        self._stubs.allow(
            kernel_ports=allowed.kernel_ports,
            user_ports=allowed.user_ports,
            user_cpuid=allowed.user_cpuid,
        )

    def set_tsc_disabled(self, on: bool) -> None:
        cr4 = self.regs.words[layout.CR4 >> 3] & ~layout.CR4_TSD
        self.regs.words[layout.CR4 >> 3] = cr4 | (layout.CR4_TSD if on else 0)

    @property
    def tsc_aux(self) -> int:
        return self.regs.dwords[layout.TSC_AUX >> 2]

    def set_tsc_aux(self, value: int) -> None:
        self.regs.words[layout.TSC_AUX >> 3] = value

    # --- translations -----------------------------------------------------------------------

    def flush_tlb(self, *, everywhere: bool = True) -> None:
        self._lib.tlb_flush_x86_64(self._cpu)
        if everywhere:
            self._hooks.flushed_everywhere()

    def flush_page(self, vaddr: int, *, everywhere: bool = True) -> None:
        self._lib.tlb_flush_page_x86_64(self._cpu, vaddr)
        if everywhere:
            self._hooks.flushed_everywhere()

    @property
    def code_pages(self) -> memoryview | None:
        return self._hooks.code_pages

    def code_changed(self, maddr: int, length_bytes: int) -> None:
        end = min(maddr + length_bytes, self._memory_bytes)
        if 0 <= maddr < end:
            self._lib.tb_invalidate_phys_range_x86_64(self._handle, maddr, end)

    # --- everything else --------------------------------------------------------------------

    def read_tsc(self) -> int:
        return int(self._stubs.read_tsc())

    def save(self, vcpu_id: VcpuId) -> CpuState:
        return snapshot.save(self._registers_of(vcpu_id))

    def load(self, vcpu_id: VcpuId, state: CpuState) -> None:
        snapshot.load(self._registers_of(vcpu_id), state)
        self.flush_tlb()
        if vcpu_id == self._selected:
            self._breakpoints.update()

    def close(self) -> None:
        handle, self._handle = self._handle, 0
        if handle:
            self._lib.uc_close(handle)
            self._hooks.close()

    def _registers_of(self, vcpu_id: VcpuId) -> UnicornRegisters:
        if vcpu_id == self._selected:
            return self.regs
        return UnicornRegisters(ctypes.addressof(self._parked[vcpu_id]))
