"""A Debian system as a tar archive, made by mmdebstrap and kept in the cache.

mmdebstrap works as an ordinary user in a user namespace, and as root. Packages come from where
this machine's come from, if its sources have the release, else from mmdebstrap's own default.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.errors import UserError
from pyxen.image.apt import Say, cache_directory, check_name

_BUILD_SECONDS: Final = 3600
_APT_SECONDS: Final = 60
_END_SECONDS: Final = 60
_TARGET: Final = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
_HINT: Final = (
    "is the network there? An ordinary user needs the package uidmap and a line in /etc/subuid "
    "and /etc/subgid"
)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What is to be in the archive: a release of Debian, and packages with what they need.

    mirror: another one than this machine's. cache: where the archive is kept.
    """

    suite: str
    packages: tuple[str, ...]
    mirror: str | None = None
    cache: Path | None = None

    def path(self) -> Path:
        """Where the archive is, or will be. Raises: UserError if no package can be called so."""
        for name in self.packages:
            check_name(name)
        words = [self.suite, *sorted(self.packages), *self._sources()]
        key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
        return (self.cache or cache_directory()) / "debian" / f"{self.suite}-{key}.tar"

    def archive(self, *, refresh: bool = False, say: Say = print) -> Path:
        """The archive; made if it is not in the cache, or made anew.

        Raises: UserError if mmdebstrap is not there or fails.
        """
        archive = self.path()
        if archive.is_file() and not refresh:
            return archive  # it is renamed into its place, so it is whole
        with _lock(archive.parent):
            if refresh or not archive.is_file():
                say(f"making Debian {self.suite} by mmdebstrap, which takes some minutes")
                self._make(archive, self._sources())
        return archive

    def _sources(self) -> list[str]:
        return [self.mirror] if self.mirror else host_sources(self.suite)

    def _make(self, archive: Path, sources: Sequence[str]) -> None:
        command = [
            *("mmdebstrap", "--variant=minbase", "--format=tar"),
            *(f"--include={','.join(self.packages)}", self.suite, "-", *sources),
        ]
        with tempfile.NamedTemporaryFile(dir=archive.parent, prefix="new-", delete=False) as file:
            new = Path(file.name)
            try:
                _run(command, file.fileno())
                new.replace(archive)
            finally:
                new.unlink(missing_ok=True)


def host_sources(suite: str) -> list[str]:
    """This machine's sources of a release, with its updates, as lines for apt; may be empty."""
    said = _ask("apt-get", "indextargets", "--format", _TARGET, "Created-By: Packages")
    releases = (suite, f"{suite}-updates", f"{suite}-security")
    found = []
    for line in said.splitlines():
        uri, _, rest = line.partition(" ")
        if uri.startswith(("http://", "https://")) and rest.split(" ")[0] in releases:
            found.append(f"deb {uri.rstrip('/')} {rest}")
    return found if any(line.split(" ")[2] == suite for line in found) else []


def _proxy() -> dict[str, str]:
    """apt's proxy for its programs; the guest's own apt is not told of it."""
    said = _ask("apt-config", "dump", "--format", "%v", "Acquire::http::Proxy").strip()
    return {"http_proxy": said, **os.environ} if said else dict(os.environ)


def _ask(*command: str) -> str:
    """What an apt program says; nothing if it is not there."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_APT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _run(command: list[str], output: int) -> None:
    """Run mmdebstrap. It cleans up behind itself when it is told to end."""
    if shutil.which(command[0]) is None:
        raise UserError(f"there is no {command[0]}", f"apt-get install {command[0]} uidmap")
    with subprocess.Popen(
        command,
        env={**_proxy(), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            _, said = process.communicate(timeout=_BUILD_SECONDS)
        except BaseException as error:
            process.terminate()
            process.communicate(timeout=_END_SECONDS)
            if isinstance(error, subprocess.TimeoutExpired):
                raise UserError("mmdebstrap does not come to an end", _HINT) from None
            raise
    if process.returncode:
        errors = [line[3:] for line in said.splitlines() if line.startswith("E: ")]
        why = errors[0] if errors else said[-200:]
        unknown = why.startswith("Unable to locate package")
        hint = "the release has no package of that name" if unknown else _HINT
        raise UserError(f"mmdebstrap failed: {why}", hint)


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
