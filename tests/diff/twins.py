"""Two domains that differ in nothing but the engine's path, and a comparison of all that they are.

kernel half: KERNEL + (pfn << 12) maps every frame of the guest, without the user bit
user half:   USER + (n << 12) maps a few pages with the user bit
tables:      pfn 0-15, of which the first L1 covers themselves and is what the guest writes

pfn 16 kernel code  17 user code  18-19 kernel stack  20-27 data  32-47 spare tables
pfn 64-127 pages that page-table entries may name
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from pyxen.cpu.base import CpuidLeaf, Exit, Trap
from pyxen.cpu.unicorn.engine import UnicornEngine
from pyxen.errors import DomainCrash, XenError
from pyxen.hypervisor import trap
from pyxen.hypervisor.domain import Domain, DomainSpec
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.runloop import RunLoop
from pyxen.hypervisor.time import SystemTime
from pyxen.memory import layout
from pyxen.memory.frames import RECORD_BYTES, FrameType
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, PTE_RW, PTE_USER
from pyxen.types import DomId, VcpuId

GUEST_PAGES = 512
KERNEL = 0xFFFF_8880_0000_0000
USER = 0x40_0000
L4, KERNEL_L3, KERNEL_L2, KERNEL_L1, USER_L3, USER_L2, USER_L1 = range(7)
TABLES = 16
KERNEL_CODE, USER_CODE, STACK, DATA, SPARE_TABLES, NAMED = 16, 17, 18, 20, 32, 64
STACK_TOP = KERNEL + ((STACK + 2) << 12)
UD2 = b"\x0f\x0b"
CALLBACKS = KERNEL + (KERNEL_CODE << 12) + 0x800
"""UD2 every 16 bytes: entry n of the guest is at CALLBACKS + 16 * n."""
EVENT_ENTRY, SYSCALL_ENTRY, FAULT_ENTRY, GP_ENTRY = range(4)
USER_CS, USER_SS = 0xE033, 0xE02B
_XEN_FRAMES_USED = 0x300
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_TABLE = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY
_PAGE = PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY


class StoppedClock:
    """Time does not pass."""

    def monotonic_ns(self) -> int:
        return 1_000_000_000

    def realtime_ns(self) -> int:
        return 1_700_000_000_000_000_000

    def tsc(self) -> int:
        return 1 << 40


class NoWorld:
    """Nothing happens outside."""

    attention = False
    closing = False

    def arm(self, deadline_ns: int | None) -> None: ...
    def poll(self) -> None: ...
    def wait(self, deadline_ns: int | None) -> None: ...


def kernel(pfn: int, offset: int = 0) -> int:
    """Kernel address of a page."""
    return KERNEL + (pfn << 12) + offset


def mfn(pfn: int) -> int:
    """Machine frame of a page."""
    return XEN_PAGES + pfn


def no_cpuid(leaf: int, subleaf: int) -> CpuidLeaf:
    return CpuidLeaf(leaf, subleaf)


class Twin:
    """One domain."""

    def __init__(self, native: bool) -> None:
        self.memory = MachineMemory(GUEST_PAGES)
        layout.install(self.memory)
        self.engine = UnicornEngine(self.memory, no_cpuid, native=native)
        spec = DomainSpec(DomId(1), UUID(int=1), "twin", GUEST_PAGES, GUEST_PAGES, 1)
        self.domain = Domain(spec, self.memory, self.engine, SystemTime(StoppedClock()))
        self.vcpu = self.domain.vcpus[VcpuId(0)]
        self.vcpu.up = self.vcpu.initialised = True
        self.loop = RunLoop(self.domain, NoWorld(), no_cpuid)
        self.memory.on_write = self.engine.code_changed
        self._build()

    def _build(self) -> None:
        for at, child in (
            ((L4, KERNEL >> 39 & 511), KERNEL_L3),
            ((KERNEL_L3, 0), KERNEL_L2),
            ((KERNEL_L2, 0), KERNEL_L1),
            ((L4, 0), USER_L3),
            ((USER_L3, 0), USER_L2),
            ((USER_L2, USER >> 21 & 511), USER_L1),
        ):
            self.set_entry(*at, mfn(child) << 12 | _TABLE)
        for pfn in range(GUEST_PAGES):
            rights = _PAGE & ~PTE_RW if pfn < TABLES or SPARE_TABLES <= pfn < 48 else _PAGE
            self.set_entry(KERNEL_L1, pfn, mfn(pfn) << 12 | rights)
        self.set_entry(USER_L1, 0, mfn(USER_CODE) << 12 | _PAGE | PTE_USER)
        self.set_entry(USER_L1, 1, mfn(DATA) << 12 | _PAGE | PTE_USER)
        self.put(kernel(KERNEL_CODE, 0x800), (UD2 + bytes(14)) * 8)
        pv = self.vcpu.pv
        self.domain.select(self.vcpu)
        self.pin(L4, 4)
        self.domain.set_base_pointer(self.vcpu, mfn(L4))
        self.domain.set_user_base_pointer(self.vcpu, mfn(L4))
        pv.kernel_sp = STACK_TOP
        pv.event_callback = CALLBACKS + 16 * EVENT_ENTRY
        pv.syscall_callback = CALLBACKS + 16 * SYSCALL_ENTRY
        for vector, entry in ((14, FAULT_ENTRY), (13, GP_ENTRY)):
            pv.traps_address[vector] = CALLBACKS + 16 * entry
            pv.traps_flags[vector] = 4
        pv.gs_base_user, pv.gs_base_kernel = 0x1111, 0xFFFF_8880_0000_2222

    def set_entry(self, table: int, index: int, entry: int) -> None:
        """One entry of a table of the guest; one that it may not have is left out."""
        at = (mfn(table) << 12) + 8 * index
        if self.domain.types.level_of(mfn(table)):
            continuation.begin(self.domain)
            with suppress(XenError):
                self.domain.types.update(at, entry)
        else:
            self.memory.write_u64(at, entry)

    def pin(self, table: int, level: int) -> None:
        """Have a table in use."""
        continuation.begin(self.domain)
        self.domain.types.pin(mfn(table), FrameType(level))

    def settle(self) -> None:
        """Let the dying tables be buried: the native path comes further with that in one go."""
        while self.domain.pv.dying:
            continuation.begin(self.domain)
            self.domain.types.settle()

    def put(self, vaddr: int, data: bytes) -> None:
        """Write to the guest's memory by a kernel address."""
        self.memory.write((XEN_PAGES << 12) + vaddr - KERNEL, data)

    def run(self, limit: int = 64) -> str:
        """Run as the run loop does, until UD2 or a crash; says which."""
        d, v = self.domain, self.vcpu
        for _ in range(limit):
            try:
                trap.deliver_events(d, v)
                reason = self.engine.run()
                if _is_the_end(reason):
                    return "end"
                d.space.cr3 = v.pv.cr3
                self.loop.handler(v, reason)
            except DomainCrash as crash:
                return f"crash: {crash}"
        return "does not end"

    def state(self) -> dict[str, object]:
        """Everything that the two may not differ in."""
        d = self.domain
        self.settle()
        frames = self.memory.total_pages * RECORD_BYTES
        return {
            "cpu": self.engine.save(VcpuId(0)),
            "pv": self.vcpu.pv.words.tolist(),
            "frames": bytes(d.frames._map[:frames]),
            "last": d.pv.recent_hypercalls()[-4:],
            "calls": d.pv.calls.tolist(),
            "failures": d.pv.failures.tolist(),
        }

    def page(self, frame: int) -> bytes:
        """A copy of one frame."""
        return bytes(self.memory.page(frame))

    def close(self) -> None:
        self.engine.close()
        self.memory.on_write = None


def _is_the_end(reason: Exit) -> bool:
    return isinstance(reason, Trap) and reason.vector == 6


def different_page(one: Twin, other: Twin) -> int | None:
    """The first frame with another content; what the hypervisor never uses is not looked at."""
    for first, end in ((0, _XEN_FRAMES_USED), (XEN_PAGES, one.memory.total_pages)):
        at, length = first << 12, (end - first) << 12
        if _memcmp(one.memory.address + at, other.memory.address + at, length):
            return next(n for n in range(first, end) if one.page(n) != other.page(n))
    return None


@contextmanager
def twins() -> Iterator[tuple[Twin, Twin]]:
    """(plain, native)."""
    pair = Twin(native=False), Twin(native=True)
    try:
        yield pair
    finally:
        for twin in pair:
            twin.close()
