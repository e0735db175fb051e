"""`pyxen image demo --disk`: the demo guest on a disk that it starts from.

The disk has a partition table and one ext4 file system with kernel, initramfs, /boot/grub/grub.cfg
and the demo's files. It is made by mke2fs in a file: nothing is mounted, and nothing needs root.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.errors import UserError
from pyxen.image.apt import Apt, Say
from pyxen.image.demo import kernel_tree, only
from pyxen.image.initramfs import build_disk_initramfs, fill_guest
from pyxen.image.modules import collect_modules
from pyxen.image.staging import StagedTree

FORMATS: Final = ("raw", "qcow2")
MIN_SIZE_MIB: Final = 64
MODULES: Final = ("xen-blkfront", "xen-netfront", "ext4", "crc32c_generic")

PARTITION_BYTES: Final = 1 << 20
"""Where the first partition begins, as partitioning programs have it."""
_SECTOR_BYTES: Final = 512
_LINUX, _ACTIVE = 0x83, 0x80
_BEYOND_CHS: Final = b"\xfe\xff\xff"

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

_CONFIG: Final = """\
# Made by `pyxen image demo --disk`. Start it with: xl create -c {config}
name = "{name}"
# The kernel is that of the disk: pygrub reads it from there.
bootloader = "pygrub"
disk = ["{image},{format},xvda,rw"]
memory = {memory}
vcpus = {vcpus}
on_poweroff = "destroy"
on_reboot = "restart"
on_crash = "destroy"
"""


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
            make_partitioned(raw, tree, size_mib << 20)
            _place(raw, made.image, image_format)
        made.config.write_text(
            _CONFIG.format(
                config=made.config.name,
                name=name,
                image=made.image.absolute(),
                format=image_format,
                memory=memory_mib,
                vcpus=vcpus,
            )
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


def make_partitioned(image: Path, tree: StagedTree, size_bytes: int) -> None:
    """A disk with one partition that holds a tree. Raises: UserError if it is too small."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
        file.write(_partition_table(size_bytes // _SECTOR_BYTES))
    kib = (size_bytes - PARTITION_BYTES) >> 10
    options = f"offset={PARTITION_BYTES},root_owner=0:0"
    _run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-E", options,
        "-d", str(tree.path), str(image), f"{kib}k",
    )  # fmt: skip
    if os.getuid():
        # mke2fs takes the owners of the files that it copies.
        script = "".join(f'sif "{path}" uid 0\nsif "{path}" gid 0\n' for path in tree.paths)
        _run("debugfs", "-w", "-f", "-", f"{image}?offset={PARTITION_BYTES}", given=script)


def _partition_table(sectors: int) -> bytes:
    """A master boot record with one partition up to the end: sixteen bytes, and a signature."""
    first = PARTITION_BYTES // _SECTOR_BYTES
    entry = struct.pack(
        "<B3sB3sII", _ACTIVE, _BEYOND_CHS, _LINUX, _BEYOND_CHS, first, sectors - first
    )
    serial = b"pyxe"
    return bytes(440) + serial + bytes(2) + entry + bytes(48) + b"\x55\xaa"


def _place(raw: Path, image: Path, image_format: str) -> None:
    if image_format == "raw":
        raw.replace(image)
    else:
        _run("qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), str(image))


_PACKAGES: Final = {"mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "qemu-img": "qemu-utils"}


def _run(program: str, *arguments: str, given: str = "") -> None:
    where = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if where is None:
        raise UserError(f"there is no {program}", f"apt-get install {_PACKAGES[program]}")
    done = subprocess.run(
        [where, *arguments], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(
            f"{program} failed: {said[-1] if said else done.returncode}",
            "if there is no room in the image, give it more by --size",
        )


def _check(out_dir: Path, name: str, image_format: str, size_mib: int) -> None:
    if image_format not in FORMATS:
        raise UserError(f"no format {image_format!r}", f"known are {', '.join(FORMATS)}")
    if size_mib < MIN_SIZE_MIB:
        raise UserError(f"{size_mib} MiB are too few", f"give at least --size {MIN_SIZE_MIB}")
    if re.search(r'["\\\n,]', f"{out_dir}{name}") or "/" in name:
        raise UserError("names must not contain quotes, commas, or slashes")
