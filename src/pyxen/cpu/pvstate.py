"""The words of a PV domain that the hypervisor and an engine's native hot path both use.

The hypervisor owns their meaning; an engine that has a hot path is told the addresses and acts
upon them inside its callbacks. Everything is u64 in host memory at fixed addresses, so that C sees
the same words. One PvDomain and one PvGrants a domain, one PvState a vCPU:

    PvDomain.words   [ header | counters | hypercall ring: 64 x (nr, 6 arguments, result)
                     | calls of each hypercall number: 64 | how many of them failed: 64   ]
    PvState.words    [ words  | 256 trap addresses | 256 trap flags                       ]
    PvGrants.words   [ words ]

The order of the Word declarations below is the order in memory and that of native/pvstate.h.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final, overload

from pyxen.types import U64

TRAPS: Final = 256
RING_SLOTS: Final = 64
RING_SLOT_WORDS: Final = 8
NUMBERS: Final = 64
"""Hypercall numbers that are counted one by one; the last counter is that of all others."""
MAX_ERRNO: Final = 4095
_HEADER_WORDS: Final = 64
_CALLS: Final = _HEADER_WORDS + RING_SLOTS * RING_SLOT_WORDS
_FAILURES: Final = _CALLS + NUMBERS


class Word:
    """A u64 attribute that lives in `words` of its owner."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __set_name__(self, owner: type, name: str) -> None:
        self.__doc__ = f"Word {self.index} of {owner.__name__}."

    @overload
    def __get__(self, owner: None, kind: type) -> Word: ...
    @overload
    def __get__(self, owner: _Shared, kind: type) -> int: ...
    def __get__(self, owner: _Shared | None, kind: type) -> Word | int:
        return self if owner is None else owner.words[self.index]

    def __set__(self, owner: _Shared, value: int) -> None:
        owner.words[self.index] = value & U64


class _Shared:
    """A block of u64 words at a host address that does not change."""

    def __init__(self, count: int) -> None:
        self._storage = (ctypes.c_uint64 * count)()
        self.address: int = ctypes.addressof(self._storage)
        self.words: memoryview[int] = memoryview(self._storage).cast("B").cast("Q")


class PvState(_Shared):
    """What one PV vCPU has told the hypervisor, apart from its registers.

    Addresses are guest virtual unless they say maddr; 0 means not registered.
    """

    kernel_sp = Word(0)
    """Stack for entries from user mode (stack_switch)."""
    kernel_ss = Word(1)
    gs_base_kernel = Word(2)
    """GS base of kernel mode; valid only while the vCPU is in user mode."""
    gs_base_user = Word(3)
    """GS base of user mode; valid only while the vCPU is in kernel mode."""
    event_callback = Word(4)
    failsafe_callback = Word(5)
    failsafe_callback_flags = Word(6)
    syscall_callback = Word(7)
    syscall_callback_flags = Word(8)
    """Bit 0: CALLBACKF_mask_events."""
    nmi_masked = Word(9)
    """Not 0: an NMI was delivered, and no iret was made since. Its handler is that of trap 2."""
    vcpu_info_maddr = Word(10)
    """Where struct vcpu_info lives: in shared_info, or where VCPUOP_register_vcpu_info put it."""
    cr3 = Word(11)
    """maddr of the kernel's top-level page table: the one in use, in both modes."""
    user_cr3 = Word(12)
    """maddr of the user top-level page table (MMUEXT_NEW_USER_BASEPTR)."""
    iopl = Word(13)
    """0 to 3: what PHYSDEVOP_set_iopl said; Xen treats the guest kernel as level 1."""
    ldt_entries = Word(14)
    """How many descriptors MMUEXT_SET_LDT announced."""

    WORDS: Final = 16
    TRAP_DPL_MASK: Final = 3
    TRAP_MASK_EVENTS: Final = 4

    def __init__(self) -> None:
        super().__init__(self.WORDS + 2 * TRAPS)
        self.traps_address: memoryview[int] = self.words[self.WORDS : self.WORDS + TRAPS]
        """Handler of each vector; 0: none."""
        self.traps_flags: memoryview[int] = self.words[self.WORDS + TRAPS :]
        """trap_info.flags (bits 0-1 DPL, bit 2 mask events) | cs << 16, for each vector."""


@dataclass(frozen=True, slots=True)
class HypercallRecord:
    """One hypercall as the ring remembers it. The result is signed."""

    number: int
    args: tuple[int, ...]
    result: int


class PvDomain(_Shared):
    """What the hot path must know of a whole domain, and what it counts."""

    memory_address = Word(0)
    """Host address of machine address 0."""
    total_pages = Word(1)
    first_guest_mfn = Word(2)
    end_guest_mfn = Word(3)
    """One behind the last mfn that may belong to the guest."""
    m2p_l4_entry = Word(4)
    """What the hypervisor puts into slot 256 of every top-level page table."""
    gdt_l4_entry = Word(5)
    """What the hypervisor puts into slot 260 of every top-level page table."""
    frame_table = Word(6)
    """Host address of the 16-byte frame records, index mfn (memory/frames.py)."""
    m2p_maddr = Word(7)
    slow_only = Word(8)
    """Not 0: the hot path hands every exit to the hypervisor (tracing, debugging)."""
    hypercalls = Word(9)
    """Hypercalls recorded since the start; the next goes to slot `hypercalls % RING_SLOTS`."""

    flush_epoch = Word(10)
    """Counts full TLB flushes: frames remember when they were last unmapped writable."""
    dying = Word(11)
    """How many page tables wait for their references to be dropped (hypervisor/page_types.py)."""
    dying_stack = Word(12)
    """Host address of their mfns, u32 each."""
    architectural_iopl = Word(13)
    """Not 0: the guest sees and sets its IOPL in RFLAGS (vm_assist architectural_iopl)."""
    vcpus = Word(14)
    """How many vCPUs there are: a TLB each."""

    count_syscall = Word(32)
    """The counters count what the hot path did itself."""
    count_hypercall = Word(33)
    count_iret = Word(34)
    count_page_fault = Word(35)
    count_trap = Word(36)
    count_upcall = Word(37)
    count_mmu_entry = Word(38)
    count_new_baseptr = Word(39)
    count_flush_all = Word(40)
    count_flush_page = Word(41)
    count_page_table_write = Word(42)
    count_port_io = Word(43)
    count_slow = Word(44)
    """Exits that the hot path looked at and left to the hypervisor."""
    count_grant = Word(45)
    """Uses of grants by the host that began."""

    def __init__(self) -> None:
        super().__init__(_FAILURES + NUMBERS)
        self._ring = self.words[_HEADER_WORDS:_CALLS]
        self.calls: memoryview[int] = self.words[_CALLS:_FAILURES]
        """How often each hypercall was made, natively or not, by number (see NUMBERS)."""
        self.failures: memoryview[int] = self.words[_FAILURES:]
        """How often each of them ended with an error."""

    def record_hypercall(self, number: int, args: tuple[int, ...], result: int) -> None:
        """Remember a hypercall; at most six arguments. Results may be negative."""
        slot = self.words[9] % RING_SLOTS * RING_SLOT_WORDS
        ring = self._ring
        ring[slot] = number & U64
        for i in range(6):
            ring[slot + 1 + i] = args[i] & U64 if i < len(args) else 0
        ring[slot + 7] = result & U64
        self.words[9] += 1
        counter = min(number, NUMBERS - 1)
        self.calls[counter] += 1
        if -MAX_ERRNO <= result < 0:
            self.failures[counter] += 1

    def recent_hypercalls(self) -> list[HypercallRecord]:
        """The last RING_SLOTS hypercalls, oldest first."""
        total = self.hypercalls
        records = []
        for n in range(max(0, total - RING_SLOTS), total):
            slot = n % RING_SLOTS * RING_SLOT_WORDS
            number, *args, result = self._ring[slot : slot + RING_SLOT_WORDS]
            signed = result - (1 << 64) if result >> 63 else result
            records.append(HypercallRecord(number, tuple(args), signed))
        return records

    @property
    def counters(self) -> dict[str, int]:
        """Every counter under its name without `count_`."""
        return {
            name.removeprefix("count_"): self.words[word.index]
            for name, word in vars(PvDomain).items()
            if isinstance(word, Word) and name.startswith("count_")
        }


class PvGrants(_Shared):
    """Where the grant table of a domain is. Addresses are the host's."""

    domain = Word(0)
    """Address of the domain's PvDomain.words."""
    active = Word(1)
    """Address of the 16-byte records of what is in use (hypervisor/grant_active.py)."""
    table = Word(2)
    """Address of the entries."""
    status = Word(3)
    """Address of the status words of version 2."""
    version = Word(4)
    entries = Word(5)
    """How many entries there are."""

    def __init__(self) -> None:
        super().__init__(6)
