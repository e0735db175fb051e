"""`pyxen pygrub [options] IMAGE`: the built-in boot loader as a program, with pygrub's options."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace

from pyxen.bootloader.pygrub import (
    BootFiles,
    Options,
    chosen_entry,
    find,
    format_result,
    list_entries,
    parse_options,
    read_menu,
)
from pyxen.errors import UserError


def run(given: argparse.Namespace) -> int:
    """Exit codes: 0, 1 for every failure."""
    try:
        options = parse_options(given.words)
        if options.is_config:
            print(_of_config(options))
        elif options.list_entries:
            print(list_entries(options))
        else:
            _write(options, _find(options))
    except UserError as error:
        raise UserError(error.message, error.hint, min(error.exit_code, 1)) from error
    return 0


def _of_config(options: Options) -> str:
    """What --isconfig prints, of the entry that would be booted."""
    entry = chosen_entry(options, read_menu(options))
    assert entry.kernel is not None
    ramdisk = " ".join(file.path for file in entry.ramdisks)
    lines = [f"  kernel: {entry.kernel.path}", f"  initrd: {ramdisk}" if ramdisk else ""]
    lines.append(f"  args: {entry.args} {options.args}".rstrip())
    return "\n".join(line for line in lines if line)


def _find(options: Options) -> BootFiles:
    """The menu is on the terminal, wherever the result goes."""
    if options.output_directory is None and not options.not_really:
        options = replace(options, output_directory=tempfile.mkdtemp(prefix="pygrub-"))
    screen = next((fd for fd in (1, 2) if os.isatty(fd)), None)
    return find(options, keys=0 if os.isatty(0) else None, screen=screen)


def _write(options: Options, files: BootFiles) -> None:
    result = format_result(files, options.output_format)
    if options.output in (None, "-"):
        sys.stdout.buffer.write(result)
        sys.stdout.buffer.flush()
        return
    try:
        with open(str(options.output), "wb") as output:
            output.write(result)
    except OSError as error:
        raise UserError(f"{options.output} cannot be written: {error.strerror}") from error
