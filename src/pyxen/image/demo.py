"""`pyxen image demo`: a kernel, an initramfs and an xl.cfg, ready for `xl create`.

The kernel is Debian's own, unmodified; the rest is busybox and a few scripts. Nothing is installed
and nothing needs root.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.errors import UserError
from pyxen.image.apt import Apt, Say
from pyxen.image.initramfs import build_initramfs
from pyxen.image.modules import collect_modules

PROMPT: Final = "demo:/# "
"""What the demo's shell prints when it is ready, at the start of a line; part of the interface.

Behind it busybox asks the terminal for the cursor's position (ESC [ 6 n) unless input is waiting.
"""

KERNEL_PACKAGES: Final = {"cloud": "linux-image-cloud-amd64", "full": "linux-image-amd64"}
MODULES: Final = ("xen-blkfront", "xen-netfront", "crc32c_generic", "ext4")

_CONFIG: Final = """\
# Made by `pyxen image demo`. Start it with: xl create -c {config}
name = "{name}"
kernel = "{kernel}"
ramdisk = "{ramdisk}"
# earlyprintk: the console speaks from the first moment. lockdown: without the 9 MB of tracing files
# that Debian's kernel makes at boot, so that 64 MiB are enough.
extra = "console=hvc0 earlyprintk=xen lockdown=confidentiality"
memory = {memory}
vcpus = {vcpus}
on_poweroff = "destroy"
on_reboot = "restart"
on_crash = "destroy"
"""


@dataclass(frozen=True, slots=True)
class DemoImage:
    """The files of a demo guest; `release` is its kernel's version, empty if unknown."""

    config: Path
    kernel: Path
    ramdisk: Path
    release: str


def build_demo(
    out_dir: Path,
    *,
    kernel: Path | None = None,
    flavour: str = "cloud",
    busybox: Path | None = None,
    name: str = "demo",
    memory_mib: int = 256,
    vcpus: int = 1,
    refresh: bool = False,
    apt: Apt | None = None,
    say: Say = print,
) -> DemoImage:
    """Make `out_dir` with vmlinuz, initrd.img and demo.cfg.

    kernel:  any other Xen PV kernel; by default Debian's of that `flavour` (cloud, full).
    busybox: a static busybox; by default Debian's.
    refresh: look for newer packages even if some are cached.
    Raises:  UserError if something cannot be had or written.
    """
    if re.search(r'["\\\n]', f"{out_dir}{name}"):
        raise UserError("the directory's and the guest's name must not contain quotes")
    apt = apt or Apt(say=say)
    tree = None
    if kernel is None:
        tree = kernel_tree(apt, flavour, refresh=refresh)
        kernel = only(tree, "boot/vmlinuz-*")
    if busybox is None:
        busybox = only(apt.fetch_package("busybox-static", refresh=refresh), "**/bin/busybox")
    release = kernel.name.partition("-")[2] if tree else ""
    modules = collect_modules(tree, MODULES) if tree else []
    image = DemoImage(out_dir / f"{name}.cfg", out_dir / "vmlinuz", out_dir / "initrd.img", release)
    archive = build_initramfs(busybox, modules, release)
    _write(image, kernel, archive, name, memory_mib, vcpus)
    say(f"kernel   {image.kernel} ({release or kernel})")
    extra = f", modules {', '.join(m.name for m in modules)}" if modules else ""
    say(f"ramdisk  {image.ramdisk} ({len(archive) / (1 << 20):.1f} MiB: busybox{extra})")
    say(f"config   {image.config}")
    say(f"start it with: xl create -c {image.config}")
    return image


def _write(
    image: DemoImage, kernel: Path, archive: bytes, name: str, memory_mib: int, vcpus: int
) -> None:
    config = _CONFIG.format(
        config=image.config.name,
        name=name,
        kernel=image.kernel.absolute(),
        ramdisk=image.ramdisk.absolute(),
        memory=memory_mib,
        vcpus=vcpus,
    )
    try:
        image.config.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(shutil.SameFileError):  # the user's kernel lies there already
            shutil.copyfile(kernel, image.kernel)
        image.ramdisk.write_bytes(archive)
        image.config.write_text(config)
    except OSError as e:
        raise UserError(f"{e.filename}: {e.strerror}") from None


def kernel_tree(apt: Apt, flavour: str, *, refresh: bool = False) -> Path:
    """The files of Debian's kernel of a flavour (cloud, full). Raises: UserError."""
    if flavour not in KERNEL_PACKAGES:
        raise UserError(f"no flavour {flavour!r}", f"known are {', '.join(KERNEL_PACKAGES)}")
    package = KERNEL_PACKAGES[flavour]
    depends = apt.describe(package).get("Depends", "") if refresh else _cached_depends(apt, package)
    for item in depends.split(","):
        name = item.split("|")[0].split("(")[0].strip()
        if name.startswith("linux-image-"):
            return apt.fetch_package(name, refresh=refresh)
    return apt.fetch_package(package, refresh=refresh)


def _cached_depends(apt: Apt, package: str) -> str:
    """What a meta package depends on; remembered, so that a second demo needs no lists."""
    note = apt.cache / f"{package}.depends"
    if note.is_file():
        return note.read_text()
    depends = apt.describe(package).get("Depends", "")
    apt.cache.mkdir(parents=True, exist_ok=True)
    note.write_text(depends)
    return depends


def only(tree: Path, pattern: str) -> Path:
    """The last of the files that match. Raises: UserError if there is none."""
    found = sorted(p for p in tree.glob(pattern) if p.is_file())
    if not found:
        raise UserError(f"{tree} has no {pattern}", "try again with --refresh")
    return found[-1]
