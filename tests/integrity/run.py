"""The guest that works on the disk, and the host that looks at the file between two rounds."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Final

from pyxen.image.cpio import CpioWriter
from pyxen.image.demo import DemoImage
from tests.integrity.model import BLOCK, DiskModel
from tests.linux.host import PROMPT, Host, write_config

_SOURCE: Final = Path(__file__).parent / "diskmodel.c"


def compile_static(source: Path, program: Path) -> Path:
    """Make a program that needs nothing from the guest."""
    command = ["gcc", "-O2", "-static", "-s", "-Wall", "-Werror", "-o", str(program), str(source)]
    subprocess.run(command, check=True)
    return program


class IntegrityRun:
    """One guest and one disk of `size` bytes."""

    def __init__(self, directory: Path, demo: DemoImage, size: int, vcpus: int = 2) -> None:
        self._image = directory / "disk.raw"
        with self._image.open("wb") as file:
            file.truncate(size)
        self._model = DiskModel(size // BLOCK)
        self._host = Host(directory / "home")
        archive = CpioWriter()
        program = compile_static(_SOURCE, directory / "diskmodel")
        archive.file("bin/diskmodel", program.read_bytes(), 0o755)
        ramdisk = directory / "integrity.img"
        ramdisk.write_bytes(demo.ramdisk.read_bytes() + archive.finish())
        config = write_config(
            directory / "integrity.cfg",
            name="integrity",
            kernel=demo.kernel,
            ramdisk=ramdisk,
            extra="console=hvc0",
            memory=256,
            vcpus=vcpus,
        )
        self._guest = self._host.session("create", "-c", str(config))
        self._guest.expect(PROMPT)
        self._guest.run("dmesg -n 1")  # only what we ask for on the console

    def round(self, seed: int, operations: int) -> None:
        """Attach, work, detach, compare. Raises: AssertionError naming what differs."""
        self._host.xl("block-attach", "integrity", f"{self._image},raw,xvdb,rw")
        # Connected is not yet there: the guest makes the device node when it has read the disk.
        self._guest.run("until [ -b /dev/xvdb ]; do sleep 0.05; done")
        said = self._guest.run(f"diskmodel /dev/xvdb /tmp/state {seed} {operations}")
        assert "diskmodel agrees" in said, f"seed {seed}: {said}"
        self._host.xl("block-detach", "integrity", "xvdb")
        self._model.run(seed, operations)
        wrong = self._model.differences(self._image)
        assert not wrong, f"seed {seed}: blocks {wrong[:20]} of {len(wrong)} differ in the file"

    def repeat(self, seed: int, operations: int, seconds: float) -> int:
        """Rounds with one seed after the other, for a while; how many."""
        end, rounds = time.monotonic() + seconds, 0
        while time.monotonic() < end or not rounds:
            self.round(seed + rounds, operations)
            rounds += 1
        return rounds

    def close(self) -> None:
        """End the guest and its xend."""
        self._host.close()
