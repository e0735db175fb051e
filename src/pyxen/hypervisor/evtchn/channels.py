"""All event channels of a domain: binding, sending, closing, and the ABI that shows them.

Source: public/event_channel.h; the order of checks from xen/common/event_channel.c.

A port is one end of a channel. The other end is another port of the same domain, or a back end of
the host (domid 0), which is a function that is called when the guest sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyxen.abi.errno import E
from pyxen.abi.event_channel import EVTCHN_FIFO_PRIORITY_DEFAULT, EVTCHN_FIFO_PRIORITY_MIN
from pyxen.errors import XenError
from pyxen.hypervisor.evtchn.channel import (
    PER_VCPU_VIRQS,
    Channel,
    ChannelKind,
    Effect,
    EventAbi,
    HostEnd,
)
from pyxen.hypervisor.evtchn.fifo import Fifo
from pyxen.hypervisor.evtchn.two_level import TwoLevel
from pyxen.hypervisor.page_types import PageTypes
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.machine import MachineMemory
from pyxen.types import DomId, Port, VcpuId

HOST = DomId(0)
PORTS_PER_BUCKET = 64
"""Xen makes room for so many ports at a time; a port exists when there is room for it."""


class EventChannels:
    """All ports of one domain."""

    def __init__(
        self,
        memory: MachineMemory,
        types: PageTypes,
        shared_info_maddr: int,
        vcpus: dict[VcpuId, Vcpu],
        max_port: int,
    ) -> None:
        """max_port: the highest port that the domain may have (max_event_channels of xl.cfg)."""
        self._memory = memory
        self._types = types
        self._vcpus = vcpus
        self._max_port = max_port
        self._two_level = TwoLevel(memory, shared_info_maddr)
        self._abi: EventAbi = self._two_level
        self.fifo: Fifo | None = None
        """The FIFO ABI, once the guest uses it."""
        self._channels: dict[Port, Channel] = {}
        self._host_ends: dict[Port, HostEnd] = {}
        """By the host's port."""
        self._lowest_free = 1
        """No port below this one is free."""
        self.existing = PORTS_PER_BUCKET
        """Ports from this one on do not exist yet (d->valid_evtchns)."""
        self.next_reset = 0
        """Where EVTCHNOP_reset goes on; 0: none is under way."""
        self.pollers: set[Vcpu] = set()
        """vCPUs in SCHEDOP_poll: they wait for ports, not for interrupts."""
        self.on_pending: Callable[[Vcpu, Port], None] = lambda vcpu, port: None
        """Called after a port became pending for a vCPU: wake it, kick it."""
        self.on_port: Callable[[Vcpu, Port], None] | None = None
        """Told by a trace's wish of each port that becomes pending, masked or not."""

    def __iter__(self) -> Iterator[tuple[Port, Channel]]:
        return iter(sorted(self._channels.items()))

    def __len__(self) -> int:
        """How many ports are in use."""
        return len(self._channels)

    # --- ports --------------------------------------------------------------------------------

    def channel(self, port: int) -> Channel:
        """What a port is bound to. Raises: XenError(EINVAL) if it is free, or no port."""
        channel = self._channels.get(Port(port))
        if channel is None:
            raise XenError(E.INVAL, f"port {port} is not in use")
        return channel

    def status(self, port: int) -> Channel:
        """As `channel`, but a free port is CLOSED. Raises: XenError(EINVAL) for what is no port."""
        return self._bound(port) or Channel(ChannelKind.CLOSED)

    def _bound(self, port: int) -> Channel | None:
        """What an existing port is bound to, if anything. Raises: XenError(EINVAL)."""
        if not 0 <= port < self.existing:
            raise XenError(E.INVAL, f"there is no port {port}")
        return self._channels.get(Port(port))

    @property
    def search_units(self) -> int:
        """The work of looking for a free port: a guest can keep all that are closed in a queue."""
        return min(self._max_port + 1, self._abi.max_ports) - self._lowest_free >> 6

    def free_port(self) -> Port:
        """The lowest port that can be bound. Raises: XenError(ENOSPC)."""
        end = min(self._max_port + 1, self._abi.max_ports)
        while self._lowest_free in self._channels:
            self._lowest_free += 1
        for port in range(self._lowest_free, end):
            if port not in self._channels and not self._abi.is_busy(Port(port)):
                return Port(port)
        raise XenError(E.NOSPC, "all event channels are in use")

    def allocate(self, channel: Channel, port: int | None = None) -> Port:
        """Bind a free port. Raises: XenError(ENOSPC), or EBUSY when `port` is not free."""
        if port is None:
            port = self.free_port()
        elif port > self._max_port or port >= self._abi.max_ports:
            raise XenError(E.NOSPC, f"the domain may not have port {port}")
        elif port in self._channels or self._abi.is_busy(Port(port)):
            raise XenError(E.BUSY, f"port {port} is in use")
        # COMMIT
        self._channels[Port(port)] = channel
        if port >= self.existing:
            self.existing = (port // PORTS_PER_BUCKET + 1) * PORTS_PER_BUCKET
        return Port(port)

    def connect(self, domid: DomId, remote_port: int) -> Port:
        """Bind a new port to one that this domain (`domid`) left open for itself.

        Raises: XenError(ENOSPC, EINVAL).
        """
        port = self.free_port()
        remote = self._channels.get(Port(remote_port))
        if remote is None or remote.kind is not ChannelKind.UNBOUND or remote.remote_domid != domid:
            raise XenError(E.INVAL, f"port {remote_port} is not open for this domain")
        # COMMIT
        local = Channel(ChannelKind.INTERDOMAIN, remote_domid=domid, remote_port=Port(remote_port))
        self.allocate(local, port)
        remote.kind, remote.remote_port = ChannelKind.INTERDOMAIN, port
        # Something may have been sent to the port while it was unbound.
        self.set_pending(port)
        return port

    def close(self, port: int) -> None:
        """EVTCHNOP_close. Raises: XenError(EINVAL)."""
        channel = self.channel(port)
        # COMMIT
        if channel.kind is ChannelKind.VIRQ:
            # A global one is noted at vCPU 0, wherever its events go by now.
            owner = channel.vcpu_id if channel.virq in PER_VCPU_VIRQS else VcpuId(0)
            self._vcpus[owner].virq_to_port.pop(channel.virq, None)
        if channel.kind is ChannelKind.INTERDOMAIN:
            self._leave(channel)
        self._abi.clear_pending(Port(port))
        del self._channels[Port(port)]
        self._lowest_free = min(self._lowest_free, port)

    def _leave(self, channel: Channel) -> None:
        """The other end is open again, for this domain."""
        if channel.remote_domid == HOST:
            self._host_ends[channel.remote_port].port = Port(0)
        else:
            other = self._channels[channel.remote_port]
            other.kind, other.remote_port = ChannelKind.UNBOUND, Port(0)

    # --- the host's ends ----------------------------------------------------------------------

    def connect_host(self, port: int, notify: Callable[[], None]) -> Port:
        """Bind a chosen free port to a back end, as the tool stack does; the host's port.

        Raises: as `allocate`.
        """
        host_port = max(self._host_ends, default=Port(0)) + 1
        self.allocate(
            Channel(ChannelKind.INTERDOMAIN, remote_domid=HOST, remote_port=Port(host_port)), port
        )
        # COMMIT
        self._host_ends[Port(host_port)] = HostEnd(notify, Port(port))
        return Port(host_port)

    def bind_back_end(self, port: int, notify: Callable[[], None]) -> Port:
        """Connect a back end of the host to a port the guest left open for domid 0.

        Returns the host's port. Raises: XenError(EINVAL) unless the port is UNBOUND and meant
        for domid 0.
        """
        channel = self.channel(port)
        if channel.kind is not ChannelKind.UNBOUND or channel.remote_domid != HOST:
            raise XenError(E.INVAL, f"port {port} is not open for domain 0")
        # COMMIT
        channel.kind = ChannelKind.INTERDOMAIN
        channel.remote_port = Port(max(self._host_ends, default=Port(0)) + 1)
        self._host_ends[channel.remote_port] = HostEnd(notify, Port(port))
        return channel.remote_port

    def unbind_back_end(self, host_port: Port) -> None:
        """A back end goes away: the guest's port, if it still has it, is UNBOUND again."""
        end = self._host_ends.pop(host_port, None)
        if end is not None and end.port:
            channel = self._channels[end.port]
            channel.kind, channel.remote_port = ChannelKind.UNBOUND, Port(0)

    def connect_to_host(self, host_port: int) -> Port:
        """Bind a new port to a back end whose end is open, because the guest closed its own.

        Raises: XenError(ENOSPC, EINVAL).
        """
        port = self.free_port()
        end = self._host_ends.get(Port(host_port))
        if end is None or end.port:
            raise XenError(E.INVAL, f"port {host_port} of domain 0 is not open for this domain")
        # COMMIT
        self.allocate(
            Channel(ChannelKind.INTERDOMAIN, remote_domid=HOST, remote_port=Port(host_port)), port
        )
        end.port = port
        # Something may have been sent while it was open.
        self.set_pending(port)
        return port

    def notify_guest(self, host_port: Port) -> None:
        """A back end sends; nothing happens while the guest has closed its end."""
        end = self._host_ends.get(host_port)
        if end is not None and end.port:
            self.set_pending(end.port)

    # --- events -------------------------------------------------------------------------------

    def send(self, port: int) -> None:
        """EVTCHNOP_send. Raises: XenError(EINVAL) if the port cannot send."""
        channel = self.channel(port)
        if channel.kind is ChannelKind.IPI:
            self.set_pending(Port(port))
        elif channel.kind is ChannelKind.INTERDOMAIN:
            if channel.remote_domid == HOST:
                self._host_ends[channel.remote_port].notify()
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
        if channel is not None:
            vcpu = self._vcpus[channel.vcpu_id]
            self._follow(self._abi.set_pending(vcpu, port, channel), vcpu, port)

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask; nothing for a free port. Raises: XenError(EINVAL)."""
        channel = self._bound(port)
        # COMMIT
        if channel is not None:
            vcpu = self._vcpus[channel.vcpu_id]
            self._follow(self._abi.unmask(vcpu, Port(port), channel), vcpu, Port(port))

    def is_pending(self, port: int) -> bool:
        """Whether a bound port is pending. Raises: XenError(EINVAL) if it is not bound."""
        self.channel(port)
        return self._abi.is_pending(Port(port))

    def _follow(self, effect: int, vcpu: Vcpu, port: Port) -> None:
        if effect & Effect.PENDING and self.on_port is not None:
            self.on_port(vcpu, port)
        if effect & Effect.UPCALL:
            self.on_pending(vcpu, port)
        if effect & Effect.PENDING and self.pollers:
            # As in Xen: who waits for several ports looks at them itself after any event.
            for poller in list(self.pollers):
                if len(poller.poll_ports) != 1 or port in poller.poll_ports:
                    self.on_pending(poller, port)

    # --- the FIFO ABI -------------------------------------------------------------------------

    def init_control(self, vcpu_id: VcpuId, mfn: int, offset: int) -> None:
        """EVTCHNOP_init_control: a vCPU's control block; the first one changes the ABI.

        offset: in the frame, checked to be aligned and to leave room for the block.
        Raises: XenError(EINVAL), with the ABI as it was.
        """
        if self.fifo is not None:
            self.fifo.map_control_block(vcpu_id, mfn, offset)
            return
        fifo = Fifo(self._memory, self._types)
        fifo.map_control_block(vcpu_id, mfn, offset)
        # COMMIT
        for port, channel in self._channels.items():
            channel.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
            if self._two_level.is_pending(port):
                fifo.waiting.add(port)
        self._abi = self.fifo = fifo

    def expand_array(self, mfn: int) -> None:
        """EVTCHNOP_expand_array: a page of event words; shows the events that waited for them.

        Raises: XenError(EOPNOTSUPP) with the two-level ABI, XenError(ENOSPC), XenError(EINVAL).
        """
        fifo = self.fifo
        if fifo is None:
            raise XenError(E.OPNOTSUPP, "the guest does not use the FIFO ABI")
        ports = fifo.add_page(mfn)
        # COMMIT
        for port in sorted(port for port in fifo.waiting if port in ports):
            fifo.waiting.discard(port)
            self.set_pending(port)

    def set_priority(self, port: int, priority: int) -> None:
        """EVTCHNOP_set_priority: the queue of the port's next events.

        Raises: XenError(EINVAL); ENOSYS with the two-level ABI; EACCES if the port is free.
        """
        channel = self._bound(port)
        if self.fifo is None:
            raise XenError(E.NOSYS, "the two-level ABI has no priorities")
        if channel is None:
            raise XenError(E.ACCES, f"port {port} is not in use")
        if priority > EVTCHN_FIFO_PRIORITY_MIN:
            raise XenError(E.INVAL, f"priority {priority}")
        # COMMIT
        channel.priority = priority

    def leave_fifo(self) -> None:
        """The two-level ABI again; no port is in use."""
        if self.fifo is not None:
            self.fifo.release()
            self._abi, self.fifo = self._two_level, None
