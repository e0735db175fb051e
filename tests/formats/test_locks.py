"""Image locks against QEMU's own processes, both ways, and the errors that name the holder."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyxen.backend.blk.storage import locks
from pyxen.errors import UserError
from tests.formats.conftest import World, create


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = locks.lock_patiently.__kwdefaults__
    monkeypatch.setitem(patient, "patience_s", 0.0)


@contextmanager
def qemu_io(path: Path, image_format: str, *options: str) -> Iterator[int]:
    """A QEMU that has an image open."""
    process = subprocess.Popen(
        ["sh", "-c", 'qemu-io "$@"; true', "sh", *options, "-f", image_format, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"length\n")
    while b"16 MiB" not in process.stdout.readline():
        assert process.poll() is None
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        yield int(children)
    finally:
        process.communicate(b"quit\n")


def qemu_opens(path: Path, image_format: str, *options: str) -> bool:
    command = ["qemu-io", *options, "-f", image_format, "-c", "read 0 512", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 or "lock" in done.stderr
    return done.returncode == 0


BOTH = pytest.mark.parametrize("image_format", ["raw", "qcow2"])


@BOTH
@pytest.mark.parametrize("read_only", [False, True])
def test_a_writing_qemu_keeps_everybody_out(
    world: World, tmp_path: Path, image_format: str, read_only: bool
) -> None:
    path = create(tmp_path / "disk", image_format)
    with qemu_io(path, image_format) as pid, pytest.raises(UserError) as caught:
        world.open(path, image_format, read_only=read_only)
    assert f"in use by process {pid} (qemu-io)" in caught.value.message
    world.open(path, image_format)


@BOTH
def test_a_reading_qemu_shares_with_readers(
    world: World, tmp_path: Path, image_format: str
) -> None:
    path = create(tmp_path / "disk", image_format)
    with qemu_io(path, image_format, "-r") as pid:
        world.open(path, image_format, read_only=True)
        with pytest.raises(UserError, match=rf"in use by .*process {pid} \(qemu-io\)"):
            world.open(path, image_format)


@BOTH
def test_qemu_is_kept_out(world: World, tmp_path: Path, image_format: str) -> None:
    path = create(tmp_path / "disk", image_format)
    assert qemu_opens(path, image_format)
    writer = world.open(path, image_format)
    assert not qemu_opens(path, image_format)
    assert not qemu_opens(path, image_format, "-r")
    world.close(writer)
    assert qemu_opens(path, image_format)
    world.open(path, image_format, read_only=True)
    assert qemu_opens(path, image_format, "-r")
    assert not qemu_opens(path, image_format)


@BOTH
def test_ours_among_themselves(world: World, tmp_path: Path, image_format: str) -> None:
    path = create(tmp_path / "disk", image_format)
    reader = world.open(path, image_format, read_only=True)
    other = world.open(path, image_format, read_only=True)
    with pytest.raises(UserError, match="in use by"):
        world.open(path, image_format)
    world.close(reader)
    world.close(other)
    world.open(path, image_format)
    for read_only in (False, True):
        with pytest.raises(UserError, match="in use by"):
            world.open(path, image_format, read_only=read_only)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_share_takes_no_lock(world: World, tmp_path: Path, image_format: str) -> None:
    path = create(tmp_path / "disk", image_format)
    with qemu_io(path, image_format):
        world.open(path, image_format, share=True)


def test_the_domain_is_named(world: World, tmp_path: Path) -> None:
    path = create(tmp_path / "disk", "raw")
    with qemu_io(path, "raw") as pid:
        record = world.state / "domains/3/domain.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"pid": pid, "name": "alpha"}))
        with pytest.raises(UserError, match="in use by domain alpha,"):
            world.open(path, "raw")


def test_another_disk_of_the_same_domain(world: World, tmp_path: Path) -> None:
    for image_format in ("raw", "qcow2"):
        path = create(tmp_path / image_format, image_format)
        world.open(path, image_format)
        with pytest.raises(UserError, match="in use by another disk of the same domain"):
            world.open(path, image_format)


def test_a_locked_backing_file_is_named(world: World, tmp_path: Path) -> None:
    base = create(tmp_path / "base", "qcow2")
    path = tmp_path / "disk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path], check=True
    )
    with qemu_io(base, "qcow2") as pid, pytest.raises(UserError) as caught:
        world.open(path, "qcow2")
    assert f"{base} is in use by process {pid} (qemu-io)" in caught.value.message


def test_a_backing_file_is_for_readers_only(world: World, tmp_path: Path) -> None:
    base = create(tmp_path / "base", "raw")
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path], check=True
        )
    one, two = (world.open(path, "qcow2") for path in paths)
    with pytest.raises(UserError, match="in use by"):
        world.open(base, "raw")
    world.close(one)
    world.close(two)
    world.open(base, "raw")
    with pytest.raises(UserError, match="base is in use by"):
        world.open(paths[0], "qcow2")


def test_the_holder_may_be_about_to_end(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(locks.lock_patiently.__kwdefaults__, "patience_s", 1000.0)
    path = create(tmp_path / "disk", "raw")
    holder = subprocess.Popen(["qemu-io", "-f", "raw", "-c", "sleep 300", path])
    while not list(locks.holders(path)):
        assert holder.poll() is None
    world.open(path, "raw")
    assert holder.wait() == 0


def test_nothing_is_held_after_a_refusal(tmp_path: Path) -> None:
    path = create(tmp_path / "disk", "raw")
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    locks.lock_image(first, read_only=True)
    with pytest.raises(locks.Locked):
        locks.lock_image(second, read_only=False)
    third = os.open(path, os.O_RDONLY)
    locks.lock_image(third, read_only=True)
    for fd in (first, second, third):
        os.close(fd)
