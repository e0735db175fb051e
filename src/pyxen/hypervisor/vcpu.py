"""One virtual CPU as the hypervisor sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct

from pyxen.abi.xen import VcpuInfo
from pyxen.cpu.pvstate import PvState
from pyxen.memory.machine import MachineMemory
from pyxen.types import VcpuId

_PENDING_SEL = VcpuInfo.OFFSET["evtchn_pending_sel"]
UPCALL_PENDING = VcpuInfo.OFFSET["evtchn_upcall_pending"]
UPCALL_MASK = VcpuInfo.OFFSET["evtchn_upcall_mask"]
CR2 = VcpuInfo.OFFSET["arch"]


_RUNSTATE_INFO = Struct("<i4x5Q")


class RunState(IntEnum):
    """The states of public/vcpu.h (RUNSTATE_*)."""

    RUNNING = 0
    RUNNABLE = 1
    BLOCKED = 2
    OFFLINE = 3


@dataclass(slots=True)
class RunStateTimes:
    """Nanoseconds of system time spent in each state, and since when the vCPU is in this one."""

    state: RunState = RunState.OFFLINE
    entered_ns: int = 0
    spent_ns: list[int] = field(default_factory=lambda: [0] * len(RunState))
    """Indexed by state."""

    def enter(self, state: RunState, now_ns: int) -> None:
        """Account for the time in the old state and begin the new one."""
        self.spent_ns[self.state] += max(0, now_ns - self.entered_ns)
        self.state = state
        self.entered_ns = now_ns

    def record(self, now_ns: int) -> bytes:
        """struct vcpu_runstate_info, the state that it is in counted up to now."""
        spent = self.spent_ns.copy()
        spent[self.state] += max(0, now_ns - self.entered_ns)
        return _RUNSTATE_INFO.pack(self.state, self.entered_ns, *spent)


@dataclass(slots=True)
class ArchState:
    """Processor state of a PV vCPU that neither its registers nor PvState hold."""

    syscall32_callback: int = 0
    sysenter_callback: int = 0
    sysenter_masks_events: bool = False
    nmi_pending: bool = False
    cr4: int = 0
    """The bits that are the guest's choice: TSD and DE."""
    dr7_emul: int = 0
    """The enable bits of breakpoints on ports, which the engine is not told of."""
    io_bitmap: int = 0
    """Virtual address of a bitmap: a bit that is clear permits a port to user mode."""
    io_ports: int = 0
    """How many ports the bitmap covers."""
    cpuid_faulting: bool = False


class Vcpu:
    """PV state, timers and scheduling state of one vCPU."""

    def __init__(self, vcpu_id: VcpuId, memory: MachineMemory, vcpu_info_maddr: int) -> None:
        self.vcpu_id = vcpu_id
        self.pv = PvState()
        self.arch = ArchState()
        self.pv.vcpu_info_maddr = vcpu_info_maddr
        self._memory = memory
        self.initialised = False
        self.up = False
        self.blocked = False
        self.poll_ports: tuple[int, ...] = ()
        """What SCHEDOP_poll waits for; the vCPU is then one of EventChannels.pollers."""
        self.vcpu_info_registered = False
        self.runstate = RunStateTimes()
        self.runstate_vaddr = 0
        self.time_info_vaddr = 0
        self.singleshot_ns = 0
        self.periodic_ns = 0
        self.periodic_due_ns = 0
        self.poll_deadline_ns = 0
        self.virq_to_port: dict[int, int] = {}
        self.gdt_frames: tuple[int, ...] = ()
        self.ldt_frames: tuple[int, ...] = ()
        self.ldt_vaddr = 0
        self.task_switched = False
        self.cpu_time_ns = 0
        self.virtual_ns = 0
        """Its account with the scheduler: time that it had, moved when it wakes up."""
        self.last_turn = 0
        """Number of its last turn, counted over all vCPUs."""

    @property
    def runnable(self) -> bool:
        """Whether the vCPU wants to execute instructions."""
        return self.up and not self.blocked

    @property
    def upcall_pending(self) -> bool:
        """vcpu_info.evtchn_upcall_pending."""
        return self._memory.bytes[self.pv.vcpu_info_maddr + UPCALL_PENDING] != 0

    @property
    def upcall_mask(self) -> int:
        """vcpu_info.evtchn_upcall_mask; guests may store other values than 0 and 1."""
        return self._memory.bytes[self.pv.vcpu_info_maddr + UPCALL_MASK]

    @upcall_mask.setter
    def upcall_mask(self, value: int) -> None:
        self._memory.bytes[self.pv.vcpu_info_maddr + UPCALL_MASK] = value

    def mark_pending(self, selector_bit: int) -> bool:
        """Set a bit of evtchn_pending_sel and ask for an upcall; whether either was news."""
        index, bit = (self.pv.vcpu_info_maddr + _PENDING_SEL) >> 3, 1 << selector_bit
        if self._memory.words[index] & bit:
            return False
        self._memory.words[index] |= bit
        return self.mark_events_pending()

    def mark_events_pending(self) -> bool:
        """Ask for an upcall; False if the guest has been asked already, and has yet to look."""
        at = self.pv.vcpu_info_maddr + UPCALL_PENDING
        if self._memory.bytes[at] & 1:
            return False
        self._memory.bytes[at] |= 1
        return True

    def set_cr2(self, address: int) -> None:
        """Where the guest finds the address of its page fault (vcpu_info.arch.cr2)."""
        self._memory.words[(self.pv.vcpu_info_maddr + CR2) >> 3] = address

    def cr2(self) -> int:
        """The address that the guest's read of CR2 gives."""
        return self._memory.words[(self.pv.vcpu_info_maddr + CR2) >> 3]

    def next_timer_ns(self) -> int | None:
        """System time of this vCPU's next timer event.

        The periodic timer of a vCPU that sleeps stands still, as Xen's does.
        """
        due = self.singleshot_ns
        if self.poll_deadline_ns and (not due or self.poll_deadline_ns < due):
            due = self.poll_deadline_ns
        if self.periodic_due_ns and not self.blocked and (not due or self.periodic_due_ns < due):
            due = self.periodic_due_ns
        return due or None
