"""Event channels: ports, what they are bound to, and the two ABIs that show events to a guest."""

from pyxen.hypervisor.evtchn.channel import PER_VCPU_VIRQS, Channel, ChannelKind
from pyxen.hypervisor.evtchn.channels import EventChannels

__all__ = ["PER_VCPU_VIRQS", "Channel", "ChannelKind", "EventChannels"]
