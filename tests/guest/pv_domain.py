"""A domain around the case kernel: real memory, builder, engine, hypervisor and console.

Only the clock and the world are stand-ins: time passes when the guest sleeps.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from pyxen.backend.console.device import Console
from pyxen.builder.kernel import KernelImage
from pyxen.builder.pv import BuiltDomain, PvOptions, build
from pyxen.cpu.unicorn.engine import UnicornEngine
from pyxen.hypervisor.cpuid import XenCpuid
from pyxen.hypervisor.domain import Domain, DomainSpec
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.runloop import RunLoop
from pyxen.hypervisor.time import SystemTime
from pyxen.hypervisor.trap import EFLAGS_IF
from pyxen.hypervisor.vcpu import RunState
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.types import U64, DomId, GrantRef, Port, VcpuId

from .case import Case
from .kernel import VIRT_BASE, CaseKernel

PAGES = 2048
SPARE_PAGES = 16
DOMID = DomId(7)
STORE_PORT, CONSOLE_PORT = Port(1), Port(2)
HANG_S = 20.0
_TSC_HZ = 2_000_000_000


class GuestClock:
    """Moves a microsecond for each look at it, and when the guest sleeps."""

    def __init__(self) -> None:
        self.ns = 1_000_000
        self.look_ns = 1000

    def monotonic_ns(self) -> int:
        self.ns += self.look_ns
        return self.ns

    def realtime_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.ns

    def tsc(self) -> int:
        return 5_000_000 + self.ns * _TSC_HZ // 1_000_000_000


class GuestWorld:
    """Nothing happens outside; a guest that sleeps for ever, or does not end, is ended."""

    def __init__(self, clock: GuestClock) -> None:
        self._clock = clock
        self.attention = False
        self.closing = False
        self.slept_for_ever = False
        self.hung = False

    def arm(self, deadline_ns: int | None) -> None: ...

    def poll(self) -> None:
        self.attention = False

    def wait(self, deadline_ns: int | None) -> None:
        if self.closing:
            return
        if deadline_ns is None:
            self.closing = self.slept_for_ever = True
        else:
            self._clock.ns = max(self._clock.ns, deadline_ns)

    def give_up(self) -> None:
        """From a timer's thread."""
        self.hung = self.closing = self.attention = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case."""

    words: tuple[int, ...]
    reason: object
    crash: str
    console: bytes
    ending: str
    """Empty, or how the guest did not end."""


class PvDomain:
    """One domain, ready to run a case."""

    def __init__(
        self, image: KernelImage, kernel: CaseKernel, *, native: bool, vcpus: int = 1
    ) -> None:
        self._kernel = kernel
        self.memory = MachineMemory(PAGES + SPARE_PAGES)
        layout.install(self.memory)
        self.cpuid = cpuid = XenCpuid()
        self.engine = UnicornEngine(self.memory, cpuid, native=native)
        self.clock = GuestClock()
        self.world = GuestWorld(self.clock)
        self.time = SystemTime(self.clock)
        self.clock.look_ns = 1_000_000
        self.time.calibrate()
        self.clock.look_ns = 1000
        cpuid.time = self.time
        spec = DomainSpec(DOMID, UUID(int=0x1234), "cases", PAGES, PAGES + SPARE_PAGES, vcpus)
        self.domain = Domain(spec, self.memory, self.engine, self.time)
        options = PvOptions(layout.SHARED_INFO, STORE_PORT, CONSOLE_PORT, pages=PAGES)
        self.built = build(self.memory, image, None, "", options)
        self.console = b""
        self._connect_console(self.built)
        self._start_state(self.built)
        self.memory.on_write = self.engine.code_changed
        self.memory.code_pages = self.engine.code_pages
        self.loop = RunLoop(self.domain, self.world, cpuid)

    def _connect_console(self, built: BuiltDomain) -> None:
        events = self.domain.events
        self.domain.grants.seed(GrantRef(0), 0, built.console_mfn)

        def keep(data: bytes) -> None:
            self.console += data

        device = Console(
            self.memory,
            built.console_mfn,
            lambda: events.notify_guest(self.console_host_port),
            keep,
        )
        self.store_notified: Callable[[], None] = lambda: None
        self.store_host_port = events.connect_host(STORE_PORT, lambda: self.store_notified())
        self.console_host_port = events.connect_host(CONSOLE_PORT, device.notified)

    def _start_state(self, built: BuiltDomain) -> None:
        d = self.domain
        vcpu = d.vcpus[VcpuId(0)]
        vcpu.initialised = vcpu.up = True
        vcpu.runstate.enter(RunState.RUNNABLE, d.time.now_ns())
        d.time.write_wall_clock(self.memory, d.shared_info)
        d.time.write_vcpu_time(self.memory, vcpu.pv.vcpu_info_maddr)
        d.select(vcpu)
        continuation.begin(d)
        d.types.pin(built.l4_mfn, FrameType.L4)
        d.set_base_pointer(vcpu, built.l4_mfn)
        regs = self.engine.regs
        regs.rip, regs.rsp, regs.rsi = built.entry, built.rsp, built.rsi
        regs.rflags = EFLAGS_IF

    def maddr(self, symbol: str) -> int:
        """Machine address of a symbol of the kernel."""
        return (XEN_PAGES << 12) + self._kernel.symbols[symbol] - VIRT_BASE

    def run(self, case: Case) -> Outcome:
        """Run one case to its end."""
        entry = self._kernel.symbols[self._kernel.labels[case.name]]
        self.memory.write(self.maddr("case_entry"), struct.pack("<Q", entry))
        timer = threading.Timer(HANG_S, self._stop)
        timer.start()
        try:
            self.domain.on_shutdown = lambda reason: setattr(self.world, "closing", True)
            self.loop.run()
        finally:
            timer.cancel()
        d = self.domain
        ending = "it does not end" if self.world.hung else ""
        ending = "it sleeps for ever" if self.world.slept_for_ever else ending
        crash = f"{d.crash_cause!r}" if d.crash_cause else ""
        return Outcome(self._words(), d.shutdown_reason, crash, self.console, ending)

    def _stop(self) -> None:
        self.world.give_up()
        self.engine.kick()

    def _words(self) -> tuple[int, ...]:
        end = self.memory.read_u64(self.maddr("result_next")) - VIRT_BASE
        count = (end + (XEN_PAGES << 12) - self.maddr("results")) // 8
        data = self.memory.read(self.maddr("results"), 8 * min(max(count, 0), 64))
        return tuple(word & U64 for word in memoryview(data).cast("Q"))

    def close(self) -> None:
        """Give everything back."""
        self.engine.close()
        self.memory.on_write = None
        self.domain.frames.close()
        self.memory.close()
