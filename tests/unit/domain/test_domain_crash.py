"""The crash report: the same for the same crash, whatever the guest left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from pv_guest import NOT_MAPPED, STACK, PvGuest

from pyxen.cpu.base import Trap
from pyxen.domain.crash import CONSOLE_LINES, report
from pyxen.errors import DomainCrash

KERNEL = Path("/nonexistent/vmlinuz")
RETURN_ADDRESS = 0xFFFF_FFFF_8100_1234


def crash(guest: PvGuest) -> str:
    """A page fault without a handler after two hypercalls; its report."""
    guest.hypercall("sched_op", 99)
    guest.hypercall("stack_switch", 0xE02B, STACK)
    guest.write(STACK - 64, (7).to_bytes(8, "little") + RETURN_ADDRESS.to_bytes(8, "little"))
    guest.regs.rsp, guest.regs.rip, guest.regs.r12 = STACK - 64, 0x1234, 0xABCD
    guest.domain.last_words = b"early words\n"
    with pytest.raises(DomainCrash) as crashed:
        guest.handle(Trap(14, 2, 0x5000))
    guest.domain.crash(crashed.value)
    return report(guest.domain, KERNEL, b"first\nlast line\n")


def test_what_it_says(guest: PvGuest) -> None:
    text = crash(guest)
    for wanted in (
        "Domain 7 (test) crashed.",
        "Cause: trap 14 (error code 0x2) at 0x1234, for which the guest has no handler",
        "vCPU 0, guest kernel mode",
        "    rip 0000000000001234",
        "    r12 000000000000abcd",
        f"     8  {RETURN_ADDRESS:016x}",
        "sched_op 99 arg=0 -> -ENOSYS",
        "stack_switch ss=0xe02b esp=0xffff888000022000 -> 0",
        "The end of the console:\n  first\n  last line",
        "Said to the hypervisor's console:\n  early words",
    ):
        assert wanted in text, wanted


def test_the_same_crash_gives_the_same_report(guest: PvGuest) -> None:
    again = PvGuest()
    try:
        assert crash(guest) == crash(again)
    finally:
        again.close()


def test_a_bug_of_ours_says_so(guest: PvGuest) -> None:
    try:
        _ = [][1]  # type: ignore[var-annotated]
    except IndexError as bug:
        guest.domain.crash(bug)
    text = report(guest.domain, KERNEL, b"")
    assert "a bug in pyxen, please report it: IndexError" in text
    assert "test_domain_crash.py" in text
    assert "The console is empty." in text
    assert "No hypercalls were made." in text


def test_a_crash_that_the_guest_asked_for(guest: PvGuest) -> None:
    assert "SHUTDOWN_crash" in report(guest.domain, KERNEL, b"Kernel panic\n")


@pytest.mark.parametrize(
    "stack", [0, 3, NOT_MAPPED, NOT_MAPPED - 8, 1 << 47, (1 << 64) - 1, 0xFFFF_8000_0000_0000]
)
def test_any_stack(guest: PvGuest, stack: int) -> None:
    guest.regs.rsp = stack
    assert "Domain 7" in report(guest.domain, KERNEL, b"")


def test_page_tables_that_lead_nowhere(guest: PvGuest) -> None:
    guest.memory.words[guest.vcpu.pv.cr3 >> 3 : (guest.vcpu.pv.cr3 >> 3) + 512] = memoryview(
        bytes([0xFF]) * 4096
    ).cast("Q")
    guest.regs.rsp = STACK - 64
    assert "Domain 7" in report(guest.domain, KERNEL, b"")


def test_hostile_text_is_made_safe(guest: PvGuest) -> None:
    guest.domain.last_words = b"\x1b]0;owned\x07\xff\xfe\x00"
    noise = b"\x1b[2J\r\x08" + b"line\n" * 200
    text = report(guest.domain, KERNEL, noise)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.count("\n  line") == CONSOLE_LINES


def test_a_stack_full_of_addresses_is_bounded(guest: PvGuest) -> None:
    at = guest.vaddr(500)
    guest.write(at, RETURN_ADDRESS.to_bytes(8, "little") * 4096)
    guest.regs.rsp = at
    assert report(guest.domain, KERNEL, b"").count(f"{RETURN_ADDRESS:016x}") == 32
