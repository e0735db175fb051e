"""Open a disk for reading: raw ones as a file, other formats through qemu-nbd.

Source: the NBD protocol, doc/proto.md of NetworkBlockDevice/nbd: fixed newstyle negotiation.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyxen.errors import UserError

NBD_MAGIC = b"NBDMAGICIHAVEOPT"
NBD_FLAGS = 1 | 2
"""Fixed newstyle, no zeroes: a server's handshake flags, and a client's."""
NBD_OPT_EXPORT_NAME = 1
QEMU_FORMATS = {"qcow": "qcow", "qcow2": "qcow2", "qed": "qed", "vhd": "vpc"}
SERVER_SECONDS = 20.0


@dataclass(frozen=True)
class Source:
    """An open image: a worker's arguments KIND FD SIZE."""

    kind: str
    fd: int
    size: int


@contextlib.contextmanager
def open_disk(path: str, format_: str = "raw") -> Iterator[Source]:
    """An image, open for reading for a while. UserError if it cannot be opened."""
    if format_ in ("raw", ""):
        with _raw(path) as source:
            yield source
    elif format_ in QEMU_FORMATS:
        with _exported(path, QEMU_FORMATS[format_]) as source:
            yield source
    else:
        raise UserError(f"there is no boot disk in {path!r}: its format is {format_}")


@contextlib.contextmanager
def _raw(path: str) -> Iterator[Source]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"the disk {path} cannot be opened: {error.strerror}") from error
    try:
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
        except OSError as error:
            raise UserError(f"{path} is neither a file nor a block device") from error
        yield Source("raw", fd, size)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _exported(path: str, driver: str) -> Iterator[Source]:
    if not os.access(path, os.R_OK):
        raise UserError(f"the disk {path} cannot be opened", "is it there, and may you read it?")
    program = shutil.which("qemu-nbd")
    if program is None:
        hint = "install qemu-utils, or convert the image with qemu-img to raw"
        raise UserError(f"qemu-nbd is needed to read {path} and is not installed", hint)
    with tempfile.TemporaryDirectory(prefix="pyxen-nbd-") as directory:
        where = Path(directory) / "nbd.sock"
        name = os.path.abspath(path).replace(",", ",,")
        options = f"driver={driver},file.driver=file,file.filename={name},force-share=on"
        server = subprocess.Popen(
            [program, "--read-only", f"--socket={where}", "--image-opts", options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            with _connected(server, where) as sock:
                yield Source("nbd", sock.fileno(), _negotiate(sock))
        except OSError as error:
            raise UserError(f"qemu-nbd does not serve {path}: {error}", _said(server)) from error
        finally:
            server.kill()
            server.wait()
            if server.stderr is not None:
                server.stderr.close()


def _connected(server: subprocess.Popen[bytes], where: Path) -> socket.socket:
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError("qemu-nbd cannot read the image", _said(server))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(SERVER_SECONDS)
        try:
            sock.connect(str(where))
        except OSError:
            sock.close()
            time.sleep(0.02)
        else:
            return sock
    raise UserError("qemu-nbd did not answer in time")


def _said(server: subprocess.Popen[bytes]) -> str:
    """End the server; what it had to say."""
    server.terminate()
    assert server.stderr is not None
    return server.stderr.read().decode(errors="replace").strip()


def _negotiate(sock: socket.socket) -> int:
    """The handshake for the default export; its size. The socket blocks from then on."""
    with sock.makefile("rb") as stream:
        if stream.read(16) != NBD_MAGIC or not _word(stream.read(2)) & NBD_FLAGS:
            raise OSError("it speaks another protocol")
        sock.sendall(struct.pack(">I8sII", NBD_FLAGS, b"IHAVEOPT", NBD_OPT_EXPORT_NAME, 0))
        answer = stream.read(10)
        if len(answer) != 10:
            raise OSError("it does not have the export")
    sock.settimeout(None)
    return int.from_bytes(answer[:8], "big")


def _word(data: bytes) -> int:
    return int.from_bytes(data, "big")
