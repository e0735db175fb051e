"""A PV domain without guest code: memory with page tables, the hypervisor, a scripted engine.

    pfn 0        L4 (pinned)       pfn 1     L3           pfn 2     L2
    pfn 3, 4     L1s               pfn 5     GDT          pfn 16-23 ARGUMENTS
    pfn 32, 33   the kernel's stack, growing down from STACK
    pfn 40 ..    free for tests

All pages are mapped at BASE + (pfn << 12); the tables themselves and the GDT read-only.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from uuid import UUID

from pyxen.abi._struct import XenStruct
from pyxen.abi.xen import DOMID_SELF
from pyxen.cpu.base import HYPERCALL, Exit
from pyxen.cpu.fake import FakeEngine
from pyxen.hypervisor.cpuid import XenCpuid
from pyxen.hypervisor.domain import Domain, DomainSpec
from pyxen.hypervisor.hypercall import continuation, table
from pyxen.hypervisor.runloop import RunLoop
from pyxen.hypervisor.time import SystemTime
from pyxen.hypervisor.vcpu import RunState, Vcpu
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import PTE_PRESENT, PTE_RW, PTE_USER
from pyxen.types import DomId, VcpuId

DOMID = DomId(7)
PAGES = 1024
SPARE_PAGES = 16
BASE = 0xFFFF_8880_0000_0000
L4, L3, L2, L1, GDT = (XEN_PAGES + pfn for pfn in (0, 1, 2, 3, 5))
ARGUMENTS = BASE + 16 * 4096
STACK = BASE + 34 * 4096
FREE_PFN = 40
NOT_MAPPED = BASE + PAGES * 4096
TEXT = BASE + 36 * 4096

NUMBERS = {row.name: row.number for row in table.ROWS}
_READ_ONLY = {0, 1, 2, 3, 4, 5}


class FakeClock:
    """Moves only when it is told to, apart from one nanosecond for each look at it."""

    TSC_HZ = 2_000_000_000

    def __init__(self) -> None:
        self.ns = 1_000_000
        self.wall_ns = 1_700_000_000_123_456_789
        self.look_ns = 1

    def monotonic_ns(self) -> int:
        self.ns += self.look_ns
        return self.ns

    def realtime_ns(self) -> int:
        return self.wall_ns + self.ns

    def tsc(self) -> int:
        return 5_000_000 + self.ns * self.TSC_HZ // 1_000_000_000

    def advance(self, ns: int) -> None:
        self.ns += ns


class FakeWorld:
    """Remembers what the loop asked for; `on_wait` and `on_arm` may change things."""

    def __init__(self) -> None:
        self.attention = False
        self.closing = False
        self.armed: list[int | None] = []
        self.waits: list[int | None] = []
        self.polls = 0

    def arm(self, deadline_ns: int | None) -> None:
        self.armed.append(deadline_ns)

    def poll(self) -> None:
        self.polls += 1
        self.attention = False

    def wait(self, deadline_ns: int | None) -> None:
        self.waits.append(deadline_ns)
        self.closing = True


class PvGuest:
    """The domain with short ways to do what a guest does."""

    def __init__(
        self, max_vcpus: int = 4, max_event_port: int = 0x7FFF_FFFF, **limits: int
    ) -> None:
        """limits: more fields of DomainSpec."""
        self.clock = FakeClock()
        self.memory = MachineMemory(PAGES + SPARE_PAGES)
        layout.install(self.memory)
        self.engine = FakeEngine()
        self.time = SystemTime(self.clock)
        self.clock.look_ns = 1000
        self.time.calibrate()
        self.clock.look_ns = 1
        pages = PAGES, PAGES + SPARE_PAGES
        spec = DomainSpec(
            DOMID, UUID(int=0x1234), "test", *pages, max_vcpus, max_event_port, **limits
        )
        self.domain = Domain(spec, self.memory, self.engine, self.time)
        self.memory.on_write = self.engine.code_changed
        self.world = FakeWorld()
        self.cpuid = XenCpuid()
        self.loop = RunLoop(self.domain, self.world, self.cpuid)
        self.map_all()
        self.vcpu = self.domain.vcpus[VcpuId(0)]
        continuation.begin(self.domain)
        self.domain.types.pin(L4, FrameType.L4)
        self.start(0)
        self.domain.select(self.vcpu)
        self.regs.rsp = STACK
        self.regs.rip = TEXT
        self.engine.flushes.clear()
        self.engine.code_changes.clear()
        self._next_argument = ARGUMENTS

    def map_all(self) -> None:
        words = self.memory.words
        full = PTE_PRESENT | PTE_RW | PTE_USER
        words[(L4 << 9) + (BASE >> 39 & 511)] = L3 << 12 | full
        words[(L3 << 9) + (BASE >> 30 & 511)] = L2 << 12 | full
        for n in range(PAGES // 512):
            words[(L2 << 9) + n] = (L1 + n) << 12 | full
        for pfn in range(PAGES):
            flags = PTE_PRESENT | (0 if pfn in _READ_ONLY else PTE_RW)
            words[self.pte_maddr(pfn) >> 3] = (XEN_PAGES + pfn) << 12 | flags

    def close(self) -> None:
        self.domain.frames.close()
        self.memory.on_write = None
        self.memory.close()

    @property
    def regs(self):  # type: ignore[no-untyped-def]
        return self.engine.regs

    def start(self, vcpu_id: int) -> Vcpu:
        """Make a vCPU runnable without the hypercalls for it."""
        vcpu = self.domain.vcpus[VcpuId(vcpu_id)]
        vcpu.initialised = vcpu.up = True
        continuation.begin(self.domain)
        self.domain.types.get_page_and_type(L4, FrameType.L4)
        vcpu.pv.cr3 = L4 << 12
        vcpu.runstate.enter(RunState.RUNNABLE, self.time.now_ns())
        self.set_mask(0, vcpu)
        return vcpu

    # --- memory -----------------------------------------------------------------------------

    def vaddr(self, pfn: int) -> int:
        return BASE + (pfn << 12)

    def maddr(self, vaddr: int) -> int:
        return (XEN_PAGES << 12) + vaddr - BASE

    def pte_maddr(self, pfn: int) -> int:
        return (L1 << 12) + pfn * 8

    def set_pte(self, pfn: int, flags: int, mfn: int | None = None) -> None:
        """Map a page as update_va_mapping would."""
        frame = XEN_PAGES + pfn if mfn is None else mfn
        self.store_pte(pfn, frame << 12 | flags)

    def store_pte(self, pfn: int, entry: int) -> None:
        continuation.begin(self.domain)
        self.domain.types.modify_l1(self.pte_maddr(pfn), entry)

    def pte(self, pfn: int) -> int:
        return self.memory.read_u64(self.pte_maddr(pfn))

    def protect(self, pfn: int) -> None:
        self.set_pte(pfn, PTE_PRESENT)

    def make_l1(self, pfn: int) -> None:
        """Have a page in use as an L1 table, with the entries it has."""
        self.protect(pfn)
        continuation.begin(self.domain)
        self.domain.types.pin(XEN_PAGES + pfn, FrameType.L1)

    def unmap(self, pfn: int) -> None:
        self.store_pte(pfn, 0)

    def write(self, vaddr: int, data: bytes) -> None:
        self.memory.bytes[self.maddr(vaddr) : self.maddr(vaddr) + len(data)] = data

    def read(self, vaddr: int, length: int) -> bytes:
        return self.memory.read(self.maddr(vaddr), length)

    def words(self, vaddr: int, count: int) -> tuple[int, ...]:
        return Struct(f"<{count}Q").unpack(self.read(vaddr, 8 * count))

    def put(self, *items: XenStruct | bytes | int) -> int:
        """Put an argument structure, bytes or 64-bit words somewhere; its address."""
        data = b"".join(_bytes_of(item) for item in items)
        at = self._next_argument
        self._next_argument += -(-len(data) // 16) * 16
        if self._next_argument > ARGUMENTS + 8 * 4096:
            at, self._next_argument = ARGUMENTS, ARGUMENTS + -(-len(data) // 16) * 16
        self.write(at, data)
        return at

    # --- hypercalls -------------------------------------------------------------------------

    def call(self, name: str, *arguments: int) -> int:
        """One hypercall, executed again as long as it is not finished; the signed result."""
        number = NUMBERS[name]
        rest = tuple(arguments) + (0,) * (5 - len(arguments))
        for _ in range(100_000):
            continuation.begin(self.domain)
            try:
                result = table.call(self.domain, self.vcpu, number, rest)
            except continuation.Continue as left:
                rest = left.arguments + rest[len(left.arguments) :]
                continue
            return result - (1 << 64) if result >> 63 else result
        raise AssertionError("the hypercall does not end")

    def op(self, name: str, command: int, structure: XenStruct) -> tuple[int, XenStruct]:
        """A hypercall (command, pointer); its result, and the structure as it is now."""
        at = self.put(structure)
        result = self.call(name, command, at)
        return result, type(structure).unpack(self.read(at, structure.SIZE))

    def handle(self, reason: Exit) -> None:
        """Let the run loop decide about an exit."""
        self.loop.handle(self.vcpu, reason)

    def hypercall(self, name: str, *arguments: int) -> int:
        """As `call`, through registers and the run loop, one piece only; RAX, signed."""
        regs = self.regs
        regs.rax = NUMBERS[name]
        names = ("rdi", "rsi", "rdx", "r10", "r8")
        for register, value in zip(names, arguments, strict=False):
            setattr(regs, register, value)
        self.handle(HYPERCALL)
        return regs.rax - (1 << 64) if regs.rax >> 63 else regs.rax

    def multicall(self, calls: Iterable[tuple[int, ...]]) -> int:
        """Put a list of (number, arguments …); its address."""
        entries = []
        for number, *arguments in calls:
            entries.append(
                Struct("<8Q").pack(number, 0xAAAA, *arguments, *[0] * (6 - len(arguments)))
            )
        return self.put(b"".join(entries))

    # --- shared pages -----------------------------------------------------------------------

    def set_mask(self, value: int, vcpu: Vcpu | None = None) -> None:
        (vcpu or self.vcpu).upcall_mask = value

    def pending_selectors(self, vcpu: Vcpu | None = None) -> int:
        return self.memory.read_u64((vcpu or self.vcpu).pv.vcpu_info_maddr + 8)

    def clear_pending(self, vcpu: Vcpu | None = None) -> None:
        """What a guest does first in its upcall."""
        at = (vcpu or self.vcpu).pv.vcpu_info_maddr
        self.memory.bytes[at] = 0
        self.memory.write_u64(at + 8, 0)

    def bit(self, offset: int, port: int) -> bool:
        word = self.memory.read_u64(self.domain.shared_info + offset + port // 64 * 8)
        return bool(word >> port % 64 & 1)

    def set_bit(self, offset: int, port: int, value: bool) -> None:
        at = self.domain.shared_info + offset + port // 64 * 8
        word = self.memory.read_u64(at)
        self.memory.write_u64(at, word | 1 << port % 64 if value else word & ~(1 << port % 64))


def _bytes_of(item: XenStruct | bytes | int) -> bytes:
    if isinstance(item, int):
        return item.to_bytes(8, "little")
    return item if isinstance(item, bytes) else item.pack()


SELF = DOMID_SELF
