"""`pyxen env`, `systemd-unit`, `xend`, `version`: pyxen and the machine around it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys

from pyxen import __version__
from pyxen.errors import UserError
from pyxen.paths import SUN_PATH_BYTES, find_paths
from pyxen.xend.client import Client

UNIT = """\
[Unit]
Description=pyxen: Xen in user space
After=network.target

[Service]
ExecStart={python} -P -m pyxen.xend --system
# Domains are processes of their own and outlive xend.
KillMode=process
Restart=on-failure
StateDirectory=pyxen
StateDirectoryMode=0700
RuntimeDirectory=pyxen
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def run_env(given: argparse.Namespace) -> int:
    """Shell lines that lead Xen's own xenstore tools to our xenstored."""
    paths = find_paths()
    socket = os.fspath(paths.xenstored_socket)
    print(f"export XENSTORED_PATH={shlex.quote(socket)}")
    print(f"export XENSTORED_RUNDIR={shlex.quote(os.fspath(paths.run))}")
    print(f"# state: {paths.state}; log of xend: {paths.xend_log}")
    if len(os.fsencode(socket)) > SUN_PATH_BYTES:
        print(
            f"pyxen: {socket} is longer than {SUN_PATH_BYTES} bytes: "
            "only pyxen's own programs can reach it; set PYXEN_HOME to a shorter path",
            file=sys.stderr,
        )
    return 0


def run_systemd_unit(given: argparse.Namespace) -> int:
    """A unit file, for /etc/systemd/system/xend.service."""
    print(UNIT.format(python=sys.executable), end="")
    return 0


def run_xend(given: argparse.Namespace) -> int:
    """Run xend in the foreground, or end the one that runs."""
    if given.stop:
        with Client.connect(start=False) as xend:
            xend.call("stop")
            # Its end is the end of the connection.
            with contextlib.suppress(UserError):
                for _ in xend.messages():
                    pass
        return 0
    from pyxen.xend.main import main as xend_main

    return xend_main(["--system"] if given.system else [])


def run_version(given: argparse.Namespace) -> int:
    """The version of pyxen, and which Xen guests see."""
    from pyxen.hypervisor import version

    print(f"pyxen {__version__}")
    print(f"Xen {version.XEN_MAJOR}.{version.XEN_MINOR}{version.EXTRAVERSION}")
    return 0
