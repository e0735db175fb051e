"""`pyxen`: doctor, demo image, environment, systemd unit, xend itself."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module

from pyxen.cli.disk_image import add_commands
from pyxen.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run pyxen with these arguments (the process's own by default); returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    # pygrub reads its own command line, as Xen's does.
    given = _parser().parse_args(words[:1] if words[:1] == ["pygrub"] else words)
    given.words = words[1:]
    try:
        run: Callable[[argparse.Namespace], int] = getattr(
            import_module(f"pyxen.cli.{given.module}"), given.run
        )
        code = run(given)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has seen enough; nothing is left to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"pyxen: {error.message}", file=sys.stderr)
        for line in error.hint.splitlines():
            print(f"    {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyxen", description="Xen, in user space.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, where: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        module, run = where.split(":")
        command.set_defaults(module=module, run=run)
        return command

    add("doctor", "doctor:run", "Look whether everything that pyxen needs is there.")
    hypercalls = add(
        "hypercalls", "hypercalls:run", "List the hypercalls, how far each is done, and its use."
    )
    hypercalls.add_argument("domain", nargs="?", help="also how often this domain made each")
    hypercalls.add_argument("--json", action="store_true", help="as JSON")
    _add_image(add("image", "image:run", "Make the demo guest; make and look after disk images."))
    add("pygrub", "pygrub:run", "Find the kernel in a guest's disk, as Xen's pygrub does.")
    add("env", "system:run_env", 'Print what Xen\'s own tools need, for eval "$(pyxen env)".')
    add("systemd-unit", "system:run_systemd_unit", "Print a systemd unit for a system-wide xend.")
    xend = add("xend", "system:run_xend", "Run xend in the foreground.")
    xend.add_argument("--system", action="store_true", help="use /var/lib/pyxen and /run/pyxen")
    xend.add_argument("--stop", action="store_true", help="end the xend that runs; domains run on")
    add("version", "system:run_version", "Print the versions of pyxen and of the Xen it is.")
    return parser


def _add_image(command: argparse.ArgumentParser) -> None:
    kinds = command.add_subparsers(metavar="IMAGE", required=True)
    demo = kinds.add_parser("demo", help="Debian's kernel and a small busybox system")
    demo.add_argument("directory", nargs="?", default=".", help="where to put it (default: here)")
    demo.add_argument("--kernel", help="another kernel than Debian's")
    demo.add_argument("--flavour", default="cloud", help="Debian's kernel: cloud (default), full")
    demo.add_argument(
        "--disk", action="store_true", help="on a disk that it starts from, by pygrub"
    )
    _add_disk(demo, 256)
    demo.add_argument("--name", help="name of the guest (demo, demo-disk)")
    _add_guest(demo, 256)
    debian = kinds.add_parser(
        "debian", help="a small Debian 12 on a disk that it starts from, by mmdebstrap"
    )
    debian.set_defaults(run="run_debian")
    debian.add_argument("directory", nargs="?", default=".", help="where to put it (default: here)")
    _add_disk(debian, 2048)
    debian.add_argument("--name", default="debian", help="name of guest and host (debian)")
    _add_guest(debian, 512)
    debian.add_argument(
        "--include", metavar="PACKAGES", default="", help="more packages, with commas: gcc,make"
    )
    debian.add_argument("--password", help="of root (default: one is made up, and printed)")
    debian.add_argument("--autologin", action="store_true", help="no login at the console")
    debian.add_argument("--mirror", help="a mirror of Debian (default: this machine's)")
    add_commands(kinds)


def _add_disk(kind: argparse.ArgumentParser, size_mib: int) -> None:
    kind.add_argument("--format", default="raw", help="of the disk: raw (default), qcow2")
    kind.add_argument("--size", type=int, default=size_mib, help=f"of the disk in MiB ({size_mib})")


def _add_guest(kind: argparse.ArgumentParser, memory_mib: int) -> None:
    kind.add_argument(
        "--memory", type=int, default=memory_mib, help=f"its memory in MiB ({memory_mib})"
    )
    kind.add_argument("--vcpus", type=int, default=1, help="its vCPUs (1)")
    kind.add_argument("--refresh", action="store_true", help="fetch newer packages")
