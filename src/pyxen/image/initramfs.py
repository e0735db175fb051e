"""The demo guest's files: busybox, a few scripts, the kernel's Xen modules.

The same files make an initramfs that is all there is, or the root of a disk. A guest that starts
from a disk has a second, small initramfs, which loads what is needed to mount it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from pyxen.errors import UserError
from pyxen.image.cpio import CpioWriter
from pyxen.image.guest_files import INITTAB, MOUNT_ROOT, PROFILE, SCRIPTS
from pyxen.image.modules import Module, dependency_files

DIRECTORIES: Final = ("bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "usr", "var")


class Tree(Protocol):
    """Takes the files of a guest; all belong to root. Parent directories come by themselves."""

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; nothing happens if it is there already."""

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""


def build_initramfs(busybox: Path, modules: Sequence[Module] = (), release: str = "") -> bytes:
    """A cpio archive that Linux unpacks and starts by its /init.

    busybox: a statically linked busybox.
    release: the kernel's version, as `uname -r` says it: where modprobe looks for the modules.
    Raises:  UserError if the busybox cannot be used.
    """
    archive = CpioWriter()
    fill_guest(archive, busybox, modules, release)
    _add_first_devices(archive)
    return archive.finish()


def build_disk_initramfs(busybox: Path, modules: Sequence[Module], release: str) -> bytes:
    """A cpio archive that mounts what `root=` names, and starts /init there."""
    archive = CpioWriter()
    for name in ("dev", "newroot", "proc", "sys"):
        archive.directory(name)
    _add_first_devices(archive)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in ("sh", "mount", "modprobe", "sleep", "switch_root"):
        archive.symlink(f"bin/{applet}", "busybox")
    archive.symlink("sbin", "bin")
    archive.file("init", MOUNT_ROOT.encode(), 0o755)
    _add_modules(archive, modules, release)
    return archive.finish()


def fill_guest(tree: Tree, busybox: Path, modules: Sequence[Module], release: str) -> None:
    """Everything that the demo guest has. Raises: UserError if the busybox cannot be used."""
    for name in DIRECTORIES:
        tree.directory(name)
    tree.directory("tmp", 0o1777)
    for name in ("sbin", "usr/bin", "usr/sbin"):
        tree.symlink(name, "/bin")
    tree.file("bin/busybox", busybox.read_bytes(), 0o755)
    for path, text in SCRIPTS.items():
        tree.file(path, text.encode(), 0o755)
    for applet in applets(busybox):
        if applet != "busybox" and f"bin/{applet}" not in SCRIPTS:
            tree.symlink(f"bin/{applet}", "busybox")
    tree.file("etc/profile", PROFILE.encode())
    # What mount tries, and the kernel loads for it, when it is not told the type.
    tree.file("etc/filesystems", b"ext4\n")
    tree.file("etc/inittab", INITTAB.encode())
    tree.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    tree.file("etc/group", b"root:x:0:\n")
    _add_modules(tree, modules, release)


def applets(busybox: Path) -> list[str]:
    """The commands that a busybox contains, as it says itself."""
    try:
        done = subprocess.run(
            [str(busybox), "--list"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise UserError(
            f"{busybox} cannot be run: {e}", "a busybox for x86-64, statically linked, is needed"
        ) from None
    names = [line.strip() for line in done.stdout.splitlines()]
    if "sh" not in names or "mount" not in names:
        raise UserError(f"{busybox} has no sh or no mount", "use the package busybox-static")
    return [name for name in names if name and "/" not in name]


def _add_first_devices(archive: CpioWriter) -> None:
    """The kernel opens /dev/console for /init before anything is mounted."""
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)


def _add_modules(tree: Tree, modules: Sequence[Module], release: str) -> None:
    if not modules:
        return
    base = f"lib/modules/{release}"
    for module in modules:
        tree.file(f"{base}/{module.name}.ko", module.data)
    for name, data in dependency_files(modules).items():
        tree.file(f"{base}/{name}", data)
