"""Real images: every file system and partition table, through the confined reader."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import bootloader_images as images
import pytest

from pyxen.bootloader.pygrub import find, list_entries, parse_options
from pyxen.errors import UserError

KERNEL = random.Random(7).randbytes(3_000_001)


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    images.check_tools()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return images.make_tree(tmp_path / "tree", KERNEL)


def boot(image: Path, *words: str) -> tuple[bytes, bytes | None, str]:
    """Contents of kernel and ramdisk, and the arguments."""
    out = image.parent / f"out{len(list(image.parent.iterdir()))}"
    out.mkdir()
    found = find(parse_options(["-q", f"--output-directory={out}", *words, str(image)]))
    ramdisk = Path(found.ramdisk).read_bytes() if found.ramdisk else None
    return Path(found.kernel).read_bytes(), ramdisk, found.args


def is_first(result: tuple[bytes, bytes | None, str]) -> bool:
    kernel, ramdisk, args = result
    assert ramdisk == b"12345\0\0\0the ramdisk\0"
    assert args == "root=/dev/xvda1 quiet"
    return kernel[: len(KERNEL)] == KERNEL and len(kernel) - len(KERNEL) < 4


@pytest.mark.parametrize("kind", images.FILE_SYSTEMS)
def test_file_systems(kind: str, tmp_path: Path) -> None:
    tree = images.make_tree(tmp_path / "tree", KERNEL, links=kind != "fat")
    image = tmp_path / "image"
    images.FILE_SYSTEMS[kind](image, tree)
    assert is_first(boot(image))
    kernel, ramdisk, args = boot(image, "--entry=two", "--args=more")
    assert kernel[: len(KERNEL)] == KERNEL
    assert (ramdisk, args) == (None, "single more")


def small(tmp_path: Path, name: str = "empty") -> Path:
    """A file system without a boot loader."""
    tree = tmp_path / f"{name}-tree"
    tree.mkdir()
    (tree / "README").write_text(name)
    images.ext2(tmp_path / name, tree)
    return tmp_path / name


@pytest.mark.parametrize(("label", "extended"), [("dos", False), ("dos", True), ("gpt", False)])
def test_partition_tables(label: str, extended: bool, tree: Path, tmp_path: Path) -> None:
    images.ext4(tmp_path / "root", tree)
    disk = tmp_path / "disk"
    images.partitioned(disk, label, [small(tmp_path), tmp_path / "root"], extended=extended)
    assert is_first(boot(disk))


def test_boot_partition_of_its_own_is_found_by_uuid(tmp_path: Path) -> None:
    boot_tree = tmp_path / "boot-tree"
    (boot_tree / "grub2").mkdir(parents=True)
    (boot_tree / "grub2" / "grub.cfg").write_text(
        "search --fs-uuid --set=root 11111111-2222-3333-4444-555555555555\n"
        "menuentry a { linux /usr/lib/kernel x\n initrd ($prefix_is_not)/initrd }\n"
    )
    (boot_tree / "initrd").write_bytes(b"rd")
    root_tree = tmp_path / "root-tree"
    (root_tree / "usr" / "lib").mkdir(parents=True)
    (root_tree / "usr" / "lib" / "kernel").write_bytes(b"kernel by uuid")
    images.ext2(tmp_path / "boot", boot_tree)
    uuid = "11111111-2222-3333-4444-555555555555"
    images.run(
        *("mke2fs", "-q", "-t", "ext4", "-U", uuid, "-d", root_tree, tmp_path / "root", "16M")
    )
    images.partitioned(tmp_path / "disk", "gpt", [tmp_path / "boot", tmp_path / "root"])
    kernel, ramdisk, _ = boot(tmp_path / "disk")
    assert kernel.startswith(b"kernel by uuid")
    assert ramdisk is not None and ramdisk.startswith(b"rd")


def test_kernel_and_ramdisk_of_the_configuration_are_paths_in_the_image(
    tree: Path, tmp_path: Path
) -> None:
    images.ext4(tmp_path / "image", tree)
    kernel, ramdisk, args = boot(
        tmp_path / "image", "--kernel=/boot/early", "--ramdisk=/boot/initrd", "--args=a b"
    )
    assert (kernel[:5], ramdisk, args) == (b"12345", b"the ramdisk\0", "a b")


def test_offset(tree: Path, tmp_path: Path) -> None:
    images.ext4(tmp_path / "root", tree)
    images.partitioned(tmp_path / "disk", "dos", [tmp_path / "root"])
    assert is_first(boot(tmp_path / "disk", f"--offset={images.MIB}"))


def test_qcow2(tree: Path, tmp_path: Path) -> None:
    images.ext4(tmp_path / "raw", tree)
    images.run(
        *("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "q,1")
    )
    assert is_first(boot(tmp_path / "q,1", "--format=qcow2"))
    with pytest.raises(UserError) as caught:
        boot(tmp_path / "raw", "--format=qcow2")
    assert "qemu-nbd" in caught.value.message
    assert "not in qcow2 format" in caught.value.hint


def test_the_list(tree: Path, tmp_path: Path) -> None:
    images.ext4(tmp_path / "image", tree)
    lines = list_entries(parse_options(["-l", str(tmp_path / "image")])).splitlines()
    assert lines[:5] == [
        "title: first",
        "  root: 0",
        "  kernel: /boot/vmlinuz",
        "  args: root=/dev/xvda1 quiet",
        "  initrd: /boot/early /boot/initrd",
    ]


def zeros(path: Path) -> None:
    path.write_bytes(bytes(MIB_SMALL))


def nothing(path: Path) -> None:
    path.write_bytes(b"")


MIB_SMALL = 1 << 20


@pytest.mark.parametrize(
    ("make", "says"), [(zeros, "no file system that is known"), (nothing, "no file system")]
)
def test_what_was_looked_for_is_said(
    make: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    make(tmp_path / "image")
    with pytest.raises(UserError) as caught:
        boot(tmp_path / "image")
    assert caught.value.message == "there is no boot configuration"
    assert says in caught.value.hint
    assert caught.value.exit_code == 3


def test_file_systems_without_a_boot_loader_are_named(tmp_path: Path) -> None:
    images.partitioned(tmp_path / "disk", "gpt", [small(tmp_path)])
    with pytest.raises(UserError) as caught:
        boot(tmp_path / "disk")
    assert "partition 1 (gpt), ext: no grub.cfg" in caught.value.hint


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--entry=three"], "there is no boot entry 'three'"),
        (["--kernel=/nothing"], "there is no file /nothing"),
        (["--kernel=/boot/loop"], "there is no file /boot/loop"),
        (["--kernel=/boot"], "there is no file /boot"),
    ],
)
def test_what_is_not_there(words: list[str], says: str, tree: Path, tmp_path: Path) -> None:
    images.ext4(tmp_path / "image", tree)
    with pytest.raises(UserError) as caught:
        boot(tmp_path / "image", *words)
    assert says in caught.value.message
    left = [path for out in tmp_path.glob("out*") for path in out.iterdir()]
    assert left == []


def test_a_ramdisk_that_is_missing_leaves_no_kernel_behind(tree: Path, tmp_path: Path) -> None:
    (tree / "boot" / "initrd").unlink()
    images.ext4(tmp_path / "image", tree)
    with pytest.raises(UserError, match="/boot/initrd"):
        boot(tmp_path / "image")
    assert [path for out in tmp_path.glob("out*") for path in out.iterdir()] == []


def test_disks_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be opened: No such file"):
        boot(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="neither a file nor a block device"):
        boot(tmp_path / "fifo")
