"""vcpu_op: bringing vCPUs up and down, and the areas that they register."""

from __future__ import annotations

import pytest
from pv_guest import GDT, L4, NOT_MAPPED, STACK, TEXT, PvGuest

from pyxen.abi.arch_x86 import (
    CpuUserRegs,
    TrapInfo,
    VcpuGuestContext,
    VGCF_in_kernel,
    VGCF_syscall_disables_events,
)
from pyxen.abi.errno import E
from pyxen.abi.vcpu import (
    VCPUOP_down,
    VCPUOP_get_physid,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_up,
    VcpuRegisterVcpuInfo,
    VcpuRunstateInfo,
)
from pyxen.abi.xen import (
    VcpuInfo,
    VcpuTimeInfo,
    VMASST_CMD_enable,
    VMASST_TYPE_runstate_update_flag,
)
from pyxen.cpu.base import PREEMPTED, Exit
from pyxen.hypervisor.domain import ShutdownReason
from pyxen.hypervisor.hypercall.vcpu_op import publish_runstate
from pyxen.hypervisor.vcpu import RunState
from pyxen.memory import layout
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES
from pyxen.types import VcpuId

OP = "vcpu_op"
INFO_MFN = XEN_PAGES + 60


def context(**changes: int) -> VcpuGuestContext:
    traps = [TrapInfo(vector=n) for n in range(256)]
    traps[14] = TrapInfo(vector=14, flags=4, cs=0xE033, address=changes.pop("trap", TEXT + 0x500))
    ctrl = [0] * 8
    ctrl[3], ctrl[1] = changes.pop("cr3", L4 << 12), changes.pop("cr1", 0)
    registers = CpuUserRegs(
        rip=changes.pop("rip", TEXT + 0x40), rsp=STACK - 0x200, rax=1, rbx=2, r15=15, rflags=0x3202
    )
    made = VcpuGuestContext(
        user_regs=registers,
        trap_ctxt=tuple(traps),
        ctrlreg=tuple(ctrl),
        gdt_frames=(changes.pop("gdt", GDT), *[0] * 15),
        gdt_ents=16,
        kernel_ss=0xE02B,
        kernel_sp=STACK - 0x300,
        event_callback_eip=TEXT + 0x100,
        failsafe_callback_eip=TEXT + 0x200,
        syscall_callback_eip=TEXT + 0x300,
        flags=VGCF_in_kernel | VGCF_syscall_disables_events,
        fs_base=0x1111,
        gs_base_kernel=0x2222,
        gs_base_user=0x3333,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def initialise(guest: PvGuest, vcpu: int = 1, **changes: int) -> int:
    return guest.call(OP, VCPUOP_initialise, vcpu, guest.put(context(**changes)))


def register_info(guest: PvGuest, vcpu: int = 0, mfn: int = INFO_MFN, offset: int = 128) -> int:
    at = guest.put(VcpuRegisterVcpuInfo(mfn=mfn, offset=offset))
    return guest.call(OP, VCPUOP_register_vcpu_info, vcpu, at)


# --- up and down ------------------------------------------------------------------------------


def test_a_second_vcpu_starts_as_its_context_says(guest: PvGuest) -> None:
    assert guest.call(OP, VCPUOP_is_up, 1) == 0
    assert initialise(guest) == 0
    assert guest.call(OP, VCPUOP_is_up, 1) == 0
    assert guest.call(OP, VCPUOP_up, 1) == 0
    assert guest.call(OP, VCPUOP_is_up, 1) == 1
    other = guest.domain.vcpus[VcpuId(1)]
    seen = guest.engine.save(other.vcpu_id)
    assert (seen.rip, seen.cr3, seen.rflags) == (TEXT + 0x40, L4 << 12, 0x202)
    assert (seen.gprs[0], seen.gprs[3], seen.gprs[15], seen.gprs[4]) == (1, 2, 15, STACK - 0x200)
    assert (seen.segments[4][1], seen.segments[5][1]) == (0x1111, 0x2222)
    assert not seen.user_mode
    pv = other.pv
    assert (pv.event_callback, pv.failsafe_callback) == (TEXT + 0x100, TEXT + 0x200)
    assert (pv.syscall_callback, pv.syscall_callback_flags) == (TEXT + 0x300, 1)
    assert (pv.kernel_sp, pv.kernel_ss, pv.gs_base_user) == (STACK - 0x300, 0xE02B, 0x3333)
    assert (pv.traps_address[14], pv.traps_flags[14]) == (TEXT + 0x500, 4 | 0xE033 << 16)
    assert other.gdt_frames == (GDT,)
    assert guest.engine.selected == VcpuId(0), "the caller goes on"


def test_it_runs_when_it_is_up(guest: PvGuest) -> None:
    ran: list[int] = []

    def note() -> Exit:
        ran.append(guest.regs.rip)
        guest.world.closing = guest.world.attention = True
        return PREEMPTED

    initialise(guest)
    guest.vcpu.blocked = True
    guest.engine.script += [note]
    guest.call(OP, VCPUOP_up, 1)
    guest.loop.run()
    assert ran == [TEXT + 0x40]


def test_its_vcpu_info_is_ready(guest: PvGuest) -> None:
    initialise(guest)
    guest.call(OP, VCPUOP_up, 1)
    other = guest.domain.vcpus[VcpuId(1)]
    assert other.upcall_mask == 1, "a vCPU starts with events masked"
    at = other.pv.vcpu_info_maddr + VcpuInfo.OFFSET["time"]
    published = VcpuTimeInfo.unpack(guest.memory.bytes, at)
    assert published.system_time == guest.time.record.system_time


def test_up_and_down_errors(guest: PvGuest) -> None:
    assert guest.call(OP, VCPUOP_up, 1) == -E.INVAL, "not initialised"
    assert initialise(guest, 0) == -E.EXIST
    assert initialise(guest, 1) == 0
    assert initialise(guest, 1) == -E.EXIST
    assert guest.call(OP, VCPUOP_initialise, 1, NOT_MAPPED) == -E.FAULT, "read before it is asked"
    for vcpu in (4, 127, 1 << 31, 1 << 63):
        assert guest.call(OP, VCPUOP_is_up, vcpu) == -E.NOENT
    assert guest.call(OP, 99, 0) == -E.NOSYS
    assert guest.call(OP, VCPUOP_send_nmi, 0, 1) == -E.INVAL
    assert guest.call(OP, VCPUOP_get_physid, 0) == -E.INVAL


@pytest.mark.parametrize(
    "changes",
    [
        {"cr3": 0},
        {"cr3": 5 << 12},
        {"cr3": 1 << 62},
        {"cr1": 5 << 12},
        {"gdt": 5},
        {"gdt": 1 << 60},
        {"gdt_ents": 7169},
        {"gdt_ents": (1 << 64) - 1},
        {"ldt_ents": 8193, "ldt_base": TEXT},
        {"ldt_ents": 1, "ldt_base": TEXT + 8},
        {"ldt_base": 8},
        {"ldt_ents": 1, "ldt_base": 0xFFFF_8000_0000_0000},
        {"trap": 0xFFFF_8000_0000_0000},
        {"trap": 1 << 47},
        {"rip": 1 << 47},
        {"fs_base": 1 << 50},
        {"gs_base_kernel": 1 << 50},
        {"event_callback_eip": 1 << 50},
        {"kernel_sp": 1 << 50},
    ],
)
def test_bad_contexts(guest: PvGuest, changes: dict[str, int]) -> None:
    assert initialise(guest, 1, **changes) == -E.INVAL
    other = guest.domain.vcpus[VcpuId(1)]
    assert not other.initialised
    assert other.pv.cr3 == 0
    assert other.pv.event_callback == 0


def test_a_context_that_cannot_be_read(guest: PvGuest) -> None:
    assert guest.call(OP, VCPUOP_initialise, 1, NOT_MAPPED - 4096) == -E.FAULT


def test_down_and_up_again(guest: PvGuest) -> None:
    guest.start(1)
    assert guest.call(OP, VCPUOP_down, 1) == 0
    other = guest.domain.vcpus[VcpuId(1)]
    assert other.runstate.state is RunState.OFFLINE
    assert guest.call(OP, VCPUOP_up, 1) == 0
    assert other.runnable


def test_the_last_vcpu_going_down_is_a_power_off(guest: PvGuest) -> None:
    guest.call(OP, VCPUOP_down, 0)
    assert guest.domain.shutdown_reason is ShutdownReason.POWEROFF


def test_polling_is_forgotten_when_a_vcpu_goes_down(guest: PvGuest) -> None:
    other = guest.start(1)
    other.blocked, other.poll_ports = True, (5,)
    guest.domain.events.pollers.add(other)
    guest.call(OP, VCPUOP_down, 1)
    guest.call(OP, VCPUOP_up, 1)
    assert not guest.domain.events.pollers
    assert other.runnable


# --- vcpu_info --------------------------------------------------------------------------------


def test_registering_a_vcpu_info_moves_everything(guest: PvGuest) -> None:
    guest.vcpu.mark_pending(3)
    guest.set_mask(1)
    guest.vcpu.set_cr2(0x1234)
    assert register_info(guest) == 0
    assert guest.vcpu.pv.vcpu_info_maddr == (INFO_MFN << 12) + 128
    assert guest.vcpu.upcall_mask == 1
    assert guest.vcpu.cr2() == 0x1234
    assert guest.vcpu.upcall_pending
    assert guest.pending_selectors() == (1 << 64) - 1, "it should look at everything"


def test_events_go_to_the_new_place(guest: PvGuest) -> None:
    register_info(guest)
    guest.clear_pending()
    guest.vcpu.mark_pending(5)
    assert guest.memory.read_u64((INFO_MFN << 12) + 128 + 8) == 1 << 5
    assert guest.memory.read_u64(guest.domain.shared_info + 8) == 0


@pytest.mark.parametrize(
    ("changes", "errno"),
    [
        ({"offset": 4096 - 63}, E.NXIO),
        ({"offset": 4}, E.NXIO),
        ({"offset": 0xFFFF_FFF8}, E.NXIO),
        ({"mfn": 5}, E.INVAL),
        ({"mfn": 1 << 52}, E.INVAL),
        ({"mfn": L4}, E.INVAL),
    ],
)
def test_bad_places_for_a_vcpu_info(guest: PvGuest, changes: dict[str, int], errno: E) -> None:
    before = guest.vcpu.pv.vcpu_info_maddr
    assert register_info(guest, **changes) == -errno
    assert guest.vcpu.pv.vcpu_info_maddr == before


def test_a_vcpu_info_is_registered_once(guest: PvGuest) -> None:
    assert register_info(guest, offset=4096 - 64) == 0
    assert register_info(guest) == -E.INVAL


def test_only_for_itself_or_one_that_is_down(guest: PvGuest) -> None:
    assert register_info(guest, 1) == 0
    guest.start(2)
    assert register_info(guest, 2) == -E.INVAL


# --- run state and time -----------------------------------------------------------------------


def test_the_runstate_adds_up(guest: PvGuest) -> None:
    at = guest.vaddr(60)
    guest.clock.advance(5000)
    assert guest.call(OP, VCPUOP_get_runstate_info, 0, at) == 0
    info = VcpuRunstateInfo.unpack(guest.read(at, VcpuRunstateInfo.SIZE))
    assert info.state == RunState.RUNNABLE.value
    assert sum(info.time) == pytest.approx(guest.time.now_ns(), abs=10)
    assert info.time[RunState.RUNNABLE] == sum(info.time) - info.state_entry_time >= 5000
    guest.clock.advance(700)
    guest.call(OP, VCPUOP_get_runstate_info, 0, at)
    later = VcpuRunstateInfo.unpack(guest.read(at, VcpuRunstateInfo.SIZE))
    assert later.state_entry_time == info.state_entry_time, "a look is no change of state"
    assert later.time[RunState.RUNNABLE] - info.time[RunState.RUNNABLE] >= 700
    assert guest.call(OP, VCPUOP_get_runstate_info, 0, NOT_MAPPED) == -E.FAULT


def test_a_pause_is_time_off_line(guest: PvGuest) -> None:
    """As in Xen; Linux counts it as stolen."""
    sleeper = guest.start(1)
    sleeper.blocked = True
    sleeper.runstate.enter(RunState.BLOCKED, guest.time.now_ns())
    guest.domain.pause()
    guest.domain.pause()
    guest.clock.advance(9000)
    guest.domain.unblock(sleeper)
    assert sleeper.runstate.state is RunState.OFFLINE
    guest.domain.unpause()
    assert guest.vcpu.runstate.state is RunState.OFFLINE
    guest.domain.unpause()
    assert guest.vcpu.runstate.state is sleeper.runstate.state is RunState.RUNNABLE
    assert guest.vcpu.runstate.spent_ns[RunState.OFFLINE] >= 9000
    guest.domain.unpause()
    assert guest.domain.pause_count == 0


def test_the_runstate_area_follows_the_vcpu(guest: PvGuest) -> None:
    at = guest.vaddr(60)
    assert guest.call(OP, VCPUOP_register_runstate_memory_area, 0, guest.put(at)) == 0
    states: list[int] = []

    def look() -> Exit:
        states.append(VcpuRunstateInfo.unpack(guest.read(at, VcpuRunstateInfo.SIZE)).state)
        guest.world.attention = guest.world.closing = True
        return PREEMPTED

    guest.engine.script += [look]
    guest.loop.run()
    after = VcpuRunstateInfo.unpack(guest.read(at, VcpuRunstateInfo.SIZE)).state
    assert (states, after) == ([RunState.RUNNING.value], RunState.RUNNABLE.value)


def test_the_runstate_area_changes_at_once(guest: PvGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """VMASST_TYPE_runstate_update_flag: nobody finds it half written, and so never the flag."""
    at, seen = guest.vaddr(60), []
    guest.call(OP, VCPUOP_register_runstate_memory_area, 0, guest.put(at))
    assert guest.call("vm_assist", VMASST_CMD_enable, VMASST_TYPE_runstate_update_flag) == 0
    write = guest.memory.write

    def watched(maddr: int, data: bytes) -> None:
        write(maddr, data)
        seen.append(VcpuRunstateInfo.unpack(guest.read(at, VcpuRunstateInfo.SIZE)))

    monkeypatch.setattr(guest.memory, "write", watched)
    guest.clock.advance(1_000_000)
    publish_runstate(guest.domain, guest.vcpu)
    assert [info.state_entry_time for info in seen] == [guest.vcpu.runstate.entered_ns]
    assert sum(seen[0].time) >= 1_000_000


def test_a_runstate_area_that_goes_away_is_no_error(guest: PvGuest) -> None:
    guest.call(OP, VCPUOP_register_runstate_memory_area, 0, guest.put(guest.vaddr(60)))
    guest.unmap(60)
    guest.engine.script += [lambda: PREEMPTED]
    guest.loop.run()
    assert "end of script" in str(guest.domain.crash_cause)


@pytest.mark.parametrize(
    "command", [VCPUOP_register_runstate_memory_area, VCPUOP_register_vcpu_time_memory_area]
)
def test_areas_belong_to_the_guest(guest: PvGuest, command: int) -> None:
    for vaddr in (layout.M2P_VADDR, 1 << 47, (1 << 64) - 8):
        assert guest.call(OP, command, 0, guest.put(vaddr)) == -E.FAULT
    assert guest.call(OP, command, 0, NOT_MAPPED) == -E.FAULT


def test_the_time_area_gets_every_record(guest: PvGuest) -> None:
    at = guest.vaddr(61)
    assert guest.call(OP, VCPUOP_register_vcpu_time_memory_area, 0, guest.put(at)) == 0

    def shown() -> VcpuTimeInfo:
        return VcpuTimeInfo.unpack(guest.read(at, VcpuTimeInfo.SIZE))

    assert shown().system_time == guest.time.record.system_time
    guest.clock.advance(2_000_000_000)
    guest.vcpu.blocked = True
    guest.loop.run()
    assert shown().system_time == guest.time.record.system_time
    assert shown().version % 2 == 0


@pytest.mark.parametrize("command", [VCPUOP_set_periodic_timer, VCPUOP_set_singleshot_timer])
def test_timers_with_bad_pointers(guest: PvGuest, command: int) -> None:
    assert guest.call(OP, command, 0, NOT_MAPPED) == -E.FAULT


def test_descriptor_frames_of_a_context_are_shown_to_that_vcpu(guest: PvGuest) -> None:
    initialise(guest)
    own, other = (
        guest.memory.read_u64(layout.descriptor_pte_maddr(VcpuId(n), 0)) for n in range(2)
    )
    assert (own, other >> 12 & 0xFFFFF) == (0, GDT)
    assert guest.domain.frames.type(L4) is FrameType.L4
