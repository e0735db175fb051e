"""`pyxen image create, convert, info, resize, check`: qemu-img, with an eye on who has an image.

qemu-img does the work. What is added: nothing is done to an image that somebody has open, and the
message says who that is; a format is never guessed where a guest could have written it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from pyxen.errors import UserError
from pyxen.paths import find_paths

FORMATS: Final = ("raw", "qcow2", "qcow", "vmdk", "vhd", "vdi", "qed")
_QEMU_NAMES: Final = {"vhd": "vpc"}
_FOUND: Final = (2, 3)
"""Exit codes of qemu-img check: the image is damaged; it is whole, but space in it is lost."""

_HINTS: Final = (
    (r"No such file", "check the name; `pyxen image create` makes an image"),
    (r"[Ii]nvalid image size|size specified", "a size is a number with K, M, G or T: 10G"),
    (
        r"not in \S+ format|[Ii]nvalid .*image",
        "`pyxen image info FILE` shows what it is; say it with -f",
    ),
    (r"shrink", "shrinking loses what is behind the new end; if you mean it: --shrink"),
    (r"No space left", "make room on the host's file system"),
    (
        r"[Uu]nknown option|[Ii]nvalid parameter",
        "`qemu-img create -f FORMAT -o help` lists the options",
    ),
    (r"Permission denied", "this user may not do that"),
)


def run_create(given: argparse.Namespace) -> int:
    """Make an image."""
    _refuse_existing(given)
    arguments = ["-f", _name(given.format)]
    arguments += _option("-o", given.options) + _option("--object", given.object)
    if given.backing:
        if not given.backing_format:
            raise UserError(
                f"the format of {given.backing} is not given",
                "say it with -F: it is never guessed, because a guest may have written the file",
            )
        arguments += ["-b", given.backing, "-F", _name(given.backing_format)]
    return _qemu_img("create", [*arguments, "--", given.file, *_option(None, given.size)])


def run_convert(given: argparse.Namespace) -> int:
    """Copy an image into another format."""
    _refuse_in_use(given.source, read_only=True)
    if os.path.exists(given.file) and os.path.samefile(given.source, given.file):
        raise UserError(f"{given.file} is source and target", "name another file for the result")
    _refuse_existing(given)
    arguments = ["-f", _name(given.source_format), "-O", _name(given.format), *_progress()]
    arguments += ["-c"] if given.compress else []
    arguments += _option("-o", given.options) + _option("--object", given.object)
    return _qemu_img("convert", [*arguments, "--", given.source, given.file])


def run_info(given: argparse.Namespace) -> int:
    """Describe an image; also one that is in use, which changes nothing in it."""
    arguments = ["-U", *(_option("-f", _name(given.format) if given.format else None))]
    arguments += ["--backing-chain"] if given.backing_chain else []
    arguments += ["--output=json"] if given.json else []
    return _qemu_img("info", [*arguments, "--", given.file])


def run_resize(given: argparse.Namespace) -> int:
    """Make an image longer or shorter."""
    _refuse_in_use(given.file, read_only=False)
    arguments = ["-f", _name(given.format), *(["--shrink"] if given.shrink else [])]
    return _qemu_img("resize", [*arguments, "--", given.file, given.size])


def run_check(given: argparse.Namespace) -> int:
    """Look whether an image is whole; exit code 2: it is damaged, 3: space in it is lost."""
    _refuse_in_use(given.file, read_only=not given.repair)
    arguments = ["-f", _name(given.format), *_progress(), *_option("-r", given.repair)]
    return _qemu_img("check", [*arguments, "--", given.file], fine=_FOUND)


def _name(image_format: str) -> str:
    return _QEMU_NAMES.get(image_format, image_format)


def _option(option: str | None, value: str | None) -> list[str]:
    if value is None:
        return []
    return [value] if option is None else [option, value]


def _progress() -> list[str]:
    return ["-p"] if sys.stdout.isatty() else []


def _refuse_existing(given: argparse.Namespace) -> None:
    """Files only: an image is written to a device in its place."""
    if os.path.isfile(given.file) and not given.force:
        _refuse_in_use(given.file, read_only=False)
        raise UserError(f"{given.file} exists", "name another file, or overwrite it with --force")
    _refuse_in_use(given.file, read_only=False)


def _refuse_in_use(file: str, *, read_only: bool) -> None:
    """Raises: UserError that names who has the image. What is not there is qemu-img's to say."""
    from pyxen.backend.blk.storage.locks import Locked, lock_image

    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return
    try:
        lock_image(fd, read_only=read_only)
    except Locked:
        raise _in_use(file) from None
    except OSError:
        return  # a file system without locks, or no file at all
    finally:
        os.close(fd)


def _in_use(file: str) -> UserError:
    from pyxen.backend.blk.storage.locks import who_has

    return UserError(
        f"{file} is in use by {who_has(Path(file), find_paths())}",
        "an image that is in use must not change: shut the domain down first",
    )


def _qemu_img(command: str, arguments: list[str], fine: tuple[int, ...] = ()) -> int:
    tool = shutil.which("qemu-img")
    if tool is None:
        raise UserError("qemu-img is not installed", "as root: apt install qemu-utils")
    sys.stdout.flush()
    done = subprocess.run([tool, command, *arguments], stderr=subprocess.PIPE, text=True)
    said = re.sub(r"^qemu-img: ", "", done.stderr.strip(), flags=re.MULTILINE)
    if done.returncode == 0 or done.returncode in fine:
        if said:
            print(said, file=sys.stderr)
        return done.returncode
    if "Failed to get " in said and '" lock' in said:
        named = re.search(r"using the image \[(.*)\]", said)
        raise _in_use(named[1] if named else arguments[arguments.index("--") + 1])
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said)), "")
    raise UserError(said or f"qemu-img ended with exit code {done.returncode}", hint)


# --- the command line -----------------------------------------------------------------------------


def add_commands(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to `pyxen image`."""
    create = _add(
        kinds,
        "create",
        "make an image",
        "pyxen image create disk.raw 10G\n"
        "pyxen image create -f qcow2 disk.qcow2 10G\n"
        "pyxen image create -f qcow2 -b base.raw -F raw disk.qcow2    what differs from base.raw\n"
        "pyxen image create -f qcow2 -o cluster_size=128k,preallocation=metadata disk.qcow2 10G",
    )
    _add_format(create, "-f", "format", "its format (default: raw)")
    create.add_argument("-b", dest="backing", metavar="BASE", help="the image that it is based on")
    _add_format(create, "-F", "backing_format", "the format of BASE", default=None)
    _add_options(create)
    create.add_argument("file", metavar="FILE")
    create.add_argument("size", metavar="SIZE", nargs="?", help="10G; without: that of BASE")

    convert = _add(
        kinds,
        "convert",
        "copy an image into another format",
        "pyxen image convert -f vmdk -O qcow2 appliance.vmdk disk.qcow2\n"
        "pyxen image convert -f qcow2 -O qcow2 -c disk.qcow2 small.qcow2    compressed",
    )
    _add_format(convert, "-f", "source_format", "the format of SOURCE (default: raw)")
    _add_format(convert, "-O", "format", "the format of FILE (default: raw)")
    convert.add_argument("-c", dest="compress", action="store_true", help="compress")
    _add_options(convert)
    convert.add_argument("source", metavar="SOURCE")
    convert.add_argument("file", metavar="FILE")

    info = _add(kinds, "info", "describe an image", "pyxen image info --backing-chain disk.qcow2")
    _add_format(info, "-f", "format", "its format (default: what it looks like)", default=None)
    info.add_argument("--backing-chain", action="store_true", help="and those it is based on")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.add_argument("file", metavar="FILE")

    resize = _add(
        kinds,
        "resize",
        "make an image longer or shorter",
        "pyxen image resize disk.raw +5G\npyxen image resize -f qcow2 --shrink disk.qcow2 5G",
    )
    _add_format(resize, "-f", "format", "its format (default: raw)")
    resize.add_argument("--shrink", action="store_true", help="lose what is behind the new end")
    resize.add_argument("file", metavar="FILE")
    resize.add_argument("size", metavar="SIZE", help="10G, or +1G, or -1G")

    check = _add(
        kinds,
        "check",
        "look whether an image is whole (exit code 2: damaged, 3: space lost)",
        "pyxen image check -f qcow2 disk.qcow2\npyxen image check -f qcow2 -r all disk.qcow2",
    )
    _add_format(check, "-f", "format", "its format (default: qcow2)", default="qcow2")
    check.add_argument("-r", dest="repair", choices=("leaks", "all"), help="repair it")
    check.add_argument("file", metavar="FILE")


def _add(
    kinds: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, examples: str
) -> argparse.ArgumentParser:
    command = kinds.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"FORMAT is one of {', '.join(FORMATS)}.\n\nexamples:\n"
        + "\n".join(f"  {line}" for line in examples.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(module="disk_image", run=f"run_{name}")
    return command


def _add_format(
    command: argparse.ArgumentParser, option: str, name: str, text: str, default: str | None = "raw"
) -> None:
    command.add_argument(
        option, dest=name, choices=FORMATS, metavar="FORMAT", default=default, help=text
    )


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o", dest="options", metavar="OPTIONS", help="of the format: NAME=VALUE,… as qemu-img -o"
    )
    command.add_argument(
        "--object", metavar="OBJECT", help="of QEMU, as secret,id=s,file=PATH for encryption"
    )
    command.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
