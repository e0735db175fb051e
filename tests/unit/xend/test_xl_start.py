"""The first xl starts xend; two at once start one; a failure is shown."""

import os
import signal
import subprocess

import pytest
from xend_harness import Host, processes


@pytest.fixture
def idle(home):
    """A PYXEN_HOME with nothing in it yet; the xend that xl starts there is ended."""
    host = Host(home)
    yield host
    left = processes(home)
    fds = [os.pidfd_open(pid) for pid in left]
    for fd in fds:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)


def test_the_first_xl_starts_xend(idle):
    done = idle.xl("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Domain-0" in done.stdout
    assert (idle.home.stat().st_mode & 0o777, idle.paths.run.stat().st_mode & 0o777) == (
        0o700,
        0o700,
    )
    lock = idle.paths.xend_lock.read_text()
    assert idle.xl("domname", "0").stdout == "Domain-0\n"
    assert idle.paths.xend_lock.read_text() == lock


def test_two_at_once_start_one(idle):
    several = [
        idle.xl_start("list", stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    results = [(*each.communicate(timeout=60), each.returncode) for each in several]
    assert [(err, code) for _, err, code in results] == [("", 0)] * 4
    assert idle.log().count("ready") == 1


def test_xend_is_in_a_session_of_its_own(idle):
    idle.xl("list")
    pid = int(idle.paths.xend_lock.read_text())
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def test_why_it_does_not_start_is_shown(idle):
    idle.paths.make()
    idle.paths.journal.mkdir()
    done = idle.xl("list")
    assert done.returncode == 1
    assert "xend did not start" in done.stderr and str(idle.paths.journal) in done.stderr


def test_a_home_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    done = Host(tmp_path / "file" / "h").xl("list")
    assert done.returncode == 1 and "PYXEN_HOME" in done.stderr


def test_a_stale_socket_is_no_obstacle(idle):
    idle.xl("list")
    pid = int(idle.paths.xend_lock.read_text())
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    import select

    assert select.select([fd], [], [], 30)[0]
    os.close(fd)
    assert idle.paths.xend_socket.exists()
    assert idle.xl("list").returncode == 0
