"""A disk image with a partition table and one ext4 file system, made from a directory.

mke2fs fills a file: nothing is mounted, and nothing needs root. debugfs then gives the files the
owners that they cannot have in a directory of an ordinary user.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.errors import UserError

FORMATS: Final = ("raw", "qcow2")
PARTITION_BYTES: Final = 1 << 20
"""Where the first partition begins, as partitioning programs have it."""

_SECTOR_BYTES: Final = 512
_LINUX, _ACTIVE = 0x83, 0x80
_BEYOND_CHS: Final = b"\xfe\xff\xff"
_PACKAGES: Final = {"mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "qemu-img": "qemu-utils"}
_CAPABILITY: Final = "security.capability"


@dataclass(frozen=True, slots=True)
class Owner:
    """To whom a file belongs in the guest. capability: its security.capability, empty for none."""

    path: str
    uid: int = 0
    gid: int = 0
    capability: bytes = b""


def make_partitioned(
    image: Path,
    root: Path,
    owners: Iterable[Owner],
    size_bytes: int,
    *,
    uuid: str | None = None,
) -> None:
    """A raw, sparse disk with one partition that holds what is below `root`.

    owners: of everything below `root`; the root directory itself is root's.
    uuid:   of the file system; by default a new one.
    Raises: UserError if the disk is too small, or a program is missing.
    """
    with image.open("wb") as file:
        file.truncate(size_bytes)
        file.write(_partition_table(size_bytes // _SECTOR_BYTES))
    kib = (size_bytes - PARTITION_BYTES) >> 10
    options = f"offset={PARTITION_BYTES},root_owner=0:0"
    run_tool(
        "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-E", options,
        *(() if uuid is None else ("-U", uuid)), "-d", str(root), str(image), f"{kib}k",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="owners-", dir=image.parent) as scratch:
        if script := "".join(_corrections(root, owners, Path(scratch))):
            _run_debugfs(image, script)


def place_image(raw: Path, image: Path, image_format: str) -> None:
    """Bring a raw image to its place, in the format that is wanted."""
    if image_format == "raw":
        raw.replace(image)
    else:
        run_tool("qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), str(image))


def check_format(image_format: str) -> None:
    """Raises: UserError if images are not made in this format."""
    if image_format not in FORMATS:
        raise UserError(f"no format {image_format!r}", f"known are {', '.join(FORMATS)}")


def run_tool(program: str, *arguments: str, given: str = "") -> str:
    """What a program said on its error output. Raises: UserError if it fails or is not there."""
    where = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if where is None:
        raise UserError(f"there is no {program}", f"apt-get install {_PACKAGES[program]}")
    done = subprocess.run(
        [where, *arguments],
        input=os.fsencode(given),
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    errors = done.stderr.decode(errors="replace").strip()
    if done.returncode:
        said = (errors or done.stdout.decode(errors="replace").strip()).splitlines()
        raise UserError(
            f"{program} failed: {said[-1] if said else done.returncode}",
            "if there is no room in the image, give it more by --size",
        )
    return errors


def _partition_table(sectors: int) -> bytes:
    """A master boot record with one partition up to the end: sixteen bytes, and a signature."""
    first = PARTITION_BYTES // _SECTOR_BYTES
    entry = struct.pack(
        "<B3sB3sII", _ACTIVE, _BEYOND_CHS, _LINUX, _BEYOND_CHS, first, sectors - first
    )
    serial = b"pyxe"
    return bytes(440) + serial + bytes(2) + entry + bytes(48) + b"\x55\xaa"


def _corrections(root: Path, owners: Iterable[Owner], scratch: Path) -> Iterable[str]:
    """debugfs' commands where mke2fs took an owner that is not the guest's."""
    for n, owner in enumerate(owners):
        found = (root / owner.path).lstat()
        name = _quoted(f"/{owner.path}")
        if found.st_uid != owner.uid:
            yield f"sif {name} uid {owner.uid}\n"
        if found.st_gid != owner.gid:
            yield f"sif {name} gid {owner.gid}\n"
        if owner.capability:
            value = scratch / str(n)
            value.write_bytes(owner.capability)
            yield f"ea_set -f {_quoted(str(value))} {name} {_CAPABILITY}\n"


def _quoted(name: str) -> str:
    """A word of debugfs'. Inside of quotes, two of them stand for one."""
    if any(ord(letter) < 0x20 for letter in name):
        raise UserError(f"{name!r} has a control character in its name")
    return '"' + name.replace('"', '""') + '"'


def _run_debugfs(image: Path, script: str) -> None:
    """debugfs ends with 0 whatever happened; after its banner it says only what went wrong."""
    said = run_tool("debugfs", "-w", "-f", "-", f"{image}?offset={PARTITION_BYTES}", given=script)
    if wrong := [line for line in said.splitlines() if not line.startswith("debugfs ")]:
        raise UserError(f"debugfs failed: {wrong[0]}")
