"""Make images with the tools of each file system; nothing is mounted and nothing needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

MIB = 1 << 20
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
TOOLS = {
    "mke2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "xorriso": "xorriso",
    "sfdisk": "fdisk",
    "qemu-img": "qemu-utils",
}
GRUB = """\
menuentry 'first' --id one { linux /boot/vmlinuz root=/dev/xvda1 quiet
 initrd /boot/early /boot/initrd }
menuentry 'second' --id two { linux /boot/link single }
"""


def check_tools() -> None:
    """Every tool is there, or the message says what to install."""
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=PATH)]
    assert not missing, f"to make images: apt-get install {' '.join(missing)}"


def run(*words: str | Path, text: str | None = None) -> None:
    command = [shutil.which(str(words[0]), path=PATH) or str(words[0]), *map(str, words[1:])]
    environment = {**os.environ, "PATH": PATH}
    subprocess.run(command, check=True, capture_output=True, text=True, input=text, env=environment)


def make_tree(directory: Path, kernel: bytes, *, links: bool = True) -> Path:
    """A root directory with kernel, ramdisks and grub.cfg."""
    grub = directory / "boot" / "grub"
    grub.mkdir(parents=True)
    (grub / "grub.cfg").write_text(GRUB if links else GRUB.replace("/boot/link", "/boot/vmlinuz"))
    boot = directory / "boot"
    (boot / "vmlinuz").write_bytes(kernel)
    (boot / "initrd").write_bytes(b"the ramdisk")
    (boot / "early").write_bytes(b"12345")
    if links:
        (directory / "kernel").symlink_to("/boot/vmlinuz")
        (boot / "link").symlink_to("../kernel")
        (boot / "loop").symlink_to("loop")
    return directory


def ext4(image: Path, tree: Path) -> None:
    run("mke2fs", "-q", "-t", "ext4", "-d", tree, image, "24M")


def ext2(image: Path, tree: Path) -> None:
    run("mke2fs", "-q", "-t", "ext2", "-b", "1024", "-d", tree, image, "24M")


def xfs(image: Path, tree: Path) -> None:
    prototype = image.with_suffix(".proto")
    prototype.write_text("/\n0 0\nd--755 0 0\n" + _xfs_lines(tree) + "$\n")
    run("mkfs.xfs", "-q", "-d", f"file,name={image},size=320m", "-p", prototype)


def _xfs_lines(directory: Path) -> str:
    lines = ""
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            lines += f"{path.name} l--777 0 0 {os.readlink(path)}\n"
        elif path.is_dir():
            lines += f"{path.name} d--755 0 0\n{_xfs_lines(path)}$\n"
        else:
            lines += f"{path.name} ---644 0 0 {path}\n"
    return lines


def btrfs(image: Path, tree: Path) -> None:
    with image.open("wb") as file:
        file.truncate(128 * MIB)
    run("mkfs.btrfs", "-q", "--rootdir", tree, image)


def fat(image: Path, tree: Path) -> None:
    with image.open("wb") as file:
        file.truncate(40 * MIB)
    run("mkfs.vfat", "-F", "32", "-n", "BOOT", image)
    run("mcopy", "-s", "-i", image, tree / "boot", "::")


def iso(image: Path, tree: Path) -> None:
    run("xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", image, tree)


FILE_SYSTEMS = {"ext4": ext4, "ext2": ext2, "xfs": xfs, "btrfs": btrfs, "fat": fat, "iso": iso}


def partitioned(image: Path, label: str, parts: list[Path], *, extended: bool = False) -> None:
    """A disk with a table of `label` (dos, gpt) and file systems; the last one is `extended`."""
    lines, at, places = [f"label: {label}"], 1, []
    for number, part in enumerate(parts):
        size = -(-part.stat().st_size // MIB) + 1
        if extended and number == len(parts) - 1:
            lines.append(f"start={at}MiB, size={size + 4}MiB, type=5")
            at += 1
        places.append(at)
        lines.append(f"start={at}MiB, size={size}MiB, type={'83' if label == 'dos' else 'linux'}")
        at += size
    with image.open("wb") as disk:
        disk.truncate((at + 8) * MIB)
    run("sfdisk", "-q", image, text="\n".join(lines) + "\n")
    with image.open("r+b") as disk:
        for part, place in zip(parts, places, strict=True):
            disk.seek(place * MIB)
            disk.write(part.read_bytes())
