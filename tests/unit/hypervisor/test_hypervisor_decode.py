"""Hypercalls in Xen's names, whatever the guest wrote."""

from __future__ import annotations

import random

import pytest
from pv_guest import BASE, NOT_MAPPED, NUMBERS, SELF, PvGuest

from pyxen.abi.event_channel import EvtchnAllocUnbound, EvtchnBindVirq, EvtchnSend
from pyxen.abi.grant_table import GnttabQuerySize, GnttabSetupTable
from pyxen.abi.sched import SchedShutdown
from pyxen.abi.version import XenFeatureInfo
from pyxen.abi.xen import MmuextOp, MmuUpdate
from pyxen.hypervisor.hypercall import decode, table
from pyxen.hypervisor.hypercall.subcommands import COMMANDS


def line(guest: PvGuest, name: str, *arguments: int) -> str:
    """Carry out a hypercall, decoding around it."""
    read = guest.domain.space.try_read
    decoding = decode.begin(NUMBERS[name], arguments, read)
    result = guest.call(name, *arguments)
    called = decoding.end(read)
    words = [called.text(), "->", decode.result_text(result), called.out_text()]
    return " ".join(word for word in words if word)


def test_what_the_guest_says_and_gets_back(guest: PvGuest) -> None:
    put = guest.put
    for wanted, name, *arguments in (
        ("event_channel_op alloc_unbound dom=SELF remote_dom=0 -> 0 port=1",
         "event_channel_op", 6, put(EvtchnAllocUnbound(dom=SELF))),
        ("event_channel_op send port=5 -> -EINVAL",
         "event_channel_op", 4, put(EvtchnSend(port=5))),
        ("event_channel_op bind_virq virq=TIMER vcpu=0 -> 0 port=2",
         "event_channel_op", 1, put(EvtchnBindVirq())),
        ("grant_table_op query_size dom=SELF -> 0 nr_frames=1 max_nr_frames=64 status=okay",
         "grant_table_op", 6, put(GnttabQuerySize(dom=SELF)), 1),
        ("xen_version get_features submap_idx=9 -> -EINVAL submap=0",
         "xen_version", 6, put(XenFeatureInfo(submap_idx=9))),
        ("xen_version version -> 0x40011", "xen_version", 0),
        ("sched_op 99 arg=0 -> -ENOSYS", "sched_op", 99, 0),
        ("stack_switch ss=0xe02b esp=0x1000 -> 0", "stack_switch", 0xE02B, 0x1000),
        ("set_segment_base which=GS_USER base=0x7000 -> 0", "set_segment_base", 1, 0x7000),
        ("vm_assist enable type=writable_pagetables -> 0", "vm_assist", 0, 2),
        ("domctl op=20480 -> -EFAULT", "domctl", 0x5000),
    ):  # fmt: skip
        assert line(guest, name, *arguments) == wanted


def test_lists_of_the_mmu(guest: PvGuest) -> None:
    ptr, value = guest.pte_maddr(50), guest.pte(50)
    one = guest.put(MmuUpdate(ptr=ptr, val=value))
    assert line(guest, "mmu_update", one, 1, 0, SELF) == (
        f"mmu_update NORMAL ptr={ptr:#x} val={value:#x} -> 0"
    )
    many = guest.put(*[MmuUpdate(ptr=ptr | 2, val=value)] * 9)
    shown = line(guest, "mmu_update", many, 9, 0, SELF)
    assert shown.startswith(f"mmu_update count=9 PRESERVE_AD ptr={ptr:#x} val={value:#x}; ")
    assert shown.endswith("; 5 more -> 0")
    two = guest.put(MmuextOp(cmd=3, arg1=0x12345), MmuextOp(cmd=6))
    assert line(guest, "mmuext_op", two, 2, 0, SELF) == (
        "mmuext_op count=2 PIN_L4_TABLE mfn=0x12345; TLB_FLUSH_LOCAL -> -EINVAL"
    )
    assert line(guest, "mmuext_op", 5, 0, 0, 3) == "mmuext_op count=0 domid=3 -> -ESRCH"


def test_the_sub_command_of_a_list_is_that_of_all_its_entries(guest: PvGuest) -> None:
    def op(*commands: int) -> str:
        uops = guest.put(*(MmuextOp(cmd=command) for command in commands))
        return decode.begin(26, (uops, len(commands), 0, SELF), guest.domain.space.try_read).op

    assert (op(6), op(6, 6), op(6, 8)) == ("TLB_FLUSH_LOCAL", "TLB_FLUSH_LOCAL", "")


def test_addresses_that_cannot_be_read(guest: PvGuest) -> None:
    assert line(guest, "event_channel_op", 4, NOT_MAPPED) == (
        f"event_channel_op send arg={NOT_MAPPED:#x} -> -EFAULT"
    )
    assert line(guest, "mmu_update", NOT_MAPPED, 1, 0, SELF) == (
        f"mmu_update ureqs={NOT_MAPPED:#x} -> -EFAULT"
    )
    frames = guest.put(GnttabSetupTable(dom=SELF, nr_frames=2, frame_list=NOT_MAPPED))
    assert "setup_table dom=SELF nr_frames=2" in line(guest, "grant_table_op", 2, frames, 1)


def test_of_the_past_only_the_registers_are_known() -> None:
    for number, arguments, result, wanted in (
        (32, (4, 0x1000), 0, "event_channel_op send arg=0x1000 -> 0"),
        (29, (77, 0), -38, "sched_op 77 arg=0 -> -ENOSYS"),
        (29, (1, 0x1234), 0, "sched_op block -> 0"),
        (
            26,
            (0x1000, 1, 0, SELF),
            0,
            "mmuext_op uops=0x1000 count=1 pdone=0 domid=SELF -> 0",
        ),
        (14, (0x7000, 0x67, 2), 0, "update_va_mapping va=0x7000 val=0x67 flush=INVLPG -> 0"),
        (23, (), 0, "iret -> 0"),
        (12345, (1, 2, 3, 4, 5, 6), -38, "hypercall_12345 -> -ENOSYS"),
        (9, (0,), 0xFFFF0FF0, "get_debugreg reg=0 -> 0xffff0ff0"),
        (29, (0,), -4000, "sched_op yield -> -4000"),
    ):
        assert decode.describe(number, arguments, result) == wanted


def test_a_reason_has_its_name(guest: PvGuest) -> None:
    at = guest.put(SchedShutdown(reason=3))
    found = decode.begin(29, (2, at), guest.domain.space.try_read)
    assert found.end(guest.domain.space.try_read).text() == "sched_op shutdown reason=crash"


def test_numbers_without_a_command_stay_numbers() -> None:
    """Other constants of a header share the prefix of its commands."""
    assert decode.describe(12, (8, 0), -38).startswith("memory_op 8 ")
    assert decode.describe(33, (1, 0), -38).startswith("physdev_op 1 ")


def test_every_command_of_the_table_exists_with_its_fields() -> None:
    for name, family in COMMANDS.items():
        assert any(row.name == name for row in table.ROWS)
        known = decode._command_names(family.module, family.prefix).values()
        for op, command in family.commands.items():
            assert op in known, (name, op)
            for path in (*command.fields, *command.out):
                value: object = command.structure()  # type: ignore[misc]
                for part in path.split("."):
                    value = getattr(value, part)
                assert isinstance(value, int), (name, op, path)


@pytest.mark.parametrize("seed", range(3))
def test_anything_can_be_decoded(guest: PvGuest, seed: int) -> None:
    rng = random.Random(seed)
    guest.write(guest.vaddr(60), rng.randbytes(4096 * 4))
    read = guest.domain.space.try_read
    interesting = [0, 1, 2, 5, 0x7FF0, 1 << 31, (1 << 32) - 1, (1 << 64) - 1, NOT_MAPPED - 8, BASE]
    for _ in range(3000):
        number = rng.choice([*range(60), (1 << 64) - 1])
        arguments = tuple(
            rng.choice([rng.randrange(32), guest.vaddr(60) + rng.randrange(8192), *interesting])
            for _ in range(5)
        )
        called = decode.begin(number, arguments, read).end(read)
        assert len(called.text()) < 2000
        assert called.text().isprintable()
        assert decode.describe(number, arguments, -rng.randrange(5000))
