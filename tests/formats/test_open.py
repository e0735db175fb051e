"""What opening a disk refuses, and what it says then."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pyxen.backend.blk.storage.qemu import node
from pyxen.errors import UserError
from tests.formats.conftest import FORMATS, World, content, create

BOTH = pytest.mark.parametrize("image_format", ["raw", "qcow2"])


@BOTH
def test_missing(world: World, tmp_path: Path, image_format: str) -> None:
    with pytest.raises(UserError, match="nowhere: No such file") as caught:
        world.open(tmp_path / "nowhere", image_format)
    assert "pyxen image create" in caught.value.hint


@BOTH
@pytest.mark.parametrize("read_only", [False, True])
def test_directory(world: World, tmp_path: Path, image_format: str, read_only: bool) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        world.open(tmp_path, image_format, read_only=read_only)


@BOTH
def test_pipe(world: World, tmp_path: Path, image_format: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a regular file nor a block device"):
        world.open(tmp_path / "pipe", image_format)


@pytest.mark.parametrize("image_format", [name for name in FORMATS if name != "raw"])
def test_wrong_format(world: World, tmp_path: Path, image_format: str) -> None:
    path = create(tmp_path / "disk", "raw")
    with pytest.raises(UserError) as caught:
        world.open(path, image_format)
    assert str(path) in caught.value.message
    assert "qemu-" not in caught.value.message
    assert f"said to be {image_format}" in caught.value.hint


def test_unknown_format(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no format 'floppy'"):
        world.open(tmp_path / "disk", "floppy")


def test_raw_stays_raw(world: World, tmp_path: Path) -> None:
    """A guest that writes a header of qcow2 into its raw disk gets that back, and no other file."""
    path = create(tmp_path / "disk", "qcow2")
    there = path.read_bytes()
    storage = world.open(path, "raw")
    assert world.read(storage, 0, 512) == there[:512]
    assert "looks like qcow2" in world.lines[0]


def test_missing_backing_file(world: World, tmp_path: Path) -> None:
    base = create(tmp_path / "base", "raw")
    path = tmp_path / "disk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path], check=True
    )
    base.unlink()
    with pytest.raises(UserError, match="base': No such file") as caught:
        world.open(path, "qcow2")
    assert "based on another" in caught.value.hint


@pytest.mark.parametrize(
    ("target", "server", "export"),
    [
        ("nbd://host/e%20x", {"type": "inet", "host": "host", "port": "10809"}, "e x"),
        ("nbd://[::1]:77", {"type": "inet", "host": "::1", "port": "77"}, None),
        ("nbd+unix:///e?socket=/s", {"type": "unix", "path": "/s"}, "e"),
        ("nbd:host:77", {"type": "inet", "host": "host", "port": "77"}, None),
        ("nbd:unix:/s:exportname=e", {"type": "unix", "path": "/s"}, "e"),
    ],
)
def test_nbd_addresses(target: str, server: dict[str, str], export: str | None) -> None:
    found = node(target, "raw", read_only=False, direct=False, discard=True, share=False)["file"]
    assert found["server"] == server
    assert found.get("export") == export


@pytest.mark.parametrize("target", ["nbd:", "nbd://", "nbd://host:many/", "nbd+unix:///e"])
def test_bad_nbd_addresses(world: World, target: str) -> None:
    with pytest.raises(UserError, match="not the address of an NBD server"):
        world.open(target, "raw")


def test_remote(world: World, tmp_path: Path) -> None:
    path, socket = create(tmp_path / "disk", "qcow2"), tmp_path / "socket"
    server = subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", socket, "-x", "e", path])
    while not socket.exists():
        assert server.poll() is None
    target = f"nbd+unix:///e?socket={socket}"
    storage = world.open(target, "raw")
    assert world.write(storage, 512, b"remotely" * 64) == 0
    assert world.flush(storage) == 0
    world.close(storage)
    server.terminate()
    server.wait()
    assert content(path, "qcow2")[512:1024] == b"remotely" * 64
    with pytest.raises(UserError) as caught:
        world.open(target, "raw")
    assert "is the NBD server there" in caught.value.hint
