"""pygrub: find a kernel in an image, and copy it out.

The options are those of Xen's pygrub 4.17.
"""

from __future__ import annotations

import getopt
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyxen.bootloader.entry import Entry, File
from pyxen.bootloader.export import open_disk
from pyxen.bootloader.menu import choose
from pyxen.bootloader.reader import FAILED, FoundMenu, ImageReader
from pyxen.errors import UserError

KERNEL_BYTES_MAX = 512 << 20
RAMDISK_BYTES_MAX = 2 << 30
USAGE = (
    "Usage: pygrub [-q|--quiet] [-i|--interactive] [-l|--list-entries] [-n|--not-really] "
    "[--output=] [--kernel=] [--ramdisk=] [--args=] [--entry=] [--output-directory=] "
    "[--output-format=sxp|simple|simple0] [--offset=] [--isconfig] [--format=] <image>"
)
_SHORT = "qilnh"
_LONG = (
    *("quiet", "interactive", "list-entries", "not-really", "help", "isconfig", "debug"),
    *("output=", "output-format=", "output-directory=", "offset=", "entry=", "kernel="),
    *("ramdisk=", "args=", "format="),
)
FORMATS = ("sxp", "simple", "simple0")


@dataclass(frozen=True)
class Options:
    """What pygrub is asked for. Paths of kernel and ramdisk are the guest's."""

    image: str
    format: str = "raw"
    interactive: bool = True
    list_entries: bool = False
    not_really: bool = False
    is_config: bool = False
    debug: bool = False
    output: str | None = None
    output_format: str = "sxp"
    output_directory: str | None = None
    entry: str | None = None
    offset: int | None = None
    kernel: str | None = None
    ramdisk: str | None = None
    args: str = ""


@dataclass(frozen=True)
class BootFiles:
    """What to boot: copies of kernel and ramdisk, and the kernel's arguments."""

    kernel: str
    ramdisk: str | None
    args: str


def parse_options(words: Sequence[str]) -> Options:
    """pygrub's command line. UserError (exit code 1) if it is none; `-h` is getopt's business."""
    try:
        given, arguments = getopt.gnu_getopt(list(words), _SHORT, _LONG)
    except getopt.GetoptError as error:
        raise UserError(f"pygrub: {error}", USAGE) from error
    if len(arguments) != 1:
        raise UserError("pygrub: name one image", USAGE)
    options = Options(arguments[0])
    for name, value in given:
        options = _with(options, name.lstrip("-"), value)
    return options


def _with(options: Options, name: str, value: str) -> Options:
    match name:
        case "q" | "quiet":
            return replace(options, interactive=False)
        case "i" | "interactive":
            return replace(options, interactive=True)
        case "l" | "list-entries":
            return replace(options, list_entries=True)
        case "n" | "not-really":
            return replace(options, not_really=True)
        case "isconfig":
            return replace(options, is_config=True)
        case "debug":
            return replace(options, debug=True)
        case "entry":
            return replace(options, entry=value, interactive=False)
        case "offset":
            if not (value.isascii() and value.isdigit()):
                raise UserError(f"pygrub: the offset {value!r} is no number of bytes", USAGE)
            return replace(options, offset=int(value))
        case "output-format" if value not in FORMATS:
            raise UserError(f"pygrub: unknown output format {value}", USAGE)
        case "output-directory" if not os.path.isdir(value):
            raise UserError(f"pygrub: {value} is not an existing directory", USAGE)
        case "h" | "help":
            raise UserError("pygrub finds the kernel in a guest's image", USAGE, 0)
        case "output":
            return replace(options, output=value)
        case "output-format":
            return replace(options, output_format=value)
        case "output-directory":
            return replace(options, output_directory=value)
        case "kernel":
            return replace(options, kernel=value)
        case "ramdisk":
            return replace(options, ramdisk=value)
        case "args":
            return replace(options, args=value)
    return replace(options, format=value)


def find(options: Options, *, keys: int | None = None, screen: int | None = None) -> BootFiles:
    """Choose an entry and copy its files into `output_directory`; nothing is left on failure.

    Args:   keys, screen: a terminal for the menu; without it the default entry is taken.
    Raises: UserError.
    """
    with (
        open_disk(options.image, options.format) as source,
        ImageReader(source, options.offset) as reader,
    ):
        if options.kernel:
            ramdisks = [File(-1, options.ramdisk)] if options.ramdisk else []
            entry = Entry("", File(-1, options.kernel), options.args, ramdisks)
        else:
            entry = _overridden(_choose(reader, options, keys, screen), options)
        return _look(reader, entry) if options.not_really else _copy(reader, entry, options)


def list_entries(options: Options) -> str:
    """What `-l` prints: the entries as Xen's pygrub shows them."""
    lines = []
    for entry in read_menu(options).menu.entries:
        if entry.kernel is None:
            continue
        lines += [
            f"title: {entry.title}",
            f"  root: {None if entry.kernel.volume < 0 else entry.kernel.volume}",
            f"  kernel: {entry.kernel.path}",
            f"  args: {entry.args or None}",
            f"  initrd: {' '.join(file.path for file in entry.ramdisks) or None}",
        ]
    return "\n".join(lines)


def read_menu(options: Options) -> FoundMenu:
    """The menu that an image has. UserError if it has none."""
    with (
        open_disk(options.image, options.format) as source,
        ImageReader(source, options.offset) as reader,
    ):
        return reader.menu(config=options.is_config)


def format_result(files: BootFiles, output_format: str) -> bytes:
    """The result as a tool stack reads it. UserError if the format cannot hold it."""
    pairs = [("kernel", files.kernel), ("ramdisk", files.ramdisk), ("args", files.args)]
    if output_format == "sxp":
        head, *rest = [f"({name} {value!r})" for name, value in pairs if value]
        return f"linux {head}{''.join(rest)}".encode()
    separator = "\n" if output_format == "simple" else "\0"
    if any(value and separator in value for _, value in pairs):
        raise UserError("pygrub: a value contains the format's delimiter", "use simple0")
    text = "".join(f"{name} {value}{separator}" for name, value in pairs if value)
    return (text + separator).encode()


def chosen_entry(options: Options, found: FoundMenu) -> Entry:
    """The entry that is booted when nobody chooses: `--entry`, else the default or its fallback."""
    entries = found.menu.entries
    if options.entry is not None:
        index = found.menu.find(options.entry)
        if index is None:
            known = "\n".join(f"{i}  {entry.title}" for i, entry in enumerate(entries))
            raise UserError(f"there is no boot entry {options.entry!r}", known, FAILED)
        return entries[index]
    places: list[int] = [found.default, *found.fallback, *range(len(entries))]
    for place in places:
        if entries[place].kernel is not None:
            return entries[place]
    raise UserError("no entry of the boot menu starts a kernel", "", FAILED)


def _choose(reader: ImageReader, options: Options, keys: int | None, screen: int | None) -> Entry:
    found = reader.menu()
    if options.debug:
        print("\n".join([f"using {found.menu.source}", *found.menu.notes]), file=sys.stderr)
    if not options.interactive or keys is None or screen is None:
        return chosen_entry(options, found)
    default = found.menu.entries.index(chosen_entry(options, found))
    chosen = choose(found.menu, default, keys, screen)
    if chosen is None:
        raise UserError("no boot entry was chosen", "", FAILED)
    entry = found.menu.entries[chosen.index]
    if chosen.args is not None:
        entry = replace(entry, args=chosen.args)
    return entry


def _overridden(entry: Entry, options: Options) -> Entry:
    """With the configuration's own arguments behind those of the menu, as pygrub has it."""
    if entry.kernel is None:
        raise UserError(f"{entry.title!r} cannot be started: {entry.note}", "", FAILED)
    ramdisks = [File(-1, options.ramdisk)] if options.ramdisk else entry.ramdisks
    args = f"{entry.args} {options.args}".strip() if options.args else entry.args
    return replace(entry, args=args, ramdisks=ramdisks)


def _look(reader: ImageReader, entry: Entry) -> BootFiles:
    assert entry.kernel is not None
    for file in (entry.kernel, *entry.ramdisks):
        reader.look(file)
    ramdisk = " ".join(file.path for file in entry.ramdisks)
    shown = f"<ramdisk:{ramdisk}>" if ramdisk else None
    return BootFiles(f"<kernel:{entry.kernel.path}>", shown, entry.args)


def _copy(reader: ImageReader, entry: Entry, options: Options) -> BootFiles:
    assert entry.kernel is not None
    directory = options.output_directory
    made: list[str] = []
    try:
        kernel = _copy_to(reader, "kernel", [entry.kernel], KERNEL_BYTES_MAX, directory, made)
        ramdisk = None
        if entry.ramdisks:
            limit = RAMDISK_BYTES_MAX
            ramdisk = _copy_to(reader, "ramdisk", entry.ramdisks, limit, directory, made)
    except BaseException:
        for path in made:
            Path(path).unlink(missing_ok=True)
        raise
    return BootFiles(kernel, ramdisk, entry.args)


def _copy_to(
    reader: ImageReader,
    kind: str,
    files: list[File],
    limit: int,
    directory: str | None,
    made: list[str],
) -> str:
    """Copies of files, one after the other as boot loaders load several ramdisks; its path."""
    fd, path = tempfile.mkstemp(prefix=f"boot_{kind}.", dir=directory)
    made.append(path)
    with os.fdopen(fd, "wb", buffering=0) as copy:
        for file in files:
            size = reader.copy(file, fd, limit)
            limit -= size
            copy.write(bytes(-size % 4))
    return path
