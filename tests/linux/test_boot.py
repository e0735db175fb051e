"""Boot, look, list, end: the main job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.linux.host import PROMPT, Host, wait_until


def test_boots_to_a_shell_and_ends(host: Host, config: Path) -> None:
    guest = host.session("create", "-c", str(config))
    early = guest.expect(PROMPT)
    assert b"Linux version" in early, "the console is shown from its first byte"
    assert "Linux" in guest.run("uname -a")
    assert "pyxen" in guest.run("grep -m1 'model name' /proc/cpuinfo")
    assert guest.run("cat /sys/hypervisor/type") == "xen"
    assert guest.run("cat /sys/hypervisor/version/major /sys/hypervisor/version/minor").split() == [
        "4",
        "17",
    ]
    [[name, domid, memory, vcpus, state, _]] = host.list()
    assert (name, domid, memory, vcpus) == ("guest", "1", "128", "1")
    assert state in ("-b----", "r-----")
    host.xl("shutdown", "-w", "guest")
    assert guest.end() == 0
    assert host.list() == []


def test_reboot_from_inside_starts_the_guest_again(host: Host, config: Path) -> None:
    guest = host.session("create", "-c", str(config))
    guest.expect(PROMPT)
    guest.type("reboot\n")
    assert guest.end() == 0
    wait_until(lambda: [row[:2] for row in host.list()] == [["guest", "2"]])
    again = host.console("guest")
    again.expect(PROMPT)
    again.type("poweroff\n")
    wait_until(lambda: host.list() == [])


@pytest.mark.parametrize("memory", [64, 256, 4096])
def test_memory_sizes(host: Host, config: Path, memory: int) -> None:
    guest = host.session("create", "-c", str(config), f"memory={memory}")
    guest.expect(PROMPT)
    seen_kib = int(guest.run("grep MemTotal /proc/meminfo").split()[1])
    assert memory * 1024 * 0.4 < seen_kib < memory * 1024
    assert host.list()[0][2] == str(memory)


def test_pure_python_path(tmp_path: Path, config: Path) -> None:
    host = Host(tmp_path / "plain", {"PYXEN_NATIVE": "0"})
    try:
        guest = host.session("create", "-c", str(config))
        guest.expect(PROMPT)
        assert guest.run("echo $((6 * 7))") == "42"
    finally:
        host.close()


def test_full_kernel(host: Host, full_config: Path) -> None:
    guest = host.session("create", "-c", str(full_config))
    guest.expect(PROMPT)
    assert "cloud" not in guest.run("uname -r")


def test_twenty_guests_answer(host: Host, config: Path) -> None:
    names = [f"g{n}" for n in range(20)]
    for name in names:
        host.xl("create", "-q", str(config), f'name="{name}"', "memory=64")
    consoles = {name: host.console(name) for name in names}
    for name, console in consoles.items():
        console.type("\n")
        console.expect(PROMPT)
        console.type(f"echo this-is-$((1000 + {name[1:]}))\n")
        console.expect(f"this-is-{1000 + int(name[1:])}".encode())
    assert sorted(row[0] for row in host.list()) == sorted(names)


def test_console_attaches_late_and_twice(host: Host, config: Path) -> None:
    host.xl("create", str(config))
    first, second = host.console("guest"), host.console("guest")
    first.type("\n")
    first.expect(PROMPT)
    first.type("echo seen-by-$((1 + 1))\n")
    first.expect(b"seen-by-2")
    second.expect(b"seen-by-2")
    assert first.leave() == 0
    second.type("echo still-$((2 + 2))\n")
    second.expect(b"still-4")
    [log] = host.home.glob("logs/guest/*/console.log")
    assert b"Linux version" in log.read_bytes()


def test_pause_counts(host: Host, config: Path) -> None:
    guest = host.session("create", "-c", str(config))
    guest.expect(PROMPT)
    host.xl("pause", "guest")
    host.xl("pause", "guest")
    assert host.list()[0][4] == "--p---"
    host.xl("unpause", "guest")
    assert host.list()[0][4] == "--p---"
    host.xl("unpause", "guest")
    assert guest.run("echo $((40 + 2))") == "42"
