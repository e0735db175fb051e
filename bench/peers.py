"""What can boot a guest: pyxen through its own `xl`, with and without the native path, and QEMU."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Final, Protocol

from bench.console import Console
from bench.image import MEMORY_MIB, BenchImage
from pyxen.errors import UserError
from pyxen.paths import Paths
from pyxen.xend.environment import child_environment

END_S: Final = 20.0
DOMAIN: Final = "bench"

_CONFIG: Final = """\
name = "{name}"
kernel = "{kernel}"
ramdisk = "{ramdisk}"
extra = "{cmdline}"
memory = {memory}
vcpus = 1
"""


class Guest:
    """A started guest. `begun` is time.monotonic() just before the first process was started."""

    def __init__(self, process: subprocess.Popen[bytes], begun: float) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process = process
        self.begun = begun
        self.console = Console(process.stdout, process.stdin)

    def pid(self) -> int:
        """The process that executes the guest."""
        return self.process.pid

    def close(self) -> None:
        """End the guest."""
        self.process.terminate()
        self._reap()

    def _reap(self) -> None:
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class Peer(Protocol):
    """One way to boot the image."""

    @property
    def name(self) -> str:
        """How results call it."""

    def prepare(self) -> None:
        """Do what is done once, long before a guest starts."""

    @property
    def disk_device(self) -> str:
        """How the guest calls its disk."""

    @property
    def disk_modules(self) -> str:
        """What the guest has to load for its disk."""

    def start(self, vcpus: int = 1, *, disk: bool = False) -> Guest:
        """Start a guest; disk: with the image's disk."""

    def version(self) -> str:
        """Which program, in one line."""

    def close(self) -> None:
        """End everything that still runs."""


class QemuPeer:
    """QEMU with its translator, as a user without /dev/kvm would start it."""

    name = "qemu"
    disk_device = "/dev/vda"
    disk_modules = "virtio_pci virtio_blk"

    def __init__(self, image: BenchImage) -> None:
        """Raises: UserError if there is no QEMU."""
        program = shutil.which("qemu-system-x86_64")
        if program is None:
            raise UserError("there is no qemu-system-x86_64", "apt-get install qemu-system-x86")
        self._drive = f"if=virtio,format=raw,cache=writeback,file={image.disk}"
        self._command = [
            *(program, "-accel", "tcg", "-m", str(MEMORY_MIB), "-nographic", "-no-reboot"),
            *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
            *("-append", serial_cmdline(image.cmdline)),
        ]

    def prepare(self) -> None:
        """Nothing."""

    def start(self, vcpus: int = 1, *, disk: bool = False) -> Guest:
        """Start QEMU."""
        begun = time.monotonic()
        drive = ("-drive", self._drive) if disk else ()
        command = [*self._command, "-smp", str(vcpus), *drive]
        return Guest(_popen(command, None, subprocess.DEVNULL), begun)

    def version(self) -> str:
        """What `--version` says."""
        return _first_line([self._command[0], "--version"])

    def close(self) -> None:
        """Nothing: a guest is one process."""


class PyxenPeer:
    """pyxen through `xl create -c`, with a xend of its own below `home`."""

    disk_device = "/dev/xvda"
    disk_modules = ""

    def __init__(
        self, image: BenchImage, home: Path, *, native: bool, cmdline: str | None = None
    ) -> None:
        """cmdline: of the guest's kernel; the demo's by default.

        Raises: UserError if the native path is asked for and not there."""
        if native and importlib.util.find_spec("pyxen.cpu.unicorn._hot") is None:
            raise UserError(
                "pyxen's native hot path is not built", "with a C compiler: pip install -e ."
            )
        self.name = "pyxen" if native else "pyxen-python"
        self.paths = Paths(home, home / "run")
        self.paths.make()
        self.config = home / "bench.cfg"
        self.config.write_text(
            _CONFIG.format(
                name=DOMAIN,
                kernel=image.kernel,
                ramdisk=image.initramfs,
                cmdline=image.cmdline if cmdline is None else cmdline,
                memory=MEMORY_MIB,
            )
        )
        self._environment = {
            **usual_environment(),
            "PYXEN_HOME": str(home),
            "PYXEN_NATIVE": str(int(native)),
        }
        self._errors = home / "xl.err"
        self.disk = image.disk

    def command(self, *words: str) -> list[str]:
        """An xl command, without the help of a shell or an installed script."""
        return [sys.executable, "-m", "pyxen.xl", *words]

    def xl(self, *words: str) -> str:
        """Run xl to its end; what it printed. UserError if it fails."""
        done = subprocess.run(
            self.command(*words),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"xl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def prepare(self) -> None:
        """Have xend running."""
        self.xl("list")

    def start(self, vcpus: int = 1, *, disk: bool = False) -> Guest:
        """xl create -c."""
        settings = [f"vcpus={vcpus}"]
        if disk:
            settings.append(f'disk=["{self.disk},raw,xvda,rw"]')
        with self._errors.open("wb") as errors:
            begun = time.monotonic()
            command = self.command("create", "-c", str(self.config), *settings)
            return PyxenGuest(_popen(command, self._environment, errors), begun, self)

    def domain_pid(self) -> int:
        """The one domain's process. UserError if there is none."""
        for record in self.paths.domains.glob("*/domain.json"):
            pid = json.loads(record.read_text())["pid"]
            if pid:
                return int(pid)
        raise UserError("there is no domain")

    def complaints(self) -> str:
        """What the last `xl create` wrote to stderr."""
        return self._errors.read_text(errors="replace")

    def xend_pid(self) -> int | None:
        """The daemon's process, if it runs."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self.paths.xend_lock.read_text())
            os.kill(pid, 0)
            return pid
        return None

    def version(self) -> str:
        """pyxen's version."""
        lines = [line.partition(":") for line in self.xl("info").splitlines()]
        return next((value.strip() for key, _, value in lines if "changeset" in key), "unknown")

    def close(self) -> None:
        """End xend; the next xl starts it again."""
        pid = self.xend_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                end_process(pid)


class PyxenGuest(Guest):
    """A domain, and the xl that shows its console."""

    def __init__(self, process: subprocess.Popen[bytes], begun: float, peer: PyxenPeer) -> None:
        super().__init__(process, begun)
        self._peer = peer

    def pid(self) -> int:
        """The domain process."""
        return self._peer.domain_pid()

    def close(self) -> None:
        """Destroy the domain, which ends xl too."""
        with contextlib.suppress(UserError):  # it may have crashed, and so be gone
            self._peer.xl("destroy", DOMAIN)
        self._reap()


def serial_cmdline(xen: str) -> str:
    """The command line for a PC, from that for a Xen guest: everything that costs time is kept.

    No early console: by QEMU's serial port it would cost more than it does by Xen's console.
    """
    words = [word for word in xen.split() if not word.startswith("earlyprintk=")]
    return " ".join("console=ttyS0" if word == "console=hvc0" else word for word in words)


def usual_environment() -> dict[str, str]:
    """This environment, but Python keeps what it compiled, as it does for most people."""
    environment = child_environment()
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def end_process(pid: int) -> None:
    """Terminate a process that is not a child, and see it gone. ProcessLookupError."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not select.select([handle], [], [], END_S)[0]:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], END_S)
    finally:
        os.close(handle)


def _popen(
    command: list[str], environment: dict[str, str] | None, errors: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        bufsize=0,
    )


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]
