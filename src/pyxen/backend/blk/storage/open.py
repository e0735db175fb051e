"""From the settings of a disk to its storage: the one place that decides how an image is opened.

Raw files and devices are read and written by this process, every other format and every remote
disk by QEMU's storage daemon. The format is what the settings say and is never guessed: whoever
wrote the data may be a guest, and one that wrote another format's header into its raw disk would
choose which files of the host are opened.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.backend.blk.storage.base import Storage
from pyxen.backend.blk.storage.locks import Locked, holders, lock_patiently, who_has
from pyxen.backend.blk.storage.nbd import Poller, open_nbd
from pyxen.backend.blk.storage.qemu import DISCARDS, DRIVERS, ImageServer, chain, is_remote, node
from pyxen.backend.blk.storage.raw import RawStorage
from pyxen.backend.blk.storage.workers import Workers
from pyxen.errors import UserError
from pyxen.paths import Paths

_MAGIC: Final = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"QED\0": "qed",
    b"conectix": "vhd",
    b"<<< Oracle VM VirtualBox": "vdi",
}
_QCOW2_CLUSTER_BITS: Final = slice(20, 24)
"""Source: QEMU, docs/interop/qcow2.txt."""
_HEAD_BYTES: Final = 32
_PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Image:
    """What a disk's settings say of its data.

    target: path of a file or block device, or an NBD address (nbd://HOST:PORT/EXPORT). format: one
    of qemu.DRIVERS. direct: bypass the page cache (xl.cfg: direct-io-safe). discard: whether the
    guest may make holes. share: take no lock, for file systems that several hosts mount at once.
    """

    target: str
    format: str = "raw"
    read_only: bool = False
    direct: bool = False
    discard: bool = True
    share: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """What a storage is connected to.

    run_dir: for sockets, private to this user. name: of the disk (its vdev), unique in run_dir.
    report: gets a line for each thing that the user should know. paths: where domains are recorded,
    to name the one that has an image.
    """

    poller: Poller
    workers: Workers
    run_dir: Path
    name: str
    report: Callable[[str], None]
    paths: Paths


def open_storage(image: Image, host: Host) -> Storage:
    """Open an image and lock it. Waits, for seconds at most.

    Raises: UserError: missing, a directory, no permission, in use (and by whom), another format
    than said, QEMU not installed.
    """
    if image.format not in DRIVERS:
        raise UserError(
            f"disk {image.target}: there is no format {image.format!r}",
            f"use {', '.join(name for name in DRIVERS if name != 'vpc')}",
        )
    if is_remote(image.target):
        return _open_qemu(image, host, 0)
    fd = _open(image)
    try:
        head = _head(fd)
        if image.format == "raw":
            _note_other_format(image, head, host)
            _lock(fd, image, host)
            return RawStorage(
                fd,
                host.workers,
                read_only=image.read_only,
                direct=image.direct,
                discard=image.discard,
            )
        _lock(fd, image, host)  # before QEMU does, because we know how to say who has it
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return _open_qemu(image, host, _cluster_bytes(image, head))


def _open(image: Image) -> int:
    """Raises: UserError."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if image.read_only else os.O_RDWR)
    try:
        fd = os.open(image.target, flags | (os.O_DIRECT if image.direct else 0))
    except OSError as error:
        raise _open_error(image, error.errno or 0) from None
    os.set_blocking(fd, True)  # only the open itself may not wait, for a pipe without a writer
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    if stat.S_ISBLK(mode):
        if not image.read_only and not image.share and _is_claimed(image.target):
            os.close(fd)
            raise UserError(
                f"disk {image.target}: the host itself uses this device",
                "unmount it, or take it out of its array or volume group, first",
            )
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise _open_error(image, errno.EISDIR)
    raise UserError(
        f"disk {image.target}: neither a regular file nor a block device",
        "name an image or a device",
    )


def _head(fd: int) -> bytes:
    """The first bytes; through a page of memory, for direct I/O."""
    with mmap.mmap(-1, _PAGE_BYTES) as page:
        os.preadv(fd, [page], 0)
        return page[:_HEAD_BYTES]


def _open_error(image: Image, number: int) -> UserError:
    hints = {
        errno.ENOENT: "check the target of the disk; `pyxen image create` makes an image",
        errno.EISDIR: "name the image, not the directory that it is in",
        errno.EROFS: "its file system is read-only; give the disk the access `ro`",
        errno.EINVAL: "its file system has no direct I/O; leave out `direct-io-safe`",
    }
    no_right = "you may not open it" if image.read_only else "you may not write it; try access `ro`"
    hint = hints.get(number, no_right if number in (errno.EACCES, errno.EPERM) else "")
    return UserError(f"disk {image.target}: {os.strerror(number)}", hint)


def _is_claimed(device: str) -> bool:
    """Whether a block device is mounted, or part of another one."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _lock(fd: int, image: Image, host: Host) -> None:
    """Raises: UserError that names the holder."""
    if image.share:
        return
    try:
        lock_patiently(fd, read_only=image.read_only)
    except Locked:
        raise _in_use(image, image.target, host.paths) from None
    except OSError as error:
        host.report(f"disk {image.target}: cannot be locked: {error.strerror}")


def _in_use(image: Image, path: str, paths: Paths) -> UserError:
    what = "it" if path == image.target else path
    wants = "read" if image.read_only else "written"
    return UserError(
        f"disk {image.target}: {what} is in use by {who_has(Path(path), paths)}, "
        f"so it cannot be {wants} here",
        "a disk that is written is for one domain only; one that is shared must be read-only\n"
        "everywhere: end the other user first, or work on a copy",
    )


def _note_other_format(image: Image, head: bytes, host: Host) -> None:
    """Say, and no more, that a raw disk looks like something else."""
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            host.report(
                f"disk {image.target}: it looks like {name}, but its format is said to be raw: "
                f"the guest sees the bytes of the file; if that is not meant, write format={name}"
            )


def _cluster_bytes(image: Image, head: bytes) -> int:
    """What is discarded at once; 0: not known."""
    if image.format != "qcow2" or not head.startswith(b"QFI\xfb"):
        return 0
    bits = int.from_bytes(head[_QCOW2_CLUSTER_BITS], "big")
    return 1 << bits if 9 <= bits <= 21 else 0


# --- through QEMU ---------------------------------------------------------------------------------


def _open_qemu(image: Image, host: Host, cluster_bytes: int) -> Storage:
    discard = image.discard and not image.read_only and image.format in DISCARDS
    target = image.target if is_remote(image.target) else os.path.abspath(image.target)
    options = node(
        target,
        image.format,
        read_only=image.read_only,
        direct=image.direct,
        discard=discard,
        share=image.share,
    )
    try:
        return open_nbd(
            ImageServer(options, host.run_dir, host.name),
            host.poller,
            host.workers,
            lambda line: host.report(f"disk {image.target}: {line}"),
            read_only=image.read_only,
            discard=discard,
            discard_granularity=cluster_bytes,
        )
    except UserError as error:
        if error.hint:  # it is about what is installed, not about the image
            raise
        raise qemu_error(image, error.message, host.paths) from None


def qemu_error(image: Image, words: str, paths: Paths) -> UserError:
    """An error of QEMU's in our words, with what can be done."""
    if "Failed to get " in words and '" lock' in words:
        named = re.search(r"using the image \[(.*)\]", words)
        files = [named[1]] if named else chain(image.target, image.format)
        held = next((file for file in files if any(holders(Path(file)))), image.target)
        return _in_use(image, held, paths)
    if re.search(r"not in \S+ format|[Ii]nvalid .*image|[Bb]ad signature|magic|not a ", words):
        hint = f"its format is said to be {image.format}; `pyxen image info` shows what it is"
    elif "backing file" in words:
        hint = "the image is based on another; `pyxen image info` names it"
    elif is_remote(image.target):
        hint = "is the NBD server there, and does it have this export?"
    else:
        hint = "`pyxen image check` looks whether the image is whole"
    return UserError(f"disk {image.target}: {words}", hint)
