"""The guest that is measured: the demo's kernel and initramfs, and one program more."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.config.load import load_domain_config
from pyxen.errors import UserError
from pyxen.image.apt import Apt
from pyxen.image.cpio import CpioWriter
from pyxen.image.demo import MODULES, build_demo, kernel_tree
from pyxen.image.modules import collect_modules, dependency_files

PROGRAM: Final = "guestbench"
SOURCE: Final = Path(__file__).parent / "guest" / f"{PROGRAM}.c"
MEMORY_MIB: Final = 256
PC_MODULES: Final = ("virtio_pci", "virtio_blk")
"""What a guest of QEMU needs for its disk. They lie there unused until they are asked for."""
DISK_BYTES: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class BenchImage:
    """What every peer boots. cmdline: what a Xen guest is told. disk: for who asks for one."""

    kernel: Path
    initramfs: Path
    release: str
    cmdline: str
    disk: Path

    def facts(self) -> dict[str, str]:
        """What tells one image from another."""
        return {
            "kernel_release": self.release,
            "kernel_sha256": hashlib.sha256(self.kernel.read_bytes()).hexdigest(),
            "initramfs_sha256": hashlib.sha256(self.initramfs.read_bytes()).hexdigest(),
        }


def build_image(directory: Path) -> BenchImage:
    """Make kernel and initramfs in `directory`. UserError says what is missing."""
    demo = build_demo(directory, say=lambda line: None)
    archive = CpioWriter()
    archive.file(f"bin/{PROGRAM}", _compile(directory / PROGRAM).read_bytes(), 0o755)
    _add_modules(archive, demo.release)
    # Linux unpacks archives that follow each other one over the other.
    initramfs = directory / "bench.img"
    initramfs.write_bytes(demo.ramdisk.read_bytes() + archive.finish())
    config, _ = load_domain_config(str(demo.config), [])
    disk = directory / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    return BenchImage(demo.kernel, initramfs, demo.release, config.b_info.cmdline or "", disk)


def _add_modules(archive: CpioWriter, release: str) -> None:
    """The demo's modules and QEMU's, with one list for both."""
    tree = kernel_tree(Apt(say=lambda line: None), "cloud")
    modules = collect_modules(tree, (*MODULES, *PC_MODULES))
    base = f"lib/modules/{release}"
    for module in modules:
        archive.file(f"{base}/{module.name}.ko", module.data)
    for name, data in dependency_files(modules).items():
        archive.file(f"{base}/{name}", data)


def _compile(program: Path) -> Path:
    if shutil.which("gcc") is None:
        raise UserError("there is no C compiler", "apt-get install gcc libc6-dev")
    command = ["gcc", "-O2", "-static", "-s", "-Wall", "-o", str(program), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{SOURCE.name} does not compile:\n{done.stderr}", "is libc6-dev there?")
    return program
