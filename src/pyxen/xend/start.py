"""Start xend for the first xl that needs it."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys

from pyxen.errors import UserError
from pyxen.paths import SYSTEM_STATE, Paths, connect_unix
from pyxen.xend.environment import child_environment

LOG_LINES = 10


def start_xend(paths: Paths) -> socket.socket:
    """A connection to a xend that was started for it, or by another xl meanwhile. UserError."""
    if paths.state == SYSTEM_STATE:
        raise UserError("the system's xend does not run", "systemctl start xend")
    try:
        paths.make()
    except OSError as error:
        raise UserError(
            f"cannot make {error.filename}: {error.strerror}", "set PYXEN_HOME to another place"
        ) from error
    with open(paths.start_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return connect_unix(paths.xend_socket)
        except OSError:
            _start(paths)
        return connect_unix(paths.xend_socket)


def _start(paths: Paths) -> None:
    """Start xend in a session of its own, and wait until it answers."""
    ready_read, ready_write = os.pipe()
    with open(paths.xend_log, "ab") as log, open(ready_read, "rb") as ready:
        begin = log.tell()
        try:
            subprocess.run(
                [
                    *(sys.executable, "-P", "-m", "pyxen.xend", "--daemonize"),
                    *("--state", str(paths.state), "--run", str(paths.run)),
                    *("--ready-fd", str(ready_write)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
                pass_fds=[ready_write],
                start_new_session=True,
                check=False,
            )
        finally:
            os.close(ready_write)
        if ready.read() == b"ready\n":
            return
    with open(paths.xend_log, "rb") as log_again:
        log_again.seek(begin)
        said = log_again.read().decode(errors="replace").strip().splitlines()[-LOG_LINES:]
    raise UserError("xend did not start", "\n".join([f"{paths.xend_log} says:", *said]))
