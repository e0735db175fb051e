"""The FIFO ABI: an event word for each port, 16 queues by priority for each vCPU.

Source: public/event_channel.h (event_word_t, struct evtchn_fifo_control_block).

    control block of a vCPU    ready | head of queue 0 .. 15      in a page of the guest
    event word of a port       PENDING MASKED LINKED BUSY | link  in pages of the guest, 1024 a page

A queue is a list from its head through the links. The hypervisor appends at the tail, which only it
knows, and says in `ready` that the queue is not empty; the guest takes from the head and clears
LINKED. So a tail whose LINKED is clear belongs to a queue that has been emptied.

Everything in these pages is the guest's, and may be nonsense: ports that we use come from our own
state, and what we read decides only which of the guest's words we write. The guest does not run
while we do, so a word that was read is still the same when it is written; Xen must try again there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyxen.abi.errno import E
from pyxen.abi.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_MAX_QUEUES,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    EvtchnFifoControlBlock,
)
from pyxen.errors import XenError
from pyxen.hypervisor.evtchn.channel import Channel, Effect
from pyxen.hypervisor.page_types import PageTypes
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.machine import MachineMemory
from pyxen.types import PAGE_SHIFT, PAGE_SIZE, Mfn, Port, VcpuId

WORDS_PER_PAGE = PAGE_SIZE // 4
MAX_ARRAY_PAGES = EVTCHN_FIFO_NR_CHANNELS // WORDS_PER_PAGE

_PENDING = 1 << EVTCHN_FIFO_PENDING
_MASKED = 1 << EVTCHN_FIFO_MASKED
_LINKED = 1 << EVTCHN_FIFO_LINKED
_BUSY = 1 << EVTCHN_FIFO_BUSY
_READY = EvtchnFifoControlBlock.OFFSET["ready"]
_HEAD = EvtchnFifoControlBlock.OFFSET["head"]


@dataclass(slots=True)
class ControlBlock:
    """A vCPU's queues: where the guest's control block is, and the last port of each."""

    maddr: int
    tails: list[int] = field(default_factory=lambda: [0] * EVTCHN_FIFO_MAX_QUEUES)
    """0: the queue is empty."""


class Fifo:
    """The queues of one domain. It holds a use of each frame that the guest gave."""

    max_ports = EVTCHN_FIFO_NR_CHANNELS

    def __init__(self, memory: MachineMemory, types: PageTypes) -> None:
        self._memory = memory
        self._types = types
        self.array: list[Mfn] = []
        """Frames of event words; page n has those of the ports from 1024 * n."""
        self.controls: dict[VcpuId, ControlBlock] = {}
        self.last_queue: dict[Port, tuple[VcpuId, int]] = {}
        """vCPU and priority of the queue that a port was put into last: it may be its tail."""
        self.waiting: set[Port] = set()
        """Events for ports that have no event word yet."""

    def map_control_block(self, vcpu_id: VcpuId, mfn: int, offset: int) -> None:
        """Take a vCPU's control block.

        Raises: XenError(EINVAL) if the vCPU has one, or the frame cannot be written by the guest.
        """
        if vcpu_id in self.controls:
            raise XenError(E.INVAL, f"vCPU {vcpu_id} has a control block")
        self._hold(mfn)
        # COMMIT
        self.controls[vcpu_id] = ControlBlock((mfn << PAGE_SHIFT) + offset)

    def add_page(self, mfn: int) -> range:
        """Take a page of event words; the ports that have got theirs.

        Raises: XenError(ENOSPC) if all ports have one, XenError(EINVAL) as `map_control_block`.
        """
        if len(self.array) >= MAX_ARRAY_PAGES:
            raise XenError(E.NOSPC, "all ports have an event word")
        self._hold(mfn)
        # COMMIT
        first = len(self.array) * WORDS_PER_PAGE
        self.array.append(Mfn(mfn))
        return range(first, first + WORDS_PER_PAGE)

    def release(self) -> None:
        """Give the guest its frames back: the two-level ABI is used again."""
        for mfn in self.held():
            self._types.let_go(mfn, writable=True)
        self.controls.clear()
        self.array.clear()

    def held(self) -> list[int]:
        """The guest's frames that are in use here, one for each use (page_audit.py)."""
        return [control.maddr >> PAGE_SHIFT for control in self.controls.values()] + self.array

    def set_pending(self, vcpu: Vcpu, port: Port, channel: Channel) -> int:
        """Set PENDING, and append the port to its queue unless it is masked or in one already."""
        at = self._word(port)
        if at is None:
            self.waiting.add(port)
            return Effect.NONE
        control = self.controls.get(vcpu.vcpu_id)
        if control is None:
            return Effect.NONE  # a guest may not use a vCPU's events before: Xen drops them, too
        word = self._memory.dwords[at]
        effect = Effect.NONE if word & _PENDING else Effect.PENDING
        if word & (_MASKED | _LINKED):
            self._memory.dwords[at] = word | _PENDING
            return effect
        self._memory.dwords[at] = word | _PENDING | _LINKED
        self._leave_last_queue(port)
        self.last_queue[port] = (vcpu.vcpu_id, channel.priority)
        if self._append(control, channel.priority, port) and vcpu.mark_events_pending():
            effect |= Effect.UPCALL
        return effect

    def clear_pending(self, port: Port) -> None:
        """Only the bit: the guest takes the port out of its queue and ignores it."""
        self.waiting.discard(port)
        at = self._word(port)
        if at is not None:
            self._memory.dwords[at] &= ~_PENDING

    def unmask(self, vcpu: Vcpu, port: Port, channel: Channel) -> int:
        """Clear MASKED, and queue the port if it is pending."""
        at = self._word(port)
        if at is None:
            return Effect.NONE
        word = self._memory.dwords[at] & ~_MASKED
        self._memory.dwords[at] = word
        return self.set_pending(vcpu, port, channel) if word & _PENDING else Effect.NONE

    def is_pending(self, port: Port) -> bool:
        """The port's PENDING bit; False while it has no event word."""
        at = self._word(port)
        return at is not None and bool(self._memory.dwords[at] & _PENDING)

    def is_busy(self, port: Port) -> bool:
        """Whether the guest still has the port in a queue."""
        at = self._word(port)
        return at is not None and bool(self._memory.dwords[at] & _LINKED)

    def _hold(self, mfn: int) -> None:
        """Use a frame of the guest as one that it can write, which keeps it from being a table."""
        if not self._memory.is_guest_frame(mfn):
            raise XenError(E.INVAL, f"frame {mfn:#x} is not the domain's")
        self._types.hold(mfn, writable=True)

    def _word(self, port: int) -> int | None:
        """Index of a port's event word in `dwords`; None while the guest has given none."""
        page = port // WORDS_PER_PAGE
        if page >= len(self.array):
            return None
        return self.array[page] * WORDS_PER_PAGE + port % WORDS_PER_PAGE

    def _leave_last_queue(self, port: Port) -> None:
        """If the port was a tail, that queue has been emptied: nothing may be linked behind it."""
        vcpu_id, priority = self.last_queue.get(port, (VcpuId(0), 0))
        control = self.controls.get(vcpu_id)
        if control is not None and control.tails[priority] == port:
            control.tails[priority] = 0

    def _append(self, control: ControlBlock, priority: int, port: Port) -> bool:
        """Put a port at the end of a queue; whether the queue has become ready by that."""
        dwords = self._memory.dwords
        tail = control.tails[priority]
        control.tails[priority] = port
        if tail and self._link(tail, port):
            return False
        dwords[(control.maddr + _HEAD >> 2) + priority] = port
        ready = dwords[control.maddr + _READY >> 2]
        dwords[control.maddr + _READY >> 2] = ready | 1 << priority
        return not ready >> priority & 1

    def _link(self, tail: int, port: Port) -> bool:
        """Link a port behind the tail; False if the guest has taken the tail out."""
        at = self._word(tail)
        if at is None:
            return False
        word = self._memory.dwords[at]
        if not word & _LINKED:
            return False
        self._memory.dwords[at] = word & ~(_BUSY | EVTCHN_FIFO_LINK_MASK) | port
        return True
