"""`pyxen image demo --disk`: the demo guest on a disk that it starts from.

The disk has a partition table and one ext4 file system with kernel, initramfs, /boot/grub/grub.cfg
and the demo's files.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.errors import UserError
from pyxen.image.apt import Apt, Say
from pyxen.image.boot_config import disk_config
from pyxen.image.demo import kernel_tree, only
from pyxen.image.initramfs import build_disk_initramfs, fill_guest
from pyxen.image.modules import collect_modules
from pyxen.image.partition import check_format, make_partitioned, place_image
from pyxen.image.staging import StagedTree

MIN_SIZE_MIB: Final = 64
MODULES: Final = ("xen-blkfront", "xen-netfront", "ext4", "crc32c_generic")

_GRUB: Final = """\
set default="0"
set timeout=3

menuentry "pyxen demo, Linux {release}" {{
    insmod part_msdos
    insmod ext2
    set root="hd0,msdos1"
    linux /boot/vmlinuz-{release} root=/dev/xvda1 rw {arguments}
    initrd /boot/initrd.img-{release}
}}
menuentry "pyxen demo, Linux {release}, read-only" {{
    set root="hd0,msdos1"
    linux /boot/vmlinuz-{release} root=/dev/xvda1 ro {arguments}
    initrd /boot/initrd.img-{release}
}}
"""
_ARGUMENTS: Final = "console=hvc0 earlyprintk=xen lockdown=confidentiality"


@dataclass(frozen=True, slots=True)
class DiskImage:
    """The files of a guest that starts from its disk."""

    config: Path
    image: Path
    release: str


def build_disk(
    out_dir: Path,
    *,
    flavour: str = "cloud",
    name: str = "demo-disk",
    image_format: str = "raw",
    size_mib: int = 256,
    memory_mib: int = 256,
    vcpus: int = 1,
    refresh: bool = False,
    apt: Apt | None = None,
    say: Say = print,
) -> DiskImage:
    """Make `out_dir` with NAME.img (or NAME.qcow2) and NAME.cfg.

    The image is sparse. Raises: UserError if something cannot be had or written.
    """
    _check(out_dir, name, image_format, size_mib)
    apt = apt or Apt(say=say)
    packages = kernel_tree(apt, flavour, refresh=refresh)
    busybox = only(apt.fetch_package("busybox-static", refresh=refresh), "**/bin/busybox")
    kernel = only(packages, "boot/vmlinuz-*")
    release = kernel.name.partition("-")[2]
    suffix = "img" if image_format == "raw" else image_format
    made = DiskImage(out_dir / f"{name}.cfg", out_dir / f"{name}.{suffix}", release)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".disk-", dir=out_dir) as scratch:
            raw = Path(scratch) / "raw"
            tree = StagedTree(Path(scratch) / "root")
            modules = collect_modules(packages, MODULES)
            fill_guest(tree, busybox, modules, release)
            _add_boot(tree, kernel, build_disk_initramfs(busybox, modules, release), release)
            make_partitioned(raw, tree.path, tree.owners(), size_mib << 20)
            place_image(raw, made.image, image_format)
        made.config.write_text(
            disk_config("demo --disk", made.config, made.image, image_format, memory_mib, vcpus)
        )
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    used = made.image.stat().st_blocks * 512 / (1 << 20)
    say(f"disk     {made.image} ({image_format}, {size_mib} MiB, {used:.0f} of them used)")
    say(f"config   {made.config}")
    say(f"start it with: xl create -c {made.config}")
    return made


def _add_boot(tree: StagedTree, kernel: Path, initramfs: bytes, release: str) -> None:
    tree.file(f"boot/vmlinuz-{release}", kernel.read_bytes())
    tree.file(f"boot/initrd.img-{release}", initramfs)
    grub = _GRUB.format(release=release, arguments=_ARGUMENTS)
    tree.file("boot/grub/grub.cfg", grub.encode())


def _check(out_dir: Path, name: str, image_format: str, size_mib: int) -> None:
    check_format(image_format)
    if size_mib < MIN_SIZE_MIB:
        raise UserError(f"{size_mib} MiB are too few", f"give at least --size {MIN_SIZE_MIB}")
    if re.search(r'["\\\n,]', f"{out_dir}{name}") or "/" in name:
        raise UserError("names must not contain quotes, commas, or slashes")
