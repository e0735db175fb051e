"""A bare machine: one engine, 8 MiB of memory mapped one to one, and code as bytes.

    vaddr 0 - 0x7fffff   frames XEN_PAGES + (vaddr >> 12), user and kernel may read, write, execute
    frame XEN_PAGES ..   L4, L3, L2, four L1

Every test runs on every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyxen.cpu.base import CpuidLeaf, Exit
from pyxen.cpu.unicorn.engine import UnicornEngine
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import PTE_NX, PTE_PRESENT, PTE_RW, PTE_USER
from pyxen.types import VcpuId

GUEST_PAGES = 2048
L4, L3, L2, L1 = (XEN_PAGES + i for i in range(4))
CODE = 0x100000
DATA = 0x140000
STACK = 0x180000
UPPER_HALF = 0xFFFF_8880_0000_0000
USER_CS, USER_SS = 0xE033, 0xE02B
ENGINES = ("unicorn-python", "unicorn-native")


def demo_cpuid(leaf: int, subleaf: int) -> CpuidLeaf:
    """A policy that shows what it was asked."""
    return CpuidLeaf(eax=leaf ^ 0xFFFF_FFFF, ebx=subleaf, ecx=0x1234, edx=0x8000_0001)


class Bench:
    """One engine with memory."""

    def __init__(self, native: bool) -> None:
        self.native = native
        self.memory = MachineMemory(GUEST_PAGES)
        layout.install(self.memory)
        self.engine = self.new_engine()
        self.memory.on_write = self.engine.code_changed
        self.memory.code_pages = self.engine.code_pages
        self._map_all()
        self.engine.add_vcpu(VcpuId(0))
        self.engine.set_cr3(L4 << 12)
        self.engine.regs.rsp = STACK

    def new_engine(self, cpuid: Callable[[int, int], CpuidLeaf] = demo_cpuid) -> UnicornEngine:
        """Another engine on the same memory; the caller closes it."""
        engine = UnicornEngine(self.memory, cpuid, native=self.native)
        if self.native and not engine.capabilities.native:
            why = engine.capabilities.detail
            engine.close()
            pytest.skip(why)
        return engine

    def _map_all(self) -> None:
        words = self.memory.words
        table = PTE_PRESENT | PTE_RW | PTE_USER
        words[L4 << 9] = L3 << 12 | table
        words[L3 << 9] = L2 << 12 | table
        for i in range(GUEST_PAGES >> 9):
            words[(L2 << 9) + i] = (L1 + i) << 12 | table
        for pfn in range(GUEST_PAGES):
            self.set_pte(pfn << 12, (XEN_PAGES + pfn) << 12 | table)
        layout.set_xen_slots(self.memory, L4)

    def set_upper_half(self) -> None:
        """Map everything once more, for the kernel only, from UPPER_HALF on."""
        top = self.memory.words[L4 << 9]
        self.memory.words[(L4 << 9) + (UPPER_HALF >> 39 & 511)] = top & ~PTE_USER
        self.engine.flush_tlb()

    def set_pte(self, vaddr: int, entry: int) -> None:
        """Write the entry that maps a page. The caller flushes."""
        self.memory.words[(L1 << 9) + (vaddr >> 12)] = entry

    def frame(self, vaddr: int) -> int:
        """The frame behind a page at the start."""
        return XEN_PAGES + (vaddr >> 12)

    def protect(
        self, vaddr: int, *, write: bool = True, user: bool = True, nx: bool = False
    ) -> None:
        """Map a page with these rights, and flush."""
        entry = self.frame(vaddr) << 12 | PTE_PRESENT
        entry |= (PTE_RW if write else 0) | (PTE_USER if user else 0) | (PTE_NX if nx else 0)
        self.set_pte(vaddr, entry)
        self.engine.flush_page(vaddr)

    def unmap(self, vaddr: int) -> None:
        """Take a page away, and flush."""
        self.set_pte(vaddr, 0)
        self.engine.flush_page(vaddr)

    def maddr(self, vaddr: int) -> int:
        """Machine address behind a virtual address at the start."""
        return (XEN_PAGES << 12) + vaddr

    def put(self, vaddr: int, code: str | bytes) -> None:
        """Write bytes (or their hex) to guest memory."""
        data = bytes.fromhex(code) if isinstance(code, str) else code
        self.memory.write(self.maddr(vaddr), data)

    def word(self, vaddr: int) -> int:
        """A u64 of guest memory."""
        return self.memory.read_u64(self.maddr(vaddr))

    def run(self, code: str, *, user: bool = False, at: int = CODE) -> Exit:
        """Run code from its start in one of the modes until the first exit."""
        self.put(at, code)
        if user:
            self.engine.enter_user_mode(USER_CS, USER_SS)
        else:
            self.engine.enter_kernel_mode()
        self.engine.regs.rip = at
        return self.engine.run()

    def close(self) -> None:
        """Give everything back."""
        self.engine.close()
        self.memory.on_write = None
        self.memory.close()


@pytest.fixture(params=ENGINES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    machine = Bench(native=request.param == "unicorn-native")
    yield machine
    machine.close()


@pytest.fixture(params=(False, True), ids=("kernel", "user"))
def user(request: pytest.FixtureRequest) -> bool:
    mode: bool = request.param
    return mode
