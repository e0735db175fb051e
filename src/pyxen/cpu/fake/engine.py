"""FakeEngine: no guest code, but a script of exits; everything it was told can be read back.

    engine = FakeEngine()
    engine.script += [HYPERCALL, lambda: Trap(14, 2, 0x1000)]

`run` takes the next item: an Exit is returned, a callable is called (it may change `regs`) and its
Exit is returned. At the end of the script `run` returns EngineFailure("end of script").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from pyxen.cpu.base import (
    Capabilities,
    CpuState,
    Engine,
    EngineFailure,
    Exit,
    Registers,
    SegmentCache,
)
from pyxen.types import U64, VcpuId

ScriptItem: TypeAlias = Exit | Callable[[], Exit]

_NAMES = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
_SEGMENTS = 6


class FakeRegisters(Registers):
    """Plain attributes."""

    def __init__(self) -> None:
        for name in (*_NAMES, "rip", "fs_base", "gs_base", "cr2"):
            setattr(self, name, 0)
        self.rflags = 0x202
        self.selectors = [0, 0xE030, 0xE02B, 0, 0, 0]

    def gpr(self, index: int) -> int:
        value: int = getattr(self, _NAMES[index & 15])
        return value

    def set_gpr(self, index: int, value: int) -> None:
        setattr(self, _NAMES[index & 15], value & U64)

    def selector(self, segment: int) -> int:
        return self.selectors[segment]

    def set_segment(
        self, segment: int, selector: int, base: int, limit: int, attributes: int
    ) -> None:
        self.selectors[segment] = selector
        if segment == 4:
            self.fs_base = base
        elif segment == 5:
            self.gs_base = base


class _Vcpu:
    """What the engine was told about one vCPU."""

    def __init__(self) -> None:
        self.regs = FakeRegisters()
        self.user_mode = False
        self.long_mode = True
        self.code: SegmentCache | None = None
        self.stack: SegmentCache | None = None
        self.cr3 = 0
        self.task_switched = False
        self.gdt_limit = 0xEFFF
        self.ldt_limit = 0
        self.debug_registers = [0] * 8
        self.port_access = (False, False)
        self.tsc_disabled = False
        self.cpuid_faulting = False
        self.tsc_aux = 0
        self.fxsave = bytes(512)


class FakeEngine(Engine):
    """An engine whose guest is a list."""

    regs: FakeRegisters

    def __init__(self) -> None:
        self.capabilities = Capabilities("fake", False, "scripted")
        self.script: deque[ScriptItem] = deque()
        self.tsc = 0
        self.kicked = False
        self.closed = False
        self.flushes: list[int | None] = []
        """One item a flush: the page's address, or None for everything."""
        self.flushes_everywhere = 0
        """How many of them were for all vCPUs."""
        self.code_changes: list[tuple[int, int]] = []
        self.vcpus: dict[VcpuId, _Vcpu] = {}
        self.selected: VcpuId | None = None

    @property
    def vcpu(self) -> _Vcpu:
        """The selected vCPU."""
        if self.selected is None:
            raise RuntimeError("no vCPU was added")
        return self.vcpus[self.selected]

    def add_vcpu(self, vcpu_id: VcpuId) -> None:
        if vcpu_id in self.vcpus:
            raise ValueError(f"vCPU {vcpu_id} exists")
        self.vcpus[vcpu_id] = _Vcpu()
        if self.selected is None:
            self.select(vcpu_id)

    def select(self, vcpu_id: VcpuId) -> None:
        self.regs = self.vcpus[vcpu_id].regs
        self.selected = vcpu_id

    def run(self) -> Exit:
        self.kicked = False
        if not self.script:
            return EngineFailure("end of script")
        item = self.script.popleft()
        return item() if callable(item) else item

    def kick(self) -> None:
        self.kicked = True

    @property
    def user_mode(self) -> bool:
        return self.vcpu.user_mode

    @property
    def long_mode(self) -> bool:
        return self.vcpu.long_mode

    @property
    def code_base(self) -> int:
        return self.vcpu.code.base if self.vcpu.code and not self.vcpu.long_mode else 0

    def enter_kernel_mode(self) -> None:
        self.vcpu.user_mode = False
        self.vcpu.long_mode = True
        self.vcpu.code = self.vcpu.stack = None
        self.regs.selectors[1:3] = [0xE030, 0xE02B]

    def enter_user_mode(
        self,
        cs: int,
        ss: int,
        *,
        long_mode: bool = True,
        code: SegmentCache | None = None,
        stack: SegmentCache | None = None,
    ) -> None:
        self.vcpu.user_mode = True
        self.vcpu.long_mode = bool(code.attributes & 1 << 21) if code else long_mode
        self.vcpu.code, self.vcpu.stack = code, stack
        self.regs.selectors[1:3] = [cs | 3, ss | 3]

    def set_cr3(self, maddr: int) -> None:
        self.vcpu.cr3 = maddr
        self.flushes.append(None)

    def set_task_switched(self, on: bool) -> None:
        self.vcpu.task_switched = on

    def set_gdt_limit(self, limit: int) -> None:
        self.vcpu.gdt_limit = limit

    def set_ldt_limit(self, limit: int) -> None:
        self.vcpu.ldt_limit = limit

    def set_debug_register(self, index: int, value: int) -> None:
        self.vcpu.debug_registers[index] = value

    def debug_register(self, index: int) -> int:
        return self.vcpu.debug_registers[index]

    def set_port_access(self, *, kernel: bool, user: bool) -> None:
        self.vcpu.port_access = kernel, user

    def set_tsc_disabled(self, on: bool) -> None:
        self.vcpu.tsc_disabled = on

    def set_cpuid_faulting(self, on: bool) -> None:
        self.vcpu.cpuid_faulting = on

    @property
    def tsc_aux(self) -> int:
        return self.vcpu.tsc_aux

    def set_tsc_aux(self, value: int) -> None:
        self.vcpu.tsc_aux = value

    def flush_tlb(self, *, everywhere: bool = True) -> None:
        self.flushes.append(None)
        self.flushes_everywhere += everywhere

    def flush_page(self, vaddr: int, *, everywhere: bool = True) -> None:
        self.flushes.append(vaddr)
        self.flushes_everywhere += everywhere

    def code_changed(self, maddr: int, length_bytes: int) -> None:
        self.code_changes.append((maddr, length_bytes))

    def read_tsc(self) -> int:
        return self.tsc

    def save(self, vcpu_id: VcpuId) -> CpuState:
        vcpu = self.vcpus[vcpu_id]
        regs = vcpu.regs
        bases = {4: regs.fs_base, 5: regs.gs_base}
        return CpuState(
            gprs=[regs.gpr(index) for index in range(16)],
            rip=regs.rip,
            rflags=regs.rflags,
            user_mode=vcpu.user_mode,
            segments=[(regs.selector(i), bases.get(i, 0), 0, 0) for i in range(_SEGMENTS)],
            cr0=0x8001_0033 | (8 if vcpu.task_switched else 0),
            cr2=regs.cr2,
            cr3=vcpu.cr3,
            cr4=0,
            dr=list(vcpu.debug_registers),
            msrs={},
            fxsave=vcpu.fxsave,
        )

    def load(self, vcpu_id: VcpuId, state: CpuState) -> None:
        vcpu = self.vcpus[vcpu_id]
        regs = vcpu.regs
        for index, value in enumerate(state.gprs):
            regs.set_gpr(index, value)
        regs.rip, regs.rflags, regs.cr2 = state.rip, state.rflags, state.cr2
        regs.selectors = [segment[0] for segment in state.segments]
        regs.fs_base, regs.gs_base = state.segments[4][1], state.segments[5][1]
        vcpu.user_mode = state.user_mode
        vcpu.task_switched = bool(state.cr0 & 8)
        vcpu.cr3 = state.cr3
        vcpu.debug_registers = list(state.dr)
        vcpu.fxsave = state.fxsave

    def close(self) -> None:
        self.closed = True
