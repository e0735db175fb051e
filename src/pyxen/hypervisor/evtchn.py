"""Event channels, two-level ABI.

Source: public/event_channel.h; delivery order from the 2-level description in public/xen.h
(evtchn_pending, evtchn_mask, evtchn_pending_sel).

A port is one end of a channel. The other end is another port of the same domain, or one of the
host's back ends (domid 0), which is a function that is called when the guest sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from pyxen.abi.errno import E
from pyxen.abi.xen import VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU, SharedInfo
from pyxen.errors import XenError
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.machine import MachineMemory
from pyxen.types import DomId, Port, VcpuId

MAX_PORTS = 4096
_PENDING = SharedInfo.OFFSET["evtchn_pending"]
PER_VCPU_VIRQS = frozenset({VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU})
_MASK = SharedInfo.OFFSET["evtchn_mask"]


class ChannelKind(IntEnum):
    """EVTCHNSTAT_*: what a port is bound to."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    PIRQ = 3
    VIRQ = 4
    IPI = 5


@dataclass(slots=True)
class Channel:
    """What one local port is bound to.

    remote_domid, remote_port: the other end of UNBOUND (port 0) and INTERDOMAIN channels.
    virq: of a VIRQ channel. notify: called when the guest sends to a back end of the host.
    """

    kind: ChannelKind
    vcpu_id: VcpuId = VcpuId(0)
    remote_domid: DomId = DomId(0)
    remote_port: Port = Port(0)
    virq: int = 0
    notify: Callable[[], None] | None = None


class EventChannels:
    """All ports of one domain."""

    def __init__(
        self, memory: MachineMemory, shared_info_maddr: int, vcpus: dict[VcpuId, Vcpu]
    ) -> None:
        self._memory = memory
        self._shared_info = shared_info_maddr
        self._vcpus = vcpus
        self._channels: dict[Port, Channel] = {}
        self._lowest_free = 1
        """No port below this one is free."""
        self.pollers: set[Vcpu] = set()
        """vCPUs in SCHEDOP_poll: they wait for ports, not for interrupts."""
        self.on_pending: Callable[[Vcpu, Port], None] = lambda vcpu, port: None
        """Called after a port became pending for a vCPU: wake it, kick it."""

    def __iter__(self) -> Iterator[tuple[Port, Channel]]:
        return iter(sorted(self._channels.items()))

    def channel(self, port: int) -> Channel:
        """What a port is bound to. Raises: XenError(EINVAL) if there is no such port."""
        channel = self._channels.get(Port(port))
        if channel is None:
            raise XenError(E.INVAL, f"port {port} is not in use")
        return channel

    def status(self, port: int) -> Channel:
        """As `channel`, but a free port is CLOSED. Raises: XenError(EINVAL) past the last port."""
        if not 0 <= port < MAX_PORTS:
            raise XenError(E.INVAL, f"there is no port {port}")
        return self._channels.get(Port(port)) or Channel(ChannelKind.CLOSED)

    def allocate(self, channel: Channel, port: int | None = None) -> Port:
        """Bind a free port. Raises: XenError(ENOSPC), or EBUSY when `port` is not free."""
        if port is None:
            while self._lowest_free in self._channels:
                self._lowest_free += 1
            port = self._lowest_free
            if port >= MAX_PORTS:
                raise XenError(E.NOSPC, "all event channels are in use")
        elif port in self._channels:
            raise XenError(E.BUSY, f"port {port} is in use")
        self._channels[Port(port)] = channel
        return Port(port)

    def close(self, port: int) -> None:
        """EVTCHNOP_close. Raises: XenError(EINVAL)."""
        channel = self.channel(port)
        # COMMIT
        if channel.kind is ChannelKind.VIRQ:
            # A global one is noted at vCPU 0, wherever its events go by now.
            owner = channel.vcpu_id if channel.virq in PER_VCPU_VIRQS else VcpuId(0)
            self._vcpus[owner].virq_to_port.pop(channel.virq, None)
        if channel.kind is ChannelKind.INTERDOMAIN and channel.notify is None:
            other = self._channels.get(channel.remote_port)
            if other is not None:
                other.kind = ChannelKind.UNBOUND
                other.remote_port = Port(0)
        del self._channels[Port(port)]
        self._lowest_free = min(self._lowest_free, port)
        self._set_bit(_PENDING, port, False)

    def bind_back_end(self, port: int, notify: Callable[[], None]) -> None:
        """Connect a back end of the host to a port the guest left open for domid 0.

        Raises: XenError(EINVAL) unless the port is UNBOUND and meant for domid 0.
        """
        channel = self.channel(port)
        if channel.kind is not ChannelKind.UNBOUND or channel.remote_domid != 0:
            raise XenError(E.INVAL, f"port {port} is not open for domain 0")
        # COMMIT
        channel.kind = ChannelKind.INTERDOMAIN
        channel.notify = notify

    def unbind_back_end(self, port: int) -> None:
        """The back end goes away: the port is UNBOUND again, if the guest still has it."""
        channel = self._channels.get(Port(port))
        if channel is not None and channel.notify is not None:
            channel.kind = ChannelKind.UNBOUND
            channel.notify = None

    def send(self, port: int) -> None:
        """EVTCHNOP_send. Raises: XenError(EINVAL) if the port cannot send."""
        channel = self.channel(port)
        if channel.kind is ChannelKind.IPI:
            self.set_pending(Port(port))
        elif channel.kind is ChannelKind.INTERDOMAIN:
            if channel.notify is not None:
                channel.notify()
            else:
                self.set_pending(channel.remote_port)
        elif channel.kind is not ChannelKind.UNBOUND:
            # To an unbound port: silently dropped, as Xen does.
            raise XenError(E.INVAL, f"port {port} cannot send")

    def raise_virq(self, vcpu: Vcpu, virq: int) -> None:
        """A virtual interrupt for a vCPU; dropped unless it is bound."""
        port = vcpu.virq_to_port.get(virq)
        if port is not None:
            self.set_pending(Port(port))

    def set_pending(self, port: Port) -> None:
        """Make a port pending; if it is not masked, its vCPU is told.

        Post: the pending bit is set before the vCPU is kicked.
        """
        channel = self._channels.get(port)
        if channel is None or self._set_bit(_PENDING, port, True):
            return
        if not self._bit(_MASK, port):
            self._deliver(channel, port)
        for vcpu in [v for v in self.pollers if port in v.poll_ports]:
            self.on_pending(vcpu, port)

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask. Raises: XenError(EINVAL)."""
        channel = self.channel(port)
        # COMMIT
        was_masked = self._set_bit(_MASK, port, False)
        if was_masked and self._bit(_PENDING, port):
            self._deliver(channel, Port(port))

    def is_pending(self, port: int) -> bool:
        """Whether the port's pending bit is set."""
        return self._bit(_PENDING, port)

    def _deliver(self, channel: Channel, port: Port) -> None:
        vcpu = self._vcpus[channel.vcpu_id]
        vcpu.mark_pending(port >> 6)
        self.on_pending(vcpu, port)

    def _bit(self, bitmap: int, port: int) -> bool:
        word = self._memory.words[(self._shared_info + bitmap + ((port >> 6) << 3)) >> 3]
        return bool(word >> (port & 63) & 1)

    def _set_bit(self, bitmap: int, port: int, value: bool) -> bool:
        """Set or clear a bit; returns what it was."""
        index = (self._shared_info + bitmap + ((port >> 6) << 3)) >> 3
        word, bit = self._memory.words[index], 1 << (port & 63)
        self._memory.words[index] = word | bit if value else word & ~bit
        return bool(word & bit)
