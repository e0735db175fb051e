"""The demo guest's disk: made by real mke2fs, looked at by real debugfs."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyxen.errors import UserError
from pyxen.image.disk import build_disk
from pyxen.image.partition import PARTITION_BYTES, make_partitioned
from pyxen.image.staging import StagedTree

MIB = 1 << 20


def debugfs(image: Path, command: str) -> str:
    where = shutil.which("debugfs", path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert where is not None, "e2fsprogs is not installed"
    arguments = [where, "-R", command, f"{image}?offset={PARTITION_BYTES}"]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tree(tmp_path: Path) -> StagedTree:
    tree = StagedTree(tmp_path / "root")
    tree.file("boot/grub/grub.cfg", b"set default=0\n")
    tree.file("bin/busybox", b"\x7fELF", 0o755)
    tree.symlink("bin/sh", "busybox")
    tree.directory("tmp", 0o1777)
    return tree


def test_partition_reaches_to_the_end(tmp_path: Path, tree: StagedTree) -> None:
    image = tmp_path / "disk"
    make_partitioned(image, tree.path, tree.owners(), 64 * MIB)
    table = image.read_bytes()[:512]
    assert table[510:] == b"\x55\xaa"
    active, kind, first, count = struct.unpack_from("<B3xB3xII", table, 446)
    assert (active, kind) == (0x80, 0x83)
    assert first * 512 == PARTITION_BYTES
    assert (first + count) * 512 == image.stat().st_size == 64 * MIB


def test_files_have_their_contents_modes_and_owners(tmp_path: Path, tree: StagedTree) -> None:
    image = tmp_path / "disk"
    make_partitioned(image, tree.path, tree.owners(), 64 * MIB)
    assert debugfs(image, "cat /boot/grub/grub.cfg") == "set default=0\n"
    assert 'Fast link dest: "busybox"' in debugfs(image, "stat /bin/sh")
    for path, mode in (("/bin/busybox", "0755"), ("/tmp", "01777"), ("/boot", "0755")):
        shown = debugfs(image, f"stat {path}")
        assert f"Mode:  {mode}" in shown
        assert "User:     0   Group:     0" in shown


def test_a_disk_without_room_is_refused(tmp_path: Path, tree: StagedTree) -> None:
    tree.file("large", b"x" * (80 * MIB))
    with pytest.raises(UserError, match="mke2fs failed") as refused:
        make_partitioned(tmp_path / "disk", tree.path, tree.owners(), 64 * MIB)
    assert "--size" in refused.value.hint


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"image_format": "vmdk"}, "no format 'vmdk'"),
        ({"size_mib": 8}, "8 MiB are too few"),
        ({"name": "a/b"}, "must not contain"),
        ({"name": 'a"b'}, "must not contain"),
    ],
)
def test_bad_settings_make_nothing(tmp_path: Path, settings: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        build_disk(tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_paths_stay_inside_of_the_tree(tree: StagedTree) -> None:
    for path in ("/etc/passwd", "../outside"):
        with pytest.raises(ValueError, match="relative path"):
            tree.file(path, b"")
