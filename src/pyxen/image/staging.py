"""A guest's files in a directory, for programs that make a file system of one."""

from __future__ import annotations

from pathlib import Path


class StagedTree:
    """Files below `path`, in the order in which they came (initramfs.py: Tree)."""

    def __init__(self, path: Path) -> None:
        """Make the directory."""
        path.mkdir()
        self.path = path
        self.paths: list[str] = []
        """Where they are in the guest, with a slash before them."""

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; nothing happens if it is there already."""
        if not path or (self.path / path).is_dir():
            return
        self._new(path).mkdir()
        (self.path / path).chmod(mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._new(path).write_bytes(data)
        (self.path / path).chmod(mode)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._new(path).symlink_to(target)

    def _new(self, path: str) -> Path:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} is not a relative path inside of the tree")
        self.directory(path.rpartition("/")[0])
        self.paths.append(f"/{path}")
        return self.path / path
