"""Random operations: what a hostile guest would try, near enough to sense to get somewhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

from pyxen.abi.vcpu import VCPUOP_down, VCPUOP_is_up
from pyxen.abi.xen import DOMID_SELF
from pyxen.hypervisor.hypercall import table
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import PTE_PRESENT, frame_of
from pyxen.types import U64

from .guest_code import (
    ARGUMENT_PAGES,
    ARGUMENTS_PAGE,
    CODE_PAGE,
    FREE_PAGES,
    GRANT_PAGE,
    LAST_PAGE,
    STUBS,
    TABLE_PAGE,
    USER_STUBS,
    label,
)

RECORD = Struct("<8Q")
_TWO_U32 = Struct("<2I")
_FLAGS = (0x0, 0x61, 0x63, 0x65, 0x67, 0xE7, 0x163, 0x1, 0x3, 0x7, 0x1FF, 0x8000_0000_0000_0063)
_EDGES = (0, 1, U64, 1 << 31, 1 << 32, 1 << 47, 1 << 63, 0xFFFF_8000_0000_0000, (1 << 47) - 8)
_BLOCK, _SHUTDOWN, _POLL = 1, 2, 3
_RARELY = 0.02
_POOL_WORDS = 512
_PLACES = (0, 0, 0, 8, 64, 4088, 4092, 2048)
_SELECTORS = (0, 3, 0xE02B, 0xE033, 0xE030, 0xE023, 0xE008, 0xE041, 0xE013, 0x2B, 0xF, 0x1233)


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are in the guest: virtual addresses, and frames by their use."""

    symbols: dict[str, int]
    mfn_of_pages: int
    tables: tuple[int, ...]
    """Frames of the page tables, the L4 first."""
    first_l1_maddr: int
    first_l1_vaddr: int
    page_index: int
    """Number of the first page within the first L1 tables."""
    rings: tuple[int, ...]


class Generator:
    """Draws records.

    tame: seldom what ends the guest (see __main__.py). native: whether the engine has its native
    part, without which a kernel that loads a null selector into SS gets privilege level 0: that is
    not tried then.
    """

    def __init__(self, seed: str, places: Places, *, tame: bool, native: bool) -> None:
        self.random = random.Random(seed)
        self.places = places
        self.tame = tame
        self._null_ss = native
        self.pages = places.symbols["pages"]
        self._rows = [row for row in table.ROWS if row.handler]
        self._stubs = {name: places.symbols[label(name)] for name in STUBS}
        self._pool = [self.word() for _ in range(_POOL_WORDS)]
        self._kinds: list[Callable[[], bytes]] = (
            [self.hypercall] * 30
            + [self.mmu_update] * 8
            + [self.va_mapping] * 8
            + [self.table_write] * 10
            + [self.mmuext] * (2 if tame else 6)
            + [self.multicall] * 3
            + [self.any_write] * 6
            + [self.ring_write] * 4
            + [self.event_word] * 4
            + [self.grant_entry] * 3
            + [self.instruction] * 8
            + [self.user_mode] * 4
        )

    # --- values -----------------------------------------------------------------------------

    def wild(self) -> int:
        """Any number; the edges often."""
        r = self.random
        if r.random() < 0.3:
            return r.choice(_EDGES)
        return r.getrandbits(r.choice((4, 8, 16, 32, 52, 64)))

    def free_frame(self) -> int:
        """A frame that is the guest's to play with."""
        return self.places.mfn_of_pages + self.random.randrange(FREE_PAGES)

    def frame(self) -> int:
        """A frame of any kind."""
        r = self.random
        kind = r.randrange(10)
        if kind < 5 or (self.tame and kind < 8):
            return self.free_frame()
        if kind < 6:
            return r.choice((layout.SHARED_INFO, layout.GRANT_FRAMES, layout.GDT_L1, 0x10, 0, 1))
        if self.tame:
            return r.choice((0x100, 0xF_FFFF_FFFF, 1 << 35))
        if kind < 7:
            return r.choice(self.places.tables)
        if kind < 8:
            return self.places.mfn_of_pages + TABLE_PAGE + r.randrange(LAST_PAGE - TABLE_PAGE)
        return XEN_PAGES + r.randrange(2080)

    def entry(self) -> int:
        """A page-table entry."""
        r = self.random
        if r.random() < 0.1:
            return self.harmless(self.wild())
        return self.harmless(self.frame() << 12 | r.choice(_FLAGS))

    def harmless(self, word: int) -> int:
        """If tame, no present entry for a frame that is not free to play with."""
        if self.tame and word & PTE_PRESENT:
            page = frame_of(word) - self.places.mfn_of_pages
            if XEN_PAGES <= frame_of(word) < XEN_PAGES + 2064 and not 0 <= page < FREE_PAGES:
                return word & ~PTE_PRESENT
        return word

    def address(self) -> int:
        """A guest virtual address for an argument."""
        r = self.random
        if r.random() < 0.15:
            if self.tame:
                return r.choice((0, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_9000_0000, 1 << 47))
            return r.choice((self.wild(), self.pages + 4096 * r.randrange(LAST_PAGE) + 4))
        return self.pages + 4096 * ARGUMENTS_PAGE + 8 * r.randrange(ARGUMENT_PAGES * 512)

    def entry_maddr(self) -> int:
        """Machine address of an L1 entry of the pages to play with (or of anything)."""
        r = self.random
        if r.random() < 0.2 and not self.tame:
            return (self.frame() << 12) + 8 * r.randrange(512)
        return self.places.first_l1_maddr + 8 * (self.places.page_index + r.randrange(FREE_PAGES))

    def word(self) -> int:
        """Eight bytes of an argument structure."""
        r = self.random
        kind = r.randrange(9)
        if kind < 3:
            small = (DOMID_SELF, DOMID_SELF, 0, 1, 2, 3, 7, r.randrange(64), r.getrandbits(32))
            low = r.choice(small)
            if self.tame:
                low &= ~1 if low > 0xFFFF else U64
            return int.from_bytes(_TWO_U32.pack(low, r.choice(small[:8])), "little")
        if kind == 3:
            return self.entry()
        if kind == 4:
            return self.address()
        if kind == 5:
            return self.entry_maddr()
        if kind == 6:
            return self.free_frame() if self.tame else self.frame()
        return r.randrange(32) if kind == 7 else self.harmless(self.wild())

    def arguments(self) -> bytes:
        """New content for the pages that arguments point to."""
        r = self.random
        self._pool[r.randrange(_POOL_WORDS)] = self.word()
        start = r.randrange(_POOL_WORDS)
        words = self._pool[start:] + self._pool[:start]
        return Struct(f"<{_POOL_WORDS}Q").pack(*words) * (ARGUMENT_PAGES * 512 // _POOL_WORDS)

    # --- records ----------------------------------------------------------------------------

    def record(self) -> bytes:
        """One operation."""
        return self.random.choice(self._kinds)()

    def _do(self, stub: str, rax: int = 0, *registers: int) -> bytes:
        values = [*registers, *[0] * (5 - len(registers))]
        return RECORD.pack(self._stubs[stub], rax & U64, *(v & U64 for v in values), 0)

    def _argument(self, name: str) -> int:
        r = self.random
        if r.random() < 0.1:
            return self.harmless(self.wild())
        if name in ("cmd", "which", "reg", "type"):
            return r.randrange(16)
        if name == "vcpuid":
            return r.randrange(5)
        if name == "domid":
            return DOMID_SELF
        if name in ("count", "nr_calls", "entries", "set"):
            return r.choice((0, 1, 1, 1, 2, 3, 17, 100))
        if name in ("val", "desc", "base", "maddr", "timeout"):
            return self.word()
        if name == "pdone":
            return r.choice((0, self.address()))
        return self.address()

    def _call(self) -> tuple[int, list[int]]:
        """A hypercall of the table, with arguments that may mean something."""
        r = self.random
        if r.random() < 0.03:
            number = r.choice((6, 7, 11, 16, 19, 27, 35, 36, 48, 64, 99, r.getrandbits(32)))
            return number, [self.harmless(self.wild()) for _ in range(5)]
        row = r.choice(self._rows)
        if row.number == table.IRET:  # it has no arguments: see user_mode
            row = self._rows[0]
        arguments = [self._argument(name) for name in row.arguments]
        if r.random() > _RARELY:
            self._survive(row.name, arguments)
        if self.tame and row.name in ("mmu_update", "mmuext_op", "vcpu_op", "set_gdt"):
            arguments[1] = 0
        if self.tame and row.name in ("multicall", "update_descriptor", "memory_op"):
            arguments = [0, 0]
        if self.tame and row.name.startswith("update_va_mapping"):
            arguments[0] = self.pages + 4096 * r.randrange(FREE_PAGES)
            arguments[1] = self.harmless(arguments[1])
        return row.number, arguments

    def _survive(self, name: str, arguments: list[int]) -> None:
        """Take the arguments away that end most guests: they would do little else."""
        if name == "sched_op" and arguments[0] in (_BLOCK, _SHUTDOWN, _POLL):
            arguments[0] = 0
        elif name == "vcpu_op" and arguments[0] == VCPUOP_down:
            arguments[0] = VCPUOP_is_up
        elif name == "stack_switch":
            arguments[1] = self.places.symbols["user_entry_stack_top"]
        elif name == "set_trap_table":
            arguments[0] = self.places.symbols["fuzz_traps"] + 16 * 254
        elif name == "set_callbacks":
            arguments[:] = [self.places.symbols["fuzz_next"]] * 3
        elif name == "callback_op":
            arguments[0] = 1

    def hypercall(self) -> bytes:
        number, arguments = self._call()
        return self._do("hypercall", number, *arguments)

    def mmu_update(self) -> bytes:
        """The request lies in the record itself, behind its registers' words."""
        r = self.random
        at = self.places.symbols["request"]
        request = RECORD.pack(self._stubs["store"], self.entry_maddr() | r.choice((0, 0, 1, 2)), at,
                              0, 0, 0, 0, 0)  # fmt: skip
        value = self._do("store", self.entry(), at + 8)
        number = 1
        done = r.choice((0, at + 16))
        return request + value + self._do("hypercall", number, at, 1, done, DOMID_SELF)

    def va_mapping(self) -> bytes:
        r = self.random
        vaddr = self.pages + 4096 * r.randrange(FREE_PAGES)
        if r.random() < 0.1 and not self.tame:
            vaddr = self.wild()
        return self._do("hypercall", 14, vaddr, self.entry(), r.choice((0, 1, 2, 6)))

    def table_write(self) -> bytes:
        """A direct write to a page table, which is read-only."""
        r = self.random
        index = self.places.page_index + r.randrange(FREE_PAGES)
        at = self.places.first_l1_vaddr + 8 * index
        if r.random() < 0.1 and not self.tame:
            at += r.choice((1, 4, -4096, 8 * 512, -8))
        stub = r.choice(("store", "xchg", "cmpxchg", "store", "btr"))
        if not self.tame:
            stub = r.choice((stub, "or", "and", "bts", "store32", "store8", "stos"))
        return self._do(stub, self.entry(), at, 0, self.entry() if stub == "cmpxchg" else 6)

    def mmuext(self) -> bytes:
        r = self.random
        at = self.places.symbols["operation"]
        command = r.randrange(6, 20) if self.tame else r.randrange(22)
        if self.tame and command in (12, 13, 15, 16, 17):
            command = 6
        first = r.choice((self.frame(), self.address()))
        steps = ((command, at), (first, at + 8), (self.frame(), at + 16))
        writes = b"".join(self._do("store", value, where) for value, where in steps)
        return writes + self._do("hypercall", 26, at, 1, 0, DOMID_SELF)

    def multicall(self) -> bytes:
        """A list of one, made by stores: number and arguments."""
        at = self.pages + 4096 * ARGUMENTS_PAGE
        number, arguments = self._call()
        words = (number, 0, *arguments)
        writes = b"".join(self._do("store", w, at + 8 * n) for n, w in enumerate(words))
        return writes + self._do("hypercall", 13, at, 1)

    def any_write(self) -> bytes:
        r = self.random
        if self.tame:
            place = self.pages + 4096 * r.randrange(FREE_PAGES) + r.choice(_PLACES)
            return self._do(r.choice(("store", "load")), self.harmless(self.wild()) & ~1, place)
        place = r.choice((self.pages + r.randrange(LAST_PAGE << 12), self.wild(), self.address()))
        return self._do(r.choice(("store", "store32", "load", "stos")), self.wild(), place, 0, 3)

    def ring_write(self) -> bytes:
        """Indexes and bytes of the console and xenstore rings, and an event for the back end."""
        r = self.random
        ring = r.choice(self.places.rings)
        at = ring + r.choice((2048, 2052, 2056, 2060, 3072, 3076, 3080, 3084, r.randrange(4088)))
        value = r.choice((0, 1, 16, 1024, 2048, 2049, r.getrandbits(12), r.getrandbits(32)))
        port = self.places.symbols["shutdown_argument"]
        send = self._do("store32", r.choice((1, 2)), port) + self._do("hypercall", 32, 4, port)
        return self._do("store32", value, at) + send

    def event_word(self) -> bytes:
        r = self.random
        at = self.places.symbols["shared_info"] + 8 * r.choice((0, 1, 2, *range(256, 400)))
        return self._do(r.choice(("store", "xchg", "or", "events")), self.wild(), at)

    def grant_entry(self) -> bytes:
        r = self.random
        at = self.pages + 4096 * GRANT_PAGE + 8 * r.randrange(16)
        return self._do("store", r.choice((1, 5, 9, 0x19)) | self.frame() << 32, at)

    def instruction(self) -> bytes:
        """Instructions that trap, are emulated, or change the processor's state."""
        r = self.random
        stubs = ("int3", "int80", "int20", "segment", "stack", "rdmsr", "wrmsr", "cr0", "cr2")
        stub = r.choice((*stubs, "cr4", "dr0", "dr7", "cpuid", "flags", "far", "iretq", "events"))
        msrs = (0xC000_0080, 0xC000_0100, 0xC000_0101, 0xC000_0102, 0x10, 0x277, self.wild())
        first = r.choice(msrs) if "msr" in stub else r.choice(_SELECTORS)
        if stub == "iretq":
            return self._do(stub, 0, self.places.symbols["fuzz_next"], *self._frame())
        if not self.tame and r.random() < 0.2:
            if r.random() < 0.5:
                return self._do("jump", self.wild(), self.pages + (CODE_PAGE << 12))
            root = self.frame() if r.random() < _RARELY else self.places.tables[0]
            return self._do("cr3", root << 12)
        if not self.tame and r.random() < 0.02:
            return self._do("stack-moved", 0, self.address())
        rax = r.choice((self.wild(), r.choice(_SELECTORS)))
        if stub == "stack" and not self._null_ss and not rax & 0xFFFC:
            rax |= 8
        return self._do(stub, rax, first, r.choice(_SELECTORS), r.choice(_SELECTORS))

    def _frame(self) -> tuple[int, int, int, int]:
        """CS, RFLAGS, RSP, SS of a return."""
        r = self.random
        flags = r.choice((0x202, 0x2, 0x302, 0x3202, r.getrandbits(22)))
        stack = self.wild() if r.random() < _RARELY else self.places.symbols["stack_top"]
        cs, ss = (0xE033, 0xE02B) if r.random() < 0.6 else (r.choice(_SELECTORS), self.wild())
        return cs, flags, stack, ss

    def user_mode(self) -> bytes:
        """HYPERVISOR_iret to user mode (or anywhere)."""
        r = self.random
        target = self.places.symbols[f"user_{r.choice(USER_STUBS)}"]
        if r.random() < 0.1:
            target = self.wild()
        return self._do("iret", r.choice((0, 0, 0x100, self.wild())), target, *self._frame())

    def code(self) -> bytes:
        """A page of random instructions."""
        return self.random.randbytes(256)
