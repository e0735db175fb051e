"""Where pyxen keeps its state and its sockets, and how to reach a socket with a long path.

$PYXEN_HOME overrides everything. Else a running system daemon that this user may talk to is used;
else the XDG directories of the user. Both directories are private (0700): who can open the sockets
owns the domains.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

SUN_PATH_BYTES = 107
"""Longest path that fits a socket address (sockaddr_un, without its final NUL)."""

SYSTEM_STATE = Path("/var/lib/pyxen")
SYSTEM_RUN = Path("/run/pyxen")


class Paths:
    """The places under one state directory and one run directory."""

    __slots__ = ("run", "state")

    def __init__(self, state: Path, run: Path) -> None:
        self.state = state
        self.run = run

    @property
    def xend_socket(self) -> Path:
        """Where xend answers xl."""
        return self.run / "xend.sock"

    @property
    def xenstored_socket(self) -> Path:
        """Where xenstored answers host clients (XENSTORED_PATH of libxenstore)."""
        return self.run / "xenstored.sock"

    @property
    def xend_lock(self) -> Path:
        """Held by the one xend of this state directory for as long as it lives."""
        return self.state / "xend.lock"

    @property
    def start_lock(self) -> Path:
        """Held by the xl that is starting xend, so that a second one waits for it."""
        return self.state / "xend.start.lock"

    @property
    def xend_log(self) -> Path:
        """What xend itself has to say."""
        return self.state / "xend.log"

    @property
    def dmesg(self) -> Path:
        """The text that `xl dmesg` prints."""
        return self.state / "dmesg"

    @property
    def journal(self) -> Path:
        """The content of xenstore."""
        return self.state / "xenstored.journal"

    @property
    def domains(self) -> Path:
        """One directory for each domain, named by its domid."""
        return self.state / "domains"

    def domain_dir(self, domid: int) -> Path:
        """What xend remembers of one domain."""
        return self.domains / str(domid)

    def domain_run(self, domid: int) -> Path:
        """The sockets of one domain process."""
        return self.run / f"dom{domid}"

    def domain_logs(self, name: str) -> Path:
        """The logs of all runs of a domain of this name."""
        return self.state / "logs" / file_name(name)

    def make(self) -> None:
        """Make the directories, private to this user."""
        for directory in (self.state, self.run, self.domains, self.state / "logs"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def file_name(domain_name: str) -> str:
    """A domain's name as one component of a path; any byte is allowed in a domain's name."""
    kept = "".join(
        c if c.isalnum() or c in "-_+@ " or (c == "." and i) else f"%{ord(c):02x}"
        for i, c in enumerate(domain_name)
    )
    return kept.encode()[:200].decode(errors="ignore") or "%"


def system_paths() -> Paths:
    """The places of the system daemon (`xend --system`)."""
    return Paths(SYSTEM_STATE, SYSTEM_RUN)


def find_paths(environ: Mapping[str, str] = os.environ) -> Paths:
    """The places to use for this user and environment; nothing is made."""
    home = environ.get("PYXEN_HOME")
    if home:
        state = Path(os.path.abspath(home))
        return Paths(state, state / "run")
    system = system_paths()
    if os.access(system.xend_socket, os.W_OK):
        return system
    base = environ.get("XDG_STATE_HOME", "")
    state_home = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    state = state_home / "pyxen"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK):
        return Paths(state, Path(runtime) / "pyxen")
    return Paths(state, state / "run")


def connect_unix(path: Path) -> socket.socket:
    """A stream connected to the socket at `path`, however long the path is. OSError if it fails."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if len(os.fsencode(path)) <= SUN_PATH_BYTES:
            sock.connect(os.fspath(path))
        else:
            _through_directory(path, sock.connect)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_unix(path: Path, backlog: int = 128) -> socket.socket:
    """A socket listening at `path` for this user only; whatever was there before is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        if len(os.fsencode(path)) <= SUN_PATH_BYTES:
            sock.bind(os.fspath(path))
        else:
            _through_directory(path, sock.bind)
        path.chmod(0o600)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _through_directory(path: Path, use: Callable[[str], None]) -> None:
    """Call `use` with a short name for `path`, by way of an open descriptor of its directory."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
