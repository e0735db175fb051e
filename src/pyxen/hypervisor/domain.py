"""A domain: what the hypervisor knows of one guest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from pyxen.cpu.base import Engine
from pyxen.cpu.pvstate import PvDomain
from pyxen.hypervisor.evtchn import EventChannels
from pyxen.hypervisor.grant import GrantTable
from pyxen.hypervisor.reservation import Reservation
from pyxen.hypervisor.sched import Scheduler
from pyxen.hypervisor.time import SystemTime
from pyxen.hypervisor.vcpu import RunState, Vcpu
from pyxen.memory import layout
from pyxen.memory.frames import FrameTable
from pyxen.memory.guest import GuestSpace
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.types import PAGE_SHIFT, DomId, Port, VcpuId


class ShutdownReason(IntEnum):
    """SHUTDOWN_* of public/sched.h."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """What a domain is made from. Memory is in 4 KiB pages."""

    domid: DomId
    uuid: UUID
    name: str
    memory_pages: int
    max_pages: int
    max_vcpus: int


class Domain:
    """Memory, vCPUs, event channels, grants and time of one guest."""

    def __init__(
        self, spec: DomainSpec, memory: MachineMemory, engine: Engine, time: SystemTime
    ) -> None:
        self.spec = spec
        self.domid = spec.domid
        self.memory = memory
        self.engine = engine
        self.time = time
        self.frames = FrameTable(memory)
        self.space = GuestSpace(memory)
        self.reservation = Reservation(memory, self.frames, spec.memory_pages, spec.max_pages)
        self.shared_info = layout.SHARED_INFO << PAGE_SHIFT
        self.frames.give_to_domain(layout.SHARED_INFO)
        self.pv = self._pv_domain()
        self.vcpus: dict[VcpuId, Vcpu] = {}
        self.sched = Scheduler(self.vcpus.values())
        self.events = EventChannels(memory, self.shared_info, self.vcpus)
        self.grants = GrantTable(memory, self.frames)
        self.vm_assists: set[int] = set()
        self.shutdown_reason: ShutdownReason | None = None
        self.crash_cause: BaseException | None = None
        self.pause_count = 0
        self.shutdown_code = ShutdownReason.POWEROFF
        self.watchdogs: dict[int, int] = {}
        self.work_left = 0
        self.timers_changed = False
        self.last_words = b""
        self.on_shutdown: Callable[[ShutdownReason], None] = lambda reason: None
        self.on_log: Callable[[str], None] = lambda line: None
        self.current: Vcpu = self._add_vcpus(spec.max_vcpus)
        self.events.on_pending = self._wake

    def _pv_domain(self) -> PvDomain:
        pv = PvDomain()
        pv.memory_address = self.memory.address
        pv.total_pages = self.memory.total_pages
        pv.first_guest_mfn = XEN_PAGES
        pv.end_guest_mfn = XEN_PAGES + self.memory.guest_pages
        pv.m2p_l4_entry = layout.M2P_SLOT_ENTRY
        pv.gdt_l4_entry = layout.DESCRIPTOR_SLOT_ENTRY
        pv.frame_table = self.frames.address
        pv.m2p_maddr = self.memory.m2p_mfn << PAGE_SHIFT
        return pv

    def _add_vcpus(self, count: int) -> Vcpu:
        for n in range(count):
            vcpu = Vcpu(VcpuId(n), self.memory, self.shared_info + 64 * min(n, 31))
            self.vcpus[vcpu.vcpu_id] = vcpu
            self.memory.bytes[self.shared_info + 64 * min(n, 31) + 1] = 1
            self.engine.add_vcpu(vcpu.vcpu_id)
            self.engine.share(self.pv, vcpu.vcpu_id, vcpu.pv)
        return self.vcpus[VcpuId(0)]

    def select(self, vcpu: Vcpu) -> None:
        """Make this the vCPU that runs and that hypercalls speak of."""
        self.current = vcpu
        self.engine.select(vcpu.vcpu_id)
        self.space.cr3 = vcpu.pv.cr3

    def set_base_pointer(self, vcpu: Vcpu, l4: int) -> None:
        """Use another top-level page table; its hypervisor slots are filled in first."""
        layout.set_xen_slots(self.memory, l4)
        vcpu.pv.cr3 = l4 << PAGE_SHIFT
        self.space.cr3 = vcpu.pv.cr3
        self.engine.set_cr3(vcpu.pv.cr3)

    def _wake(self, vcpu: Vcpu, port: Port) -> None:
        if vcpu.blocked:
            self.unblock(vcpu)

    def unblock(self, vcpu: Vcpu) -> None:
        """Let a blocked vCPU run again; a poll is over."""
        self.events.pollers.discard(vcpu)
        vcpu.poll_ports = ()
        vcpu.poll_deadline_ns = 0
        vcpu.blocked = False
        now = self.time.now_ns()
        may_run = vcpu.up and not self.pause_count
        vcpu.runstate.enter(RunState.RUNNABLE if may_run else RunState.OFFLINE, now)
        if vcpu.up:
            self.sched.wake(vcpu, now)
            self.timers_changed = True

    def pause(self) -> None:
        """No vCPU runs until `unpause` was called as often. What wants to run is offline."""
        self.pause_count += 1
        self._account_pause(RunState.OFFLINE)

    def unpause(self) -> None:
        """Take back one `pause`, if there is one."""
        self.pause_count = max(0, self.pause_count - 1)
        if self.pause_count == 0:
            self._account_pause(RunState.RUNNABLE)

    def _account_pause(self, state: RunState) -> None:
        now = self.time.now_ns()
        for vcpu in self.vcpus.values():
            if vcpu.runnable:
                vcpu.runstate.enter(state, now)

    def shutdown(self, reason: ShutdownReason) -> None:
        """The guest is over; what happens next is the tool stack's business."""
        if self.shutdown_reason is None:
            self.shutdown_reason = reason
            self.on_shutdown(reason)

    def crash(self, cause: BaseException) -> None:
        """The guest did what it may not do, or we did."""
        if self.shutdown_reason is None:
            self.crash_cause = cause
            self.shutdown(ShutdownReason.CRASH)

    def print(self, text: str) -> None:
        """A line of the hypervisor's log about this domain (xl dmesg)."""
        self.on_log(text)

    @property
    def stopped(self) -> bool:
        """Whether no vCPU may run at all."""
        return self.shutdown_reason is not None or self.pause_count > 0
