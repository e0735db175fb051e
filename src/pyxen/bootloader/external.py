"""Run a boot loader that is a program of its own, as libxl does.

    PROGRAM [--kernel=K] [--ramdisk=R] [--args=A] --output=FILE --output-format=simple0
            --output-directory=DIRECTORY [bootloader_args…] DISK

Its terminal is a pty, TERM is vt100. FILE then holds `kernel PATH`, `ramdisk PATH`, `args TEXT`,
each ended by a NUL.

Source: tools/libs/light/libxl_bootloader.c of Xen 4.17.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyxen.bootloader.pygrub import BootFiles
from pyxen.bootloader.reader import FAILED
from pyxen.errors import UserError

LIBEXEC = ("/usr/lib/xen-4.17/bin", "/usr/lib/xen/bin", "/usr/libexec/xen/bin")
"""Where a name without a slash is looked up before PATH."""
OUTPUT_BYTES_MAX = 1 << 20
ITEM_BYTES_MAX = 8192
UNATTENDED_SECONDS = 600.0
ESCAPE = 0x1D
"""Ctrl-] on the terminal gives up."""
LOG_TAIL_CHARS = 1500


@dataclass(frozen=True)
class Call:
    """What a program is called with."""

    program: str
    arguments: list[str]
    disk: str
    kernel: str | None
    ramdisk: str | None
    args: str | None


def run_external(
    call: Call, directory: Path, log: Path, *, keys: int | None, screen: int | None
) -> BootFiles:
    """Run the program to its end and read what it found. UserError (exit code 3) if it failed.

    Args: directory: a private one, for the output; log: where the terminal's content is kept.
    """
    output, files = directory / "bootloader.out", directory / "bootloader.d"
    output.touch(mode=0o600)
    files.mkdir(mode=0o700)
    code = _run(_command(call, output, files), log, keys, screen)
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        message = f"bootloader failed ({how}) - consult logfile {log}"
        raise UserError(message, _tail(log), FAILED)
    found = parse_output(output)
    if "kernel" not in found:
        raise UserError(f"the bootloader {call.program} named no kernel", _tail(log), FAILED)
    return BootFiles(found["kernel"], found.get("ramdisk"), found.get("args", ""))


def find_program(name: str) -> str:
    """The program's path. UserError (exit code 3) if there is none."""
    candidates = [name] if "/" in name else [f"{place}/{name}" for place in LIBEXEC]
    for path in candidates:
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return os.path.abspath(path)
    found = None if "/" in name else shutil.which(name)
    if found is None:
        raise UserError(
            f"the bootloader {name} is not there, or is no program",
            'bootloader = "pygrub" is built in',
            FAILED,
        )
    return found


def parse_output(output: Path) -> dict[str, str]:
    """The items of a result in the format simple0; unknown ones are left out, as in libxl."""
    try:
        with output.open("rb") as stream:
            data = stream.read(OUTPUT_BYTES_MAX)
    except OSError as error:
        raise UserError(f"the bootloader's output is gone: {error.strerror}", "", FAILED) from error
    found = {}
    for item in data.split(b"\0"):
        name, _, value = item.decode(errors="surrogateescape").strip().partition(" ")
        if name in ("kernel", "ramdisk", "args") and len(item) < ITEM_BYTES_MAX:
            found[name] = value.strip()
    return found


def _command(call: Call, output: Path, files: Path) -> list[str]:
    command = [find_program(call.program)]
    for name, value in (("kernel", call.kernel), ("ramdisk", call.ramdisk), ("args", call.args)):
        if value:
            command.append(f"--{name}={value}")
    command += [f"--output={output}", "--output-format=simple0", f"--output-directory={files}"]
    return [*command, *call.arguments, call.disk]


def _run(command: list[str], log: Path, keys: int | None, screen: int | None) -> int:
    master, slave = os.openpty()
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, master)
        kept = stack.enter_context(log.open("wb"))
        try:
            tty.setraw(master)
            environment = {"TERM": "vt100", "PATH": os.environ.get("PATH", os.defpath)}
            process = subprocess.Popen(
                command,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(f"{command[0]} cannot be run: {error.strerror}", "", FAILED) from error
        finally:
            os.close(slave)
        stack.callback(_end, process)
        stack.enter_context(_raw(keys))
        limit = UNATTENDED_SECONDS if keys is None else float("inf")
        _relay(process, master, kept.fileno(), keys, screen, time.monotonic() + limit)
        return process.wait()


def _relay(
    process: subprocess.Popen[bytes],
    master: int,
    log: int,
    keys: int | None,
    screen: int | None,
    deadline: float,
) -> None:
    """Copy between the pty and the terminal until the program is done."""
    watched = [master] if keys is None else [master, keys]
    while process.poll() is None or select.select([master], [], [], 0)[0]:
        if time.monotonic() > deadline:
            raise UserError("the bootloader does not come to an end", "", FAILED)
        ready = select.select(watched, [], [], 0.1)[0]
        if master in ready:
            try:
                data = os.read(master, 4096)
            except OSError:  # EIO: the other end is closed
                break
            os.write(log, data)
            if screen is not None:
                os.write(screen, data)
        if keys is not None and keys in ready:
            typed = os.read(keys, 4096)
            if not typed or ESCAPE in typed:
                raise UserError("the bootloader was left", "", FAILED)
            os.write(master, typed)


@contextlib.contextmanager
def _raw(keys: int | None) -> Iterator[None]:
    if keys is None or not os.isatty(keys):
        yield
        return
    before = termios.tcgetattr(keys)
    try:
        tty.setraw(keys)
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(log: Path) -> str:
    try:
        text = log.read_bytes()[-4 * LOG_TAIL_CHARS :].decode(errors="replace")
    except OSError:
        return ""
    shown = "".join(c for c in text if c.isprintable() or c == "\n").strip()
    return shown[-LOG_TAIL_CHARS:]
