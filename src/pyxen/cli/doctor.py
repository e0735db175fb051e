"""`pyxen doctor`: is everything there that pyxen needs, and what would make it better."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from pyxen.errors import UserError
from pyxen.paths import SUN_PATH_BYTES, Paths, find_paths

PACKAGES = ("unicorn", "capstone", "lz4", "zstandard")
DEMO_MEMORY_MIB = 512
"""The host memory that the demo guest, its engine and xend take together."""


class Finding(NamedTuple):
    """One thing looked at: `good` None means a lack that does not stop anything."""

    good: bool | None
    subject: str
    detail: str
    advice: str = ""


def run(given: argparse.Namespace) -> int:
    """Print what was found; exit code 1 if domains cannot run."""
    del given
    signs = {True: "ok     ", None: "note   ", False: "MISSING"}
    bad = False
    for finding in examine(find_paths()):
        print(f"{signs[finding.good]} {finding.subject:<20} {finding.detail}")
        if finding.advice:
            print(f"{'':28} {finding.advice}")
        bad = bad or finding.good is False
    return 1 if bad else 0


def examine(paths: Paths) -> Iterator[Finding]:
    """Look at everything, in the order in which it is needed."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(sys.version_info >= (3, 11), "Python", version, "")
    for package in PACKAGES:
        yield _package(package)
    yield _engine()
    yield _memory()
    yield _ptys()
    yield _state(paths)
    yield _sockets(paths)
    yield _xend(paths)
    yield from _tools()
    yield _kvm()


def _package(name: str) -> Finding:
    try:
        return Finding(True, name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(False, name, "not installed", f"pip install {name}")


def _engine() -> Finding:
    """Start the real engine on a scrap of memory: its layout check is the test that counts."""
    try:
        from pyxen.cpu.base import CpuidLeaf
        from pyxen.cpu.unicorn.engine import UnicornEngine
        from pyxen.memory.machine import MachineMemory

        memory = MachineMemory(16)
        engine = UnicornEngine(memory, lambda leaf, subleaf: CpuidLeaf())
        found = engine.capabilities
        engine.close()
        memory.close()
    except UserError as error:
        return Finding(False, "engine", error.message, error.hint)
    except Exception as error:
        return Finding(False, "engine", f"{type(error).__name__}: {error}")
    detail = f"{found.name}, {'native' if found.native else 'pure Python'}: {found.detail}"
    advice = "" if found.native else "with a C compiler at install time it is faster"
    return Finding(True if found.native else None, "engine", detail, advice)


def _memory() -> Finding:
    from pyxen.toolstack.host import memory_kib

    total, free = memory_kib()
    detail = f"{free // 1024} of {total // 1024} MiB free"
    enough = free // 1024 >= DEMO_MEMORY_MIB
    advice = "" if enough else f"the demo guest needs about {DEMO_MEMORY_MIB} MiB"
    return Finding(True if enough else None, "memory", detail, advice)


def _ptys() -> Finding:
    try:
        for fd in os.openpty():
            os.close(fd)
    except OSError as error:
        return Finding(False, "ptys", str(error.strerror), "is /dev/pts mounted?")
    return Finding(True, "ptys", "can be opened")


def _state(paths: Paths) -> Finding:
    nearest = paths.state
    while not nearest.exists():
        nearest = nearest.parent
    usable = os.access(nearest, os.W_OK | os.X_OK)
    advice = "" if usable else f"{nearest} is not writable; set PYXEN_HOME"
    return Finding(usable, "state", str(paths.state), advice)


def _sockets(paths: Paths) -> Finding:
    short = len(os.fsencode(paths.xenstored_socket)) <= SUN_PATH_BYTES
    advice = "" if short else "too long for Xen's own tools; set PYXEN_HOME to a shorter path"
    return Finding(True if short else None, "sockets", str(paths.run), advice)


def _xend(paths: Paths) -> Finding:
    from pyxen.xend.client import Client

    try:
        with Client.connect(paths, start=False) as xend:
            count = len(xend.call("list")) - 1
    except UserError as error:
        return Finding(None, "xend", error.message, error.hint)
    return Finding(True, "xend", f"runs, {count} domains")


def _tools() -> Iterator[Finding]:
    wanted = {
        "xenstore-ls": "apt install xenstore-utils (optional: Xen's own tools work on our store)",
        "apt-get": "`pyxen image demo` fetches Debian's packages with it; else use --kernel",
        "qemu-storage-daemon": "apt install qemu-system-common libnbd0 (for disks not raw)",
        "qemu-img": "apt install qemu-utils (for `pyxen image create` and its like)",
        "dpkg-deb": "`pyxen image demo` unpacks Debian's packages with it",
    }
    for tool, advice in wanted.items():
        where = shutil.which(tool)
        yield Finding(True if where else None, tool, where or "not there", "" if where else advice)


def _kvm() -> Finding:
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return Finding(
        None if not usable else True,
        "/dev/kvm",
        "usable (not used yet)" if usable else "not usable; not needed",
    )
