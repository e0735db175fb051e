"""Random hypercalls from a hostile guest: they end, quickly, and in an error number or a crash."""

from __future__ import annotations

import random
from struct import Struct

import pytest
from pv_guest import (
    ARGUMENTS,
    BASE,
    GDT,
    L1,
    L2,
    L3,
    L4,
    NOT_MAPPED,
    PAGES,
    SELF,
    STACK,
    TEXT,
    PvGuest,
)

from pyxen.cpu.base import GUEST_SYSCALL, HYPERCALL, Trap
from pyxen.errors import DomainCrash
from pyxen.hypervisor.hypercall import table
from pyxen.hypervisor.page_audit import audit
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES

ROUNDS = 5000
MOST_PIECES_IN_A_ROW = 5
LONGEST_OVERDRAFT = 1024
REPAIR_EVERY = 100
_REGISTERS = ("rdi", "rsi", "rdx", "r10", "r8")
_TWO_U32 = Struct("<2I")

# Frames of the hypervisor that change by what a guest asks for, each in its own way.
_KNOWN_PATHS = {
    int(layout.SHARED_INFO),
    *range(layout.GRANT_FRAMES, layout.GRANT_FRAMES + layout.MAX_GRANT_FRAMES),
    *range(layout.GRANT_STATUS_FRAMES, layout.GRANT_STATUS_FRAMES + layout.MAX_GRANT_FRAMES // 8),
    *range(layout.GDT_L1, layout.GDT_L1 + 8),
}


class Fuzz:
    """Draws numbers, arguments and memory that look right often enough."""

    def __init__(self, guest: PvGuest, seed: int) -> None:
        self.guest = guest
        self.before = _hypervisor_frames(guest)
        self.random = random.Random(seed)
        self.rows = [row for row in table.ROWS if row.handler]
        self.succeeded: set[str] = set()

    # --- values -----------------------------------------------------------------------------

    def wild(self) -> int:
        r = self.random
        edges = (0, 1 << 31, 1 << 32, 1 << 47, 1 << 63, (1 << 64) - 1, 0xFFFF_8000_0000_0000)
        if r.random() < 0.3:
            return r.choice(edges)
        return r.getrandbits(r.choice((4, 8, 16, 32, 52, 64)))

    def frame(self) -> int:
        r = self.random
        if r.random() < 0.3:
            return r.choice((L4, L3, L2, L1, GDT, layout.SHARED_INFO, layout.GDT_L1))
        return XEN_PAGES + r.randrange(PAGES + 32)

    def address(self) -> int:
        r = self.random
        if r.random() < 0.2:
            return r.choice((BASE, NOT_MAPPED - 4, STACK, TEXT, NOT_MAPPED))
        return ARGUMENTS + 8 * r.randrange(64)

    def word(self) -> int:
        """Eight bytes of an argument structure."""
        r = self.random
        kind = r.randrange(8)
        if kind < 3:
            small = (SELF, SELF, 0, 1, 2, 3, r.randrange(64), r.getrandbits(32))
            return int.from_bytes(_TWO_U32.pack(r.choice(small), r.choice(small)), "little")
        if kind == 3:
            return self.frame() << r.choice((0, 12)) | r.choice((0, 0, 1, 2, 3, 7))
        if kind == 4:
            return self.address()
        if kind == 5:
            return (self.frame() << 12) + 8 * r.randrange(512)
        return r.randrange(32) if kind == 6 else self.wild()

    def argument(self, name: str) -> int:
        """The value of an argument that the table of hypercalls calls so."""
        r = self.random
        if r.random() < 0.1:
            return self.wild()
        if name == "cmd" or name in ("which", "reg", "type"):
            return r.randrange(14)
        if name == "vcpuid":
            return r.randrange(5)
        if name == "domid":
            return SELF
        if name in ("count", "nr_calls", "entries", "set"):
            return r.choice((0, 1, 1, 1, 2, 3, 17, 500, 1 << 20, (1 << 31) - 1))
        if name in ("val", "desc", "base", "maddr", "timeout"):
            return self.word()
        if name == "pdone":
            return r.choice((0, self.address()))
        return self.address()

    def fill(self) -> None:
        """New argument structures where the pointers point."""
        words = [self.word() for _ in range(96)]
        self.guest.write(ARGUMENTS, Struct("<96Q").pack(*words))

    # --- steps ------------------------------------------------------------------------------

    def step(self) -> None:
        r, guest = self.random, self.guest
        guest.domain.select(guest.vcpu)
        kind = r.randrange(20)
        if kind == 0:
            guest.regs.rsp = r.choice((STACK, STACK - 64, self.wild()))
            software = r.random() < 0.3
            guest.handle(Trap(r.randrange(256), r.getrandbits(16), self.address(), software))
        elif kind == 1:
            guest.handle(GUEST_SYSCALL)
        else:
            self.hypercall(r.choice(self.rows))

    def hypercall(self, row: table.Row) -> None:
        regs = self.guest.regs
        regs.rax = row.number
        if row.number == table.MULTICALL:
            self.fill_multicall()
        for register in _REGISTERS:
            setattr(regs, register, self.wild())
        for register, name in zip(_REGISTERS, row.arguments, strict=False):
            setattr(regs, register, self.argument(name))
        for _ in range(MOST_PIECES_IN_A_ROW):
            regs.rip = TEXT + 2
            self.guest.handle(HYPERCALL)
            assert self.guest.domain.work_left > -LONGEST_OVERDRAFT
            if regs.rip != TEXT:
                if not regs.rax >> 63:
                    self.succeeded.add(row.name)
                return

    def fill_multicall(self) -> None:
        for n in range(self.random.randrange(1, 30)):
            row = self.random.choice(self.rows)
            arguments = [self.argument(name) for name in row.arguments]
            words = [row.number, 0, *arguments, *[0] * (6 - len(arguments))]
            self.guest.write(ARGUMENTS + 64 * n, Struct("<8Q").pack(*words))

    def repair(self) -> None:
        """Undo what would make the rest of the test a test of nothing."""
        self.check()
        self.guest.close()
        self.guest = PvGuest()

    def check(self) -> None:
        assert audit(self.guest.domain) == []
        assert _hypervisor_frames(self.guest) == self.before

    def revive(self) -> None:
        """The guest may have ended itself, or sleep."""
        domain = self.guest.domain
        domain.shutdown_reason = None
        for vcpu in domain.vcpus.values():
            if vcpu.blocked:
                domain.unblock(vcpu)
        self.guest.vcpu.up = True
        self.guest.clock.advance(self.random.randrange(10_000_000))


def _hypervisor_frames(guest: PvGuest) -> dict[int, bytes]:
    frames = [mfn for mfn in range(0x10, 0x400) if mfn not in _KNOWN_PATHS]
    return {mfn: guest.memory.read(mfn << 12, 4096) for mfn in frames}


@pytest.mark.parametrize("seed", range(4))
def test_random_hypercalls(seed: int) -> None:
    fuzz = Fuzz(PvGuest(), seed)
    crashes = 0
    for n in range(ROUNDS):
        if n % REPAIR_EVERY == 0:
            fuzz.repair()
        fuzz.fill()
        try:
            fuzz.step()
        except DomainCrash:
            crashes += 1
        fuzz.revive()
    fuzz.check()
    assert crashes < ROUNDS // 2, "most of it should be hypercalls, not crashes"
    assert len(fuzz.succeeded) >= 22, f"worth nothing if all fail at once: {fuzz.succeeded}"
