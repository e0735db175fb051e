"""Event channels with the FIFO ABI: queues, priorities, masks, and guests that write nonsense."""

from __future__ import annotations

from random import Random

import pytest
from pv_guest import L1, NOT_MAPPED, SELF, PvGuest

from pyxen.abi._struct import XenStruct
from pyxen.abi.errno import E
from pyxen.abi.event_channel import (
    EvtchnAllocUnbound,
    EvtchnBindIpi,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnClose,
    EvtchnExpandArray,
    EvtchnInitControl,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EvtchnReset,
    EvtchnSend,
    EvtchnSetPriority,
    EvtchnStatus,
    EvtchnUnmask,
)
from pyxen.abi.sched import SCHEDOP_poll, SchedPoll
from pyxen.abi.xen import VIRQ_CONSOLE, VIRQ_TIMER, SharedInfo
from pyxen.errors import XenError
from pyxen.hypervisor.evtchn import Channel, ChannelKind
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.page_audit import audit
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES
from pyxen.types import VcpuId

OP = "event_channel_op"
PENDING, MASKED, LINKED, BUSY = (1 << bit for bit in (31, 30, 29, 28))
LINK = 0x1FFFF
CONTROL_PFN, ARRAY_PFN, OFFSET = 100, 110, 512
"""vCPU n has its control block in page CONTROL_PFN + n."""


class FifoGuest:
    """A guest that uses the FIFO ABI as the header tells it to."""

    def __init__(self, guest: PvGuest, vcpus: int = 1, pages: int = 1) -> None:
        self.guest = guest
        self.heads: dict[tuple[int, int], int] = {}
        for n in range(vcpus):
            assert self.control(n) == 0
        for n in range(pages):
            assert self.expand(ARRAY_PFN + n) == 0

    def op(self, command: int, structure: XenStruct) -> int:
        return self.guest.op(OP, command, structure)[0]

    def control(self, vcpu: int, pfn: int | None = None, offset: int = OFFSET) -> int:
        mfn = XEN_PAGES + (CONTROL_PFN + vcpu if pfn is None else pfn)
        return self.op(
            EVTCHNOP_init_control, EvtchnInitControl(control_gfn=mfn, offset=offset, vcpu=vcpu)
        )

    def expand(self, pfn: int) -> int:
        return self.op(EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=XEN_PAGES + pfn))

    def ipi(self, vcpu: int = 0) -> int:
        result, op = self.guest.op(OP, EVTCHNOP_bind_ipi, EvtchnBindIpi(vcpu=vcpu))
        assert result == 0
        return int(op.port)

    def open(self) -> int:
        op = EvtchnAllocUnbound(dom=SELF, remote_dom=SELF)
        return int(self.guest.op(OP, EVTCHNOP_alloc_unbound, op)[1].port)

    def send(self, port: int) -> int:
        return self.op(EVTCHNOP_send, EvtchnSend(port=port))

    def unmask(self, port: int) -> int:
        return self.op(EVTCHNOP_unmask, EvtchnUnmask(port=port))

    def priority(self, port: int, priority: int) -> int:
        return self.op(EVTCHNOP_set_priority, EvtchnSetPriority(port=port, priority=priority))

    def _at(self, port: int) -> int:
        return (XEN_PAGES + ARRAY_PFN << 12) + 4 * port >> 2

    def word(self, port: int) -> int:
        return self.guest.memory.dwords[self._at(port)]

    def set_word(self, port: int, value: int) -> None:
        self.guest.memory.dwords[self._at(port)] = value

    def _control_at(self, vcpu: int) -> int:
        return (XEN_PAGES + CONTROL_PFN + vcpu << 12) + OFFSET >> 2

    def ready(self, vcpu: int = 0) -> int:
        return self.guest.memory.dwords[self._control_at(vcpu)]

    def head(self, priority: int, vcpu: int = 0) -> int:
        return self.guest.memory.dwords[self._control_at(vcpu) + 2 + priority]

    def consume(self, vcpu: int = 0) -> list[int]:
        """Take everything out of a vCPU's queues, the most urgent first; what was pending."""
        taken = []
        dwords, at = self.guest.memory.dwords, self._control_at(vcpu)
        self.guest.clear_pending(self.guest.domain.vcpus[VcpuId(vcpu)])
        ready, dwords[at] = dwords[at], 0
        for priority in range(16):
            if not ready >> priority & 1:
                continue
            port = self.heads.get((vcpu, priority), 0) or self.head(priority, vcpu)
            while port:
                word = self.word(port)
                assert word & LINKED, f"port {port} is in a queue without LINKED"
                self.set_word(port, word & ~(LINKED | LINK | PENDING))
                if word & PENDING and not word & MASKED:
                    taken.append(port)
                port = word & LINK
        return taken


# --- sending ----------------------------------------------------------------------------------


def test_an_event_is_queued_and_the_vcpu_told(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    port = fifo.ipi()
    assert fifo.send(port) == 0
    assert fifo.word(port) == PENDING | LINKED
    assert (fifo.ready(), fifo.head(7)) == (1 << 7, port), "7 is the default priority"
    assert guest.vcpu.upcall_pending
    assert guest.pending_selectors() == 0, "the two-level ABI is out of use"
    assert fifo.consume() == [port]
    assert fifo.word(port) == 0


def test_events_are_served_in_the_order_in_which_they_came(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    ports = [fifo.ipi() for _ in range(5)]
    order = [ports[n] for n in (3, 0, 4, 1, 2)]
    for port in order:
        fifo.send(port)
    assert fifo.head(7) == order[0]
    assert [fifo.word(port) & LINK for port in order] == [*order[1:], 0]
    assert fifo.consume() == order


def test_an_event_that_is_pending_already_is_queued_once(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    one, other = fifo.ipi(), fifo.ipi()
    for port in (one, one, other, one, other):
        fifo.send(port)
    assert fifo.consume() == [one, other]
    fifo.send(one)
    assert fifo.consume() == [one]


def test_the_upcall_is_asked_for_when_a_queue_becomes_ready(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    one, other, urgent = (fifo.ipi() for _ in range(3))
    fifo.priority(urgent, 2)
    fifo.send(one)
    guest.clear_pending()
    fifo.send(other)
    assert not guest.vcpu.upcall_pending, "it is behind the first one"
    fifo.send(urgent)
    assert guest.vcpu.upcall_pending, "this is another queue"
    assert fifo.consume() == [urgent, one, other]


@pytest.mark.parametrize("priority", range(16))
def test_each_priority_has_its_queue(guest: PvGuest, priority: int) -> None:
    fifo = FifoGuest(guest)
    port = fifo.ipi()
    assert fifo.priority(port, priority) == 0
    fifo.send(port)
    assert (fifo.ready(), fifo.head(priority)) == (1 << priority, port)


def test_a_virq_and_a_back_end(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    op = EvtchnBindVirq(virq=VIRQ_TIMER)
    timer = guest.op(OP, EVTCHNOP_bind_virq, op)[1].port
    host_port = guest.domain.events.connect_host(9, lambda: None)
    guest.domain.events.raise_virq(guest.vcpu, VIRQ_TIMER)
    guest.domain.events.notify_guest(host_port)
    assert fifo.consume() == [timer, 9]


# --- masks ------------------------------------------------------------------------------------


def test_a_masked_port_is_pending_but_not_queued(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    port = fifo.ipi()
    fifo.set_word(port, MASKED)
    fifo.send(port)
    assert fifo.word(port) == PENDING | MASKED
    assert not guest.vcpu.upcall_pending
    assert fifo.unmask(port) == 0
    assert fifo.word(port) == PENDING | LINKED
    assert fifo.consume() == [port]


def test_unmasking_what_is_not_pending(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    port = fifo.ipi()
    fifo.set_word(port, MASKED)
    assert fifo.unmask(port) == 0
    assert fifo.word(port) == 0
    assert fifo.unmask(63) == 0, "a free port"
    assert fifo.unmask(64) == -E.INVAL


def test_a_port_that_is_masked_while_it_is_queued(guest: PvGuest) -> None:
    """The guest takes it out and ignores it; unmasking queues it again."""
    fifo = FifoGuest(guest)
    one, other = fifo.ipi(), fifo.ipi()
    fifo.send(one)
    fifo.send(other)
    fifo.set_word(one, fifo.word(one) | MASKED)
    at = fifo.word(one) & LINK
    fifo.set_word(one, PENDING | MASKED)
    assert at == other
    assert fifo.unmask(one) == 0
    assert fifo.word(other) & LINK == one, "behind the one that was queued after it"


def test_poll_sees_a_masked_event(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    port = fifo.ipi()
    fifo.set_word(port, MASKED)
    at = guest.put(port.to_bytes(4, "little"))
    op = SchedPoll(ports=at, nr_ports=1)
    assert guest.op("sched_op", SCHEDOP_poll, op)[0] == 0
    assert guest.vcpu.blocked
    guest.domain.events.send(port)
    assert not guest.vcpu.blocked
    assert guest.op("sched_op", SCHEDOP_poll, op)[0] == 0
    assert not guest.vcpu.blocked, "it is pending already"


# --- moving -----------------------------------------------------------------------------------


def test_a_new_priority_counts_from_the_next_event(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    one, other = fifo.ipi(), fifo.ipi()
    fifo.send(one)
    assert fifo.priority(one, 3) == 0
    fifo.send(one)
    fifo.send(other)
    assert (fifo.ready(), fifo.consume()) == (1 << 7, [one, other])
    fifo.send(other)
    fifo.send(one)
    assert fifo.ready() == 1 << 7 | 1 << 3
    assert fifo.consume() == [one, other]


def test_a_tail_that_moved_takes_nobody_along(guest: PvGuest) -> None:
    """It looks linked in its new queue: nothing may be appended to it for the old one."""
    fifo = FifoGuest(guest)
    one, other = fifo.ipi(), fifo.ipi()
    fifo.send(one)
    assert fifo.consume() == [one]
    fifo.priority(one, 0)
    fifo.send(one)
    fifo.send(other)
    assert fifo.word(one) & LINK == 0
    assert (fifo.head(0), fifo.head(7)) == (one, other)


def test_a_port_that_is_closed_and_bound_again_leaves_its_old_queue(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    one, other = fifo.ipi(), fifo.ipi()
    fifo.priority(one, 4)
    fifo.priority(other, 4)
    fifo.send(one)
    assert fifo.consume() == [one]
    assert fifo.op(EVTCHNOP_close, EvtchnClose(port=one)) == 0
    assert fifo.ipi() == one
    fifo.send(one)
    fifo.send(other)
    assert (fifo.head(7), fifo.head(4)) == (one, other)
    assert fifo.word(one) & LINK == 0


def test_a_port_moves_to_another_vcpu(guest: PvGuest) -> None:
    fifo = FifoGuest(guest, vcpus=3)
    port = fifo.open()
    guest.domain.events.set_pending(port)  # type: ignore[arg-type]
    assert fifo.op(EVTCHNOP_bind_vcpu, EvtchnBindVcpu(port=port, vcpu=2)) == 0
    assert fifo.consume() == [port]
    guest.domain.events.set_pending(port)  # type: ignore[arg-type]
    other = guest.domain.vcpus[VcpuId(2)]
    assert (fifo.ready(0), fifo.ready(2)) == (0, 1 << 7)
    assert (guest.vcpu.upcall_pending, other.upcall_pending) == (False, True)
    assert fifo.consume(2) == [port]


def test_what_may_move(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    timer = guest.op(OP, EVTCHNOP_bind_virq, EvtchnBindVirq(virq=VIRQ_TIMER))[1].port
    console = guest.op(OP, EVTCHNOP_bind_virq, EvtchnBindVirq(virq=VIRQ_CONSOLE))[1].port
    for port, result in ((timer, -E.INVAL), (fifo.ipi(), -E.INVAL), (console, 0), (fifo.open(), 0)):
        assert fifo.op(EVTCHNOP_bind_vcpu, EvtchnBindVcpu(port=port, vcpu=1)) == result


def test_events_of_a_vcpu_without_a_control_block_are_dropped(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    port = fifo.ipi(1)
    assert fifo.send(port) == 0
    assert fifo.word(port) == 0
    assert fifo.control(1) == 0
    assert fifo.send(port) == 0
    assert fifo.consume(1) == [port]


# --- closing ----------------------------------------------------------------------------------


def test_a_closed_port_is_not_given_away_while_it_is_queued(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    one, other = fifo.ipi(), fifo.ipi()
    fifo.send(one)
    fifo.send(other)
    assert fifo.op(EVTCHNOP_close, EvtchnClose(port=one)) == 0
    assert fifo.word(one) & (PENDING | LINKED) == LINKED
    assert fifo.ipi() == 3
    with pytest.raises(Exception, match="EBUSY"):
        guest.domain.events.allocate(Channel(ChannelKind.IPI), one)
    assert fifo.consume() == [other], "the closed one is ignored"
    assert fifo.ipi() == one


def test_a_guest_that_keeps_every_closed_port(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    for port in range(1, 1024):
        fifo.set_word(port, LINKED)
    assert guest.op(OP, EVTCHNOP_bind_ipi, EvtchnBindIpi())[1].port == 1024, "it has no word yet"


# --- the control block and the array ----------------------------------------------------------


def test_link_bits(guest: PvGuest) -> None:
    op = EvtchnInitControl(control_gfn=XEN_PAGES + CONTROL_PFN, offset=4096 - 72)
    result, answer = guest.op(OP, EVTCHNOP_init_control, op)
    assert (result, answer.link_bits) == (0, 17)


@pytest.mark.parametrize("offset", [4, 4096 - 71, 4096 - 64, 4096, (1 << 32) - 8])
def test_a_bad_offset(guest: PvGuest, offset: int) -> None:
    op = EvtchnInitControl(control_gfn=XEN_PAGES + CONTROL_PFN, offset=offset)
    assert guest.op(OP, EVTCHNOP_init_control, op)[0] == -E.INVAL
    assert guest.domain.events.fifo is None


@pytest.mark.parametrize("mfn", [0, 1, L1, XEN_PAGES + (1 << 20), 1 << 52, (1 << 64) - 1])
def test_a_frame_that_the_guest_may_not_write(guest: PvGuest, mfn: int) -> None:
    op = EvtchnInitControl(control_gfn=mfn)
    assert guest.op(OP, EVTCHNOP_init_control, op)[0] == -E.INVAL
    assert guest.domain.events.fifo is None, "the old ABI is still there"
    FifoGuest(guest)
    op = EvtchnInitControl(control_gfn=mfn, vcpu=1)
    assert guest.op(OP, EVTCHNOP_init_control, op)[0] == -E.INVAL
    add = EvtchnExpandArray(array_gfn=mfn)
    assert guest.op(OP, EVTCHNOP_expand_array, add)[0] == -E.INVAL


def test_errors(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    assert fifo.control(0) == -E.INVAL, "it has one"
    assert fifo.control(77) == -E.NOENT
    port = fifo.ipi()
    assert fifo.priority(port, 16) == -E.INVAL
    assert fifo.priority(63, 0) == -E.ACCES
    assert fifo.priority(63, 16) == -E.ACCES
    assert fifo.priority(64, 0) == -E.INVAL
    for command in (EVTCHNOP_init_control, EVTCHNOP_expand_array, EVTCHNOP_set_priority):
        assert guest.call(OP, command, NOT_MAPPED) == -E.FAULT


def test_nothing_changes_when_the_answer_cannot_be_written(guest: PvGuest) -> None:
    guest.write(guest.vaddr(50), EvtchnInitControl(control_gfn=XEN_PAGES + CONTROL_PFN).pack())
    guest.protect(50)
    assert guest.call(OP, EVTCHNOP_init_control, guest.vaddr(50)) == -E.FAULT
    assert guest.domain.events.fifo is None
    assert guest.domain.frames.uses(XEN_PAGES + CONTROL_PFN) == 1, "the guest's own mapping"


def test_the_frames_cannot_become_page_tables(guest: PvGuest) -> None:
    FifoGuest(guest)
    frames = guest.domain.frames
    for pfn in (CONTROL_PFN, ARRAY_PFN):
        assert frames.type(XEN_PAGES + pfn) is FrameType.WRITABLE
        guest.protect(pfn)
        continuation.begin(guest.domain)
        with pytest.raises(XenError, match="in use as WRITABLE"):
            guest.domain.types.pin(XEN_PAGES + pfn, FrameType.L1)
    assert audit(guest.domain) == []


def test_128_pages_of_event_words_at_most(guest: PvGuest) -> None:
    fifo = FifoGuest(guest, pages=128)
    assert fifo.expand(ARRAY_PFN + 128) == -E.NOSPC


def test_131071_ports(guest: PvGuest) -> None:
    fifo = FifoGuest(guest, pages=128)
    events = guest.domain.events
    for port in range(1, 0x20000):
        events.allocate(Channel(ChannelKind.IPI), port)
    assert guest.op(OP, EVTCHNOP_bind_ipi, EvtchnBindIpi())[0] == -E.NOSPC
    assert fifo.send(1) == fifo.send(0x1FFFF) == fifo.send(4096) == 0
    assert fifo.consume() == [1, 0x1FFFF, 4096]
    assert fifo.op(EVTCHNOP_reset, EvtchnReset(dom=SELF)) == 0
    assert len(events) == 0


# --- from one ABI to the other ----------------------------------------------------------------


def test_events_from_before_the_change_are_not_lost(guest: PvGuest) -> None:
    ports = [
        int(guest.op(OP, EVTCHNOP_bind_ipi, EvtchnBindIpi(vcpu=vcpu))[1].port) for vcpu in (0, 1, 0)
    ]
    for port in ports[1:]:
        guest.op(OP, EVTCHNOP_send, EvtchnSend(port=port))
    guest.clear_pending()
    fifo = FifoGuest(guest, vcpus=2, pages=0)
    assert not guest.vcpu.upcall_pending, "there are no event words yet"
    assert fifo.send(ports[0]) == 0
    assert fifo.expand(ARRAY_PFN) == 0
    assert fifo.consume(0) == [ports[0], ports[2]]
    assert fifo.consume(1) == [ports[1]]


def test_a_port_that_is_closed_while_its_event_waits(guest: PvGuest) -> None:
    fifo = FifoGuest(guest, pages=0)
    port = fifo.ipi()
    fifo.send(port)
    assert fifo.unmask(port) == 0
    assert fifo.op(EVTCHNOP_close, EvtchnClose(port=port)) == 0
    assert fifo.ipi() == port
    assert fifo.expand(ARRAY_PFN) == 0
    assert fifo.consume() == []


def test_reset_goes_back_to_the_two_level_abi(guest: PvGuest) -> None:
    fifo = FifoGuest(guest, vcpus=2, pages=2)
    for _ in range(70):
        fifo.send(fifo.ipi())
    assert fifo.op(EVTCHNOP_reset, EvtchnReset(dom=SELF)) == 0
    guest.clear_pending()
    for pfn in (CONTROL_PFN, CONTROL_PFN + 1, ARRAY_PFN, ARRAY_PFN + 1):
        assert guest.domain.frames.uses(XEN_PAGES + pfn) == 1, "the guest's own mapping"
    assert fifo.expand(ARRAY_PFN) == -E.OPNOTSUPP
    port = fifo.ipi()
    assert port == 1
    fifo.set_word(port, 0)
    assert fifo.send(port) == 0
    assert fifo.word(port) == 0
    assert guest.bit(SharedInfo.OFFSET["evtchn_pending"], port)
    assert guest.pending_selectors() == 1
    again = FifoGuest(guest)
    assert again.consume() == [port]
    assert again.send(port) == 0
    assert again.consume() == [port]


def test_status_does_not_depend_on_the_abi(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    port = fifo.ipi()
    _, seen = guest.op(OP, EVTCHNOP_status, EvtchnStatus(dom=SELF, port=port))
    assert seen.status == ChannelKind.IPI


# --- hostile guests ---------------------------------------------------------------------------


def test_a_tail_that_the_guest_took_out_behind_our_back(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    one, other = fifo.ipi(), fifo.ipi()
    fifo.send(one)
    fifo.set_word(one, 0)
    fifo.send(other)
    assert fifo.head(7) == other, "a new queue, as the old one was emptied"


def test_linking_keeps_the_other_bits_and_clears_busy(guest: PvGuest) -> None:
    fifo = FifoGuest(guest)
    one, other = fifo.ipi(), fifo.ipi()
    fifo.send(one)
    fifo.set_word(one, PENDING | MASKED | LINKED | BUSY | LINK)
    fifo.send(other)
    assert fifo.word(one) == PENDING | MASKED | LINKED | other


def test_whatever_the_words_say_nothing_outside_of_them_changes(guest: PvGuest) -> None:
    """Random words, control blocks on top of the array, and all operations."""
    rng = Random(4)
    fifo = FifoGuest(guest, vcpus=0, pages=0)
    assert fifo.control(0) == 0
    assert fifo.expand(ARRAY_PFN) == 0
    assert fifo.control(1, ARRAY_PFN, 8) == 0
    assert fifo.expand(CONTROL_PFN) == 0
    ours = {XEN_PAGES + ARRAY_PFN, XEN_PAGES + CONTROL_PFN}
    dwords = guest.memory.dwords
    argument_pages = range(XEN_PAGES + 16, XEN_PAGES + 24)
    vcpu_infos = guest.domain.shared_info

    def others() -> bytes:
        return b"".join(
            bytes(guest.memory.page(mfn))
            for mfn in range(XEN_PAGES, XEN_PAGES + 200)
            if mfn not in ours and mfn not in argument_pages
        )

    before = others()
    for _ in range(3000):
        mfn = rng.choice(sorted(ours))
        dwords[(mfn << 10) + rng.randrange(64)] = rng.getrandbits(32)
        port = rng.randrange(12)
        match rng.randrange(7):
            case 0:
                guest.op(OP, EVTCHNOP_bind_ipi, EvtchnBindIpi(vcpu=rng.randrange(3)))
            case 1:
                fifo.op(EVTCHNOP_close, EvtchnClose(port=port))
            case 2:
                fifo.unmask(port)
            case 3:
                fifo.priority(port, rng.randrange(18))
            case _:
                fifo.send(port)
    assert others() == before
    assert guest.memory.read_u64(vcpu_infos + 8) == 0
    assert guest.domain.shutdown_reason is None
