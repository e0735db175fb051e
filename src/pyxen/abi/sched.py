"""Scheduling and shutdown: the arguments of HYPERVISOR_sched_op.

Source: public/sched.h.
"""

from pyxen.abi._struct import XenStruct, ptr, s32, u16, u32, u64, xen_struct

_HEADERS = ("sched.h",)
_PUBLIC = "sched.h"


# Commands of HYPERVISOR_sched_op.
SCHEDOP_yield = 0
SCHEDOP_block = 1
SCHEDOP_shutdown = 2
SCHEDOP_poll = 3
SCHEDOP_remote_shutdown = 4
SCHEDOP_shutdown_code = 5
SCHEDOP_watchdog = 6
SCHEDOP_pin_override = 7

# Why a domain shut down.
SHUTDOWN_poweroff = 0
SHUTDOWN_reboot = 1
SHUTDOWN_suspend = 2
SHUTDOWN_crash = 3
SHUTDOWN_watchdog = 4
SHUTDOWN_soft_reset = 5
SHUTDOWN_MAX = 5


@xen_struct("sched_shutdown_t", header=_PUBLIC, size=4)
class SchedShutdown(XenStruct):
    """Argument of SCHEDOP_shutdown and SCHEDOP_shutdown_code: SHUTDOWN_*."""

    reason: u32 = 0


@xen_struct("sched_poll_t", header=_PUBLIC, size=24)
class SchedPoll(XenStruct):
    """Block until one of `nr_ports` ports (an array of u32) is pending.

    timeout: absolute system time in ns; 0 waits for ever.
    """

    ports: ptr = 0
    nr_ports: u32 = 0
    timeout: u64 = 0


@xen_struct("sched_remote_shutdown_t", header=_PUBLIC, size=8)
class SchedRemoteShutdown(XenStruct):
    """Mark another domain as shut down."""

    domain_id: u16 = 0
    reason: u32 = 0


@xen_struct("sched_watchdog_t", header=_PUBLIC, size=8)
class SchedWatchdog(XenStruct):
    """Set (id 0: a new one), re-arm or, with timeout 0, stop a watchdog. timeout: seconds."""

    id: u32 = 0
    timeout: u32 = 0


@xen_struct("sched_pin_override_t", header=_PUBLIC, size=4)
class SchedPinOverride(XenStruct):
    """Pin the vCPU to a physical CPU for a while; negative ends that."""

    pcpu: s32 = 0
