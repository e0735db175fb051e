"""Event channels: binding, sending, masks, selectors, polling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pv_guest import DOMID, NOT_MAPPED, SELF, PvGuest

from pyxen.abi.errno import E
from pyxen.abi.event_channel import (
    EVTCHN_2L_NR_CHANNELS as MAX_PORTS,
)
from pyxen.abi.event_channel import (
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindPirq,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnClose,
    EvtchnExpandArray,
    EvtchnOp,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_reset,
    EVTCHNOP_reset_cont,
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
from pyxen.abi.sched import SCHEDOP_block, SCHEDOP_poll, SchedPoll
from pyxen.abi.xen import (
    NR_VIRQS,
    VIRQ_CONSOLE,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    SharedInfo,
)
from pyxen.errors import XenError
from pyxen.hypervisor.evtchn import Channel, ChannelKind
from pyxen.hypervisor.hypercall.physdev_op import NR_PIRQS
from pyxen.memory.machine import XEN_PAGES
from pyxen.types import Port, VcpuId

PENDING = SharedInfo.OFFSET["evtchn_pending"]
MASK = SharedInfo.OFFSET["evtchn_mask"]
OP = "event_channel_op"


def bind_ipi(guest: PvGuest, vcpu: int = 0) -> int:
    result, op = guest.op(OP, EVTCHNOP_bind_ipi, EvtchnBindIpi(vcpu=vcpu))
    assert result == 0
    return op.port


def bind_virq(guest: PvGuest, virq: int, vcpu: int = 0) -> tuple[int, int]:
    result, op = guest.op(OP, EVTCHNOP_bind_virq, EvtchnBindVirq(virq=virq, vcpu=vcpu))
    return result, op.port


def send(guest: PvGuest, port: int) -> int:
    return guest.op(OP, EVTCHNOP_send, EvtchnSend(port=port))[0]


def close(guest: PvGuest, port: int) -> int:
    return guest.op(OP, EVTCHNOP_close, EvtchnClose(port=port))[0]


def unmask(guest: PvGuest, port: int) -> int:
    return guest.op(OP, EVTCHNOP_unmask, EvtchnUnmask(port=port))[0]


def status(guest: PvGuest, port: int, dom: int = SELF) -> tuple[int, EvtchnStatus]:
    return guest.op(OP, EVTCHNOP_status, EvtchnStatus(dom=dom, port=port))


def pair(guest: PvGuest) -> tuple[int, int]:
    """Two ends of a channel within the domain; nothing pending."""
    _, unbound = guest.op(OP, EVTCHNOP_alloc_unbound, EvtchnAllocUnbound(dom=SELF, remote_dom=SELF))
    wanted = EvtchnBindInterdomain(remote_dom=SELF, remote_port=unbound.port)
    result, bound = guest.op(OP, EVTCHNOP_bind_interdomain, wanted)
    assert result == 0
    guest.set_bit(PENDING, bound.local_port, False)
    guest.clear_pending()
    return unbound.port, bound.local_port


# --- sending ----------------------------------------------------------------------------------


def test_an_ipi_sets_pending_bit_selector_and_upcall(guest: PvGuest) -> None:
    for _ in range(70):
        port = bind_ipi(guest)
    assert port == 70
    assert send(guest, port) == 0
    assert guest.bit(PENDING, port)
    assert guest.pending_selectors() == 1 << 1
    assert guest.vcpu.upcall_pending


def test_ports_are_given_from_the_lowest(guest: PvGuest) -> None:
    assert [bind_ipi(guest) for _ in range(4)] == [1, 2, 3, 4]
    assert close(guest, 2) == 0
    assert close(guest, 1) == 0
    assert [bind_ipi(guest) for _ in range(3)] == [1, 2, 5]


def test_a_masked_port_is_pending_but_not_delivered(guest: PvGuest) -> None:
    port = bind_ipi(guest)
    guest.set_bit(MASK, port, True)
    assert send(guest, port) == 0
    assert guest.bit(PENDING, port)
    assert guest.pending_selectors() == 0
    assert not guest.vcpu.upcall_pending
    assert unmask(guest, port) == 0
    assert not guest.bit(MASK, port)
    assert guest.pending_selectors() == 1
    assert guest.vcpu.upcall_pending


def test_unmasking_a_port_that_is_not_pending(guest: PvGuest) -> None:
    port = bind_ipi(guest)
    guest.set_bit(MASK, port, True)
    assert unmask(guest, port) == 0
    assert not guest.vcpu.upcall_pending


def test_unmasking_a_port_that_was_not_masked_does_not_deliver_again(guest: PvGuest) -> None:
    port = bind_ipi(guest)
    send(guest, port)
    guest.clear_pending()
    assert unmask(guest, port) == 0
    assert not guest.vcpu.upcall_pending


def test_a_port_that_is_pending_already_is_not_delivered_again(guest: PvGuest) -> None:
    port = bind_ipi(guest)
    send(guest, port)
    guest.clear_pending()
    send(guest, port)
    assert not guest.vcpu.upcall_pending


def test_an_event_goes_to_the_vcpu_it_is_bound_to(guest: PvGuest) -> None:
    other = guest.domain.vcpus[VcpuId(2)]
    port = bind_ipi(guest, 2)
    send(guest, port)
    assert guest.pending_selectors(other) == 1
    assert other.upcall_pending
    assert not guest.vcpu.upcall_pending


def test_both_ends_of_a_channel(guest: PvGuest) -> None:
    one, other = pair(guest)
    send(guest, one)
    assert (guest.bit(PENDING, one), guest.bit(PENDING, other)) == (False, True)
    send(guest, other)
    assert guest.bit(PENDING, one)


def test_binding_sets_the_new_end_pending(guest: PvGuest) -> None:
    """Something may have been sent while the channel had one end only."""
    _, unbound = guest.op(OP, EVTCHNOP_alloc_unbound, EvtchnAllocUnbound(dom=SELF, remote_dom=SELF))
    assert send(guest, unbound.port) == 0, "dropped"
    wanted = EvtchnBindInterdomain(remote_dom=SELF, remote_port=unbound.port)
    _, bound = guest.op(OP, EVTCHNOP_bind_interdomain, wanted)
    assert guest.bit(PENDING, bound.local_port)


def test_closing_one_end_leaves_the_other_unbound(guest: PvGuest) -> None:
    one, other = pair(guest)
    assert close(guest, other) == 0
    _, op = status(guest, one)
    assert op.status == ChannelKind.UNBOUND
    assert int.from_bytes(op.u[:2], "little") == DOMID
    assert send(guest, one) == 0
    wanted = EvtchnBindInterdomain(remote_dom=SELF, remote_port=one)
    assert guest.op(OP, EVTCHNOP_bind_interdomain, wanted)[0] == 0, "it can be bound again"


def test_closing_forgets_what_was_pending(guest: PvGuest) -> None:
    port = bind_ipi(guest)
    send(guest, port)
    assert close(guest, port) == 0
    assert not guest.bit(PENDING, port)
    assert close(guest, port) == -E.INVAL
    assert send(guest, port) == -E.INVAL
    assert unmask(guest, port) == 0, "the port is free, but it is a port"


# --- back ends --------------------------------------------------------------------------------


def test_a_back_end_hears_the_guest(guest: PvGuest) -> None:
    heard: list[int] = []
    op = EvtchnAllocUnbound(dom=SELF, remote_dom=0)
    _, unbound = guest.op(OP, EVTCHNOP_alloc_unbound, op)
    events = guest.domain.events
    host_port = events.bind_back_end(unbound.port, lambda: heard.append(1))
    assert send(guest, unbound.port) == 0
    assert heard == [1]
    assert not guest.bit(PENDING, unbound.port)
    events.unbind_back_end(host_port)
    assert send(guest, unbound.port) == 0
    assert heard == [1]
    assert status(guest, unbound.port)[1].status == ChannelKind.UNBOUND


def test_a_back_end_binds_only_what_is_open_for_domain_0(guest: PvGuest) -> None:
    _, unbound = guest.op(OP, EVTCHNOP_alloc_unbound, EvtchnAllocUnbound(dom=SELF, remote_dom=SELF))
    for port in (unbound.port, bind_ipi(guest), 99, 1 << 31):
        with pytest.raises(XenError) as refused:
            guest.domain.events.bind_back_end(port, lambda: None)
        assert refused.value.errno is E.INVAL


def test_the_guest_finds_its_way_back_to_a_back_end(guest: PvGuest) -> None:
    """As in Xen: the host's end of a channel that the guest closed is open for this guest."""
    heard: list[int] = []
    events = guest.domain.events
    host_port = events.connect_host(2, lambda: heard.append(1))
    _, seen = status(guest, 2)
    assert (seen.status, seen.u) == (2, bytes(4) + host_port.to_bytes(4, "little"))
    wanted = EvtchnBindInterdomain(remote_dom=0, remote_port=host_port)
    assert guest.op(OP, EVTCHNOP_bind_interdomain, wanted)[0] == -E.INVAL, "it is connected"
    assert close(guest, 2) == 0
    assert [bind_ipi(guest), bind_ipi(guest)] == [1, 2]
    events.notify_guest(host_port)
    assert not guest.bit(PENDING, 2), "the port has another owner now"
    result, bound = guest.op(OP, EVTCHNOP_bind_interdomain, wanted)
    assert (result, bound.local_port) == (0, 3)
    assert guest.bit(PENDING, 3)
    guest.set_bit(PENDING, 3, False)
    assert send(guest, 3) == 0
    assert heard == [1]
    events.notify_guest(host_port)
    assert guest.bit(PENDING, 3)


def test_an_event_of_a_back_end_for_a_port_that_the_guest_closed(guest: PvGuest) -> None:
    port = bind_ipi(guest)
    close(guest, port)
    guest.domain.events.set_pending(port)
    assert not guest.bit(PENDING, port)
    guest.domain.events.unbind_back_end(Port(99))


# --- VIRQs ------------------------------------------------------------------------------------


def test_virqs(guest: PvGuest) -> None:
    result, port = bind_virq(guest, VIRQ_TIMER, 1)
    assert result == 0
    other = guest.domain.vcpus[VcpuId(1)]
    guest.domain.events.raise_virq(guest.vcpu, VIRQ_TIMER)
    assert not guest.bit(PENDING, port), "each vCPU has its own"
    guest.domain.events.raise_virq(other, VIRQ_TIMER)
    assert guest.bit(PENDING, port)
    assert other.upcall_pending
    assert bind_virq(guest, VIRQ_TIMER, 1)[0] == -E.EXIST
    assert close(guest, port) == 0
    assert bind_virq(guest, VIRQ_TIMER, 1)[0] == 0


def test_virq_errors(guest: PvGuest) -> None:
    assert bind_virq(guest, NR_VIRQS)[0] == -E.INVAL
    assert bind_virq(guest, 0xFFFF_FFFF)[0] == -E.INVAL
    assert bind_virq(guest, VIRQ_TIMER, 99)[0] == -E.NOENT
    assert bind_virq(guest, VIRQ_CONSOLE, 1)[0] == -E.INVAL, "global ones belong to vCPU 0"
    assert send(guest, bind_virq(guest, VIRQ_DEBUG)[1]) == -E.INVAL


def test_a_global_virq_that_moved_can_be_closed_and_bound_again(guest: PvGuest) -> None:
    _, port = bind_virq(guest, VIRQ_CONSOLE)
    assert guest.op(OP, EVTCHNOP_bind_vcpu, EvtchnBindVcpu(port=port, vcpu=2))[0] == 0
    guest.domain.events.raise_virq(guest.vcpu, VIRQ_CONSOLE)
    assert guest.domain.vcpus[VcpuId(2)].upcall_pending
    assert close(guest, port) == 0
    assert bind_virq(guest, VIRQ_CONSOLE)[0] == 0


# --- moving a port ----------------------------------------------------------------------------


def test_bind_vcpu(guest: PvGuest) -> None:
    one, other = pair(guest)
    move = EvtchnBindVcpu(port=other, vcpu=3)
    assert guest.op(OP, EVTCHNOP_bind_vcpu, move)[0] == 0
    send(guest, one)
    assert guest.domain.vcpus[VcpuId(3)].upcall_pending
    assert status(guest, other)[1].vcpu == 3


def test_what_cannot_be_moved(guest: PvGuest) -> None:
    def move(port: int, vcpu: int = 1) -> int:
        return guest.op(OP, EVTCHNOP_bind_vcpu, EvtchnBindVcpu(port=port, vcpu=vcpu))[0]

    assert move(bind_ipi(guest)) == -E.INVAL
    assert move(bind_virq(guest, VIRQ_TIMER)[1]) == -E.INVAL
    assert move(99) == -E.INVAL
    assert move(bind_virq(guest, VIRQ_CONSOLE)[1], 99) == -E.NOENT


# --- status, reset ----------------------------------------------------------------------------


def test_status_of_each_kind(guest: PvGuest) -> None:
    ipi, virq = bind_ipi(guest, 1), bind_virq(guest, VIRQ_DEBUG, 2)[1]
    one, other = pair(guest)
    seen = {port: status(guest, port)[1] for port in (0, ipi, virq, one, other, 63)}
    assert (seen[ipi].status, seen[ipi].vcpu) == (5, 1)
    assert (seen[virq].status, seen[virq].vcpu, seen[virq].u[0]) == (4, 2, VIRQ_DEBUG)
    assert seen[one].status == seen[other].status == 2
    assert seen[one].u == DOMID.to_bytes(4, "little") + other.to_bytes(4, "little")
    assert seen[0].status == seen[63].status == 0
    for port in (64, MAX_PORTS, 0xFFFF_FFFF):
        assert status(guest, port)[0] == -E.INVAL
    assert status(guest, 1, 0)[0] == -E.PERM
    assert status(guest, 1, 3)[0] == -E.SRCH


def test_ports_come_into_being_64_at_a_time(guest: PvGuest) -> None:
    for _ in range(64):
        port = bind_ipi(guest)
    assert port == 64
    assert status(guest, 127)[0] == 0
    assert status(guest, 128)[0] == -E.INVAL


def test_reset_closes_everything(guest: PvGuest) -> None:
    ports = [bind_ipi(guest), bind_virq(guest, VIRQ_TIMER)[1], *pair(guest)]
    assert guest.op(OP, EVTCHNOP_reset, EvtchnReset(dom=SELF))[0] == 0
    assert [status(guest, port)[1].status for port in ports] == [0] * 4
    assert bind_virq(guest, VIRQ_TIMER) == (0, 1)
    assert guest.op(OP, EVTCHNOP_reset, EvtchnReset(dom=0))[0] == -E.PERM


def test_there_are_4095_ports(guest: PvGuest) -> None:
    events = guest.domain.events
    for _ in range(MAX_PORTS - 1):
        events.allocate(Channel(ChannelKind.IPI))
    assert guest.op(OP, EVTCHNOP_bind_ipi, EvtchnBindIpi())[0] == -E.NOSPC
    assert send(guest, MAX_PORTS - 1) == 0
    assert guest.pending_selectors() == 1 << 63
    assert close(guest, 77) == 0
    assert bind_ipi(guest) == 77
    assert guest.op(OP, EVTCHNOP_reset, EvtchnReset(dom=SELF))[0] == 0
    assert bind_ipi(guest) == 1


def test_a_chosen_port(guest: PvGuest) -> None:
    """As the tool stack does for console and xenstore."""
    events = guest.domain.events
    events.allocate(Channel(ChannelKind.UNBOUND), 2)
    with pytest.raises(XenError) as refused:
        events.allocate(Channel(ChannelKind.UNBOUND), 2)
    assert refused.value.errno is E.BUSY
    assert [bind_ipi(guest), bind_ipi(guest)] == [1, 3]


def test_a_long_reset_goes_on_where_it_was(guest: PvGuest) -> None:
    events = guest.domain.events
    for _ in range(3000):
        events.allocate(Channel(ChannelKind.IPI))
    at = guest.put(EvtchnReset(dom=SELF))
    guest.regs.rip = 0x1002
    guest.hypercall(OP, EVTCHNOP_reset, at)
    assert (guest.regs.rip, guest.regs.rdi) == (0x1000, EVTCHNOP_reset_cont)
    assert 0 < len(events) < 3000
    assert guest.op(OP, EVTCHNOP_reset, EvtchnReset(dom=SELF))[0] == -E.BUSY
    assert bind_ipi(guest) == 1, "another vCPU binds a port behind it"
    assert guest.call(OP, EVTCHNOP_reset_cont, at) == -E.AGAIN
    assert [port for port, _ in events] == [1]
    assert guest.op(OP, EVTCHNOP_reset, EvtchnReset(dom=SELF))[0] == 0
    assert len(events) == 0


def test_the_highest_port_of_the_configuration() -> None:
    guest = PvGuest(max_event_port=5)
    assert [bind_ipi(guest) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert guest.op(OP, EVTCHNOP_bind_ipi, EvtchnBindIpi())[0] == -E.NOSPC
    refused = EvtchnAllocUnbound(dom=0, remote_dom=SELF)
    assert guest.op(OP, EVTCHNOP_alloc_unbound, refused)[0] == -E.NOSPC, "before EPERM, as in Xen"
    with pytest.raises(XenError) as no_room:
        guest.domain.events.allocate(Channel(ChannelKind.IPI), 6)
    assert no_room.value.errno is E.NOSPC
    guest.close()


def test_the_older_form(guest: PvGuest) -> None:
    at = guest.put(EvtchnOp(cmd=EVTCHNOP_bind_ipi, u=EvtchnBindIpi(vcpu=1).pack().ljust(24, b"\0")))
    assert guest.call("event_channel_op_compat", at) == 0
    op = EvtchnBindIpi.unpack(guest.read(at + EvtchnOp.OFFSET["u"], EvtchnBindIpi.SIZE))
    assert (op.port, status(guest, op.port)[1].vcpu) == (1, 1)
    for command in (EVTCHNOP_reset, 11, 14, 1 << 31):
        at = guest.put(EvtchnOp(cmd=command, u=bytes(24)))
        assert guest.call("event_channel_op_compat", at) == -E.NOSYS
    assert guest.call("event_channel_op_compat", NOT_MAPPED) == -E.FAULT


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", range(16))
def test_a_bad_pointer(guest: PvGuest, command: int) -> None:
    result = guest.call(OP, command, NOT_MAPPED)
    assert result == (-E.FAULT if command < 15 else -E.NOSYS)


@pytest.mark.parametrize(
    ("command", "structure", "errno"),
    [
        (EVTCHNOP_alloc_unbound, EvtchnAllocUnbound(dom=0, remote_dom=SELF), E.PERM),
        (EVTCHNOP_alloc_unbound, EvtchnAllocUnbound(dom=9, remote_dom=SELF), E.SRCH),
        (EVTCHNOP_bind_interdomain, EvtchnBindInterdomain(remote_dom=9, remote_port=1), E.SRCH),
        (EVTCHNOP_bind_virq, EvtchnBindVirq(virq=NR_VIRQS), E.INVAL),
        (EVTCHNOP_bind_virq, EvtchnBindVirq(virq=0xFFFF_FFFF), E.INVAL),
        (EVTCHNOP_bind_virq, EvtchnBindVirq(virq=VIRQ_CONSOLE, vcpu=99), E.INVAL),
        (EVTCHNOP_bind_virq, EvtchnBindVirq(virq=VIRQ_TIMER, vcpu=99), E.NOENT),
        (EVTCHNOP_bind_pirq, EvtchnBindPirq(pirq=NR_PIRQS), E.INVAL),
        (EVTCHNOP_bind_pirq, EvtchnBindPirq(pirq=NR_PIRQS - 1), E.PERM),
        (EVTCHNOP_reset, EvtchnReset(dom=9), E.SRCH),
        (EVTCHNOP_reset_cont, EvtchnReset(dom=SELF), E.BUSY),
        (EVTCHNOP_bind_vcpu, EvtchnBindVcpu(port=0, vcpu=99), E.NOENT),
        (EVTCHNOP_bind_vcpu, EvtchnBindVcpu(port=0, vcpu=0), E.INVAL),
        (EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=XEN_PAGES + 100), E.OPNOTSUPP),
        (EVTCHNOP_set_priority, EvtchnSetPriority(port=1, priority=0), E.NOSYS),
        (EVTCHNOP_set_priority, EvtchnSetPriority(port=64, priority=0), E.INVAL),
        (EVTCHNOP_close, EvtchnClose(port=0), E.INVAL),
        (EVTCHNOP_bind_interdomain, EvtchnBindInterdomain(remote_dom=0, remote_port=1), E.INVAL),
        (EVTCHNOP_bind_interdomain, EvtchnBindInterdomain(remote_dom=SELF, remote_port=9), E.INVAL),
        (EVTCHNOP_bind_ipi, EvtchnBindIpi(vcpu=99), E.NOENT),
        (EVTCHNOP_send, EvtchnSend(port=0), E.INVAL),
        (EVTCHNOP_send, EvtchnSend(port=MAX_PORTS), E.INVAL),
        (EVTCHNOP_send, EvtchnSend(port=0xFFFF_FFFF), E.INVAL),
        (EVTCHNOP_close, EvtchnClose(port=0xFFFF_FFFF), E.INVAL),
        (EVTCHNOP_unmask, EvtchnUnmask(port=0xFFFF_FFFF), E.INVAL),
    ],
)
def test_errors(guest: PvGuest, command: int, structure: EvtchnSend, errno: E) -> None:
    assert guest.op(OP, command, structure)[0] == -errno


@pytest.mark.parametrize(
    ("command", "structure"),
    [
        (EVTCHNOP_alloc_unbound, EvtchnAllocUnbound(dom=SELF, remote_dom=0)),
        (EVTCHNOP_bind_virq, EvtchnBindVirq(virq=VIRQ_TIMER)),
        (EVTCHNOP_bind_ipi, EvtchnBindIpi()),
    ],
)
def test_no_port_is_lost_when_the_answer_cannot_be_written(
    guest: PvGuest, command: int, structure: EvtchnBindIpi
) -> None:
    guest.write(guest.vaddr(50), structure.pack())
    guest.protect(50)
    assert guest.call(OP, command, guest.vaddr(50)) == -E.FAULT
    assert bind_ipi(guest) == 1


def test_only_an_open_port_can_be_bound(guest: PvGuest) -> None:
    for port in (bind_ipi(guest), *pair(guest)):
        wanted = EvtchnBindInterdomain(remote_dom=SELF, remote_port=port)
        assert guest.op(OP, EVTCHNOP_bind_interdomain, wanted)[0] == -E.INVAL
    _, unbound = guest.op(OP, EVTCHNOP_alloc_unbound, EvtchnAllocUnbound(dom=SELF, remote_dom=0))
    wanted = EvtchnBindInterdomain(remote_dom=SELF, remote_port=unbound.port)
    assert guest.op(OP, EVTCHNOP_bind_interdomain, wanted)[0] == -E.INVAL, "it is for domain 0"


# --- blocking and polling ---------------------------------------------------------------------


def poll(guest: PvGuest, *ports: int, timeout: int = 0) -> int:
    at = guest.put(b"".join(port.to_bytes(4, "little") for port in ports)) if ports else 0
    return guest.op(
        "sched_op", SCHEDOP_poll, SchedPoll(ports=at, nr_ports=len(ports), timeout=timeout)
    )[0]


def test_block_sleeps_until_an_event(guest: PvGuest) -> None:
    port = bind_ipi(guest)
    guest.set_mask(1)
    assert guest.call("sched_op", SCHEDOP_block) == 0
    assert guest.vcpu.blocked
    assert guest.vcpu.upcall_mask == 0, "blocking unmasks"
    guest.domain.events.send(port)
    assert not guest.vcpu.blocked


def test_block_does_not_sleep_with_an_event_pending(guest: PvGuest) -> None:
    guest.set_mask(1)
    send(guest, bind_ipi(guest))
    assert guest.call("sched_op", SCHEDOP_block) == 0
    assert not guest.vcpu.blocked


def test_a_masked_port_does_not_wake_a_blocked_vcpu(guest: PvGuest) -> None:
    port = bind_ipi(guest)
    guest.set_bit(MASK, port, True)
    guest.call("sched_op", SCHEDOP_block)
    guest.domain.events.send(port)
    assert guest.vcpu.blocked


def test_poll_waits_for_a_masked_port(guest: PvGuest) -> None:
    port, other = bind_ipi(guest), bind_ipi(guest)
    for each in (port, other):
        guest.set_bit(MASK, each, True)
    assert poll(guest, port) == 0
    assert guest.vcpu.blocked
    guest.domain.events.send(other)
    assert guest.vcpu.blocked, "not the one it waits for"
    guest.domain.events.send(port)
    assert not guest.vcpu.blocked
    assert not guest.domain.events.pollers


def test_poll_of_several_ports_ends_with_any_event(guest: PvGuest) -> None:
    """As in Xen, which does not remember a list: the guest looks again."""
    ports = [bind_ipi(guest) for _ in range(3)]
    for each in ports:
        guest.set_bit(MASK, each, True)
    assert poll(guest, *ports[:2]) == 0
    assert guest.vcpu.blocked
    guest.domain.events.send(ports[2])
    assert not guest.vcpu.blocked


def test_a_pending_port_ends_the_search_of_poll(guest: PvGuest) -> None:
    port = bind_ipi(guest)
    assert poll(guest, port, 99) == -E.INVAL
    guest.set_bit(PENDING, port, True)
    assert poll(guest, port, 99) == 0
    assert poll(guest, 99, port) == -E.INVAL


def test_a_vcpu_that_has_been_asked_already_is_not_woken_again(guest: PvGuest) -> None:
    """A guest that polls with events masked sleeps on, though one waits for it."""
    port, other = bind_ipi(guest), bind_ipi(guest)
    guest.set_mask(1)
    send(guest, other)
    guest.set_bit(PENDING, other, False)
    assert poll(guest, port) == 0
    guest.domain.events.send(other)
    assert guest.vcpu.blocked
    guest.domain.events.send(port)
    assert not guest.vcpu.blocked


def test_poll_waits_for_a_port_of_another_vcpu(guest: PvGuest) -> None:
    port = bind_ipi(guest, 1)
    assert poll(guest, port) == 0
    guest.domain.events.send(port)
    assert not guest.vcpu.blocked


def test_poll_ends_with_any_event_that_is_delivered(guest: PvGuest) -> None:
    port, other = bind_ipi(guest), bind_ipi(guest)
    guest.set_mask(1)
    poll(guest, port)
    guest.domain.events.send(other)
    assert not guest.vcpu.blocked


@pytest.mark.parametrize(
    "prepare",
    [
        lambda guest, port: guest.domain.events.set_pending(port),
        lambda guest, port: guest.set_bit(PENDING, port, True),
        lambda guest, port: guest.vcpu.mark_pending(0),
    ],
)
def test_poll_does_not_sleep_if_there_is_something(
    guest: PvGuest, prepare: Callable[[PvGuest, int], None]
) -> None:
    port = bind_ipi(guest)
    prepare(guest, port)
    assert poll(guest, port) == 0
    assert not guest.vcpu.blocked


@pytest.mark.parametrize("timeout", [1, 1 << 63, (1 << 64) - 1])
def test_poll_with_a_timeout_in_the_past(guest: PvGuest, timeout: int) -> None:
    assert poll(guest, bind_ipi(guest), timeout=timeout) == 0
    assert not guest.vcpu.blocked


def test_poll_errors(guest: PvGuest) -> None:
    assert poll(guest, *range(129)) == -E.INVAL
    assert poll(guest, MAX_PORTS) == -E.INVAL
    bad_list = SchedPoll(ports=NOT_MAPPED, nr_ports=1)
    assert guest.op("sched_op", SCHEDOP_poll, bad_list)[0] == -E.FAULT
    assert guest.call("sched_op", SCHEDOP_poll, NOT_MAPPED) == -E.FAULT
    assert not guest.vcpu.blocked
