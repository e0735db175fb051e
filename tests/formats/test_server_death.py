"""A storage daemon that dies, and a domain process that does: nothing is lost unseen, or left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from errno import EIO
from pathlib import Path

import pytest

from pyxen.backend.blk.storage import qemu
from pyxen.backend.blk.storage.base import Kind, Storage
from pyxen.backend.blk.storage.nbd import NbdStorage
from pyxen.backend.blk.storage.qemu import ImageServer
from pyxen.errors import UserError
from tests.formats.conftest import World, content, create

BLOCK = 65536


def server_pid(storage: Storage) -> int:
    assert isinstance(storage, NbdStorage)
    assert isinstance(storage._server, ImageServer)
    pid = storage._server.pid
    assert pid is not None
    return pid


def begin_writes(world: World, storage: Storage, count: int) -> list[list[int]]:
    return [
        world.begin(storage, Kind.WRITE, n * BLOCK, BLOCK, [memoryview(bytearray([n + 1]) * BLOCK)])
        for n in range(count)
    ]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def test_what_is_under_way_is_sent_again(world: World, tmp_path: Path) -> None:
    path = create(tmp_path / "disk", "qcow2")
    storage = world.open(path, "qcow2")
    assert world.write(storage, 0, b"flushed!" * 64) == 0
    assert world.flush(storage) == 0
    pid = server_pid(storage)
    stop(pid)
    results = begin_writes(world, storage, 16)
    data = bytearray(512)
    results.append(world.begin(storage, Kind.READ, 0, 512, [memoryview(data)]))
    assert not any(results)
    os.kill(pid, signal.SIGKILL)
    world.wait(lambda: all(results))
    assert results == [[0]] * 17
    assert server_pid(storage) != pid
    assert len(world.lines) == 1 and "signal 9" in world.lines[0]
    assert world.flush(storage) == 0
    world.close(storage)
    expected = b"".join(bytes([n + 1]) * BLOCK for n in range(16))
    assert content(path, "qcow2")[: len(expected)] == expected


def test_once(world: World, tmp_path: Path) -> None:
    storage = world.open(create(tmp_path / "disk", "qcow2"), "qcow2")
    for expected in (0, EIO):
        pid = server_pid(storage)
        stop(pid)
        results = begin_writes(world, storage, 1)
        os.kill(pid, signal.SIGKILL)
        world.wait(lambda results=results: all(results))
        assert results == [[expected]]
        assert expected or world.flush(storage) == 0
    assert world.flush(storage) == EIO
    assert world.do(storage, Kind.READ, 0, 512, [memoryview(bytearray(512))]) == EIO
    assert len(world.lines) == 2


def test_lost_writes_are_not_hidden(world: World, tmp_path: Path) -> None:
    storage = world.open(create(tmp_path / "disk", "qcow2"), "qcow2")
    assert world.write(storage, 0, bytes(512)) == 0  # and not flushed
    os.kill(server_pid(storage), signal.SIGKILL)
    assert world.flush(storage) == EIO
    assert world.write(storage, 0, bytes(512)) == EIO
    assert len(world.lines) == 1


def test_closed_while_it_is_dead(world: World, tmp_path: Path) -> None:
    storage = world.open(create(tmp_path / "disk", "qcow2"), "qcow2")
    pid = server_pid(storage)
    stop(pid)
    results = begin_writes(world, storage, 4)
    os.kill(pid, signal.SIGKILL)
    world.close(storage)
    assert results == [[0]] * 4


def test_its_image_is_gone_when_it_starts_again(world: World, tmp_path: Path) -> None:
    path = create(tmp_path / "disk", "qcow2")
    storage = world.open(path, "qcow2")
    path.unlink()
    os.kill(server_pid(storage), signal.SIGKILL)
    assert world.do(storage, Kind.READ, 0, 512, [memoryview(bytearray(512))]) == EIO
    assert len(world.lines) == 1 and "No such file" in world.lines[0]


def test_no_daemon_is_left_by_close(world: World, tmp_path: Path) -> None:
    storage = world.open(create(tmp_path / "disk", "qcow2"), "qcow2")
    pid = server_pid(storage)
    assert list(world.run_dir.iterdir()) == []
    world.close(storage)
    assert not Path(f"/proc/{pid}").exists()


CHILD = """
import sys, time
from pathlib import Path
from tests.formats.conftest import World, create
from tests.formats.test_server_death import server_pid
world = World(Path(sys.argv[1]))
storage = world.open(create(Path(sys.argv[1]) / "disk", "qcow2"), "qcow2")
assert world.write(storage, 0, b"written!" * 64) == 0
print(server_pid(storage), flush=True)
time.sleep(1000)
"""


def test_no_daemon_is_left_by_a_killed_process(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path], stdout=subprocess.PIPE)
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.kill()
    child.wait()
    child.stdout.close()
    while Path(f"/proc/{pid}/fd").exists() and _is_alive(pid):
        time.sleep(0.01)  # the test's own limit ends this
    assert list((tmp_path / "run").iterdir()) == []
    # What was answered is there: it ended in an orderly way.
    assert content(tmp_path / "disk", "qcow2")[:512] == b"written!" * 64


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # nobody may wait for it in a container


@pytest.mark.parametrize("image_format", ["qcow2", "vhd"])
def test_qemu_nbd_in_its_place(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: str
) -> None:
    which = qemu.shutil.which
    monkeypatch.setattr(
        qemu.shutil, "which", lambda name: None if "daemon" in name else which(name)
    )
    path = create(tmp_path / "disk", image_format)
    storage = world.open(path, image_format)
    assert Path(f"/proc/{server_pid(storage)}/comm").read_text() == "qemu-nbd\n"
    assert world.write(storage, 4096, b"qemu-nbd" * 512) == 0
    assert world.flush(storage) == 0
    world.close(storage)
    assert content(path, image_format)[4096:8192] == b"qemu-nbd" * 512
    with pytest.raises(UserError, match=r"format|image"):
        world.open(create(tmp_path / "raw", "raw"), image_format)


def test_neither_is_installed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(tmp_path / "disk", "qcow2")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        world.open(path, "qcow2")
    assert "qemu-system-common" in caught.value.hint
