"""`pyxen image demo`."""

from __future__ import annotations

import argparse
from pathlib import Path


def run(given: argparse.Namespace) -> int:
    """Make the demo guest's files."""
    if given.disk:
        return _disk(given)
    from pyxen.image.demo import build_demo

    directory = Path(given.directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    build_demo(
        directory,
        kernel=Path(given.kernel).resolve() if given.kernel else None,
        flavour=given.flavour,
        name=given.name or "demo",
        memory_mib=given.memory,
        vcpus=given.vcpus,
        refresh=given.refresh,
    )
    return 0


def _disk(given: argparse.Namespace) -> int:
    from pyxen.errors import UserError
    from pyxen.image.disk import build_disk

    if given.kernel:
        raise UserError("--kernel is not for a disk", "the disk has Debian's, of a --flavour")
    build_disk(
        Path(given.directory).resolve(),
        flavour=given.flavour,
        name=given.name or "demo-disk",
        image_format=given.format,
        size_mib=given.size,
        memory_mib=given.memory,
        vcpus=given.vcpus,
        refresh=given.refresh,
    )
    return 0
