"""The demo guest's initramfs: busybox, a few scripts, the kernel's Xen modules."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyxen.errors import UserError
from pyxen.image.cpio import CpioWriter
from pyxen.image.guest_files import INITTAB, PROFILE, SCRIPTS
from pyxen.image.modules import Module, dependency_files

DIRECTORIES: Final = ("bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "usr", "var")


def build_initramfs(busybox: Path, modules: Sequence[Module] = (), release: str = "") -> bytes:
    """A cpio archive that Linux unpacks and starts by its /init.

    busybox: a statically linked busybox.
    release: the kernel's version, as `uname -r` says it: where modprobe looks for the modules.
    Raises:  UserError if the busybox cannot be used.
    """
    archive = CpioWriter()
    for name in DIRECTORIES:
        archive.directory(name)
    archive.directory("tmp", 0o1777)
    for name in ("sbin", "usr/bin", "usr/sbin"):
        archive.symlink(name, "/bin")
    # The kernel opens /dev/console for /init before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for path, text in SCRIPTS.items():
        archive.file(path, text.encode(), 0o755)
    for applet in applets(busybox):
        if applet != "busybox" and f"bin/{applet}" not in SCRIPTS:
            archive.symlink(f"bin/{applet}", "busybox")
    archive.file("etc/profile", PROFILE.encode())
    archive.file("etc/inittab", INITTAB.encode())
    archive.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    _add_modules(archive, modules, release)
    return archive.finish()


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


def _add_modules(archive: CpioWriter, modules: Sequence[Module], release: str) -> None:
    if not modules:
        return
    base = f"lib/modules/{release}"
    for module in modules:
        archive.file(f"{base}/{module.name}.ko", module.data)
    for name, data in dependency_files(modules).items():
        archive.file(f"{base}/{name}", data)
