"""QEMU's storage daemon: one process for each disk whose format is not raw.

It gets a socket that nobody else can reach, listens for us alone, and has no terminal and no
privileges to gain. It ends with its disk, and with the process that started it however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from pyxen.errors import UserError
from pyxen.paths import connect_unix, listen_unix

DRIVERS: Final = {
    "raw": "raw",
    "qcow2": "qcow2",
    "qcow": "qcow",
    "vmdk": "vmdk",
    "vhd": "vpc",
    "vpc": "vpc",
    "vdi": "vdi",
    "qed": "qed",
}
"""QEMU's names of the formats."""

DISCARDS: Final = ("raw", "qcow2")
"""Formats in which QEMU makes room by discards; in the others it ignores them."""

_NBD_PORT: Final = "10809"
_END_S: Final = 10.0
"""How long it may take to write what it has, when it is told to end."""
_WORDS_S: Final = 1.0
_WORDS_BYTES: Final = 65536

_LAUNCH: Final = (
    '[ "$PPID" = "$1" ] || exit 1; shift; '
    'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&0 </dev/null'
)
"""Run by sh between our fork and QEMU: the socket becomes file descriptor 3, as systemd hands it
over. If we died before setpriv asked for a signal at our death, sh has another parent by now."""
_SETPRIV: Final = ("setpriv", "--pdeathsig", "TERM", "--no-new-privs")

_OWN_COMMAND: Final = r"^qemu-[a-z-]+: (--export .*writable=(on|off): |.*\}'?: )?"

Options = dict[str, Any]


def is_remote(target: str) -> bool:
    """Whether a target is an NBD server and not a file."""
    return re.match(r"nbd(\+unix|\+tcp)?:", target) is not None


def node(
    target: str, image_format: str, *, read_only: bool, direct: bool, discard: bool, share: bool
) -> Options:
    """What QEMU calls a block node, for one image.

    direct: bypass the page cache. share: take no lock. Raises: UserError for a bad NBD address.
    Source: QEMU, qapi/block-core.json, BlockdevOptions.
    """
    common: Options = {
        "read-only": read_only,
        "discard": "unmap" if discard else "ignore",
        "cache": {"direct": direct, "no-flush": False},
    }
    if is_remote(target):
        below: Options = {"driver": "nbd"} | _nbd_address(target)
    else:
        is_device = stat.S_ISBLK(os.stat(target).st_mode)
        below = {"driver": "host_device" if is_device else "file", "filename": target}
        if share:
            below["locking"] = "off"
    return {"driver": DRIVERS[image_format], "file": below | common} | common


def _nbd_address(target: str) -> Options:
    """nbd://HOST[:PORT][/EXPORT], nbd+unix:///EXPORT?socket=PATH, QEMU's older nbd:HOST:PORT."""
    old = re.fullmatch(r"nbd:(?:unix:(?P<path>[^:]+)|(?P<host>[^/:]+):(?P<port>\d+))"
                       r"(?::exportname=(?P<export>.*))?", target)  # fmt: skip
    if old:
        path, host, port, export = old["path"], old["host"], old["port"], old["export"]
    else:
        url = urlsplit(target)
        export = unquote(url.path.removeprefix("/"))
        path = parse_qs(url.query).get("socket", [None])[0] if url.scheme == "nbd+unix" else None
        host = url.hostname
        try:
            port = str(url.port or _NBD_PORT)
        except ValueError:
            port = ""
    if path:
        server = {"type": "unix", "path": path}
    elif host and port:
        server = {"type": "inet", "host": host, "port": port}
    else:
        raise UserError(
            f"disk {target}: not the address of an NBD server",
            "write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=/PATH",
        )
    return {"server": server} | ({"export": export} if export else {})


class ImageServer:
    """A storage daemon that serves one image (storage/nbd.py: Server)."""

    def __init__(self, options: Options, run_dir: Path, name: str) -> None:
        """options: see `node`. run_dir: private to this user. name: of the disk, for its socket.

        Raises: UserError if QEMU is not installed.
        """
        self._command = _command(options)
        self._socket = run_dir / f"{name}.nbd"
        self._process: subprocess.Popen[bytes] | None = None
        self._words = ""

    def connect(self) -> socket.socket:
        """Start the daemon, again if need be; it answers when it has opened the image.

        From a thread that lives as long as the daemon shall. Raises: UserError, OSError.
        """
        self.stop()
        try:
            with listen_unix(self._socket, 1) as listener:
                ours = connect_unix(self._socket)
                try:
                    self._process = self._spawn(listener)
                except BaseException:
                    ours.close()
                    raise
            return ours
        finally:
            self._socket.unlink(missing_ok=True)

    def last_words(self) -> str:
        """What it said, else how it ended; waits a second for its end."""
        process = self._process
        if process is None:
            return self._words
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_WORDS_S)
        self._listen(process)
        return self._words

    @property
    def pid(self) -> int | None:
        """Of the daemon, while there is one."""
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """Let it write what it has and end; after a while, without."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _spawn(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        # A pipe that nobody reads until it ends: what does not fit is lost, but blocks nothing.
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            process = subprocess.Popen(
                [*_SETPRIV, "sh", "-c", _LAUNCH, "sh", str(os.getpid()), *self._command],
                stdin=listener.fileno(),
                stdout=writer,
                stderr=writer,
                start_new_session=True,
                cwd="/",
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        process.stdout = open(reader, "rb", buffering=0)  # noqa: SIM115 - closed by stop
        return process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        said = process.stdout.read(_WORDS_BYTES) if process.stdout is not None else b""
        if said:
            self._words = _essence(said.decode(errors="replace"))
        elif not self._words and process.returncode is not None:
            code = process.returncode
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._words = f"the storage daemon ended with {how}"


def chain(path: str, image_format: str) -> list[str]:
    """An image and those that it is based on, as far as that can be found out."""
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, KeyError):
        said = subprocess.run(
            [*command, "-f", DRIVERS[image_format], path],
            check=True,
            capture_output=True,
            timeout=_END_S,
        ).stdout
        return [str(image["filename"]) for image in json.loads(said)]
    return [path]


def _command(options: Options) -> list[str]:
    """Raises: UserError if QEMU is not installed."""
    read_only = bool(options["read-only"])
    daemon = shutil.which("qemu-storage-daemon")
    if daemon:
        writable = "off" if read_only else "on"
        return [
            daemon,
            "--blockdev",
            json.dumps(options | {"node-name": "disk"}),
            "--nbd-server",
            "addr.type=fd,addr.str=3",
            "--export",
            f"type=nbd,id=disk,node-name=disk,name=,writable={writable}",
        ]
    server = shutil.which("qemu-nbd")
    if server:
        mode = ["--read-only"] if read_only else []
        direct = options["cache"]["direct"]
        return [
            server,
            "--persistent",
            "--cache=none" if direct else "--cache=writeback",
            f"--discard={options['discard']}",
            "--export-name=",
            *mode,
            f"json:{json.dumps(options)}",
        ]
    raise UserError(
        "neither qemu-storage-daemon nor qemu-nbd is installed; images that are not raw need one",
        "as root: apt install qemu-system-common (or qemu-utils)",
    )


def _essence(said: str) -> str:
    """What QEMU said, without its own command line."""
    lines = [line for line in said.strip().splitlines() if line]
    return "\n".join(re.sub(_OWN_COMMAND, "", line) for line in lines)
