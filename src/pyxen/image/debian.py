"""`pyxen image debian`: a small Debian on a disk that it starts from, made without root.

Its packages are put together by mmdebstrap; kernel, initramfs and grub.cfg are the guest's own, and
change with the packages that are installed in it later.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.errors import UserError
from pyxen.image import debian_files as files
from pyxen.image.apt import Say
from pyxen.image.boot_config import disk_config
from pyxen.image.bootstrap import Bootstrap
from pyxen.image.partition import check_format, make_partitioned, place_image
from pyxen.image.staging import StagedTree

SUITE: Final = "bookworm"
# zstd: an initramfs that unpacks several times faster than with gzip.
PACKAGES: Final = (
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "systemd-sysv",
    "udev",
    "dbus",
)
MIN_SIZE_MIB: Final = 768
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_AUTOLOGIN: Final = "etc/systemd/system/serial-getty@hvc0.service.d/autologin.conf"


@dataclass(frozen=True, slots=True)
class DebianImage:
    """The files of a Debian guest, and the password of its root."""

    config: Path
    image: Path
    password: str


@dataclass(frozen=True, slots=True)
class System:
    """What makes one Debian guest another than the next. uuid: of its root file system."""

    name: str
    password: str
    autologin: bool
    uuid: str


def build_debian(
    out_dir: Path,
    *,
    bootstrap: Bootstrap | None = None,
    name: str = "debian",
    image_format: str = "raw",
    size_mib: int = 2048,
    memory_mib: int = 512,
    vcpus: int = 1,
    password: str | None = None,
    autologin: bool = False,
    refresh: bool = False,
    say: Say = print,
) -> DebianImage:
    """Make `out_dir` with NAME.img (or NAME.qcow2), which is sparse, and NAME.cfg.

    password: of root; by default one is made up, and said.
    refresh:  put the packages together anew, even if they are in the cache.
    Raises:   UserError if something cannot be had or written.
    """
    _check(out_dir, name, image_format, size_mib, password)
    system = System(name, password or secrets.token_urlsafe(9), autologin, str(uuid.uuid4()))
    suffix = "img" if image_format == "raw" else image_format
    made = DebianImage(out_dir / f"{name}.cfg", out_dir / f"{name}.{suffix}", system.password)
    archive = (bootstrap or Bootstrap(SUITE, PACKAGES)).archive(refresh=refresh, say=say)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".disk-", dir=out_dir) as scratch:
            raw = Path(scratch) / "raw"
            tree = StagedTree(Path(scratch) / "root")
            tree.unpack(archive)
            add_system(tree, system)
            make_partitioned(raw, tree.path, tree.owners(), size_mib << 20, uuid=system.uuid)
            place_image(raw, made.image, image_format)
        made.config.write_text(
            disk_config("debian", made.config, made.image, image_format, memory_mib, vcpus)
        )
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    used = made.image.stat().st_blocks * 512 / (1 << 20)
    say(f"disk     {made.image} ({image_format}, {size_mib} MiB, {used:.0f} of them used)")
    say(f"config   {made.config}")
    say(f"login    root, password {system.password}" + (", not asked for" if autologin else ""))
    say(f"start it with: xl create -c {made.config}")
    return made


def add_system(tree: StagedTree, system: System) -> None:
    """What packages do not bring: names, the root file system, a login, and grub.cfg."""
    tree.file("etc/hostname", f"{system.name}\n".encode())
    tree.file("etc/hosts", files.HOSTS.format(name=system.name).encode())
    tree.file("etc/resolv.conf", b"")  # mmdebstrap's is this machine's
    tree.file("etc/fstab", files.FSTAB.format(uuid=system.uuid).encode())
    tree.file("etc/default/grub", files.DEFAULT_GRUB.encode())
    tree.file("usr/local/sbin/write-grub-cfg", files.WRITE_GRUB_CFG.encode(), 0o755)
    for when in ("postinst", "postrm"):
        hook = f"etc/kernel/{when}.d/zz-write-grub-cfg"
        tree.file(hook, files.KERNEL_HOOK.encode(), 0o755)
    if system.autologin:
        tree.file(_AUTOLOGIN, files.AUTOLOGIN.encode())
    _set_password(tree, system.password)
    tree.file("boot/grub/grub.cfg", b"")  # so that it has an owner
    _run("sh", str(tree.path / "usr/local/sbin/write-grub-cfg"), str(tree.path))


def _set_password(tree: StagedTree, password: str) -> None:
    """Into /etc/shadow, which keeps its owner and its mode."""
    salt = secrets.token_hex(8)
    # perl is what mmdebstrap is written in, and has the C library's crypt.
    script = f'my $word = <STDIN>; print crypt($word, "\\$6\\${salt}\\$")'
    hashed = _run("perl", "-e", script, given=password)
    shadow = tree.path / "etc/shadow"
    lines = shadow.read_text().splitlines()
    fields = [line.split(":") for line in lines]
    for field in fields:
        if field[0] == "root":
            field[1] = hashed
    shadow.write_text("".join(":".join(field) + "\n" for field in fields))


def _run(program: str, *arguments: str, given: str = "") -> str:
    done = subprocess.run(
        [program, *arguments], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{program} failed: {done.stderr.strip()}")
    return done.stdout


def _check(
    out_dir: Path, name: str, image_format: str, size_mib: int, password: str | None
) -> None:
    check_format(image_format)
    if size_mib < MIN_SIZE_MIB:
        raise UserError(f"{size_mib} MiB are too few", f"give at least --size {MIN_SIZE_MIB}")
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a host name", "it may have letters, digits and hyphens")
    if re.search(r'["\\\n,]', str(out_dir)):
        raise UserError("the directory's name must not contain quotes or commas")
    if password is not None and not re.fullmatch(r"[ -9;-~]+", password):
        raise UserError("the password must be of printable ASCII letters, without a colon")
