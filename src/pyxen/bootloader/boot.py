"""A domain's boot loader, from its configuration: the built-in pygrub, or a program.

xl runs it when it creates a domain, for it has the user's terminal; xend runs it when it starts a
domain again, so that a kernel which the guest has upgraded is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyxen.bootloader.external import Call, run_external
from pyxen.bootloader.pygrub import BootFiles, find, parse_options
from pyxen.bootloader.reader import FAILED
from pyxen.errors import UserError

PREFIX = "bootloader."
"""How the private directories in the run directory are called."""
BOOTLOADER_LOG = "bootloader.log"
JsonObject = dict[str, Any]


def bootloader_of(config: JsonObject) -> str | None:
    """The boot loader that a configuration (libxl's JSON) names."""
    b_info = config.get("b_info")
    name = b_info.get("bootloader") if isinstance(b_info, dict) else None
    return name if isinstance(name, str) and name else None


@contextlib.contextmanager
def booted(
    config: JsonObject,
    run: Path,
    log: Path,
    *,
    keys: int | None = None,
    screen: int | None = None,
) -> Iterator[BootFiles]:
    """Run the domain's boot loader; the files it found are there as long as the context lasts.

    Args:   config: libxl's JSON, with a boot loader; run: the run directory;
            log: where an external program's terminal is kept;
            keys, screen: a terminal, if there is a person to choose.
    Raises: UserError (exit code 3).
    """
    with _private_directory(run) as directory:
        name = bootloader_of(config)
        assert name is not None
        try:
            if is_pygrub(name):
                yield _pygrub(config, directory, keys, screen)
            else:
                yield _external(name, config, directory, log, keys, screen)
        except UserError as error:
            code = error.exit_code if error.exit_code == 0 else FAILED
            raise UserError(error.message, error.hint, code) from error


def is_pygrub(name: str) -> bool:
    """Whether the built-in one is meant: Xen's own needs Xen, wherever it is installed."""
    return os.path.basename(name) == "pygrub"


def _pygrub(config: JsonObject, directory: Path, keys: int | None, screen: int | None) -> BootFiles:
    b_info = config["b_info"]
    path, format_ = boot_disk(config)
    options = parse_options([*_arguments(b_info), "--", path])
    options = replace(
        options,
        format=format_,
        kernel=b_info.get("kernel") or options.kernel,
        ramdisk=b_info.get("ramdisk") or options.ramdisk,
        args=b_info.get("cmdline") or options.args,
        output_directory=str(directory),
        not_really=False,
    )
    return find(options, keys=keys, screen=screen)


def _external(
    name: str,
    config: JsonObject,
    directory: Path,
    log: Path,
    keys: int | None,
    screen: int | None,
) -> BootFiles:
    b_info = config["b_info"]
    path, format_ = boot_disk(config)
    if format_ != "raw":
        hint = 'bootloader = "pygrub" reads other formats, too'
        raise UserError(f"the bootloader {name} can read raw disks only", hint, FAILED)
    call = Call(
        name,
        _arguments(b_info),
        path,
        b_info.get("kernel"),
        b_info.get("ramdisk"),
        b_info.get("cmdline"),
    )
    return run_external(call, directory, log, keys=keys, screen=screen)


def boot_disk(config: JsonObject) -> tuple[str, str]:
    """(path, format) of the first disk. UserError (exit code 3) if there is none to boot from."""
    disks = config.get("disks")
    disk = disks[0] if isinstance(disks, list) and disks else None
    path = disk.get("pdev_path") if isinstance(disk, dict) else None
    if not isinstance(path, str) or not path:
        hint = 'add `disk = ["/path/to/image,raw,xvda,rw"]`'
        raise UserError("cannot run bootloader with no boot disk", hint, FAILED)
    return path, str(disk.get("format") or "raw") if isinstance(disk, dict) else "raw"


def _arguments(b_info: JsonObject) -> list[str]:
    words = b_info.get("bootloader_args", [])
    return [str(word) for word in words] if isinstance(words, list) else []


@contextlib.contextmanager
def _private_directory(run: Path) -> Iterator[Path]:
    """A directory that is locked while it is used; those that a killed process left are removed."""
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory, lock = _make_locked(run)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _make_locked(run: Path) -> tuple[Path, int]:
    """A new directory and the descriptor that locks it; nobody sees it unlocked."""
    whole = os.open(run, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(whole, fcntl.LOCK_EX)
        for old in run.glob(f"{PREFIX}*"):
            _remove_unused(old)
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=run))
        lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return directory, lock
    finally:
        os.close(whole)


def _remove_unused(directory: Path) -> None:
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
