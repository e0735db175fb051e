"""Domains, one after the other: each gets batches of operations until it dies or is old."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from pyxen.backend.xenstore.device import XenstoreRing
from pyxen.builder.kernel import KernelImage, load_kernel
from pyxen.cpu.base import Exit, Trap
from pyxen.errors import DomainCrash
from pyxen.hypervisor.runloop import RunLoop
from pyxen.hypervisor.vcpu import RunState, Vcpu
from pyxen.memory.machine import XEN_PAGES
from pyxen.types import PAGE_SHIFT, VcpuId

from ..guest.kernel import VIRT_BASE, CaseKernel, assemble
from ..guest.pv_domain import GuestClock, PvDomain
from .guest_code import (
    ARGUMENTS_PAGE,
    CASE,
    CODE_PAGE,
    RECORD_BYTES,
    RECORD_PAGES,
    RECORDS_PAGE,
)
from .invariants import check_invariants
from .operations import Generator, Places

OPERATIONS_A_BATCH = 300
BATCHES_A_DOMAIN = 30
EXITS_A_BATCH = 20_000
SLOWEST_HANDLER_S = 5.0
BATCH_S = 1.0
HUNG_S = 30.0


class Failed(Exception):
    """Something that may never happen, with what to run to see it again."""


@dataclass(slots=True)
class Totals:
    """What a campaign did."""

    operations: int = 0
    domains: int = 0
    crashes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class FuzzWorld:
    """Ends a batch: when the guest says so, after too many exits, or when the watch says so."""

    def __init__(self, clock: GuestClock) -> None:
        self._clock = clock
        self.attention = False
        self.closing = False

    def arm(self, deadline_ns: int | None) -> None: ...

    def poll(self) -> None:
        self.attention = False

    def wait(self, deadline_ns: int | None) -> None:
        if deadline_ns is None:
            self.closing = True
        else:
            self._clock.ns = max(self._clock.ns, min(deadline_ns, self._clock.ns + (1 << 40)))

    def stop(self) -> None:
        self.closing = self.attention = True


class FuzzLoop(RunLoop):
    """The run loop, which knows the end of a batch and how long a decision took (wall time)."""

    end_rip = 0
    exits = 0
    slowest_s = 0.0

    def handle(self, vcpu: Vcpu, reason: Exit) -> None:
        world = self.world
        assert isinstance(world, FuzzWorld)
        self.exits += 1
        if self.exits > EXITS_A_BATCH:
            world.stop()
        at_end = self.domain.engine.regs.rip == self.end_rip
        if at_end and isinstance(reason, Trap) and reason.vector == 6 and vcpu.vcpu_id == 0:
            world.stop()
            return
        before = time.perf_counter()
        try:
            super().handle(vcpu, reason)
        finally:
            self.slowest_s = max(self.slowest_s, time.perf_counter() - before)


class Watch:
    """A thread that ends batches whose guest runs in circles, and the process if that fails.

    It counts the process's own time, so that a busy machine changes nothing.
    """

    def __init__(self) -> None:
        self.subject: Subject | None = None
        self.since = 0.0
        self.told = ""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(0.1)
            subject, since = self.subject, self.since
            if subject is None or not since:
                continue
            age = time.process_time() - since
            if age > HUNG_S:
                print(f"FAILED: it hangs\n{self.told}", file=sys.stderr, flush=True)
                os._exit(3)
            if age > BATCH_S:
                subject.world.stop()
                subject.domain.engine.kick()


class Subject:
    """A domain under attack."""

    def __init__(
        self, image: KernelImage, kernel: CaseKernel, seed: str, *, native: bool, tame: bool
    ) -> None:
        self._pv = PvDomain(image, kernel, native=native, vcpus=1 if tame else 4)
        self.domain = self._pv.domain
        self._xenstore()
        self.world = FuzzWorld(self._pv.clock)
        self.loop = FuzzLoop(self.domain, self.world, self._pv.cpuid)
        self._symbols = kernel.symbols
        self.loop.end_rip = self._symbols["fuzz_end"]
        self.domain.on_shutdown = lambda reason: self.world.stop()
        entry = self._symbols[kernel.labels[CASE.name]]
        self._put("case_entry", entry.to_bytes(8, "little"))
        self.generator = Generator(seed, self._places(), tame=tame, native=native)
        self.vcpu = self.domain.vcpus[VcpuId(0)]

    def _xenstore(self) -> None:
        events = self.domain.events
        ring = XenstoreRing(
            self.domain.memory,
            self._pv.built.store_mfn,
            lambda: events.notify_guest(self._pv.store_host_port),
        )
        ring.connect(lambda data: None, lambda held: None)
        self._pv.store_notified = ring.notified

    def _places(self) -> Places:
        built = self._pv.built
        tables = [mfn for mfn, _ in sorted(built.page_tables, key=lambda t: -t[1])]
        first_l1 = min(mfn for mfn, level in built.page_tables if level == 1)
        page = (self._symbols["pages"] - VIRT_BASE) >> PAGE_SHIFT

        def vaddr(mfn: int) -> int:
            return VIRT_BASE + (mfn - XEN_PAGES << PAGE_SHIFT)

        return Places(
            symbols=self._symbols,
            mfn_of_pages=XEN_PAGES + page,
            tables=tuple(tables),
            first_l1_maddr=first_l1 << PAGE_SHIFT,
            first_l1_vaddr=vaddr(first_l1),
            page_index=page,
            rings=(vaddr(built.console_mfn), vaddr(built.store_mfn)),
        )

    def _put(self, symbol: str, data: bytes, offset: int = 0) -> None:
        self.domain.memory.write(self._pv.maddr(symbol) + offset, data)

    def start(self) -> None:
        """Let the kernel boot to where its batches begin."""
        self._run()
        if self.domain.shutdown_reason is not None:
            raise Failed(f"the guest does not start: {self.domain.crash_cause!r}")

    def batch(self, count: int) -> int:
        """One batch of about `count` operations; how many the guest began."""
        generator = self.generator
        records = b"".join(generator.record() for _ in range(count))
        records = records[: RECORD_PAGES << PAGE_SHIFT]
        self._put("pages", generator.arguments(), ARGUMENTS_PAGE << PAGE_SHIFT)
        self._put("pages", records, RECORDS_PAGE << PAGE_SHIFT)
        if not generator.tame:
            self._put("pages", generator.code(), CODE_PAGE << PAGE_SHIFT)
        first = self._symbols["pages"] + (RECORDS_PAGE << PAGE_SHIFT)
        limit = first + len(records)
        self._put("fuzz_cursor", first.to_bytes(8, "little") + limit.to_bytes(8, "little"))
        self._restart()
        self._run()
        cursor = self.domain.memory.read_u64(self._pv.maddr("fuzz_cursor"))
        return (cursor - first) // RECORD_BYTES if first <= cursor <= limit else count

    def _restart(self) -> None:
        """Put the first vCPU before its loop, with the entry points that lead back to it."""
        d, v, entry = self.domain, self.vcpu, self._symbols["fuzz_next"]
        for other in d.vcpus.values():
            if other.blocked:
                d.unblock(other)
        v.up = True
        v.runstate.enter(RunState.RUNNABLE, d.time.now_ns())
        d.select(v)
        if d.engine.user_mode:
            d.engine.enter_kernel_mode()
        pv = v.pv
        for vector in range(256):
            pv.traps_address[vector] = entry
        pv.event_callback = pv.syscall_callback = pv.failsafe_callback = entry
        pv.kernel_sp = self._symbols["user_entry_stack_top"]
        d.engine.regs.rip = entry
        d.engine.regs.rflags = 0x202

    def _run(self) -> None:
        self.world.closing = self.world.attention = False
        self.loop.exits = 0
        self.loop.run()

    def close(self) -> None:
        self._pv.close()


def numbers(seconds: float, first: int, only: bool) -> Iterator[int]:
    """Numbers from `first` on, until the time is over; `only`: no more than that one."""
    end = time.monotonic() + seconds
    number = first
    while time.monotonic() < end:
        yield number
        number += 1
        if only:
            break


class Campaign:
    """A seed, an engine and a number of seconds."""

    def __init__(self, seed: int, *, native: bool) -> None:
        self.seed = seed
        self.native = native
        self.totals = Totals()
        self._watch = Watch()
        self._folder = TemporaryDirectory(prefix="pyxen-fuzz-")
        self._kernel = assemble([CASE], Path(self._folder.name))
        self._image = load_kernel(self._kernel.path)

    def run(self, seconds: float, first_domain: int = 0, only: bool = False) -> Totals:
        """Make domains until the time is over. Raises: Failed."""
        for number in numbers(seconds, first_domain, only):
            self.domain(number)
        return self.totals

    def again(self, number: int) -> str:
        """How to see one domain again."""
        engine = "native" if self.native else "python"
        return (
            f'make fuzz FUZZ="--campaign guest --seed {self.seed} --engine {engine} '
            f'--domain {number}"'
        )

    def domain(self, number: int) -> None:
        """One domain from its start to its end."""
        tame = number % 2 == 0
        seed = f"{self.seed}/{number}"
        again = self.again(number)
        subject = Subject(self._image, self._kernel, seed, native=self.native, tame=tame)
        self._watch.told = again
        try:
            subject.start()
            self.totals.domains += 1
            for batch in range(BATCHES_A_DOMAIN):
                self._watch.since, self._watch.subject = time.process_time(), subject
                self.totals.operations += subject.batch(OPERATIONS_A_BATCH)
                self._watch.since = 0.0
                wrong = self._wrong(subject)
                if wrong:
                    said = "\n  ".join(wrong[:10])
                    raise Failed(f"domain {number}, batch {batch}:\n  {said}\n{again}")
                if subject.domain.shutdown_reason is not None:
                    self._count_end(subject)
                    break
        finally:
            self._watch.since, self._watch.subject = 0.0, None
            subject.close()

    def _wrong(self, subject: Subject) -> list[str]:
        d = subject.domain
        wrong = check_invariants(d)
        if d.crash_cause is not None and not isinstance(d.crash_cause, DomainCrash):
            wrong.insert(0, f"{d.crash_cause!r} in the hypervisor: {_origin(d.crash_cause)}")
        if subject.loop.slowest_s > SLOWEST_HANDLER_S:
            wrong.append(f"an operation took {subject.loop.slowest_s:.1f} s")
        return wrong

    def _count_end(self, subject: Subject) -> None:
        self.totals.crashes += subject.domain.crash_cause is not None
        why = str(subject.domain.crash_cause or subject.domain.shutdown_reason)
        key = "".join(c for c in why.split(" at ")[0] if not c.isdigit())[:60]
        self.totals.reasons[key] = self.totals.reasons.get(key, 0) + 1

    def close(self) -> None:
        """Remove the kernel."""
        self._folder.cleanup()


def _origin(error: BaseException) -> str:
    """Where an exception was raised."""
    trace = error.__traceback__
    where = "?"
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where
