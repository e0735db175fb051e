"""What goes wrong: xend is killed, guests crash, input is bad. Nothing may be left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pyxen.image.demo import DemoImage
from tests.linux.host import PROMPT, Host, wait_until, write_config


def test_guests_survive_their_xend(host: Host, config: Path) -> None:
    names = ["a", "b", "c"]
    consoles = []
    for name in names:
        console = host.session("create", "-c", str(config), f'name="{name}"', "memory=64")
        console.expect(PROMPT)
        console.type("i=0; while :; do i=$((i + 1)); echo count-$i; sleep 0.2; done\n")
        console.expect(b"count-2")
        consoles.append(console)
    os.kill(host.xend_pid(), signal.SIGKILL)
    assert sorted(row[0] for row in host.list()) == names, "the next xend adopts them"
    for name in names:
        console = host.console(name)
        console.expect(b"count-")
        console.interrupt()
    # Their xenstore connections work, too: the agent in the kernel gets the request.
    host.xl("shutdown", "-a", "-w")
    assert host.list() == []


def test_crash_report(host: Host, config: Path) -> None:
    guest = host.session("create", "-c", str(config), 'on_crash="destroy"')
    guest.expect(PROMPT)
    guest.type("echo c > /proc/sysrq-trigger\n")
    assert guest.end() == 1
    text = guest.output.decode(errors="replace")
    assert "sysrq_handle_crash" in text
    report = text[text.rindex("crashed.") :]
    for part in ("rip", "cr3", "Kernel stack", "hypercalls, oldest first", "event_channel_op send"):
        assert part in report
    assert host.list() == []
    kept = list((host.home / "logs" / "guest").rglob("crash.txt"))
    assert len(kept) == 1


@pytest.fixture
def quiet(host: Host) -> Host:
    """A home whose xend runs already, so that only the failing command can leave something."""
    host.xl("list")
    return host


def bad_configs(directory: Path, demo: DemoImage) -> dict[str, tuple[Path, int, str]]:
    """name → (config, exit code, a part of the message)."""
    kernel = demo.kernel.read_bytes()
    (directory / "truncated").write_bytes(kernel[: len(kernel) // 2])
    (directory / "text").write_text("this is not a kernel\n")
    good = {"kernel": str(demo.kernel), "ramdisk": str(demo.ramdisk), "memory": 128}
    cases: dict[str, tuple[dict[str, object], int, str]] = {
        "missing": ({**good, "kernel": "/nonexistent/vmlinuz"}, 3, "does not exist"),
        "truncated": ({**good, "kernel": str(directory / "truncated")}, 3, "truncated"),
        "text": ({**good, "kernel": str(directory / "text")}, 3, "kernel"),
        "notxen": ({**good, "kernel": "/bin/true"}, 3, "Xen"),
        "ramdisk": ({**good, "ramdisk": "/nonexistent/initrd"}, 3, "does not exist"),
        "small": ({**good, "memory": 16}, 3, "at least"),
        "huge": ({**good, "memory": 40000000}, 3, "this host has"),
        "vcpus": ({**good, "vcpus": 200}, 3, "at most"),
    }
    return {
        name: (write_config(directory / f"{name}.cfg", name=name, **settings), code, message)
        for name, (settings, code, message) in cases.items()
    }


def test_bad_input_leaves_nothing(quiet: Host, tmp_path: Path, demo: DemoImage) -> None:
    before_files, before_processes = quiet.leftovers(), len(quiet.processes())
    for name, (config, code, message) in bad_configs(tmp_path, demo).items():
        done = quiet.xl("create", str(config), check=False)
        assert done.returncode == code, (name, done.stderr)
        assert message in done.stderr, (name, done.stderr)
        assert quiet.list() == []
    assert quiet.leftovers() == before_files
    wait_until(lambda: len(quiet.processes()) <= before_processes)


def test_malformed_config_names_the_place(quiet: Host, tmp_path: Path) -> None:
    config = tmp_path / "bad.cfg"
    config.write_text('name = "x"\nmemory = = 5\n')
    done = quiet.xl("create", str(config), check=False)
    assert done.returncode == 1
    assert f"{config}:2:" in done.stderr


def test_unknown_domain_and_name_in_use(quiet: Host, config: Path) -> None:
    done = quiet.xl("destroy", "nobody", check=False)
    assert done.returncode != 0 and "nobody" in done.stderr
    quiet.xl("create", str(config))
    done = quiet.xl("create", str(config), check=False)
    assert done.returncode == 3 and "guest" in done.stderr
    assert [row[:2] for row in quiet.list()] == [["guest", "1"]]
    quiet.xl("destroy", "guest")
    assert quiet.list() == []


def test_destroy_leaves_nothing(quiet: Host, config: Path) -> None:
    before = quiet.leftovers()
    quiet.xl("create", str(config))
    assert quiet.leftovers() != before
    quiet.xl("destroy", "guest")
    assert quiet.leftovers() == before
