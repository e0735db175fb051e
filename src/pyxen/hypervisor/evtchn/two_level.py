"""The two-level ABI: a pending and a mask bit for each port in shared_info, a selector a vCPU.

Source: the description of evtchn_pending, evtchn_mask and evtchn_pending_sel in public/xen.h.
"""

from __future__ import annotations

from pyxen.abi.event_channel import EVTCHN_2L_NR_CHANNELS
from pyxen.abi.xen import SharedInfo
from pyxen.hypervisor.evtchn.channel import Channel, Effect
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.machine import MachineMemory
from pyxen.types import Port

_PENDING = SharedInfo.OFFSET["evtchn_pending"]
_MASK = SharedInfo.OFFSET["evtchn_mask"]


class TwoLevel:
    """All state is in the guest's pages."""

    max_ports = EVTCHN_2L_NR_CHANNELS

    def __init__(self, memory: MachineMemory, shared_info_maddr: int) -> None:
        self._memory = memory
        self._shared_info = shared_info_maddr

    def set_pending(self, vcpu: Vcpu, port: Port, channel: Channel) -> int:
        """The port's bit, then the selector's, then the upcall: a guest reads them backwards."""
        if self._set_bit(_PENDING, port, True):
            return Effect.NONE
        if not self._bit(_MASK, port) and vcpu.mark_pending(port >> 6):
            return Effect.PENDING | Effect.UPCALL
        return Effect.PENDING

    def clear_pending(self, port: Port) -> None:
        """So that the next owner of the port does not see it."""
        self._set_bit(_PENDING, port, False)

    def unmask(self, vcpu: Vcpu, port: Port, channel: Channel) -> int:
        """Only who really unmasks shows the event again."""
        was_masked = self._set_bit(_MASK, port, False)
        if was_masked and self._bit(_PENDING, port) and vcpu.mark_pending(port >> 6):
            return Effect.UPCALL
        return Effect.NONE

    def is_pending(self, port: Port) -> bool:
        """The port's pending bit. Any port below 4096, bound or not."""
        return self._bit(_PENDING, port)

    def is_busy(self, port: Port) -> bool:
        """Never: there are no queues."""
        return False

    def _bit(self, bitmap: int, port: int) -> bool:
        word = self._memory.words[(self._shared_info + bitmap + ((port >> 6) << 3)) >> 3]
        return bool(word >> (port & 63) & 1)

    def _set_bit(self, bitmap: int, port: int, value: bool) -> bool:
        """Set or clear a bit; returns what it was."""
        index = (self._shared_info + bitmap + ((port >> 6) << 3)) >> 3
        word, bit = self._memory.words[index], 1 << (port & 63)
        self._memory.words[index] = word | bit if value else word & ~bit
        return bool(word & bit)
