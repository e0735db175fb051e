"""A domain: what the hypervisor knows of one guest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from pyxen.cpu.base import Engine
from pyxen.cpu.pvstate import PvDomain
from pyxen.hypervisor.evtchn import EventChannels
from pyxen.hypervisor.grant import MAX_VERSION, GrantTable
from pyxen.hypervisor.grant_maptrack import MAX_MAPTRACK_FRAMES
from pyxen.hypervisor.page_types import PageTypes
from pyxen.hypervisor.reservation import Reservation
from pyxen.hypervisor.sched import Scheduler
from pyxen.hypervisor.time import SystemTime
from pyxen.hypervisor.vcpu import RunState, Vcpu
from pyxen.memory import layout
from pyxen.memory.frames import FrameTable, FrameType
from pyxen.memory.guest import GuestSpace
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.types import PAGE_SHIFT, DomId, Port, VcpuId

if TYPE_CHECKING:
    from pyxen.hypervisor.tracing import Tracing

SOON_NS: Final = 200_000
"""How long the guest may run on after it kicked a back end: about what eight requests take it."""


class ShutdownReason(IntEnum):
    """SHUTDOWN_* of public/sched.h."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5
    UNKNOWN = 0xFF
    """Any other number: Xen takes all of a byte."""

    @classmethod
    def _missing_(cls, value: object) -> ShutdownReason:
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """What a domain is made from. Memory is in 4 KiB pages."""

    domid: DomId
    uuid: UUID
    name: str
    memory_pages: int
    max_pages: int
    max_vcpus: int
    max_event_port: int = 0x7FFF_FFFF
    max_grant_frames: int = layout.MAX_GRANT_FRAMES
    max_maptrack_frames: int = MAX_MAPTRACK_FRAMES
    max_grant_version: int = MAX_VERSION


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
        self.shared_info = layout.SHARED_INFO << PAGE_SHIFT
        self.frames.share_with_domain(layout.SHARED_INFO)
        self.pv = self._pv_domain()
        self.work_left = 0
        self.types = PageTypes(memory, self.frames, self.pv, self, self.flush_tlb)
        self.reservation = Reservation(memory, self.frames, self.types, spec)
        self.vcpus: dict[VcpuId, Vcpu] = {}
        self.sched = Scheduler(self.vcpus.values())
        self.events = EventChannels(
            memory, self.types, self.shared_info, self.vcpus, spec.max_event_port
        )
        self.grants = GrantTable(
            memory,
            self.frames,
            self.types,
            max_frames=spec.max_grant_frames,
            max_maptrack_frames=spec.max_maptrack_frames,
            max_version=spec.max_grant_version,
            native=engine.grants,
        )
        self.grants.pv.domain = self.pv.address
        self.pirqs: set[int] = set()
        """Interrupt numbers that PHYSDEVOP_get_free_pirq gave away; no interrupt is behind them."""
        self.pirq_eoi_mfn = 0
        """The frame of PHYSDEVOP_pirq_eoi_gmfn; 0: none."""
        self.vm_assists: set[int] = set()
        self.memory_map: bytes | None = None
        """What the guest set by XENMEM_set_memory_map: E820 entries."""
        self.shutdown_reason: ShutdownReason | None = None
        self.crash_cause: BaseException | None = None
        self.pause_count = 0
        self.shutdown_code: ShutdownReason | None = None
        """What the guest said beforehand that its shutdown will mean; the first word counts."""
        self.watchdogs: dict[int, int] = {}
        self.timers_changed = False
        self.soon_ns = 0
        """When the functions given to `soon` are due at the latest; 0: there are none."""
        self._soon: list[Callable[[], None]] = []
        self.last_words = b""
        self.trace: Tracing | None = None
        """Set while somebody traces."""
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
        pv.flush_epoch = 1  # the frame records begin with 0: never mapped
        pv.m2p_maddr = self.memory.m2p_mfn << PAGE_SHIFT
        return pv

    def _add_vcpus(self, count: int) -> Vcpu:
        self.pv.vcpus = count
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
        """Use another top-level page table. Raises: XenError, Restart (page_types.py)."""
        old = vcpu.pv.cr3 >> PAGE_SHIFT
        if old != l4:
            self.types.get_page_and_type(l4, FrameType.L4)
        # COMMIT
        layout.set_xen_slots(self.memory, l4, self.pv.m2p_l4_entry)
        vcpu.pv.cr3 = l4 << PAGE_SHIFT
        self.space.cr3 = vcpu.pv.cr3
        self.engine.set_cr3(vcpu.pv.cr3)
        if len(self.vcpus) == 1:
            self.pv.flush_epoch += 1
        if old and old != l4:
            self.types.put_page_and_type(old)

    def set_user_base_pointer(self, vcpu: Vcpu, l4: int) -> None:
        """Remember the user mode's top-level page table; 0: none. Raises: as set_base_pointer."""
        old = vcpu.pv.user_cr3 >> PAGE_SHIFT
        if l4 == old:
            return
        if l4:
            self.types.get_page_and_type(l4, FrameType.L4)
        # COMMIT
        vcpu.pv.user_cr3 = l4 << PAGE_SHIFT
        if old:
            self.types.put_page_and_type(old)

    def flush_tlb(self, *, everywhere: bool = True) -> None:
        """Forget all translations: of every vCPU, or at least of the one that runs."""
        self.engine.flush_tlb(everywhere=everywhere)
        if everywhere or len(self.vcpus) == 1:
            self.pv.flush_epoch += 1

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
            self.timers_changed = True

    def _account_pause(self, state: RunState) -> None:
        now = self.time.now_ns()
        for vcpu in self.vcpus.values():
            if vcpu.runnable:
                vcpu.runstate.enter(state, now)

    def soon(self, function: Callable[[], None]) -> None:
        """Have a function called when the turn of the running vCPU ends, at most SOON_NS from now.

        For a back end that was kicked: until then the guest can add requests without kicking it
        again, and one event answers them all.
        """
        if not self._soon:
            self.soon_ns = self.time.now_ns() + SOON_NS
            self.timers_changed = True
        self._soon.append(function)

    def run_soon(self) -> None:
        """Call what was given to `soon`; what these give to it is for the next time."""
        if self._soon:
            functions, self._soon, self.soon_ns = self._soon, [], 0
            for function in functions:
                function()

    def shutdown(self, reason: ShutdownReason) -> None:
        """The guest is over; what happens next is the tool stack's business."""
        if self.shutdown_reason is None:
            if self.shutdown_code is None:
                self.shutdown_code = reason
            self.shutdown_reason = self.shutdown_code
            self.on_shutdown(self.shutdown_reason)

    def crash(self, cause: BaseException) -> None:
        """The guest did what it may not do, or we did."""
        if self.shutdown_reason is None:
            self.crash_cause = cause
            self.shutdown_code = None  # whatever it announced, this was not it
            self.shutdown(ShutdownReason.CRASH)

    def print(self, text: str) -> None:
        """A line of the hypervisor's log about this domain (xl dmesg)."""
        self.on_log(text)

    @property
    def stopped(self) -> bool:
        """Whether no vCPU may run at all."""
        return self.shutdown_reason is not None or self.pause_count > 0
