"""What every CPU engine offers: run until something happens, and say what it was.

An engine runs one domain. It holds the state of all of the domain's vCPUs; one of them is
selected at a time, and `regs` is the live state of that one. `run` returns data (an Exit); what
it means is decided by the run loop in pyxen.hypervisor. Nothing here knows of CPL 1 or Unicorn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from pyxen.cpu.pvstate import PvDomain, PvGrants, PvState
from pyxen.types import VcpuId


@dataclass(frozen=True, slots=True)
class Hypercall:
    """`syscall` in guest kernel mode. RIP is behind the instruction; the number is in RAX."""


@dataclass(frozen=True, slots=True)
class GuestSyscall:
    """`syscall` in guest user mode. RIP is behind the instruction; RCX and R11 are untouched."""


@dataclass(frozen=True, slots=True)
class GuestSysenter:
    """`sysenter`, in either mode. RIP is behind the instruction, nothing else was changed."""


@dataclass(frozen=True, slots=True)
class Trap:
    """A processor exception, or `int n`.

    vector: 0..255. error_code: the hardware error code, 0 where the vector has none.
    fault_address: CR2 for vector 14, else 0. software: `int n`, `int3`: RIP is behind the
    instruction; for every other trap RIP is that of the instruction that faulted. For vector 1
    the engine has added the cause to DR6; RIP is where execution would go on.
    """

    vector: int
    error_code: int = 0
    fault_address: int = 0
    software: bool = False


@dataclass(frozen=True, slots=True)
class Preempted:
    """Somebody called `kick`; the state is at an instruction boundary."""


@dataclass(frozen=True, slots=True)
class Spinning:
    """The guest executed PAUSE again and again; the state is at an instruction boundary.

    An engine need not notice.
    """


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """The engine cannot go on with this guest (for instance a fetch from unmapped memory)."""

    reason: str


Exit: TypeAlias = (
    Hypercall | GuestSyscall | GuestSysenter | Trap | Preempted | Spinning | EngineFailure
)

HYPERCALL: Final = Hypercall()
GUEST_SYSCALL: Final = GuestSyscall()
GUEST_SYSENTER: Final = GuestSysenter()
PREEMPTED: Final = Preempted()
SPINNING: Final = Spinning()


@dataclass(frozen=True, slots=True)
class CpuidLeaf:
    """The four registers that CPUID returns, each 32 bits."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


CpuidPolicy: TypeAlias = Callable[[int, int], CpuidLeaf]
"""(leaf, subleaf) -> registers. Pure: an engine may cache what it returned."""


class SegmentCache(NamedTuple):
    """The hidden part of a segment register; attributes are bits 8-15 and 20-23 of a descriptor's
    second word, in their places."""

    base: int
    limit: int
    """In bytes, the last valid one."""
    attributes: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, for `pyxen doctor` and the run loop."""

    name: str
    native: bool
    detail: str


class Registers(ABC):
    """Live registers of the selected vCPU. Integers are unsigned, of the register's width."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rbp: int
    rsp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int
    """Always as the guest's own code left it; IF is always set in the engine."""
    fs_base: int
    gs_base: int
    cr2: int

    @abstractmethod
    def gpr(self, index: int) -> int:
        """General register by its number in machine code (0 = RAX, 1 = RCX, … 15 = R15)."""

    @abstractmethod
    def set_gpr(self, index: int, value: int) -> None:
        """Write a general register by its number in machine code."""

    @abstractmethod
    def selector(self, segment: int) -> int:
        """Selector as the guest may see it; 0 ES, 1 CS, 2 SS, 3 DS, 4 FS, 5 GS."""

    @abstractmethod
    def set_segment(
        self, segment: int, selector: int, base: int, limit: int, attributes: int
    ) -> None:
        """Load a data segment register (not CS, not SS) with its hidden part."""


@dataclass(slots=True)
class CpuState:
    """The whole guest-visible state of one vCPU, independent of the engine.

    Taken out and put back at run-loop boundaries: save, migration, clones and engine switches rest
    on it. Segments: index as in `Registers.selector`; each is (selector, base, limit, attributes),
    the attributes as in a descriptor's second word (bits 8-23). `fxsave` is the 512-byte area.
    """

    gprs: list[int]
    rip: int
    rflags: int
    user_mode: bool
    segments: list[tuple[int, int, int, int]]
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    dr: list[int]
    msrs: dict[int, int]
    fxsave: bytes


class GrantPath(ABC):
    """Native uses of grants by domain 0, on the words that PvGrants names.

    Both go through `refs`, an array of type I, from the element `done` to the first that is not a
    plain case, for which nothing was changed. They return its index, or the length of the array.
    """

    @abstractmethod
    def begin(self, grants: PvGrants, refs: array[int], done: int, *, write: bool) -> int:
        """Begin to use whole pages: references become mfns."""

    @abstractmethod
    def end(self, grants: PvGrants, refs: array[int], done: int, *, write: bool) -> int:
        """End uses that began."""


class Engine(ABC):
    """Executes one domain's vCPUs."""

    regs: Registers
    capabilities: Capabilities
    grants: GrantPath | None = None
    """None: there is no native path."""

    @abstractmethod
    def add_vcpu(self, vcpu_id: VcpuId) -> None:
        """Make a vCPU in its reset state: 64-bit mode, guest kernel mode, flat segments."""

    @abstractmethod
    def select(self, vcpu_id: VcpuId) -> None:
        """Make `regs` and every other call speak of this vCPU. Cheap if it is selected already."""

    def share(self, domain: PvDomain, vcpu_id: VcpuId, state: PvState) -> None:
        """Tell an engine with a native hot path the words that it shares with the hypervisor.

        Once for each vCPU, before it runs. Other engines ignore it.
        """
        del domain, vcpu_id, state

    @abstractmethod
    def run(self) -> Exit:
        """Execute the selected vCPU until something happens."""

    @abstractmethod
    def kick(self) -> None:
        """Make `run` return Preempted soon. From any thread; lost if `run` is not under way."""

    @property
    @abstractmethod
    def user_mode(self) -> bool:
        """Whether the selected vCPU is in guest user mode."""

    @property
    @abstractmethod
    def long_mode(self) -> bool:
        """Whether the selected vCPU executes 64-bit code."""

    @property
    @abstractmethod
    def code_base(self) -> int:
        """What is added to RIP to fetch an instruction: not 0 in some 16- and 32-bit code only."""

    @abstractmethod
    def enter_kernel_mode(self) -> None:
        """Guest kernel mode with flat 64-bit CS and SS. Bases of FS and GS are not touched."""

    @abstractmethod
    def enter_user_mode(
        self,
        cs: int,
        ss: int,
        *,
        long_mode: bool = True,
        code: SegmentCache | None = None,
        stack: SegmentCache | None = None,
    ) -> None:
        """Guest user mode with these selectors. The other segment registers are not touched.

        code, stack: what the selectors name, at privilege level 3; flat segments by default, and
        then `long_mode` says whether the code is 64-bit or 32-bit.
        """

    @abstractmethod
    def set_cr3(self, maddr: int) -> None:
        """Use the top-level page table at this machine address; the vCPU's translations go."""

    @abstractmethod
    def set_task_switched(self, on: bool) -> None:
        """CR0.TS: whether the next FPU or SSE instruction raises #NM."""

    @abstractmethod
    def set_gdt_limit(self, limit: int) -> None:
        """Last valid byte of the GDT window."""

    @abstractmethod
    def set_ldt_limit(self, limit: int) -> None:
        """Last valid byte of the LDT window; 0: no selector of it is valid."""

    @abstractmethod
    def set_debug_register(self, index: int, value: int) -> None:
        """DR0-DR3, DR6, DR7. Breakpoints on code and data that DR7 enables are Trap(1)s."""

    @abstractmethod
    def debug_register(self, index: int) -> int:
        """DR0-DR3, DR6, DR7."""

    @abstractmethod
    def set_port_access(self, *, kernel: bool, user: bool) -> None:
        """Where IN and OUT find no device, rather than being #GP(0); not at all at first."""

    @abstractmethod
    def set_tsc_disabled(self, on: bool) -> None:
        """CR4.TSD: RDTSC and RDTSCP are #GP(0), in both modes."""

    @abstractmethod
    def set_cpuid_faulting(self, on: bool) -> None:
        """CPUID in user mode is #GP(0)."""

    @property
    @abstractmethod
    def tsc_aux(self) -> int:
        """What RDTSCP gives in ECX."""

    @abstractmethod
    def set_tsc_aux(self, value: int) -> None:
        """What RDTSCP gives in ECX: 32 bits."""

    @abstractmethod
    def flush_tlb(self, *, everywhere: bool = True) -> None:
        """Forget all cached translations of guest virtual addresses.

        everywhere: those of all vCPUs; else at least those of the selected one.
        """

    @abstractmethod
    def flush_page(self, vaddr: int, *, everywhere: bool = True) -> None:
        """Forget the cached translation of one page; `everywhere` as in flush_tlb."""

    @property
    def code_pages(self) -> memoryview | None:
        """A byte for each machine page: 0 if no code was translated from it. None: not known."""
        return None

    @abstractmethod
    def code_changed(self, maddr: int, length_bytes: int) -> None:
        """Guest memory was written from outside: translated code there is stale."""

    @abstractmethod
    def read_tsc(self) -> int:
        """The time stamp counter that RDTSC shows the guest now."""

    @abstractmethod
    def save(self, vcpu_id: VcpuId) -> CpuState:
        """A copy of the vCPU's whole state."""

    @abstractmethod
    def load(self, vcpu_id: VcpuId, state: CpuState) -> None:
        """Replace the vCPU's whole state."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds; it cannot be used afterwards."""
