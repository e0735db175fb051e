"""xl create, console, shutdown … as a user meets them, on stand-in domain processes."""

import contextlib
import os
import pty
import select
import subprocess
import termios

import pytest

CONFIG = 'name = "{name}"\nkernel = "vmlinuz"\nmemory = 64\nextra = "{extra}"\n{more}\n'


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "vmlinuz").touch()

    def make(name="d1", extra="", more=""):
        path = tmp_path / f"{name.replace('/', '-')}.cfg"
        path.write_text(CONFIG.format(name=name, extra=extra, more=more))
        return str(path)

    return make


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, host, *words):
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = host.xl_start(*words, stdin=slave, stdout=slave, stderr=slave)
        self.seen = b""

    def expect(self, what):
        while what not in self.seen:
            assert select.select([self.master], [], [], 30)[0], self.seen
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.partition(what)[2]

    def type(self, data):
        os.write(self.master, data)

    def end(self):
        code = self.process.wait(30)
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.slave)
        with contextlib.suppress(OSError):
            while data := os.read(self.master, 4096):
                self.seen += data
        os.close(self.master)
        return code


def test_create_and_its_words(host, cfg):
    path = cfg()
    done = host.xl("create", path, "memory=80")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"Parsing config from {path}\n"
    entry = host.entry("d1")
    assert (entry["memory_kib"], entry["state"]["blocked"]) == (80 << 10, True)
    record = host.record(entry["domid"])
    assert record["spec"]["kernel"] == os.path.join(os.path.dirname(path), "vmlinuz") or record[
        "spec"
    ]["kernel"].startswith("/")


def test_create_options(host, cfg):
    done = host.xl("create", "-q", "-p", f"--defconfig={cfg()}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert host.entry("d1")["state"]["paused"]
    dry = host.xl("create", "-n", cfg("d2"))
    assert dry.returncode == 0 and '"name": "d2"' in dry.stdout
    assert host.xl("-N", "create", cfg("d2")).stdout.count('"name": "d2"') == 1
    assert host.names() == ["d1"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 6),
        (["/nowhere/d1.cfg"], 3),
        (["--frob", "x.cfg"], 2),
        (["a.cfg", "b.cfg"], 2),
    ],
)
def test_create_refuses(host, words, code):
    done = host.xl("create", *words)
    assert done.returncode == code
    assert done.stderr


def test_create_failures(host, cfg):
    refused = host.xl("create", "-q", cfg(extra="refuse"))
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr == "xl: no such kernel\n    buy one\n"
    died = host.xl("create", "-q", cfg(extra="die"))
    assert died.returncode == 3 and "this is why it died" in died.stderr
    assert host.xl("create", "-q", cfg()).returncode == 0
    again = host.xl("create", "-q", cfg())
    assert again.returncode == 3 and "exists already" in again.stderr


def test_a_device_that_cannot_be_had_is_a_refusal(host, cfg):
    done = host.xl("create", cfg(more="disk = ['file:/none,xvda,w']"))
    assert done.returncode == 3 and "/none: No such file" in done.stderr
    assert host.names() == []
    done = host.xl("create", cfg(more="vif = ['']"))
    assert done.returncode == 3 and "vif" in done.stderr
    assert host.names() == []


def test_create_with_console_from_the_first_byte(host, cfg):
    done = host.xl("create", "-c", cfg(extra="end=poweroff"))
    assert done.returncode == 0
    assert done.stdout == "guest: hello\nguest: poweroff\n"
    assert host.names() == []


def test_a_crash_prints_its_report(host, cfg):
    done = host.xl("create", "-c", cfg(extra="end=crash"))
    assert done.returncode == 1
    assert done.stdout.endswith("guest: crash\n")
    assert "d1 crashed" in done.stderr and "RIP: the report" in done.stderr


def test_a_preserved_guest_ends_the_console_too(host, cfg):
    done = host.xl("create", "-c", cfg(extra="end=poweroff", more='on_poweroff = "preserve"'))
    assert done.returncode == 0 and done.stdout.endswith("guest: poweroff\n")
    assert host.names() == ["d1"]


def test_a_pipe_that_ends_does_not_end_the_session(host, cfg):
    done = host.xl("create", "-c", cfg(), stdin="first line\nend poweroff\n")
    assert done.returncode == 0
    assert "first line" in done.stdout and done.stdout.endswith("guest: poweroff\n")


def test_console_on_a_terminal(host, cfg):
    host.xl("create", cfg())
    terminal = Terminal(host, "console", "d1")
    terminal.expect(b"guest: hello")
    terminal.type(b"abc\x03\r")
    terminal.expect(b"abc\x03\r")
    terminal.type(b"xyz\x1d")
    assert terminal.end() == 0
    assert host.names() == ["d1"]


def test_two_consoles_and_the_end(host, cfg):
    host.xl("create", cfg())
    one, two = Terminal(host, "console", "d1"), Terminal(host, "console", "d1")
    for terminal in (one, two):
        terminal.expect(b"guest: hello")
    one.type(b"end poweroff\n")
    for terminal in (one, two):
        terminal.expect(b"guest: poweroff")
        assert terminal.end() == 0


def test_a_reboot_names_the_successor(host, cfg):
    terminal = Terminal(host, "create", "-c", cfg())
    terminal.expect(b"guest: hello")
    terminal.type(b"end reboot\n")
    terminal.expect(b"d1 runs on as domain 2")
    assert terminal.end() == 0


def test_the_terminal_is_restored_after_a_signal(host, cfg):
    host.xl("create", cfg())
    terminal = Terminal(host, "console", "d1")
    terminal.expect(b"guest: hello")
    terminal.process.terminate()
    assert terminal.end() == 128 + 15


def test_console_refusals(host, cfg):
    host.xl("create", cfg())
    assert host.xl("console", "-t", "foo", "d1").returncode == 1
    assert host.xl("console", "-t", "serial", "d1").returncode == 1
    assert host.xl("console", "-n", "1", "d1").returncode == 1
    assert host.xl("console", "0").returncode == 1
    assert host.xl("console").returncode == 2


def test_shutdown_waits_for_all_and_the_names_are_free(host, cfg):
    for name in ("d1", "d2"):
        host.xl("create", cfg(name))
    done = host.xl("shutdown", "-w", "d1", "d2")
    assert done.returncode == 0
    assert "Domain 1 has been shut down, reason code 0" in done.stderr
    assert "Domain 2 has been shut down, reason code 0" in done.stderr
    assert host.names() == []


def test_shutdown_all_and_reboot(host, cfg):
    assert host.xl("shutdown", "-a", "-w").returncode == 0
    host.xl("create", cfg(more='on_reboot = "restart"'))
    done = host.xl("reboot", "-w", "d1")
    assert (done.returncode, host.entry("d1")["domid"]) == (0, 2)
    assert "Domain 1 has been shut down, reason code 1" in done.stderr
    assert host.xl("shutdown", "-aw").returncode == 0
    assert host.names() == []


def test_destroy_while_somebody_waits(host, cfg):
    host.xl("create", cfg(extra="deaf"))
    waiter = host.xl_start("shutdown", "-w", "d1", stderr=subprocess.PIPE)
    with waiter.stderr:
        assert waiter.stderr.readline() == "Shutting down domain 1\n"
        assert host.xl("destroy", "d1").returncode == 0
        assert "Domain 1 has been destroyed" in waiter.stderr.read()
    assert waiter.wait(30) == 0


def test_create_in_the_foreground(host, cfg):
    run = host.xl_start("create", "-F", cfg(), stderr=subprocess.PIPE)
    with run.stderr:
        assert "Parsing" in run.stderr.readline()
        assert "Waiting for domain d1 (domid 1) to die" in run.stderr.readline()
        host.xl("shutdown", "d1")
        assert run.stderr.read().endswith("Done. Exiting now\n")
    assert run.wait(30) == 0


def test_nobody_acts_on_the_end_of_an_unmonitored_domain(host, cfg):
    host.xl("create", "-e", cfg())
    host.xl("shutdown", "-w", "d1")
    assert host.entry("d1")["shutdown_reason"] == "poweroff"


def test_config_update_counts_from_the_next_start(host, cfg):
    host.xl("create", cfg(more='on_reboot = "restart"'))
    done = host.xl("config-update", "d1", cfg("other"), "memory=96", 'on_reboot="restart"')
    assert done.returncode == 0
    host.xl("reboot", "-w", "d1")
    entry = host.entry("d1")
    assert (entry["domid"], entry["memory_kib"]) == (2, 96 << 10)
    assert host.xl("config-update").returncode == 1


def test_a_name_with_a_slash(host, cfg):
    assert host.xl("create", cfg("a/../b")).returncode == 0
    assert host.xl("destroy", "a/../b").returncode == 0
    assert [p.name for p in (host.paths.state / "logs").iterdir()] == ["a%2f..%2fb"]
