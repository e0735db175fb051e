"""The command that runs xend. Here, and only here, xend and the toolstack meet."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from getopt import GetoptError, getopt
from pathlib import Path

from pyxen.errors import UserError
from pyxen.paths import Paths, find_paths, system_paths

USAGE = "usage: xend [--system | --state DIR --run DIR] [--daemonize] [--ready-fd N]"
OPTIONS = ["system", "state=", "run=", "daemonize", "ready-fd="]


def main(arguments: list[str]) -> int:
    """Run xend; returns its exit code."""
    try:
        options = dict(getopt(arguments, "", OPTIONS)[0])
    except GetoptError as error:
        print(f"xend: {error}\n{USAGE}", file=sys.stderr)
        return 2
    if "--daemonize" in options and os.fork():
        os._exit(0)
    ready = int(options["--ready-fd"]) if "--ready-fd" in options else None
    paths = _paths(options)
    os.umask(0o077)
    os.chdir("/")
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO
    )
    try:
        asyncio.run(_serve(paths, ready))
    except UserError as error:
        print(f"xend: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


def _paths(options: dict[str, str]) -> Paths:
    if "--system" in options:
        return system_paths()
    if "--state" in options and "--run" in options:
        return Paths(Path(options["--state"]), Path(options["--run"]))
    return find_paths()


async def _serve(paths: Paths, ready: int | None) -> None:
    from pyxen.toolstack.operations import Toolstack
    from pyxen.xend.daemon import Xend

    await Xend(paths, Toolstack()).run(ready)
