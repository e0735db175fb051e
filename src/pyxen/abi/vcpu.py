"""Per-vCPU operations: the arguments of HYPERVISOR_vcpu_op.

VCPUOP_initialise takes a vcpu_guest_context (pyxen.abi.arch_x86) from a PV guest.
Source: public/vcpu.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, array, ptr, s32, u32, u64, xen_struct

_HEADERS = ("vcpu.h",)
_PUBLIC = "vcpu.h"

# Commands of HYPERVISOR_vcpu_op; the second argument is the vCPU.
VCPUOP_initialise = 0
VCPUOP_up = 1
VCPUOP_down = 2
VCPUOP_is_up = 3
VCPUOP_get_runstate_info = 4
VCPUOP_register_runstate_memory_area = 5
VCPUOP_set_periodic_timer = 6
VCPUOP_stop_periodic_timer = 7
VCPUOP_set_singleshot_timer = 8
VCPUOP_stop_singleshot_timer = 9
VCPUOP_register_vcpu_info = 10
VCPUOP_send_nmi = 11
VCPUOP_get_physid = 12
VCPUOP_register_vcpu_time_memory_area = 13

# Bit of state_entry_time: an update is under way.
XEN_RUNSTATE_UPDATE = 1 << 63

# vcpu_runstate_info.state
RUNSTATE_running = 0
RUNSTATE_runnable = 1
RUNSTATE_blocked = 2
RUNSTATE_offline = 3

# vcpu_set_singleshot_timer.flags: fail with ETIME if the time is past.
VCPU_SSHOTTMR_future = 1 << 0

# From Xen 4.18 on.
VCPUOP_register_runstate_phys_area = 14
VCPUOP_register_vcpu_time_phys_area = 15

_NOT_IN_HEADER = {
    "VCPUOP_register_runstate_phys_area": "new in Xen 4.18",
    "VCPUOP_register_vcpu_time_phys_area": "new in Xen 4.18",
}


@xen_struct("vcpu_runstate_info_t", header=_PUBLIC, size=48)
class VcpuRunstateInfo(XenStruct):
    """How long (ns) a vCPU was in each RUNSTATE_*, and since when it is in `state`."""

    state: s32 = 0
    state_entry_time: u64 = 0
    time: Annotated[tuple[int, ...], array(u64, 4)] = ()


@xen_struct("vcpu_register_runstate_memory_area_t", header=_PUBLIC, size=8)
class VcpuRegisterRunstateMemoryArea(XenStruct):
    """Guest virtual address of a vcpu_runstate_info that Xen keeps current."""

    addr: ptr = 0


@xen_struct("vcpu_set_periodic_timer_t", header=_PUBLIC, size=8)
class VcpuSetPeriodicTimer(XenStruct):
    """Period of the tick that raises VIRQ_TIMER."""

    period_ns: u64 = 0


@xen_struct("vcpu_set_singleshot_timer_t", header=_PUBLIC, size=16)
class VcpuSetSingleshotTimer(XenStruct):
    """When (absolute system time) VIRQ_TIMER is raised once."""

    timeout_abs_ns: u64 = 0
    flags: u32 = 0


@xen_struct("vcpu_register_vcpu_info_t", header=_PUBLIC, size=16)
class VcpuRegisterVcpuInfo(XenStruct):
    """Move the vcpu_info to `offset` in frame `mfn`, once in the life of a vCPU."""

    mfn: u64 = 0
    offset: u32 = 0
    rsvd: u32 = 0


@xen_struct("vcpu_get_physid_t", header=_PUBLIC, size=8)
class VcpuGetPhysid(XenStruct):
    """Out: APIC id in bits 0-31, ACPI id in bits 32-63."""

    phys_id: u64 = 0


@xen_struct("vcpu_register_time_memory_area_t", header=_PUBLIC, size=8)
class VcpuRegisterTimeMemoryArea(XenStruct):
    """Guest virtual address of a further vcpu_time_info that Xen keeps current."""

    addr: ptr = 0
