"""Write a cpio archive in the `newc` format, as Linux unpacks its initramfs from.

Written without touching a file system, so device nodes and root's files need no root. The same
entries always give the same bytes: times are zero, inode numbers count up.

Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"


class CpioWriter:
    """Collects entries; parent directories are added by themselves."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; nothing happens if it is there already."""
        if path and path not in self._names:
            self._add(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file owned by root."""
        self._add(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device node."""
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        end = _entry(0, 0, 1, _TRAILER, b"", (0, 0))
        archive = b"".join([*self._parts, end])
        return archive + bytes(-len(archive) % 512)

    def _add(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} is not a relative path inside of the archive")
        if path in self._names:
            raise ValueError(f"{path} is in the archive already")
        self.directory(path.rpartition("/")[0])
        self._names.add(path)
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        self._parts.append(_entry(self._inode, mode, links, path, data, device))


def _entry(
    inode: int, mode: int, links: int, path: str, data: bytes, device: tuple[int, int]
) -> bytes:
    name = path.encode() + b"\0"
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)
