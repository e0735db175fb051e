"""Debian's own xenstore-* programs against our xenstored, compared with real Xen's output."""

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyxen.xenstored.server import XenStored

pytestmark = pytest.mark.skipif(
    shutil.which("xenstore-ls") is None, reason="Debian's xenstore-utils is not installed"
)

# From `xenstore-ls -fp` on Xen 4.17: paths, values, permissions.
TREE = """\
/local/domain/4 = ""   (n0,r4)
/local/domain/4/console = ""   (n0,r4)
/local/domain/4/console/backend = "/local/domain/0/backend/console/4/0"   (n0,r4)
/local/domain/4/console/backend-id = "0"   (n4,r0)
/local/domain/4/console/tty = "/dev/pts/0"   (n0,r4)
/local/domain/4/data = ""   (n4)
/local/domain/4/name = "pv1"   (n0,r4)
"""


class Host:
    """A xenstored in a thread, and the programs that talk to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.daemon = XenStored()
        await self.daemon.serve(self._path)
        self._ready.set()
        await self._stop.wait()
        await self.daemon.close()

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call something in xenstored's thread."""

        async def there() -> None:
            function(*args)

        asyncio.run_coroutine_threadsafe(there(), self.loop).result(30)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def start(self, *command: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "XENSTORED_PATH": str(self._path)}
        return subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *command: str) -> tuple[str, str, int]:
        with self.start(*command) as process:
            out, err = process.communicate(timeout=30)
        return out, err, process.returncode

    def ok(self, *command: str) -> str:
        out, err, code = self.run(*command)
        assert (err, code) == ("", 0)
        return out


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "socket")
    yield host
    host.stop()


@pytest.fixture
def tree(host: Host) -> None:
    for line in TREE.splitlines():
        path, rest = line.split(" = ")
        value, perms = rest.split("   ")
        host.ok("xenstore-write", path, value.strip('"'))
        host.ok("xenstore-chmod", path, *perms.strip("()").split(","))


@pytest.mark.usefixtures("tree")
def test_ls_prints_what_real_xen_prints(host: Host) -> None:
    assert host.ok("xenstore-ls", "-fp", "/local/domain").rstrip("\n") == TREE.rstrip("\n")
    out = host.ok("xenstore-ls", "-f").splitlines()
    assert out[:3] == [
        '/@introduceDomain = ""',
        '/@releaseDomain = ""',
        '/local = ""',
    ]
    assert '  4 = ""' in host.ok("xenstore-ls").splitlines()


@pytest.mark.usefixtures("tree")
def test_read_list_exists(host: Host) -> None:
    assert host.ok("xenstore-read", "/local/domain/4/name") == "pv1\n"
    assert host.ok("xenstore-list", "/local/domain/4") == "console\ndata\nname\n"
    assert host.run("xenstore-exists", "/local/domain/4") == ("", "", 0)
    assert host.run("xenstore-exists", "/nope") == ("", "", 1)
    assert host.run("xenstore-read", "/nope") == (
        "",
        "xenstore-read: couldn't read path /nope\n",
        1,
    )


@pytest.mark.usefixtures("tree")
def test_write_rm_chmod(host: Host) -> None:
    host.ok("xenstore-write", "/a/b", "1", "/a/c", "two words")
    assert host.ok("xenstore-ls", "/a").splitlines() == ['b = "1"', 'c = "two words"']
    host.ok("xenstore-rm", "/a/b")
    assert host.ok("xenstore-list", "/a") == "c\n"
    host.ok("xenstore-chmod", "-r", "/local/domain/4", "n0", "b4")
    out = host.ok("xenstore-ls", "-fp", "/local/domain/4").splitlines()
    assert out
    assert all(line.endswith("(n0,b4)") for line in out)
    assert host.run("xenstore-rm", "/nope/nope")[2] == 1


def test_listing_beyond_one_message(host: Host) -> None:
    names = [f"{n:04}-a-rather-long-name" for n in range(600)]
    for begin in range(0, 600, 100):
        pairs = [arg for name in names[begin : begin + 100] for arg in (f"/d/{name}", "v")]
        host.ok("xenstore-write", *pairs)
    assert host.ok("xenstore-list", "/d").split() == names


def test_watch(host: Host) -> None:
    with host.start("xenstore-watch", "-n", "4", "/w") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "/w\n"
        host.ok("xenstore-write", "/w/a", "1", "/w/b", "2")
        host.ok("xenstore-rm", "/w")
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("/w/a\n/w/b\n/w\n", "", 0)


def test_watch_for_domains(host: Host) -> None:
    with host.start("xenstore-watch", "-n", "2", "@introduceDomain") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "@introduceDomain\n"
        host.call(host.daemon.introduce, 4, 0x1001, 1)
        assert process.stdout.readline() == "@introduceDomain\n"
        assert process.wait(30) == 0


def test_many_clients_at_once(host: Host) -> None:
    running = [host.start("xenstore-write", f"/many/{n}", str(n)) for n in range(30)]
    for process in running:
        with process:
            assert process.communicate(timeout=30) == ("", "")
            assert process.returncode == 0
    assert len(host.ok("xenstore-list", "/many").split()) == 30


@pytest.mark.skipif(
    shutil.which("xenstore-control") is None, reason="xenstore-control is not installed"
)
def test_control(host: Host) -> None:
    assert "nodes            :     1000" in host.ok("xenstore-control", "quota")
    host.ok("xenstore-control", "check")
