"""Event channels: the arguments of HYPERVISOR_event_channel_op, and the two queueing ABIs.

Source: public/event_channel.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, array, char, u8, u16, u32, u64, union, xen_struct

_HEADERS = ("event_channel.h",)
_PUBLIC = "event_channel.h"


# Commands of HYPERVISOR_event_channel_op.
EVTCHNOP_bind_interdomain = 0
EVTCHNOP_bind_virq = 1
EVTCHNOP_bind_pirq = 2
EVTCHNOP_close = 3
EVTCHNOP_send = 4
EVTCHNOP_status = 5
EVTCHNOP_alloc_unbound = 6
EVTCHNOP_bind_ipi = 7
EVTCHNOP_bind_vcpu = 8
EVTCHNOP_unmask = 9
EVTCHNOP_reset = 10
EVTCHNOP_init_control = 11
EVTCHNOP_expand_array = 12
EVTCHNOP_set_priority = 13
EVTCHNOP_reset_cont = 14
"""EVTCHNOP_reset that goes on: what is in a register while a long one is interrupted."""

_NOT_IN_HEADER = {"EVTCHNOP_reset_cont": "between Xen and itself"}

# evtchn_bind_pirq.flags
BIND_PIRQ__WILL_SHARE = 1

# evtchn_status.status
EVTCHNSTAT_closed = 0
EVTCHNSTAT_unbound = 1
EVTCHNSTAT_interdomain = 2
EVTCHNSTAT_pirq = 3
EVTCHNSTAT_virq = 4
EVTCHNSTAT_ipi = 5

# The 2-level ABI: one bit a port in shared_info.
EVTCHN_2L_NR_CHANNELS = 4096

# The FIFO ABI: queues by priority (0 is served first), one 32-bit event word a port.
EVTCHN_FIFO_PRIORITY_MAX = 0
EVTCHN_FIFO_PRIORITY_DEFAULT = 7
EVTCHN_FIFO_PRIORITY_MIN = 15
EVTCHN_FIFO_MAX_QUEUES = EVTCHN_FIFO_PRIORITY_MIN + 1

# Bit numbers in an event word, and its link to the next port of the queue.
EVTCHN_FIFO_PENDING = 31
EVTCHN_FIFO_MASKED = 30
EVTCHN_FIFO_LINKED = 29
EVTCHN_FIFO_BUSY = 28
EVTCHN_FIFO_LINK_BITS = 17
EVTCHN_FIFO_LINK_MASK = 0x1FFFF
EVTCHN_FIFO_NR_CHANNELS = 0x20000


@xen_struct("evtchn_alloc_unbound_t", header=_PUBLIC, size=8)
class EvtchnAllocUnbound(XenStruct):
    """A new port of `dom` that `remote_dom` may bind to. Out: port."""

    dom: u16 = 0
    remote_dom: u16 = 0
    port: u32 = 0


@xen_struct("evtchn_bind_interdomain_t", header=_PUBLIC, size=12)
class EvtchnBindInterdomain(XenStruct):
    """Connect to an unbound port of another domain. Out: local_port."""

    remote_dom: u16 = 0
    remote_port: u32 = 0
    local_port: u32 = 0


@xen_struct("evtchn_bind_virq_t", header=_PUBLIC, size=12)
class EvtchnBindVirq(XenStruct):
    """A port for a virtual interrupt (VIRQ_*). Out: port."""

    virq: u32 = 0
    vcpu: u32 = 0
    port: u32 = 0


@xen_struct("evtchn_bind_pirq_t", header=_PUBLIC, size=12)
class EvtchnBindPirq(XenStruct):
    """A port for a physical interrupt. Out: port."""

    pirq: u32 = 0
    flags: u32 = 0
    port: u32 = 0


@xen_struct("evtchn_bind_ipi_t", header=_PUBLIC, size=8)
class EvtchnBindIpi(XenStruct):
    """A port that a vCPU is notified through by its own domain. Out: port."""

    vcpu: u32 = 0
    port: u32 = 0


@xen_struct("evtchn_close_t", header=_PUBLIC, size=4)
class EvtchnClose(XenStruct):
    """Free a local port."""

    port: u32 = 0


@xen_struct("evtchn_send_t", header=_PUBLIC, size=4)
class EvtchnSend(XenStruct):
    """Notify the other end of a local port."""

    port: u32 = 0


@xen_struct("evtchn_status_t.u.unbound", header=_PUBLIC, size=2)
class EvtchnStatusUnbound(XenStruct):
    """Whom an unbound port waits for."""

    dom: u16 = 0


@xen_struct("evtchn_status_t.u.interdomain", header=_PUBLIC, size=8)
class EvtchnStatusInterdomain(XenStruct):
    """The other end of a connected port."""

    dom: u16 = 0
    port: u32 = 0


@xen_struct("evtchn_status_t", header=_PUBLIC, size=24)
class EvtchnStatus(XenStruct):
    """State of a port. In: dom, port; out: status, vcpu, u.

    u by status: EvtchnStatusUnbound, EvtchnStatusInterdomain, or a u32: the pirq, the virq.
    """

    dom: u16 = 0
    port: u32 = 0
    status: u32 = 0
    vcpu: u32 = 0
    u: Annotated[bytes, union(EvtchnStatusUnbound, EvtchnStatusInterdomain, u32)] = b""


@xen_struct("evtchn_bind_vcpu_t", header=_PUBLIC, size=8)
class EvtchnBindVcpu(XenStruct):
    """Which vCPU a local port notifies."""

    port: u32 = 0
    vcpu: u32 = 0


@xen_struct("evtchn_unmask_t", header=_PUBLIC, size=4)
class EvtchnUnmask(XenStruct):
    """Unmask a local port, and deliver if it is pending."""

    port: u32 = 0


@xen_struct("evtchn_reset_t", header=_PUBLIC, size=2)
class EvtchnReset(XenStruct):
    """Close all of a domain's ports, and leave the FIFO ABI."""

    dom: u16 = 0


@xen_struct("evtchn_init_control_t", header=_PUBLIC, size=24)
class EvtchnInitControl(XenStruct):
    """Switch to the FIFO ABI: a vCPU's control block. Out: link_bits."""

    control_gfn: u64 = 0
    offset: u32 = 0
    vcpu: u32 = 0
    link_bits: u8 = 0
    _pad: Annotated[bytes, char(7)] = b""


@xen_struct("evtchn_expand_array_t", header=_PUBLIC, size=8)
class EvtchnExpandArray(XenStruct):
    """Add a page of event words (FIFO ABI)."""

    array_gfn: u64 = 0


@xen_struct("evtchn_set_priority_t", header=_PUBLIC, size=8)
class EvtchnSetPriority(XenStruct):
    """A port's queue (FIFO ABI)."""

    port: u32 = 0
    priority: u32 = 0


@xen_struct("evtchn_fifo_control_block_t", header=_PUBLIC, size=72)
class EvtchnFifoControlBlock(XenStruct):
    """A vCPU's queue heads; `ready` has a bit for each queue that is not empty."""

    ready: u32 = 0
    _rsvd: u32 = 0
    head: Annotated[tuple[int, ...], array(u32, 16)] = ()


@xen_struct("evtchn_op_t", header=_PUBLIC, size=28)
class EvtchnOp(XenStruct):
    """Argument of HYPERVISOR_event_channel_op_compat: a command and its structure."""

    cmd: u32 = 0
    u: Annotated[bytes, union(EvtchnStatus)] = b""
