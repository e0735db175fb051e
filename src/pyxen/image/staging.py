"""A guest's files in a directory, for programs that make a file system of one."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyxen.errors import UserError
from pyxen.image.partition import Owner

_CAPABILITY: Final = "SCHILY.xattr.security.capability"


class StagedTree:
    """Files below `path`, and to whom they belong in the guest (initramfs.py: Tree).

    In the directory they are the user's own, so that any user can make one.
    """

    def __init__(self, path: Path) -> None:
        """Make the directory."""
        path.mkdir()
        self.path = path
        self._owners: dict[str, Owner] = {}

    def owners(self) -> Iterable[Owner]:
        """Of every file below the directory."""
        return self._owners.values()

    def unpack(self, archive: Path) -> None:
        """The files of a tar archive, without those of /dev, which kernels fill by themselves.

        Raises: UserError if it cannot be unpacked.
        """
        done = subprocess.run(
            ["tar", "-x", "-p", "--no-same-owner", "--exclude=./dev/*", "-f", str(archive)],
            cwd=self.path,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"{archive} cannot be unpacked: {said[-1]}")
        with tarfile.open(archive) as members:
            for member in members:
                path = member.name.removeprefix("./")
                if path != "." and not path.startswith("dev/"):
                    capability = member.pax_headers.get(_CAPABILITY, "")
                    self._owners[path] = Owner(
                        path, member.uid, member.gid, capability.encode(errors="surrogateescape")
                    )

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; nothing happens if it is there already."""
        if not path or (self.path / path).is_dir():
            return
        self._new(path).mkdir()
        (self.path / path).chmod(mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file of root's, in the place of one that may be there."""
        self._new(path).write_bytes(data)
        (self.path / path).chmod(mode)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link, in the place of a file that may be there."""
        self._new(path).symlink_to(target)

    def _new(self, path: str) -> Path:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} is not a relative path inside of the tree")
        self.directory(path.rpartition("/")[0])
        self._owners[path] = Owner(path)
        new = self.path / path
        new.unlink(missing_ok=True)
        return new
