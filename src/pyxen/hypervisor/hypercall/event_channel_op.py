"""HYPERVISOR_event_channel_op and its older form.

Source: public/event_channel.h; the order of checks from xen/common/event_channel.c.

A domain sees itself and domain 0; of domain 0 it can use the ports of its own back ends. Other
domains are not there.
"""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.event_channel import (
    EVTCHN_FIFO_LINK_BITS,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindPirq,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnExpandArray,
    EvtchnFifoControlBlock,
    EvtchnInitControl,
    EvtchnOp,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_reset_cont,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EvtchnReset,
    EvtchnSetPriority,
    EvtchnStatus,
)
from pyxen.abi.xen import NR_VIRQS
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.evtchn import PER_VCPU_VIRQS, Channel, ChannelKind
from pyxen.hypervisor.hypercall.continuation import Continue, exhausted, work
from pyxen.hypervisor.hypercall.domid import check_own, own_domid, peer_domid
from pyxen.hypervisor.hypercall.physdev_op import NR_PIRQS
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import PAGE_SIZE, DomId, VcpuId

_CONTROL_BLOCK_ALIGNMENT = 8
_COMPAT_ARGUMENT = EvtchnOp.OFFSET["u"]


def event_channel_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command. Raises: XenError(ENOSYS) for those that do not exist."""
    handler = _COMMANDS.get(command & 0xFFFF_FFFF)
    if handler is None:
        raise XenError(E.NOSYS, f"event_channel_op {command}")
    return handler(d, argument)


def event_channel_op_compat(d: Domain, v: Vcpu, argument: int) -> int:
    """HYPERVISOR_event_channel_op_compat: command and structure in one; none of the later ones."""
    op = EvtchnOp.unpack(d.space.read(argument, EvtchnOp.SIZE))
    if op.cmd > EVTCHNOP_unmask:
        raise XenError(E.NOSYS, f"event_channel_op_compat {op.cmd}")
    return event_channel_op(d, v, op.cmd, argument + _COMPAT_ARGUMENT)


def _send(d: Domain, argument: int) -> int:
    d.events.send(d.space.read_u32(argument))
    return 0


def _close(d: Domain, argument: int) -> int:
    d.events.close(d.space.read_u32(argument))
    return 0


def _unmask(d: Domain, argument: int) -> int:
    d.events.unmask(d.space.read_u32(argument))
    return 0


def _alloc_unbound(d: Domain, argument: int) -> int:
    op = EvtchnAllocUnbound.unpack(d.space.read(argument, EvtchnAllocUnbound.SIZE))
    peer_domid(d, op.dom)
    work(d, d.events.search_units)
    port = d.events.free_port()
    check_own(d, op.dom)
    d.space.check_writable(argument, EvtchnAllocUnbound.SIZE)
    # COMMIT
    # The other side may be any domain, also one that does not exist yet.
    remote = own_domid(d, op.remote_dom)
    op.port = d.events.allocate(Channel(ChannelKind.UNBOUND, remote_domid=remote), port)
    d.space.write(argument, op.pack())
    return 0


def _bind_interdomain(d: Domain, argument: int) -> int:
    op = EvtchnBindInterdomain.unpack(d.space.read(argument, EvtchnBindInterdomain.SIZE))
    remote = peer_domid(d, op.remote_dom)
    d.space.check_writable(argument, EvtchnBindInterdomain.SIZE)
    work(d, d.events.search_units)
    if remote == d.domid:
        op.local_port = d.events.connect(d.domid, op.remote_port)
    else:
        op.local_port = d.events.connect_to_host(op.remote_port)
    d.space.write(argument, op.pack())
    return 0


def _bind_virq(d: Domain, argument: int) -> int:
    op = EvtchnBindVirq.unpack(d.space.read(argument, EvtchnBindVirq.SIZE))
    if op.virq >= NR_VIRQS:
        raise XenError(E.INVAL, f"virq {op.virq}")
    if op.virq not in PER_VCPU_VIRQS and op.vcpu != 0:
        raise XenError(E.INVAL, f"virq {op.virq} is global: it is bound to vCPU 0")
    vcpu = _vcpu(d, op.vcpu)
    if op.virq in vcpu.virq_to_port:
        raise XenError(E.EXIST, f"virq {op.virq} is bound")
    d.space.check_writable(argument, EvtchnBindVirq.SIZE)
    work(d, d.events.search_units)
    op.port = d.events.allocate(Channel(ChannelKind.VIRQ, vcpu.vcpu_id, virq=op.virq))
    # COMMIT
    vcpu.virq_to_port[op.virq] = op.port
    d.space.write(argument, op.pack())
    return 0


def _bind_pirq(d: Domain, argument: int) -> int:
    """A domain without devices may use none of the interrupts that there are."""
    op = EvtchnBindPirq.unpack(d.space.read(argument, EvtchnBindPirq.SIZE))
    if op.pirq >= NR_PIRQS:
        raise XenError(E.INVAL, f"there is no interrupt {op.pirq}")
    raise XenError(E.PERM, f"interrupt {op.pirq} is not the domain's")


def _bind_ipi(d: Domain, argument: int) -> int:
    op = EvtchnBindIpi.unpack(d.space.read(argument, EvtchnBindIpi.SIZE))
    vcpu = _vcpu(d, op.vcpu)
    d.space.check_writable(argument, EvtchnBindIpi.SIZE)
    work(d, d.events.search_units)
    op.port = d.events.allocate(Channel(ChannelKind.IPI, vcpu.vcpu_id))
    # COMMIT
    d.space.write(argument, op.pack())
    return 0


def _bind_vcpu(d: Domain, argument: int) -> int:
    """Interdomain and unbound ports and global virqs may move; IPIs and a vCPU's virqs may not."""
    op = EvtchnBindVcpu.unpack(d.space.read(argument, EvtchnBindVcpu.SIZE))
    vcpu = _vcpu(d, op.vcpu)
    channel = d.events.channel(op.port)
    if channel.kind is ChannelKind.IPI or (
        channel.kind is ChannelKind.VIRQ and channel.virq in PER_VCPU_VIRQS
    ):
        raise XenError(E.INVAL, f"port {op.port} belongs to its vCPU")
    # COMMIT
    channel.vcpu_id = vcpu.vcpu_id
    return 0


def _status(d: Domain, argument: int) -> int:
    op = EvtchnStatus.unpack(d.space.read(argument, EvtchnStatus.SIZE))
    if peer_domid(d, op.dom) != d.domid:
        # Which ports domain 0 has is not told: EINVAL would tell.
        raise XenError(E.PERM, "a port of another domain")
    channel = d.events.status(op.port)
    detail = b""
    if channel.kind is ChannelKind.UNBOUND:
        detail = channel.remote_domid.to_bytes(2, "little")
    elif channel.kind is ChannelKind.INTERDOMAIN:
        detail = channel.remote_domid.to_bytes(4, "little")
        detail += channel.remote_port.to_bytes(4, "little")
    elif channel.kind is ChannelKind.VIRQ:
        detail = channel.virq.to_bytes(4, "little")
    op.status, op.vcpu, op.u = channel.kind, channel.vcpu_id, detail.ljust(8, b"\0")
    d.space.write(argument, op.pack())
    return 0


def _reset(d: Domain, argument: int) -> int:
    """Close all ports and leave the FIFO ABI; in pieces if there are many."""
    check_own(d, _reset_target(d, argument))
    if d.events.next_reset:
        raise XenError(E.BUSY, "a reset is under way")
    # COMMIT
    d.events.next_reset = 1
    return _reset_on(d, argument)


def _reset_cont(d: Domain, argument: int) -> int:
    check_own(d, _reset_target(d, argument))
    if not d.events.next_reset:
        raise XenError(E.BUSY, "no reset is under way")
    return _reset_on(d, argument)


def _reset_target(d: Domain, argument: int) -> DomId:
    return peer_domid(d, EvtchnReset.unpack(d.space.read(argument, EvtchnReset.SIZE)).dom)


def _reset_on(d: Domain, argument: int) -> int:
    events = d.events
    for port in range(events.next_reset, events.existing):
        if not len(events):
            break
        if events.status(port).kind is not ChannelKind.CLOSED:
            events.close(port)
        work(d)
        if exhausted(d):
            events.next_reset = port + 1
            raise Continue(EVTCHNOP_reset_cont, argument)
    events.next_reset = 0
    if len(events):
        raise XenError(E.AGAIN, "another vCPU bound ports meanwhile")
    events.leave_fifo()
    return 0


def _init_control(d: Domain, argument: int) -> int:
    op = EvtchnInitControl.unpack(d.space.read(argument, EvtchnInitControl.SIZE))
    vcpu = _vcpu(d, op.vcpu)
    if op.offset > PAGE_SIZE - EvtchnFifoControlBlock.SIZE or op.offset % _CONTROL_BLOCK_ALIGNMENT:
        raise XenError(E.INVAL, f"a control block at offset {op.offset}")
    d.space.check_writable(argument, EvtchnInitControl.SIZE)
    work(d, len(d.events) >> 3)
    d.events.init_control(vcpu.vcpu_id, op.control_gfn, op.offset)
    # COMMIT
    op.link_bits = EVTCHN_FIFO_LINK_BITS
    d.space.write(argument, op.pack())
    return 0


def _expand_array(d: Domain, argument: int) -> int:
    op = EvtchnExpandArray.unpack(d.space.read(argument, EvtchnExpandArray.SIZE))
    work(d, len(d.events) >> 3)
    d.events.expand_array(op.array_gfn)
    return 0


def _set_priority(d: Domain, argument: int) -> int:
    op = EvtchnSetPriority.unpack(d.space.read(argument, EvtchnSetPriority.SIZE))
    d.events.set_priority(op.port, op.priority)
    return 0


def _vcpu(d: Domain, vcpu_id: int) -> Vcpu:
    vcpu = d.vcpus.get(VcpuId(vcpu_id))
    if vcpu is None:
        raise XenError(E.NOENT, f"there is no vCPU {vcpu_id}")
    return vcpu


_COMMANDS = {
    EVTCHNOP_bind_interdomain: _bind_interdomain,
    EVTCHNOP_bind_virq: _bind_virq,
    EVTCHNOP_bind_pirq: _bind_pirq,
    EVTCHNOP_close: _close,
    EVTCHNOP_send: _send,
    EVTCHNOP_status: _status,
    EVTCHNOP_alloc_unbound: _alloc_unbound,
    EVTCHNOP_bind_ipi: _bind_ipi,
    EVTCHNOP_bind_vcpu: _bind_vcpu,
    EVTCHNOP_unmask: _unmask,
    EVTCHNOP_reset: _reset,
    EVTCHNOP_init_control: _init_control,
    EVTCHNOP_expand_array: _expand_array,
    EVTCHNOP_set_priority: _set_priority,
    EVTCHNOP_reset_cont: _reset_cont,
}
