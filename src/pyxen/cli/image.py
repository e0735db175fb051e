"""`pyxen image demo` and `pyxen image debian`."""

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


def run_debian(given: argparse.Namespace) -> int:
    """Make a Debian guest's files."""
    from pyxen.image.bootstrap import Bootstrap
    from pyxen.image.debian import PACKAGES, SUITE, build_debian

    more = tuple(word for word in given.include.split(",") if word)
    build_debian(
        Path(given.directory).resolve(),
        bootstrap=Bootstrap(SUITE, (*PACKAGES, *more), given.mirror),
        name=given.name,
        image_format=given.format,
        size_mib=given.size,
        memory_mib=given.memory,
        vcpus=given.vcpus,
        password=given.password,
        autologin=given.autologin,
        refresh=given.refresh,
    )
    return 0
