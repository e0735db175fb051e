"""What the comparisons need of Xen itself: headers and clients, from Debian's packages.

Where they are not installed they are fetched into pyxen's cache, which needs no root. That is done
when this directory is collected, so that the tests find the same environment either way. Without
network and cache the tests that need them are skipped, and say so.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pyxen.errors import UserError
from pyxen.image.apt import fetch_package

CLIENT_PACKAGES = ("xenstore-utils", "libxenstore4", "libxentoolcore1")
TRIPLET = "x86_64-linux-gnu"


def _tree(package: str) -> Path | None:
    try:
        return fetch_package(package, say=lambda line: None)
    except (UserError, OSError):
        return None


def _provide_headers() -> None:
    if "PYXEN_XEN_HEADERS" in os.environ or Path("/usr/include/xen/xen.h").exists():
        return
    tree = _tree("libxen-dev")
    if tree is not None:
        os.environ["PYXEN_XEN_HEADERS"] = str(tree / "usr/include/xen")


def _provide_clients() -> None:
    if shutil.which("xenstore-ls"):
        return
    trees = [_tree(package) for package in CLIENT_PACKAGES]
    found = [tree for tree in trees if tree is not None]
    if len(found) < len(CLIENT_PACKAGES):
        return
    paths = [str(tree / "usr/bin") for tree in found]
    libraries = [str(tree / "usr/lib" / TRIPLET) for tree in found]
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *paths])
    old = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *([old] if old else [])])


_provide_headers()
_provide_clients()
