"""The cpio archive, read back by a reader of its own."""

import stat
from dataclasses import dataclass

import pytest

from pyxen.image.cpio import CpioWriter


@dataclass
class Entry:
    mode: int
    device: tuple[int, int]
    data: bytes


def read(archive: bytes) -> dict[str, Entry]:
    """newc, strictly: magic, aligned fields, a trailer."""
    found = {}
    at = 0
    inodes = set()
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        inode, mode, uid, gid, _links, mtime, size = fields[:7]
        major, minor, name_size = fields[9:12]
        assert (uid, gid, mtime) == (0, 0, 0)
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        assert archive[at + 110 + name_size - 1] == 0
        data_at = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            assert not any(archive[data_at:])
            return found
        assert inode not in inodes
        inodes.add(inode)
        found[name] = Entry(mode, (major, minor), archive[data_at : data_at + size])
        at = (data_at + size + 3) & ~3


def test_every_kind_of_entry() -> None:
    writer = CpioWriter()
    writer.file("etc/deep/file", b"content", 0o600)
    writer.symlink("link", "etc/deep/file")
    writer.character_device("dev/console", 5, 1)
    writer.directory("etc")
    entries = read(writer.finish())
    assert list(entries) == ["etc", "etc/deep", "etc/deep/file", "link", "dev", "dev/console"]
    assert entries["etc/deep/file"] == Entry(stat.S_IFREG | 0o600, (0, 0), b"content")
    assert entries["link"] == Entry(stat.S_IFLNK | 0o777, (0, 0), b"etc/deep/file")
    assert entries["dev/console"] == Entry(stat.S_IFCHR | 0o600, (5, 1), b"")
    assert stat.S_ISDIR(entries["etc"].mode)


def test_the_same_entries_give_the_same_bytes() -> None:
    archives = []
    for _ in range(2):
        writer = CpioWriter()
        for n in range(20):
            writer.file(f"d/{'x' * n}", b"y" * n)
        archives.append(writer.finish())
    assert archives[0] == archives[1]
    assert len(archives[0]) % 512 == 0
    assert read(archives[0])["d/xxx"].data == b"yyy"


def test_bad_paths() -> None:
    writer = CpioWriter()
    writer.file("a", b"")
    for path in ("/a", "a/../b", "a"):
        with pytest.raises(ValueError, match="archive"):
            writer.file(path, b"")
