"""HYPERVISOR_event_channel_op. Source: public/event_channel.h."""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.event_channel import (
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_reset,
    EVTCHNOP_send,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EvtchnReset,
    EvtchnStatus,
)
from pyxen.abi.xen import DOMID_SELF, NR_VIRQS
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.evtchn import PER_VCPU_VIRQS, Channel, ChannelKind
from pyxen.hypervisor.hypercall.continuation import work
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import DomId, Port, VcpuId


def event_channel_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command. Raises: XenError(ENOSYS) for those that are not implemented."""
    handler = _COMMANDS.get(command)
    if handler is None:
        raise XenError(E.NOSYS, f"event_channel_op {command}")
    return handler(d, argument)


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
    if op.dom not in (DOMID_SELF, d.domid):
        raise XenError(E.PERM, "a port of another domain")
    d.space.check_writable(argument, EvtchnAllocUnbound.SIZE)
    remote = d.domid if op.remote_dom == DOMID_SELF else DomId(op.remote_dom)
    op.port = d.events.allocate(Channel(ChannelKind.UNBOUND, remote_domid=remote))
    d.space.write(argument, op.pack())
    return 0


def _bind_interdomain(d: Domain, argument: int) -> int:
    op = EvtchnBindInterdomain.unpack(d.space.read(argument, EvtchnBindInterdomain.SIZE))
    if op.remote_dom not in (DOMID_SELF, d.domid):
        raise XenError(E.INVAL, f"domain {op.remote_dom} has no port for this domain")
    d.space.check_writable(argument, EvtchnBindInterdomain.SIZE)
    remote = d.events.channel(op.remote_port)
    if remote.kind is not ChannelKind.UNBOUND or remote.remote_domid != d.domid:
        raise XenError(E.INVAL, f"port {op.remote_port} is not open for this domain")
    local = Channel(ChannelKind.INTERDOMAIN, remote_domid=d.domid, remote_port=Port(op.remote_port))
    op.local_port = d.events.allocate(local)
    remote.kind, remote.remote_port = ChannelKind.INTERDOMAIN, Port(op.local_port)
    # Something may have been sent to the port while it was unbound.
    d.events.set_pending(Port(op.local_port))
    d.space.write(argument, op.pack())
    return 0


def _bind_virq(d: Domain, argument: int) -> int:
    op = EvtchnBindVirq.unpack(d.space.read(argument, EvtchnBindVirq.SIZE))
    if op.virq >= NR_VIRQS:
        raise XenError(E.INVAL, f"virq {op.virq}")
    vcpu = _vcpu(d, op.vcpu)
    if op.virq not in PER_VCPU_VIRQS and op.vcpu != 0:
        raise XenError(E.INVAL, f"virq {op.virq} is global: it is bound to vCPU 0")
    if op.virq in vcpu.virq_to_port:
        raise XenError(E.EXIST, f"virq {op.virq} is bound")
    d.space.check_writable(argument, EvtchnBindVirq.SIZE)
    op.port = d.events.allocate(Channel(ChannelKind.VIRQ, vcpu.vcpu_id, virq=op.virq))
    vcpu.virq_to_port[op.virq] = op.port
    d.space.write(argument, op.pack())
    return 0


def _bind_ipi(d: Domain, argument: int) -> int:
    op = EvtchnBindIpi.unpack(d.space.read(argument, EvtchnBindIpi.SIZE))
    vcpu = _vcpu(d, op.vcpu)
    d.space.check_writable(argument, EvtchnBindIpi.SIZE)
    op.port = d.events.allocate(Channel(ChannelKind.IPI, vcpu.vcpu_id))
    d.space.write(argument, op.pack())
    return 0


def _bind_vcpu(d: Domain, argument: int) -> int:
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
    if op.dom not in (DOMID_SELF, d.domid):
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
    op = EvtchnReset.unpack(d.space.read(argument, EvtchnReset.SIZE))
    if op.dom not in (DOMID_SELF, d.domid):
        raise XenError(E.PERM, "another domain's ports")
    for port, _ in list(d.events):
        work(d)
        d.events.close(port)
    return 0


def _vcpu(d: Domain, vcpu_id: int) -> Vcpu:
    vcpu = d.vcpus.get(VcpuId(vcpu_id))
    if vcpu is None:
        raise XenError(E.NOENT, f"there is no vCPU {vcpu_id}")
    return vcpu


_COMMANDS = {
    EVTCHNOP_send: _send,
    EVTCHNOP_close: _close,
    EVTCHNOP_unmask: _unmask,
    EVTCHNOP_alloc_unbound: _alloc_unbound,
    EVTCHNOP_bind_interdomain: _bind_interdomain,
    EVTCHNOP_bind_virq: _bind_virq,
    EVTCHNOP_bind_ipi: _bind_ipi,
    EVTCHNOP_bind_vcpu: _bind_vcpu,
    EVTCHNOP_status: _status,
    EVTCHNOP_reset: _reset,
}
