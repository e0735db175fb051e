"""File systems, read only: ext2/3/4, XFS and FAT by libyal's libraries, ISO 9660 by pycdlib, btrfs.

The libraries know nothing of symbolic links, so paths are walked here.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from pyxen.bootloader.blocks import Blocks, BlocksFile
from pyxen.bootloader.failure import ImageError

LINKS_MAX = 16
PATH_BYTES_MAX = 4096
NAMES_MAX = 4096
CHUNK_BYTES = 1 << 20


class Node(Protocol):
    """A file, directory or link of a file system."""

    kind: str
    """file, directory, link or other."""
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Content of a file."""

    def target(self) -> str:
        """What a link points to."""

    def child(self, name: str) -> Node | None:
        """What a directory holds under a name."""

    def names(self) -> Iterable[str]:
        """What a directory holds."""


class FileSystem:
    """One file system. Paths are as GRUB's: absolute, with links followed."""

    def __init__(
        self,
        kind: str,
        root: Node,
        uuid: str = "",
        label: str = "",
        subvolumes: Iterable[Node] = (),
    ) -> None:
        self.kind = kind
        self.uuid = uuid.lower()
        self.label = label
        self._roots = (root, *subvolumes)

    def find(self, path: str) -> Node | None:
        """What is at a path; None if there is nothing. ImageError if that cannot be found out.

        A path is looked up in the subvolumes that are a system's root, too.
        """
        for root in self._roots:
            node = self._walk([root], path, [LINKS_MAX])
            if node is not None:
                return node
        return None

    def _walk(self, base: list[Node], path: str, links: list[int]) -> Node | None:
        """Follow a path from a directory, which comes with those that lead to it."""
        if len(path) > PATH_BYTES_MAX:
            return None
        trail = base[:1] if path.startswith("/") else list(base)
        for name in path.split("/"):
            if name in ("", "."):
                continue
            if trail[-1].kind != "directory":
                return None
            if name == "..":
                trail = trail[:-1] or base[:1]
                continue
            node = trail[-1].child(name)
            if node is not None and node.kind == "link":
                links[0] -= 1
                if links[0] < 0:
                    raise ImageError(f"too many links on the way to {path}")
                node = self._walk(trail, node.target(), links)
            if node is None:
                return None
            trail.append(node)
        return trail[-1]

    def file(self, path: str) -> Node | None:
        """The file at a path; None if there is none."""
        node = self.find(path)
        return node if node is not None and node.kind == "file" else None

    def read(self, path: str, limit: int) -> bytes:
        """A file of at most `limit` bytes. ImageError if it is longer, or not there."""
        node = self.file(path)
        if node is None:
            raise ImageError(f"there is no file {path}")
        if node.size > limit:
            raise ImageError(f"{path} is larger than {limit} bytes")
        return b"".join(chunks(node))

    def names(self, path: str) -> list[str]:
        """What a directory holds, sorted; nothing if it is none."""
        node = self.find(path)
        if node is None or node.kind != "directory":
            return []
        names = []
        for name in node.names():
            names.append(name)
            if len(names) > NAMES_MAX:
                raise ImageError(f"{path} has too many entries")
        return sorted(names)


def chunks(node: Node) -> Iterator[bytes]:
    """A file's content in pieces. ImageError if it ends early."""
    offset = 0
    while offset < node.size:
        data = node.read(offset, min(CHUNK_BYTES, node.size - offset))
        if not data:
            raise ImageError(f"a file ends after {offset} of {node.size} bytes")
        yield data
        offset += len(data)


def open_filesystem(blocks: Blocks) -> FileSystem | None:
    """The file system in some blocks; None if there is none that is known.

    Raises: ImageError if there is one that cannot be read.
    """
    for probe, open_it in _KINDS:
        if probe(blocks):
            try:
                return open_it(blocks)
            except ImageError:
                raise
            except Exception as error:  # the libraries raise anything for a damaged image
                kind = open_it.__name__.strip("_")
                raise ImageError(f"the {kind} file system cannot be read: {error}") from error
    return None


class _LibyalNode:
    """An entry of libfsext or libfsxfs, asked for by its path: by name below another one fails."""

    def __init__(self, volume: Any, path: str, entry: Any) -> None:
        self._volume = volume
        self._path = path
        self._entry = entry
        mode = entry.file_mode
        self.size = int(entry.size or 0)
        self.kind = "other"
        for test, kind in ((stat.S_ISREG, "file"), (stat.S_ISDIR, "directory")):
            if test(mode):
                self.kind = kind
        if stat.S_ISLNK(mode):
            self.kind = "link"

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._entry.read_buffer_at_offset(length, offset))

    def target(self) -> str:
        return str(self._entry.symbolic_link_target or "")

    def child(self, name: str) -> Node | None:
        path = f"{self._path}/{name}"
        entry = self._volume.get_file_entry_by_path(path)
        return None if entry is None else _LibyalNode(self._volume, path, entry)

    def names(self) -> Iterable[str]:
        return (str(entry.name) for entry in self._entry.sub_file_entries)


class _FatNode:
    """An entry of libfsfat; names are compared without regard to case."""

    def __init__(self, volume: Any, entry: Any, *, root: bool = False) -> None:
        self._volume = volume  # it must live as long as its entries
        self._entry = entry
        self.kind = "directory" if root or entry.file_attribute_flags & 0x10 else "file"
        self.size = 0 if root else int(entry.size or 0)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._entry.read_buffer_at_offset(length, offset))

    def target(self) -> str:
        return ""

    def child(self, name: str) -> Node | None:
        for entry in self._entry.sub_file_entries:
            if str(entry.name).casefold() == name.casefold():
                return _FatNode(self._volume, entry)
        return None

    def names(self) -> Iterable[str]:
        return (str(entry.name) for entry in self._entry.sub_file_entries)


class _IsoNode:
    """A record of pycdlib, with its Rock Ridge name if it has one, else a plain or Joliet one."""

    def __init__(self, iso: Any, record: Any) -> None:
        self._iso = iso
        self._record = record
        self._rock = record.rock_ridge
        self.size = 0
        if record.is_dir():
            self.kind = "directory"
        elif self._rock is not None and self._rock.is_symlink():
            self.kind = "link"
        else:
            self.kind = "file"
            self.size = int(record.get_data_length())
        self._file: Any = None

    def read(self, offset: int, length: int) -> bytes:
        if self._file is None:
            from pycdlib.pycdlibio import PyCdlibIO

            size = self._iso.logical_block_size
            self._file = PyCdlibIO(self._record.inode, size)
            self._file.__enter__()
        self._file.seek(offset)
        return bytes(self._file.read(length))

    def target(self) -> str:
        return str(self._rock.symlink_path().decode(errors="replace"))

    def child(self, name: str) -> Node | None:
        wanted = name.casefold()
        for found, record in self._children():
            if found == name or (self._rock is None and found.casefold() == wanted):
                return _IsoNode(self._iso, record)
        return None

    def names(self) -> Iterable[str]:
        return (name for name, _ in self._children())

    def _children(self) -> Iterator[tuple[str, Any]]:
        for record in self._record.children:
            if record.is_dot() or record.is_dotdot():
                continue
            if record.rock_ridge is not None:
                name = record.rock_ridge.name().decode(errors="replace")
            else:
                name = record.file_identifier().decode(errors="replace").partition(";")[0]
                name = name.rstrip(".")
            yield name, record


def _hex_uuid(raw: bytes) -> str:
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _label(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace").rstrip()


def _is_ext(blocks: Blocks) -> bool:
    return blocks.read_at(1024 + 56, 2) == b"\x53\xef"


def _ext(blocks: Blocks) -> FileSystem:
    import pyfsext

    volume = pyfsext.volume()
    volume.open_file_object(BlocksFile(blocks))
    super_block = blocks.read_at(1024, 1024)
    uuid, label = _hex_uuid(super_block[0x68:0x78]), _label(super_block[0x78:0x88])
    return FileSystem("ext", _LibyalNode(volume, "", volume.root_directory), uuid, label)


def _is_xfs(blocks: Blocks) -> bool:
    return blocks.read_at(0, 4) == b"XFSB"


def _xfs(blocks: Blocks) -> FileSystem:
    import pyfsxfs

    volume = pyfsxfs.volume()
    volume.open_file_object(BlocksFile(blocks))
    super_block = blocks.read_at(0, 512)
    uuid, label = _hex_uuid(super_block[32:48]), _label(super_block[108:120])
    return FileSystem("xfs", _LibyalNode(volume, "", volume.root_directory), uuid, label)


def _is_fat(blocks: Blocks) -> bool:
    sector = blocks.read_at(0, 512)
    if sector[510:512] != b"\x55\xaa":
        return False
    return sector[0x36:0x39] == b"FAT" or sector[0x52:0x57] == b"FAT32"


def _fat(blocks: Blocks) -> FileSystem:
    import pyfsfat

    volume = pyfsfat.volume()
    volume.open_file_object(BlocksFile(blocks))
    sector = blocks.read_at(0, 512)
    at = 0x43 if sector[0x52:0x57] == b"FAT32" else 0x27
    serial = sector[at : at + 4][::-1].hex()
    label = _label(sector[at + 4 : at + 15])
    root = _FatNode(volume, volume.root_directory, root=True)
    return FileSystem("fat", root, f"{serial[:4]}-{serial[4:]}", label)


def _is_iso(blocks: Blocks) -> bool:
    return blocks.read_at(0x8001, 5) == b"CD001"


def _iso(blocks: Blocks) -> FileSystem:
    from pycdlib import PyCdlib

    iso = PyCdlib()
    file: Any = BlocksFile(blocks)
    iso.open_fp(file)
    record = iso.get_record(iso_path="/")
    descriptor = blocks.read_at(0x8000, 2048)
    date = descriptor[813:829].decode("ascii", errors="replace")
    pieces = (date[:4], date[4:6], date[6:8], date[8:10], date[10:12], date[12:14], date[14:16])
    label = descriptor[40:72].decode("ascii", errors="replace").rstrip()
    return FileSystem("iso9660", _IsoNode(iso, record), "-".join(pieces), label)


def _is_btrfs(blocks: Blocks) -> bool:
    return blocks.read_at(0x10000 + 64, 8) == b"_BHRfS_M"


def _btrfs(blocks: Blocks) -> FileSystem:
    from pyxen.bootloader.btrfs import Btrfs

    volume = Btrfs(blocks)
    uuid = _hex_uuid(volume.fsid)
    return FileSystem("btrfs", volume.root(), uuid, volume.label, volume.system_roots())


_KINDS = (
    (_is_btrfs, _btrfs),
    (_is_xfs, _xfs),
    (_is_ext, _ext),
    (_is_iso, _iso),
    (_is_fat, _fat),
)
