"""Wiring one DomU: memory, engine, hypervisor, builder, back ends. Reads as a recipe."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from pyxen.backend.console.device import Console
from pyxen.backend.console.log import ConsoleLog
from pyxen.backend.console.pty import Pty
from pyxen.backend.xenstore.device import XenstoreRing
from pyxen.builder.kernel import KernelImage, load_kernel, read_file
from pyxen.builder.pv import BuiltDomain, PvOptions, build
from pyxen.cpu.base import Engine
from pyxen.cpu.unicorn.engine import UnicornEngine
from pyxen.domain.devices import Devices
from pyxen.domain.reactor import Reactor
from pyxen.errors import UserError
from pyxen.hypervisor.clock import HostClock
from pyxen.hypervisor.cpuid import XenCpuid
from pyxen.hypervisor.domain import Domain, DomainSpec
from pyxen.hypervisor.grant import MAX_VERSION
from pyxen.hypervisor.grant_entries import INITIAL_FRAMES
from pyxen.hypervisor.grant_maptrack import MAX_MAPTRACK_FRAMES
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.page_types import Restart
from pyxen.hypervisor.runloop import RunLoop
from pyxen.hypervisor.time import SystemTime
from pyxen.hypervisor.trap import EFLAGS_IF
from pyxen.hypervisor.vcpu import RunState
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import MachineMemory
from pyxen.paths import Paths
from pyxen.types import DomId, GrantRef, Port, VcpuId

CONSOLE_GREF = GrantRef(0)
XENSTORE_GREF = GrantRef(1)
_OWN_PORTS = 2
DEFAULT_EVENT_PORTS = 1023
"""The highest event port of a domain whose configuration does not say it, as in libxl."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What xend asks for. Memory in KiB."""

    domain: DomainSpec
    kernel: Path
    ramdisk: Path | None
    cmdline: str
    log_dir: Path
    paths: Paths
    store_port: Port
    console_port: Port

    @classmethod
    def from_json(cls, spec: dict[str, Any]) -> MachineSpec:
        """Read xend's request. Raises: KeyError, ValueError."""
        memory_pages = int(spec["memory_kib"]) // 4
        domain = DomainSpec(
            domid=DomId(int(spec["domid"])),
            uuid=UUID(spec["uuid"]),
            name=str(spec["name"]),
            memory_pages=memory_pages,
            max_pages=max(memory_pages, int(spec["maxmem_kib"]) // 4),
            max_vcpus=int(spec["maxvcpus"]),
            max_event_port=int(spec.get("event_channels", DEFAULT_EVENT_PORTS)),
            max_grant_frames=int(spec.get("max_grant_frames", layout.MAX_GRANT_FRAMES)),
            max_maptrack_frames=int(spec.get("max_maptrack_frames", MAX_MAPTRACK_FRAMES)),
            max_grant_version=int(spec.get("max_grant_version", MAX_VERSION)),
        )
        ramdisk = spec.get("ramdisk")
        return cls(
            domain=domain,
            kernel=Path(spec["kernel"]),
            ramdisk=Path(ramdisk) if ramdisk else None,
            cmdline=str(spec.get("cmdline") or ""),
            log_dir=Path(spec["log_dir"]),
            paths=Paths(Path(spec["state_dir"]), Path(spec["run_dir"]).parent),
            store_port=Port(int(spec.get("store_port", 1))),
            console_port=Port(int(spec.get("console_port", 2))),
        )


class Machine:
    """A built domain and everything that belongs to it."""

    def __init__(self, spec: MachineSpec, reactor: Reactor) -> None:
        """Build the domain; it is paused once. Raises: UserError, with nothing left behind."""
        self.spec = spec
        self._parts = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._parts.close)
            self._build(spec, reactor)
            undo.pop_all()

    def _build(self, spec: MachineSpec, reactor: Reactor) -> None:
        check_size(spec.domain)
        self.memory = MachineMemory(spec.domain.max_pages)
        cpuid = XenCpuid()
        self.engine: Engine = UnicornEngine(self.memory, cpuid)
        self._parts.callback(self.engine.close)
        time = SystemTime(HostClock(self.engine.read_tsc))
        kernel = load_kernel(spec.kernel)
        layout.install(self.memory)
        self.domain = Domain(spec.domain, self.memory, self.engine, time)
        built = self._load_guest(spec, kernel)
        time.calibrate()
        cpuid.time = time
        self._start_state(built)
        self.console_log = ConsoleLog(spec.log_dir / "console.log")
        self._parts.callback(self.console_log.close)
        self.pty = Pty()
        self._parts.callback(self.pty.close)
        self._connect_console(built, reactor)
        self._connect_xenstore(built)
        self.devices = Devices(self.domain, reactor, spec.paths)
        self._parts.callback(self.devices.close)
        self.memory.on_write = self.engine.code_changed
        self.memory.code_pages = self.engine.code_pages
        self.domain.pause()
        self.built = built
        self.runloop = RunLoop(self.domain, reactor, cpuid)
        reactor.kick = self.engine.kick

    def _load_guest(self, spec: MachineSpec, kernel: KernelImage) -> BuiltDomain:
        options = PvOptions(
            layout.SHARED_INFO,
            spec.store_port,
            spec.console_port,
            pages=spec.domain.memory_pages,
        )
        ramdisk = read_file(spec.ramdisk, "ramdisk") if spec.ramdisk else None
        return build(self.memory, kernel, ramdisk, spec.cmdline, options)

    def _start_state(self, built: BuiltDomain) -> None:
        """The first vCPU as public/xen.h, "Start-of-day memory layout", promises it."""
        d = self.domain
        vcpu = d.vcpus[VcpuId(0)]
        vcpu.initialised = vcpu.up = True
        vcpu.runstate.enter(RunState.RUNNABLE, d.time.now_ns())
        d.time.write_wall_clock(self.memory, d.shared_info)
        d.time.write_vcpu_time(self.memory, vcpu.pv.vcpu_info_maddr)
        d.select(vcpu)
        # As the domain builder of Xen's tool stack leaves it: the initial table is pinned.
        self._pin(built.l4_mfn)
        d.set_base_pointer(vcpu, built.l4_mfn)
        regs = self.engine.regs
        regs.rip, regs.rsp, regs.rsi = built.entry, built.rsp, built.rsi
        regs.rflags = EFLAGS_IF

    def _pin(self, l4: int) -> None:
        while True:
            continuation.begin(self.domain)
            with contextlib.suppress(Restart):
                return self.domain.types.pin(l4, FrameType.L4)

    def _connect_console(self, built: BuiltDomain, reactor: Reactor) -> None:
        events, port = self.domain.events, self.spec.console_port
        self.domain.grants.seed(CONSOLE_GREF, 0, built.console_mfn)
        self.console = Console(
            self.memory,
            built.console_mfn,
            lambda: events.notify_guest(host_port),
            self.console_log.write,
        )
        self.console.watch(self.pty.write)
        host_port = events.connect_host(port, self.console.notified)
        reactor.add(self.pty.master, lambda _: self.console.type(self.pty.read()))
        self._parts.callback(reactor.remove, self.pty.master)

    def _connect_xenstore(self, built: BuiltDomain) -> None:
        events, port = self.domain.events, self.spec.store_port
        self.domain.grants.seed(XENSTORE_GREF, 0, built.store_mfn)
        self.xenstore = XenstoreRing(
            self.memory, built.store_mfn, lambda: events.notify_guest(host_port)
        )
        host_port = events.connect_host(port, self.xenstore.notified)

    def close(self) -> None:
        """Give everything back; the process is about to end."""
        self._parts.close()


def check_size(spec: DomainSpec) -> None:
    """Refuse what this host or this hypervisor cannot have. Raises: UserError, as xl's create."""
    if spec.max_vcpus > layout.MAX_VCPUS:
        raise UserError(
            f"{spec.max_vcpus} vCPUs: a domain can have {layout.MAX_VCPUS} at most",
            "set `vcpus=` and `maxvcpus=` accordingly",
            exit_code=3,
        )
    if spec.max_event_port < _OWN_PORTS:
        raise UserError(
            f"{spec.max_event_port} event channels: console and xenstore need two",
            "set `max_event_channels=` accordingly",
            exit_code=3,
        )
    _check_grant_limits(spec)
    host_pages = os.sysconf("SC_PHYS_PAGES")
    if spec.max_pages > min(host_pages, layout.MAX_GUEST_PAGES):
        raise UserError(
            f"{spec.max_pages // 256} MiB of memory: this host has {host_pages // 256} MiB",
            "set `memory=` and `maxmem=` accordingly",
            exit_code=3,
        )


def _check_grant_limits(spec: DomainSpec) -> None:
    """As Xen's grant_table_init, which refuses them with EINVAL."""
    for name, low, high in (
        ("max_grant_frames", INITIAL_FRAMES, layout.MAX_GRANT_FRAMES),
        ("max_maptrack_frames", 0, MAX_MAPTRACK_FRAMES),
        ("max_grant_version", 1, MAX_VERSION),
    ):
        if not low <= (value := getattr(spec, name)) <= high:
            raise UserError(
                f"{name} is {value}: a domain can have {low} to {high}",
                f"set `{name}=` accordingly, or leave it out",
                exit_code=3,
            )
