"""What a hypercall that changes one page-table entry costs: a guest of a few instructions.

The guest is one address space of 2 MiB and a loop in its kernel mode; no Linux, so that nothing
else is in the number: the trap, the checks with all page types kept, and the way back.
"""

from __future__ import annotations

import struct
import time
from uuid import UUID

from pyxen.cpu.base import CpuidLeaf, Trap
from pyxen.cpu.unicorn.engine import UnicornEngine
from pyxen.hypervisor.clock import HostClock
from pyxen.hypervisor.domain import Domain, DomainSpec
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.runloop import RunLoop
from pyxen.hypervisor.time import SystemTime
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import PTE_PRESENT, PTE_RW, PTE_USER
from pyxen.types import DomId, VcpuId

PAGES = 512
BASE = 0xFFFF_8880_0000_0000
L4, L3, L2, L1, CODE, DATA, TARGET = (XEN_PAGES + n for n in range(7))
_TABLE = PTE_PRESENT | PTE_RW | PTE_USER
_MMU_UPDATE, _DOMID_SELF, _UD = 1, 0x7FF0, 6
# 1: mov eax, 1; mov rdi, r12; mov esi, 1; xor edx, edx; mov r10d, 0x7ff0; syscall
#    xor qword [r12+8], 2 (writable, read-only, ...); dec r13; jnz 1b; ud2
_LOOP = bytes.fromhex(
    "b8 01 00 00 00 4c 89 e7 be 01 00 00 00 31 d2 41 ba f0 7f 00 00 0f 05"
    "49 83 74 24 08 02 49 ff cd 75 de 0f 0b"
)


class _World:
    attention = closing = False

    def arm(self, deadline_ns: int | None) -> None: ...
    def poll(self) -> None: ...
    def wait(self, deadline_ns: int | None) -> None: ...


def _no_cpuid(leaf: int, subleaf: int) -> CpuidLeaf:
    return CpuidLeaf()


def _build(memory: MachineMemory) -> None:
    for table, child in ((L4, L3), (L3, L2), (L2, L1)):
        slot = BASE >> 39 & 511 if table == L4 else 0
        memory.words[(table << 9) + slot] = child << 12 | _TABLE
    for pfn in range(PAGES):
        flags = PTE_PRESENT | (PTE_RW if pfn > L1 - XEN_PAGES else 0)
        memory.words[(L1 << 9) + pfn] = (XEN_PAGES + pfn) << 12 | flags
    memory.write(CODE << 12, _LOOP)
    entry = (L1 << 12) + 8 * 100
    memory.write(DATA << 12, struct.pack("<QQ", entry, TARGET << 12 | PTE_PRESENT | PTE_USER))


def mmu_update_us(*, native: bool, count: int) -> float:
    """Microseconds for mmu_update of one present entry, which changes its rights each time."""
    memory = MachineMemory(PAGES)
    layout.install(memory)
    engine = UnicornEngine(memory, _no_cpuid, native=native)
    clock = HostClock(engine.read_tsc)
    spec = DomainSpec(DomId(1), UUID(int=1), "bench", PAGES, PAGES, 1)
    domain = Domain(spec, memory, engine, SystemTime(clock))
    try:
        memory.on_write = engine.code_changed
        _build(memory)
        vcpu = domain.vcpus[VcpuId(0)]
        vcpu.up = vcpu.initialised = True
        domain.select(vcpu)
        continuation.begin(domain)
        domain.types.pin(L4, FrameType.L4)
        domain.set_base_pointer(vcpu, L4)
        loop = RunLoop(domain, _World(), _no_cpuid)
        regs = engine.regs
        regs.rip = BASE + ((CODE - XEN_PAGES) << 12)
        regs.r12, regs.r13 = BASE + ((DATA - XEN_PAGES) << 12), count
        begin = time.monotonic()
        while not isinstance(reason := engine.run(), Trap) or reason.vector != _UD:
            loop.handle(vcpu, reason)
        took = time.monotonic() - begin
        if regs.r13 or regs.rax:
            raise RuntimeError(f"mmu_update gave {regs.rax:#x}")
        return took / count * 1e6
    finally:
        engine.close()
        memory.on_write = None
