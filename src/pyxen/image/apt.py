"""Debian packages' files, without root and without installing anything.

`apt-get download` verifies what it fetches against the signed package lists. The system's lists
are used if they know the package; else private ones are fetched into the cache, which any user may
do. Unpacked trees are kept in the cache and used again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from pyxen.errors import UserError

Say: TypeAlias = Callable[[str], None]

_UPDATE_SECONDS: Final = 300
_DOWNLOAD_SECONDS: Final = 900
_PACKAGE_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+-.")


def cache_directory() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/pyxen, by default ~/.cache/pyxen."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "pyxen"


class Apt:
    """The package lists of this machine, or private ones.

    cache:  directory for everything that is kept; made when needed.
    say:    told, a line at a time, what takes time.
    architecture: another one than this machine's, as Debian calls it; with private lists and a
                  cache of its own.
    """

    def __init__(
        self, cache: Path | None = None, say: Say = print, architecture: str | None = None
    ) -> None:
        self.cache = cache or cache_directory()
        if architecture is not None:
            self.cache /= architecture
        self._architecture = architecture
        self._say = say
        self._private = False

    def fetch_package(self, name: str, *, refresh: bool = False) -> Path:
        """The tree of files of a package, unpacked below the cache.

        refresh: look for a newer version even if a tree is there.
        Raises: UserError if the package is unknown or cannot be had, saying why.
        """
        check_name(name)
        with self._lock():
            tree = self._trees / name
            if tree.is_dir() and not refresh:
                return tree
            stanza = self.describe(name)
            marker = self._trees / f"{name}.version"
            if tree.is_dir() and marker.is_file() and marker.read_text() == stanza["Version"]:
                return tree
            self._fetch(name, stanza, tree)
            marker.write_text(stanza["Version"])
            return tree

    def describe(self, name: str) -> dict[str, str]:
        """The newest version's fields, as `Version`, `Depends`, `SHA256`.

        Raises: UserError if no list knows the package.
        """
        check_name(name)
        _need("apt-get", "apt-cache", "dpkg-deb")
        if self._architecture is not None and not self._private:
            self._update_private_lists(f"{name} is for {self._architecture}")
        stanza = self._show(name)
        if stanza is None and not self._private:
            self._update_private_lists(f"this machine's package lists do not know {name}")
            stanza = self._show(name)
        if stanza is None:
            raise UserError(
                f"there is no package {name} in this machine's package sources",
                "on a distribution other than Debian give the files by hand (`--kernel FILE`)",
            )
        return stanza

    @property
    def _trees(self) -> Path:
        return self.cache / "trees"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self._trees.mkdir(parents=True, exist_ok=True)
        with (self.cache / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _show(self, name: str) -> dict[str, str] | None:
        done = self._run(["apt-cache", "show", "--no-all-versions", name], 60)
        fields = _stanza(done.stdout) if done.returncode == 0 else {}
        return fields if fields.keys() >= {"Version", "SHA256"} else None

    def _fetch(self, name: str, stanza: dict[str, str], tree: Path) -> None:
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="fetch-") as scratch:
            self._say(f"downloading {name} {stanza['Version']}")
            package = self._download(name, stanza, Path(scratch))
            unpacked = Path(scratch) / "tree"
            done = self._run(["dpkg-deb", "-x", str(package), str(unpacked)], 300)
            if done.returncode:
                raise UserError(f"{package.name} cannot be unpacked: {_last_line(done.stderr)}")
            if tree.is_dir():
                shutil.rmtree(tree)
            unpacked.rename(tree)

    def _download(self, name: str, stanza: dict[str, str], scratch: Path) -> Path:
        command = ["apt-get", "-q", "download", f"{name}={stanza['Version']}"]
        done = self._run(command, _DOWNLOAD_SECONDS, scratch)
        if done.returncode and not self._private:
            # Most often the lists are old and the mirror no longer has that version.
            self._update_private_lists(f"{name} {stanza['Version']} could not be downloaded")
            stanza = self.describe(name)
            command[-1] = f"{name}={stanza['Version']}"
            done = self._run(command, _DOWNLOAD_SECONDS, scratch)
        packages = list(scratch.glob("*.deb"))
        if done.returncode or len(packages) != 1:
            raise UserError(
                f"the package {name} could not be downloaded: {_last_line(done.stderr)}",
                "is the network there? behind a proxy set http_proxy or apt's Acquire::http::Proxy",
            )
        with packages[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != stanza["SHA256"]:
            raise UserError(f"{packages[0].name} is damaged: its checksum is wrong", "try again")
        return packages[0]

    def _update_private_lists(self, why: str) -> None:
        self._say(f"{why}: fetching package lists into {self.cache / 'apt'}")
        self._private = True
        for directory in ("state/lists/partial", "cache/archives/partial"):
            (self.cache / "apt" / directory).mkdir(parents=True, exist_ok=True)
        done = self._run(["apt-get", "-q", "update"], _UPDATE_SECONDS)
        if done.returncode:  # one dead source among several is no reason to give up
            self._say(f"apt-get update: {_last_line(done.stderr)}")

    def _options(self) -> list[str]:
        options = ["-o", "APT::Sandbox::User=root", "-o", "Dpkg::Use-Pty=0"]
        if self._architecture is not None:
            # The list replaces what dpkg says, and the first of it is the one of plain names.
            options += ["-o", f"APT::Architecture={self._architecture}"]
            options += ["-o", f"APT::Architectures={self._architecture}"]
        if self._private:
            for key, value in (
                ("Dir::State", self.cache / "apt" / "state"),
                ("Dir::Cache", self.cache / "apt" / "cache"),
                ("Debug::NoLocking", "true"),
            ):
                options += ["-o", f"{key}={value}"]
        return options

    def _run(
        self, command: list[str], seconds: int, directory: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a tool in the C locale; a tool that takes too long is a failure of the network."""
        if command[0].startswith("apt-"):
            command = [command[0], *self._options(), *command[1:]]
        try:
            return subprocess.run(
                command,
                cwd=directory,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"`{command[0]}` did not finish within {seconds} s", "is the network there?"
            ) from None


def fetch_package(name: str, *, refresh: bool = False, say: Say = print) -> Path:
    """The unpacked tree of a Debian package, from the user's cache. See Apt.fetch_package."""
    return Apt(say=say).fetch_package(name, refresh=refresh)


def check_name(name: str) -> None:
    """Raises: UserError if no package can be called so."""
    if not name or name[0] in "-+." or not _PACKAGE_LETTERS.issuperset(name):
        raise UserError(f"{name!r} is not the name of a package")


def _need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            raise UserError(
                f"{tool} is not installed, so Debian packages cannot be fetched",
                "on a distribution without apt give the files by hand (`--kernel FILE`)",
            )


def _stanza(text: str) -> dict[str, str]:
    """The fields of the first paragraph; continuation lines are left out."""
    fields: dict[str, str] = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        name, colon, value = line.partition(":")
        if colon and not line.startswith((" ", "\t")):
            fields[name] = value.strip()
    return fields


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or ["no message"])[-1]
