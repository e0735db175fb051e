"""HYPERVISOR_vcpu_op and set_timer_op. Source: public/vcpu.h.

Starting further vCPUs: VCPUOP_initialise takes the registers of a vcpu_guest_context.
"""

from __future__ import annotations

from collections.abc import Callable

from pyxen.abi.arch_x86 import VcpuGuestContext
from pyxen.abi.errno import E
from pyxen.abi.vcpu import (
    VCPU_SSHOTTMR_future,
    VCPUOP_down,
    VCPUOP_get_physid,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    VcpuRegisterVcpuInfo,
    VcpuRunstateInfo,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
)
from pyxen.abi.xen import VcpuInfo
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain, ShutdownReason
from pyxen.hypervisor.hypercall.guest_context import start_vcpu
from pyxen.hypervisor.vcpu import RunState, Vcpu
from pyxen.memory.frames import FrameType
from pyxen.memory.pagetable import is_guest_vaddr
from pyxen.types import PAGE_SIZE, U64, VcpuId

MIN_PERIOD_NS, MAX_PERIOD_NS = 1_000_000, (1 << 62) - 1
_FAR_AWAY_NS = 1 << 50
_SOON_NS = 100_000_000


def vcpu_op(d: Domain, v: Vcpu, command: int, vcpu_id: int, argument: int) -> int:
    """Dispatch on the command. Raises: XenError(ENOENT) for a vCPU that the domain cannot have."""
    target = d.vcpus.get(VcpuId(vcpu_id))
    if target is None:
        raise XenError(E.NOENT, f"there is no vCPU {vcpu_id}")
    handler = _COMMANDS.get(command)
    if handler is None:
        raise XenError(E.NOSYS, f"vcpu_op {command}")
    return handler(d, v, target, argument)


def set_timer_op(d: Domain, v: Vcpu, deadline_ns: int) -> int:
    """HYPERVISOR_set_timer_op: one timer event at a system time; 0 stops it."""
    now = d.time.now_ns()
    if deadline_ns >= now + _FAR_AWAY_NS:
        # Xen answers so to guests whose arithmetic wrapped: neither at once nor never.
        deadline_ns = now + _SOON_NS
    v.singleshot_ns = deadline_ns
    d.timers_changed = True
    return 0


def _own(v: Vcpu, target: Vcpu) -> None:
    if v is not target:
        raise XenError(E.INVAL, "only for the calling vCPU")


def _initialise(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    if not target.vcpu_info_registered and target.vcpu_id >= 32:
        raise XenError(E.INVAL, "vCPUs from 32 on need VCPUOP_register_vcpu_info first")
    context = VcpuGuestContext.unpack(d.space.read(argument, VcpuGuestContext.SIZE))
    if target.initialised or target.vcpu_id == 0:
        raise XenError(E.EXIST, f"vCPU {target.vcpu_id} is initialised")
    start_vcpu(d, target, context)
    target.initialised = True
    return 0


def _up(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    if not target.initialised:
        raise XenError(E.INVAL, f"vCPU {target.vcpu_id} is not initialised")
    if not target.up:
        target.up = True
        d.unblock(target)
        d.time.write_vcpu_time(d.memory, target.pv.vcpu_info_maddr)
    return 0


def _down(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    if all(not other.up for other in d.vcpus.values() if other is not target):
        # The last one going down is a power-off, as in Xen.
        d.shutdown(ShutdownReason.POWEROFF)
        return 0
    target.up = False
    target.runstate.enter(RunState.OFFLINE, d.time.now_ns())
    return 0


def _is_up(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    return int(target.up)


def _get_runstate(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    d.space.write(argument, target.runstate.record(d.time.now_ns()))
    return 0


def _register_runstate(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    vaddr = d.space.read_u64(argument)
    if not is_guest_vaddr(vaddr, VcpuRunstateInfo.SIZE):
        raise XenError(E.FAULT, f"runstate area at {vaddr:#x}")
    target.runstate_vaddr = vaddr
    publish_runstate(d, target)
    return 0


def publish_runstate(d: Domain, target: Vcpu) -> None:
    """Copy the runstate to the area the guest registered, if it is mapped just now.

    Nobody needs XEN_RUNSTATE_UPDATE (vm_assist runstate_update_flag) to see that the area changes:
    no vCPU executes meanwhile.
    """
    if target.runstate_vaddr:
        d.space.try_write(target.runstate_vaddr, target.runstate.record(d.time.now_ns()))


def _set_periodic(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    op = VcpuSetPeriodicTimer.unpack(d.space.read(argument, VcpuSetPeriodicTimer.SIZE))
    if not MIN_PERIOD_NS <= op.period_ns <= MAX_PERIOD_NS:
        raise XenError(E.INVAL, f"period of {op.period_ns} ns")
    target.periodic_ns = op.period_ns
    target.periodic_due_ns = d.time.now_ns() + op.period_ns
    d.timers_changed = True
    return 0


def _stop_periodic(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    target.periodic_ns = target.periodic_due_ns = 0
    return 0


def _set_singleshot(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    _own(v, target)
    op = VcpuSetSingleshotTimer.unpack(d.space.read(argument, VcpuSetSingleshotTimer.SIZE))
    if op.flags & VCPU_SSHOTTMR_future and op.timeout_abs_ns < d.time.now_ns():
        raise XenError(E.TIME, "the timer is in the past")
    # Xen's times are signed: what looks negative is past, and fires at once as 0 does.
    v.singleshot_ns = op.timeout_abs_ns if 0 < op.timeout_abs_ns < 1 << 63 else 1
    d.timers_changed = True
    return 0


def _stop_singleshot(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    _own(v, target)
    v.singleshot_ns = 0
    return 0


def _register_vcpu_info(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    op = VcpuRegisterVcpuInfo.unpack(d.space.read(argument, VcpuRegisterVcpuInfo.SIZE))
    if op.offset > PAGE_SIZE - VcpuInfo.SIZE or op.offset & 7:
        raise XenError(E.NXIO, f"vcpu_info at offset {op.offset}")
    if target.vcpu_info_registered:
        raise XenError(E.INVAL, "registered already")
    if target is not v and target.up:
        raise XenError(E.INVAL, f"vCPU {target.vcpu_id} is running")
    d.types.get_page_and_type(op.mfn, FrameType.WRITABLE)  # for as long as the domain lives
    # COMMIT
    maddr = (op.mfn << 12) + op.offset
    d.memory.write(maddr, d.memory.read(target.pv.vcpu_info_maddr, VcpuInfo.SIZE))
    target.pv.vcpu_info_maddr = maddr
    target.vcpu_info_registered = True
    # Events may have come while the guest looked at the old place: let it look at everything.
    d.memory.write_u64(maddr + VcpuInfo.OFFSET["evtchn_pending_sel"], U64)
    d.memory.bytes[maddr] = 1
    return 0


def _register_time_area(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    vaddr = d.space.read_u64(argument)
    if not is_guest_vaddr(vaddr, 32):
        raise XenError(E.FAULT, f"time area at {vaddr:#x}")
    target.time_info_vaddr = vaddr
    publish_time(d, target)
    return 0


def publish_time(d: Domain, target: Vcpu) -> None:
    """Write the time record of a vCPU, and the copy it registered for its user space."""
    d.time.write_vcpu_time(d.memory, target.pv.vcpu_info_maddr)
    if target.time_info_vaddr:
        start = target.pv.vcpu_info_maddr + VcpuInfo.OFFSET["time"]
        d.space.try_write(target.time_info_vaddr, d.memory.read(start, 32))


def _refuse(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    raise XenError(E.INVAL, "only for a vCPU that is pinned to a processor")


def _send_nmi(d: Domain, v: Vcpu, target: Vcpu, argument: int) -> int:
    if argument:
        raise XenError(E.INVAL, "send_nmi takes no argument")
    target.arch.nmi_pending = True
    if target.blocked:
        d.unblock(target)
    return 0


_COMMANDS: dict[int, Callable[[Domain, Vcpu, Vcpu, int], int]] = {
    VCPUOP_initialise: _initialise,
    VCPUOP_up: _up,
    VCPUOP_down: _down,
    VCPUOP_is_up: _is_up,
    VCPUOP_get_runstate_info: _get_runstate,
    VCPUOP_register_runstate_memory_area: _register_runstate,
    VCPUOP_set_periodic_timer: _set_periodic,
    VCPUOP_stop_periodic_timer: _stop_periodic,
    VCPUOP_set_singleshot_timer: _set_singleshot,
    VCPUOP_stop_singleshot_timer: _stop_singleshot,
    VCPUOP_register_vcpu_info: _register_vcpu_info,
    VCPUOP_send_nmi: _send_nmi,
    VCPUOP_get_physid: _refuse,
    VCPUOP_register_vcpu_time_memory_area: _register_time_area,
}
