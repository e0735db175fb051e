"""What one port is bound to, and what an ABI for events has to do.

Source: public/event_channel.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from pyxen.abi.event_channel import EVTCHN_FIFO_PRIORITY_DEFAULT
from pyxen.abi.xen import VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import DomId, Port, VcpuId

PER_VCPU_VIRQS = frozenset({VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU})
"""Each vCPU may bind these; all others are global, noted at vCPU 0."""


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

    vcpu_id: the vCPU that is told. remote_domid, remote_port: the other end of UNBOUND (port 0)
    and INTERDOMAIN channels. virq: of a VIRQ channel. priority: the queue of the FIFO ABI.
    """

    kind: ChannelKind
    vcpu_id: VcpuId = VcpuId(0)
    remote_domid: DomId = DomId(0)
    remote_port: Port = Port(0)
    virq: int = 0
    priority: int = EVTCHN_FIFO_PRIORITY_DEFAULT


@dataclass(slots=True)
class HostEnd:
    """The host's end of a channel: a back end, and the guest's port that it is connected to.

    port: 0 when the guest has closed its end.
    """

    notify: Callable[[], None]
    port: Port = Port(0)


class Effect:
    """What follows from an event that was shown to the guest; plain bits, as events are many."""

    NONE: Final = 0
    UPCALL: Final = 1
    """The vCPU's upcall became pending: wake it."""
    PENDING: Final = 2
    """The port was not pending before: who polls for it is to look."""


class EventAbi(Protocol):
    """How pending events are shown to the guest. Ports are below `max_ports`, and bound."""

    max_ports: int

    def set_pending(self, vcpu: Vcpu, port: Port, channel: Channel) -> int:
        """Show an event; an Effect."""

    def clear_pending(self, port: Port) -> None:
        """Take it back: the port is being closed."""

    def unmask(self, vcpu: Vcpu, port: Port, channel: Channel) -> int:
        """Clear the mask, and show the event that waited behind it; an Effect."""

    def is_pending(self, port: Port) -> bool:
        """Whether there is an event."""

    def is_busy(self, port: Port) -> bool:
        """Whether a closed port cannot be given away yet, as the guest has it in a queue."""
