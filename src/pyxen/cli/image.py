"""`pyxen image demo`."""

from __future__ import annotations

import argparse
from pathlib import Path


def run(given: argparse.Namespace) -> int:
    """Make the demo guest's files."""
    from pyxen.image.demo import build_demo

    directory = Path(given.directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    build_demo(
        directory,
        kernel=Path(given.kernel).resolve() if given.kernel else None,
        flavour=given.flavour,
        name=given.name,
        memory_mib=given.memory,
        vcpus=given.vcpus,
        refresh=given.refresh,
    )
    return 0
